//! Receiving: one turn of the leader, and the thread that leads for callers who await.

use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::channel::{Arrival, ReceiveError};
use crate::codec;
use crate::connection::Shared;
use crate::error::{CallError, ErrorFrame, Refused};
use crate::frame::{EVENT_DEATH, Kind};
use crate::slots::{Decode, Raw, Reply, Role, State, Turn};

/// How long the thread stays when nobody awaits.
const LINGER: Duration = Duration::from_secs(2);

impl Shared {
    /// One turn as a leader: receives one frame at most and deals with it. With `mine`, the answer of that call is
    /// decoded where it lies and returned.
    pub(crate) fn lead<T>(
        self: &Arc<Shared>,
        mut state: MutexGuard<'_, State>,
        mine: Option<(u64, Decode<T>)>,
        turn: Turn,
    ) -> Option<Result<T, CallError>> {
        state.become_leader(turn, self);
        drop(state);
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let received = inbox.receive(&self.channel);
        let mut state = self.lock();
        state.leader = None;
        match received {
            Ok(arrival) => self.deal_with(state, arrival, mine),
            Err(error) => {
                match error {
                    ReceiveError::Interrupted | ReceiveError::TimedOut => {}
                    ReceiveError::Closed => state.end(CallError::Dead),
                    ReceiveError::Misuse(reason) => self.broken(&mut state, format!("the server sent {reason}")),
                    ReceiveError::NoRoomForFds(header) => {
                        let reason = "no file descriptor is free for what the server answered";
                        state.deliver(header.request, Err(Refused::new(libc::EMFILE, reason).into()));
                    }
                    ReceiveError::Io(error) => self.broken(&mut state, format!("receiving failed: {error}")),
                }
                state.expire(self);
                None
            }
        }
    }

    /// A turn for the sake of others.
    pub(crate) fn lead_for_others(self: &Arc<Shared>, state: MutexGuard<'_, State>, turn: Turn) {
        let _: Option<Result<(), CallError>> = self.lead(state, None, turn);
    }

    fn deal_with<T>(
        self: &Arc<Shared>,
        mut state: MutexGuard<'_, State>,
        arrival: Arrival<'_>,
        mine: Option<(u64, Decode<T>)>,
    ) -> Option<Result<T, CallError>> {
        let (header, payload, fds) = arrival.into_parts();
        let request = header.request;
        let mine = mine.filter(|(wanted, _)| *wanted == request);
        match header.kind {
            Kind::Reply => {
                if let Some((_, decode)) = mine {
                    state.complete(request);
                    state.hand_over(self);
                    drop(state);
                    return Some(decode(Raw { flags: header.flags, payload: &payload, fds }));
                }
                state.deliver(request, Ok(Reply { flags: header.flags, payload: payload.to_vec(), fds }));
            }
            Kind::Error => match codec::decode::<ErrorFrame>(&payload, fds) {
                Ok(ErrorFrame::Failed(error)) if request == 0 => {
                    state.end(error);
                    self.channel.shutdown();
                }
                Ok(ErrorFrame::Failed(error)) => state.deliver(request, Err(error)),
                Ok(ErrorFrame::Moved) => state.moved(request, self),
                Err(reason) => {
                    self.broken(&mut state, format!("the server sent an error that can't be read: {reason}"))
                }
            },
            Kind::Event if header.call == EVENT_DEATH => state.server_died(self),
            // Events are hints; a later version may know more of them.
            Kind::Event => {}
            other => self.broken(&mut state, format!("the server sent a frame of kind {other:?}")),
        }
        state.expire(self);
        None
    }

    fn broken(&self, state: &mut State, reason: String) {
        state.end(CallError::Misuse(reason));
        self.channel.shutdown();
    }
}

/// The thread that leads for tasks, while there is one.
#[derive(Default)]
pub(crate) struct Reader(Option<Thread>);

impl Reader {
    pub(crate) fn wake(&self) {
        if let Some(thread) = &self.0 {
            thread.unpark();
        }
    }
}

/// Makes sure that the thread runs and looks around.
pub(crate) fn start(state: &mut State, shared: &Shared) {
    if state.reader.0.is_some() {
        return state.reader.wake();
    }
    let weak = shared.this.clone();
    match std::thread::Builder::new().name("hurdle-reader".into()).spawn(move || run(&weak)) {
        Ok(handle) => state.reader.0 = Some(handle.thread().clone()),
        Err(error) => {
            let error = Refused::from(error).context("no thread can be started to receive replies");
            state.end_tasks(&error.into());
        }
    }
}

/// The thread: leads while tasks wait and nobody else does, lingers, leaves. It keeps the connection only while tasks
/// wait, so that dropping the last [`Connection`](crate::Connection) closes the channel at once.
fn run(weak: &Weak<Shared>) {
    loop {
        let Some(shared) = weak.upgrade() else { return };
        let idle_since = Instant::now();
        lead_for_tasks(&shared);
        drop(shared);
        std::thread::park_timeout(LINGER);
        if idle_since.elapsed() >= LINGER {
            let Some(shared) = weak.upgrade() else { return };
            let mut state = shared.lock();
            if !state.has_tasks() {
                state.reader.0 = None;
                return;
            }
        }
    }
}

fn lead_for_tasks(shared: &Arc<Shared>) {
    loop {
        let mut state = shared.lock();
        if !state.has_tasks() || state.ended.is_some() {
            return state.hand_over(shared);
        }
        if state.leader.is_none() {
            shared.lead_for_others(state, Turn { now: Instant::now(), deadline: None, role: Role::Reader });
        } else {
            drop(state);
            // Whoever leads wakes us when he has what he wanted.
            std::thread::park_timeout(LINGER);
        }
    }
}
