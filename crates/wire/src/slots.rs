//! The calls of a connection that are under way: who waits for what, and who receives.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::Waker;
use std::thread::Thread;
use std::time::{Duration, Instant};

use hurdle_sys::seqpacket::{self, Interruptible};

use crate::channel::Message;
use crate::connection::Shared;
use crate::error::CallError;
use crate::frame::{Flags, Header, Kind};
use crate::reader::{self, Reader};

/// The most calls of one connection that wait for an answer; the next caller waits for room.
pub(crate) const CALLS_MAX: usize = 64;

/// The longest that a leader sleeps in one go: a bound on what a lost interrupt could cost.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// How often an idempotent call is sent again. A request that kills its server must not go on for ever.
const RETRIES: u8 = 3;

/// How a reply becomes a result.
pub(crate) type Decode<T> = fn(Raw<'_>) -> Result<T, CallError>;

/// A reply, where it lies.
pub(crate) struct Raw<'a> {
    pub(crate) flags: Flags,
    pub(crate) payload: &'a [u8],
    pub(crate) fds: Vec<OwnedFd>,
}

/// A reply that was received by somebody else.
pub(crate) struct Reply {
    pub(crate) flags: Flags,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Reply {
    pub(crate) fn decode<T>(self, decode: Decode<T>) -> Result<T, CallError> {
        decode(Raw { flags: self.flags, payload: &self.payload, fds: self.fds })
    }
}

/// Whom to wake.
pub(crate) enum Waiter {
    Nobody,
    Thread(Thread),
    Task(Waker),
}

impl Waiter {
    pub(crate) fn wake(&mut self) {
        match std::mem::replace(self, Waiter::Nobody) {
            Waiter::Nobody => {}
            Waiter::Thread(thread) => thread.unpark(),
            Waiter::Task(waker) => waker.wake(),
        }
    }
}

/// A call that waits for its answer, or an answer that waits for its caller.
pub(crate) struct Slot {
    request: u64,
    waiter: Waiter,
    deadline: Option<Instant>,
    outcome: Option<Result<Reply, CallError>>,
    /// The request, while it may have to be sent again: of idempotent calls only.
    again: Option<Arc<Message>>,
    /// How many servers died while they had it.
    deaths: u8,
}

impl ForRoom {
    fn is_task(&self) -> bool {
        matches!(self.waiter, Waiter::Task(_))
    }
}

impl Slot {
    fn end(&mut self, outcome: Result<Reply, CallError>) {
        self.outcome = Some(outcome);
        self.again = None;
        self.waiter.wake();
    }

    /// For the successor of the server that had it; death if it may not be repeated.
    fn send_again(&mut self, shared: &Arc<Shared>) {
        match &self.again {
            // If the channel has ended, whoever receives notices; if no thread can be started, the deadline ends it.
            Some(message) => drop(send_later(message, self.deadline, self.request, shared)),
            None => self.end(Err(CallError::Dead)),
        }
    }

    fn awaited_by_task(&self) -> bool {
        self.outcome.is_none() && matches!(self.waiter, Waiter::Task(_))
    }
}

/// A caller who waits for a free slot.
struct ForRoom {
    waiter: Waiter,
    deadline: Option<Instant>,
}

/// What makes a leader get up before a frame comes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It waits for an answer, and stays.
    Caller,
    /// It waits for a free slot.
    ForRoom,
    /// It is the thread that leads for tasks.
    Reader,
}

/// How long the next leader may sleep at most, and who it is.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    /// The time, as the caller has last seen it: reading the clock once more is not free.
    pub(crate) now: Instant,
    pub(crate) deadline: Option<Instant>,
    pub(crate) role: Role,
}

/// Who receives at the moment.
pub(crate) struct Leader {
    thread: Option<Interruptible>,
    wakes_at: Instant,
    role: Role,
}

pub(crate) struct State {
    slots: Vec<Slot>,
    last_request: u64,
    pub(crate) leader: Option<Leader>,
    /// The socket's receive timeout as it was last set.
    timeout: Duration,
    /// Why no further call can succeed.
    pub(crate) ended: Option<CallError>,
    /// Those who wait for a free slot.
    room: Vec<ForRoom>,
    pub(crate) reader: Reader,
}

/// Time left, `None` when it is up. Without a deadline it is never up.
pub(crate) fn left(deadline: Option<Instant>, now: Instant) -> Option<Duration> {
    match deadline {
        None => Some(TICK),
        Some(deadline) => deadline.checked_duration_since(now).filter(|left| !left.is_zero()),
    }
}

