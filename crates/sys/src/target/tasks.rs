//! Threads of other processes behind pidfds, the fds they hold, and the network that they are in.

use crate::raw::{call, int};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

/// How many pidfds are kept.
const KEPT: usize = 64;

/// linux/pidfd.h: the pidfd names one thread (Linux 6.9).
const PIDFD_THREAD: libc::c_uint = libc::O_EXCL as libc::c_uint;

/// PIDFD_GET_NET_NAMESPACE of linux/pidfd.h (Linux 6.11): the network namespace of the thread behind a pidfd.
const GET_NET_NAMESPACE: u64 = 0xff04;

/// NS_GET_USERNS of linux/nsfs.h.
const NS_GET_USERNS: u64 = 0xb701;

/// A network namespace. While it is held, its number is nobody else's (namespaces(7)).
#[derive(Debug)]
pub struct Network {
    file: File,
    number: (u64, u64),
}

impl Network {
    /// The one that process or thread `pid` is in (/proc/PID/ns/net).
    ///
    /// # Errors
    /// ENOENT, ESRCH if it is gone; EACCES, EPERM if the caller may not trace it.
    pub fn of(pid: u32) -> io::Result<Network> {
        Network::try_from(OwnedFd::from(File::open(format!("/proc/{pid}/ns/net"))?))
    }
}

impl Network {
    /// Itself and the user namespace that owns it (ioctl_ns(2)), for who wants to enter it.
    ///
    /// # Errors
    /// EPERM if the owner is not below the caller's user namespace; EMFILE.
    pub fn namespaces(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        // SAFETY: the request takes no argument, and returns a new fd.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), NS_GET_USERNS as _) } {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: nobody else owns it.
            user => Ok((unsafe { OwnedFd::from_raw_fd(user) }, self.file.try_clone()?.into())),
        }
    }
}

impl TryFrom<OwnedFd> for Network {
    type Error = io::Error;

    fn try_from(fd: OwnedFd) -> io::Result<Network> {
        let file = File::from(fd);
        let metadata = file.metadata()?;
        Ok(Network { file, number: (metadata.dev(), metadata.ino()) })
    }
}

impl From<Network> for OwnedFd {
    fn from(network: Network) -> OwnedFd {
        network.file.into()
    }
}

/// A small cache of pidfds by thread number. A number that was reused is noticed, since its old pidfd answers ESRCH.
#[derive(Debug, Default)]
pub struct Tasks {
    /// The one opened last comes last, and is looked for first.
    known: Vec<Task>,
}

#[derive(Debug)]
struct Task {
    tid: u32,
    pidfd: OwnedFd,
    /// The pidfd names the thread, not its process.
    precise: bool,
    /// It was seen in the network namespace that [`Tasks::stays_in`] was asked about.
    inside: bool,
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
    #[inline]
    pub fn fd(&mut self, tid: u32, fd: RawFd) -> io::Result<OwnedFd> {
        self.ask(tid, |task| get_fd(&task.pidfd, fd))
    }

    /// As [`Tasks::is_in`], where threads stay in the network namespace that they are first seen in. Always to be asked about the same one.
    ///
    /// # Errors
    /// As [`Tasks::is_in`].
    pub fn stays_in(&mut self, tid: u32, network: &Network) -> io::Result<bool> {
        let known = |task: &Task| task.inside && task.tid == tid;
        if self.known.iter().rev().find(|task| known(task)).is_some_and(|task| lives(&task.pidfd)) {
            return Ok(true);
        }
        let inside = self.is_in(tid, network)?;
        if let Some(task) = self.known.iter_mut().rev().find(|task| task.tid == tid) {
            task.inside = inside && task.precise;
        }
        Ok(inside)
    }

    /// Whether the thread is in this network namespace now. Nothing but the thread itself can change that.
    ///
    /// # Errors
    /// ESRCH if it ended; EACCES or EPERM if the caller may not trace it; EMFILE, ENFILE.
    pub fn is_in(&mut self, tid: u32, network: &Network) -> io::Result<bool> {
        let asked = self.ask(tid, |task| {
            // SAFETY: the request takes no argument, and returns a new fd.
            match unsafe { libc::ioctl(task.pidfd.as_raw_fd(), GET_NET_NAMESPACE as _, 0) } {
                -1 => Err(io::Error::last_os_error()),
                // SAFETY: nobody else owns it.
                fd => Network::try_from(unsafe { OwnedFd::from_raw_fd(fd) }),
            }
        });
        let found = match asked {
            // Before Linux 6.11.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => Network::of(tid)?,
            found => found?,
        };
        Ok(found.number == network.number)
    }

    /// Whether the thread's table of fds has no room left below its RLIMIT_NOFILE. False where that can't be told: before
    /// Linux 6.2, or if the caller may not trace it. What its other threads do meanwhile may change the answer.
    pub fn is_full(&mut self, tid: u32) -> bool {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live structure for the old limit, and none for a new one.
        let asked = unsafe { libc::prlimit(tid as libc::pid_t, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit) };
        let Ok(limit) = u32::try_from(limit.rlim_cur) else { return false };
        // Most often the last number is free, which costs least to see.
        let last = limit.checked_sub(1).map(|last| self.fd(tid, last as RawFd));
        if asked != 0 || matches!(last, Some(Err(_))) {
            return false;
        }
        // The size of that directory is how many there are (proc(5)).
        std::fs::metadata(format!("/proc/{tid}/fd")).is_ok_and(|found| found.len() >= u64::from(limit))
    }

