//! Serving a channel: one blocking thread, and a second one only for handlers that have to wait.
//!
//! The thread that calls [`serve`] receives a request, polls its handler once, and if that is enough sends the answer:
//! two system calls. A handler that is not ready goes to a runtime shared by all channels of the process (see
//! `runtime`), and the thread receives the next request. All handlers run inside that runtime's context, so tokio's timers
//! and tasks work in them from the first poll on.
//!
//! **Stopping** must leave what is still in the socket for the successor, so the socket can't be shut down, and a frame
//! in band would come after what is queued. [`Stopper::stop`] interrupts the receiving thread (see
//! `hurdle_sys::seqpacket`), which costs the hot path nothing. Calls in flight are then finished, or given back to the
//! client for the successor if they are idempotent.
//!
//! Locks: `Stop::threads` and `Flights` are independent and held for moments.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use hurdle_sys::seqpacket::{self, Interruptible};
use tokio::task::AbortHandle;

use crate::channel::{Arrival, Channel, Inbox, Message, ReceiveError};
use crate::error::{CallError, ErrorFrame};
use crate::frame::{FDS_MAX, Header, Kind, PAYLOAD_MAX};
use crate::runtime;
use crate::service::{Answer, Answering, Context, Incoming, Peer, Router};
use crate::slots::CALLS_MAX;
use crate::tap::Tap;

/// How a channel is served.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Who is at the other end.
    pub peer: Peer,
    /// What the other end may have in flight.
    pub limits: Limits,
    /// To stop serving from another thread.
    pub stopper: Stopper,
    /// Return [`End::Idle`] when nothing came for so long and no call is in flight.
    pub idle: Option<Duration>,
    /// Where calls are reported while somebody traces them.
    pub tap: Tap,
}

/// Budgets of one channel. While one is spent, nothing more is received, so the client waits and no other client does.
/// Only calls whose handler has to wait count: those that are answered on the spot never have company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls in flight.
    pub calls: usize,
    /// Bytes of their arguments.
    pub bytes: usize,
    /// Fds of their arguments.
    pub fds: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { calls: CALLS_MAX, bytes: 4 * PAYLOAD_MAX, fds: 4 * FDS_MAX }
    }
}

/// Why [`serve`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The client is gone.
    Closed,
    /// It was stopped: the channel can be lent to another server.
    Stopped,
    /// Nothing came for the time in [`ServeOptions::idle`]: as with `Stopped`, the channel is good.
    Idle,
    /// The client broke the protocol; it was told, and the channel is shut down.
    Misuse(String),
}

/// Stops any number of [`serve`] loops. Clones are the same stopper.
#[derive(Clone, Debug, Default)]
pub struct Stopper(Arc<Stop>);

#[derive(Debug, Default)]
struct Stop {
    stopped: AtomicBool,
    threads: Mutex<Vec<(Interruptible, Channel)>>,
}

impl Stopper {
    /// One that has not been used yet.
    pub fn new() -> Stopper {
        Stopper::default()
    }

    /// Makes all loops that have this stopper, now and later, finish what is in flight and return. Returns at once.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        for (thread, channel) in self.threads().iter() {
            // The thread lives: it takes itself off the list before it leaves the loop.
            let _ = seqpacket::interrupt(channel.as_fd(), *thread);
        }
    }

    /// Whether [`stop`](Stopper::stop) was called.
    pub fn stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<(Interruptible, Channel)>> {
        self.0.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, channel: &Channel) -> io::Result<Registered<'_>> {
        let thread = seqpacket::interruptible()?;
        self.threads().push((thread, channel.clone()));
        Ok(Registered { stopper: self, thread })
    }
}

/// A thread that can be interrupted until this is dropped.
struct Registered<'a> {
    stopper: &'a Stopper,
    thread: Interruptible,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut threads = self.stopper.threads();
        if let Some(index) = threads.iter().position(|(thread, _)| *thread == self.thread) {
            let (_, channel) = threads.swap_remove(index);
            // Under the lock, so that no interrupt sets it again: the next holder finds the socket as new.
            let _ = seqpacket::set_receive_timeout(channel.as_fd(), None);
        }
    }
}

/// A channel that is being served.
struct Serving {
    channel: Channel,
    router: Router,
    limits: Limits,
    flights: Mutex<Flights>,
    landed: Condvar,
}

/// The calls in flight, and what they hold together.
#[derive(Default)]
struct Flights {
    calls: HashMap<u64, Flight>,
    bytes: usize,
    fds: usize,
}

struct Flight {
    abort: AbortHandle,
    context: Context,
    idempotent: bool,
}

/// What a call in flight holds; it is given back when this is dropped, however the call ends.
struct Landing {
    serving: Arc<Serving>,
    request: u64,
    bytes: usize,
    fds: usize,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.serving.flights();
        flights.calls.remove(&self.request);
        flights.bytes -= self.bytes;
        flights.fds -= self.fds;
        self.serving.landed.notify_all();
    }
}

