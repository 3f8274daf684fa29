//! Checks of seccomp user notification: a program in a process of its own makes a call, and it is really received and
//! answered. A container or AppArmor may let the filter in and block the rest.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::parent_id;
use std::time::Instant;

use hurdle_sys::ns::{self, Namespaces};
use hurdle_sys::probe::{Ending, Trial, numbers};
use hurdle_sys::process::State;
use hurdle_sys::seccomp::{Action, ArgMatch, Call, Filter, Listener, ListenerFlags, Rule};
use hurdle_sys::seqpacket;
use hurdle_sys::target::{Tasks, memory, socket};

use super::trouble::{self, Outcome, Report, Step, Trouble};
use super::{DEADLINE, world};

/// A pid that no process has.
const MADE_UP: u32 = 0x7fff_fff0;
/// A name that a trapped sethostname(2) carries, and nobody gets.
const NAME: &str = "hurdle-doctor";
/// What the socket is marked with, whose copy is fetched.
const MARK: u64 = 0x6875_7264_6c65_2121;

pub(crate) fn answer(report: &Report) -> Outcome {
    ask_parent(report, |_| Ok(()))
}

pub(crate) fn sync_wake_up(report: &Report) -> Outcome {
    ask_parent(report, |listener| report.try_to(Step::SyncWakeUp, || listener.set_sync_wake_up()))
}

/// A program asks for its parent's pid and must hear the one that is made up here.
fn ask_parent(report: &Report, prepare: impl FnOnce(&Listener) -> Outcome) -> Outcome {
    let rules = [Rule::new(numbers::SYS_getppid, [], Action::Notify)];
    beside(
        report,
        &rules,
        || parent_id() == MADE_UP,
        |listener| {
            prepare(listener)?;
            let call = receive(report, listener, numbers::SYS_getppid)?;
            report.try_to(Step::Answer, || listener.answer(call.id, Ok(MADE_UP.into())))
        },
    )
}

/// A program makes a socket and gets one that is connected already.
pub(crate) fn give_fd(report: &Report) -> Outcome {
    let (ours, theirs) = report.try_to(Step::Prepare, UnixStream::pair)?;
    let rules = [Rule::new(
        numbers::SYS_socket,
        [ArgMatch::In(0, vec![numbers::AF_UNIX as u32]), ArgMatch::Masked(1, 0xf, numbers::SOCK_DGRAM as u32)],
        Action::Notify,
    )];
    let program = || UnixDatagram::unbound().is_ok_and(|socket| socket.send(b"x").is_ok());
    beside(report, &rules, program, |listener| {
        let call = receive(report, listener, numbers::SYS_socket)?;
        report.try_to(Step::GiveFd, || listener.answer_fd(call.id, theirs.as_fd(), true))?;
        drop(theirs);
        let mut byte = [0];
        report.try_to(Step::GiveFd, || (&ours).read_exact(&mut byte))?;
        if byte == *b"x" { Ok(()) } else { Err(report.wrong("the socket is not the one that was given")) }
    })
}

/// A process that is no ancestor of the program, as a server is, reads the program's memory and takes a copy of its socket.
pub(crate) fn look_inside(report: &Report) -> Outcome {
    let rules = [numbers::SYS_sethostname, numbers::SYS_listen].map(|syscall| Rule::new(syscall, [], Action::Notify));
    let filter = report.try_to(Step::Prepare, || Filter::new(&rules))?;
    let (ours, theirs) = report.try_to(Step::Prepare, seqpacket::pair)?;
    let (marked, _other) = report.try_to(Step::Prepare, UnixStream::pair)?;
    let program = |report: &Report| {
        install(report, &filter, &theirs)?;
        if ns::set_hostname(NAME).is_ok() && socket::listen(marked.as_fd(), 1).is_ok() {
            return Ok(());
        }
        // Why it got no answer is for the server to say; this process ends with its parent.
        loop {
            std::thread::park();
        }
    };
    report.try_to(Step::Mark, || socket::set_mark(marked.as_fd(), MARK))?;
    let program = world::start(report, Namespaces::BASE, program)?;
    let serve = |_| {
        let Ok(listener) = listener(report, &ours).inspect_err(|trouble| report.end(&Err(trouble.clone()))) else {
            return 1;
        };
        match look(report, &listener) {
            // A good end is the program's to report.
            Ok(()) => 0,
            Err(trouble) => {
                report.end(&Err(trouble));
                1
            }
        }
    };
    let server = report.try_to(Step::Prepare, || Trial::start(serve))?;
    drop(theirs);
    let (_, ending) = report.try_to(Step::Receive, || server.finish(Instant::now() + DEADLINE))?;
    match ending {
        Ending::By(State::Exited(0)) => world::wait(report, &program),
        ending => trouble::read(&[], ending).map_err(|trouble| Trouble { step: Step::Receive, ..trouble }),
    }
}

