//! The way out of an environment's traps, for a sub-environment that traps too: see `hurdle_proto::core::door`.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use hurdle_proto::core::door;
use hurdle_proto::init::Program;
use hurdle_sys::process::{self, Place, State};
use hurdle_wire::{Context, Refused};

use crate::env::{Ask, Mailbox};
use crate::inside::prepare;
use crate::os;
use crate::porter::{First, Slot, held};

/// One caller. What it starts dies with this, and with the thread that serves it.
pub(crate) struct Door {
    /// The caller.
    peer: OwnedFd,
    /// Where it stood when it came, until it asks: looked up while it still reads its command line.
    place: Mutex<Option<io::Result<Place>>>,
    /// How many seccomp filters the environment's programs are below.
    filters: u32,
    /// What it has started and was not reaped yet, so that the numbers are its own.
    started: Arc<Mutex<Started>>,
    /// The same of all callers.
    all: Arc<Mutex<HashSet<i32>>>,
    /// Who may start it, and where to ask for one.
    porter: Slot,
    mailbox: Mailbox,
}

/// Processes by their numbers.
type Started = HashMap<i32, OwnedFd>;

impl Door {
    pub(crate) fn new(
        peer: OwnedFd,
        filters: u32,
        all: Arc<Mutex<HashSet<i32>>>,
        porter: Slot,
        mailbox: Mailbox,
    ) -> Door {
        let place = Mutex::new(Some(peer.try_clone().and_then(|peer| Place::of(peer, filters))));
        Door { peer, place, filters, started: Arc::default(), all, porter, mailbox }
    }

    /// Where the caller stands; to go on as the same program, where it stood.
    fn place(&self, again: bool) -> Result<Place, Refused> {
        let known = held(&self.place).take().filter(|_| again);
        let place = known.unwrap_or_else(|| Place::of(self.peer.try_clone()?, self.filters));
        place.map_err(|e| Refused::new(e.raw_os_error().unwrap_or(os::EPERM), e.to_string()))
    }

    fn start(&self, program: Program, again: bool) -> Result<i32, Refused> {
        if !held(&self.started).is_empty() {
            return Err(Refused::new(os::EBUSY, "one program at a time"));
        }
        let place = self.place(again)?;
        let mut all = held(&self.all);
        let porter = held(&self.porter).clone().filter(|_| again);
        let copy = porter.as_ref().and_then(|porter| porter.run(&place, &program, &mut all));
        let (pid, pidfd, status) = match copy {
            // The copy has made it non-blocking.
            Some((pid, pidfd)) => (pid, pidfd, program.status.into_owned()?),
            None => {
                if again && porter.is_none() {
                    self.want_porter(&program);
                }
                let (launch, status) = prepare(program)?;
                let pid = launch.in_place_of(place).start()?;
                (pid, process::pidfd_or_end(pid)?, status)
            }
        };
        all.insert(pid);
        drop(all);
        held(&self.started).insert(pid, pidfd);
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
            let mut all = held(&all);
            all.remove(&pid);
            if let Some(porter) = porter {
                // For the next one.
                porter.stock(&mut all);
            }
        });
        waiter.inspect_err(|_| {
            // Nobody else reaps it.
            self.end();
            let _ = process::wait_end(pid);
            held(&self.started).remove(&pid);
            held(&self.all).remove(&pid);
        })?;
        Ok(pid)
    }

    /// From the next time on, for those who stand as this caller does.
    fn want_porter(&self, program: &Program) {
        if let (Ok(peer), Some(path)) = (self.peer.try_clone(), program.argv.first()) {
            let first = First { peer, filters: self.filters, path: path.clone(), env: program.env.clone() };
            self.mailbox.post(Ask::Porter(first));
        }
    }

    fn end(&self) {
        for pidfd in held(&self.started).values() {
            let _ = process::signal(pidfd, os::SIGKILL);
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.end();
    }
}

impl door::Server for Door {
    async fn spawn(&self, _: &Context, program: Program) -> Result<i32, Refused> {
        self.start(program, false)
    }

    async fn again(&self, _: &Context, program: Program) -> Result<i32, Refused> {
        self.start(program, true)
    }

    async fn signal(&self, _: &Context, number: i32, signal: i32) -> Result<(), Refused> {
        let started = held(&self.started);
        let pidfd = started.get(&number).ok_or_else(|| Refused::new(os::ESRCH, "it has ended"))?;
        Ok(process::signal(pidfd, signal)?)
    }
}