    /// Asks the pidfd of a thread, which is opened for that if it is not known.
    fn ask<T>(&mut self, tid: u32, question: impl Fn(&Task) -> io::Result<T>) -> io::Result<T> {
        if let Some(at) = self.known.iter().rposition(|task| task.tid == tid) {
            match question(&self.known[at]) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => drop(self.known.remove(at)),
                other => return other,
            }
        }
        let (pidfd, precise) = open(tid)?;
        let task = Task { tid, pidfd, precise, inside: false };
        let found = question(&task);
        if self.known.len() >= KEPT {
            self.known.clear();
        }
        self.known.push(task);
        found
    }
}

fn get_fd(task: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let copy = unsafe { call(libc::SYS_pidfd_getfd, [int(task.as_raw_fd()), int(fd), 0, 0, 0, 0]) }?;
    // SAFETY: the call returned a new fd that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as RawFd) })
}

/// Whether the thread that a pidfd names lives.
fn lives(task: &OwnedFd) -> bool {
    super::socket::poll_now(task.as_fd(), libc::POLLIN).is_ok_and(|events| events == 0)
}

/// A pidfd of a thread, or before Linux 6.9 of its process, whose fds are the same unless it unshared them (pidfd_open(2)).
/// Returns which of both it is: true for the thread.
fn open(tid: u32) -> io::Result<(OwnedFd, bool)> {
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
            Ok((try_open(process.ok_or(io::ErrorKind::InvalidData)?, 0)?, false))
        }
        other => Ok((other?, true)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_where_it_went() {
        // SAFETY: takes no arguments.
        let own = || unsafe { libc::gettid() } as u32;
        let here = Network::of(own()).unwrap();
        assert!(Tasks::new().is_in(own(), &here).unwrap());
        let elsewhere = std::thread::spawn(move || {
            // SAFETY: plain numbers. Only this thread moves.
            let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
            (moved, Tasks::new().is_in(own(), &here).unwrap(), Tasks::new().is_in(std::process::id(), &here).unwrap())
        });
        // Who may not unshare it stays.
        let (moved, thread, process) = elsewhere.join().unwrap();
        assert_eq!((thread, process), (!moved, true));
    }

    #[test]
    fn what_is_known_of_a_thread_ends_with_it() {
        // SAFETY: takes no arguments.
        let own = || unsafe { libc::gettid() } as u32;
        let here = Network::of(own()).unwrap();
        let mut tasks = Tasks::new();
        let tid = std::thread::scope(|scope| {
            let ask = || (own(), [(); 2].map(|()| tasks.stays_in(own(), &here).unwrap()));
            let (tid, inside) = scope.spawn(ask).join().unwrap();
            assert_eq!(inside, [true; 2]);
            tid
        });
        // It is joined a moment before it has ended.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while tasks.stays_in(tid, &here).is_ok() {
            assert!(std::time::Instant::now() < end, "it is still known");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_table_is_full_when_no_number_below_the_limit_is_free() {
        let set = |limit| {
            let limit = libc::rlimit { rlim_cur: limit, rlim_max: 64 };
            // SAFETY: a live structure.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        };
        // A child has limits and a table of its own. It holds 0 to 9 at first, and then has a hole.
        let mut ends = [0; 2];
        // SAFETY: room for two fds; the child makes system calls alone, and ends with _exit.
        let child = unsafe {
            assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
            match libc::fork() {
                0 => {
                    set(32);
                    let reader = libc::dup2(ends[0], 31);
                    (0..10).for_each(|number| _ = libc::dup2(reader, number));
                    libc::syscall(libc::SYS_close_range, 10, 30, 0);
                    // Of tests that run beside this one.
                    libc::syscall(libc::SYS_close_range, 32, u32::MAX, 0);
                    let mut byte = 0u8;
                    for limit in [10, 9, 32] {
                        set(limit);
                        libc::raise(libc::SIGSTOP);
                    }
                    libc::read(reader, (&raw mut byte).cast(), 1);
                    libc::_exit(0)
                }
                child => child,
            }
        };
        let mut tasks = Tasks::new();
        let mut found = Vec::new();
        for _ in 0..3 {
            let mut status = 0;
            // SAFETY: a live number.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, libc::WUNTRACED) }, child);
            found.push(tasks.is_full(child as u32));
            // SAFETY: plain numbers.
            unsafe { libc::kill(child, libc::SIGCONT) };
        }
        // SAFETY: as above; both ends are this test's own.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
            ends.iter().for_each(|end| _ = libc::close(*end));
        }
        assert_eq!(found, [true, true, false]);
        assert!(!tasks.is_full(child as u32), "it is gone");
    }
}