fn look(report: &Report, listener: &Listener) -> Outcome {
    let call = receive(report, listener, numbers::SYS_sethostname)?;
    let mut name = [0; NAME.len()];
    report.try_to(Step::Memory, || memory::read(call.tid, call.args[0], &mut name))?;
    if name != *NAME.as_bytes() {
        return Err(report.wrong("the bytes are not those that the program passed"));
    }
    report.try_to(Step::Answer, || listener.answer(call.id, Ok(0)))?;
    let call = receive(report, listener, numbers::SYS_listen)?;
    let copy = report.try_to(Step::Fd, || Tasks::new().fd(call.tid, call.args[0] as i32))?;
    let mark = report.try_to(Step::Fd, || socket::mark(copy.as_fd()))?;
    if mark != MARK {
        return Err(report.wrong("the fd is not the one that the program has"));
    }
    report.try_to(Step::Answer, || listener.answer(call.id, Ok(0)))
}

/// Runs `program` below a filter in a process beside this one, which answers it by `serve`. The program says whether what
/// it heard was right.
fn beside(
    report: &Report,
    rules: &[Rule],
    program: impl FnOnce() -> bool,
    serve: impl FnOnce(&Listener) -> Outcome,
) -> Outcome {
    let filter = report.try_to(Step::Prepare, || Filter::new(rules))?;
    let (ours, theirs) = report.try_to(Step::Prepare, seqpacket::pair)?;
    let run = |_| match install(report, &filter, &theirs) {
        Ok(()) => i32::from(!program()),
        Err(trouble) => {
            report.end(&Err(trouble));
            2
        }
    };
    let process = report.try_to(Step::Prepare, || Trial::start(run))?;
    drop(theirs);
    serve(&listener(report, &ours)?)?;
    finish(report, process)
}

fn finish(report: &Report, process: Trial) -> Outcome {
    let (_, ending) = report.try_to(Step::Answer, || process.finish(Instant::now() + DEADLINE))?;
    match ending {
        Ending::By(State::Exited(0)) => Ok(()),
        Ending::By(_) => Err(report.wrong("the program did not get the answer that was given")),
        Ending::Late => Err(report.wrong("the program does not go on")),
    }
}

/// In the program's process: puts it below the filter, and hands out the listener.
fn install(report: &Report, filter: &Filter, to: &OwnedFd) -> Outcome {
    report.try_to(Step::Filter, || {
        ns::no_new_privileges()?;
        let listener = filter.install(ListenerFlags::default())?;
        seqpacket::send(to.as_fd(), b"l", &[listener.as_fd()], true)
    })
}

fn listener(report: &Report, from: &OwnedFd) -> Result<Listener, Trouble> {
    let mut received = report.try_to(Step::Filter, || seqpacket::receive(from.as_fd(), &mut Vec::with_capacity(8)))?;
    received.fds.pop().map(Listener::from).ok_or_else(|| report.wrong("the filter gave no listener"))
}

fn receive(report: &Report, listener: &Listener, syscall: i64) -> Result<Call, Trouble> {
    let mut call = Call::default();
    report.try_to(Step::Receive, || {
        loop {
            match listener.receive(&mut call) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    })?;
    if i64::from(call.syscall) == syscall {
        Ok(call)
    } else {
        Err(report.wrong("another call was received than was made"))
    }
}
