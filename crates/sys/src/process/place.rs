//! Where another process stands, for a program that is started beside it: its namespaces (setns(2)), its ids, and the limits of its
//! rights. What is not taken over are its seccomp filters, which is the point: a trap can't be added below another one.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use crate::seccomp::Filter;

/// All namespaces that a process can be moved into, or its children, by their names in /proc/PID/ns.
const NAMESPACES: [(&str, libc::c_int); 7] = [
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

/// The place of one process, looked at while it lived.
#[derive(Debug)]
pub struct Place {
    pidfd: OwnedFd,
    /// Those of its namespaces that this process is not in.
    namespaces: libc::c_int,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// Capabilities that it can't have, by number.
    lost: Vec<u8>,
    no_new_privileges: bool,
    /// Keeps it from typing on the terminal that it may share with somebody outside.
    guard: Filter,
}

/// One line of /proc/PID/status, without its name.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map_or("", str::trim)
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/proc shows no {what} of the caller"))
}

/// The id inside that `outside` stands for, by a map as /proc/PID/uid_map has it.
fn inside(map: &str, outside: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut words = line.split_whitespace().map_while(|word| word.parse::<u32>().ok());
        let (inside, first, count) = (words.next()?, words.next()?, words.next()?);
        (outside >= first && outside - first < count).then(|| inside + (outside - first))
    })
}

impl Place {
    /// That of the process behind `pidfd`.
    ///
    /// # Errors
    /// ESRCH: it has ended. EPERM: it is in this process's own pid namespace; or it is below a seccomp filter more than
    /// `filters`, which it would get rid of.
    pub fn of(pidfd: OwnedFd, filters: u32) -> io::Result<Place> {
        let pid = super::pid_of(&pidfd)?;
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let (status, users, groups) = (read("status")?, read("uid_map")?, read("gid_map")?);
        let mut namespaces = 0;
        for (name, flag) in NAMESPACES {
            // One that may not be entered need not be, if it is the same.
            if fs::read_link(format!("/proc/{pid}/ns/{name}"))? != fs::read_link(format!("/proc/self/ns/{name}"))? {
                namespaces |= flag;
            }
        }
        // Alive after the look: so the number was its own, nobody else's.
        super::pid_of(&pidfd)?;
        let denied = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if namespaces & libc::CLONE_NEWPID == 0 {
            return denied("the caller is in no environment");
        }
        let under: u32 = field(&status, "Seccomp_filters").parse().map_err(|_| odd("filters"))?;
        if under > filters {
            return denied(
                "the caller is in a sandbox of its own (a seccomp filter), which what it starts would not be in",
            );
        }
        let id = |name, map: &str| {
            let effective = field(&status, name).split_whitespace().nth(1).and_then(|id| id.parse().ok());
            effective.and_then(|outside| inside(map, outside)).ok_or_else(|| odd(name))
        };
        let bounding = u64::from_str_radix(field(&status, "CapBnd"), 16).map_err(|_| odd("capabilities"))?;
        let also = field(&status, "Groups").split_whitespace().filter_map(|id| inside(&groups, id.parse().ok()?));
        Ok(Place {
            uid: id("Uid", &users)?,
            gid: id("Gid", &groups)?,
            groups: also.collect(),
            lost: (0..64).filter(|number| bounding & (1 << number) == 0).collect(),
            no_new_privileges: field(&status, "NoNewPrivs") != "0",
            guard: Filter::without_typing()?,
            pidfd,
            namespaces,
        })
    }

    /// How many seccomp filters the process behind `pidfd` is below.
    ///
    /// # Errors
    /// ESRCH: it has ended.
    pub fn filters(pidfd: &OwnedFd) -> io::Result<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", super::pid_of(pidfd)?))?;
        super::pid_of(pidfd)?;
        field(&status, "Seccomp_filters").parse().map_err(|_| odd("filters"))
    }

    /// In a forked child: moves into the namespaces, and makes the process that is in all of them, a child of the caller's parent.
    /// Its number goes to `report`, negative; the caller ends. Returns in that process alone, 0 or the errno of what failed.
    /// System calls only.
    pub(super) fn step_in(&self, report: RawFd) -> i32 {
        // SAFETY: async-signal-safe system calls on integers and on arrays that live in `self`.
        unsafe {
            let errno = || *libc::__errno_location();
            if libc::setns(self.pidfd.as_raw_fd(), self.namespaces) != 0 {
                return errno();
            }
            // As fork(2), but the child is the parent's: who reaps it knows its number.
            let flags = libc::CLONE_PARENT | libc::SIGCHLD;
            match libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, 0, 0, 0) {
                -1 => return errno(),
                0 => {}
                pid => {
                    let said = -(pid as i32);
                    libc::write(report, (&raw const said).cast(), 4);
                    libc::_exit(0)
                }
            }
            // While it still may.
            if self.guard.install_alone().is_err() {
                return errno();
            }
            for number in &self.lost {
                libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(*number), 0, 0, 0);
            }
            // Where that is denied for good, it has the groups of its own user.
            let _ = libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr());
            let (uid, gid) = (self.uid, self.gid);
            if libc::syscall(libc::SYS_setresgid, gid, gid, gid) != 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0
            {
                return errno();
            }
            if self.no_new_privileges {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            // Nobody reads the report any more: the parent ended before it could be heard of.
            let mut gone = libc::pollfd { fd: report, events: 0, revents: 0 };
            libc::poll(&raw mut gone, 1, 0);
            if gone.revents & libc::POLLERR != 0 {
                libc::_exit(127);
            }
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_through_a_map() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(
            [1000, 100_000, 165_535, 165_536, 0].map(|id| inside(map, id)),
            [Some(0), Some(1), Some(65536), None, None]
        );
    }

    #[test]
    fn a_process_outside_of_all_environments_has_no_place() {
        let own = super::super::pidfd(std::process::id() as i32).unwrap();
        let refused = Place::of(own, u32::MAX).unwrap_err();
        assert_eq!(refused.to_string(), "the caller is in no environment");
    }
}
