//! The server's side of an interface: what a handler is told about its caller, and how a request becomes an answer.
//!
//! A [`Service`] is what [`interface!`](crate::interface) generates around an implementation of its `Server` trait: it
//! decodes the arguments, bincode or text alike, runs the handler and encodes the result. A [`Router`] holds the
//! services of one channel by their interface numbers and answers `describe` for all of them.

use std::fmt::Debug;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::channel::Message;
use crate::error::{CallError, ErrorFrame, Refused};
use crate::frame::{Flags, HEADER_LEN, Header, Kind};
use crate::interface::{CallInfo, Description, Interface};
use crate::tap::Tap;
use crate::{codec, print};

/// Who is at the other end, as the kernel said when the channel was lent. Never taken from a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Process id, or 0 where no single process holds the other end.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// A number of the lender's choosing, to tell one channel's clients from another's.
    pub badge: u64,
}

/// What a handler is told about the call that it answers.
#[derive(Clone, Debug)]
pub struct Context {
    peer: Peer,
    deadline: Option<Instant>,
    trace: u64,
    cancelled: Arc<AtomicBool>,
}

impl Context {
    pub(crate) fn new(peer: Peer, header: &Header) -> Context {
        let deadline = match header.deadline {
            0 => None,
            left => Instant::now().checked_add(Duration::from_micros(left)),
        };
        Context { peer, deadline, trace: header.trace, cancelled: Arc::new(AtomicBool::new(false)) }
    }

    /// Who calls.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// When the caller stops waiting. The handler's future is dropped then.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The same in all calls that one outer call causes.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// Whether the caller lost interest. A handler that awaits need not ask: its future is dropped. This is for work
    /// that it handed to a thread, which a clone of the context may accompany.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// A request that has passed all checks but those of its arguments' types.
#[derive(Debug)]
pub struct Incoming<'a> {
    pub(crate) header: Header,
    pub(crate) payload: &'a [u8],
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) context: Context,
    pub(crate) tap: &'a Tap,
}

/// An answer ready to be sent.
#[derive(Debug)]
pub struct Answer {
    pub(crate) kind: Kind,
    pub(crate) flags: Flags,
    pub(crate) message: Message,
}

/// A handler at work.
pub type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// An interface as served by something. Implemented by what [`interface!`](crate::interface) generates.
pub trait Service: Send + Sync + 'static {
    /// Which interface this is.
    fn interface(&self) -> &'static Interface;

    /// Starts to answer one request. The future is first polled on the thread that received it.
    fn dispatch(&self, incoming: Incoming<'_>) -> Answering;
}

impl Incoming<'_> {
    /// The number of the call.
    pub fn call(&self) -> u16 {
        self.header.call
    }

    /// Decodes the arguments.
    fn arguments<A: DeserializeOwned>(&mut self, info: &CallInfo) -> Result<A, String> {
        let fds = std::mem::take(&mut self.fds);
        let decoded = if self.header.flags.has(Flags::TEXT) {
            let names: Vec<_> = info.arguments.iter().map(|(name, _)| *name).collect();
            if fds.is_empty() { codec::decode_text(self.payload, &names) } else { Err("fds beside text".into()) }
        } else {
            codec::decode(self.payload, fds)
        };
        decoded.map_err(|error| format!("the arguments of {} can't be read: {error}", info.name))
    }

    /// Answers what can't be understood.
    fn misused(&self, interface: &str, call: &str, reason: String) -> Answering {
        print::aside(self.tap, self.context.peer, interface, call, Some(&reason));
        ready(Answer::misuse(reason))
    }

    /// Answers that there is no such call.
    #[doc(hidden)]
    pub fn unknown(self, interface: &Interface) -> Answering {
        self.misused(
            interface.name,
            &self.header.call.to_string(),
            format!("interface {} has no call {}", interface.name, self.header.call),
        )
    }
}

/// Decodes, runs `handler`, encodes: the body of every generated dispatch.
#[doc(hidden)]
pub fn run<A, R, F>(
    mut incoming: Incoming<'_>,
    interface: &'static Interface,
    info: &'static CallInfo,
    show: fn(&A) -> String,
    handler: impl FnOnce(Context, A) -> F,
) -> Answering
where
    A: DeserializeOwned,
    R: Serialize + Debug,
    F: Future<Output = Result<R, Refused>> + Send + 'static,
{
    let arguments = match incoming.arguments::<A>(info) {
        Ok(arguments) => arguments,
        Err(error) => return incoming.misused(interface.name, info.name, error),
    };
    let tap = (Some(incoming.tap), Some(incoming.context.peer));
    let trace =
        print::Line::start(print::Side::Server, interface, info, incoming.header.trace, tap, || show(&arguments));
    let text = incoming.header.flags.has(Flags::TEXT);
    let future = handler(incoming.context, arguments);
    Box::pin(async move {
        let result = future.await;
        if let Some(trace) = trace {
            trace.end(&result);
        }
        Answer::from_result(&result, text)
    })
}

