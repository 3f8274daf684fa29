//! Terminals: who is in the foreground (tcsetpgrp(3)), raw mode, window size, pseudo-terminals.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::termios::{self, SetArg, Termios};
use nix::unistd::Pid;

/// Whether `fd` is a terminal whose foreground process group is the caller's.
pub fn in_foreground(fd: impl AsFd) -> bool {
    nix::unistd::tcgetpgrp(fd).is_ok_and(|pgrp| pgrp == nix::unistd::getpgrp())
}

/// The path of the terminal that `fd` is (ttyname(3)); none if it is no terminal, or has no path here.
pub fn path(fd: impl AsFd) -> Option<PathBuf> {
    nix::unistd::ttyname(fd).ok()
}

/// Whether the caller has a controlling terminal, and the kernel lets its programs type on it (ioctl_tty(2), TIOCSTI; always
/// before Linux 6.2).
pub fn can_be_typed_on() -> bool {
    let allowed = std::fs::read("/proc/sys/dev/tty/legacy_tiocsti").map_or(true, |value| value.trim_ascii() != b"0");
    allowed && std::fs::File::open("/dev/tty").is_ok()
}

/// Puts process group `pgrp` (0: the caller's) in the foreground of `fd`, also from the background: SIGTTOU is held back
/// meanwhile.
pub fn set_foreground(fd: impl AsFd, pgrp: i32) -> io::Result<()> {
    let pgrp = if pgrp == 0 { nix::unistd::getpgrp() } else { Pid::from_raw(pgrp) };
    let mut block = SigSet::empty();
    block.add(Signal::SIGTTOU);
    let mut old = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&block), Some(&mut old))?;
    let done = nix::unistd::tcsetpgrp(fd, pgrp);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&old), None)?;
    Ok(done?)
}

/// A terminal in raw mode (cfmakeraw(3)); set back when dropped.
#[derive(Debug)]
pub struct Raw {
    fd: OwnedFd,
    old: Termios,
}

impl Raw {
    /// ENOTTY if `fd` is no terminal.
    pub fn new(fd: impl AsFd) -> io::Result<Raw> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        let old = termios::tcgetattr(&fd)?;
        let mut raw = old.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&fd, SetArg::TCSANOW, &raw)?;
        Ok(Raw { fd, old })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.fd, SetArg::TCSANOW, &self.old);
    }
}

/// One key from terminal `fd`, without Enter and without echo; Ctrl-C is 3, Ctrl-D is 4. A key that sends several bytes (an arrow)
/// is 27, its Escape, and its other bytes are no keys. 0: there is no more to read. ENOTTY if `fd` is no terminal.
pub fn read_key(fd: impl AsFd) -> io::Result<u8> {
    let _raw = Raw::new(&fd)?;
    let read = |bytes: &mut [u8]| crate::process::retry(|| nix::unistd::read(&fd, bytes));
    let mut key = [0];
    let count = read(&mut key)?;
    if key[0] == 27 {
        // What belongs to it comes with it.
        let waiting =
            || crate::process::poll(&[(fd.as_fd(), crate::process::Until::Readable)], Some(std::time::Instant::now()));
        if waiting()?[0] {
            read(&mut [0; 16])?;
        }
    }
    Ok(if count == 0 { 0 } else { key[0] })
}

/// Opens a pseudo-terminal: (master, slave), both close-on-exec (pty(7)).
pub fn open_pty() -> io::Result<(OwnedFd, OwnedFd)> {
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: openpty stores two fds; name, termios and size may be null.
    if unsafe { libc::openpty(&raw mut master, &raw mut slave, null, null.cast(), null.cast()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: two new fds, owned by nobody else.
    let pair = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    for fd in [&pair.0, &pair.1] {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    Ok(pair)
}

/// Gives terminal `to` the window size of `from` (TIOCGWINSZ, TIOCSWINSZ).
pub fn copy_size(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    // SAFETY: all-zero is a valid winsize.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ stores one winsize, TIOCSWINSZ reads one.
    let done = unsafe {
        libc::ioctl(from.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) == 0
            && libc::ioctl(to.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}
