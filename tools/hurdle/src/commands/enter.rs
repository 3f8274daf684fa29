//! `hurdle enter`: one more program in an environment. On a terminal it gets a terminal of its own, which this process
//! relays, since the environment belongs to another session; otherwise it gets the caller's files themselves. A `hurdle run` that
//! another process must carry out does the same.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::process::ExitCode;
use std::time::Duration;

use hurdle_proto::core::door;
use hurdle_proto::init::{Group, Program};
use hurdle_proto::process::proc;
use hurdle_sys::process::{self as processes, Signals, State, Status, Until, numbers};
use hurdle_sys::tty;
use hurdle_wire::{CallError, Fd};

use super::look;
use super::run::{UNTRAPPED, end_as, program_or_shell};
use crate::failure::{Failure, OWN};

/// How many servers may die before one has started the program.
const ASKED: usize = 10;

pub(crate) fn enter(env: &str, command: Vec<OsString>) -> Result<ExitCode, Failure> {
    let client = proc::Client::from(look::server(env, "proc")?);
    let argv = program_or_shell(command);
    let name = argv[0].to_string_lossy().into_owned();
    let (mut session, program) = Session::prepare(argv, Vec::new())?;
    // Asked again with the same status pipe it is the same program, so the death of a server in the midst is no loss.
    let asked = (0..ASKED).map(|_| client.spawn(program.clone()).wait()).find(|asked| *asked != Err(CallError::Dead));
    drop(program);
    let pid = asked.unwrap_or(Err(CallError::Dead)).map_err(|e| match &e {
        CallError::Refused(refused) => {
            let (code, why) = hurdle_core::exec_failure(&io::Error::from_raw_os_error(refused.errno));
            Failure::new(name, why).code(code)
        }
        _ => look::failed(env, "proc", env, &e),
    })?;
    session.signal = Box::new(move |signal| _ = client.signal(pid, signal).wait());
    match session.follow()? {
        Some(status) => Ok(ExitCode::from(u8::try_from(status.shell_code()).unwrap_or(OWN))),
        None => Err(Failure::new(env, "the environment ended, and the program with it").code(137)),
    }
}

/// `hurdle run` in an environment whose calls are trapped: the same command once more, where none are, with this process in
/// between.
pub(crate) fn through(door: door::Client, fds: &[i32]) -> Result<ExitCode, Failure> {
    let own = std::env::current_exe()?;
    let argv = [own.into_os_string()].into_iter().chain(std::env::args_os().skip(1)).collect();
    let fds = fds.iter().map(|&number| {
        let duplicate = processes::duplicate(number);
        let duplicate = duplicate.map_err(|e| Failure::new(format!("--fd {number}"), e))?;
        Ok((number, Fd::from(duplicate)))
    });
    let (mut session, mut program) = Session::prepare(argv, fds.collect::<Result<_, Failure>>()?)?;
    let status = program.status.into_owned()?;
    let free = (3..256).find(|number| program.fds.iter().all(|(taken, _)| taken != number));
    if let Some(free) = free {
        program.fds.push((free, Fd::from(status.try_clone()?)));
    }
    program.status = Fd::from(status);
    program.env.push((UNTRAPPED.into(), free.unwrap_or_default().to_string().into_bytes()));
    let number = match door.again(program.clone()).wait() {
        // An older core does not know it.
        Err(CallError::Misuse(_)) => door.spawn(program.clone()).wait(),
        done => done,
    };
    // Its files are the program's alone.
    drop(program);
    let number = number.map_err(|e| Failure::call("the environment that this is in", &e))?;
    session.signal = Box::new(move |signal| _ = door.signal(number, signal).wait());
    match session.follow()? {
        Some(status) => Ok(end_as(status)),
        None => Err(Failure::plain("the environment that this is in ended".into()).code(137)),
    }
}

/// A program elsewhere that stands for this process.
struct Session {
    /// Sends it a signal.
    signal: Box<dyn Fn(i32)>,
    signals: Signals,
    status: OwnedFd,
    /// Our end of the program's terminal.
    relay: Option<OwnedFd>,
}

