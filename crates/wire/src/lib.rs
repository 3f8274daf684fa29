//! Typed messages over SEQPACKET channels: what every part of hurdle speaks.
//!
//! ```
//! use hurdle_wire::{Channel, Context, Refused, ServeOptions, serve};
//!
//! hurdle_wire::interface! {
//!     /// Says hello.
//!     pub mod hello = 1000 {
//!         /// A greeting for `name`.
//!         1 idempotent fn greet(name: String) -> String;
//!     }
//! }
//! struct Greeter;
//! impl hello::Server for Greeter {
//!     async fn greet(&self, _: &Context, name: String) -> Result<String, Refused> {
//!         Ok(format!("hello {name}"))
//!     }
//! }
//!
//! let (ours, theirs) = Channel::pair()?;
//! std::thread::spawn(move || serve(&theirs, &hello::service(Greeter).into(), &ServeOptions::default()));
//! let client = hello::Client::from(ours);
//! assert_eq!(client.greet("world".into()).wait()?, "hello world");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Layout, from the bytes up:
//! - [`mod@frame`]: the header in front of every message; [`channel`]: whole frames through a socket;
//! - `codec`: arguments to bytes, the one module that names bincode; `fd`: open files as typed arguments;
//! - [`mod@interface`] and [`interface!`]: an interface declared once; `print`: its calls as lines of trace;
//! - `service` and `serve`: the server's side; `connection`, `slots`, `reader`, `call`: the client's;
//! - `error`: refusal, misuse, death; [`tap`]: calls reported to who traces them.
//!
//! Principles:
//! - **A round trip is two system calls on each side.** There is no event loop on the way: a server blocks in recvmsg
//!   and runs the handler on the spot, a waiting client receives its own reply. Only a handler that has to wait moves to
//!   another thread.
//! - **Nothing that came from outside is believed.** Sizes, counts, seals and indices are checked before use; what is
//!   wrong is answered with a reason. A bad frame ends its channel, bad arguments only their call.
//! - **A server may die at any moment.** The wire sends idempotent calls again to the successor and reports the others.
//! - **Nobody waits for another client.** Each channel has its own caps on calls, bytes and fds in flight, and who is
//!   over them waits alone.

mod call;
pub mod channel;
mod codec;
mod connection;
mod error;
mod fd;
pub mod frame;
#[doc(hidden)]
pub mod fuzz;
pub mod interface;
mod macros;
mod print;
mod reader;
mod runtime;
mod serve;
mod service;
mod slots;
pub mod tap;
mod text;

pub use call::{Call, Pending};
pub use channel::{Channel, announce_death};
pub use connection::{Connection, DEFAULT_DEADLINE};
pub use error::{CallError, Refused};
pub use fd::{Bytes, Fd};
pub use frame::{FDS_MAX, HEADER_LEN, INLINE_MAX, PAYLOAD_MAX};
pub use interface::{CallDescription, CallInfo, Description, Interface, shape};
pub use serve::{End, Limits, ServeOptions, Stopper, serve, serve_once};
pub use service::{Answer, Answering, Context, Incoming, Peer, Router, Service};
pub use text::{call_text, describe, describe_within};

/// What the expansion of `interface!` uses.
#[doc(hidden)]
pub mod __private {
    pub use crate::interface::check_numbers;
    pub use crate::print::{arguments as print_arguments, field, result as print_result};
    pub use crate::service::run;

    /// The answer of a server to a call that it does not implement.
    pub fn not_implemented(interface: &crate::Interface, call: &str) -> crate::Refused {
        crate::Refused::new(libc::ENOSYS, format!("{}.{call} is not implemented by this server", interface.name))
    }
}
