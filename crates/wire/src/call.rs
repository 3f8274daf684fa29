//! A call: built by a generated client, then waited for or awaited.

use std::fmt::{self, Debug};
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::channel::Message;
use crate::codec;
use crate::connection::{Clock, Connection, DEFAULT_DEADLINE};
use crate::error::CallError;
use crate::frame::{Flags, Header, Kind};
use crate::interface::{CallInfo, Interface};
use crate::print;
use crate::service::Context;
use crate::slots::{Decode, Raw, Waiter, send_later};

/// A call that is not sent yet: [`wait`](Call::wait) for it, `.await` it, or [`send`](Call::send) it to have several in
/// flight. It has a deadline of 30 seconds unless it gets another.
#[must_use = "a call does nothing until it is waited for, awaited or sent"]
pub struct Call<T> {
    connection: Connection,
    request: Result<Message, CallError>,
    header: Header,
    idempotent: bool,
    deadline: Duration,
    finish: Finish<T>,
}

/// What to do with the answer.
struct Finish<T> {
    decode: Decode<T>,
    line: Option<print::Line>,
    print: fn(print::Line, &Result<T, CallError>),
}

impl<T> Finish<T> {
    fn end(&mut self, result: Result<T, CallError>) -> Result<T, CallError> {
        if let Some(line) = self.line.take() {
            (self.print)(line, &result);
        }
        result
    }
}

impl<T> Debug for Call<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("header", &self.header).finish_non_exhaustive()
    }
}

/// A trace id: the same in all calls that one outer call causes, and hardly ever used twice.
fn new_trace() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let seed = *SEED.get_or_init(|| {
        use std::hash::{BuildHasher, RandomState};
        RandomState::new().hash_one(std::process::id())
    });
    seed.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed))
}

impl<T: Serialize + DeserializeOwned + Debug> Call<T> {
    /// Encodes a call. Used by the generated clients.
    #[doc(hidden)]
    pub fn new<A: Serialize>(
        connection: &Connection,
        interface: &'static Interface,
        info: &'static CallInfo,
        arguments: &A,
        show: fn(&A) -> String,
    ) -> Call<T> {
        let trace = new_trace();
        let tap = (connection.0.tap.as_ref(), None);
        let line = print::Line::start(print::Side::Client, interface, info, trace, tap, || show(arguments));
        let request = codec::encode(arguments).map_err(|unsendable| {
            let what = format_args!("the request {}.{}", interface.name, info.name);
            CallError::Refused(unsendable.refused(what))
        });
        let kind = if info.oneway { Kind::OneWay } else { Kind::Call };
        let mut header = Header::new(kind, interface.number, info.number, 0);
        header.trace = trace;
        Call {
            connection: connection.clone(),
            request,
            header,
            idempotent: info.idempotent,
            deadline: DEFAULT_DEADLINE,
            finish: Finish { decode: decode_reply, line, print: |line, result| line.end(result) },
        }
    }
}

fn decode_reply<T: DeserializeOwned>(raw: Raw<'_>) -> Result<T, CallError> {
    if raw.flags.has(Flags::TEXT) {
        return Err(CallError::Misuse("the server answered with text".into()));
    }
    codec::decode(raw.payload, raw.fds).map_err(|error| CallError::Misuse(format!("the result can't be read: {error}")))
}

impl Call<String> {
    /// A call whose arguments and result are JSON.
    pub(crate) fn text(
        connection: &Connection,
        interface: u16,
        call: u16,
        arguments: &str,
        oneway: bool,
    ) -> Call<String> {
        let kind = if oneway { Kind::OneWay } else { Kind::Call };
        let mut header = Header::new(kind, interface, call, 0);
        header.flags = Flags::TEXT;
        header.trace = new_trace();
        Call {
            connection: connection.clone(),
            request: codec::text_message(arguments).map_err(|error| error.refused("the request").into()),
            header,
            idempotent: false,
            deadline: DEFAULT_DEADLINE,
            finish: Finish {
                decode: if oneway { |_| Ok("null".into()) } else { decode_text },
                line: None,
                print: |_, _| (),
            },
        }
    }
}

impl<T> Call<T> {
    /// Whether it may be sent again to the successor of a server that died.
    pub(crate) fn idempotent(mut self, is: bool) -> Call<T> {
        self.idempotent = is;
        self
    }
}

fn decode_text(raw: Raw<'_>) -> Result<String, CallError> {
    match String::from_utf8(raw.payload.to_vec()) {
        Ok(text) if raw.flags.has(Flags::TEXT) => Ok(text),
        _ => Err(CallError::Misuse("the server answered a text call with something else".into())),
    }
}

impl<T> Call<T> {
    /// How long it may take from when it is sent. [`Duration::MAX`] is for ever.
    pub fn deadline(mut self, deadline: Duration) -> Call<T> {
        self.deadline = deadline;
        self
    }

    /// Makes it part of the call that `context` belongs to: the same trace, and no more time than is left.
    pub fn within(mut self, context: &Context) -> Call<T> {
        self.header.trace = context.trace();
        if let Some(deadline) = context.deadline() {
            self.deadline = self.deadline.min(deadline.saturating_duration_since(Instant::now()));
        }
        self
    }

    /// Sends it and blocks until it is answered. Needs no runtime.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn wait(self) -> Result<T, CallError> {
        self.send().wait_on()
    }

    /// Sends it now, to be waited for later. Blocks only while the connection is over its cap of calls in flight or the
    /// queue is full.
    pub fn send(self) -> Pending<T> {
        let mut pending = self.into_future();
        pending.send_blocking();
        pending
    }
}

