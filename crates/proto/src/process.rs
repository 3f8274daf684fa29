//! The processes of an environment.

use serde::{Deserialize, Serialize};

use crate::init::Program;

/// One process, as `hurdle ps` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its pid inside.
    pub pid: i32,
    /// Its pid outside, as the core sees it.
    pub outer_pid: i32,
    /// Its parent's pid inside; 0 for pid 1.
    pub parent: i32,
    /// Effective user id inside.
    pub uid: u32,
    /// As proc(5) has it: R, S, D, Z, T…
    pub state: char,
    /// Threads.
    pub threads: u32,
    /// Resident memory, in KiB.
    pub rss_kib: u64,
    /// Processor time, user and system, in milliseconds.
    pub cpu_ms: u64,
    /// Its arguments; its name in brackets if it has none.
    pub command: String,
}

hurdle_wire::interface! {
    /// Served by a proc server.
    pub mod proc = 7 {
        /// All of them, in the order of their pids inside.
        1 idempotent fn list() -> Vec<ProcessInfo>;
        /// kill(2) with pids as the environment sees them; a negative one is a process group.
        2 fn signal(pid: i32, signal: i32) -> ();
        /// Runs a program inside; returns its pid there. Its `status` pipe is how to wait for it.
        3 fn spawn(program: Program) -> i32;
        /// The host name inside.
        4 idempotent fn host_name() -> String;
        /// Changes it.
        5 idempotent fn set_host_name(name: String) -> ();
    }
}