impl Session {
    /// The program as a message, with the caller's environment, directory and files; on a terminal it gets one of its own.
    fn prepare(argv: Vec<OsString>, fds: Vec<(i32, Fd)>) -> Result<(Session, Program), Failure> {
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        let (status, status_end) = processes::pipe()?;
        let (relay, stdio) = if terminal {
            let (master, slave) = tty::open_pty()?;
            let _ = tty::copy_size(io::stdin(), &master);
            let copies = [slave.try_clone()?, slave.try_clone()?, slave];
            (Some(master), copies)
        } else {
            (None, [processes::duplicate(0)?, processes::duplicate(1)?, processes::duplicate(2)?])
        };
        let mut handed: Vec<i32> = hurdle_core::FORWARDED.to_vec();
        if terminal {
            // To go on, as a job of the terminal, is for the program too.
            handed.extend([numbers::SIGWINCH, numbers::SIGCONT]);
        }
        let signals = Signals::block(&handed)?;
        let program = Program {
            argv: argv.into_iter().map(OsString::into_vec).collect(),
            env: std::env::vars_os().map(|(key, value)| (key.into_vec(), value.into_vec())).collect(),
            cwd: std::env::current_dir().map_or_else(|_| b"/".to_vec(), |dir| OsString::from(dir).into_vec()),
            stdio: stdio.map(Fd::from),
            fds,
            status: Fd::from(status_end),
            group: if terminal { Group::Terminal } else { Group::Session },
        };
        Ok((Session { signal: Box::new(|_| ()), signals, status, relay }, program))
    }

    /// Until the program ends; `None` if its environment did.
    fn follow(mut self) -> Result<Option<Status>, Failure> {
        let mut raw = self.relay.is_some().then(|| tty::Raw::new(io::stdin())).transpose()?;
        let mut status = File::from(self.status.try_clone()?);
        if let Some(relay) = &self.relay {
            let (keys, relay) = (processes::duplicate(0)?, relay.try_clone()?);
            // Apart from the output: a program that does not read, since nobody reads what it writes, would stop both.
            std::thread::Builder::new().spawn(move || type_on(File::from(keys), File::from(relay)))?;
        }
        loop {
            let mut fds = vec![(status.as_fd(), Until::Readable), (self.signals.as_fd(), Until::Readable)];
            if let Some(relay) = &self.relay {
                fds.push((relay.as_fd(), Until::Readable));
            }
            let ready = processes::poll(&fds, None)?;
            let is = |n: usize| ready.get(n) == Some(&true);
            if is(1) && self.forward() && raw.is_none() && tty::in_foreground(io::stdin()) {
                raw = tty::Raw::new(io::stdin()).ok();
            }
            if is(2) && !self.output()? {
                self.relay = None;
            }
            if is(0) {
                let Ok(Some(now)) = Status::read(&mut status) else { return Ok(None) };
                if matches!(now.state(), State::Exited(_) | State::Killed(_)) {
                    // What it wrote last.
                    while let Some(relay) = &self.relay
                        && processes::poll(&[(relay.as_fd(), Until::Readable)], Some(std::time::Instant::now()))?[0]
                        && self.output()?
                    {}
                    return Ok(Some(now));
                }
                if let (State::Stopped(_), Some(relay)) = (now.state(), &self.relay) {
                    // So does this process, for the shell that started it, until SIGCONT, which is heard as a signal.
                    while processes::poll(&[(relay.as_fd(), Until::Readable)], Some(std::time::Instant::now()))?[0]
                        && self.output()?
                    {}
                    raw = None;
                    processes::stop_self();
                }
            }
        }
    }

    /// Whether one of them was SIGCONT.
    fn forward(&self) -> bool {
        let mut goes_on = false;
        while let Ok(Some((signal, _))) = self.signals.next() {
            if signal == numbers::SIGWINCH {
                if let Some(relay) = &self.relay {
                    let _ = tty::copy_size(io::stdin(), relay);
                }
            } else {
                goes_on |= signal == numbers::SIGCONT;
                (self.signal)(signal);
            }
        }
        goes_on
    }

    /// From the program's terminal to ours; false at its end (EIO once no program holds the other side).
    fn output(&self) -> io::Result<bool> {
        let Some(relay) = &self.relay else { return Ok(false) };
        let mut buffer = [0; 16 * 1024];
        match File::from(relay.try_clone()?).read(&mut buffer) {
            Ok(0) | Err(_) => Ok(false),
            Ok(got) => {
                let mut out = io::stdout().lock();
                out.write_all(&buffer[..got])?;
                out.flush()?;
                Ok(true)
            }
        }
    }
}

/// How long a job in the background waits before it looks again if it is in the foreground.
const BACKGROUND: Duration = Duration::from_millis(50);

/// What is typed goes to the program, as long as both are there.
fn type_on(mut keys: File, mut relay: File) {
    // In the background a read fails then, and does not stop the job.
    processes::ignore(numbers::SIGTTIN);
    let mut buffer = [0; 4096];
    loop {
        match keys.read(&mut buffer) {
            Ok(got) if got > 0 => {
                if relay.write_all(&buffer[..got]).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if !tty::in_foreground(&keys) => std::thread::sleep(BACKGROUND),
            _ => return,
        }
    }
}