impl<T> IntoFuture for Call<T> {
    type Output = Result<T, CallError>;
    type IntoFuture = Pending<T>;

    /// It is sent when first polled. Any executor will do.
    fn into_future(self) -> Pending<T> {
        let now = Instant::now();
        let clock = Clock { now, deadline: now.checked_add(self.deadline) };
        let mut header = self.header;
        if self.deadline != Duration::MAX {
            header.set_deadline(self.deadline);
        }
        let step = match self.request {
            Ok(message) => Step::Unsent(message, header),
            Err(error) => Step::Failed(error),
        };
        Pending { connection: self.connection, step, idempotent: self.idempotent, clock, finish: self.finish }
    }
}

/// A call under way. Dropping it cancels the call.
#[must_use = "dropping this cancels the call"]
pub struct Pending<T> {
    connection: Connection,
    step: Step,
    idempotent: bool,
    clock: Clock,
    finish: Finish<T>,
}

enum Step {
    Unsent(Message, Header),
    /// The request id.
    InFlight(u64),
    Failed(CallError),
    /// A one-way call is sent.
    Sent,
    Done,
}

impl<T> Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl<T> Unpin for Pending<T> {}

impl<T> Pending<T> {
    /// Blocks until it is answered.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn wait(mut self) -> Result<T, CallError> {
        self.clock.now = Instant::now();
        self.wait_on()
    }

    /// The same, when the clock was read just now.
    fn wait_on(mut self) -> Result<T, CallError> {
        self.send_blocking();
        let result = match std::mem::replace(&mut self.step, Step::Done) {
            Step::InFlight(request) => self.connection.0.wait(request, self.clock, self.finish.decode),
            Step::Failed(error) => Err(error),
            _ => self.nothing(),
        };
        self.finish.end(result)
    }

    /// The result of a one-way call.
    fn nothing(&self) -> Result<T, CallError> {
        (self.finish.decode)(Raw { flags: Flags::none(), payload: &[], fds: Vec::new() })
    }

    fn send_blocking(&mut self) {
        if let Step::Unsent(..) = self.step {
            let Step::Unsent(message, header) = std::mem::replace(&mut self.step, Step::Done) else { return };
            self.step = self.try_send_blocking(message, header).unwrap_or_else(Step::Failed);
        }
    }

    fn try_send_blocking(&self, mut message: Message, header: Header) -> Result<Step, CallError> {
        let shared = &self.connection.0;
        if header.kind == Kind::OneWay {
            message.address(header);
            if let Some(ended) = &shared.lock().ended {
                return Err(ended.clone());
            }
            return shared.send(&message, self.clock.deadline).map(|()| Step::Sent);
        }
        let (request, addressed) = shared.admit(message, header, self.idempotent, self.clock)?;
        if let Err(error) = shared.send(addressed.message(), self.clock.deadline) {
            shared.lock().forget(request, shared);
            return Err(error);
        }
        Ok(Step::InFlight(request))
    }

    /// Sends without blocking. `Unsent` again if there is no room for another call.
    fn try_send(&self, mut message: Message, mut header: Header, waker: &Waker) -> Step {
        let shared = &self.connection.0;
        let mut state = shared.lock();
        if let Some(ended) = &state.ended {
            return Step::Failed(ended.clone());
        }
        if self.clock.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Step::Failed(CallError::Timeout);
        }
        if header.kind != Kind::OneWay && !state.has_room() {
            state.wait_for_room(Waiter::Task(waker.clone()), self.clock.deadline);
            state.task_waits(self.clock.deadline, shared);
            return Step::Unsent(message, header);
        }
        let request = if header.kind == Kind::OneWay { 0 } else { state.take_slot(self.clock.deadline) };
        header.request = request;
        message.address(header);
        let message = Arc::new(message);
        if self.idempotent {
            state.keep(request, &message);
        }
        drop(state);
        match send_later(&message, self.clock.deadline, request, shared) {
            Err(error) => {
                shared.lock().forget(request, shared);
                Step::Failed(shared.send_failed(error))
            }
            Ok(()) if request == 0 => Step::Sent,
            Ok(()) => Step::InFlight(request),
        }
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Step::Unsent(..) = this.step {
            let Step::Unsent(message, header) = std::mem::replace(&mut this.step, Step::Done) else {
                return Poll::Pending;
            };
            this.step = this.try_send(message, header, cx.waker());
        }
        let result = match &this.step {
            Step::Unsent(..) => return Poll::Pending,
            Step::InFlight(request) => {
                let shared = &this.connection.0;
                let mut state = shared.lock();
                let Some(outcome) = state.take_outcome(*request) else {
                    state.wait_in(*request, Waiter::Task(cx.waker().clone()));
                    state.task_waits(this.clock.deadline, shared);
                    return Poll::Pending;
                };
                state.hand_over(shared);
                drop(state);
                outcome.and_then(|reply| reply.decode(this.finish.decode))
            }
            Step::Failed(error) => Err(error.clone()),
            Step::Sent => this.nothing(),
            Step::Done => Err(CallError::Cancelled),
        };
        this.step = Step::Done;
        Poll::Ready(this.finish.end(result))
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if let Step::InFlight(request) = self.step {
            let shared = &self.connection.0;
            shared.lock().give_up(request, shared);
        }
    }
}
