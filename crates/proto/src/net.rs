//! The network of an environment, as its user's tools see it. The calls of its programs reach a net server as traps.

use serde::{Deserialize, Serialize};

/// One stream socket that the server carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// `LISTEN`, `ESTAB` or `UNCONN`, as ss(8) names them.
    pub state: String,
    /// Local address and port.
    pub local: String,
    /// Peer's address and port; empty for a listener.
    pub peer: String,
}

/// What a net server has done since it started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Traps answered.
    pub traps: u64,
    /// Stream connections made.
    pub connections: u64,
    /// Calls that wait (accept on an empty queue, connect to a full one).
    pub parked: u64,
}

/// A trapped call that a server passes to the one below it. Both share the listener and the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trapped {
    /// The number of its slot in the ledger.
    pub slot: u16,
    /// Names it, as in seccomp_unotify(2). Who is passed it holds it against the slot.
    pub id: u64,
}

/// What became of a trapped call. Whoever says so has answered it, unless it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It returned this to the program.
    Returned(i64),
    /// It failed with this errno.
    Failed(i32),
    /// It went on natively.
    Native,
    /// It waits for something (a connection, room in a backlog), and is answered later.
    Waits,
    /// It was cancelled by a signal, or answered before.
    Gone,
}

hurdle_wire::interface! {
    /// Served by a net server.
    pub mod net = 5 {
        /// Its stream sockets.
        1 idempotent fn sockets() -> Vec<Socket>;
        /// What it has done.
        2 idempotent fn counters() -> Counters;
        /// Answers a trapped call, for the server that stands above.
        3 idempotent fn trapped(call: Trapped) -> Outcome;
    }
}
