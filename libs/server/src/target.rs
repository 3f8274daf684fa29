//! The processes of an environment, as a server outside reads them from /proc.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use hurdle_sys::process;

/// An environment's pid 1, by its pidfd: while that says it lives, its number is its own.
#[derive(Debug)]
pub struct Target {
    pidfd: OwnedFd,
    pid: i32,
}

/// One process of an environment. What is read of it later may be gone: then it is empty.
#[derive(Debug)]
pub struct Process {
    /// Its pid inside.
    pub pid: i32,
    /// Its pid outside.
    pub outer: i32,
    /// Its parent's pid inside; 0 if that is outside.
    pub parent: i32,
    /// Its effective user id inside.
    pub uid: u32,
    status: String,
}

/// What an id without a mapping shows as (user_namespaces(7)).
pub const OVERFLOW_ID: u32 = 65534;

impl Target {
    /// Of the process behind `pidfd`. ESRCH: it is gone.
    pub fn new(pidfd: OwnedFd) -> io::Result<Target> {
        let pid = process::pid_of(&pidfd)?;
        Ok(Target { pidfd, pid })
    }

    /// A file below its /proc directory. ESRCH: it is gone.
    pub fn read(&self, file: &str) -> io::Result<String> {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.pid))?;
        // Alive after the read: so it was its own number, nobody else's.
        process::pid_of(&self.pidfd)?;
        Ok(text)
    }

    /// It, for as long as this lives.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its id maps: (first inside, first outside, count). `file` is `uid_map` or `gid_map` (user_namespaces(7)).
    /// InvalidData: a line is none of a map.
    pub fn map(&self, file: &str) -> io::Result<Vec<(u32, u32, u32)>> {
        let line = |line: &str| {
            let mut numbers = line.split_whitespace().map_while(|word| word.parse().ok());
            Some((numbers.next()?, numbers.next()?, numbers.next()?))
        };
        let map: Option<_> = self.read(file)?.lines().map(line).collect();
        map.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{file} can't be read")))
    }

    /// It and all that descend from it, in the order of their pids inside.
    pub fn processes(&self) -> io::Result<Vec<Process>> {
        let users = self.map("uid_map")?;
        let mut children: HashMap<i32, Vec<(i32, String)>> = HashMap::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(outer) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
            let parent = if outer == self.pid { 0 } else { number(&status, "PPid", 0) };
            children.entry(parent).or_default().push((outer, status));
        }
        // How many pid namespaces up it is named: the place of an inner pid in the NSpid lines.
        let of_init = children.get(&0).and_then(|list| list.iter().find(|(outer, _)| *outer == self.pid));
        let depth = of_init.map_or(1, |(_, status)| field(status, "NSpid").split_whitespace().count());
        let mut found = Vec::new();
        let mut queue = vec![(0, self.pid)];
        while let Some((parent, outer)) = queue.pop() {
            let siblings = children.get(&parent).map(Vec::as_slice).unwrap_or_default();
            let Some((_, status)) = siblings.iter().find(|(pid, _)| *pid == outer) else { continue };
            let inner = |status: &str| number(status, "NSpid", depth - 1);
            let parent_status = found.iter().find(|p: &&Process| p.outer == parent);
            found.push(Process {
                pid: inner(status),
                outer,
                parent: parent_status.map_or(0, |p| p.pid),
                uid: inside(&users, u32::try_from(number(status, "Uid", 1)).unwrap_or(OVERFLOW_ID)),
                status: status.clone(),
            });
            queue.extend(children.get(&outer).into_iter().flatten().map(|(child, _)| (outer, *child)));
        }
        found.sort_by_key(|process| process.pid);
        Ok(found)
    }
}

/// The id inside that `outside` shows as.
pub fn inside(map: &[(u32, u32, u32)], outside: u32) -> u32 {
    let hit = map.iter().find(|(_, first, count)| outside >= *first && outside - first < *count);
    hit.map_or(OVERFLOW_ID, |(inside, first, _)| inside + (outside - first))
}

impl Process {
    /// A line of its /proc status (proc_pid_status(5)), without the name.
    pub fn field(&self, key: &str) -> &str {
        field(&self.status, key)
    }

    /// Processor time so far, user and system, in milliseconds.
    pub fn cpu_ms(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.outer)).unwrap_or_default();
        // utime and stime are fields 14 and 15, in ticks of 10 ms; the name before may hold anything but its last `)`.
        let ticks = stat.rsplit_once(')').map(|(_, rest)| {
            rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>()
        });
        ticks.unwrap_or(0) * 10
    }

    /// Its arguments; its name in brackets if it has none.
    pub fn command(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.outer)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ");
        if text.is_empty() { format!("[{}]", self.field("Name")) } else { text }
    }
}

fn field<'a>(status: &'a str, key: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map_or("", str::trim)
}

/// Word `n` of a line as a number; 0 if there is none.
fn number(status: &str, key: &str, n: usize) -> i32 {
    field(status, key).split_whitespace().nth(n).and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_or_nobody() {
        let map = [(0, 1000, 1), (1, 100_000, 65536)];
        let of = |outside| inside(&map, outside);
        assert_eq!([of(1000), of(100_000), of(165_535), of(165_536), of(0)], [0, 1, 65536, 65534, 65534]);
    }

    #[test]
    fn a_process_finds_itself_and_its_child() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let me = std::process::id() as i32;
        let target = Target::new(process::pidfd(me).unwrap()).unwrap();
        // The kernel sets its name a moment before its arguments.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let all = target.processes().unwrap();
            let found = all.iter().find(|p| p.outer == child.id() as i32).unwrap();
            assert_eq!(found.parent, me);
            if found.command() == "sleep 60" {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{}", found.command());
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
