//! The ends and stops of children: wait4(2).

use std::io;

use super::retry;

/// What wait4(2) said of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub i32);

/// A [`Status`], decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Ended by itself with this exit status.
    Exited(i32),
    /// Ended by this signal.
    Killed(i32),
    /// Stopped by this signal; it may go on.
    Stopped(i32),
    /// Goes on after a stop.
    Continued,
}

impl Status {
    /// A status as of a process that exited with `code`.
    pub fn exit(code: u8) -> Status {
        Status(i32::from(code) << 8)
    }

    /// As it stands in a status pipe: four bytes, native order.
    pub fn to_bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    /// The next one of a status pipe; `None` at its end.
    pub fn read(pipe: &mut impl io::Read) -> io::Result<Option<Status>> {
        let mut word = [0; 4];
        match pipe.read_exact(&mut word) {
            Ok(()) => Ok(Some(Status(i32::from_ne_bytes(word)))),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Which of the four it is.
    pub fn state(self) -> State {
        let raw = self.0;
        if libc::WIFEXITED(raw) {
            State::Exited(libc::WEXITSTATUS(raw))
        } else if libc::WIFSIGNALED(raw) {
            State::Killed(libc::WTERMSIG(raw))
        } else if libc::WIFSTOPPED(raw) {
            State::Stopped(libc::WSTOPSIG(raw))
        } else {
            State::Continued
        }
    }

    /// The exit code that a shell shows: 128 + the signal for a process that a signal ended.
    pub fn shell_code(self) -> i32 {
        match self.state() {
            State::Exited(code) => code,
            State::Killed(signal) | State::Stopped(signal) => 128 + signal,
            State::Continued => 0,
        }
    }
}

/// wait4(2) with WUNTRACED and WCONTINUED: the next change of a child (`None`: of any). ECHILD: there is none.
pub fn wait(pid: Option<i32>) -> io::Result<(i32, Status)> {
    wait4(pid, libc::WUNTRACED | libc::WCONTINUED)
}

/// As [`wait`], but at once: `None` if no child has changed.
pub fn try_wait(pid: Option<i32>) -> io::Result<Option<(i32, Status)>> {
    wait4(pid, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED)
        .map(|(pid, status)| (pid != 0).then_some((pid, status)))
}

/// wait4(2) for the end of a child, whatever stops and continues it before. ECHILD: it is none, or was reaped.
pub fn wait_end(pid: i32) -> io::Result<Status> {
    wait4(Some(pid), 0).map(|(_, status)| status)
}

fn wait4(pid: Option<i32>, flags: i32) -> io::Result<(i32, Status)> {
    let mut status = 0;
    retry(|| {
        // SAFETY: wait4 stores one int; rusage may be null.
        let pid = unsafe { libc::wait4(pid.unwrap_or(-1), &raw mut status, flags, std::ptr::null_mut()) };
        nix::errno::Errno::result(pid)
    })
    .map(|pid| (pid, Status(status)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_stop_a_continuation_and_the_end_are_told_apart() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = child.id() as i32;
        crate::process::kill(pid, libc::SIGSTOP).unwrap();
        assert_eq!(wait(Some(pid)).unwrap().1.state(), State::Stopped(libc::SIGSTOP));
        crate::process::kill(pid, libc::SIGCONT).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let next = std::iter::from_fn(|| (std::time::Instant::now() < end).then(|| try_wait(Some(pid)).unwrap()))
            .flatten()
            .next();
        assert_eq!(next.map(|(_, status)| status.state()), Some(State::Continued));
        // A stop that nobody has asked about is not taken for the end.
        crate::process::kill(pid, libc::SIGSTOP).unwrap();
        crate::process::kill(pid, libc::SIGKILL).unwrap();
        assert_eq!(wait_end(pid).unwrap().state(), State::Killed(libc::SIGKILL));
        assert_eq!(try_wait(Some(pid)).unwrap_err().raw_os_error(), Some(libc::ECHILD));
        assert!(child.wait().is_err());
    }
}
