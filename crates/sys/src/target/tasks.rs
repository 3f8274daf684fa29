//! Threads of other processes behind pidfds, and the fds they hold.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// How many pidfds are kept.
const KEPT: usize = 64;

/// linux/pidfd.h: the pidfd names one thread (Linux 6.9).
const PIDFD_THREAD: libc::c_uint = libc::O_EXCL as libc::c_uint;

/// A small cache of pidfds by thread number. A number that was reused is noticed, since its old pidfd answers ESRCH.
#[derive(Debug, Default)]
pub struct Tasks {
    known: HashMap<u32, OwnedFd>,
}

impl Tasks {
    /// An empty cache.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// Fetches a copy of the thread's fd number `fd` (pidfd_getfd(2)). Ask `Listener::is_valid` before using it.
    ///
    /// # Errors
    /// EBADF if it has no such fd; ESRCH if it ended; EPERM if the caller may not trace it; EMFILE, ENFILE.
    pub fn fd(&mut self, tid: u32, fd: RawFd) -> io::Result<OwnedFd> {
        if let Some(task) = self.known.get(&tid) {
            match get_fd(task, fd) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => drop(self.known.remove(&tid)),
                other => return other,
            }
        }
        let task = open(tid)?;
        let found = get_fd(&task, fd);
        if self.known.len() >= KEPT {
            self.known.clear();
        }
        self.known.insert(tid, task);
        found
    }
}

fn get_fd(task: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    match unsafe { libc::syscall(libc::SYS_pidfd_getfd, task.as_raw_fd(), fd, 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the call returned a new fd that nobody else owns.
        copy => Ok(unsafe { OwnedFd::from_raw_fd(copy as RawFd) }),
    }
}

/// A pidfd of a thread, or before Linux 6.9 of its process, whose fds are the same unless it unshared them (pidfd_open(2)).
fn open(tid: u32) -> io::Result<OwnedFd> {
    let try_open = |pid: u32, flags: libc::c_uint| {
        // SAFETY: plain numbers.
        match unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the call returned a new fd that nobody else owns.
            fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
        }
    };
    match try_open(tid, PIDFD_THREAD) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let status = std::fs::read_to_string(format!("/proc/{tid}/status"))?;
            let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
            try_open(process.ok_or(io::ErrorKind::InvalidData)?, 0)
        }
        other => other,
    }
}

/// Raises this process's limit of open fds to what it may have (setrlimit(2)).
///
/// # Errors
/// None are known.
pub fn raise_fd_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: a live structure.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