impl State {
    pub(crate) fn new() -> State {
        State {
            slots: Vec::new(),
            last_request: 0,
            leader: None,
            timeout: TICK,
            ended: None,
            room: Vec::new(),
            reader: Reader::default(),
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        // Slots with an outcome cost the server nothing any more.
        self.slots.len() < CALLS_MAX || self.slots.iter().filter(|slot| slot.outcome.is_none()).count() < CALLS_MAX
    }

    /// A new slot, and the request id that goes with it.
    pub(crate) fn take_slot(&mut self, deadline: Option<Instant>) -> u64 {
        self.last_request += 1;
        let request = self.last_request;
        self.slots.push(Slot { request, waiter: Waiter::Nobody, deadline, outcome: None, again: None, deaths: 0 });
        request
    }

    /// Keeps the message of an idempotent call, which may have to be sent again.
    pub(crate) fn keep(&mut self, request: u64, message: &Arc<Message>) {
        if let Some(index) = self.index(request) {
            self.slots[index].again = Some(Arc::clone(message));
        }
    }

    fn index(&self, request: u64) -> Option<usize> {
        self.slots.iter().position(|slot| slot.request == request)
    }

    fn remove(&mut self, index: usize) -> Slot {
        let slot = self.slots.swap_remove(index);
        self.wake_room();
        slot
    }

    /// The answer, if it is there. A call that can get none any more gets the reason.
    pub(crate) fn take_outcome(&mut self, request: u64) -> Option<Result<Reply, CallError>> {
        let Some(index) = self.index(request) else { return Some(Err(CallError::Cancelled)) };
        if self.slots[index].outcome.is_some() {
            return self.remove(index).outcome;
        }
        self.ended.clone().map(|ended| {
            self.remove(index);
            Err(ended)
        })
    }

    /// Registers whom to wake when there is news for this call.
    pub(crate) fn wait_in(&mut self, request: u64, waiter: Waiter) {
        if let Some(index) = self.index(request) {
            self.slots[index].waiter = waiter;
        }
    }

    /// Forgets a call and tells the server, if it is still unanswered.
    pub(crate) fn give_up(&mut self, request: u64, shared: &Shared) {
        if let Some(index) = self.index(request) {
            let slot = self.remove(index);
            if slot.outcome.is_none() {
                send_cancel(request, shared);
            }
            match self.leader.as_ref().map(|leader| leader.role) {
                Some(Role::ForRoom) => self.interrupt_leader(shared),
                Some(Role::Reader) if !self.has_tasks() => self.interrupt_leader(shared),
                _ => {}
            }
        }
        self.hand_over(shared);
    }

    /// Forgets a call that was never sent.
    pub(crate) fn forget(&mut self, request: u64, shared: &Shared) {
        if let Some(index) = self.index(request) {
            self.remove(index);
        }
        self.hand_over(shared);
    }

    /// Whether somebody awaits without a thread of his own.
    pub(crate) fn has_tasks(&self) -> bool {
        self.slots.iter().any(Slot::awaited_by_task) || self.room.iter().any(ForRoom::is_task)
    }

    /// Registers whom to wake when there is a free slot, or the deadline passed.
    pub(crate) fn wait_for_room(&mut self, waiter: Waiter, deadline: Option<Instant>) {
        self.room.push(ForRoom { waiter, deadline });
    }

    fn wake_room(&mut self) {
        self.room.drain(..).for_each(|mut entry| entry.waiter.wake());
    }

    /// Finds a new leader among those who wait, if there is none.
    pub(crate) fn hand_over(&mut self, shared: &Shared) {
        if self.leader.is_some() || (self.slots.is_empty() && self.room.is_empty()) {
            return;
        }
        for slot in &mut self.slots {
            if slot.outcome.is_none() && matches!(slot.waiter, Waiter::Thread(_)) {
                return slot.waiter.wake();
            }
        }
        // Any of these may have left meanwhile, so all are woken: those who still wait register anew.
        self.room.iter_mut().filter(|entry| !entry.is_task()).for_each(|entry| entry.waiter.wake());
        if self.has_tasks() {
            reader::start(self, shared);
        }
    }

    /// Makes the leader look at the deadlines again.
    pub(crate) fn interrupt_leader(&mut self, shared: &Shared) {
        if let Some(Leader { thread: Some(thread), .. }) = self.leader {
            // The leader is in `lead` until it takes the lock that we hold, so its thread lives. If this fails, it
            // wakes at its next tick.
            let _ = seqpacket::interrupt(shared.channel.as_fd(), thread);
            self.timeout = Duration::ZERO;
        }
    }

    /// A task starts to wait: makes sure that somebody receives, and wakes up early enough.
    pub(crate) fn task_waits(&mut self, deadline: Option<Instant>, shared: &Shared) {
        match &self.leader {
            None => self.hand_over(shared),
            Some(leader) if deadline.is_some_and(|deadline| deadline < leader.wakes_at) => {
                self.interrupt_leader(shared);
            }
            Some(_) => {}
        }
    }

    /// Makes the calling thread the leader: it goes on to receive, and wakes up in time for `deadline` and all tasks'.
    pub(crate) fn become_leader(&mut self, turn: Turn, shared: &Shared) {
        let Turn { now, deadline, role } = turn;
        let tasks = self.slots.iter().filter(|slot| slot.awaited_by_task()).filter_map(|slot| slot.deadline);
        let for_room = self.room.iter().filter_map(|entry| entry.deadline);
        let first = tasks.chain(for_room).chain(deadline).min();
        let wanted = first.map_or(TICK, |first| first.saturating_duration_since(now).min(TICK));
        // A timeout that is a little long will do, and saves a system call on most calls with a short deadline.
        let enough = wanted + wanted / 8 + Duration::from_millis(1);
        if self.timeout < wanted || self.timeout > enough {
            self.timeout = wanted;
            // If it can't be set the socket is broken, and receiving will say so.
            let _ = seqpacket::set_receive_timeout(shared.channel.as_fd(), Some(wanted));
        }
        let thread = seqpacket::interruptible().ok();
        self.leader = Some(Leader { thread, wakes_at: now + self.timeout, role });
    }

    /// Ends tasks whose deadline has passed: they have no thread that would notice.
    pub(crate) fn expire(&mut self, shared: &Shared) {
        if !self.has_tasks() {
            return;
        }
        let now = Instant::now();
        for slot in &mut self.slots {
            if slot.awaited_by_task() && slot.deadline.is_some_and(|deadline| deadline <= now) {
                slot.end(Err(CallError::Timeout));
                send_cancel(slot.request, shared);
            }
        }
        if self.room.iter().any(|entry| entry.deadline.is_some_and(|deadline| deadline <= now)) {
            // Those who may still wait register anew.
            self.wake_room();
        }
    }

    /// Nobody can receive for tasks: they end.
    pub(crate) fn end_tasks(&mut self, error: &CallError) {
        for slot in self.slots.iter_mut().filter(|slot| slot.awaited_by_task()) {
            slot.end(Err(error.clone()));
        }
    }

    /// Delivers an answer. One to nobody is for a caller who has given up.
    pub(crate) fn deliver(&mut self, request: u64, outcome: Result<Reply, CallError>) {
        if let Some(index) = self.index(request) {
            self.slots[index].end(outcome);
            self.wake_room();
        }
    }

    /// Takes a call out whose answer its caller has received himself. `false` if it was given up.
    pub(crate) fn complete(&mut self, request: u64) -> bool {
        self.index(request).map(|index| self.remove(index)).is_some()
    }

    /// The server died with all calls that were sent, and a successor takes over.
    pub(crate) fn server_died(&mut self, shared: &Arc<Shared>) {
        for slot in self.slots.iter_mut().filter(|slot| slot.outcome.is_none()) {
            slot.deaths += 1;
            if slot.deaths > RETRIES {
                slot.end(Err(CallError::Dead));
            } else {
                slot.send_again(shared);
            }
        }
    }

    /// The server leaves, and gave this call back for its successor.
    pub(crate) fn moved(&mut self, request: u64, shared: &Arc<Shared>) {
        if let Some(index) = self.index(request) {
            self.slots[index].send_again(shared);
        }
    }

    /// No call can succeed any more.
    pub(crate) fn end(&mut self, error: CallError) {
        let error = self.ended.get_or_insert(error).clone();
        for slot in self.slots.iter_mut().filter(|slot| slot.outcome.is_none()) {
            slot.end(Err(error.clone()));
        }
        self.wake_room();
    }
}

/// Tells the server that nobody waits for `request` any more. If the queue is full it learns that from the deadline.
fn send_cancel(request: u64, shared: &Shared) {
    let header = Header::new(Kind::Cancel, 0, 0, request);
    let _ = seqpacket::send(shared.channel.as_fd(), &header.encode(), &[], false);
}

/// Sends without waiting: if the queue is full, a thread of its own waits for room. Request 0 is a one-way call.
pub(crate) fn send_later(
    message: &Arc<Message>,
    deadline: Option<Instant>,
    request: u64,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    match message.send(&shared.channel, false) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        done => return done,
    }
    let (message, weak) = (Arc::clone(message), Arc::downgrade(shared));
    let wait = move || {
        while let Some(shared) = weak.upgrade() {
            let Some(left) = left(deadline, Instant::now()) else { return };
            if request != 0 && shared.lock().index(request).is_none() {
                return;
            }
            // Briefly, so that a closed connection does not stay open for this.
            let _ = seqpacket::wait_ready(shared.channel.as_fd(), false, Some(left.min(TICK / 8)));
            match message.send(&shared.channel, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The end of the channel is noticed by whoever receives.
                _ => return,
            }
        }
    };
    std::thread::Builder::new().name("hurdle-send".into()).spawn(wait).map(drop)
}