/// Serves one end of a channel on the calling thread, until the client is gone, it is stopped, or idle for too long.
///
/// # Errors
/// When the socket can't be read any more. What a client does wrong is no error, but [`End::Misuse`].
pub fn serve(channel: &Channel, router: &Router, options: &ServeOptions) -> io::Result<End> {
    let runtime = runtime::handle()?;
    let _context = runtime.enter();
    hurdle_sys::process::set_nonblocking(channel.as_fd(), false)?;
    seqpacket::set_receive_timeout(channel.as_fd(), options.idle)?;
    let _registered = options.stopper.register(channel)?;
    let serving = Arc::new(Serving {
        channel: channel.clone(),
        router: router.clone(),
        limits: options.limits,
        flights: Mutex::default(),
        landed: Condvar::new(),
    });
    let end = serving.run(options);
    match &end {
        Ok(End::Stopped | End::Idle) => serving.finish(),
        Ok(End::Closed | End::Misuse(_)) | Err(_) => serving.abandon(),
    }
    end
}

/// Answers one request, by a handler that need not wait, and outside of the runtime: so the process has no thread beside the
/// caller's afterwards, and a copy of it (fork(2)) is whole. It waits as long as the socket's receive timeout allows.
///
/// `Some`: nothing was answered, and why.
///
/// # Errors
/// The socket can't be read or written any more.
pub fn serve_once(channel: &Channel, router: &Router) -> io::Result<Option<End>> {
    let mut inbox = Inbox::new();
    let (header, payload, fds) = match inbox.receive(channel) {
        Ok(arrival) => arrival.into_parts(),
        Err(ReceiveError::Interrupted) => return Ok(None),
        Err(ReceiveError::TimedOut) => return Ok(Some(End::Idle)),
        Err(ReceiveError::Closed) => return Ok(Some(End::Closed)),
        Err(ReceiveError::Misuse(reason)) => return Ok(Some(End::Misuse(reason))),
        Err(ReceiveError::NoRoomForFds(_)) => return Err(io::Error::from_raw_os_error(libc::EMFILE)),
        Err(ReceiveError::Io(error)) => return Err(error),
    };
    let context = Context::new(Peer::default(), &header);
    let incoming = Incoming { header, payload: &payload, fds, context, tap: &Tap::default() };
    let mut answering = router.dispatch(incoming);
    match answering.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) if header.kind == Kind::Call => address(&header, answer).send(channel, true).map(|()| None),
        Poll::Ready(_) => Ok(None),
        Poll::Pending => Ok(Some(End::Misuse("the handler has to wait".into()))),
    }
}

impl Serving {
    fn run(self: &Arc<Self>, options: &ServeOptions) -> io::Result<End> {
        let mut inbox = Inbox::new();
        loop {
            if options.stopper.stopped() {
                return Ok(End::Stopped);
            }
            let reason = match inbox.receive(&self.channel) {
                Ok(arrival) => match self.request(arrival, options.peer, &options.tap) {
                    Ok(()) => continue,
                    Err(reason) => reason,
                },
                Err(ReceiveError::Misuse(reason)) => format!("the client sent {reason}"),
                Err(ReceiveError::Closed) => return Ok(End::Closed),
                Err(ReceiveError::Interrupted) => continue,
                Err(ReceiveError::TimedOut) => {
                    if options.idle.is_some() && !options.stopper.stopped() && self.flights().calls.is_empty() {
                        return Ok(End::Idle);
                    }
                    continue;
                }
                Err(ReceiveError::NoRoomForFds(header)) => {
                    if header.kind == Kind::Call {
                        let reason = "the server has no file descriptor free for what the call carries";
                        self.send(&header, Answer::refused(libc::EMFILE, reason));
                    }
                    continue;
                }
                Err(ReceiveError::Io(error)) => return Err(error),
            };
            let error = ErrorFrame::Failed(CallError::Misuse(reason.clone()));
            let mut message = Answer::error(&error).message;
            message.address(Header::new(Kind::Error, 0, 0, 0));
            // If its queue is full, the client learns less.
            let _ = message.send(&self.channel, false);
            self.channel.shutdown();
            return Ok(End::Misuse(reason));
        }
    }

