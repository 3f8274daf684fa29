//! Who the environment's processes are.

use serde::{Deserialize, Serialize};

/// The ids of one process, as the host's kernel has them and as the environment sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Its pid inside.
    pub pid: i32,
    /// Effective user id inside.
    pub uid: u32,
    /// Effective group id inside.
    pub gid: u32,
    /// Effective user id outside.
    pub outer_uid: u32,
    /// Effective group id outside.
    pub outer_gid: u32,
    /// Supplementary group ids outside.
    pub outer_groups: Vec<u32>,
}

/// One line of an id map (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapLine {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The id maps of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maps {
    /// Of users.
    pub users: Vec<MapLine>,
    /// Of groups.
    pub groups: Vec<MapLine>,
}

hurdle_wire::interface! {
    /// Served by an auth server.
    pub mod auth = 6 {
        /// The environment's id maps.
        1 idempotent fn maps() -> Maps;
        /// The ids of a process (a pid inside).
        2 idempotent fn ids(pid: i32) -> Ids;
    }
}
