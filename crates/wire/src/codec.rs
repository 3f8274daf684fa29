//! Arguments to bytes and back: the one module that names bincode, and the text form beside it.
//!
//! What is decoded came from outside. bincode's limit bounds what a length prefix can make it allocate: it is set to
//! a few times the largest payload of the way by which this one came, so a small frame never costs a large allocation. Elements of
//! size zero cost nothing on the wire, so a sequence of them has no bound: interfaces must not declare one.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};
use hurdle_sys::memfd;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::channel::Message;
use crate::error::Refused;
use crate::fd::{self, Fd};
use crate::frame::{HEADER_LEN, INLINE_MAX, PAYLOAD_MAX};

/// bincode's limit counts a number at its full width when it is read, also one that takes a single byte of the payload.
const WIDEST: usize = 8;

/// Little-endian, small numbers short, at most `N` bytes.
type Config<const N: usize> = Configuration<LittleEndian, Varint, Limit<N>>;

const fn config<const N: usize>() -> Config<N> {
    bincode::config::standard().with_limit::<N>()
}

/// Why a value can't be sent.
#[derive(Debug)]
pub(crate) enum Unsendable {
    /// The value itself: too large, too many fds, or its own `Serialize` fails.
    Value(String),
    /// There is no memory file to be had for a large one.
    Memory(io::Error),
}

impl Unsendable {
    /// As a refusal of whatever could not be sent.
    pub(crate) fn refused(self, what: impl std::fmt::Display) -> Refused {
        match self {
            Unsendable::Value(reason) => Refused::new(libc::EMSGSIZE, format!("{what} can't be sent: {reason}")),
            Unsendable::Memory(error) => {
                Refused::from(error).context(format_args!("no memory file for {what}, which is large"))
            }
        }
    }
}

/// Slices from this size on go to a memory file as they are.
const LARGE: usize = 16 * 1024;

/// A message as it is being encoded: in a buffer with room for the header, and from a frame's size on in a memory file,
/// so that bulk data is copied once.
struct Outgoing {
    buffer: Vec<u8>,
    file: Option<File>,
    /// Payload bytes so far.
    payload: usize,
    failed: Option<io::Error>,
}

impl Outgoing {
    fn spill(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => File::from(memfd::create(c"hurdle-message")?),
        };
        file.write_all(&self.buffer[HEADER_LEN..])?;
        self.buffer.truncate(HEADER_LEN);
        if bytes.len() >= LARGE {
            file.write_all(bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        self.file = Some(file);
        Ok(())
    }

    fn finish(mut self, fds: Vec<Fd>) -> io::Result<Message> {
        if self.file.is_some() {
            self.spill(&[])?;
        }
        let Some(file) = self.file else { return Ok(Message::inline(self.buffer, fds)) };
        let file = OwnedFd::from(file);
        memfd::seal(&file)?;
        Ok(Message::out_of_line(file, self.payload, fds))
    }
}

impl Writer for &mut Outgoing {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.payload += bytes.len();
        if self.payload > PAYLOAD_MAX {
            return Err(EncodeError::Other("it is larger than 16 MiB"));
        }
        if self.buffer.len() + bytes.len() <= HEADER_LEN + INLINE_MAX {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.spill(bytes).map_err(|error| {
            self.failed = Some(error);
            EncodeError::Other("no memory file")
        })
    }
}

/// Encodes `value`, and collects its fds.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Message, Unsendable> {
    let mut buffer = Vec::with_capacity(HEADER_LEN + 88);
    buffer.resize(HEADER_LEN, 0);
    let mut outgoing = Outgoing { buffer, file: None, payload: 0, failed: None };
    let (done, fds) =
        fd::collecting(|| bincode::serde::encode_into_writer(value, &mut outgoing, config::<PAYLOAD_MAX>()));
    match (outgoing.failed.take(), done) {
        (Some(error), _) => Err(Unsendable::Memory(error)),
        (None, Err(error)) => Err(Unsendable::Value(plain(&error))),
        (None, Ok(())) => outgoing.finish(fds).map_err(Unsendable::Memory),
    }
}

