//! What a check says of itself, line by line on its pipe: the step it takes, and how it came out.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write as _};

use hurdle_sys::probe::{Ending, numbers};
use hurdle_sys::process::State;
use serde::{Deserialize, Serialize};

/// What a check does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    Prepare,
    Namespaces,
    Map,
    Loopback,
    Proc,
    Tmpfs,
    Bind,
    Devpts,
    Pivot,
    Filter,
    Receive,
    Answer,
    GiveFd,
    SyncWakeUp,
    Memory,
    Fd,
    Mark,
    Seal,
    Ranges,
    Limits,
    FuseDevice,
    FuseMount,
    FuseInit,
    Overlay,
    Whiteout,
}

impl Step {
    /// For "… fails" and "no answer from …".
    pub(crate) fn words(self) -> &'static str {
        match self {
            Step::Prepare => "getting ready",
            Step::Namespaces => "making new namespaces",
            Step::Map => "mapping the caller's id",
            Step::Loopback => "using loopback in a network namespace",
            Step::Proc => "mounting /proc in a pid namespace",
            Step::Tmpfs => "mounting a tmpfs",
            Step::Bind => "binding a file",
            Step::Devpts => "mounting a devpts",
            Step::Pivot => "changing the root (pivot_root)",
            Step::Filter => "installing a seccomp filter with a listener",
            Step::Receive => "receiving a trapped call",
            Step::Answer => "answering a trapped call",
            Step::GiveFd => "answering a trapped call with an fd",
            Step::SyncWakeUp => "setting SYNC_WAKE_UP on a listener",
            Step::Memory => "reading memory inside (process_vm_readv)",
            Step::Fd => "fetching an fd from inside (pidfd_getfd)",
            Step::Mark => "keeping a mark in a Unix socket (SO_MAX_PACING_RATE)",
            Step::Seal => "sealing a memory file",
            Step::Ranges => "mapping a range of ids",
            Step::Limits => "reading the limits",
            Step::FuseDevice => "opening /dev/fuse",
            Step::FuseMount => "mounting FUSE in a user namespace",
            Step::FuseInit => "hearing the kernel on a FUSE connection",
            Step::Overlay => "mounting an overlay in a user namespace",
            Step::Whiteout => "changing files in an overlay",
        }
    }
}

/// Why a check failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    /// Where.
    pub(crate) step: Step,
    /// What the kernel said; 0: it wasn't the kernel.
    pub(crate) errno: i32,
    /// In words.
    pub(crate) said: String,
}

impl Trouble {
    /// What the kernel answered, without "(os error N)".
    pub(crate) fn new(step: Step, error: &io::Error) -> Trouble {
        let text = error.to_string();
        let said = text.split(" (os error").next().unwrap_or_default().to_string();
        Trouble { step, errno: error.raw_os_error().unwrap_or(0), said }
    }
}

/// How a check came out.
pub(crate) type Outcome = Result<(), Trouble>;

/// One line of a check's report.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    At(Step),
    Ended(Outcome),
}

/// The check's end of its pipe. Every process of the check holds it.
pub(crate) struct Report(RefCell<(File, Step)>);

impl Report {
    pub(crate) fn new(pipe: File) -> Report {
        Report(RefCell::new((pipe, Step::Prepare)))
    }

    fn line(&self, line: &Line) {
        if let Ok(mut text) = serde_json::to_string(line) {
            text.push('\n');
            // One write: lines of several processes don't mix.
            let _ = self.0.borrow_mut().0.write_all(text.as_bytes());
        }
    }

    /// From here on it is about `step`.
    pub(crate) fn at(&self, step: Step) {
        self.0.borrow_mut().1 = step;
        self.line(&Line::At(step));
    }

    /// `result` as the outcome of `step`.
    pub(crate) fn try_to<T>(&self, step: Step, result: impl FnOnce() -> io::Result<T>) -> Result<T, Trouble> {
        self.at(step);
        result().map_err(|e| Trouble::new(step, &e))
    }

    /// The current step gave something else than it should.
    pub(crate) fn wrong(&self, said: impl Into<String>) -> Trouble {
        Trouble { step: self.0.borrow().1, errno: 0, said: said.into() }
    }

    /// The last word. A second one, by another process of the check, is not heard.
    pub(crate) fn end(&self, outcome: &Outcome) {
        self.line(&Line::Ended(outcome.clone()));
    }
}

/// Reads a whole report. Without a last word, `ending` says what became of the process.
pub(crate) fn read(report: &[u8], ending: Ending) -> Outcome {
    let mut step = Step::Prepare;
    for line in String::from_utf8_lossy(report).lines() {
        match serde_json::from_str(line) {
            Ok(Line::At(next)) => step = next,
            Ok(Line::Ended(outcome)) => return outcome,
            Err(_) => {}
        }
    }
    let (errno, said) = match ending {
        Ending::Late => (0, format!("it hangs, for {} seconds", super::DEADLINE.as_secs())),
        // What a seccomp filter does that is not content with an errno.
        Ending::By(State::Killed(numbers::SIGSYS)) => {
            (numbers::EPERM, "a seccomp filter kills who tries it".to_string())
        }
        Ending::By(state) => (0, format!("the process that tried ended without a word ({state:?})")),
    };
    Err(Trouble { step, errno, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Ending = Ending::By(State::Exited(0));

    fn report(body: impl FnOnce(&Report)) -> Vec<u8> {
        let (mut reader, writer) = io::pipe().unwrap();
        let writer = Report::new(File::from(std::os::fd::OwnedFd::from(writer)));
        body(&writer);
        drop(writer);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_first_last_word_counts() {
        let bytes = report(|r| {
            r.at(Step::Proc);
            r.end(&Err(r.wrong("not pid 1")));
            r.end(&Ok(()));
        });
        let trouble = read(&bytes, WELL).unwrap_err();
        assert_eq!((trouble.step, trouble.said.as_str()), (Step::Proc, "not pid 1"));
    }

    #[test]
    fn a_report_that_breaks_off_names_the_step() {
        let bytes = report(|r| {
            r.at(Step::Filter);
            r.at(Step::Receive);
        });
        let late = read(&bytes, Ending::Late).unwrap_err();
        assert_eq!((late.step, late.errno), (Step::Receive, 0));
        assert!(late.said.contains("hangs"));
        let killed = read(&bytes, Ending::By(State::Killed(numbers::SIGSYS))).unwrap_err();
        assert_eq!((killed.step, killed.errno), (Step::Receive, numbers::EPERM), "as a refusal");
    }

    #[test]
    fn an_errno_is_kept_and_said_plainly() {
        let bytes = report(|r| {
            let done = r.try_to(Step::Map, || Err::<(), _>(io::Error::from_raw_os_error(1)));
            r.end(&done);
        });
        let trouble = read(&bytes, WELL).unwrap_err();
        assert_eq!((trouble.step, trouble.errno, trouble.said.as_str()), (Step::Map, 1, "Operation not permitted"));
    }
}
