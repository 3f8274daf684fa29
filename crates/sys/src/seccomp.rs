//! System calls trapped to user space (seccomp(2), seccomp_unotify(2)).
//!
//! - [`Filter`]: a table of [`Rule`]s compiled to BPF and put on the calling thread, which yields the listener;
//! - [`Listener`]: receives what the filter trapped, and answers it with a value, an errno, an fd, or "go on natively";
//! - [`Ledger`]: shared memory that trapped calls are received *into*, so that whoever holds it and the listener next
//!   can answer what a dead handler left unanswered. The kernel delivers a call only once.
//!
//! The filter never asks for WAIT_KILLABLE_RECV unless told to: without it a signal cancels a trapped call, and the
//! program traps again afterwards, which is what makes EINTR and SA_RESTART work for a call that is parked.

mod filter;
mod ledger;
mod listener;

pub use filter::{Action, ArgMatch, Filter, ListenerFlags, Rule};
pub use ledger::{Height, LEDGER_SLOTS, Ledger, Slot};
pub(crate) use listener::interrupt_signal;
pub use listener::{Call, Listener, interrupt, interrupt_number, interrupt_process, interruptible};
