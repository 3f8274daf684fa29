//! Where calls are reported while somebody traces them.
//!
//! Traps go from the kernel straight to the server that was lent their listener, and messages from client to server. Nobody could
//! stand between and listen, so whoever serves reports: a [`Tap`] is what he asks at each call, and the pipes of those
//! who trace. Each event is a line of JSON ([`Event`]), so that a server and a tracer of different ages understand each other.
//!
//! - While nobody traces, a call pays for one relaxed load ([`Tap::on`]).
//! - Nobody waits for a tracer: what finds no room in a pipe is lost, and the next event says how much was. A pipe whose reader has
//!   gone is forgotten.
//! - Who reports takes no lock that somebody else could hold for long, or die with.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::Fd;

/// A line is written whole or not at all up to this length (PIPE_BUF in pipe(7)).
const LONGEST: usize = 4096;
/// What arguments and results are cut to if a line is too long. The second is short enough whatever JSON makes of it.
const CUTS: [usize; 2] = [1200, 200];
/// How long names may be.
const NAME: usize = 60;

/// One call, as whoever served it saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// When it was answered, or began to wait: microseconds since 1970.
    pub at_us: u64,
    /// The process that reports it, by its own word.
    pub pid: u32,
    /// Which of the servers of a stack that is, by its own word.
    pub layer: String,
    /// A message, or a system call.
    pub kind: Kind,
    /// The interface, also that whose server answers a trapped call.
    pub interface: String,
    /// The call's name.
    pub call: String,
    /// Its arguments.
    pub arguments: String,
    /// Who called.
    pub who: Who,
    /// Its result, or what went wrong.
    pub result: String,
    /// Whether something went wrong.
    pub failed: bool,
    /// How long it took, in microseconds; none, if it waits still, or the tap was not on when it began.
    pub took_us: Option<u64>,
    /// So many events of this reporter before it are lost.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A message.
    #[default]
    Call,
    /// A trapped system call.
    Trap,
}

/// Who called, as the kernel tells whoever serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Who {
    /// Its process, as the server sees it; 0: unknown.
    pub pid: u32,
    /// Its process, as the environment sees it; 0: it is outside.
    pub inside: u32,
    /// Its thread, as the server sees it; 0: unknown.
    pub thread: u32,
    /// Its effective user, as the server sees it.
    pub uid: u32,
    /// Its name (`comm` in proc(5)).
    pub name: String,
}

impl Who {
    /// A process outside.
    pub fn process(pid: u32, uid: u32) -> Who {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Who { pid, uid, name: name.trim_end_matches('\n').into(), ..Who::default() }
    }

    /// The caller itself.
    pub(crate) fn myself() -> Who {
        Who::process(std::process::id(), hurdle_sys::process::effective_ids().0)
    }
}

/// Whether calls are reported, and where to. Clones are the same tap.
#[derive(Clone, Debug)]
pub struct Tap(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    on: AtomicBool,
    pid: u32,
    layer: OnceLock<String>,
    pipes: RwLock<Vec<Pipe>>,
    /// Events that no pipe got, since the list of pipes was being changed.
    missed: AtomicU64,
}

/// The pipe of one who traces.
#[derive(Debug)]
struct Pipe {
    number: u64,
    to: File,
    lost: AtomicU64,
    /// Its reader has gone.
    over: AtomicBool,
}

impl Default for Tap {
    fn default() -> Tap {
        Tap(Arc::new(Shared {
            on: AtomicBool::new(false),
            pid: std::process::id(),
            layer: OnceLock::new(),
            pipes: RwLock::default(),
            missed: AtomicU64::new(0),
        }))
    }
}

impl Tap {
    /// Whether anybody traces.
    #[inline]
    pub fn on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    /// What this process calls itself among the servers of a stack. The first word counts.
    pub fn call_it(&self, layer: &str) {
        let _ = self.0.layer.set(cut(layer, NAME).into());
    }

    /// Reports to this pipe too, in the place of one with the same number.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn add(&self, number: u64, pipe: OwnedFd) -> io::Result<()> {
        hurdle_sys::process::set_nonblocking(&pipe, true)?;
        let pipe = Pipe { number, to: pipe.into(), lost: AtomicU64::new(0), over: AtomicBool::new(false) };
        self.change(|pipes| {
            pipes.retain(|old| old.number != number);
            pipes.push(pipe);
        });
        Ok(())
    }

    /// Reports to the pipe of this number no more.
    pub fn remove(&self, number: u64) {
        self.change(|pipes| pipes.retain(|pipe| pipe.number != number));
    }

    /// Duplicates of the pipes, by their numbers, for who passes them on.
    ///
    /// # Errors
    /// EMFILE.
    pub fn pipes(&self) -> io::Result<Vec<(u64, Fd)>> {
        let pipes = self.0.pipes.read().unwrap_or_else(PoisonError::into_inner);
        pipes.iter().map(|pipe| Ok((pipe.number, pipe.to.as_fd().try_clone_to_owned()?.into()))).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Pipe>)) {
        let mut pipes = self.0.pipes.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut pipes);
        self.0.on.store(!pipes.is_empty(), Ordering::Relaxed);
    }

    /// The pipes, unless they are being changed just now. Without waiting for good: who changes them may have been killed, and
    /// a worker that shares his memory lives on (`hurdle_sys::process::run_apart`).
    fn read(&self) -> Option<RwLockReadGuard<'_, Vec<Pipe>>> {
        for _ in 0..100 {
            match self.0.pipes.try_read() {
                Ok(pipes) => return Some(pipes),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
        None
    }

    /// Reports a call that was answered just now. Who reports, when, and what was lost is filled in.
    pub fn report(&self, mut event: Event) {
        let shared = &self.0;
        event.pid = shared.pid;
        event.layer = shared.layer.get().cloned().unwrap_or_default();
        event.at_us = SystemTime::UNIX_EPOCH.elapsed().map_or(0, microseconds);
        let Some(pipes) = self.read() else {
            shared.missed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let missed = shared.missed.swap(0, Ordering::Relaxed);
        let mut over = false;
        for pipe in pipes.iter() {
            event.lost = pipe.lost.swap(0, Ordering::Relaxed) + missed;
            match (&pipe.to).write(&line(&mut event)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    pipe.lost.fetch_add(event.lost + 1, Ordering::Relaxed);
                }
                Err(_) => {
                    pipe.over.store(true, Ordering::Relaxed);
                    over = true;
                }
            }
        }
        drop(pipes);
        if over && let Ok(mut pipes) = shared.pipes.try_write() {
            pipes.retain(|pipe| !pipe.over.load(Ordering::Relaxed));
            shared.on.store(!pipes.is_empty(), Ordering::Relaxed);
        }
    }
}

