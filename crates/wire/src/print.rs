//! A line per call, derived from the interface: `process.signal(pid=1, signal=15) -> Ok(()) in 12 µs`.
//!
//! The lines are `tracing` events of target `hurdle::rpc` at level TRACE, and go to the [`Tap`] of whoever serves. When nobody
//! listens, a call pays for an atomic load each.

use std::fmt::{Debug, Display};
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::fd::Fd;
use crate::interface::{CallInfo, Interface};
use crate::service::Peer;
use crate::tap::{Event, Tap, Who, microseconds};

/// Which end prints.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Client,
    Server,
}

/// A call that will be printed when it ends.
pub(crate) struct Line {
    side: Side,
    interface: &'static str,
    call: &'static str,
    arguments: String,
    trace: u64,
    start: Instant,
    /// Where it is reported, and who calls.
    tap: Option<(Tap, Who)>,
}

impl Line {
    /// `None` when nobody listens. `peer`: who calls; none is the caller himself.
    pub(crate) fn start(
        side: Side,
        interface: &Interface,
        info: &CallInfo,
        trace: u64,
        (tap, peer): (Option<&Tap>, Option<Peer>),
        arguments: impl FnOnce() -> String,
    ) -> Option<Line> {
        let tapped = tap.filter(|tap| tap.on());
        if tapped.is_none() && !tracing::enabled!(target: "hurdle::rpc", tracing::Level::TRACE) {
            return None;
        }
        let tap = tapped.map(|tap| (tap.clone(), who(peer)));
        let (interface, call, arguments) = (interface.name, info.name, arguments());
        Some(Line { side, interface, call, arguments, trace, start: Instant::now(), tap })
    }

    /// Prints it.
    pub(crate) fn end<R: Debug, E: Debug + Display>(mut self, result: &Result<R, E>) {
        let side = match self.side {
            Side::Client => "client",
            Side::Server => "server",
        };
        let took = self.start.elapsed();
        tracing::trace!(
            target: "hurdle::rpc", trace = format_args!("{:016x}", self.trace), side,
            "{}.{}({}) -> {result:?} in {} µs", self.interface, self.call, self.arguments, took.as_micros()
        );
        if self.tap.is_some() {
            match result {
                Ok(value) => self.report(format!("{value:?}"), false),
                Err(error) => self.report(error.to_string(), true),
            }
        }
    }

    fn report(&mut self, result: String, failed: bool) {
        let Some((tap, who)) = self.tap.take() else { return };
        tap.report(Event {
            interface: self.interface.into(),
            call: self.call.into(),
            arguments: std::mem::take(&mut self.arguments),
            who,
            result,
            failed,
            took_us: Some(microseconds(self.start.elapsed())),
            ..Event::default()
        });
    }
}

impl Drop for Line {
    /// A call that came to no end: its caller gave it up, its time was over, or its server makes room for another.
    fn drop(&mut self) {
        self.report("given up".into(), true);
    }
}

fn who(peer: Option<Peer>) -> Who {
    peer.map_or_else(Who::myself, |peer| Who::process(peer.pid, peer.uid))
}

/// Reports a call that no handler gets: it asks what is served, or can't be understood.
pub(crate) fn aside(tap: &Tap, peer: Peer, interface: &str, call: &str, misuse: Option<&str>) {
    if tap.on() {
        tap.report(Event {
            interface: interface.into(),
            call: call.into(),
            who: who(Some(peer)),
            result: misuse.unwrap_or("()").into(),
            failed: misuse.is_some(),
            took_us: Some(0),
            ..Event::default()
        });
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