    /// Deals with one frame. An error ends the channel.
    fn request(self: &Arc<Self>, arrival: Arrival<'_>, peer: Peer, tap: &Tap) -> Result<(), String> {
        let (header, payload, fds) = arrival.into_parts();
        match header.kind {
            Kind::Call | Kind::OneWay => {}
            Kind::Cancel => {
                self.cancel(header.request);
                return Ok(());
            }
            other => return Err(format!("the client sent a frame of kind {other:?}")),
        }
        let (bytes, fd_count) = (payload.len(), fds.len());
        if self.is_under_way(&header)? {
            return Ok(());
        }
        self.wait_for_room(bytes, fd_count);
        let context = Context::new(peer, &header);
        let incoming = Incoming { header, payload: &payload, fds, context: context.clone(), tap };
        let mut answering = self.router.dispatch(incoming);
        match answering.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) if header.kind == Kind::Call => self.send(&header, answer),
            Poll::Ready(_) => {}
            Poll::Pending => self.take_off(header, answering, context, bytes, fd_count),
        }
        Ok(())
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this request is in flight already: a client whose server died sends again what may still have been in the queue. An
    /// error: he had no cause to.
    fn is_under_way(&self, header: &Header) -> Result<bool, String> {
        if !self.flights().calls.contains_key(&header.request) {
            return Ok(false);
        }
        if header.kind == Kind::Call && self.router.idempotent(header.interface, header.call) {
            return Ok(true);
        }
        Err(format!("the client sent request {} while it was in flight", header.request))
    }

    /// Waits until the budgets allow another call. What is in flight may always have one call alone.
    fn wait_for_room(&self, bytes: usize, fds: usize) {
        let mut flights = self.flights();
        let Limits { calls, bytes: most_bytes, fds: most_fds } = self.limits;
        while !flights.calls.is_empty()
            && (flights.calls.len() >= calls || flights.bytes + bytes > most_bytes || flights.fds + fds > most_fds)
        {
            flights = self.landed.wait(flights).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands a call that has to wait to the runtime.
    fn take_off(self: &Arc<Self>, header: Header, answering: Answering, context: Context, bytes: usize, fds: usize) {
        // One-way calls have no request id: they get one that no client chooses.
        let mut flights = self.flights();
        let key = if header.kind == Kind::Call { header.request } else { flights.one_way_key() };
        flights.bytes += bytes;
        flights.fds += fds;
        let landing = Landing { serving: Arc::clone(self), request: key, bytes, fds };
        let deadline = context.deadline();
        let task = async move {
            let answer = match deadline {
                None => answering.await,
                Some(deadline) => tokio::time::timeout_at(deadline.into(), answering)
                    .await
                    .unwrap_or_else(|_| Answer::error(&ErrorFrame::Failed(CallError::Timeout))),
            };
            if header.kind == Kind::Call {
                landing.serving.clone().send_from_task(&header, answer, landing);
            }
        };
        // The lock is held, so the task can't land before its flight is known.
        let abort = runtime::spawn(task);
        let idempotent = self.router.idempotent(header.interface, header.call);
        flights.calls.insert(key, Flight { abort, context, idempotent });
    }

    /// Sends an answer, and waits while the client's queue is full.
    fn send(&self, header: &Header, answer: Answer) {
        let message = address(header, answer);
        if let Err(error) = message.send(&self.channel, true) {
            self.not_sent(header, &error);
        }
    }

    /// The same without making the runtime wait.
    fn send_from_task(self: Arc<Self>, header: &Header, answer: Answer, landing: Landing) {
        let message = address(header, answer);
        match message.send(&self.channel, false) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let header = *header;
                tokio::task::spawn_blocking(move || {
                    let _landing = landing;
                    if let Err(error) = message.send(&self.channel, true) {
                        self.not_sent(&header, &error);
                    }
                });
            }
            Err(error) => self.not_sent(header, &error),
        }
    }

    /// An answer that did not leave. If the client is gone nobody misses it; else it gets the reason instead.
    fn not_sent(&self, header: &Header, error: &io::Error) {
        if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
            return;
        }
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let answer = Answer::refused(errno, format!("the answer can't be sent: {error}"));
        let _ = address(header, answer).send(&self.channel, false);
    }

    fn cancel(&self, request: u64) {
        // Without a flight the call was answered meanwhile.
        if let Some(flight) = self.flights().calls.get(&request) {
            flight.context.cancel();
            flight.abort.abort();
        }
    }

    /// Nobody waits for answers any more.
    fn abandon(&self) {
        for flight in self.flights().calls.values() {
            flight.context.cancel();
            flight.abort.abort();
        }
    }

    /// Lets the calls in flight land, those that the successor may repeat without waiting for them.
    fn finish(&self) {
        let mut flights = self.flights();
        for (request, flight) in &flights.calls {
            if flight.idempotent {
                let header = Header::new(Kind::Call, 0, 0, *request);
                let moved = address(&header, Answer::error(&ErrorFrame::Moved));
                if moved.send(&self.channel, false).is_ok() {
                    flight.context.cancel();
                    flight.abort.abort();
                }
            }
        }
        while !flights.calls.is_empty() && !self.channel.hung_up() {
            let wait = self.landed.wait_timeout(flights, Duration::from_millis(100));
            flights = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(flights);
        self.abandon();
    }
}

impl Flights {
    fn one_way_key(&self) -> u64 {
        let mut key = u64::MAX;
        while self.calls.contains_key(&key) {
            key -= 1;
        }
        key
    }
}

/// The message of an answer to the request with this header.
fn address(request: &Header, answer: Answer) -> Message {
    let mut header = Header::new(answer.kind, request.interface, request.call, request.request);
    header.flags = answer.flags;
    header.trace = request.trace;
    let mut message = answer.message;
    message.address(header);
    message
}
