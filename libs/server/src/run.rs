//! The life of a server: borrow, serve, return or leave.
//!
//! The main thread serves the bootstrap channel, a thread each the clients' channels. When the bootstrap channel ends the core
//! is gone, and so is the server. One that nobody has called for ten minutes leaves by itself: the next call starts another.

use std::io::Write as _;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hurdle_proto::server::{BOOTSTRAP, ClientChannel, Grant, server};
use hurdle_sys::process;
use hurdle_wire::tap::Tap;
use hurdle_wire::{Channel, Context, End, Fd, Peer, Refused, Router, ServeOptions, Stopper, serve};

use crate::Borrowed;
use crate::below::Lower;

/// How long nobody must have called before a server leaves. `HURDLE_IDLE_MS` overrides it.
const IDLE: Duration = Duration::from_secs(600);

/// Runs a server process: waits for the right, calls `start` for what serves it, and serves until the right is asked back, the
/// core ends, or nobody has called for long. `start` runs while the process has one thread.
pub fn run<S: Into<Router>>(start: impl FnOnce(&mut Borrowed) -> Result<S, Refused> + Send + 'static) -> ExitCode {
    let bootstrap = match process::inherited(BOOTSTRAP) {
        Ok(fd) if hurdle_sys::seqpacket::is_seqpacket(fd.as_fd()) => Channel::from(fd),
        _ => {
            let why =
                format!("this is a server of hurdle: a core starts it, with a bootstrap channel on fd {BOOTSTRAP}");
            let _ = writeln!(std::io::stderr(), "{why}");
            return ExitCode::from(125);
        }
    };
    let idle = std::env::var("HURDLE_IDLE_MS").ok().and_then(|ms| ms.parse().ok()).map_or(IDLE, Duration::from_millis);
    let begin: Start = Box::new(|borrowed| start(borrowed).map(Into::into));
    let tap = Tap::default();
    let holder = Arc::new(Holder {
        idle,
        stopper: Stopper::new(),
        tap: tap.clone(),
        state: Mutex::new(State::Waiting(begin, Vec::new())),
    });
    let router = Router::from(server::service(holder.clone()));
    // Who made the channel: the core, or the server above.
    let (pid, uid) = hurdle_sys::abstract_socket::peer(&bootstrap).unwrap_or((0, 0));
    let peer = Peer { pid: pid.cast_unsigned(), uid, ..Peer::default() };
    let mut options = ServeOptions { peer, tap, idle: Some(process::SETTLED.min(idle)), ..ServeOptions::default() };
    loop {
        match serve(&bootstrap, &router, &options) {
            Ok(End::Idle) if options.idle < Some(idle) => {
                process::release_code();
                options.idle = Some(idle);
            }
            Ok(End::Idle) if !holder.may_leave() => {}
            Ok(End::Idle) => {
                holder.finish();
                return ExitCode::SUCCESS;
            }
            // The core is gone, or speaks another language.
            _ => return ExitCode::FAILURE,
        }
    }
}

type Start = Box<dyn FnOnce(&mut Borrowed) -> Result<Router, Refused> + Send>;

struct Holder {
    idle: Duration,
    stopper: Stopper,
    tap: Tap,
    state: Mutex<State>,
}

enum State {
    /// Not yet lent; clients may be announced before the right itself arrives.
    Waiting(Start, Vec<ClientChannel>),
    Serving(Serving),
    Returned,
}

struct Serving {
    router: Router,
    clients: Vec<Client>,
    returning: Vec<Box<dyn FnOnce() + Send>>,
    stays: bool,
    /// The servers below, which report too.
    below: Vec<Lower>,
}

/// The thread of one client.
struct Client {
    thread: JoinHandle<()>,
    quiet: Arc<AtomicBool>,
}

impl Holder {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn below(&self) -> Vec<Lower> {
        match &*self.state() {
            State::Serving(serving) => serving.below.clone(),
            State::Waiting(..) | State::Returned => Vec::new(),
        }
    }

    /// Whether nobody has called for long. One who calls just now is answered before the process ends (see `finish`).
    fn may_leave(&self) -> bool {
        let quiet = |client: &Client| client.thread.is_finished() || client.quiet.load(Ordering::Relaxed);
        match &*self.state() {
            State::Serving(serving) => !serving.stays && serving.clients.iter().all(quiet),
            State::Waiting(..) => false,
            State::Returned => true,
        }
    }

    /// Answers what is in flight, and takes nothing more from the channels: the rest is the successor's.
    fn finish(&self) {
        let State::Serving(serving) = std::mem::replace(&mut *self.state(), State::Returned) else { return };
        self.stopper.stop();
        for client in serving.clients {
            let _ = client.thread.join();
        }
        serving.returning.into_iter().for_each(|act| act());
    }

    fn add(&self, serving: &mut Serving, client: ClientChannel) -> Result<(), Refused> {
        let channel = Channel::from(client.channel.into_owned()?);
        let peer = Peer { pid: u32::try_from(client.peer.pid).unwrap_or(0), uid: client.peer.uid, ..Peer::default() };
        let (stopper, idle, tap) = (self.stopper.clone(), Some(self.idle), self.tap.clone());
        let options = ServeOptions { peer, stopper, idle, tap, ..ServeOptions::default() };
        let (router, quiet) = (serving.router.clone(), Arc::new(AtomicBool::new(false)));
        let mark = quiet.clone();
        let thread = std::thread::Builder::new().spawn(move || {
            while let Ok(End::Idle) = serve(&channel, &router, &options) {
                mark.store(true, Ordering::Relaxed);
            }
        })?;
        serving.clients.retain(|client| !client.thread.is_finished());
        serving.clients.push(Client { thread, quiet });
        Ok(())
    }
}

impl server::Server for Holder {
    async fn borrow(&self, _: &Context, grant: Grant) -> Result<(), Refused> {
        let mut state = self.state();
        let (start, early) = match std::mem::replace(&mut *state, State::Returned) {
            State::Waiting(start, early) => (start, early),
            other => {
                *state = other;
                return Err(Refused::new(crate::EBUSY, "this server has borrowed a right already"));
            }
        };
        let mut borrowed = Borrowed::new(grant, self.tap.clone())?;
        let router = start(&mut borrowed)?;
        let Borrowed { returning, stays, below, .. } = borrowed;
        let mut serving = Serving { router, clients: Vec::new(), returning, stays, below };
        for client in borrowed.clients.into_iter().chain(early) {
            self.add(&mut serving, client)?;
        }
        *state = State::Serving(serving);
        Ok(())
    }

    async fn connect(&self, _: &Context, client: ClientChannel) -> Result<(), Refused> {
        match &mut *self.state() {
            State::Serving(serving) => self.add(serving, client),
            State::Waiting(_, early) => {
                early.push(client);
                Ok(())
            }
            // The core keeps the channel for the successor.
            State::Returned => Ok(()),
        }
    }

    async fn tap(&self, _: &Context, number: u64, pipe: Fd) -> Result<(), Refused> {
        self.tap.add(number, pipe.clone().into_owned()?)?;
        self.below().iter().for_each(|lower| lower.tap(number, pipe.clone()));
        Ok(())
    }

    async fn untap(&self, _: &Context, number: u64) -> Result<(), Refused> {
        self.tap.remove(number);
        self.below().iter().for_each(|lower| lower.untap(number));
        Ok(())
    }

    async fn give_back(&self, _: &Context) -> Result<(), Refused> {
        self.finish();
        Ok(())
    }
}
