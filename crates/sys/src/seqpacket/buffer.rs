//! Where a message is received that may be large and mostly is not.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use super::{Received, receive_in};

/// Room for one message, in a mapping of its own (mmap(2)): it takes memory for what arrives only, and all goes back once it is dropped.
/// In malloc(3)'s heap, what lives longer would lie between rooms that come and go, and the heap stay as long as it was at most.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    room: usize,
    /// Of the last message.
    len: usize,
}

// SAFETY: memory that only this owns; it is written to by `&mut self` alone.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// With room for so many bytes, not zero. Fails with ENOMEM.
    pub fn new(room: usize) -> io::Result<Buffer> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours. The result is checked.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), room, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Buffer { start, room, len: 0 })
    }

    /// As [`receive`](super::receive) does into a vector.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<Received> {
        self.len = 0;
        // SAFETY: the mapping has `room` bytes that only this refers to.
        let room = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast::<MaybeUninit<u8>>(), self.room) };
        let (len, received) = receive_in(socket, room)?;
        self.len = len;
        Ok(received)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes of the mapping, which were all zeroes or something received from its start on.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made; no reference into it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.room) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seqpacket::{pair, send};
    use std::os::fd::AsFd as _;

    #[test]
    fn it_holds_the_last_message_as_far_as_there_is_room() {
        let (a, b) = pair().unwrap();
        let mut buffer = Buffer::new(8).unwrap();
        for (sent, held, cut) in
            [(&b"some"[..], &b"some"[..], false), (b"something", b"somethin", true), (b"", b"", false)]
        {
            send(a.as_fd(), sent, &[a.as_fd()], true).unwrap();
            let got = buffer.receive(b.as_fd()).unwrap();
            assert_eq!((&*buffer, got.bytes_cut, got.fds.len()), (held, cut, 1));
        }
        drop(a);
        buffer.receive(b.as_fd()).unwrap();
        assert!(buffer.is_empty());
    }
}
