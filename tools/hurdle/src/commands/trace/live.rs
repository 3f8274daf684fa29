//! An environment's reports as they come: the core introduces each server with the pipe that it reports to, and a thread reads each.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hurdle_proto::core::{Source, tracer};
use hurdle_wire::tap::Event;
use hurdle_wire::{Channel, Context, Refused, ServeOptions, serve};

use super::Line;
use crate::commands::look;
use crate::failure::Failure;

/// How long the last words of servers are waited for, once their core has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How many wait to be printed. More are lost, and counted, where they come from.
const WAITING: usize = 1 << 14;
/// No honest server writes a longer line.
const LONGEST: u64 = 8 << 10;
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(100);

/// A trace that is under way.
pub(super) struct Live {
    lines: Receiver<Line>,
    ended: Arc<AtomicBool>,
}

impl Live {
    pub(super) fn start(env: &str, interfaces: &[String]) -> Result<Live, Failure> {
        // The core is let go of at once: it waits for its callers when it ends.
        let fd = look::find(env)?.trace(interfaces.to_vec()).wait().map_err(|e| Failure::call(env, &e))?;
        let channel_to_core = Channel::from(fd.into_owned()?);
        let (sender, lines) = sync_channel(WAITING);
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        std::thread::Builder::new().spawn(move || {
            let tracer = tracer::service(Introduced(Mutex::new(sender)));
            let _ = serve(&channel_to_core, &tracer.into(), &ServeOptions::default());
            end.store(true, Ordering::SeqCst);
        })?;
        Ok(Live { lines, ended })
    }

    /// The next line; none once the environment has ended. `pause` is called before it waits.
    pub(super) fn next(&mut self, pause: impl FnOnce() -> std::io::Result<()>) -> Option<Line> {
        match self.lines.try_recv() {
            Ok(line) => return Some(line),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => pause().ok()?,
        }
        loop {
            // A server that outlives its core, against the rules, holds up nobody.
            let over = self.ended.load(Ordering::SeqCst);
            match self.lines.recv_timeout(if over { LAST_WORDS } else { LOOK }) {
                Ok(line) => return Some(line),
                Err(RecvTimeoutError::Timeout) if !over => {}
                Err(_) => return None,
            }
        }
    }
}

impl Live {
    /// After the last line. An error: the environment goes on.
    pub(super) fn finish(self, env: &str) -> Result<(), Failure> {
        // A core that is killed lets go of one thing after the other.
        let end = Instant::now() + LAST_WORDS;
        while hurdle_core::names()?.iter().any(|name| name == env) {
            if Instant::now() > end {
                let why = "its core ended this trace, which did not read for long, or for which it had no files left; begin another";
                return Err(Failure::new(env, why));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

struct Introduced(Mutex<SyncSender<Line>>);

impl tracer::Server for Introduced {
    async fn source(&self, _: &Context, source: Source) -> Result<(), Refused> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pipe = File::from(source.pipe.into_owned()?);
        let (server, pid, stack) = (source.server, source.pid.cast_unsigned(), source.stack);
        std::thread::Builder::new().stack_size(128 << 10).spawn(move || {
            let mut pipe = BufReader::with_capacity(64 << 10, pipe);
            loop {
                let mut text = Vec::new();
                if !(&mut pipe).take(LONGEST).read_until(b'\n', &mut text).is_ok_and(|got| got > 0) {
                    return;
                }
                let Ok(event) = serde_json::from_slice::<Event>(&text) else { continue };
                // In a stack each server says for itself which one it is; else the core knows.
                let event = if stack { event } else { Event { pid, ..event } };
                if lines.send(Line { server: server.clone(), stack, event }).is_err() {
                    return;
                }
            }
        })?;
        Ok(())
    }
}
