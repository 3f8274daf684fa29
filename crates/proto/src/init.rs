//! What the core, and the proc server after it, ask of an environment's pid 1: its only hand inside.

use std::fmt;

use hurdle_wire::Fd;
use serde::{Deserialize, Serialize};

/// A program to run inside.
#[derive(Clone, Serialize, Deserialize)]
pub struct Program {
    /// Its arguments; the first is looked up in `PATH` inside. Bytes, as execve(2) takes them.
    pub argv: Vec<Vec<u8>>,
    /// Its environment, `KEY=value` as pairs.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its working directory; `/` if it can't be entered.
    pub cwd: Vec<u8>,
    /// Standard input, output and error.
    pub stdio: [Fd; 3],
    /// Further fds, handed down under these numbers (3 and up).
    pub fds: Vec<(i32, Fd)>,
    /// A pipe that gets each change of its state: four bytes as wait4(2) stores them, native order. Its end without a last
    /// status means that the environment has ended.
    pub status: Fd,
    /// Its place among sessions and groups.
    pub group: Group,
}

/// As a line of trace: without its variables, which are long, and may be secret.
impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        write!(f, "{:?} in {:?}, {:?}", self.argv.iter().map(text).collect::<Vec<_>>(), text(&self.cwd), self.group)
    }
}

/// See `hurdle_sys::process::Group`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Group {
    /// That of `hurdle run`.
    Inherit,
    /// Its own, in the foreground of the terminal on its standard input.
    Foreground,
    /// A session of its own, without a terminal.
    Session,
    /// A session of its own, on the terminal on its standard input.
    Terminal,
}

hurdle_wire::interface! {
    /// Served by init, the pid 1 of an environment.
    pub mod init = 4 {
        /// Runs a program, and returns its pid inside once its exec succeeded. Refused with the errno of that exec. Asked again with the
        /// same status pipe, it is the same program: who does not know if he was heard may ask again.
        1 fn spawn(program: Program) -> i32;
        /// kill(2), with pids as the environment sees them; a negative one is a process group, 0 the first program.
        2 fn signal(pid: i32, signal: i32) -> ();
        /// Puts the first program's process group in the foreground of init's terminal and lets it go on (SIGCONT).
        3 idempotent fn foreground() -> ();
        /// sethostname(2).
        4 idempotent fn set_host_name(name: String) -> ();
        /// gethostname(2).
        5 idempotent fn host_name() -> String;
        /// Serves this interface on one more channel.
        6 fn connect(channel: Fd) -> ();
    }
}