/// What went wrong, without the names that bincode gives it.
fn plain(error: &EncodeError) -> String {
    match error {
        EncodeError::Other(reason) => (*reason).to_string(),
        EncodeError::OtherString(reason) => reason.clone(),
        other => other.to_string(),
    }
}

/// Writes a value as JSON.
pub(crate) fn encode_text<T: Serialize + ?Sized>(value: &T) -> Result<Message, Unsendable> {
    let mut bytes = vec![0; HEADER_LEN];
    serde_json::to_writer(&mut bytes, value).map_err(|error| Unsendable::Value(error.to_string()))?;
    message_of(bytes)
}

/// A message of a text that is JSON already.
pub(crate) fn text_message(text: &str) -> Result<Message, Unsendable> {
    message_of([&[0; HEADER_LEN], text.as_bytes()].concat())
}

/// From a buffer with room for the header.
fn message_of(bytes: Vec<u8>) -> Result<Message, Unsendable> {
    match bytes.len() - HEADER_LEN {
        0..=INLINE_MAX => Ok(Message::inline(bytes, Vec::new())),
        payload @ 0..=PAYLOAD_MAX => {
            let file = memfd::sealed(c"hurdle-message", &bytes[HEADER_LEN..]).map_err(Unsendable::Memory)?;
            Ok(Message::out_of_line(file, payload, Vec::new()))
        }
        _ => Err(Unsendable::Value("it is larger than 16 MiB".into())),
    }
}

/// Decodes one value that fills `bytes` and refers to each of `fds` once.
///
/// # Errors
/// What is wrong with them, for the peer to read. All fds are closed then.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], fds: Vec<OwnedFd>) -> Result<T, String> {
    decode_shared(bytes, fds.into_iter().map(Fd::from).collect())
}

/// As [`decode`], for whoever keeps the fds too.
pub(crate) fn decode_shared<T: DeserializeOwned>(bytes: &[u8], fds: Vec<Fd>) -> Result<T, String> {
    let (result, unused) = fd::handing_out(fds, || {
        if bytes.len() <= INLINE_MAX {
            bincode::serde::borrow_decode_from_slice(bytes, config::<{ INLINE_MAX * WIDEST }>())
        } else {
            bincode::serde::borrow_decode_from_slice(bytes, config::<{ PAYLOAD_MAX * WIDEST }>())
        }
    });
    let (value, used) = result.map_err(|error: DecodeError| match error {
        DecodeError::OtherString(reason) => reason,
        other => format!("{other:?}"),
    })?;
    if used != bytes.len() {
        return Err(format!("{} bytes are left over", bytes.len() - used));
    }
    if unused != 0 {
        return Err(format!("{unused} fds that nothing refers to"));
    }
    Ok(value)
}

/// Reads arguments from JSON: an array in order, or an object by `names`.
pub(crate) fn decode_text<T: DeserializeOwned>(text: &[u8], names: &[&str]) -> Result<T, String> {
    let bad = |error: serde_json::Error| error.to_string();
    let value: serde_json::Value = serde_json::from_slice(text).map_err(bad)?;
    let list = match value {
        serde_json::Value::Array(list) => list,
        serde_json::Value::Object(mut fields) => {
            let list = names.iter().map(|&name| fields.remove(name).unwrap_or_default()).collect();
            if let Some(unknown) = fields.keys().next() {
                return Err(format!("no argument is called {unknown:?}; they are {names:?}"));
            }
            list
        }
        _ => return Err(format!("expected an array or an object with the arguments {names:?}")),
    };
    if list.len() != names.len() {
        return Err(format!("it takes {} arguments ({}), not {}", names.len(), names.join(", "), list.len()));
    }
    // Serde takes a tuple from an array, but the empty tuple from null.
    let value = if list.is_empty() { serde_json::Value::Null } else { serde_json::Value::Array(list) };
    serde_json::from_value(value).map_err(bad)
}
