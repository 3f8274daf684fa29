//! The thread that receives trapped calls and answers them.

use super::Shared;
use super::host;
use super::state::{Answer, Errno, State, Trap, Waiting};
use crate::table::{Handler, rows};
use hurdle_netstack::table::handler;
use hurdle_server::Awake;
use hurdle_sys::seccomp::{Call, Slot};
use hurdle_sys::target::socket::Alarm;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

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

/// Starts the worker.
pub(super) fn spawn(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("hurdle-traps".into()).stack_size(256 * 1024).spawn(move || run(&shared))
}

fn run(shared: &Arc<Shared>) {
    let Ok(alarm) = Alarm::new() else { return };
    let dispatch = Dispatch::new();
    let mut unanswered = shared.ledger.recover(&shared.listener);
    // Connections get their names before anybody accepts them.
    unanswered.sort_by_key(|(_, call)| dispatch.handler(call.syscall) != Some(Handler::Connect));
    for (slot, call) in unanswered {
        serve(shared, &dispatch, &alarm, &call, slot, true);
    }
    let awake = Awake::new(BURST);
    let mut slot = None;
    while !shared.stop.load(Ordering::SeqCst) {
        let Some(free) = slot.take().or_else(|| shared.ledger.take()) else { return };
        match shared.ledger.receive(&shared.listener, &free) {
            Ok(call) => {
                slot = serve(shared, &dispatch, &alarm, &call, free, false);
                awake.call();
            }
            Err(error) => {
                slot = Some(free);
                match error.raw_os_error() {
                    // A signal, or a call that was cancelled while it was received.
                    Some(libc::EINTR) => {}
                    Some(libc::ENOENT) if !is_over(shared) => {}
                    _ => return,
                }
            }
        }
    }
}

/// Whether nobody is left who could trap.
fn is_over(shared: &Shared) -> bool {
    let events = hurdle_sys::target::socket::poll_now(shared.listener.as_fd(), libc::POLLIN);
    events.is_ok_and(|events| events & libc::POLLHUP != 0)
}

/// Handles one call and answers it. Returns its slot, unless the call waits.
fn serve(
    shared: &Arc<Shared>,
    dispatch: &Dispatch,
    alarm: &Alarm,
    call: &Call,
    slot: Slot,
    recovered: bool,
) -> Option<Slot> {
    shared.traps.fetch_add(1, Ordering::Relaxed);
    let mut state = shared.lock();
    let recovered = state.comes_again(call) || recovered;
    let trap = Trap { call, listener: &shared.listener, alarm, recovered };
    let handled = match dispatch.handler(call.syscall) {
        Some(Handler::Socket) => host::socket(shared.kind, &mut state, &trap),
        Some(Handler::Bind) => state.bind(&trap),
        Some(Handler::Listen) => state.listen(&trap),
        Some(Handler::Connect) => state.connect(&trap, shared),
        Some(Handler::Accept) => state.accept(&trap, 0),
        Some(Handler::Accept4) => state.accept(&trap, trap.int(3)),
        Some(Handler::GetSockName) => state.own_name(&trap),
        Some(Handler::GetPeerName) => state.peer_name(&trap),
        Some(Handler::SetSockOpt) => state.set_option(&trap),
        Some(Handler::GetSockOpt) => state.option(&trap),
        Some(Handler::Shutdown) => state.shutdown(&trap, shared),
        None => Ok(Answer::Native),
    };
    let (on, until, accepts) = match handled {
        Ok(Answer::WaitAccept { on, until }) => (on, until, true),
        Ok(Answer::WaitConnect { on, until }) => (on, until, false),
        other => {
            let took = matches!(other, Ok(Answer::Socket { from: Some(_), .. }));
            let connected = match other {
                Ok(Answer::Connected { to, .. }) => Some(to),
                _ => None,
            };
            conclude(shared, &mut state, call, other);
            // The connecting end goes on first, as natively.
            if let Some(to) = connected.filter(|to| state.accepting.contains_key(to)) {
                state.serve_accepts(&trap, to, shared);
            }
            if took {
                state.retry_connects(&trap, shared);
            }
            shared.ledger.clear(&slot);
            return Some(slot);
        }
    };
    let table = if accepts { &mut state.accepting } else { &mut state.connecting };
    table.entry(on).or_default().push_back(Waiting { slot, call: *call, until });
    // A full backlog may drain by accepts that go natively; nobody tells, so the clock looks again.
    shared.clock.wake_by(shared, if accepts { until } else { Some(Instant::now()) });
    None
}

/// Answers a call. What a cancelled caller does not get is taken back.
pub(super) fn conclude(shared: &Shared, state: &mut State, call: &Call, handled: Result<Answer, Errno>) {
    let listener = &shared.listener;
    let errno = match handled {
        Ok(Answer::Value(value)) => {
            if listener.answer(call.id, Ok(value)).is_err() {
                state.note_cancelled(call);
            }
            return;
        }
        Ok(Answer::Native) => return drop(listener.resume(call.id)),
        Ok(Answer::Socket { fd, close_on_exec, from }) => {
            match listener.answer_fd(call.id, fd.as_fd(), close_on_exec) {
                Ok(_) => return,
                Err(error) => {
                    if let Some(from) = from {
                        state.give_back(&from, fd);
                    }
                    error.raw_os_error().unwrap_or(libc::EIO)
                }
            }
        }
        Ok(Answer::Connected { pending, .. }) => {
            let said = if pending { Err(libc::EINPROGRESS) } else { Ok(0) };
            if listener.answer(call.id, said).is_err() {
                state.note_cancelled(call);
            }
            return;
        }
        Ok(Answer::WaitAccept { .. } | Answer::WaitConnect { .. }) => libc::EIO,
        Err(Errno(errno)) => errno,
    };
    // ENOENT here: the call was cancelled, and nobody waits for the answer.
    let _ = listener.answer(call.id, Err(errno));
}
