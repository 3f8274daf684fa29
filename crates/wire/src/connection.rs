//! The client's end of a channel, shared by any number of callers.
//!
//! There is no thread behind a connection. Of the threads that wait for a reply one is the *leader*: it receives, hands
//! the replies of others to them, and passes the lead on when it has its own. So a lone caller receives its own reply
//! and pays for no hand-over. Callers that await instead of blocking are represented by one thread, started when first
//! needed (see `reader`).
//!
//! Locks: `state` protects everything but the receive buffer; it is held for moments only, never while receiving.
//! `inbox` belongs to the leader. Order: the leader holds `inbox` when it takes `state`; nobody who holds `state` takes
//! `inbox`. Whoever sets the receive timeout holds `state`, so that an interrupt is not lost (see `hurdle_sys::seqpacket`).

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use hurdle_sys::seqpacket;

use crate::channel::{Channel, Inbox, Message};
use crate::error::{CallError, Refused};
use crate::frame::Header;
use crate::slots::{Decode, Role, State, TICK, Turn, Waiter, left};
use crate::tap::Tap;

/// How long a call may take unless it says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// The client's end of a channel. Clones share it; any thread or task may call at any time.
#[derive(Clone)]
pub struct Connection(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    /// For the thread that receives for tasks.
    pub(crate) this: Weak<Shared>,
    pub(crate) channel: Channel,
    pub(crate) state: Mutex<State>,
    pub(crate) inbox: Mutex<Inbox>,
    pub(crate) tap: Option<Tap>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.0.channel.fd).finish()
    }
}

impl Connection {
    /// A connection over the client's end of a channel.
    pub fn new(channel: Channel) -> Connection {
        Connection::start(channel, None)
    }

    /// The same; calls are reported from this end, since the other one reports none.
    pub fn tapped(channel: Channel, tap: Tap) -> Connection {
        Connection::start(channel, Some(tap))
    }

    fn start(channel: Channel, tap: Option<Tap>) -> Connection {
        // Both settings may be left over from an earlier holder. If they can't be changed, receiving says why.
        let _ = hurdle_sys::process::set_nonblocking(channel.as_fd(), false);
        let _ = seqpacket::set_receive_timeout(channel.as_fd(), Some(TICK));
        Connection(Arc::new_cyclic(|this| Shared {
            this: this.clone(),
            channel,
            state: Mutex::new(State::new()),
            inbox: Mutex::default(),
            tap,
        }))
    }

    /// The channel below.
    pub fn channel(&self) -> &Channel {
        &self.0.channel
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).reader.wake();
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A caller that panicked left no invariant broken: each change is made in one go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a free slot, takes it, and gives the message its request id. Receives for others meanwhile if nobody
    /// does.
    pub(crate) fn admit(
        self: &Arc<Self>,
        mut message: Message,
        mut header: Header,
        idempotent: bool,
        clock: Clock,
    ) -> Result<(u64, Addressed), CallError> {
        let mut now = clock.now;
        loop {
            let mut state = self.lock();
            if let Some(ended) = &state.ended {
                return Err(ended.clone());
            }
            if state.has_room() {
                let request = state.take_slot(clock.deadline);
                header.request = request;
                message.address(header);
                if !idempotent {
                    return Ok((request, Addressed::Once(message)));
                }
                let message = Arc::new(message);
                state.keep(request, &message);
                return Ok((request, Addressed::Again(message)));
            }
            let Some(left) = left(clock.deadline, now) else {
                state.hand_over(self);
                return Err(CallError::Timeout);
            };
            if state.leader.is_none() {
                self.lead_for_others(state, Turn { now, deadline: clock.deadline, role: Role::ForRoom });
                self.lock().hand_over(self);
            } else {
                state.wait_for_room(Waiter::Thread(std::thread::current()), clock.deadline);
                drop(state);
                std::thread::park_timeout(left);
            }
            now = Instant::now();
        }
    }

    /// Sends, and while the queue is full receives, so that a server that is stuck in replying gets on.
    pub(crate) fn send(self: &Arc<Self>, message: &Message, deadline: Option<Instant>) -> Result<(), CallError> {
        loop {
            match message.send(&self.channel, false) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.send_failed(error)),
            }
            let now = Instant::now();
            let Some(left) = left(deadline, now) else { return Err(CallError::Timeout) };
            let nobody_receives = self.lock().leader.is_none();
            let ready = seqpacket::wait_ready(self.channel.as_fd(), nobody_receives, Some(left.min(TICK)));
            if ready.is_ok_and(|ready| ready.readable) {
                let mut state = self.lock();
                if state.leader.is_none() {
                    self.lead_for_others(state, Turn { now, deadline, role: Role::Caller });
                    state = self.lock();
                }
                state.hand_over(self);
            }
        }
    }

    /// What a failed send means for its call.
    pub(crate) fn send_failed(self: &Arc<Self>, error: io::Error) -> CallError {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => {
                self.drain();
                self.lock().ended.clone().unwrap_or(CallError::Dead)
            }
            _ => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                CallError::Refused(Refused::new(errno, format!("the request can't be sent: {error}")))
            }
        }
    }

    /// Receives what is left on a channel that was shut down: the server may have said why.
    fn drain(self: &Arc<Self>) {
        loop {
            let state = self.lock();
            // A server may also have closed one direction only, and then nothing comes.
            if state.ended.is_some() || state.leader.is_some() || !self.channel.hung_up() {
                return;
            }
            self.lead_for_others(state, Turn { now: Instant::now(), deadline: None, role: Role::Caller });
        }
    }

    /// Waits for the answer of a call that was sent, and decodes it.
    pub(crate) fn wait<T>(self: &Arc<Self>, request: u64, clock: Clock, decode: Decode<T>) -> Result<T, CallError> {
        let Clock { mut now, deadline } = clock;
        loop {
            let mut state = self.lock();
            if let Some(outcome) = state.take_outcome(request) {
                state.hand_over(self);
                drop(state);
                return outcome.and_then(|reply| reply.decode(decode));
            }
            let Some(left) = left(deadline, now) else {
                state.give_up(request, self);
                return Err(CallError::Timeout);
            };
            if state.leader.is_some() {
                state.wait_in(request, Waiter::Thread(std::thread::current()));
                drop(state);
                std::thread::park_timeout(left);
            } else {
                let turn = Turn { now, deadline, role: Role::Caller };
                if let Some(mine) = self.lead(state, Some((request, decode)), turn) {
                    return mine;
                }
            }
            now = Instant::now();
        }
    }
}

/// When a call ends, and the time as its caller has last seen it.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) now: Instant,
    pub(crate) deadline: Option<Instant>,
}

/// A request with its id, kept for another time or not.
pub(crate) enum Addressed {
    Once(Message),
    Again(Arc<Message>),
}

impl Addressed {
    pub(crate) fn message(&self) -> &Message {
        match self {
            Addressed::Once(message) => message,
            Addressed::Again(message) => message,
        }
    }
}
