//! Running a program to its end within a deadline.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::poll::within;

/// How a program ended, and what it wrote.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
    shown: String,
}

impl Finished {
    /// The status as a shell's `$?` shows it: 128 + N after signal N.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Itself, if the program succeeded.
    ///
    /// # Panics
    /// Panics with all that the program wrote, if it failed.
    #[track_caller]
    pub fn success(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Itself, if the program exited with `code`.
    ///
    /// # Panics
    /// Panics with all that the program wrote, if it ended otherwise.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(self.code() == code, "expected exit code {code}: {self}");
        self
    }

    /// Itself, if standard error contains `text`, whatever the case of its letters.
    ///
    /// # Panics
    /// Panics with all that the program wrote, if it does not.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stderr.to_lowercase().contains(&text.to_lowercase()), "expected {text:?} on stderr: {self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Finished { status, stdout, stderr, shown } = self;
        write!(f, "{shown}: {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs `command` to its end, without input if none was set. Its output goes to files, so that a process that
/// outlives it and holds them open keeps nobody waiting.
///
/// # Panics
/// Panics if it cannot be started, or does not end within `limit`; its process group is killed then.
#[track_caller]
pub fn finish(command: &mut Command, limit: Duration) -> Finished {
    finish_with(command.stdin(Stdio::null()), limit)
}

/// As [`finish`], with the standard input that `command` has.
#[track_caller]
pub fn finish_with(command: &mut Command, limit: Duration) -> Finished {
    let mut stdout = tempfile::tempfile().expect("a temporary file");
    let mut stderr = tempfile::tempfile().expect("a temporary file");
    let copy = |file: &File| Stdio::from(file.try_clone().expect("a duplicate"));
    command.stdout(copy(&stdout)).stderr(copy(&stderr)).process_group(0);
    let shown = format!("{command:?}");
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
    let status = wait(&mut child, limit);
    if status.is_none() {
        stop_group(&mut child, Signal::SIGKILL);
    }
    let (stdout, stderr) = (contents(&mut stdout), contents(&mut stderr));
    match status {
        Some(status) => Finished { status, stdout, stderr, shown },
        None => panic!("{shown}: not done after {limit:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"),
    }
}

/// Waits for the end of `child` for up to `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    within(limit, || child.try_wait().expect("a child can be waited for"))
}

/// Sends `signal` to the process group that `child` leads, and reaps `child`.
pub fn stop_group(child: &mut Child, signal: Signal) {
    let group = Pid::from_raw(child.id().cast_signed());
    if child.try_wait().ok().flatten().is_some() {
        // The leader is gone; what is left of its group is not needed any more.
        let _ = killpg(group, Signal::SIGKILL);
        return;
    }
    let _ = killpg(group, signal);
    if wait(child, Duration::from_secs(5)).is_none() {
        let _ = killpg(group, Signal::SIGKILL);
        let _ = child.wait();
    }
}

fn contents(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("a temporary file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}
