//! Trials: something that may be forbidden, may hang or may do harm, tried in a process of its own.
//!
//! A [`Trial`] is a copy of the caller (fork(2)) that writes what it found to a pipe. It is killed at its deadline, with all
//! that it started, and whatever it did to itself (filters, namespaces, mounts) ends with it. The rest of this module is
//! what else trials need: a few numbers, and [`pin`].

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::sched::CpuSet;
use nix::unistd::{ForkResult, Pid};

use crate::ns;
use crate::process::{self, State, Until};

/// A process that tries something.
#[derive(Debug)]
pub struct Trial {
    pid: i32,
    pidfd: OwnedFd,
    report: File,
    reaped: bool,
}

/// How a trial ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, or by a signal.
    By(State),
    /// It was killed at its deadline.
    Late,
}

impl Trial {
    /// Runs `body` in a copy of the calling process, which dies with the calling thread at the latest. What `body` writes
    /// to its pipe is what [`Trial::finish`] returns; it must fit the pipe (64 KiB). What `body` returns is its exit code.
    ///
    /// # Errors
    /// `InvalidInput` if the caller has more than one thread (a copy of a locked allocator would hang); EAGAIN at the limit
    /// of processes; EMFILE.
    pub fn start(body: impl FnOnce(File) -> i32) -> io::Result<Trial> {
        process::one_thread()?;
        let (report, writer) = process::pipe()?;
        // SAFETY: the caller has one thread, so the child's copy of its memory holds no foreign lock.
        match unsafe { nix::unistd::fork()? } {
            ForkResult::Child => {
                drop(report);
                // A group of its own, so that the deadline reaches what it starts.
                let _ = nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0));
                let code = if ns::die_with_parent().is_ok() { body(File::from(writer)) } else { 1 };
                // SAFETY: ends the child without running the caller's exit handlers.
                unsafe { libc::_exit(code) }
            }
            ForkResult::Parent { child } => {
                let pid = child.as_raw();
                // Both sides say so: a kill of the group may come before the child has run.
                let _ = nix::unistd::setpgid(child, child);
                let pidfd = process::pidfd_or_end(pid)?;
                Ok(Trial { pid, pidfd, report: File::from(report), reaped: false })
            }
        }
    }

    /// Waits until it has ended, at most until `deadline`, and returns what it wrote. Nothing that it started goes on.
    ///
    /// # Errors
    /// None are known.
    pub fn finish(mut self, deadline: Instant) -> io::Result<(Vec<u8>, Ending)> {
        let mut late = false;
        loop {
            if process::poll(&[(self.pidfd.as_fd(), Until::Readable)], Some(deadline))?[0] {
                break;
            }
            if Instant::now() >= deadline {
                late = true;
                break;
            }
        }
        let state = self.reap();
        // A process that left the group may still hold the pipe: take what is there, and do not wait for its end.
        process::set_nonblocking(&self.report, true)?;
        let mut said = Vec::new();
        match self.report.read_to_end(&mut said) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        Ok((said, if late { Ending::Late } else { Ending::By(state) }))
    }

    /// Kills what is left of it and its group. The group's number is not reused before its leader is reaped.
    fn reap(&mut self) -> State {
        self.reaped = true;
        let _ = process::kill(-self.pid, libc::SIGKILL);
        let _ = process::kill(self.pid, libc::SIGKILL);
        loop {
            match process::wait(Some(self.pid)) {
                Ok((_, status)) => match status.state() {
                    state @ (State::Exited(_) | State::Killed(_)) => return state,
                    State::Stopped(_) | State::Continued => {}
                },
                Err(_) => return State::Exited(0),
            }
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if !self.reaped {
            self.reap();
        }
    }
}

/// Ties the calling thread, and what it starts from here on, to the CPU it runs on (sched_setaffinity(2)).
///
/// # Errors
/// EINVAL if that CPU was taken from it meanwhile.
pub fn pin() -> io::Result<()> {
    let mut one = CpuSet::new();
    one.set(nix::sched::sched_getcpu()?)?;
    Ok(nix::sched::sched_setaffinity(Pid::from_raw(0), &one)?)
}

/// Numbers that trials name (errno(3), syscalls(2), socket(2)).
pub mod numbers {
    pub use libc::{
        AF_UNIX, EACCES, EAGAIN, EBUSY, EINVAL, ENODEV, ENOENT, ENOSPC, ENOSYS, ENXIO, EPERM, EUSERS, SIGSYS,
        SOCK_DGRAM, SYS_getppid, SYS_listen, SYS_sethostname, SYS_socket,
    };
}
