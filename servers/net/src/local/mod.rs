//! `local`: stream sockets between the processes of one environment, carried by AF_UNIX.
//!
//! How: socket(2) is answered with an AF_UNIX stream socket of a network namespace that belongs to the server alone.
//! bind, listen, connect and accept act on that very socket, fetched from the program for the length of one call, under
//! abstract names that spell inet endpoints. So ports in use, backlogs, refusals, the peer's address and the release
//! at the last close are the kernel's own work; they survive this server, and data never meets it.
//!
//! Principles:
//! 1. *No state but what can be rebuilt.* The truth is in names and marks of the sockets themselves; [`State`] holds an
//!    index of bound ports, a few sockets made ahead, and calls that wait. A call that waits is also in the ledger. What little
//!    a socket can't say (rare options) is noted in a file that outlives the server.
//! 2. *No copy of a program's socket is kept*, or the last close would not be the last.
//! 3. *No call of the server blocks.* What would wait is parked, and answered by the call that ends its wait.
//! 4. *What is not ours goes on natively*, as fast as may be: the environment's own network namespace is harmless.
//!
//! Threads: one worker receives and answers, with a second one where calls come from two CPUs at once; a clock, started by the first call that waits, ends waits that nobody ends;
//! a third, started by the first burst of calls, keeps a second CPU awake during bursts. Under `share` after another network, a relay
//! lets clients in from outside, from a process of its own like the worker's.
//! Locks: that of [`State`], taken for the length of one call, but for the moment in which a socket is handed over; after it that of the relay.

mod accept;
mod bind;
mod carry;
mod clock;
mod connect;
mod host;
mod memory;
mod names;
mod options;
mod pool;
mod relay;
mod reset;
mod second;
mod state;
mod worker;

use crate::{Kind, Kinds};
use hurdle_proto::net::{Outcome, Trapped};
use hurdle_server::{Sockets, confine_calls, drop_capabilities};
use hurdle_sys::process::Rest;
use hurdle_sys::seccomp::{Height, Ledger, Listener, interrupt, interrupt_process, interruptible};
use hurdle_wire::tap::Tap;
use state::State;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub use state::SocketInfo;

/// What the worker and the clock share.
#[derive(Debug)]
struct Shared {
    kinds: Kinds,
    listener: Listener,
    ledger: Ledger,
    state: Mutex<State>,
    clock: clock::Clock,
    stop: std::sync::atomic::AtomicBool,
    /// The worker's process while it runs apart.
    apart: Arc<AtomicI32>,
    traps: AtomicU64,
    connections: AtomicU64,
    /// Where clients come in from outside.
    relay: Option<relay::Relay>,
    tap: Tap,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits for a thread that was told to end. A signal that comes just before it waits is lost, so `wake` is called until it worked.
    /// `rest` is the caller's.
    fn join(&self, thread: JoinHandle<()>, rest: &Rest, wake: impl Fn(&JoinHandle<()>)) {
        while !thread.is_finished() {
            // Under the lock: no handler is in the midst of a call that a signal would end.
            let state = self.lock();
            wake(&thread);
            drop(state);
            rest.begin();
            std::thread::sleep(Duration::from_micros(200));
            rest.end(());
        }
        let _ = thread.join();
    }
}

/// How much the server did, since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Trapped calls answered.
    pub traps: u64,
    /// Connections made.
    pub connections: u64,
    /// Calls that wait now.
    pub waiting: u64,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    relay: Option<JoinHandle<()>>,
    passer: Option<Passer>,
}

/// What outlives a server.
#[derive(Debug)]
pub struct Kept {
    /// The user namespace that the sockets live in.
    pub user: OwnedFd,
    /// The network namespace.
    pub network: OwnedFd,
    /// What sockets can't say by themselves.
    pub memory: OwnedFd,
}

/// The listener of trapped calls, and who receives from it.
#[derive(Debug)]
pub enum Calls {
    /// This server.
    Own(OwnedFd),
    /// The server above, which passes calls down.
    Above(OwnedFd),
}

/// Where the server above passes calls to.
#[derive(Clone, Debug)]
pub struct Passer(std::sync::mpsc::Sender<Option<worker::Passed>>);

impl Passer {
    /// Has a call answered. What became of it comes through the channel; if nothing does, the server was stopped.
    pub fn pass(&self, call: Trapped) -> tokio::sync::oneshot::Receiver<Outcome> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let _ = self.0.send(Some(worker::Passed { call, answer }));
        answered
    }
}

