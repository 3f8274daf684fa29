//! Typed arguments that are not plain data: open files, channels, and bulk bytes.
//!
//! Serde has no word for a file descriptor, so one is encoded as its index in the frame's list of fds. The list is
//! passed beside the serializer in a thread-local, which is filled only while one message is encoded or decoded on this
//! thread ([`collecting`], [`handing_out`]). Outside of that an [`Fd`] can be neither written nor read.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::Channel;
use crate::frame::FDS_MAX;

/// An open file as an argument or a result. Clones share the one file descriptor.
#[derive(Clone)]
pub struct Fd(Arc<OwnedFd>);

impl Fd {
    /// The file descriptor itself: without a system call if no clone is left, else a duplicate.
    ///
    /// # Errors
    /// EMFILE, if a duplicate is needed and there is no room for one.
    pub fn into_owned(self) -> io::Result<OwnedFd> {
        Arc::try_unwrap(self.0).or_else(|shared| shared.try_clone())
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Fd {
        Fd(Arc::new(fd))
    }
}

impl From<std::fs::File> for Fd {
    fn from(file: std::fs::File) -> Fd {
        OwnedFd::from(file).into()
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fd {}", self.0.as_raw_fd())
    }
}

thread_local! {
    /// How many fds the message that this thread encodes has named so far; `None` while it encodes none. Apart from
    /// the list itself, so that a message without fds costs two plain stores.
    static NAMED: Cell<Option<u16>> = const { Cell::new(None) };
    /// What they are.
    static OUTGOING: RefCell<Vec<Fd>> = const { RefCell::new(Vec::new()) };
    /// The fds of the message that this thread decodes, each taken once.
    static INCOMING: RefCell<Vec<Option<Fd>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `encode`; the fds that it serializes come out beside its result.
pub(crate) fn collecting<R>(encode: impl FnOnce() -> R) -> (R, Vec<Fd>) {
    NAMED.set(Some(0));
    let result = encode();
    let fds = match NAMED.take() {
        None | Some(0) => Vec::new(),
        Some(_) => OUTGOING.take(),
    };
    (result, fds)
}

/// Runs `decode`, which may take each of `fds` once. The second result counts those that nothing referred to; they are
/// closed.
pub(crate) fn handing_out<R>(fds: Vec<Fd>, decode: impl FnOnce() -> R) -> (R, usize) {
    if fds.is_empty() {
        return (decode(), 0);
    }
    INCOMING.set(fds.into_iter().map(Some).collect());
    let result = decode();
    (result, INCOMING.take().iter().flatten().count())
}

impl Serialize for Fd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Err(ser::Error::custom("an open file can't travel as text"));
        }
        let index = match NAMED.get() {
            None => return Err(ser::Error::custom("an open file can only travel in a message")),
            Some(named) if usize::from(named) >= FDS_MAX => {
                return Err(ser::Error::custom(format_args!("more than {FDS_MAX} fds in one message")));
            }
            Some(named) => named,
        };
        OUTGOING.with_borrow_mut(|fds| {
            // A message whose encoding failed or panicked may have left some.
            fds.truncate(usize::from(index));
            fds.push(self.clone());
        });
        NAMED.set(Some(index + 1));
        serializer.serialize_u16(index)
    }
}

impl<'de> Deserialize<'de> for Fd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fd, D::Error> {
        if deserializer.is_human_readable() {
            return Err(de::Error::custom("an open file can't travel as text"));
        }
        let index = u16::deserialize(deserializer)?;
        INCOMING.with_borrow_mut(|fds| match fds.get_mut(usize::from(index)).map(Option::take) {
            Some(Some(fd)) => Ok(fd),
            Some(None) => Err(de::Error::custom(format_args!("fd {index} is referred to twice"))),
            None => Err(de::Error::custom(format_args!("fd {index} of a message that has {}", fds.len()))),
        })
    }
}

/// A channel as an argument: an fd that is checked to be one when it arrives.
impl Serialize for Channel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.fd.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Channel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Channel, D::Error> {
        let fd = Fd::deserialize(deserializer)?;
        if !hurdle_sys::seqpacket::is_seqpacket(fd.as_fd()) {
            return Err(de::Error::custom("an fd that should be a channel and is not a SEQPACKET socket"));
        }
        Ok(Channel { fd })
    }
}

/// Bulk data as an argument or a result. A `Vec<u8>` would be encoded byte by byte; this is copied as a whole.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes(pub Vec<u8>);

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        Bytes(bytes)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Bytes {
        Bytes(bytes.to_vec())
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The length and the beginning: a trace line should stay a line.
impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 24;
        let start = &self.0[..self.0.len().min(SHOWN)];
        let more = if self.0.len() > SHOWN { "…" } else { "" };
        write!(f, "{} bytes \"{}{more}\"", self.0.len(), start.escape_ascii())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes: a string, or an array of numbers")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Bytes, E> {
                Ok(Bytes(text.as_bytes().to_vec()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                }
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}
