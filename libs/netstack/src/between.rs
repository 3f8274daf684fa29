//! A net server of one's own: it answers trapped calls itself, or stands between programs and another net server.
//!
//! A whole server is a `main` that calls [`run`] (see `examples/`: `refuse`, `slow`, `count`). A program's call comes as a
//! [`Call`]; what becomes of it is an [`Answer`], and [`Next::pass`] has the server below give it. All servers of a stack hold the
//! listener and the ledger, so a call that is passed down is a small message, and the last one answers the kernel by itself.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hurdle_proto::net::{Counters, Outcome, Socket, Trapped, net};
use hurdle_server::{Below, Borrowed, Sockets, confine_calls, drop_capabilities};
use hurdle_sys::process;
use hurdle_sys::seccomp::{self, Height, Ledger, Listener, Slot};
use hurdle_sys::target::{self, memory};
use hurdle_wire::tap::Tap;
use hurdle_wire::{CallError, Context, Refused};

use crate::address::LONGEST;
use crate::trace::{self, Seen};

/// How long an answer that is being given may take when the right is asked back.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a server does with programs' calls.
pub trait Between: Send + Sync + 'static {
    /// Once it has started, the server executes nothing, opens no file for writing, makes no other sockets than these, and has no
    /// capability ([`hurdle_server::confine_calls`]). What it needs beyond that, `start` of [`run`] opens. `None`: it builds what walls it
    /// wants there by itself.
    const WALLS: Option<Sockets> = Some(Sockets::Local);

    /// Answers one call. Many are under way at a time. A panic ends the server, and its successor gets the call.
    fn call(&self, call: Call, next: Next) -> impl Future<Output = Answer> + Send;
}

/// What a program hears.
#[derive(Debug)]
pub enum Answer {
    /// The call returns this.
    Return(i64),
    /// The call fails with this errno.
    Fail(i32),
    /// The call goes on in the environment's own kernel network, which is empty but for loopback.
    Native,
    /// The server below has seen to it: what [`Next::pass`] returns.
    Passed(Outcome),
}

/// A trapped call.
#[derive(Debug)]
pub struct Call {
    raw: seccomp::Call,
    address: Option<SocketAddr>,
}

impl Call {
    fn new(raw: seccomp::Call, listener: &Listener) -> Call {
        let addressed = [libc::SYS_bind, libc::SYS_connect].contains(&raw.syscall.into());
        let address = addressed.then(|| read_address(&raw)).flatten();
        // What was read is the caller's only if he still waits.
        Call { raw, address: address.filter(|_| listener.is_valid(raw.id)) }
    }

    /// The system call's name: one of those in docs/compatibility.md.
    pub fn name(&self) -> &'static str {
        trace::name(self.raw.syscall)
    }

    /// Its arguments, as the program gave them.
    pub fn arguments(&self) -> [u64; 6] {
        self.raw.args
    }

    /// The thread that made it, as this server sees it.
    pub fn thread(&self) -> u32 {
        self.raw.tid
    }

    /// The inet address of a bind(2) or connect(2). The program may change it before the server below reads it again.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.address.map_or(Ok(()), |address| write!(f, " {address}"))
    }
}

/// The sockaddr_in or sockaddr_in6 that a call's second and third argument name (ip(7), ipv6(7)).
fn read_address(raw: &seccomp::Call) -> Option<SocketAddr> {
    let mut bytes = [0; LONGEST];
    let length = usize::try_from(raw.args[2]).ok().filter(|length| *length <= LONGEST)?;
    let bytes = &mut bytes[..length];
    memory::read(raw.tid, raw.args[1], bytes).ok()?;
    trace::endpoint(bytes)
}

/// The way down for one call.
pub struct Next {
    below: Option<net::Client>,
    trapped: Trapped,
    /// Set once the call is another's: what became of it, or that nobody knows.
    passed: Arc<OnceLock<Outcome>>,
    left: Arc<AtomicBool>,
}

