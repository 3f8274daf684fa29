//! Small words of Linux that several modules of the core share.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt;

pub(crate) use hurdle_sys::process::numbers::*;

/// Says something to the user, if he still listens: a closed pipe is no reason to end.
pub fn complain(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "hurdle: {text}");
}

/// Bytes from a message as a path or an argument.
pub(crate) fn string(bytes: Vec<u8>) -> OsString {
    OsString::from_vec(bytes)
}

/// An error, and what to do where there is something.
pub(crate) fn with_cure(error: &io::Error) -> String {
    match error.raw_os_error() {
        // The second: so many are on their way between the user's processes (unix(7)).
        Some(EMFILE | ETOOMANYREFS) => format!("{error}; raise `ulimit -n`, with `-H` if it is the hard limit"),
        Some(EAGAIN) => format!("{error}; raise `ulimit -u`"),
        _ => error.to_string(),
    }
}

/// Environment variables of a message.
pub(crate) fn pairs(env: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(OsString, OsString)> {
    env.into_iter().map(|(key, value)| (string(key), string(value))).collect()
}

/// The exit code and the words for a program that could not be run, as shells have them: 127 not found, 126 found but not
/// to be run.
pub fn exec_failure(error: &io::Error) -> (u8, String) {
    match error.kind() {
        io::ErrorKind::NotFound => {
            (127, "no such program in the environment (is it in PATH, and below its root?)".into())
        }
        io::ErrorKind::PermissionDenied => {
            (126, "it is there but may not be executed (check its mode: chmod +x)".into())
        }
        io::ErrorKind::IsADirectory => (126, "it is a directory".into()),
        _ => (126, format!("it can't be executed: {error}")),
    }
}
