//! Calls without a generated client: for tools that must reach any interface, also one that they never heard of.

use std::time::Duration;

use crate::call::Call;
use crate::connection::{Connection, DEFAULT_DEADLINE};
use crate::error::{CallError, Refused};
use crate::interface::Description;

/// Asks what is served on a connection: one description per interface.
///
/// # Errors
/// See [`CallError`].
pub fn describe(connection: &Connection) -> Result<Vec<Description>, CallError> {
    describe_within(connection, DEFAULT_DEADLINE)
}

/// The same, of a peer that has to answer within `patience`.
///
/// # Errors
/// See [`CallError`].
pub fn describe_within(connection: &Connection, patience: Duration) -> Result<Vec<Description>, CallError> {
    let text = Call::text(connection, 0, 0, "[]", false).idempotent(true).deadline(patience).wait()?;
    serde_json::from_str(&text).map_err(|error| CallError::Misuse(format!("a description that can't be read: {error}")))
}

/// Calls `interface.call` with `arguments`, a JSON array in order or an object by name; an empty text is no arguments.
/// The result is JSON.
///
/// # Errors
/// ENOENT with what there is instead, if there is no such call; else see [`CallError`]. Calls that take or return open
/// files can't be made as text.
pub fn call_text(connection: &Connection, path: &str, arguments: &str) -> Result<String, CallError> {
    let interfaces = describe(connection)?;
    let (interface, call) = path.split_once('.').unwrap_or((path, ""));
    let unknown = |what: &str, known: Vec<&str>| {
        CallError::Refused(Refused::new(libc::ENOENT, format!("no {what}; there is: {}", known.join(", "))))
    };
    let names = || interfaces.iter().map(|interface| interface.name.as_str()).collect();
    let found = interfaces.iter().find(|known| known.name == interface);
    let Some(found) = found else { return Err(unknown(&format!("interface {interface:?}"), names())) };
    let names = || found.calls.iter().map(|call| call.name.as_str()).collect();
    let Some(call) = found.calls.iter().find(|known| known.name == call) else {
        return Err(unknown(&format!("call {call:?} in {interface}"), names()));
    };
    let arguments = if arguments.trim().is_empty() { "[]" } else { arguments };
    let made = Call::text(connection, found.number, call.number, arguments, call.oneway);
    made.idempotent(call.idempotent).wait()
}
