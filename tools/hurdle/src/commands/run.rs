//! `hurdle run`: the launch, and the core's life until the program ends.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use hurdle_core::{Running, Setup, Start};
use hurdle_fs::MountPoints;
use hurdle_proto::core::door;
use hurdle_proto::plan::{MountStep, Root};
use hurdle_proto::spec::Spec;
use hurdle_sys::process::{self, Group, State, Status};
use hurdle_sys::{ns, tty};

use crate::cli::Run;
use crate::cow::{self, Held, OnExit, Wanted};
use crate::failure::{Failure, OWN};
use crate::output;
use crate::policy::{self, Standard};

/// In the environment of a `hurdle run` that another one has had started, so that it is below no trap: the number of a pipe on which
/// that one hears how it ends. It need not wait for the end of a process that has nothing left to do.
pub(crate) const UNTRAPPED: &str = "HURDLE_UNTRAPPED";

/// `door`: the way out of the environment that this is in, if it is known already.
pub(crate) fn run(options: Run, door: Option<door::Client>) -> Result<ExitCode, Failure> {
    let rights = rights(&options)?;
    // Out of the environment before anything is started, which could take another fd of that number for it.
    let untrapped = process::take_variable(UNTRAPPED)?;
    let through = untrapped.is_none() && policy::traps(&rights, options.swappable)?;
    // One that is not needed is let go of here.
    let door = door.filter(|_| through);
    if let Some(door) = door.or_else(|| if through { hurdle_core::knock() } else { None }) {
        let fds: Vec<i32> = options.fds.iter().copied().chain(options.owner).collect();
        return super::enter::through(door, &fds);
    }
    let number = untrapped.and_then(|number| number.to_str()?.parse().ok()).filter(|number| *number > 2);
    let told = number.and_then(|number| process::inherited(number).ok()).map(File::from);
    let name = options.name.clone().unwrap_or_else(made_up);
    let (mut plan, held) = policy::plan(&rights, options.swappable, |spec, ids| {
        let on_exit = if options.keep { Some(OnExit::Keep) } else { options.on_exit };
        let interactive = !options.detach && io::stdin().is_terminal() && io::stderr().is_terminal();
        cow::prepare(&Wanted { spec, on_exit, interactive, name: &name }, ids)
    })?;
    let held = held.flatten();
    if held.is_none() && (options.keep || options.on_exit.is_some_and(|what| what != OnExit::Discard)) {
        return Err(Failure::new("--on-exit", "only changes of --fs cow can be kept"));
    }
    let own_terminals = |step: &MountStep| matches!(step, MountStep::Instance { kind: "devpts", .. });
    if let (true, false, Some(terminal)) = (plan.mounts.iter().any(own_terminals), options.detach, terminal()) {
        // A /dev/pts of its own has terminals of its own only: programs find theirs here, by its device.
        plan.mounts.push(MountStep::Bind { source: terminal, target: "/dev/console".into(), read_only: false });
    }
    // What it typed, the user's shell would read once the environment is over.
    plan.guard_terminal = !options.detach && tty::can_be_typed_on();
    for note in &plan.notes {
        hurdle_core::complain(format_args!("note: {note}"));
    }
    let argv = match (&plan.root, options.command.is_empty()) {
        // Another system may not have the user's shell.
        (Root::Directory(_), true) => vec!["/bin/sh".into()],
        _ => program_or_shell(options.command),
    };
    let log = options.log.as_ref().map(|path| {
        let opened = File::options().append(true).create(true).open(path);
        opened.map_err(|e| Failure::new(format!("--log {}", path.display()), e))
    });
    let log = log.transpose()?;
    // From here on this is a core, whose threads come and go with what it is asked.
    process::one_heap();
    let points = MountPoints::make(&plan).map_err(|e| Failure::new("the tree of --fs root", e))?;
    let setup = Setup {
        policy: Box::new(Standard::new(&name, held.as_ref().and_then(Held::memory))),
        name: Some(name),
        plan,
        rights,
        start: Start {
            argv,
            env: std::env::vars_os().collect(),
            // One without a path (it was deleted) is nowhere to be entered: the program stays in it.
            cwd: std::env::current_dir().map(OsString::from).unwrap_or_default(),
            group: if options.detach { Group::Session } else { group() },
            fds: options.fds,
            confirm: options.detach,
        },
        owner: options.owner.map(owner).transpose()?,
    };
    if options.detach {
        drop(told);
        return detach(setup, log, held, points);
    }
    end(Running::launch(setup)?.serve()?, held, told, points)
}

/// The number of the machine's first pid namespace (PROC_PID_INIT_INO of the kernel).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A name for one that the user gives none. In an environment pids are small, and its network may be shared.
fn made_up() -> String {
    let pid = std::process::id();
    match ns::own_pid_namespace() {
        Ok(number) if number != FIRST_PID_NAMESPACE => format!("run-{number}-{pid}"),
        _ => format!("run-{pid}"),
    }
}