pub(crate) fn ready(answer: Answer) -> Answering {
    Box::pin(std::future::ready(answer))
}

impl Answer {
    /// A handler's result. One that can't be encoded is refused with the reason.
    pub(crate) fn from_result<R: Serialize>(result: &Result<R, Refused>, text: bool) -> Answer {
        let (flags, encoded) = match result {
            Err(refused) => return Answer::error(&ErrorFrame::Failed(CallError::Refused(refused.clone()))),
            Ok(value) if text => (Flags::TEXT, codec::encode_text(value)),
            Ok(value) => (Flags::none(), codec::encode(value)),
        };
        match encoded {
            Ok(message) => Answer { kind: Kind::Reply, flags, message },
            Err(unsendable) => Answer::error(&ErrorFrame::Failed(CallError::Refused(unsendable.refused("the result")))),
        }
    }

    pub(crate) fn misuse(reason: String) -> Answer {
        Answer::error(&ErrorFrame::Failed(CallError::Misuse(reason)))
    }

    pub(crate) fn refused(errno: i32, reason: impl Into<String>) -> Answer {
        Answer::error(&ErrorFrame::Failed(CallError::Refused(Refused::new(errno, reason))))
    }

    pub(crate) fn error(error: &ErrorFrame) -> Answer {
        // A reason so long that it can't be sent is replaced by an empty frame, which the client reports as unreadable.
        let message = codec::encode(error).unwrap_or_else(|_| Message::inline(vec![0; HEADER_LEN], Vec::new()));
        Answer { kind: Kind::Error, flags: Flags::none(), message }
    }
}

/// The services of a channel, by interface number.
#[derive(Clone, Default)]
pub struct Router {
    services: Vec<Arc<dyn Service>>,
    refusing: Option<Refused>,
}

impl Router {
    /// One that serves nothing yet.
    pub fn new() -> Router {
        Router::default()
    }

    /// One that refuses every call of every interface: what stands in for a server that failed for good.
    pub fn refusing(refused: Refused) -> Router {
        Router { services: Vec::new(), refusing: Some(refused) }
    }

    /// Adds a service. It replaces one of the same interface number.
    #[must_use]
    pub fn with(mut self, service: impl Service) -> Router {
        self.add(Arc::new(service));
        self
    }

    /// Adds a service. It replaces one of the same interface number.
    pub fn add(&mut self, service: Arc<dyn Service>) {
        self.services.retain(|old| old.interface().number != service.interface().number);
        self.services.push(service);
    }

    /// The interfaces served.
    pub fn interfaces(&self) -> impl Iterator<Item = &'static Interface> {
        self.services.iter().map(|service| service.interface())
    }

    fn find(&self, number: u16) -> Option<&Arc<dyn Service>> {
        self.services.iter().find(|service| service.interface().number == number)
    }

    /// Whether a call may be sent again to a successor.
    pub(crate) fn idempotent(&self, interface: u16, call: u16) -> bool {
        let info = self.find(interface).and_then(|service| service.interface().call(call));
        call == 0 || info.is_some_and(|info| info.idempotent)
    }

    pub(crate) fn dispatch(&self, incoming: Incoming<'_>) -> Answering {
        let Header { interface, call, .. } = incoming.header;
        if let Some(refused) = &self.refusing {
            return ready(Answer::error(&ErrorFrame::Failed(CallError::Refused(refused.clone()))));
        }
        if call == 0 {
            if incoming.tap.on() {
                let names: Vec<&str> = self.described(interface).map(|interface| interface.name).collect();
                print::aside(incoming.tap, incoming.context.peer, &names.join(" "), "describe", None);
            }
            return ready(self.describe(interface, incoming.header.flags.has(Flags::TEXT)));
        }
        match self.find(interface) {
            Some(service) => service.dispatch(incoming),
            None => {
                let served: Vec<_> = self.interfaces().map(|interface| interface.name).collect();
                let reason = format!("interface {interface} is not served here, only {}", served.join(", "));
                incoming.misused(&interface.to_string(), &call.to_string(), reason)
            }
        }
    }

    /// Call 0: of interface 0, all interfaces; of another, that one.
    fn describe(&self, interface: u16, text: bool) -> Answer {
        let list: Vec<Description> = self.described(interface).map(Interface::describe).collect();
        Answer::from_result(&Ok(list), text)
    }

    fn described(&self, number: u16) -> impl Iterator<Item = &'static Interface> {
        self.interfaces().filter(move |interface| number == 0 || interface.number == number)
    }
}

impl<S: Service> From<S> for Router {
    fn from(service: S) -> Router {
        Router::new().with(service)
    }
}

impl From<Arc<dyn Service>> for Router {
    fn from(service: Arc<dyn Service>) -> Router {
        Router { services: vec![service], refusing: None }
    }
}
