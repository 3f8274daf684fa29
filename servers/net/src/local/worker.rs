//! The thread that receives trapped calls and answers them. Where they come from two CPUs at once it has a [`Second`].

use super::Shared;
use super::connect::PATIENCE;
use super::host;
use super::relay::Relay;
use super::second::{Duty, Second};
use super::state::{Answer, Errno, State, Trap, Waiting};
use crate::table::{Handler, rows};
use hurdle_netstack::name::Name;
use hurdle_netstack::table::handler;
use hurdle_netstack::trace::Seen;
use hurdle_proto::net::{Outcome, Trapped};
use hurdle_server::Awake;
use hurdle_sys::process::{Rest, run_apart, wake_politely};
use hurdle_sys::seccomp::{Call, Ledger, Listener, Slot};
use hurdle_sys::target::Alarm;
use hurdle_sys::target::socket::poll_wait;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// So many calls have a process each.
const FEW: u32 = 16;
/// How often to look for a free slot while there is none.
const FULL: Duration = Duration::from_millis(1);
/// So many calls in quick succession are worth a CPU that stays awake.
const BURST: u32 = 64;

/// The handlers by system call number.
struct Dispatch(Vec<(i32, Handler)>);

impl Dispatch {
    fn new() -> Dispatch {
        let rows = rows();
        let mut found: Vec<(i32, Handler)> = Vec::new();
        for number in rows.iter().filter_map(|row| row.syscall) {
            if let Some(handler) = handler(&rows, number)
                && found.iter().all(|(known, _)| i64::from(*known) != number)
            {
                found.push((number as i32, handler));
            }
        }
        Dispatch(found)
    }

    fn handler(&self, syscall: i32) -> Option<Handler> {
        self.0.iter().find(|(number, _)| *number == syscall).map(|(_, handler)| *handler)
    }
}

/// Where calls come from.
#[derive(Debug)]
pub(super) enum Source {
    /// The kernel.
    Kernel,
    /// The server above, until it says `None`.
    Above(Receiver<Option<Passed>>),
}

/// A call that the server above has received.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) call: Trapped,
    pub(super) answer: oneshot::Sender<Outcome>,
}

/// Starts the worker, which has the ledger's turn. `calm`: no call waits, so the first ones have a process each: an environment that is
/// mostly idle has no other.
pub(super) fn spawn(shared: Arc<Shared>, source: Source, turn: File, calm: bool) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("hurdle-traps".into()).stack_size(256 * 1024).spawn(move || {
        let turn = Arc::new(turn);
        match source {
            Source::Kernel if calm => {
                // Its thread is the server's: one that a worker starts ends with it.
                let alarm = Arc::new(Alarm::new(PATIENCE));
                for _ in 0..FEW {
                    if !arrives(&shared) {
                        return;
                    }
                    if alarm.ready().is_err() {
                        break;
                    }
                    let alarm = alarm.clone();
                    apart(&shared, &turn, move |worker| worker.once(&alarm));
                }
                drop(alarm);
                apart(&shared, &turn, |worker| worker.receive(&Alarm::new(PATIENCE)));
            }
            source => {
                let source = Mutex::new(source);
                apart(&shared, &turn, move |worker| worker.run(&source));
            }
        }
    })
}

/// Has a worker do this where a kill of the server's process does not reach it between the first step for a call and the answer.
fn apart(shared: &Arc<Shared>, turn: &Arc<File>, work: impl Fn(&Worker<'_>) + Send + Sync + 'static) {
    let work = Arc::new(work);
    let (own, noted, does) = (shared.clone(), turn.clone(), work.clone());
    let run = move |rest: &Rest| {
        let _ = Ledger::note_worker(&noted, std::process::id().cast_signed());
        // What it hands out wakes it once more (SECCOMP_ADDFD_FLAG_SEND). The program, which has its answer by then, goes first.
        let _ = wake_politely();
        does(&Worker::new(&own, rest));
        if own.clock.runs() {
            // It was the last one: nobody is left who could call, or it was stopped.
            own.stop.store(true, Ordering::SeqCst);
            own.clock.stop(&own);
        }
    };
    match run_apart(&shared.apart, Box::new(run)) {
        Ok(()) => {}
        Err(e) if e.raw_os_error().is_some() => work(&Worker::new(shared, &Rest::NONE)),
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(1);
        }
    }
}

