//! The standard net servers: what network the programs of an environment see.
//!
//! - `share`: the parent's own; there is no server and no trap;
//! - `none`: an empty network namespace with loopback up; no trap either;
//! - `local`: as `none`, and stream sockets between the environment's processes are carried by AF_UNIX sockets, which
//!   the kernel moves faster than its loopback ([`local`]);
//! - `delay`: each connect(2) takes longer; it stands on another server.
//!
//! [`plan`] says what a spec needs when an environment is made. [`table`] is the one place that says which system
//! call is trapped, who answers it, and how far it goes.

mod delay;
pub mod local;
mod plan;
mod serve;
pub mod table;

pub use plan::{KINDS, Kind, Kinds, may_swap, plan};
pub use serve::serve;
pub use table::compatibility_markdown;
