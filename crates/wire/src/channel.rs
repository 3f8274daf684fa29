//! One end of a channel, and whole frames going through it.
//!
//! [`Message`] is a frame to be sent: one buffer with room for the header in front, so that it leaves in one piece and
//! without another copy. [`Inbox`] is the buffer frames are received into; an [`Arrival`] is a frame that has passed all
//! checks which need no knowledge of its interface. Most users want [`Connection`](crate::Connection) or
//! [`serve`](crate::serve); these are public for whoever stands in the middle of a channel and passes frames on.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hurdle_sys::memfd::Mapping;
use hurdle_sys::seqpacket::{self, Buffer};

use crate::fd::Fd;
use crate::frame::{EVENT_DEATH, Flags, HEADER_LEN, Header, INLINE_MAX, Kind};

/// One end of a channel: an AF_UNIX SEQPACKET socket. A typed argument, as [`Fd`] is.
#[derive(Clone, Debug)]
pub struct Channel {
    pub(crate) fd: Fd,
}

impl Channel {
    /// A new channel: two ends, of equal kind. By convention the first is the client's.
    ///
    /// # Errors
    /// EMFILE or ENFILE at the limit of open files.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (client, server) = seqpacket::pair()?;
        Ok((client.into(), server.into()))
    }

    /// Another file descriptor for this end. Clones of a `Channel` share one, and keep it open just as well.
    ///
    /// # Errors
    /// EMFILE at the limit of open files.
    pub fn try_clone(&self) -> io::Result<Channel> {
        Ok(self.fd.as_fd().try_clone_to_owned()?.into())
    }

    /// The file descriptor: without a system call if this is the only clone, else a duplicate.
    ///
    /// # Errors
    /// EMFILE, if a duplicate is needed and there is no room for one.
    pub fn into_owned(self) -> io::Result<OwnedFd> {
        self.fd.into_owned()
    }

    /// Ends the channel for all holders of either end.
    pub fn shutdown(&self) {
        // It fails only where there is nothing to end any more.
        let _ = seqpacket::shutdown(self.as_fd());
    }

    /// Whether nobody holds the other end any more.
    pub fn hung_up(&self) -> bool {
        hurdle_sys::process::ended(self.as_fd())
    }

    /// Passes a frame on as it came. It waits while the queue is full.
    ///
    /// # Errors
    /// EPIPE or ECONNRESET when the other end is closed.
    pub fn forward(&self, arrival: Arrival<'_>) -> io::Result<()> {
        let Arrival { header, payload, fds, file } = arrival;
        let fds = fds.into_iter().map(Fd::from).collect();
        let mut message = match file {
            Some(file) => Message::out_of_line(file, payload.len(), fds),
            None => Message::inline([&[0; HEADER_LEN], &payload[..]].concat(), fds),
        };
        message.address(header);
        message.send(self, true)
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Channel {
        Channel { fd: fd.into() }
    }
}

