//! The files of an environment.

use hurdle_wire::Fd;
use serde::{Deserialize, Serialize};

/// One mount of an environment, as mountinfo has it (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where.
    pub target: String,
    /// The file system's name.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Options of the mount.
    pub options: String,
}

hurdle_wire::interface! {
    /// Served by an fs server.
    pub mod fs = 8 {
        /// Its mounts, in the order they were made.
        1 idempotent fn mounts() -> Vec<Mount>;
        /// The directory of the layer that its changes go to. EINVAL: it has none.
        2 idempotent fn layer() -> Fd;
    }
}
