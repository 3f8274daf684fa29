//! What a net server needs, whatever carries its data:
//! - [`address`]: inet endpoints as programs write and read them;
//! - [`name`]: the same as abstract AF_UNIX names, so that the kernel's own socket table holds them;
//! - [`mark`]: the options that a socket remembers, in the 64 bits which the kernel keeps for it;
//! - [`ports`]: which ports are bound, and who conflicts with whom;
//! - [`table`]: rows of a syscall table, from which filter, dispatcher and documentation derive;
//! - [`trace`]: trapped calls as text, for who traces;
//! - [`between`]: a whole net server of one's own, alone or between others.
//!
//! Nothing here but the last two does a system call.

pub mod address;
pub mod between;
pub mod mark;
pub mod name;
pub mod ports;
pub mod table;
pub mod trace;
