//! The frame header: a fixed number of bytes in front of every message, little-endian, written out by hand.
//!
//! ```text
//!  0 version u8     1 kind u8        2 flags u16      4 interface u16   6 call u16
//!  8 request u64   16 deadline u64  24 trace u64     32 payload u32    36 fds u16   38 zero u16
//! ```
//! `deadline` is the time left in microseconds, 0 for none: relative, since two sides need not share a clock. `payload`
//! is the length of the arguments, which follow the header, or fill a sealed memory file (the frame's last fd) if
//! [`Flags::OUT_OF_LINE`] is set. `fds` counts all fds of the frame, so a lost one is noticed.

use std::time::Duration;

/// The version of this layout. A frame of any other ends the channel.
pub(crate) const VERSION: u8 = 1;

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 40;

/// The most argument bytes that travel inside the frame: 64 KiB of data and what describes it. A frame of that size
/// fits three times into the default socket buffer.
pub const INLINE_MAX: usize = 64 * 1024 + 1024;

/// The most argument bytes of one message, in line or not: 16 MiB of data and what describes it.
pub const PAYLOAD_MAX: usize = 16 * 1024 * 1024 + 1024;

/// The most fds that the arguments of one message refer to.
pub const FDS_MAX: usize = 64;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A request that wants a reply.
    Call = 1,
    /// The result of a call.
    Reply = 2,
    /// A call that failed; with request 0, the reason why the channel ends.
    Error = 3,
    /// Whoever called has lost interest: the server may stop.
    Cancel = 4,
    /// A request that wants no reply.
    OneWay = 5,
    /// News for the client, see [`EVENT_DEATH`].
    Event = 6,
}

/// The `call` of an event frame: the server died and a successor takes over the channel.
pub(crate) const EVENT_DEATH: u16 = 1;

/// How the payload is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// The payload is JSON: an array of arguments, or a result.
    pub const TEXT: Flags = Flags(1);
    /// The payload is in a sealed memory file, the frame's last fd.
    pub const OUT_OF_LINE: Flags = Flags(2);

    /// No flag.
    pub const fn none() -> Flags {
        Flags(0)
    }

    /// Whether all of `other` is set.
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    pub const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// Without `other`.
    pub const fn without(self, other: Flags) -> Flags {
        Flags(self.0 & !other.0)
    }
}

/// The header of a frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// How the payload is to be read.
    pub flags: Flags,
    /// Number of the interface; 0 is the wire's own, see [`describe`](crate::describe).
    pub interface: u16,
    /// Number of the call in its interface; 0 is `describe`.
    pub call: u16,
    /// Ties a reply to its call. Chosen by the client, never 0 in a call, not used twice while one is in flight.
    pub request: u64,
    /// Time left in microseconds, 0 for no deadline.
    pub deadline: u64,
    /// The same in all calls that one outer call causes.
    pub trace: u64,
    /// Length of the payload in bytes.
    pub payload: u32,
    /// How many fds travel with the frame.
    pub fds: u16,
}

impl Header {
    /// A header of this kind, the rest zero.
    pub const fn new(kind: Kind, interface: u16, call: u16, request: u64) -> Header {
        Header { kind, flags: Flags::none(), interface, call, request, deadline: 0, trace: 0, payload: 0, fds: 0 }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = VERSION;
        bytes[1] = self.kind as u8;
        bytes[2..4].copy_from_slice(&self.flags.0.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.interface.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.call.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.request.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.deadline.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.trace.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.payload.to_le_bytes());
        bytes[36..38].copy_from_slice(&self.fds.to_le_bytes());
        bytes
    }

    /// Reads and checks the header of a whole frame, whose inline payload is what follows it.
    ///
    /// # Errors
    /// What is wrong with the frame, for the peer to read.
    pub fn decode(frame: &[u8]) -> Result<Header, String> {
        let Some((bytes, rest)) = frame.split_first_chunk::<HEADER_LEN>() else {
            return Err(format!("a frame of {} bytes; a header alone has {HEADER_LEN}", frame.len()));
        };
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u64_at = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        if bytes[0] != VERSION {
            return Err(format!("a frame of version {}; this side speaks version {VERSION}", bytes[0]));
        }
        let kind = match bytes[1] {
            1 => Kind::Call,
            2 => Kind::Reply,
            3 => Kind::Error,
            4 => Kind::Cancel,
            5 => Kind::OneWay,
            6 => Kind::Event,
            other => return Err(format!("a frame of unknown kind {other}")),
        };
        let flags = Flags(u16_at(2));
        if flags.without(Flags::TEXT.with(Flags::OUT_OF_LINE)) != Flags::none() {
            return Err(format!("a frame with unknown flags {:#x}", flags.0));
        }
        if u16_at(38) != 0 {
            return Err("a frame whose reserved bytes are not zero".into());
        }
        let header = Header {
            kind,
            flags,
            interface: u16_at(4),
            call: u16_at(6),
            request: u64_at(8),
            deadline: u64_at(16),
            trace: u64_at(24),
            payload: u32::from_le_bytes([bytes[32], bytes[33], bytes[34], bytes[35]]),
            fds: u16_at(36),
        };
        header.check(rest.len())?;
        Ok(header)
    }