/// Waits for a call. False: there will be none.
fn arrives(shared: &Shared) -> bool {
    while !shared.stop.load(Ordering::SeqCst) {
        match poll_wait(shared.listener.as_fd(), libc::POLLIN) {
            Ok(events) => return events & libc::POLLIN != 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    false
}

pub(super) struct Worker<'a> {
    shared: &'a Arc<Shared>,
    rest: &'a Rest,
    dispatch: Dispatch,
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, rest: &'a Rest) -> Worker<'a> {
        Worker { shared, rest, dispatch: Dispatch::new() }
    }

    /// Serves until it is stopped: first the calls that another one left.
    fn run(&self, source: &Mutex<Source>) {
        let alarm = Alarm::new(PATIENCE);
        let mut unanswered = self.shared.ledger.recover(&self.shared.listener);
        // Connections get their names before anybody accepts them.
        unanswered.sort_by_key(|(_, call)| self.dispatch.handler(call.syscall) != Some(Handler::Connect));
        for (slot, call) in unanswered {
            self.serve(self.shared.lock(), &alarm, &call, slot, true);
        }
        match &*source.lock().unwrap_or_else(PoisonError::into_inner) {
            Source::Kernel => self.receive(&alarm),
            Source::Above(passed) => self.hear(passed, &alarm),
        }
    }

    /// Serves one call, and more only if that one left the clock running, which ends with its worker.
    fn once(&self, alarm: &Alarm) {
        alarm.aim();
        let mut slot = None;
        self.next(alarm, &mut slot, || ());
        slot.into_iter().for_each(|slot| self.shared.ledger.release(slot));
        if self.shared.clock.runs() {
            self.receive(alarm);
        }
    }

    /// Serves calls that the server above passes down.
    fn hear(&self, passed: &Receiver<Option<Passed>>, alarm: &Alarm) {
        loop {
            self.rest.begin();
            let next = passed.recv();
            let state = self.rest.end(self.shared.lock());
            let Ok(Some(Passed { call, answer })) = next else { return };
            let outcome = match self.shared.ledger.adopt(call.slot, call.id) {
                None => Outcome::Gone,
                // The server above is another one by now, and passes what it found.
                Some(_) if state.waits(call.id) => Outcome::Waits,
                Some((slot, call)) => self.serve(state, alarm, &call, slot, false).0,
            };
            let _ = answer.send(outcome);
        }
    }

    /// Receives calls from the kernel and serves them.
    fn receive(&self, alarm: &Alarm) {
        let awake = Awake::new(BURST);
        let mut second = Second::new(self.shared, self.rest);
        let mut slot = None;
        loop {
            let mut arrived = false;
            let look = || {
                arrived = true;
                second.look();
            };
            if !self.next(alarm, &mut slot, look) {
                return;
            }
            if arrived {
                awake.call();
            }
        }
    }

    /// Receives calls beside the thread that looks for them first, while there is work for two.
    pub(super) fn assist(&self, duty: &Duty) {
        let alarm = Alarm::new(PATIENCE);
        let _ = wake_politely();
        if alarm.ready().is_err() {
            // No more threads are allowed, and calls that need one shall not fail because it is this one that receives them.
            return;
        }
        let mut slot = None;
        while duty.wait() {
            self.rest.end(());
            while duty.is_on() {
                if !self.next(&alarm, &mut slot, || duty.spend(1)) {
                    return self.rest.begin();
                }
            }
            slot.take().into_iter().for_each(|slot| self.shared.ledger.release(slot));
            self.rest.begin();
        }
    }

    /// Receives a call, says that it has, and serves it. `slot` is one that is kept from call to call. False: it was stopped, or
    /// nobody is left who could trap.
    fn next(&self, alarm: &Alarm, slot: &mut Option<Slot>, arrived: impl FnOnce()) -> bool {
        let shared = self.shared;
        if shared.stop.load(Ordering::SeqCst) {
            return false;
        }
        self.rest.begin();
        let Some(free) = slot.take().or_else(|| shared.ledger.take()) else {
            // Every slot holds a call that waits. One more waits in the kernel.
            std::thread::sleep(FULL);
            self.rest.end(());
            return true;
        };
        let received = shared.ledger.receive(&shared.listener, &free);
        // Who holds the lock may be killed with it: that wait is no step yet.
        let state = self.rest.end(shared.lock());
        match received {
            Ok(call) => {
                arrived();
                *slot = self.serve(state, alarm, &call, free, false).1;
                true
            }
            Err(error) => {
                *slot = Some(free);
                match error.raw_os_error() {
                    // A signal, or a call that was cancelled while it was received.
                    Some(libc::EINTR) => true,
                    Some(libc::ENOENT) => !is_over(shared),
                    _ => false,
                }
            }
        }
    }

    /// A connection was handed over, or could not be and is another caller's.
    fn after_accept(&self, trap: &Trap<'_>, back: Option<Back>) {
        let mut state = if back.is_none() {
            // All that a successor could not do is done: it is no step to wait for who may have been killed with the lock.
            self.rest.begin();
            self.rest.end(self.shared.lock())
        } else {
            self.shared.lock()
        };
        state.handed.retain(|one| one.id != trap.call.id);
        if let Some(listener) = state.take_back(trap.call, back) {
            state.serve_accepts(trap, listener, self.shared);
        }
        state.retry_connects(trap, self.shared);
        self.keep_no_longer(&state);
    }

    /// Connections that went back to their listeners end by and by, if these are gone.
    fn keep_no_longer(&self, state: &State) {
        if !state.returned.is_empty() {
            self.shared.clock.wake_by(self.shared, self.rest, Some(Instant::now()));
        }
    }

    /// What is to be answered.
    fn handle(&self, state: &mut State, trap: &Trap<'_>) -> Result<Answer, Errno> {
        let shared = self.shared;
        match self.dispatch.handler(trap.call.syscall) {
            Some(Handler::Socket) => host::socket(shared, state, trap),
            Some(Handler::Bind) => {
                shared.relay.iter().for_each(|relay| relay.make_way(state));
                state.carry_bind(trap)
            }
            Some(Handler::Listen) => {
                // It looks once the state is free again.
                shared.relay.iter().for_each(Relay::ring);
                state.carry_listen(trap)
            }
            Some(Handler::Connect) => match state.carry_connect(trap) {
                Ok(None) => state.connect(trap, shared),
                Ok(Some(answer)) => Ok(answer),
                Err(errno) => Err(errno),
            },
            Some(Handler::Accept) => state.accept(trap, 0),
            Some(Handler::Accept4) => state.accept(trap, trap.int(3)),
            Some(Handler::GetSockName) => state.own_name(trap),
            Some(Handler::GetPeerName) => state.peer_name(trap),
            Some(Handler::SetSockOpt) => state.set_option(trap),
            Some(Handler::GetSockOpt) => state.option(trap),
            Some(Handler::Shutdown) => state.shutdown(trap, shared),
            // The ledger has noted it.
            Some(Handler::Move) | None => Ok(Answer::Native),
        }
    }

    /// Answers a call that does not wait.
    fn conclude(
        &self,
        mut state: MutexGuard<'a, State>,
        trap: &Trap<'_>,
        seen: Option<Box<Seen>>,
        slot: &Slot,
        handled: Result<Answer, Errno>,
    ) -> Outcome {
        let shared = self.shared;
        let outcome = match handled {
            // Its caller has to run for that, perhaps on another CPU. Others are served meanwhile.
            Ok(Answer::Socket { accepted, .. }) => {
                if accepted {
                    state.handed.push(*trap.call);
                }
                drop(state);
                let (outcome, back) = conclude(shared, trap.call, seen, handled);
                shared.ledger.clear(slot);
                if accepted {
                    self.after_accept(trap, back);
                }
                return outcome;
            }
            // The connecting end goes on first, as natively.
            Ok(Answer::Connected { to, .. }) => {
                let outcome = state.conclude(shared, trap.call, seen, handled);
                if state.accepting.contains_key(&to) {
                    state.serve_accepts(trap, to, shared);
                    self.keep_no_longer(&state);
                }
                outcome
            }
            _ => state.conclude(shared, trap.call, seen, handled),
        };
        shared.ledger.clear(slot);
        outcome
    }

    /// Handles one call and answers it. Returns what became of it, and its slot unless it waits.
    fn serve(
        &self,
        mut state: MutexGuard<'a, State>,
        alarm: &Alarm,
        call: &Call,
        slot: Slot,
        recovered: bool,
    ) -> (Outcome, Option<Slot>) {
        let shared = self.shared;
        shared.traps.fetch_add(1, Ordering::Relaxed);
        let seen = Seen::new(&shared.tap, call, &shared.listener);
        let recovered = state.comes_again(call) || recovered;
        let trap = Trap { call, listener: &shared.listener, alarm, recovered };
        let mut handled = self.handle(&mut state, &trap);
        // A call that a signal cancelled while its connection was handed over comes again, perhaps before that is noticed.
        while matches!(handled, Err(Errno(libc::EAGAIN))) && state.handed.iter().any(|one| call.repeats(one)) {
            drop(state);
            // Nothing was done for it yet.
            self.rest.begin();
            std::thread::yield_now();
            state = self.rest.end(shared.lock());
            handled = self.handle(&mut state, &trap);
        }
        if state.is_broken() {
            // What makes its sockets is gone, so perhaps is this server: no answer is better than one that Linux would not give.
            self.rest.leave(state);
        }
        let (on, until, accepts) = match handled {
            Ok(Answer::WaitAccept { on, until }) => (on, until, true),
            Ok(Answer::WaitConnect { on, until }) => (on, until, false),
            answered => return (self.conclude(state, &trap, seen, &slot, answered), Some(slot)),
        };
        if let Some(seen) = &seen {
            seen.waits(&shared.tap);
        }
        let table = if accepts { &mut state.accepting } else { &mut state.connecting };
        table.entry(on).or_default().push_back(Waiting { slot, call: *call, until, seen });
        // A full backlog may drain by accepts that go natively; nobody tells, so the clock looks again.
        shared.clock.wake_by(shared, self.rest, if accepts { until } else { Some(Instant::now()) });
        (Outcome::Waits, None)
    }
}

/// Whether nobody is left who could trap.
fn is_over(shared: &Shared) -> bool {
    let events = hurdle_sys::target::socket::poll_now(shared.listener.as_fd(), libc::POLLIN);
    events.is_ok_and(|events| events & libc::POLLHUP != 0)
}

/// What a caller did not get, since its call was cancelled.
pub(super) enum Back {
    /// An answer that may be asked for once more.
    Answer,
    /// A connection that was taken off a listener.
    Connection(OwnedFd),
}

/// Answers a call, and reports it while somebody traces. What the caller did not get is for [`State::take_back`].
fn conclude(
    shared: &Shared,
    call: &Call,
    seen: Option<Box<Seen>>,
    handled: Result<Answer, Errno>,
) -> (Outcome, Option<Back>) {
    if !shared.tap.on() {
        return answer(&shared.listener, call, handled);
    }
    let mut seen = seen.unwrap_or_else(|| Seen::late(call, &shared.listener));
    if handled.is_ok() {
        seen.written(&shared.listener);
    }
    let (outcome, back) = answer(&shared.listener, call, handled);
    seen.end(&shared.tap, outcome);
    (outcome, back)
}

fn answer(listener: &Listener, call: &Call, handled: Result<Answer, Errno>) -> (Outcome, Option<Back>) {
    let gone = (Outcome::Gone, Some(Back::Answer));
    let (errno, back) = match handled {
        Ok(Answer::Value(value)) => {
            return listener.answer(call.id, Ok(value)).map_or(gone, |()| (Outcome::Returned(value), None));
        }
        Ok(Answer::Native) => return (listener.resume(call.id).map_or(Outcome::Gone, |()| Outcome::Native), None),
        Ok(Answer::Socket { fd, close_on_exec, accepted }) => {
            match listener.answer_fd(call.id, fd.as_fd(), close_on_exec) {
                Ok(number) => return (Outcome::Returned(number.into()), None),
                Err(error) => {
                    let back = accepted.then_some(Back::Connection(fd));
                    (error.raw_os_error().unwrap_or(libc::EIO), back)
                }
            }
        }
        Ok(Answer::Connected { pending, .. }) => {
            let said = if pending { Err(libc::EINPROGRESS) } else { Ok(0) };
            let outcome = said.map_or_else(Outcome::Failed, Outcome::Returned);
            return listener.answer(call.id, said).map_or(gone, |()| (outcome, None));
        }
        Ok(Answer::WaitAccept { .. } | Answer::WaitConnect { .. }) => (libc::EIO, None),
        Err(Errno(errno)) => (errno, None),
    };
    // ENOENT here: the call was cancelled, and nobody waits for the answer.
    (listener.answer(call.id, Err(errno)).map_or(Outcome::Gone, |()| Outcome::Failed(errno)), back)
}

impl State {
    /// As the function, while nobody else is served; what the caller did not get is taken back.
    pub(super) fn conclude(
        &mut self,
        shared: &Shared,
        call: &Call,
        seen: Option<Box<Seen>>,
        handled: Result<Answer, Errno>,
    ) -> Outcome {
        let (outcome, back) = conclude(shared, call, seen, handled);
        self.take_back(call, back);
        outcome
    }

    /// Returns the listener that has a connection again.
    fn take_back(&mut self, call: &Call, back: Option<Back>) -> Option<Name> {
        match back? {
            Back::Answer => self.note_cancelled(call),
            Back::Connection(fd) => return self.give_back(fd),
        }
        None
    }
}
