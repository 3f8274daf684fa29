//! Another process's memory. A thread's number may be reused at any time: ask `Listener::is_valid` after a read and
//! before the use of what was read.

use std::io;

fn remote(address: u64, length: usize) -> libc::iovec {
    libc::iovec { iov_base: address as *mut libc::c_void, iov_len: length }
}

/// Fills `into` from the thread's memory, as far as it is readable, and returns how much. See process_vm_readv(2).
///
/// # Errors
/// EFAULT if not even the first byte is readable; ESRCH; EPERM for a process that the caller may not trace.
pub fn read_some(tid: u32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let from = remote(address, into.len());
    // SAFETY: `local` is exactly `into`; the remote address is only a number to this process.
    match unsafe { libc::process_vm_readv(tid as libc::pid_t, &raw const local, 1, &raw const from, 1, 0) } {
        -1 => Err(io::Error::last_os_error()),
        read => Ok(read as usize),
    }
}

/// Fills all of `into` from the thread's memory.
///
/// # Errors
/// As [`read_some`]; EFAULT if only a part is readable.
pub fn read(tid: u32, address: u64, into: &mut [u8]) -> io::Result<()> {
    if into.is_empty() || read_some(tid, address, into)? == into.len() {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EFAULT))
}

/// Writes up to two pieces to the thread's memory, in their order. See process_vm_writev(2).
///
/// # Errors
/// EFAULT if not all of it is writable (some may have been written); ESRCH; EPERM.
pub fn write(tid: u32, pieces: [(u64, &[u8]); 2]) -> io::Result<()> {
    let local =
        pieces.map(|(_, bytes)| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
    let to = pieces.map(|(address, bytes)| remote(address, bytes.len()));
    // SAFETY: the local pieces are live slices that the kernel only reads.
    match unsafe { libc::process_vm_writev(tid as libc::pid_t, local.as_ptr(), 2, to.as_ptr(), 2, 0) } {
        -1 => Err(io::Error::last_os_error()),
        written if written as usize == pieces[0].1.len() + pieces[1].1.len() => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}
