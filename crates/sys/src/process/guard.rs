//! A guard between a process and what it starts, so that this takes along all that it has forked, wherever that went.
//!
//! The kernel ends a child with its parent (PR_SET_PDEATHSIG), but not the child's children. The guard is a process between the two
//! that does nothing but wait. What loses its parent below it becomes its child (PR_SET_CHILD_SUBREAPER). It tells how the process ended
//! through a pipe, and stays as long as something is left: what was at an answer may finish it. When the starter ends, however it does,
//! the guard hears of it by a signal, before or after the end of the process, and ends all that it has until nothing is left. A guard
//! that is killed takes its process with it, and the rest becomes the starter's, if that adopts orphans. So it takes a kill of both at
//! once to let one get away.

use std::os::fd::RawFd;

/// The signal that tells a guard to end all that it has.
pub const END: i32 = libc::SIGTERM;
/// The signal that tells it to end its process, and to leave what that has started some time.
pub(super) const DROP: i32 = libc::SIGUSR1;

/// Of /proc/thread-self/children, what is read at a time; what does not fit comes at the next look.
const LOOK: usize = 4096;

/// In the child of a fork: makes it a guard, and returns in a child of its own, which dies with it and goes on. Its pid, negative, is
/// written to `report`, and its status to `end`. Errors: an errno. System calls only, no allocation, no lock.
pub(super) fn stand(starter: libc::pid_t, report: RawFd, end: RawFd) -> Result<libc::pid_t, i32> {
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
        libc::dup2(end, 0);
        libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0);
        watch(child)
    }
}

/// Waits until nothing is left, or until it is told to end all. The status of `child` goes to fd 0.
///
/// # Safety
/// All signals are blocked, and this process has nothing to clean up.
unsafe fn watch(child: libc::pid_t) -> ! {
    // SAFETY: as above. A child that was not reaped keeps its number.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGCHLD, END, DROP] {
            libc::sigaddset(&raw mut set, signal);
        }
        let mut lives = true;
        loop {
            let mut status = 0;
            match libc::waitpid(-1, &raw mut status, libc::WNOHANG) {
                -1 => libc::_exit(0),
                0 => match libc::sigwaitinfo(&raw const set, std::ptr::null_mut()) {
                    END => break,
                    DROP if lives => _ = libc::kill(child, libc::SIGKILL),
                    _ => {}
                },
                ended if lives && ended == child => {
                    lives = false;
                    libc::write(0, (&raw const status).cast(), 4);
                    // The last close: nobody waits for more.
                    libc::close(0);
                }
                _ => {}
            }
        }
        if lives {
            libc::kill(child, libc::SIGKILL);
        }
        end_all()
    }
}

/// Kills all children, and those that they leave in turn, until there are none.
///
/// # Safety
/// As [`watch`].
unsafe fn end_all() -> ! {
    // SAFETY: numbers, and a live buffer. Children that were not reaped keep their numbers.
    unsafe {
        loop {
            let mut text = [0u8; LOOK];
            let list = libc::open(c"/proc/thread-self/children".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if list < 0 {
                // They can't be told: then they are the starter's.
                libc::_exit(0)
            }
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    use super::*;
    use crate::process::{Child, Launch, State, kill, pipe, wait_end};

    /// A shell behind a guard that holds the ends of two pipes on fds 3 and 4, and their other ends.
    fn guarded(script: &str) -> (Child, File, File) {
        let ((reader, told), (heard, writer)) = (pipe().unwrap(), pipe().unwrap());
        let null = || File::options().read(true).write(true).open("/dev/null").unwrap().into();
        let argv = ["/bin/sh", "-c", script].map(Into::into);
        let launch = Launch::new(&argv, &[], [null(), null(), null()]).unwrap().fd(told, 3).fd(heard, 4);
        (launch.start_guarded().unwrap(), reader.into(), writer.into())
    }

    /// One that leaves another behind, which waits for a word and answers it.
    const LEAVES: &str = "(echo left >&3; read -r word <&4; echo $word >&3)& exec /bin/sleep 100";

    fn hear(pipe: &mut File, word: &str) {
        let mut said = vec![0; word.len() + 1];
        pipe.read_exact(&mut said).unwrap();
        assert_eq!(said, format!("{word}\n").as_bytes());
    }

    #[test]
    fn it_tells_how_its_process_ended() {
        let (mut child, ..) = guarded("exit 7");
        let guard = child.guard().unwrap();
        assert_ne!(guard, child.pid());
        assert_eq!(child.wait().unwrap().state(), State::Exited(7));
        wait_end(guard).unwrap();
        let (mut child, ..) = guarded("exec /bin/sleep 100");
        kill(child.pid(), libc::SIGKILL).unwrap();
        assert_eq!(child.wait().unwrap().state(), State::Killed(libc::SIGKILL));
        wait_end(child.guard().unwrap()).unwrap();
    }

    #[test]
    fn it_takes_along_what_has_left() {
        let (mut child, mut pipe, _writer) = guarded(LEAVES);
        hear(&mut pipe, "left");
        kill(child.guard().unwrap(), END).unwrap();
        // Nobody holds the other end any more: the read does not wait.
        assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
        assert_eq!(child.wait().unwrap().state(), State::Killed(libc::SIGKILL));
        assert_eq!(child.guard(), None, "and reaped");
    }

    #[test]
    fn who_is_at_an_answer_when_its_process_is_dropped_finishes_it() {
        let (mut child, mut pipe, mut writer) = guarded(LEAVES);
        hear(&mut pipe, "left");
        assert_eq!(child.end().unwrap().state(), State::Killed(libc::SIGKILL));
        writer.write_all(b"answer\n").unwrap();
        hear(&mut pipe, "answer");
        assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
        // Nothing is left, so the guard goes.
        wait_end(child.guard().unwrap()).unwrap();
    }

    #[test]
    fn what_is_left_behind_ends_by_one_word() {
        let (mut child, mut pipe, _writer) = guarded(LEAVES);
        hear(&mut pipe, "left");
        child.end().unwrap();
        kill(child.guard().unwrap(), END).unwrap();
        assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
        wait_end(child.guard().unwrap()).unwrap();
    }

    #[test]
    fn a_guard_that_does_not_hear_is_ended() {
        let (mut child, ..) = guarded("exec /bin/sleep 100");
        let guard = child.guard().unwrap();
        kill(guard, libc::SIGSTOP).unwrap();
        assert_eq!(child.end().unwrap().state(), State::Killed(libc::SIGKILL));
        assert_eq!(child.guard(), None, "and reaped");
    }
}