/// The channel of who holds the environment.
fn owner(number: i32) -> Result<OwnedFd, Failure> {
    let wrong = |e| Failure::new(format!("--owner {number}"), e);
    let fd = process::inherited(number).map_err(|e| wrong(e.to_string()))?;
    if !hurdle_sys::seqpacket::is_seqpacket(fd.as_fd()) {
        return Err(wrong("it is no channel".into()));
    }
    Ok(fd)
}

/// What each interface is served by: as asked, else as `--isolated` says, else shared.
fn rights(options: &Run) -> Result<Vec<(String, Spec)>, Failure> {
    let choose = |asked: &Option<Spec>, shared: &str, isolated: &str| {
        asked.clone().unwrap_or_else(|| Spec::plain(if options.isolated { isolated } else { shared }))
    };
    let mut rights = vec![
        ("fs".to_string(), hurdle_fs::resolve(choose(&options.fs, "share", "cow"))?),
        ("net".to_string(), choose(&options.net, "share", "local")),
        ("auth".to_string(), choose(&options.auth, "same", "root")),
        ("proc".to_string(), choose(&options.proc, "own", "own")),
    ];
    for (name, spec) in &options.servers {
        let legal = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if !legal || name == "core" {
            let why = "an interface's name has letters, digits, `-` and `_`, and is not `core`";
            return Err(Failure::new(format!("--server {name}={spec}"), why));
        }
        if rights.iter().any(|(other, _)| other == name) {
            return Err(Failure::new(format!("--server {name}={spec}"), "this interface has a server already"));
        }
        rights.push((name.clone(), spec.clone()));
    }
    Ok(rights)
}

/// The terminal that one of the standard files is.
fn terminal() -> Option<PathBuf> {
    [0, 1, 2].into_iter().find_map(|number| tty::path(process::duplicate(number).ok()?))
}

/// What the user named, else his shell.
pub(crate) fn program_or_shell(command: Vec<OsString>) -> Vec<OsString> {
    if command.is_empty() { vec![std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())] } else { command }
}

/// A job of its own on an interactive terminal has its program in the foreground, in a process group of its own; one that
/// shares its group with a pipeline or a script stays in it, as any command would.
fn group() -> Group {
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal() && io::stderr().is_terminal();
    if terminal && process::leads_group() && tty::in_foreground(io::stdin()) {
        Group::Foreground
    } else {
        Group::Inherit
    }
}

/// What becomes of the changes; then ends as the program did.
fn end(
    status: Status,
    held: Option<Held>,
    told: Option<File>,
    points: Option<MountPoints>,
) -> Result<ExitCode, Failure> {
    drop(points);
    if let Some(held) = held {
        cow::settle(held)?;
    }
    if let Some(mut told) = told {
        // It fails if that one has gone.
        let _ = told.write_all(&status.to_bytes());
    }
    Ok(end_as(status))
}

/// Ends as the program did: with its exit status, or by its signal.
pub(crate) fn end_as(status: Status) -> ExitCode {
    if let State::Killed(signal) = status.state() {
        process::die_by(signal);
    }
    ExitCode::from(u8::try_from(status.shell_code()).unwrap_or(OWN))
}

/// The core goes on as a child without a terminal; this process waits for its first words.
fn detach(
    setup: Setup,
    log: Option<File>,
    held: Option<Held>,
    points: Option<MountPoints>,
) -> Result<ExitCode, Failure> {
    let (read, write) = process::pipe()?;
    if process::detach()?.is_some() {
        // The child has the same locks: it removes the mount points, and what the layer's lock says stays there.
        std::mem::forget((points, held));
        drop(write);
        // Two lines: an exit code and, if it is 0, the environment's name, else what went wrong.
        let mut lines = BufReader::new(File::from(read)).lines().map_while(Result::ok);
        let code: u8 = lines.next().and_then(|code| code.parse().ok()).unwrap_or(OWN);
        let said = lines.next().unwrap_or_else(|| "the core ended without a word".into());
        if code != 0 {
            return Err(Failure::plain(said).code(code));
        }
        return output::line(said);
    }
    // What else the caller has open is his: a lock or a pipe must not stay with a core that goes on without him.
    let own = [Some(write.as_raw_fd()), log.as_ref().map(File::as_raw_fd)].into_iter().flatten();
    let mut keep: Vec<i32> = setup.start.fds.iter().copied().chain(own).collect();
    keep.extend(held.iter().flat_map(Held::fds).chain(points.as_ref().map(MountPoints::fd)));
    process::close_all_but(&mut keep);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    process::replace(null.as_fd(), 0)?;
    for number in 1..3 {
        process::replace(log.as_ref().unwrap_or(&null).as_fd(), number)?;
    }
    let mut write = File::from(write);
    let say = |write: &mut File, text: String| io::Write::write_all(write, text.as_bytes());
    match Running::launch(setup) {
        Ok(running) => {
            say(&mut write, format!("0\n{}\n", running.name()))?;
            drop(write);
            end(running.serve()?, held, None, points)
        }
        Err(e) => {
            let failure = Failure::from(e);
            say(&mut write, format!("{}\n{failure}\n", failure.code))?;
            Ok(ExitCode::from(failure.code))
        }
    }
}
