//! What an environment left behind: processes, mounts, files, sockets.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::geteuid;

use crate::Hurdle;
use crate::poll::{until, within};

/// The environment variable whose value marks the processes of one test.
pub const MARK: &str = "HURDLE_TEST_MARK";

/// How long an environment may take to be gone.
const LIMIT: Duration = Duration::from_secs(10);

/// Waits until no process carries `mark`, and `directories` hold no file.
///
/// # Panics
/// Panics with what is left after the deadline.
#[track_caller]
pub fn assert_none(mark: &str, directories: &[&Path]) {
    let mut left = Vec::new();
    let gone = within(LIMIT, || {
        left = processes_marked(mark);
        left.extend(directories.iter().flat_map(|directory| files(directory)));
        left.is_empty().then_some(())
    });
    assert!(gone.is_some(), "left behind: {left:#?}");
}

/// The processes whose environment variables carry `mark`, as a person would name them.
pub fn processes_marked(mark: &str) -> Vec<String> {
    marked(mark).into_iter().map(describe).collect()
}

/// The processes whose environment variables carry `mark`.
pub fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}\0").into_bytes();
    let marked = |pid: &u32| {
        let variables = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        variables.windows(wanted.len()).any(|window| window == wanted)
    };
    pids().into_iter().filter(marked).collect()
}

/// All descendants of process `root`, those too that it inherited as a child subreaper. Zombies count.
pub fn descendants(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = pids().into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.remove(0);
    found
}

/// A process in one line.
pub fn describe(pid: u32) -> String {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    format!("process {pid} (child of {}): {command}", parent(pid).unwrap_or(0))
}

fn pids() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid, 4)
}

/// Whether a process is in the foreground of its terminal (`pgrp` and `tpgid` of proc_pid_stat(5)).
pub fn in_foreground(pid: u32) -> bool {
    let group: Option<i64> = stat(pid, 5);
    group.is_some() && group == stat(pid, 8)
}

/// A field of proc_pid_stat(5), counted as there, from the third (the state) on; the fourth is the parent. `None`: there is no such
/// process any more.
pub fn stat<T: std::str::FromStr>(pid: u32, field: usize) -> Option<T> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(field - 3)?.parse().ok()
}

/// Everything below `directory` that is not a directory, and what it is.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                kind => found.push(format!("file {} ({kind:?})", entry.path().display())),
            }
        }
    }
    found
}

/// What the host shows of environments beside processes: mounts, abstract sockets, and names in the directories that
/// everybody may write to.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Looks at the host now.
    pub fn now() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        let sockets = std::fs::read_to_string("/proc/net/unix").expect("/proc is mounted");
        let names = sockets.lines().filter_map(|line| line.split_once('@')).map(|(_, name)| format!("socket @{name}"));
        let shared = ["/tmp", "/var/tmp", "/run", "/dev/shm", "/run/lock"];
        let entries = shared.into_iter().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten().flatten();
        // What root or a server of the host puts there meanwhile, no environment of an ordinary user has made.
        let own =
            |entry: &std::fs::DirEntry| geteuid().is_root() || entry.metadata().is_ok_and(|meta| meta.uid() >= 1000);
        let entries = entries.filter(own).map(|entry| format!("file {}", entry.path().display()));
        Self(mounts.lines().map(|line| format!("mount {line}")).chain(names).chain(entries).collect())
    }

    /// Waits until the host shows nothing that it did not show before.
    ///
    /// # Panics
    /// Panics with what is new after the deadline.
    #[track_caller]
    pub fn assert_no_more(&self) {
        let mut new = Vec::new();
        let gone = within(LIMIT, || {
            new = Self::now().0.difference(&self.0).cloned().collect();
            new.is_empty().then_some(())
        });
        assert!(gone.is_some(), "left behind: {new:#?}");
    }
}

/// The host before a test; what is new after it was left behind. One at a time, since it looks at the whole host.
#[derive(Debug)]
pub struct Watch {
    /// The command under test.
    pub hurdle: Hurdle,
    traces: Traces,
    _turn: MutexGuard<'static, ()>,
}

impl Watch {
    /// Begins once no other one watches.
    pub fn begin() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // Orphans become children of this process, so none is missed.
        nix::sys::prctl::set_child_subreaper(true).expect("prctl");
        let hurdle = Hurdle::new();
        Self { traces: Traces::now(), hurdle, _turn: turn }
    }

    /// # Panics
    /// Panics if anything is left.
    #[track_caller]
    pub fn end(self) {
        self.hurdle.assert_nothing_left();
        until("all descendants are gone", || {
            reap();
            let left = descendants(std::process::id());
            left.iter().for_each(|pid| eprintln!("{}", describe(*pid)));
            left.is_empty().then_some(())
        });
        self.traces.assert_no_more();
    }
}

/// Reaps orphans that ended. Tests hold no child of their own when they call it.
pub fn reap() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            return;
        }
    }
}

/// The process id that `hurdle --json` tells.
///
/// # Panics
/// Panics if `value` is none.
pub fn pid(value: &serde_json::Value) -> nix::unistd::Pid {
    let number = value.as_i64().and_then(|pid| i32::try_from(pid).ok());
    nix::unistd::Pid::from_raw(number.unwrap_or_else(|| panic!("{value} is no process id")))
}
