//! The thread that ends waits which no call ends: time limits, and backlogs that drain by native accepts.

use super::Shared;
use super::connect::PATIENCE;
use super::state::{Errno, State, Trap};
use hurdle_netstack::name::Name;
use hurdle_sys::process::{Rest, not_the_worker};
use hurdle_sys::seccomp::{Call, interrupt};
use hurdle_sys::target::Alarm;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a full backlog is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How long a connection is kept for a listener whose accept was cancelled.
const KEEP: Duration = Duration::from_secs(10);

/// The clock; its thread starts with the first wait.
#[derive(Debug, Default)]
pub(super) struct Clock {
    thread: Mutex<Option<JoinHandle<()>>>,
    changed: Condvar,
}

impl Clock {
    /// Makes sure that the clock looks again at this time or earlier; `None`: nothing to end. Called with the state locked.
    /// `rest` is the caller's.
    pub(super) fn wake_by(&self, shared: &Arc<Shared>, rest: &Rest, time: Option<Instant>) {
        if time.is_none() {
            return;
        }
        // Whoever has it otherwise ends the clock, and waits for the state.
        let Ok(mut thread) = self.thread.try_lock() else { return };
        if thread.is_none() {
            let (shared, rest) = (Arc::clone(shared), rest.another());
            // Without a thread waits still end by connections and signals.
            let clock = std::thread::Builder::new().name("hurdle-clock".into()).stack_size(128 * 1024);
            *thread = not_the_worker(|| clock.spawn(move || run(&shared, &rest))).ok();
        }
        self.changed.notify_all();
    }

    /// Whether there is a thread.
    pub(super) fn runs(&self) -> bool {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Ends the thread; the stop flag is set. Called by whoever ends the server, and by a worker before its process ends, with which
    /// the thread would be gone without a word: whoever comes second waits.
    pub(super) fn stop(&self, shared: &Shared) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            drop(shared.lock());
            shared.join(thread, &Rest::NONE, |thread| {
                self.changed.notify_all();
                interrupt(thread);
            });
        }
    }
}

fn run(shared: &Arc<Shared>, rest: &Rest) {
    let alarm = Alarm::new(PATIENCE);
    let mut state = rest.end(shared.lock());
    while !shared.stop.load(std::sync::atomic::Ordering::SeqCst) {
        let now = Instant::now();
        end_late_accepts(shared, &mut state, now);
        let nobody = Call::default();
        let trap = Trap { call: &nobody, listener: &shared.listener, alarm: &alarm, recovered: false };
        state.retry_connects(&trap, shared);
        state.returned.retain(|_, queue| {
            queue.retain(|(_, since)| now.duration_since(*since) < KEEP);
            !queue.is_empty()
        });
        let next = next(&state).map(|at| at.saturating_duration_since(Instant::now()));
        let changed = &shared.clock.changed;
        rest.begin();
        state = rest.end(match next {
            Some(wait) => {
                changed.wait_timeout(state, wait).map_or_else(|error| error.into_inner().0, |(state, _)| state)
            }
            None => changed.wait(state).unwrap_or_else(PoisonError::into_inner),
        });
    }
    rest.begin();
}

/// When there is something to do next.
fn next(state: &State) -> Option<Instant> {
    let accepts = state.accepting.values().flatten().filter_map(|one| one.until).min();
    let connects = (!state.connecting.is_empty()).then(|| Instant::now() + LOOK);
    let returned = state.returned.values().flatten().map(|(_, since)| *since + KEEP).min();
    [accepts, connects, returned].into_iter().flatten().min()
}

fn end_late_accepts(shared: &Shared, state: &mut State, now: Instant) {
    let is_late = |until: Option<Instant>| until.is_some_and(|until| until <= now);
    let late: Vec<Name> = state
        .accepting
        .iter()
        .filter(|(_, queue)| queue.iter().any(|one| is_late(one.until)))
        .map(|(name, _)| *name)
        .collect();
    for name in late {
        let queue = state.accepting.remove(&name).unwrap_or_default();
        let (ended, rest): (VecDeque<_>, VecDeque<_>) = queue.into_iter().partition(|one| is_late(one.until));
        if !rest.is_empty() {
            state.accepting.insert(name, rest);
        }
        for one in ended {
            state.conclude(shared, &one.call, one.seen, Err(Errno(libc::EAGAIN)));
            shared.ledger.release(one.slot);
        }
    }
}
