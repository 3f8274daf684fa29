//! One user's part of the machine: his directories, his `hurdle`, and what is left of it all.

use std::fs::File;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::load::{ECHO, LOAD};
use crate::process;
use crate::shell::{Result, output};
use crate::stage::User;

/// The environment variable that marks all that a soak starts.
const MARK: &str = "HURDLE_SOAK";
/// Directories that must be empty of files in the end.
const TRANSIENT: [&str; 3] = ["runtime", "scratch", "state"];

/// One user's place.
pub(crate) struct Fold {
    pub(crate) user: User,
    /// Where the programs are.
    stage: PathBuf,
    /// His directory.
    home: PathBuf,
    /// What all his names and marks begin with.
    prefix: String,
}

impl Fold {
    pub(crate) fn new(stage: &Path, user: User, seed: u64) -> Result<Self> {
        let home = stage.join(&user.name);
        let prefix = format!("soak-{seed:x}-{}", user.id);
        let fold = Self { user, stage: stage.to_owned(), home, prefix };
        fold.own_directory("")?;
        for name in TRANSIENT.iter().chain(&["loads", "logs"]) {
            fold.own_directory(name)?;
        }
        std::fs::write(fold.home.join("load.sh"), LOAD)?;
        Ok(fold)
    }

    fn own_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.home.join(name);
        std::fs::create_dir(&path)?;
        chown(&path, Some(self.user.id), None)?;
        Ok(path)
    }

    /// A name, unique on this machine.
    pub(crate) fn name(&self, base: &str) -> String {
        format!("{}-{base}", self.prefix)
    }

    /// `hurdle`; all that it starts carries `mark`.
    pub(crate) fn hurdle(&self, mark: &str) -> Command {
        let mut command = self.user.command(&self.stage.join("hurdle"));
        let places = ["XDG_RUNTIME_DIR", "TMPDIR", "XDG_STATE_HOME"].into_iter().zip(TRANSIENT);
        command.envs(places.map(|(name, directory)| (name, self.home.join(directory))));
        command.env(MARK, self.name(mark)).current_dir(&self.home).stdin(Stdio::null());
        command
    }

    /// A program of the stage.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.stage.join(name)
    }

    /// Runs `hurdle ARGUMENTS` to its end; what it prints.
    pub(crate) fn call(&self, arguments: &[&str]) -> Result<String> {
        output(self.hurdle("tool").args(arguments))
    }

    /// Runs `hurdle --json ARGUMENTS`.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = output(self.hurdle("tool").arg("--json").args(arguments))?;
        serde_json::from_str(&text).map_err(|error| format!("hurdle {arguments:?}: {error}: {text}").into())
    }

    /// A file for what the process `name` writes.
    pub(crate) fn log(&self, name: &str) -> Result<File> {
        Ok(File::create(self.home.join("logs").join(name))?)
    }

    /// The last lines of that.
    pub(crate) fn said(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.home.join("logs").join(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// A directory for a load.
    pub(crate) fn load(&self, name: &str) -> Result<PathBuf> {
        let path = self.own_directory(&format!("loads/{name}"))?;
        std::fs::write(path.join("echo.py"), ECHO)?;
        Ok(path)
    }

    /// The arguments that run a load.
    pub(crate) fn loaded(&self, dir: &Path, clients: &[&str]) -> Vec<String> {
        let script = self.home.join("load.sh");
        let words = ["/bin/sh".into(), script.display().to_string(), dir.display().to_string()];
        words.into_iter().chain(clients.iter().map(ToString::to_string)).collect()
    }

    /// The processes that carry this mark; all of this user's, if it is empty.
    pub(crate) fn marked(&self, mark: &str) -> Vec<i32> {
        let end = if mark.is_empty() { "" } else { "\0" };
        let wanted = format!("{MARK}={}{end}", self.name(mark));
        process::all().into_iter().filter(|pid| process::variables(*pid).contains(&wanted)).collect()
    }

    /// What there is of `mark` that should not be.
    fn left(&self, mark: &str) -> Vec<String> {
        self.marked(mark).iter().map(|pid| format!("process {pid}: {}", process::command_line(*pid))).collect()
    }

    /// Waits until nothing carries `mark`.
    pub(crate) fn gone(&self, mark: &str) -> Result {
        let mut left = Vec::new();
        let gone = within(Duration::from_secs(20), || {
            left = self.left(mark);
            left.is_empty()
        });
        if gone { Ok(()) } else { Err(format!("left behind of {mark}: {left:#?}").into()) }
    }

    /// Waits until there is nothing at all any more.
    pub(crate) fn nothing_left(&self) -> Result {
        let mut left = Vec::new();
        let gone = within(Duration::from_secs(20), || {
            left = self.left("");
            left.extend((self.sockets() > 0).then(|| "abstract sockets".to_owned()));
            left.extend((self.mounts() > 0).then(|| "mounts of the host".to_owned()));
            left.extend(TRANSIENT.iter().flat_map(|name| files(&self.home.join(name))));
            left.is_empty()
        });
        if gone { Ok(()) } else { Err(format!("left behind: {left:#?}").into()) }
    }

    /// How many abstract sockets on the host bear his names.
    pub(crate) fn sockets(&self) -> usize {
        let text = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
        text.lines().filter(|line| line.contains(&self.prefix)).count()
    }

    /// How many mounts of the host are his.
    pub(crate) fn mounts(&self) -> usize {
        let home = self.home.display().to_string();
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        text.lines().filter(|line| line.contains(&home)).count()
    }

    /// How many transient files he has.
    pub(crate) fn transient(&self) -> usize {
        TRANSIENT.iter().map(|name| files(&self.home.join(name)).len()).sum()
    }

    /// Ends whatever is left, after a failure.
    pub(crate) fn sweep(&self) {
        for pid in self.marked("") {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Everything below `directory` that is not a directory.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                _ => found.push(format!("file {}", entry.path().display())),
            }
        }
    }
    found
}

/// Asks `condition` until it holds; false if it does not within `limit`.
pub(crate) fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