    /// The rules that tie the fields to each other and to the frame's size.
    fn check(&self, inline: usize) -> Result<(), String> {
        let payload = self.payload as usize;
        let out_of_line = self.flags.has(Flags::OUT_OF_LINE);
        if self.request == 0 && matches!(self.kind, Kind::Call | Kind::Reply | Kind::Cancel) {
            return Err(format!("a frame of kind {:?} without a request id", self.kind));
        }
        if !out_of_line && payload != inline {
            return Err(format!("a frame with {inline} bytes of payload that announces {payload}"));
        }
        if out_of_line && (inline != 0 || payload == 0 || self.fds == 0) {
            return Err("a frame that says its payload is out of line, and has one inside or no fd".into());
        }
        let most = if out_of_line { PAYLOAD_MAX } else { INLINE_MAX };
        if payload > most {
            return Err(format!("a payload of {payload} bytes; the limit is {most}"));
        }
        let fds = usize::from(self.fds) - usize::from(out_of_line);
        if fds > FDS_MAX {
            return Err(format!("a frame with {fds} fds; the limit is {FDS_MAX}"));
        }
        if self.kind == Kind::Cancel && (payload != 0 || self.fds != 0) {
            return Err("a cancel frame with arguments".into());
        }
        Ok(())
    }

    /// Sets the deadline. What is left is rounded up, so that a short one is not taken for none.
    pub fn set_deadline(&mut self, left: Duration) {
        self.deadline = u64::try_from(left.as_micros()).unwrap_or(u64::MAX).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Header {
        Header { payload: 3, deadline: 5, trace: 9, ..Header::new(Kind::Call, 7, 2, 77) }
    }

    fn bytes(header: Header, payload: &[u8]) -> Vec<u8> {
        [&header.encode()[..], payload].concat()
    }

    #[test]
    fn a_header_comes_back_as_it_was() {
        assert_eq!(Header::decode(&bytes(good(), b"abc")), Ok(good()));
    }

    #[test]
    fn each_bad_frame_is_refused_with_its_reason() {
        let changed = |at: usize, to: u8| {
            let mut frame = bytes(good(), b"abc");
            frame[at] = to;
            frame
        };
        let out_of_line = Flags::OUT_OF_LINE;
        let huge = Header { flags: out_of_line, payload: PAYLOAD_MAX as u32 + 1, fds: 1, ..good() };
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (vec![], "0 bytes"),
            (vec![1; HEADER_LEN - 1], "39 bytes"),
            (changed(0, 2), "version 2"),
            (changed(1, 0), "unknown kind 0"),
            (changed(1, 7), "unknown kind 7"),
            (changed(2, 8), "unknown flags 0x8"),
            (changed(38, 1), "reserved"),
            (changed(32, 4), "announces 4"),
            (changed(8, 0), "without a request id"),
            (bytes(good(), b"abcd"), "4 bytes of payload"),
            (bytes(Header { flags: out_of_line, fds: 1, ..good() }, b"abc"), "out of line"),
            (bytes(Header { flags: out_of_line, ..good() }, b""), "out of line"),
            (bytes(huge, b""), "limit is"),
            (bytes(Header { fds: FDS_MAX as u16 + 1, ..good() }, b"abc"), "65 fds"),
            (bytes(Header { kind: Kind::Cancel, ..good() }, b"abc"), "cancel"),
            (bytes(Header { payload: INLINE_MAX as u32 + 1, ..good() }, &[0; INLINE_MAX + 1]), "limit is"),
        ];
        for (frame, reason) in cases {
            let error = Header::decode(&frame).unwrap_err();
            assert!(error.contains(reason), "{error:?} should say {reason:?}");
        }
    }

    #[test]
    fn the_shortest_deadline_is_not_none() {
        let mut header = good();
        header.set_deadline(Duration::from_nanos(1));
        assert_eq!(header.deadline, 1);
        header.set_deadline(Duration::MAX);
        assert_eq!(header.deadline, u64::MAX);
    }
}