impl Next {
    /// Has the server below answer the call. Where this server is the last one, the call goes on natively.
    pub async fn pass(self) -> Answer {
        let Some(below) = self.below else { return Answer::Native };
        self.left.store(true, Ordering::SeqCst);
        // For as long as it takes: the ledger knows of the call, whoever dies.
        match below.trapped(self.trapped).deadline(Duration::MAX).await {
            Ok(outcome) => Answer::Passed(*self.passed.get_or_init(|| outcome)),
            // It does not know the call, or does not want it.
            Err(CallError::Refused(refused)) => {
                self.left.store(false, Ordering::SeqCst);
                Answer::Fail(refused.errno)
            }
            Err(CallError::Misuse(_)) => {
                self.left.store(false, Ordering::SeqCst);
                Answer::Fail(libc::ENETDOWN)
            }
            // It is stopped, or gone for good: the call is the successor's.
            Err(_) => Answer::Passed(Outcome::Waits),
        }
    }
}

/// Runs a net server: borrows the calls, starts the server below if the user's spec names one, and has `start`'s value
/// answer.
pub fn run<B: Between>(start: impl FnOnce(&mut Borrowed) -> Result<B, Refused> + Send + 'static) -> ExitCode {
    // A call that a panic left without an answer is the successor's.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::exit(101);
    }));
    hurdle_server::run(move |borrowed| {
        let between = start(borrowed)?;
        stand(borrowed, between)
    })
}

