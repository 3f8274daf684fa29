//! What the core of an environment serves to its user's tools.

use hurdle_wire::Fd;
use serde::{Deserialize, Serialize};

use crate::init::Program;
use crate::spec::Spec;

/// An environment, as `hurdle ls` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnvInfo {
    /// Its name.
    pub name: String,
    /// Its parent's name; `host` for the root.
    pub parent: String,
    /// The core's pid.
    pub core: i32,
    /// The pid of its pid 1, as the core sees it.
    pub init: i32,
    /// How long it has been up, in milliseconds.
    pub up_ms: u64,
    /// The program it runs.
    pub command: String,
    /// Its rights, by interface name.
    pub rights: Vec<RightInfo>,
}

/// One right of an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RightInfo {
    /// The interface's name.
    pub interface: String,
    /// What the user chose.
    pub spec: Spec,
    /// Who holds it.
    pub state: RightState,
    /// Servers that died while they held it.
    pub deaths: u32,
    /// Times it was swapped.
    pub swaps: u32,
    /// The last lines that a server of it wrote to its standard error.
    pub stderr: Vec<String>,
}

/// Who holds a right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RightState {
    /// Nobody: the first message or trap starts a server.
    Idle,
    /// A server is being started, or waits for its back-off.
    Starting,
    /// This process.
    Running {
        /// Its pid, as the core sees it.
        pid: i32,
        /// For so long, in milliseconds.
        up_ms: u64,
    },
    /// Nobody any more: its servers died too often.
    Failed {
        /// What the last one died of.
        reason: String,
    },
}

/// What became of a swap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Swapped {
    /// What was there.
    pub from: Spec,
    /// What is there now.
    pub to: Spec,
    /// How long traps and messages waited, in microseconds.
    pub pause_us: u64,
}

hurdle_wire::interface! {
    /// Served by each environment's core on its control socket.
    pub mod core = 1 {
        /// What it is, and who holds its rights.
        1 idempotent fn info() -> EnvInfo;
        /// A direct channel to the server of an interface; the server is started when the first message arrives.
        2 idempotent fn lookup(interface: String) -> Fd;
        /// Gives the right of `interface` to another server.
        3 fn swap(interface: String, spec: Spec) -> Swapped;
        /// Runs a program inside; returns its pid there.
        4 fn spawn(program: Program) -> i32;
        /// Waits for the end of the environment; its first program's status as wait4(2) stores it.
        5 idempotent fn wait() -> i32;
        /// Ends the environment: `signal` to its first program; 0: all of it, at once.
        6 fn kill(signal: i32) -> ();
        /// Has calls and traps reported: of the servers of these interfaces and of the core's own (`core`, `door`, `store`,
        /// `init`); empty: of all. Returns a channel on which the core calls `tracer`; it ends when that does.
        7 fn trace(interfaces: Vec<String>) -> Fd;
        /// Adds an interface, served by who holds the other end of `server`: a channel of the `server` interface on which only
        /// `connect` is called, once for each client. When it ends nobody serves the interface; then it may be added again.
        8 fn serve(interface: String, server: Fd) -> ();
        /// The names of the environments that were started inside.
        9 idempotent fn below() -> Vec<String>;
        /// A channel to the core of one of them.
        10 idempotent fn reach(name: String) -> Fd;
    }
}

/// Who reports to a tracer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Source {
    /// Whose server: an interface's name, or `core`.
    pub server: String,
    /// Its process, as the core sees it.
    pub pid: i32,
    /// Whether it is several servers, one on the other, of which each says for itself which one it is.
    pub stack: bool,
    /// What it reports: lines of `hurdle_wire::tap`. It ends when the server does.
    pub pipe: Fd,
}

hurdle_wire::interface! {
    /// Served by who traces an environment, called by its core.
    pub mod tracer = 10 {
        /// One more that reports.
        1 oneway fn source(source: Source);
    }
}

/// The abstract name of [`door`](mod@door), in the network namespace of an environment whose calls are trapped.
pub const DOOR: &str = "hurdle-door";

hurdle_wire::interface! {
    /// Served by the core of an environment to the programs in it: the way to a sub-environment that traps, too. A filter of
    /// trapped calls can't stand below another one, so what is started here stands in the caller's place without one. It has less
    /// than the caller, never more: namespaces deny, and traps only give.
    pub mod door = 9 {
        /// Runs a program with the caller's ids in the caller's namespaces, below no trap; returns its number, which is for
        /// `signal` alone. It ends with this channel. `group` is a session of its own, with or without a terminal.
        1 fn spawn(program: Program) -> i32;
        /// Sends it a signal.
        2 fn signal(number: i32, signal: i32) -> ();
        /// As `spawn`, of the very file that the caller runs: it may be a copy of a process that has executed it already. It stands where
        /// the caller stood when it connected.
        3 fn again(program: Program) -> i32;
    }
}

hurdle_wire::interface! {
    /// Served by a porter: a process of hurdle's that stands in an environment below no trap, and is called by its core. What it says
    /// itself are bytes, no frames.
    pub mod porter = 11 {
        /// Makes a copy of itself, which first sends a pidfd of itself on `channel`, and then serves this interface there.
        1 oneway fn copy(channel: Fd);
        /// Goes on as `program`, in the directory `cwd`, and sends a byte once it stands.
        2 oneway fn run(program: Program, cwd: Fd);
    }
}

/// The abstract name on which pid 1 of an environment listens for the cores in it begins so; the number of its pid namespace
/// follows. Who connects serves [`core`](mod@core) on the connection. So who may look at an environment can reach those below it; nobody
/// learns of one above.
pub const NEST: &str = "hurdle-nest/";
