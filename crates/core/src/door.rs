//! The way out of an environment's traps, for a sub-environment that traps too: see `hurdle_proto::core::door`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hurdle_proto::core::door;
use hurdle_proto::init::Program;
use hurdle_sys::process::{self, Place, State};
use hurdle_wire::{Context, Refused};

use crate::inside::prepare;
use crate::os;

/// One caller. What it starts dies with the thread that serves it.
pub(crate) struct Door {
    /// The caller.
    peer: OwnedFd,
    /// How many seccomp filters the environment's programs are below.
    filters: u32,
    /// What it has started and was not reaped yet, so that the numbers are its own.
    started: Arc<Mutex<Started>>,
    /// The same of all callers.
    all: Arc<Mutex<HashSet<i32>>>,
}

/// Processes by their numbers.
type Started = HashMap<i32, OwnedFd>;

fn held<T>(started: &Mutex<T>) -> MutexGuard<'_, T> {
    started.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Door {
    pub(crate) fn new(peer: OwnedFd, filters: u32, all: Arc<Mutex<HashSet<i32>>>) -> Door {
        Door { peer, filters, started: Arc::default(), all }
    }
}

impl door::Server for Door {
    async fn spawn(&self, _: &Context, program: Program) -> Result<i32, Refused> {
        if !held(&self.started).is_empty() {
            return Err(Refused::new(os::EBUSY, "one program at a time"));
        }
        let peer = self.peer.try_clone()?;
        let place = Place::of(peer, self.filters).map_err(|e| match e.raw_os_error() {
            Some(errno) => Refused::new(errno, e.to_string()),
            None => Refused::new(os::EPERM, e.to_string()),
        })?;
        let (launch, status) = prepare(program)?;
        let mut all = held(&self.all);
        let pid = launch.in_place_of(place).start()?;
        all.insert(pid);
        drop(all);
        let ended = || {
            // Nobody could end it later.
            let _ = process::kill(pid, os::SIGKILL);
            let _ = process::wait_end(pid);
            held(&self.all).remove(&pid);
        };
        held(&self.started).insert(pid, process::pidfd(pid).inspect_err(|_| ended())?);
        let (started, all) = (self.started.clone(), self.all.clone());
        let waiter = std::thread::Builder::new().spawn(move || {
            let mut status = File::from(status);
            while let Ok((_, now)) = process::wait(Some(pid)) {
                // One who asked and does not read holds up nobody.
                let _ = status.write_all(&now.to_bytes());
                if matches!(now.state(), State::Exited(_) | State::Killed(_)) {
                    break;
                }
            }
            held(&started).remove(&pid);
            held(&all).remove(&pid);
        });
        waiter.inspect_err(|_| ended())?;
        Ok(pid)
    }

    async fn signal(&self, _: &Context, number: i32, signal: i32) -> Result<(), Refused> {
        let started = held(&self.started);
        let pidfd = started.get(&number).ok_or_else(|| Refused::new(os::ESRCH, "it has ended"))?;
        Ok(process::signal(pidfd, signal)?)
    }
}