impl Server {
    /// Starts serving trapped calls, its own or those that the server above passes down ([`Server::passer`]). `kinds` says what new
    /// sockets are, and what networks earlier servers gave: sockets of those are carried on. `ledger` is what [`Ledger::create`] made, or what an earlier server used:
    /// the calls in it are answered first. `network` is the environment's network namespace: who is in another one is not
    /// served. `kept` is what an earlier server left of its sockets ([`Server::kept`]). To be called
    /// while the process has one thread, by a process that may trace the environment's. From then on that is behind walls
    /// ([`confine_calls`]). Calls are reported to `tap`.
    ///
    /// # Errors
    /// EPERM or ENOSPC where no private network namespace can be made; EMFILE, ENOMEM.
    pub fn start(
        kinds: Kinds,
        calls: Calls,
        ledger: OwnedFd,
        network: OwnedFd,
        kept: Option<Kept>,
        tap: Tap,
    ) -> io::Result<Server> {
        hurdle_sys::target::raise_fd_limit()?;
        interruptible()?;
        let turn = Ledger::turn(&ledger)?;
        // A successor is one under load, or one whose predecessor did not live.
        let calm = kept.is_none();
        let state = State::new(kinds, network.try_into()?, kept)?;
        let (trap, height, source, passer) = match calls {
            Calls::Own(fd) => (fd, Height::ALONE, worker::Source::Kernel, None),
            Calls::Above(fd) => {
                let (passer, passed) = std::sync::mpsc::channel();
                (fd, Height { below: 0, top: false }, worker::Source::Above(passed), Some(Passer(passer)))
            }
        };
        let listener = Listener::from(trap);
        // Without it (before Linux 6.6) everything works, slower.
        let _ = listener.set_sync_wake_up();
        let shared = Arc::new(Shared {
            kinds,
            listener,
            ledger: Ledger::map(&ledger, height)?,
            state: Mutex::new(state),
            clock: clock::Clock::default(),
            stop: false.into(),
            apart: Arc::default(),
            traps: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            relay: (kinds.now == Kind::Share && !kinds.is_one()).then(relay::Relay::new).transpose()?,
            tap,
        });
        // All that stands outside of it is there. What it makes and binds is for programs, which have no capability outside of their
        // environment.
        drop_capabilities()?;
        confine_calls(if kinds.had(Kind::Share) { Sockets::Any } else { Sockets::Local })?;
        let worker = worker::spawn(Arc::clone(&shared), source, turn, calm)?;
        let relay = shared.relay.is_some().then(|| relay::spawn(&shared)).transpose()?;
        Ok(Server { shared, worker: Some(worker), relay, passer })
    }

    /// What a successor needs to carry the sockets on.
    ///
    /// # Errors
    /// EMFILE.
    pub fn kept(&self) -> io::Result<Kept> {
        let state = self.shared.lock();
        let (user, network) = state.pool.namespaces();
        let memory = state.memory.file()?;
        Ok(Kept { user: user.try_clone_to_owned()?, network: network.try_clone_to_owned()?, memory })
    }

    /// Where calls are passed to that another server receives.
    pub fn passer(&self) -> Option<Passer> {
        self.passer.clone()
    }

    /// The sockets that have a name, as the kernel lists them.
    ///
    /// # Errors
    /// Those of a netlink request.
    pub fn sockets(&self) -> io::Result<Vec<SocketInfo>> {
        self.shared.lock().sockets()
    }

    /// What it did so far.
    pub fn counters(&self) -> Counters {
        Counters {
            traps: self.shared.traps.load(Ordering::Relaxed),
            connections: self.shared.connections.load(Ordering::Relaxed),
            waiting: self.shared.lock().waiting() as u64,
        }
    }

    /// Waits until the environment has no process left that could trap, or the server was stopped.
    pub fn wait(&mut self) {
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }

    /// Stops between two calls. Calls that wait stay in the ledger, for whoever is lent the listener next.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.clock.stop(&self.shared);
        if let Some(relay) = self.relay.take() {
            self.shared.relay.iter().for_each(relay::Relay::ring);
            let _ = relay.join();
        }
        if let Some(Passer(passer)) = self.passer.take() {
            let _ = passer.send(None);
        }
        if let Some(worker) = self.worker.take() {
            self.shared.join(worker, &Rest::NONE, |worker| match self.shared.apart.load(Ordering::SeqCst) {
                0 => interrupt(worker),
                pid => interrupt_process(pid),
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.halt();
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.shared.listener.as_fd()
    }
}