/// Has `between` answer the calls that come with the right, above the server below if the user's spec names one. The rest of a
/// server's life is [`hurdle_server::run`].
///
/// # Errors
/// What came with the right is not what a net server needs; EMFILE.
pub fn stand<B: Between>(borrowed: &mut Borrowed, between: B) -> Result<impl hurdle_wire::Service + use<B>, Refused> {
    target::raise_fd_limit()?;
    seccomp::interruptible()?;
    let top = borrowed.has("trap");
    let count = borrowed.spec.layers().len() - 1;
    let height = Height { below: u8::try_from(count).unwrap_or(u8::MAX), top };
    let below = if count > 0 { Some(borrowed.below()?) } else { None };
    let calls = borrowed.attachment(if top { "trap" } else { "calls" })?;
    let ledger = Ledger::map(borrowed.attachment("ledger")?, height)?;
    let listener = Listener::from(calls);
    let _ = listener.set_sync_wake_up();
    let work = Arc::new(Work {
        between,
        listener,
        ledger,
        below: below.as_ref().map(|below| net::Client::from(below.channel())),
        traps: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        hand: Mutex::default(),
        tap: borrowed.tap(),
    });
    // All threads but the one that starts the server below come after it.
    if let Some(sockets) = B::WALLS {
        drop_capabilities()?;
        confine_calls(sockets)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build()?;
    for (slot, call) in work.ledger.recover(&work.listener) {
        runtime.spawn(work.clone().answer(slot, call));
    }
    let receiver = if top {
        let (work, handle) = (work.clone(), runtime.handle().clone());
        Some(std::thread::Builder::new().name("hurdle-traps".into()).spawn(move || work.receive(&handle))?)
    } else {
        None
    };
    borrowed.stay();
    let stopped = work.clone();
    borrowed.on_return(move || {
        stopped.halt(receiver);
        // What is in hand stays in the ledger, for the successor.
        runtime.shutdown_timeout(PATIENCE);
        below.into_iter().for_each(Below::stop);
    });
    Ok(net::service(Service(work)))
}

struct Work<B> {
    between: B,
    listener: Listener,
    ledger: Ledger,
    below: Option<net::Client>,
    traps: AtomicU64,
    stop: AtomicBool,
    /// Calls that are being answered.
    hand: Mutex<HashSet<u64>>,
    tap: Tap,
}

impl<B: Between> Work<B> {
    fn receive(self: Arc<Self>, runtime: &tokio::runtime::Handle) {
        let mut slot = None;
        while !self.stop.load(Ordering::SeqCst) {
            let Some(free) = slot.take().or_else(|| self.ledger.take()) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            match self.ledger.receive(&self.listener, &free) {
                Ok(call) => drop(runtime.spawn(self.clone().answer(free, call))),
                Err(error) => {
                    slot = Some(free);
                    match error.raw_os_error() {
                        // A signal, or a call that was cancelled while it was received.
                        Some(libc::EINTR) => {}
                        Some(libc::ENOENT) if !process::ended(self.listener.as_fd()) => {}
                        _ if process::ended(self.listener.as_fd()) => return,
                        _ => {
                            eprintln!("trapped calls can't be received: {error}");
                            std::process::exit(1);
                        }
                    }
                }
            }
        }
    }

    fn halt(&self, receiver: Option<JoinHandle<()>>) {
        self.stop.store(true, Ordering::SeqCst);
        let Some(receiver) = receiver else { return };
        // A signal that comes just before the thread waits is lost, so it is sent until it worked.
        while !receiver.is_finished() {
            seccomp::interrupt(&receiver);
            std::thread::sleep(Duration::from_micros(200));
        }
        let _ = receiver.join();
    }

    /// Has one call answered, unless it is being answered.
    async fn answer(self: Arc<Self>, slot: Slot, raw: seccomp::Call) -> Outcome {
        let hand = || self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        if !hand().insert(raw.id) {
            return Outcome::Waits;
        }
        let seen = Seen::new(&self.tap, &raw, &self.listener);
        let outcome = self.clone().answer_once(slot, raw).await;
        hand().remove(&raw.id);
        if let Some(seen) = seen {
            seen.end(&self.tap, outcome);
        }
        outcome
    }

    /// Has one call answered. Its slot is cleared by whoever answers the kernel.
    async fn answer_once(self: Arc<Self>, slot: Slot, raw: seccomp::Call) -> Outcome {
        self.traps.fetch_add(1, Ordering::Relaxed);
        let (passed, left) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
        let trapped = Trapped { slot: Ledger::number(&slot), id: raw.id };
        let next = Next { below: self.below.clone(), trapped, passed: passed.clone(), left: left.clone() };
        // Of where a thread goes the ledger tells the servers that ask.
        let answer =
            if raw.moves() { Answer::Native } else { self.between.call(Call::new(raw, &self.listener), next).await };
        if let Some(outcome) = passed.get() {
            return *outcome;
        }
        let listener = &self.listener;
        let (done, outcome) = match answer {
            Answer::Return(value) => (listener.answer(raw.id, Ok(value)), Outcome::Returned(value)),
            Answer::Fail(errno) => (listener.answer(raw.id, Err(errno)), Outcome::Failed(errno)),
            Answer::Native => (listener.resume(raw.id), Outcome::Native),
            Answer::Passed(outcome) => return outcome,
        };
        if !left.load(Ordering::SeqCst) {
            self.ledger.clear(&slot);
        }
        done.map_or(Outcome::Gone, |()| outcome)
    }
}

/// The `net` interface of a server that stands between.
struct Service<B>(Arc<Work<B>>);

impl<B: Between> net::Server for Service<B> {
    async fn sockets(&self, context: &Context) -> Result<Vec<Socket>, Refused> {
        match &self.0.below {
            Some(below) => Ok(below.sockets().within(context).await?),
            None => Ok(Vec::new()),
        }
    }

    async fn counters(&self, context: &Context) -> Result<Counters, Refused> {
        match &self.0.below {
            Some(below) => Ok(below.counters().within(context).await?),
            None => Ok(Counters { traps: self.0.traps.load(Ordering::Relaxed), ..Counters::default() }),
        }
    }

    async fn trapped(&self, _: &Context, call: Trapped) -> Result<Outcome, Refused> {
        match self.0.ledger.adopt(call.slot, call.id) {
            Some((slot, raw)) => Ok(self.0.clone().answer(slot, raw).await),
            None => Ok(Outcome::Gone),
        }
    }
}
