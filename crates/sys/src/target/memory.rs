//! Another process's memory. A thread's number may be reused at any time: ask `Listener::is_valid` after a read and
//! before the use of what was read.

use crate::raw::{at, call};
use std::io;

fn remote(address: u64, length: usize) -> libc::iovec {
    libc::iovec { iov_base: address as *mut libc::c_void, iov_len: length }
}

/// Fills `into` from the thread's memory, as far as it is readable, and returns how much. See process_vm_readv(2).
///
/// # Errors
/// EFAULT if not even the first byte is readable; ESRCH; EPERM for a process that the caller may not trace.
#[inline]
pub fn read_some(tid: u32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let from = remote(address, into.len());
    // SAFETY: `local` is exactly `into`; the remote address is only a number to this process.
    unsafe { call(libc::SYS_process_vm_readv, [tid as usize, at(&raw const local), 1, at(&raw const from), 1, 0]) }
}

/// Fills all of `into` from the thread's memory.
///
/// # Errors
/// As [`read_some`]; EFAULT if only a part is readable.
#[inline]
pub fn read(tid: u32, address: u64, into: &mut [u8]) -> io::Result<()> {
    if into.is_empty() || read_some(tid, address, into)? == into.len() {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EFAULT))
}

/// Writes two pieces to the thread's memory. See process_vm_writev(2).
///
/// # Errors
/// EFAULT if not all of it is writable (some may have been written); ESRCH; EPERM.
#[inline]
pub fn write(tid: u32, mut pieces: [(u64, &[u8]); 2]) -> io::Result<()> {
    let follows =
        |[(address, bytes), (next, _)]: [(u64, &[u8]); 2]| address.checked_add(bytes.len() as u64) == Some(next);
    if !follows(pieces) && follows([pieces[1], pieces[0]]) {
        pieces.swap(0, 1);
    }
    let local =
        pieces.map(|(_, bytes)| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
    let mut to = pieces.map(|(address, bytes)| remote(address, bytes.len()));
    let whole = pieces[0].1.len() + pieces[1].1.len();
    // Two that lie side by side are one to the kernel, which looks each up by itself.
    let count = if follows(pieces) {
        to[0].iov_len = whole;
        1
    } else {
        2
    };
    let arguments = [tid as usize, at(local.as_ptr()), 2, at(to.as_ptr()), count, 0];
    // SAFETY: the local pieces are live slices that the kernel only reads.
    match unsafe { call(libc::SYS_process_vm_writev, arguments) }? {
        written if written == whole => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}
