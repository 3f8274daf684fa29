//! Commands that look at environments that run, wait for them, end them, and swap their servers.

use std::process::ExitCode;
use std::time::Duration;

use hurdle_proto::core::{EnvInfo, RightState, core};
use hurdle_proto::process::proc;
use hurdle_proto::spec::{Spec, similar};
use hurdle_sys::process::{Status, numbers};
use hurdle_wire::{CallError, Channel, Fd};

use crate::failure::Failure;
use crate::output::{self, Table};
use crate::progress;

/// How long `ls` waits for one environment.
const PATIENCE: Duration = Duration::from_millis(500);
/// How many are asked at a time, and how many make it worth a thread.
const MANY: usize = 32;
const FEW: usize = 8;
/// No deadline that a user would see.
const FOR_EVER: Duration = Duration::MAX;

/// How deep `ls` looks, and how many it shows: what lies in an environment may be a program that says it is one.
const DEPTH: usize = 64;
const MOST: usize = 10_000;

/// The core of the caller's environment `path`: its name, or those of the environments that it lies in before it (`outer/inner`).
pub(crate) fn find(path: &str) -> Result<core::Client, Failure> {
    let (name, below) = path.split_once('/').unwrap_or((path, ""));
    let core = find_here(name)?;
    if below.is_empty() {
        return Ok(core);
    }
    let fd = core.reach(below.to_string()).wait().map_err(|e| Failure::call(name, &e))?;
    Ok(core::Client::from(Channel::from(fd.into_owned()?)))
}

fn find_here(name: &str) -> Result<core::Client, Failure> {
    hurdle_core::connect(name).map_err(|e| match e.raw_os_error() {
        Some(numbers::ECONNREFUSED) => {
            let names = hurdle_core::names().unwrap_or_default();
            let hint = match similar(name, names.iter().map(String::as_str)) {
                _ if names.is_empty() => "none runs".to_string(),
                Some(near) => format!("did you mean {near}? There is {}", names.join(", ")),
                None => format!("there is {}", names.join(", ")),
            };
            Failure::new(format!("no environment {name:?}"), hint)
        }
        Some(numbers::EPERM) => Failure::new(
            name,
            "the socket of this name is no core of yours (another user's, or across an environment's border)",
        ),
        _ => Failure::new(name, e),
    })
}

/// A channel to the server of an interface.
pub(crate) fn server(env: &str, interface: &str) -> Result<Channel, Failure> {
    let fd = find(env)?.lookup(interface.to_string()).wait().map_err(|e| Failure::call(env, &e))?;
    Ok(Channel::from(fd.into_owned()?))
}

/// A call that failed; of a server that died, what is known of its end.
pub(crate) fn failed(env: &str, interface: &str, call: &str, error: &CallError) -> Failure {
    let right = || {
        let info = find(env).ok()?.info().wait().ok()?;
        info.rights.into_iter().find(|right| right.interface == interface)
    };
    let Some(right) = matches!(error, CallError::Dead).then(right).flatten() else {
        return Failure::call(call, error);
    };
    let why = match right.state {
        RightState::Failed { reason } => reason,
        _ => right.stderr.last().map_or_else(|| "it said nothing".into(), |line| format!("it said: {line}")),
    };
    Failure::new(call, format!("the {interface} server died; {why}"))
}

pub(crate) fn ls(env: Option<&str>, json: bool) -> Result<ExitCode, Failure> {
    let mut infos = Vec::new();
    match env {
        Some(path) => {
            let info = find(path)?.info().wait().map_err(|e| Failure::call(path, &e))?;
            let parent = path.rsplit_once('/').map_or("host", |(parent, _)| parent);
            infos.push(EnvInfo { name: path.to_string(), parent: parent.to_string(), ..info });
        }
        None => {
            infos = side_by_side(&hurdle_core::names()?, |name| {
                let mut found = Vec::new();
                if let Ok(core) = hurdle_core::connect(name) {
                    list(&core, name.clone(), "host", DEPTH, &mut found);
                }
                found
            });
        }
    }
    if json {
        return output::json(&infos);
    }
    let mut table = Table::new(&["ENV", "PARENT", "UP", "FS", "NET", "AUTH", "PROC", "SERVERS", "COMMAND"]);
    for info in &infos {
        let spec = |interface: &str| {
            let right = info.rights.iter().find(|right| right.interface == interface);
            right.map(|right| right.spec.to_string()).unwrap_or_default()
        };
        table.row(vec![
            info.name.clone(),
            info.parent.clone(),
            output::age(info.up_ms),
            spec("fs"),
            spec("net"),
            spec("auth"),
            spec("proc"),
            servers(info),
            info.command.clone(),
        ]);
    }
    let mut text = table.to_string();
    if env.is_some() {
        for right in infos.iter().flat_map(|info| &info.rights) {
            right.stderr.iter().for_each(|line| text.push_str(&format!("{} said: {line}\n", right.interface)));
        }
    }
    output::print(text)
}

/// What `ask` finds of each, in this order. Many are asked at a time, since each answer is two wake-ups away.
fn side_by_side(names: &[String], ask: impl Fn(&String) -> Vec<EnvInfo> + Sync) -> Vec<EnvInfo> {
    let few = names.len().div_ceil(MANY).max(FEW);
    let ask = &ask;
    std::thread::scope(|scope| {
        let begun = |names: &[String]| names.iter().flat_map(ask).collect::<Vec<EnvInfo>>();
        let parts: Vec<_> = names.chunks(few).map(|names| scope.spawn(move || begun(names))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap_or_default()).collect()
    })
}

