//! Who traces: each server, and the core itself, reports to a pipe of his own for each of them (`hurdle_wire::tap`).
//!
//! The core stands between nobody: it makes the pipes, hands the writing ends to those who serve and the reading ends to who traces, and
//! forgets the latter once his channel ends.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hurdle_proto::core::{Source, tracer};
use hurdle_sys::{process, seqpacket};
use hurdle_wire::tap::Tap;
use hurdle_wire::{Channel, Fd, Refused};

use super::Env;
use crate::os;
use crate::right::{Holder, Right};

/// How many may trace at a time.
const TRACERS: usize = 8;
/// How long one who does not read may hold up the core.
const ROOM: Duration = Duration::from_millis(100);
/// Room in a pipe, where the user may have so much: some thousand events.
const PIPE: i32 = 1 << 20;
/// What the core serves itself, or calls of init.
const OWN: [&str; 4] = ["core", "door", "store", "init"];

/// All who trace.
#[derive(Default)]
pub(super) struct Tracing {
    /// Where the core reports what it serves.
    pub(super) tap: Tap,
    tracers: Vec<Tracer>,
    /// How many there have been.
    count: u64,
}

impl Tracing {
    pub(super) fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.tracers.iter().map(|tracer| &tracer.channel)
    }

    fn numbers(&self, of: impl Fn(&Tracer) -> bool) -> Vec<u64> {
        self.tracers.iter().filter(|tracer| of(tracer)).map(|tracer| tracer.number).collect()
    }
}

/// One who traces.
struct Tracer {
    number: u64,
    channel: Channel,
    client: tracer::Client,
    /// The interfaces that he asked for; none: all.
    interfaces: Vec<String>,
}

impl Tracer {
    /// Introduces a server to him. The end that it reports to.
    fn source(&self, server: &str, pid: i32, stack: bool) -> io::Result<OwnedFd> {
        let (reader, writer) = process::pipe()?;
        let _ = process::set_pipe_size(&writer, PIPE);
        let source = Source { server: server.to_string(), pid, stack, pipe: Fd::from(reader) };
        self.client.source(source).deadline(ROOM).wait().map_err(io::Error::other)?;
        Ok(writer)
    }

    /// Whether he wants what this server says.
    fn wants(&self, server: &str) -> bool {
        // The core and any server serve interfaces of several names.
        let own = |name: &String| OWN.contains(&name.as_str()) || name == "server";
        self.interfaces.is_empty() || self.interfaces.iter().any(|name| name == server || own(name))
    }
}

/// Has the holder of a right, who has just been started or serves already, report to him.
fn tap(tracer: &Tracer, right: &Right) -> io::Result<()> {
    let Holder::Lent(borrower) = &right.holder else { return Ok(()) };
    if !tracer.wants(&right.interface) {
        return Ok(());
    }
    let pipe = tracer.source(&right.interface, borrower.process.pid(), right.spec.layers().len() > 1)?;
    // One that is on its way out, or does not read, serves nobody who could be missed.
    let _ = borrower.boot.tap(tracer.number, Fd::from(pipe)).deadline(ROOM).wait();
    Ok(())
}

impl Env {
    pub(super) fn trace(&mut self, interfaces: Vec<String>) -> Result<OwnedFd, Refused> {
        let servers = self.rights.iter().map(|right| right.interface.as_str());
        let known: Vec<&str> = servers.chain(OWN).chain(["server"]).collect();
        if let Some(other) = interfaces.iter().find(|name| !known.contains(&name.as_str())) {
            let why = format!("no interface {other:?} here; there is {}", known.join(", "));
            return Err(Refused::new(os::ENOENT, why));
        }
        self.untrace_gone();
        if self.tracing.tracers.len() >= TRACERS {
            return Err(Refused::new(os::EBUSY, format!("{TRACERS} trace it already; end one of them")));
        }
        let (ours, theirs) = seqpacket::pair()?;
        let channel = Channel::from(ours);
        self.tracing.count += 1;
        let number = self.tracing.count;
        let client = tracer::Client::from(channel.clone());
        self.tracing.tracers.push(Tracer { number, channel, client, interfaces });
        self.begin(number).inspect_err(|_| self.untrace(number))?;
        Ok(theirs)
    }

    /// Has all who serve by now report to a new one.
    fn begin(&self, number: u64) -> io::Result<()> {
        let Some(tracer) = self.tracing.tracers.last() else { return Ok(()) };
        let core = tracer.source("core", i32::try_from(std::process::id()).unwrap_or(0), false)?;
        self.tracing.tap.add(number, core)?;
        self.rights.iter().try_for_each(|right| tap(tracer, right))
    }

    /// Has the holder of right `n`, who has just been started, report to all who trace.
    pub(super) fn tap_holder(&mut self, n: usize) {
        let deaf = self.tracing.numbers(|tracer| tap(tracer, &self.rights[n]).is_err());
        deaf.into_iter().for_each(|number| self.untrace(number));
    }

    /// Forgets those who have gone.
    pub(super) fn untrace_gone(&mut self) {
        let gone = self.tracing.numbers(|tracer| tracer.channel.hung_up());
        gone.into_iter().for_each(|number| self.untrace(number));
    }

    fn untrace(&mut self, number: u64) {
        self.tracing.tracers.retain(|tracer| tracer.number != number);
        self.tracing.tap.remove(number);
        for right in &self.rights {
            if let Holder::Lent(borrower) = &right.holder {
                // Else it finds out at its next event: the pipe has no reader.
                let _ = borrower.boot.untap(number).deadline(ROOM).wait();
            }
        }
    }
}
