//! The message-passing core of one environment: it owns every receive right and every attachment, and lends them out.
//!
//! One core per environment, in the `hurdle run` process; no daemon. It holds no policy: what a server kind means comes in
//! as a [`Policy`] and a launch plan, and no file system or network code is here.
//!
//! - `launch`: clones init and hears how far it is; `inside`: init itself, pid 1 of the environment; `files`: what both
//!   do for its mounts;
//! - `right`: one receive right, its store, its borrower; `refuse`: who answers for a right that has failed;
//! - `env`: the loop that owns all of it, on the main thread alone, so nothing is locked; it starts every process, since
//!   what it starts dies with this thread;
//! - `control`: the `core` interface on an abstract socket, a thread per caller, which only asks the loop; `door`: the way to a
//!   sub-environment, for programs inside, `porter` what makes it short; `nest`: how the core around an environment comes to know it.

mod control;
mod door;
mod env;
mod files;
mod inside;
mod launch;
mod nest;
mod os;
mod porter;
mod refuse;
mod right;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use hurdle_proto::plan::Plan;
use hurdle_proto::spec::Spec;
use hurdle_sys::process::Status;

pub use control::{connect, knock, legal as is_name, names};
pub use env::FORWARDED;
pub use launch::Start;
pub use os::{complain, exec_failure};
pub use porter::serve_porter;

/// How a server's process is started.
#[derive(Debug, Clone)]
pub struct Command {
    /// The file that is executed; looked up in `PATH` if it has no `/`.
    pub file: OsString,
    /// Its arguments, the name that it shows first.
    pub argv: Vec<OsString>,
}

/// What the core does not know by itself: what the server kinds mean.
pub trait Policy: Send + Sync {
    /// The command that serves `interface` as `spec` says; `trapped`: programs' calls come to it. An error: nothing serves it,
    /// and why.
    fn server(&self, interface: &str, spec: &Spec, trapped: bool) -> Result<Command, String>;

    /// The program that serves the standard kinds as `hurdle server INTERFACE`.
    fn servers(&self) -> &Path {
        // This very file, also if another has taken its place since.
        Path::new("/proc/self/exe")
    }

    /// A layer in memory has been made ([`Place::Memory`](hurdle_proto::plan::Place)), and nothing uses it yet: the place to fill it,
    /// and to keep its directory beyond the environment's end. An error: the environment can't be.
    fn made(&self, _layer: &OwnedFd) -> Result<(), String> {
        Ok(())
    }

    /// Whether a right launched as `from` can become `to` while programs run; if not, why, and what to do.
    fn may_swap(&self, interface: &str, from: &Spec, to: &Spec, trapped: bool) -> Result<(), String>;
}

/// A whole environment, ready to launch.
pub struct Setup {
    /// Its name, unique among the user's; `None`: one is made up.
    pub name: Option<String>,
    /// What its servers need.
    pub plan: Plan,
    /// Its rights: (interface name, what the user chose). Trapped calls go to `net`.
    pub rights: Vec<(String, Spec)>,
    /// Its first program.
    pub start: Start,
    /// A channel for the `core` interface whose other end holds the environment: it ends with that.
    pub owner: Option<OwnedFd>,
    /// The meaning of the specs.
    pub policy: Box<dyn Policy>,
}

/// Why an environment could not be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// User namespaces are forbidden, or at their limit.
    #[error("no new namespaces: {0} (user namespaces may be forbidden here; `hurdle doctor` tells what to do)")]
    Namespaces(#[source] io::Error),
    /// A step inside failed.
    #[error("the environment can't be set up: {0}")]
    SetUp(String),
    /// Its pid 1 ended before its program did.
    #[error("pid 1 of the environment ended before the program did (was it killed?), and all in it with it")]
    Ended,
    /// The program can't be prepared.
    #[error("{0:?} can't be run: {1}")]
    Program(String, #[source] io::Error),
    /// The exec failed inside.
    #[error("{name}: {why}")]
    Exec {
        /// What was to be run.
        name: String,
        /// As shells have it: 127 not found, 126 found but not to be run.
        code: u8,
        /// Why.
        why: String,
    },
    /// The name is in use.
    #[error("an environment named {0:?} is running already; choose another --name, or end it with `hurdle kill {0}`")]
    NameTaken(String),
    /// The name can't be one.
    #[error("{0:?} can't be a name: it must have 1 to 64 letters, digits, `-`, `_` or `.`")]
    BadName(String),
    /// The name is that of the root of all environments.
    #[error("\"host\" can't be a name: it is what the system outside of all environments is called")]
    HostName,
    /// A system call failed.
    #[error("{0}: {1}")]
    System(&'static str, #[source] io::Error),
}

/// An environment whose first program runs.
pub struct Running(env::Env);

impl Running {
    /// Launches it. The caller has one thread, and no SIGCHLD handler.
    pub fn launch(setup: Setup) -> Result<Running, Error> {
        env::Env::launch(setup).map(Running)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Serves it until its first program has ended, then takes it down: every process, mount and socket of it is gone when
    /// this returns. The first program's last status.
    pub fn serve(self) -> Result<Status, Error> {
        self.0.serve()
    }
}
