//! The `hurdle` command under test, as a user would call it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::finish::{Finished, finish};
use crate::leaks;
use crate::scene::Running;

/// How long a `hurdle` command of a test may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The command, with directories of its own for what runs, what is temporary and what is kept, and a mark in the environment
/// variables of all that it starts. So what one test leaves behind is told from what others do meanwhile.
#[derive(Debug)]
pub struct Hurdle {
    binary: PathBuf,
    mark: String,
    runtime: TempDir,
    scratch: TempDir,
    state: TempDir,
    logs: TempDir,
}

impl Default for Hurdle {
    fn default() -> Self {
        Self::new()
    }
}

impl Hurdle {
    /// The command, for one test.
    ///
    /// # Panics
    /// Panics if there is none; it says how to build it.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = |prefix| tempfile::Builder::new().prefix(prefix).tempdir().expect("a temporary directory");
        let [runtime, scratch, state] = ["hurdle-runtime-", "hurdle-scratch-", "hurdle-state-"].map(dir);
        Self { binary: binary(), mark, runtime, scratch, state, logs: dir("hurdle-logs-") }
    }

    /// A name for an environment: `base` and the mark, since names are unique among all environments of a user.
    pub fn name(&self, base: &str) -> String {
        format!("{base}-{}", self.mark)
    }

    /// A directory for what the test itself writes.
    pub fn logs(&self) -> &Path {
        self.logs.path()
    }

    /// Starts `command` in the background; what it writes goes to the file `log`, and it ends with the value returned.
    #[track_caller]
    pub fn start(&self, command: &mut Command, log: &str) -> Running {
        Running::start(command, &self.logs.path().join(log))
    }

    /// The executable.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The directory that `XDG_RUNTIME_DIR` names.
    pub fn runtime_dir(&self) -> &Path {
        self.runtime.path()
    }

    /// The directory that `XDG_STATE_HOME` names: layers are kept there.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The mark that all processes of this test carry in their environment variables.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// `hurdle`, for the caller to add arguments to.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.env(leaks::MARK, &self.mark).env("XDG_RUNTIME_DIR", self.runtime.path());
        command.env("XDG_STATE_HOME", self.state.path());
        command.env("TMPDIR", self.scratch.path()).env("PATH", crate::skip::PATH).env("LC_ALL", "C.UTF-8");
        command
    }

    /// `hurdle run OPTIONS -- PROGRAM`.
    pub fn run(&self, options: &[&str], program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.command();
        command.arg("run").args(options).arg("--").arg(program);
        command
    }

    /// Runs `hurdle ARGUMENTS` to its end.
    #[track_caller]
    pub fn call(&self, arguments: &[&str]) -> Finished {
        finish(self.command().args(arguments), LIMIT)
    }

    /// Starts `hurdle run --name NAME OPTIONS --detach -- PROGRAM`, and returns once it runs.
    #[track_caller]
    pub fn detach(&self, name: &str, options: &[&str], program: &[&str]) {
        let done = self.call(&[&["run", "--detach", "--name", name], options, &["--"], program].concat()).success();
        assert_eq!(done.stdout, format!("{name}\n"), "{done}");
    }

    /// What `hurdle --json ls NAME` says of one environment.
    #[track_caller]
    pub fn info(&self, name: &str) -> Value {
        self.json(&["ls", name])[0].take()
    }

    /// The right for an interface, as `hurdle ls` tells.
    ///
    /// # Panics
    /// Panics if the environment has none for it.
    #[track_caller]
    pub fn right(&self, name: &str, interface: &str) -> Value {
        let info = self.info(name);
        let rights = info["rights"].as_array().map_or(&[][..], Vec::as_slice);
        let found = rights.iter().find(|right| right["interface"] == interface);
        found.unwrap_or_else(|| panic!("no right for {interface}: {info}")).clone()
    }

    /// Runs `hurdle --json ARGUMENTS`, and reads the answer.
    ///
    /// # Panics
    /// Panics if it fails or answers no JSON.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let done = finish(self.command().arg("--json").args(arguments), LIMIT).success();
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {done}"))
    }

    /// Waits until nothing is left of what this command started.
    ///
    /// # Panics
    /// Panics with what is left after the deadline.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        leaks::assert_none(&self.mark, &[self.runtime.path(), self.scratch.path(), self.state.path()]);
    }
}

impl Drop for Hurdle {
    /// A test that failed leaves nothing running either.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pid in leaks::marked(&self.mark) {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        }
    }
}

/// The executable to test: `HURDLE_BIN`, else the release build beside this test's own build.
fn binary() -> PathBuf {
    match std::env::var_os("HURDLE_BIN") {
        Some(path) => path.into(),
        None => built("release/hurdle", "cargo build --release -p hurdle"),
    }
}

/// An example server: in the directory `HURDLE_EXAMPLES`, else beside this test's own build.
///
/// # Panics
/// Panics if there is none; it says how to build it.
pub fn example(name: &str) -> PathBuf {
    match std::env::var_os("HURDLE_EXAMPLES") {
        Some(directory) => Path::new(&directory).join(name),
        None => built(&format!("debug/examples/{name}"), "cargo build -p hurdle-server --examples"),
    }
}

/// `path` in cargo's directory for this target.
fn built(path: &str, command: &str) -> PathBuf {
    // A test's executable is TARGET/debug/deps/NAME.
    let this = std::env::current_exe().expect("a process knows its executable");
    let path = this.ancestors().nth(3).expect("a test lies three directories deep").join(path);
    assert!(path.exists(), "{} is not there: {command}", path.display());
    path
}
