//! A moment with a table of fds of its own: for what the kernel looks up by fd *number*, and whose numbers are taken here.

use std::ffi::c_void;
use std::io;

use crate::pages::Pages;

/// Bytes of the stack.
const STACK: usize = 64 << 10;

extern "C" fn child(work: *mut c_void) -> libc::c_int {
    // SAFETY: the suspended thread holds the closure until this process ends.
    let work = unsafe { &mut *work.cast::<&mut dyn FnMut()>() };
    work();
    // SAFETY: ends the process, which has nothing of its own to clean up.
    unsafe { libc::_exit(0) }
}

/// Runs `work` in a process that shares the caller's memory and has a copy of its fd table (clone(2) with CLONE_VM), while the calling
/// thread is suspended. It makes system calls only: it neither opens what it does not close, nor frees what the caller owns.
///
/// # Errors
/// EAGAIN at the limit of processes, ENOMEM: nothing was run.
pub fn run_aside(work: &mut dyn FnMut()) -> io::Result<()> {
    let mut work = work;
    let stack = Pages::private(STACK)?;
    let share = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs on the stack, which lives until it has ended: this thread is suspended so long (CLONE_VFORK), and holds the
    // closure meanwhile.
    let made = unsafe { libc::clone(child, stack.start().as_ptr().add(STACK).cast(), share, (&raw mut work).cast()) };
    if made < 0 { Err(io::Error::last_os_error()) } else { super::wait_end(made).map(drop) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn fds_are_changed_there_and_not_here() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (number, mut seen) = (file.as_raw_fd(), (0, 0));
        // SAFETY: plain numbers; the copy of the table is the child's own.
        run_aside(&mut || unsafe { seen = (libc::close(number), libc::fcntl(number, libc::F_GETFD)) }).unwrap();
        assert_eq!(seen, (0, -1), "memory is shared");
        assert!(file.metadata().is_ok());
    }
}
