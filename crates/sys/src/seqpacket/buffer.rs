//! Where a message is received that may be large and mostly is not.

use std::io;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::BorrowedFd;

use super::{Received, receive_in};
use crate::pages::Pages;

/// Room for one message, in a mapping of its own (mmap(2)): it takes memory for what arrives only, and all goes back once it is dropped.
/// In malloc(3)'s heap, what lives longer would lie between rooms that come and go, and the heap stay as long as it was at most.
#[derive(Debug)]
pub struct Buffer {
    /// Written to by `&mut self` alone.
    room: Pages,
    /// Of the last message.
    len: usize,
}

impl Buffer {
    /// With room for so many bytes, not zero. Fails with ENOMEM.
    pub fn new(room: usize) -> io::Result<Buffer> {
        Ok(Buffer { room: Pages::private(room)?, len: 0 })
    }

    /// As [`receive`](super::receive) does into a vector.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<Received> {
        self.len = 0;
        let start = self.room.start().as_ptr().cast::<MaybeUninit<u8>>();
        // SAFETY: so many bytes, which only this refers to.
        let room = unsafe { std::slice::from_raw_parts_mut(start, self.room.len()) };
        let (len, received) = receive_in(socket, room)?;
        self.len = len;
        Ok(received)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes of the mapping, which were all zeroes or something received from its start on.
        unsafe { std::slice::from_raw_parts(self.room.start().as_ptr(), self.len) }
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