impl From<Channel> for Fd {
    fn from(channel: Channel) -> Fd {
        channel.fd
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Tells the client at the other end of `server_end` that its server died and a successor takes over: calls that were
/// sent and not answered are sent again if they are idempotent, and fail with `Dead` if not. To be called by whoever
/// keeps a duplicate of the server's end, after the old server is gone and before the new one receives.
///
/// # Errors
/// EAGAIN when the client has not read its replies and its queue is full: try again later. EPIPE when it is gone.
pub fn announce_death(server_end: &Channel) -> io::Result<()> {
    let header = Header::new(Kind::Event, 0, EVENT_DEATH, 0);
    seqpacket::send(server_end.as_fd(), &header.encode(), &[], false)
}

/// A payload ready to be sent, any number of times.
#[derive(Debug)]
pub(crate) struct Message {
    /// Room for a header, then the payload if it is in line.
    bytes: Vec<u8>,
    /// What the arguments refer to, then the payload if it is out of line.
    fds: Vec<Fd>,
    payload: usize,
    flags: Flags,
}

impl Message {
    /// From a buffer with room for the header.
    pub(crate) fn inline(bytes: Vec<u8>, fds: Vec<Fd>) -> Message {
        let payload = bytes.len() - HEADER_LEN;
        Message { bytes, fds, payload, flags: Flags::none() }
    }

    /// With a payload in a sealed memory file.
    pub(crate) fn out_of_line(file: OwnedFd, payload: usize, mut fds: Vec<Fd>) -> Message {
        fds.push(file.into());
        Message { bytes: vec![0; HEADER_LEN], fds, payload, flags: Flags::OUT_OF_LINE }
    }

    /// How many fds it has.
    pub(crate) fn fds(&self) -> usize {
        self.fds.len()
    }

    /// Writes the header, whose sizes are filled in here.
    pub(crate) fn address(&mut self, mut header: Header) {
        header.flags = header.flags.without(Flags::OUT_OF_LINE).with(self.flags);
        header.payload = self.payload as u32;
        header.fds = self.fds.len() as u16;
        self.bytes[..HEADER_LEN].copy_from_slice(&header.encode());
    }

    /// Sends it as addressed. With `wait` false, fails with EAGAIN if the queue is full.
    pub(crate) fn send(&self, channel: &Channel, wait: bool) -> io::Result<()> {
        loop {
            let sent = if self.fds.is_empty() {
                seqpacket::send(channel.as_fd(), &self.bytes, &[], wait)
            } else {
                let fds: Vec<_> = self.fds.iter().map(Fd::as_fd).collect();
                seqpacket::send(channel.as_fd(), &self.bytes, &fds, wait)
            };
            match sent {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

/// A buffer to receive frames into.
#[derive(Debug, Default)]
pub struct Inbox {
    /// From the first frame on.
    buffer: Option<Buffer>,
}

/// Why no frame was received.
#[derive(Debug)]
pub enum ReceiveError {
    /// Nobody holds the other end, or it was shut down.
    Closed,
    /// A signal.
    Interrupted,
    /// The socket's receive timeout passed.
    TimedOut,
    /// The frame breaks the rules, and the channel should end with this reason.
    Misuse(String),
    /// The frame is good, but this process had no room for its fds.
    NoRoomForFds(Header),
    /// Something else failed.
    Io(io::Error),
}

impl Inbox {
    /// An inbox without memory yet.
    pub fn new() -> Inbox {
        Inbox::default()
    }

    /// Receives the next frame and checks it.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    pub fn receive(&mut self, channel: &Channel) -> Result<Arrival<'_>, ReceiveError> {
        let buffer = match &mut self.buffer {
            Some(buffer) => buffer,
            none => none.insert(Buffer::new(HEADER_LEN + INLINE_MAX + 1).map_err(ReceiveError::Io)?),
        };
        let received = match buffer.receive(channel.as_fd()) {
            Ok(received) => received,
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::Interrupted => ReceiveError::Interrupted,
                    io::ErrorKind::WouldBlock => ReceiveError::TimedOut,
                    io::ErrorKind::ConnectionReset => ReceiveError::Closed,
                    _ => ReceiveError::Io(error),
                });
            }
        };
        if buffer.is_empty() && channel.hung_up() {
            return Err(ReceiveError::Closed);
        }
        if received.bytes_cut {
            return Err(ReceiveError::Misuse(format!("a frame of more than {} bytes", HEADER_LEN + INLINE_MAX)));
        }
        let header = Header::decode(buffer).map_err(ReceiveError::Misuse)?;
        if received.fds_cut {
            return Err(ReceiveError::NoRoomForFds(header));
        }
        Arrival::check(header, &buffer[HEADER_LEN..], received.fds)
    }
}

/// Where the bytes of a payload are.
#[derive(Debug)]
pub enum Payload<'a> {
    /// In the inbox.
    Inline(&'a [u8]),
    /// In a sealed memory file.
    Mapped(Mapping),
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Payload::Inline(bytes) => bytes,
            Payload::Mapped(mapping) => mapping,
        }
    }
}

/// A frame that was received whole: sizes, fds and seals are as the header says. The payload is not decoded yet.
#[derive(Debug)]
pub struct Arrival<'a> {
    header: Header,
    payload: Payload<'a>,
    fds: Vec<OwnedFd>,
    /// The memory file under a mapped payload.
    file: Option<OwnedFd>,
}

impl<'a> Arrival<'a> {
    fn check(header: Header, inline: &'a [u8], mut fds: Vec<OwnedFd>) -> Result<Arrival<'a>, ReceiveError> {
        if fds.len() != usize::from(header.fds) {
            let reason = format!("a frame with {} fds that announces {}", fds.len(), header.fds);
            return Err(ReceiveError::Misuse(reason));
        }
        let mut payload = Payload::Inline(inline);
        let mut memory = None;
        if header.flags.has(Flags::OUT_OF_LINE) {
            // The header was checked to announce at least one fd.
            let Some(file) = fds.pop() else { return Err(ReceiveError::Misuse("no memory file".into())) };
            match Mapping::new(file.as_fd(), header.payload as usize) {
                Ok(mapping) => (payload, memory) = (Payload::Mapped(mapping), Some(file)),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(ReceiveError::Misuse(format!("a memory file that can't be used: {error}")));
                }
                Err(error) => return Err(ReceiveError::Io(error)),
            }
        }
        Ok(Arrival { header, payload, fds, file: memory })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The payload, undecoded.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The fds that the arguments refer to.
    pub fn fds(&self) -> &[OwnedFd] {
        &self.fds
    }

    /// All of it.
    pub fn into_parts(self) -> (Header, Payload<'a>, Vec<OwnedFd>) {
        (self.header, self.payload, self.fds)
    }
}
