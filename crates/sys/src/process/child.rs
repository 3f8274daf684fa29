//! A child of the caller's and its end, whether a guard stands between or not.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::{Status, Until, guard, kill, pidfd_or_end, poll, wait_end};

/// How long a guard has to end its process: one that was stopped never would.
const PATIENCE: Duration = Duration::from_secs(1);

/// A process that the caller has started. Dropped while it runs, it is ended. As an fd: readable once it has ended.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    guard: Option<i32>,
    /// Its pidfd; or the pipe on which its guard tells its status.
    end: File,
    status: Option<Status>,
}

impl Child {
    /// A child that was not reaped.
    pub(super) fn alone(pid: i32) -> io::Result<Child> {
        Ok(Child { pid, guard: None, end: pidfd_or_end(pid)?.into(), status: None })
    }

    pub(super) fn guarded(pid: i32, guard: i32, end: File) -> Child {
        Child { pid, guard: Some(guard), end, status: None }
    }

    /// Its number, which is its own as long as nobody has waited for it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its guard, unless that was reaped: the caller does so in the end. It stays as long as anything is left of what the process has
    /// started; [`END`](super::END) ends it with all that.
    pub fn guard(&self) -> Option<i32> {
        self.guard
    }

    /// That of both which is the caller's own child.
    pub fn own(&self) -> i32 {
        self.guard.unwrap_or(self.pid)
    }

    /// Waits for its end, whose status is kept.
    ///
    /// # Errors
    /// None are known.
    pub fn wait(&mut self) -> io::Result<Status> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let status = match self.guard {
            None => wait_end(self.pid)?,
            Some(guard) => match Status::read(&mut self.end)? {
                Some(status) => status,
                // The guard was killed, and the process with it.
                None => {
                    self.guard = None;
                    wait_end(guard)?;
                    Status(libc::SIGKILL)
                }
            },
        };
        self.status = Some(status);
        Ok(status)
    }

    /// Ends it (SIGKILL), if it has not ended, but not what it has started.
    ///
    /// # Errors
    /// None are known.
    pub fn end(&mut self) -> io::Result<Status> {
        if self.status.is_none() {
            match self.guard {
                None => kill(self.pid, libc::SIGKILL)?,
                Some(guard) => {
                    kill(guard, guard::DROP)?;
                    if !poll(&[(self.end.as_fd(), Until::Readable)], Some(Instant::now() + PATIENCE))?[0] {
                        kill(guard, libc::SIGKILL)?;
                    }
                }
            }
        }
        self.wait()
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
