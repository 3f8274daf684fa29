//! What belongs to another process: its memory, its fds, and the sockets that were made for it.
//!
//! - [`memory`]: its memory (process_vm_readv(2));
//! - [`Tasks`]: its fds, fetched by thread (pidfd_getfd(2)), and whether it is in a given [`Network`];
//! - [`socket`]: calls on a socket on behalf of its owner, AF_UNIX with abstract names above all (unix(7));
//! - [`Held`]: where it has a socket, to put another in its place;
//! - [`Mint`]: makes sockets in another network namespace;
//! - [`Alarm`]: bounds a call on a socket that could wait;
//! - [`call_again`]: has calls made again whose answer nobody knows of.

mod again;
mod alarm;
mod held;
pub mod memory;
mod mint;
pub mod socket;
mod tasks;

pub use again::call_again;
pub use alarm::Alarm;
pub use held::Held;
pub use mint::{Begun, Made, Mint, Recipe};
pub use tasks::{Network, Tasks, raise_fd_limit};
