//! What can go wrong with a call, told apart: refused by the service, misuse of the protocol, or lost on the wire.

use std::io;

use serde::{Deserialize, Serialize};

/// A service's own no: an errno as the man page of the thing has it, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason} ({})", io::Error::from_raw_os_error(*.errno))]
pub struct Refused {
    /// The errno (errno(3)), positive.
    pub errno: i32,
    /// What was refused and why.
    pub reason: String,
}

impl Refused {
    /// A refusal with its reason.
    pub fn new(errno: i32, reason: impl Into<String>) -> Refused {
        Refused { errno, reason: reason.into() }
    }

    /// The same refusal, saying first what was being done.
    #[must_use]
    pub fn context(self, doing: impl std::fmt::Display) -> Refused {
        Refused { errno: self.errno, reason: format!("{doing}: {}", self.reason) }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        use io::ErrorKind as K;
        let errno = error.raw_os_error().unwrap_or(match error.kind() {
            K::NotFound => libc::ENOENT,
            K::PermissionDenied => libc::EACCES,
            K::AlreadyExists => libc::EEXIST,
            K::InvalidInput | K::InvalidData => libc::EINVAL,
            K::TimedOut => libc::ETIMEDOUT,
            K::Unsupported => libc::EOPNOTSUPP,
            _ => libc::EIO,
        });
        Refused::new(errno, error.to_string())
    }
}

/// So that a server which calls another one can pass on what happened with `?`.
impl From<CallError> for Refused {
    fn from(error: CallError) -> Refused {
        let errno = match &error {
            CallError::Refused(refused) => return refused.clone(),
            CallError::Misuse(_) => libc::EPROTO,
            CallError::Dead => libc::EIO,
            CallError::Timeout => libc::ETIMEDOUT,
            CallError::Cancelled => libc::ECANCELED,
        };
        Refused::new(errno, error.to_string())
    }
}

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CallError {
    /// The service said no. It understood the call, and the channel is fine.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// One side broke the protocol: unknown call, arguments that can't be read, a bad frame.
    #[error("protocol misuse: {0}")]
    Misuse(String),
    /// The server died before it answered; whether the call had an effect is unknown.
    #[error("the server died before it answered")]
    Dead,
    /// The deadline passed; whether the call had an effect is unknown.
    #[error("the call was not answered before its deadline")]
    Timeout,
    /// The call was given up before it was answered.
    #[error("the call was cancelled")]
    Cancelled,
}

impl CallError {
    /// The errno of a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            CallError::Refused(refused) => Some(refused.errno),
            _ => None,
        }
    }
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> io::Error {
        match &error {
            CallError::Timeout => io::Error::new(io::ErrorKind::TimedOut, error),
            CallError::Dead => io::Error::new(io::ErrorKind::BrokenPipe, error),
            CallError::Misuse(_) => io::Error::new(io::ErrorKind::InvalidData, error),
            CallError::Refused(_) | CallError::Cancelled => io::Error::other(error),
        }
    }
}

/// What an error frame says: as [`CallError`], and the one that a client never sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ErrorFrame {
    /// The call failed.
    Failed(CallError),
    /// An idempotent call that the server gave back unanswered, as it is being replaced: ask the successor.
    Moved,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_happened() {
        let refused = Refused::new(libc::EACCES, "no grant for 10.0.0.1").context("connect");
        assert_eq!(refused.to_string(), "connect: no grant for 10.0.0.1 (Permission denied (os error 13))");
        assert!(CallError::Misuse("x".into()).to_string().contains("misuse: x"));
    }

    #[test]
    fn a_refusal_passes_through_a_server_unchanged_and_other_errors_keep_their_meaning() {
        let refused = Refused::new(libc::ENOENT, "gone");
        assert_eq!(Refused::from(CallError::Refused(refused.clone())), refused);
        assert_eq!(Refused::from(CallError::Timeout).errno, libc::ETIMEDOUT);
        assert_eq!(Refused::from(io::Error::from_raw_os_error(libc::EXDEV)).errno, libc::EXDEV);
        assert_eq!(Refused::from(io::Error::other("x")).errno, libc::EIO);
    }
}
