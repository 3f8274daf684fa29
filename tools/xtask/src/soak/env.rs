//! One environment with a load: what is done to it, and what it holds.

use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::count::{Count, Memory};
use super::fold::{Fold, within};
use super::load::Load;
use super::plan::Random;
use crate::probe::Probe;
use crate::process::{children, command_line, family, name as process_name};
use crate::shell::Result;

/// How long a load may take to be up: PostgreSQL makes a database.
const UP: Duration = Duration::from_secs(180);
/// How long it may take to end.
const END: Duration = Duration::from_secs(60);

/// How often a program makes a trapped call, to see how long service is away.
const PAUSE_US: &str = "200";

/// An environment in the foreground of the soak.
pub(crate) struct Env<'a> {
    fold: &'a Fold,
    pub(crate) name: String,
    mark: String,
    child: Child,
    core: i32,
    init: i32,
    pub(crate) load: Load,
    probe: Option<Probe>,
    base: Option<Count>,
    pub(crate) memory: Memory,
}

impl<'a> Env<'a> {
    /// Starts it, and waits until each client has come to the end of a round.
    pub(crate) fn start(fold: &'a Fold, mark: &str, options: &[&str], clients: &[&'static str]) -> Result<Self> {
        let (name, dir) = (fold.name(mark), fold.load(mark)?);
        let files = format!("cow,share={}", dir.display());
        let options = options.iter().map(|option| if *option == "cow" { files.as_str() } else { option });
        let mut command = fold.hurdle(mark);
        command.args(["run", "--name", &name]).args(options).arg("--").args(fold.loaded(&dir, clients));
        let child = command.stdout(fold.log(mark)?).stderr(fold.log(&format!("{mark}.err"))?).spawn()?;
        let core = child.id().cast_signed();
        let load = Load::new(&dir, clients);
        let mut env = Self {
            fold,
            name,
            mark: mark.to_owned(),
            child,
            core,
            init: 0,
            load,
            probe: None,
            base: None,
            memory: Memory::default(),
        };
        let mut trouble = None;
        within(UP, || {
            trouble = env.alive().and_then(|()| env.load.look()).err();
            trouble.is_some() || env.load.is_up()
        });
        if let Some(error) = trouble {
            return Err(error);
        }
        if !env.load.is_up() {
            return Err(format!("the load of {mark} is not up: {}", fold.said(&format!("{mark}.err"))).into());
        }
        env.init = pid(&env.info()?["init"])?;
        Ok(env)
    }

    /// Lets a program in it watch how long service is away.
    pub(crate) fn watch(&mut self) -> Result {
        let mut enter = self.fold.hurdle(&self.mark);
        enter.args(["enter", &self.name, "--"]).arg(self.fold.program("xtask")).args(["probe", PAUSE_US]);
        self.probe = Some(Probe::start(&mut enter)?);
        Ok(())
    }

    /// An error if it has ended.
    pub(crate) fn alive(&mut self) -> Result {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let said = self.fold.said(&format!("{}.err", self.mark));
                Err(format!("{} ended: {status}\n{said}", self.name).into())
            }
        }
    }

    fn info(&self) -> Result<Value> {
        Ok(self.fold.json(&["ls", &self.name])?[0].take())
    }

    fn server(&self, interface: &str) -> Result<Option<i32>> {
        let info = self.info()?;
        let right = info["rights"].as_array().and_then(|all| all.iter().find(|right| right["interface"] == interface));
        let right = right.ok_or_else(|| format!("no right for {interface}: {info}"))?;
        if right["state"]["Failed"].is_object() {
            return Err(format!("the {interface} server of {} has failed: {right}", self.name).into());
        }
        right["state"]["Running"].get("pid").map(pid).transpose()
    }

    /// Kills a net server: any of a stack. How long service was away, in ms; none if none ran.
    pub(crate) fn kill_net(&mut self, random: &mut Random) -> Result<Option<f64>> {
        let Some(top) = self.server("net")? else { return Ok(None) };
        // What a server runs apart shares its memory, and ends with it.
        let servers: Vec<i32> = family(top).into_iter().filter(|pid| process_name(*pid) != "hurdle-traps").collect();
        let Some(victim) = random.pick(&servers) else { return Ok(None) };
        let Some(probe) = &mut self.probe else { return Ok(None) };
        probe.ask()?;
        // It may have been replaced meanwhile, by nobody but us.
        let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        Ok(Some(probe.longest(|| command_line(victim).is_empty())?))
    }

    /// Kills a server while somebody asks it.
    pub(crate) fn kill_asked(&self, interface: &str, random: &mut Random) -> Result {
        let question = self.question(if interface == "auth" { 1 } else { random.below(2) * 2 });
        self.ask(&question)?;
        let victim = self.server(interface)?;
        let mut asking = self.fold.hurdle(&self.mark);
        let asking = asking.args(&question).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let asking = asking.spawn()?;
        std::thread::sleep(Duration::from_micros(random.below(5000) as u64));
        let _ = victim.map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        let done = asking.wait_with_output()?;
        let said = || String::from_utf8_lossy(&done.stderr).into_owned();
        if done.status.success() { Ok(()) } else { Err(format!("{question:?}: {}: {}", done.status, said()).into()) }
    }

    /// Questions that any user may have.
    fn question(&self, which: usize) -> Vec<&str> {
        match which {
            0 => vec!["ps", &self.name],
            1 => vec!["rpc", &self.name, "auth.maps"],
            2 => vec!["enter", &self.name, "--", "true"],
            3 => vec!["ls"],
            4 => vec!["ls", &self.name],
            5 => vec!["rpc", &self.name, "net.sockets"],
            _ => vec!["rpc", &self.name],
        }
    }

    fn ask(&self, question: &[&str]) -> Result {
        self.fold.call(question).map(drop)
    }

    /// Asks one of them.
    pub(crate) fn look(&self, random: &mut Random) -> Result {
        self.ask(&self.question(random.below(7)))
    }

    /// Replaces the net server. How long service was away, in ms.
    pub(crate) fn swap(&mut self, to: &str) -> Result<Option<f64>> {
        let Some(probe) = &mut self.probe else { return Ok(None) };
        probe.ask()?;
        self.fold.call(&["swap", &self.name, &format!("net={to}")])?;
        Ok(Some(probe.longest(|| true)?))
    }

    /// `hurdle enter` of it.
    pub(crate) fn enter(&self, mark: &str) -> Command {
        let mut enter = self.fold.hurdle(mark);
        enter.args(["enter", &self.name, "--"]);
        enter
    }

    /// The core's own children, and theirs, but not those inside.
    fn outside(&self) -> Vec<i32> {
        let started = children(self.core).into_iter().filter(|pid| *pid != self.init);
        started.flat_map(family).collect()
    }

    fn count(&self) -> Count {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.core)).map_or(0, Iterator::count);
        Count {
            processes: self.outside().len(),
            core_fds: crate::process::fds(self.core),
            core_threads: threads,
            mounts: crate::process::mounts(self.init),
            sockets: self.fold.sockets(),
            host_mounts: self.fold.mounts(),
            files: self.fold.transient(),
        }
    }

    /// Back to where it was at the first call: everything runs, and nothing is under way.
    pub(crate) fn settle(&mut self, minutes: f64) -> Result {
        self.swap("local")?;
        for which in 0..3 {
            self.ask(&self.question(which))?;
        }
        let mut now = self.count();
        let Some(base) = self.base.clone() else {
            // Who has asked is gone when his answer is there, but not his thread.
            within(Duration::from_secs(2), || std::mem::replace(&mut now, self.count()) != now);
            std::thread::sleep(Duration::from_secs(1));
            self.base = Some(self.count());
            return self.memory.note(minutes, self.core, &self.outside());
        };
        let back = within(Duration::from_secs(20), || {
            now = self.count();
            now.is_back(&base)
        });
        if !back {
            return Err(format!("{} does not come back to {base:?}: {now:?}", self.name).into());
        }
        self.memory.note(minutes, self.core, &self.outside())?;
        self.memory.check()
    }

    /// All there is to know, for who looks into a failure.
    pub(crate) fn described(&self) -> String {
        let clients: Vec<String> = self.load.operations().map(|(client, done)| format!("{client} {done}")).collect();
        let mut text = format!("{}: {}\n", self.name, clients.join(", "));
        for question in [vec!["ls", &self.name], vec!["rpc", &self.name, "net.counters"], self.question(5)] {
            text += &self.fold.call(&question).unwrap_or_else(|error| error.to_string());
        }
        let inside = family(self.init).into_iter().chain(self.outside());
        inside.for_each(|pid| text += &format!("{}\n", crate::process::described(pid)));
        text
    }

    /// Ends the load; nothing may be left.
    pub(crate) fn end(mut self) -> Result<Load> {
        if let Some(probe) = self.probe.take() {
            probe.end()?;
        }
        self.load.stop()?;
        let mut status = None;
        within(END, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        self.load.look()?;
        let said = || self.fold.said(&format!("{}.err", self.mark));
        match status {
            Some(status) if status.success() => self.fold.gone(&self.mark)?,
            Some(status) => return Err(format!("{} ended: {status}: {}", self.name, said()).into()),
            None => return Err(format!("{} does not end: {}", self.name, said()).into()),
        }
        Ok(self.load)
    }

    /// Kills its core or pid 1: nothing may be left.
    pub(crate) fn kill_whole(mut self, random: &mut Random) -> Result {
        let victim = [self.core, self.init][random.below(2)];
        kill(Pid::from_raw(victim), Signal::SIGKILL)?;
        let ended = within(END, || self.child.try_wait().ok().flatten().is_some());
        if !ended {
            return Err(format!("{} outlives its {victim}", self.name).into());
        }
        self.fold.gone(&self.mark)?;
        let names = self.fold.call(&["ls"])?;
        if names.contains(&self.name) { Err(format!("{} is still listed", self.name).into()) } else { Ok(()) }
    }
}

fn pid(value: &Value) -> Result<i32> {
    let number = value.as_i64().and_then(|pid| i32::try_from(pid).ok());
    number.ok_or_else(|| format!("{value} is no process id").into())
}
