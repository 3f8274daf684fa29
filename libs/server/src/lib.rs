//! What every server needs: it borrows a receive right from the core, serves it, and returns it.
//!
//! A whole server is a `main` that calls [`run`] (see `examples/greet.rs`, which is one). Whoever starts it hands it a
//! bootstrap channel on fd 3; everything else comes with the right, as a [`Borrowed`].
//!
//! - `borrowed`: the right and what comes with it; `run`: the life of a server; `target`: the processes of an environment;
//!   `awake`: wake-ups in bursts of calls; `below`: the server that another one stands on; `confine`: walls around itself.

mod awake;
mod below;
mod borrowed;
mod confine;
mod run;
mod target;

pub use awake::{Awake, spare_cpu};
pub use below::Below;
pub use borrowed::Borrowed;
pub use confine::{Reads, Sockets, confine_calls, confine_files, drop_capabilities};
pub use hurdle_sys::process::numbers::*;
pub use run::run;
pub use target::{OVERFLOW_ID, Process, Target, inside};
