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

/// Attachments of the right, by which a server shows the parent's files: a FUSE connection, and the memory file of its nodes.
pub const SHOWN: (&str, &str) = ("fuse", "nodes");

/// Those of a part that lies above it, if one does: what has no extended attributes.
pub const PLAIN: (&str, &str) = ("fuse-plain", "nodes-plain");

/// All that there can be, the uppermost first.
pub const CONNECTIONS: [(&str, &str); 2] = [PLAIN, SHOWN];

/// Whether an attachment of this name is one of the connections.
pub fn is_connection(name: &str) -> bool {
    CONNECTIONS.iter().any(|(device, _)| *device == name)
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
