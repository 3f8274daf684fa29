//! A guard between a process and what it starts, so that this takes along all that it has forked, wherever that went.
//!
//! The kernel ends a child with its parent (PR_SET_PDEATHSIG), but not the child's children. The guard is a process between the two
//! that does nothing but wait. What loses its parent below it becomes its child (PR_SET_CHILD_SUBREAPER). When the starter ends,
//! however it does, the guard hears of it by a signal, and ends all that it has until nothing is left. A guard that is killed takes its
//! process with it, and the rest becomes the starter's, if that adopts orphans. So it takes the end of both at once to let one get away.

use std::os::fd::RawFd;

/// The signal that tells a guard to end all that it has.
pub const END: i32 = libc::SIGTERM;

/// Of /proc/thread-self/children, what is read at a time; what does not fit comes at the next look.
const LOOK: usize = 4096;

/// In the child of a fork: makes it a guard, and returns in a child of its own, which dies with it and goes on. Its pid, negative, is
/// written to `report`. Errors: an errno. System calls only, no allocation, no lock.
pub(super) fn stand(starter: libc::pid_t, report: RawFd) -> Result<libc::pid_t, i32> {
    // SAFETY: async-signal-safe system calls on numbers and locals; what the fds belong to is never run in the guard.
    unsafe {
        let errno = || *libc::__errno_location();
        let guard = libc::getpid();
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, END, 0, 0, 0);
        // It may have ended before that.
        if libc::getppid() != starter {
            libc::_exit(127);
        }
        let child = libc::fork();
        match child {
            -1 => return Err(errno()),
            0 => return Ok(guard),
            _ => {}
        }
        let said = -child;
        libc::write(report, (&raw const said).cast(), 4);
        // A kill of the starter's process group is none of the guard.
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"hurdle-guard".as_ptr(), 0, 0, 0);
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        watch(child)
    }
}

/// Waits until `child` has ended, and ends as it did; or until it is told to, and ends all.
///
/// # Safety
/// All signals are blocked, and this process has nothing to clean up.
unsafe fn watch(child: libc::pid_t) -> ! {
    // SAFETY: as above.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigaddset(&raw mut set, END);
        loop {
            let mut status = 0;
            match libc::waitpid(-1, &raw mut status, libc::WNOHANG) {
                0 if libc::sigwaitinfo(&raw const set, std::ptr::null_mut()) == END => end_all(child),
                0 => {}
                ended if ended == child => end_as(status),
                -1 => libc::_exit(127),
                _ => {}
            }
        }
    }
}

/// Kills all children, and those that they leave in turn, until there are none.
///
/// # Safety
/// As [`watch`].
unsafe fn end_all(child: libc::pid_t) -> ! {
    // SAFETY: numbers, and a live buffer. Children that were not reaped keep their numbers.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        loop {
            let mut text = [0u8; LOOK];
            let list = libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            let got = libc::read(list, text.as_mut_ptr().cast(), LOOK);
            libc::close(list);
            let mut pid = 0;
            for byte in text.iter().take(usize::try_from(got).unwrap_or(0)) {
                match byte {
                    b'0'..=b'9' => pid = pid * 10 + libc::pid_t::from(byte - b'0'),
                    // Each number ends in a space. One that the buffer has cut is none.
                    _ => {
                        libc::kill(pid, libc::SIGKILL);
                        pid = 0;
                    }
                }
            }
            if libc::waitpid(-1, std::ptr::null_mut(), 0) < 0 {
                libc::_exit(0)
            }
        }
    }
}

/// Ends as a process with this status did.
///
/// # Safety
/// As [`watch`].
unsafe fn end_as(status: libc::c_int) -> ! {
    // SAFETY: as above.
    unsafe {
        if libc::WIFEXITED(status) {
            libc::_exit(libc::WEXITSTATUS(status));
        }
        let signal = libc::WTERMSIG(status);
        // No core of the guard.
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        libc::kill(libc::getpid(), signal);
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use super::*;
    use crate::process::{Launch, State, kill, pipe, wait_end};

    /// A shell behind a guard that holds a pipe on fd 3, and its other end.
    fn guarded(script: &str) -> (i32, i32, File) {
        let (reader, writer) = pipe().unwrap();
        let null = || File::options().read(true).write(true).open("/dev/null").unwrap().into();
        let argv = ["/bin/sh", "-c", script].map(Into::into);
        let launch = Launch::new(&argv, &[], [null(), null(), null()]).unwrap().fd(writer, 3);
        let (guard, process) = launch.start_guarded().unwrap();
        (guard, process, reader.into())
    }

    #[test]
    fn it_ends_as_its_process_does() {
        let (guard, process, _) = guarded("exit 7");
        assert_ne!(guard, process);
        assert_eq!(wait_end(guard).unwrap().state(), State::Exited(7));
        let (guard, process, _) = guarded("exec /bin/sleep 100");
        kill(process, libc::SIGKILL).unwrap();
        assert_eq!(wait_end(guard).unwrap().state(), State::Killed(libc::SIGKILL));
    }

    #[test]
    fn it_takes_along_what_has_left() {
        let (guard, _, mut pipe) = guarded("(/bin/sleep 100 & echo left >&3); exec /bin/sleep 100");
        let mut said = [0; 5];
        pipe.read_exact(&mut said).unwrap();
        kill(guard, END).unwrap();
        wait_end(guard).unwrap();
        // Nobody holds the other end any more: the read does not wait.
        assert_eq!(pipe.read(&mut said).unwrap(), 0);
    }
}