/// A duration in microseconds.
pub fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The event as a line that a pipe takes whole.
fn line(event: &mut Event) -> Vec<u8> {
    for name in [&mut event.interface, &mut event.call, &mut event.who.name] {
        shorten(name, NAME);
    }
    for length in CUTS {
        // Nothing in it can fail to be written.
        let mut line = serde_json::to_vec(event).unwrap_or_default();
        line.push(b'\n');
        if line.len() <= LONGEST {
            return line;
        }
        shorten(&mut event.arguments, length);
        shorten(&mut event.result, length);
    }
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line
}

fn shorten(text: &mut String, length: usize) {
    let kept = cut(text, length).len();
    if kept < text.len() {
        text.truncate(kept);
        text.push('…');
    }
}

/// At most so many bytes of a text.
fn cut(text: &str, length: usize) -> &str {
    let end = (0..=length.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Read as _};

    fn tapped() -> (Tap, BufReader<File>) {
        let (reader, writer) = hurdle_sys::process::pipe().unwrap();
        let tap = Tap::default();
        assert!(!tap.on());
        tap.add(7, writer).unwrap();
        assert!(tap.on());
        (tap, BufReader::new(reader.into()))
    }

    fn next(reader: &mut BufReader<File>) -> Event {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn named(call: &str) -> Event {
        Event { call: call.into(), ..Event::default() }
    }

    #[test]
    fn what_is_reported_is_read() {
        let (tap, mut reader) = tapped();
        tap.call_it("local");
        tap.report(named("bind"));
        let read = next(&mut reader);
        assert_eq!((read.call.as_str(), read.layer.as_str(), read.pid), ("bind", "local", std::process::id()));
        assert!(read.at_us > 1_700_000_000_000_000);
        tap.remove(7);
        assert!(!tap.on());
        tap.report(named("nobody hears it"));
        assert_eq!(reader.read_line(&mut String::new()).unwrap(), 0, "its end");
    }

    #[test]
    fn who_does_not_read_holds_up_nobody_and_learns_what_he_lost() {
        let (tap, mut reader) = tapped();
        let begun = std::time::Instant::now();
        (0..10_000).for_each(|_| tap.report(named(&"x".repeat(NAME))));
        assert!(begun.elapsed() < Duration::from_secs(20));
        hurdle_sys::process::set_nonblocking(reader.get_ref(), true).unwrap();
        let heard = reader.by_ref().lines().map_while(Result::ok).count() as u64;
        assert!((10..10_000).contains(&heard), "{heard}");
        tap.report(named("last"));
        let last = next(&mut reader);
        assert_eq!((last.call.as_str(), last.lost), ("last", 10_000 - heard));
        tap.report(named("one more"));
        assert_eq!(next(&mut reader).lost, 0, "it was told");
    }

    #[test]
    fn a_reader_that_has_gone_turns_it_off() {
        let (tap, reader) = tapped();
        let (other, writer) = hurdle_sys::process::pipe().unwrap();
        tap.add(8, writer).unwrap();
        drop(reader);
        tap.report(named("one"));
        assert_eq!(tap.pipes().unwrap().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [8]);
        assert!(tap.on());
        assert_eq!(next(&mut BufReader::new(other.into())).call, "one");
        tap.report(named("two"));
        assert!(!tap.on());
    }

    #[test]
    fn a_line_fits_a_pipe_whatever_is_in_it() {
        for piece in ["\u{1}", "é", "\"", "x"] {
            let long = || piece.repeat(100_000);
            let who = Who { name: long(), ..Who::default() };
            let (arguments, result, call, interface) = (long(), long(), long(), long());
            let mut event = Event { arguments, result, call, interface, who, layer: "x".repeat(NAME), ..named("") };
            event.call = long();
            let line = line(&mut event);
            assert!(line.len() <= LONGEST, "{piece:?}: {}", line.len());
            let read: Event = serde_json::from_slice(&line).unwrap();
            assert!(read.arguments.ends_with('…') && read.arguments.len() > 100);
        }
    }

    #[test]
    fn an_event_of_another_age_is_understood() {
        let read: Event = serde_json::from_str(r#"{"call":"bind","news":[1]}"#).unwrap();
        assert_eq!(read, named("bind"));
    }
}
