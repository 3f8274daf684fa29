//! A line per call, derived from the interface: `process.signal(pid=1, signal=15) -> Ok(()) in 12 µs`.
//!
//! The lines are `tracing` events of target `hurdle::rpc` at level TRACE. When nobody listens, a call pays for one
//! atomic load.

use std::fmt::Debug;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::fd::Fd;
use crate::interface::{CallInfo, Interface};

/// Which end prints.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Client,
    Server,
}

/// A call that will be printed when it ends.
pub(crate) struct Line {
    side: Side,
    call: String,
    trace: u64,
    start: Instant,
}

impl Line {
    /// `None` when nobody listens.
    pub(crate) fn start(
        side: Side,
        interface: &Interface,
        info: &CallInfo,
        trace: u64,
        arguments: impl FnOnce() -> String,
    ) -> Option<Line> {
        if !tracing::enabled!(target: "hurdle::rpc", tracing::Level::TRACE) {
            return None;
        }
        let call = format!("{}.{}({})", interface.name, info.name, arguments());
        Some(Line { side, call, trace, start: Instant::now() })
    }

    /// Prints it.
    pub(crate) fn end(self, result: &impl Debug) {
        let side = match self.side {
            Side::Client => "client",
            Side::Server => "server",
        };
        let took = self.start.elapsed();
        tracing::trace!(
            target: "hurdle::rpc", trace = format_args!("{:016x}", self.trace), side,
            "{} -> {result:?} in {} µs", self.call, took.as_micros()
        );
    }
}

/// The `print_arguments` of every generated call.
#[doc(hidden)]
pub fn arguments<A: DeserializeOwned>(payload: &[u8], fds: Vec<Fd>, show: fn(&A) -> String) -> Result<String, String> {
    codec::decode_shared::<A>(payload, fds).map(|arguments| show(&arguments))
}

/// The `print_result` of every generated call.
#[doc(hidden)]
pub fn result<R: DeserializeOwned + Serialize + Debug>(payload: &[u8], fds: Vec<Fd>) -> Result<String, String> {
    codec::decode_shared::<R>(payload, fds).map(|result| format!("{result:?}"))
}

/// Adds `name=value` to a line.
#[doc(hidden)]
pub fn field(line: &mut String, name: &str, value: &impl Debug) {
    use std::fmt::Write;
    let comma = if line.is_empty() { "" } else { ", " };
    // Writing to a string does not fail.
    let _ = write!(line, "{comma}{name}={value:?}");
}
