//! A moment with a table of fds of its own: for what the kernel looks up by fd *number*, and whose numbers are taken here.

use std::ffi::c_void;
use std::io;

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
    // SAFETY: the stack is a new private mapping, unmapped once nobody runs on it: this thread is suspended until the child has ended
    // (CLONE_VFORK), and holds the closure meanwhile.
    unsafe {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let stack = libc::mmap(std::ptr::null_mut(), STACK, protection, flags, -1, 0);
        if stack == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let top = stack.cast::<u8>().add(STACK).cast();
        let share = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let made = libc::clone(child, top, share, (&raw mut work).cast());
        let error = io::Error::last_os_error();
        let ended = if made < 0 { Err(error) } else { super::wait_end(made).map(drop) };
        libc::munmap(stack, STACK);
        ended
    }
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