/// Adds the environment `path` and what lies below it.
fn list(core: &core::Client, path: String, parent: &str, depth: usize, infos: &mut Vec<EnvInfo>) {
    // One that ends meanwhile is none; one that does not answer (a stopped job) holds up nobody.
    match core.info().deadline(PATIENCE).wait() {
        Ok(info) => infos.push(EnvInfo { name: path.clone(), parent: parent.to_string(), ..info }),
        Err(CallError::Timeout) => {
            return hurdle_core::complain(format_args!("{path} does not answer (is it stopped?)"));
        }
        Err(_) => return,
    }
    let mut below = if depth > 0 { core.below().deadline(PATIENCE).wait().unwrap_or_default() } else { Vec::new() };
    below.retain(|name| hurdle_core::is_name(name));
    below.sort();
    for name in below {
        let reached = core.reach(name.clone()).deadline(PATIENCE).wait();
        if infos.len() < MOST
            && let Ok(Ok(fd)) = reached.map(Fd::into_owned)
        {
            list(&core::Client::from(Channel::from(fd)), format!("{path}/{name}"), &path, depth - 1, infos);
        }
    }
}

/// Whether an environment of this path is there still.
fn is_there(path: &str) -> Result<bool, Failure> {
    match path.split_once('/') {
        Some(_) => Ok(find(path).is_ok()),
        None => Ok(hurdle_core::names()?.iter().any(|name| name == path)),
    }
}

/// What runs, in a few words each: `net 4130 up 4s, 1 swap`.
fn servers(info: &EnvInfo) -> String {
    let mut all = Vec::new();
    for right in &info.rights {
        let mut words = match &right.state {
            RightState::Idle if right.deaths == 0 && right.swaps == 0 => continue,
            RightState::Idle => format!("{} idle", right.interface),
            RightState::Starting => format!("{} starting", right.interface),
            RightState::Running { pid, up_ms } => format!("{} {pid} up {}", right.interface, output::age(*up_ms)),
            RightState::Failed { reason } => format!("{} failed: {reason}", right.interface),
        };
        for (count, name) in [(right.swaps, "swap"), (right.deaths, "death")] {
            if count > 0 {
                words.push_str(&format!(", {count} {name}{}", if count == 1 { "" } else { "s" }));
            }
        }
        all.push(words);
    }
    if all.is_empty() { "-".into() } else { all.join("; ") }
}

pub(crate) fn ps(env: &str, json: bool) -> Result<ExitCode, Failure> {
    let client = proc::Client::from(server(env, "proc")?);
    let list = client.list().wait().map_err(|e| failed(env, "proc", env, &e))?;
    if json {
        return output::json(&list);
    }
    let mut table = Table::new(&["PID", "OUTER", "PPID", "UID", "S", "THR", "RSS", "CPU", "COMMAND"]);
    for p in list {
        table.row(vec![
            p.pid.to_string(),
            p.outer_pid.to_string(),
            p.parent.to_string(),
            p.uid.to_string(),
            p.state.to_string(),
            p.threads.to_string(),
            format!("{}K", p.rss_kib),
            output::age(p.cpu_ms),
            p.command,
        ]);
    }
    output::print(table)
}

pub(crate) fn wait(env: &str, json: bool) -> Result<ExitCode, Failure> {
    let raw = find(env)?.wait().deadline(FOR_EVER).wait().map_err(|e| match e {
        CallError::Dead => Failure::new(format!("no environment {env:?}"), "it has just ended"),
        e => Failure::call(env, &e),
    })?;
    let code = Status(raw).shell_code();
    if json {
        output::json(&serde_json::json!({ "env": env, "exit": code }))?;
    }
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(crate::failure::OWN)))
}

pub(crate) fn kill(envs: &[String], signal: Option<i32>) -> Result<ExitCode, Failure> {
    for env in envs {
        let core = find(env)?;
        match core.kill(signal.unwrap_or(0)).wait() {
            Ok(()) => {}
            // It ended before it could say so, unless it is there still.
            Err(CallError::Dead) if signal.is_none() && !is_there(env)? => {}
            Err(CallError::Dead) if is_there(env)? => {
                let why = "it does not let this caller in (it listens to its user, outside of environments)";
                return Err(Failure::new(env, why));
            }
            Err(e) => return Err(Failure::call(env, &e)),
        }
        if signal.is_none() {
            // Nothing of it is left when this returns.
            let _ = progress::during(&format!("ending {env}"), || core.wait().wait());
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn swap(env: &str, interface: String, to: Spec, json: bool) -> Result<ExitCode, Failure> {
    let core = find(env)?;
    let what = format!("{env}: {interface} becomes {to}");
    let swapped = progress::during(&what, || core.swap(interface.clone(), to).wait());
    let swapped = swapped.map_err(|e| Failure::call(env, &e))?;
    if json {
        return output::json(&swapped);
    }
    let pause = output::micros(swapped.pause_us);
    let (from, to) = (swapped.from, swapped.to);
    output::line(format_args!("{env}: {interface}={from} is now {interface}={to} (traffic waited {pause})"))
}
