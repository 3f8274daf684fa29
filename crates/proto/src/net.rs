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

hurdle_wire::interface! {
    /// Served by a net server.
    pub mod net = 5 {
        /// Its stream sockets.
        1 idempotent fn sockets() -> Vec<Socket>;
        /// What it has done.
        2 idempotent fn counters() -> Counters;
    }
}
