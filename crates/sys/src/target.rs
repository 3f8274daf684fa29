//! What belongs to another process: its memory, its fds, and the sockets that were made for it.
//!
//! - [`memory`]: its memory (process_vm_readv(2));
//! - [`Tasks`]: its fds, fetched by thread (pidfd_getfd(2)), and whether it is in a given [`Network`];
//! - [`socket`]: calls on a socket on behalf of its owner, AF_UNIX with abstract names above all (unix(7));
//! - [`Mint`]: makes sockets in a private network namespace.

pub mod memory;
mod mint;
pub mod socket;
mod tasks;

pub use mint::{Made, Mint, Recipe};
pub use tasks::{Network, Tasks, raise_fd_limit};
