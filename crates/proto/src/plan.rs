//! What the chosen servers ask of an environment at its launch, before any of them runs: namespaces, id maps, mounts,
//! trapped calls. Each server crate adds its share; the core carries the sum out without knowing what it is for.

use std::io;
use std::path::PathBuf;

use hurdle_sys::ns::{Extent, Ids, Namespaces, own_ids};
use hurdle_sys::seccomp::Rule;

/// One step that init takes in the new mount namespace, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountStep {
    /// A new instance of a kernel file system (`proc`, `tmpfs`, `devpts`, `sysfs`) at a directory.
    Instance {
        /// The file system's name.
        kind: &'static str,
        /// Where, seen from the environment's root; made if missing.
        target: PathBuf,
        /// Mount options, as mount(8) takes them behind `-o`.
        options: String,
    },
    /// A file or a directory, with what is mounted below it, shown at a second place.
    Bind {
        /// As the caller of `hurdle run` names it.
        source: PathBuf,
        /// Where, seen from the environment's root; made if missing.
        target: PathBuf,
    },
    /// A symbolic link.
    Symlink {
        /// What it says.
        text: PathBuf,
        /// Where it stands, seen from the environment's root.
        target: PathBuf,
    },
}

/// Who inside is who outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// Extents of user ids.
    pub users: Vec<Extent>,
    /// Extents of group ids.
    pub groups: Vec<Extent>,
    /// Who writes them.
    pub writer: MapWriter,
}

impl IdMap {
    /// Ids as they are outside: all that root has, else the caller's own.
    pub fn same() -> io::Result<IdMap> {
        let (uid, gid) = hurdle_sys::process::effective_ids();
        let own = |id| vec![Extent { inside: id, outside: id, count: 1 }];
        Ok(if uid == 0 {
            IdMap { users: own_ids(Ids::Users)?, groups: own_ids(Ids::Groups)?, writer: MapWriter::Core }
        } else {
            IdMap { users: own(uid), groups: own(gid), writer: MapWriter::Itself }
        })
    }
}

/// Who may write an id map (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapWriter {
    /// The new process itself: its own id alone.
    Itself,
    /// The core, when it is root.
    Core,
    /// newuidmap(1) and newgidmap(1): ranges that /etc/subuid grants.
    Helper,
}

/// The sum of what the servers of one environment need.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Namespaces of its own.
    pub namespaces: Namespaces,
    /// Its ids.
    pub ids: IdMap,
    /// The directory that becomes its `/`; `None`: the parent's.
    pub root: Option<PathBuf>,
    /// Its mounts, in order.
    pub mounts: Vec<MountStep>,
    /// Its host name, if not the parent's.
    pub host_name: Option<String>,
    /// Whether `lo` of its own network is brought up.
    pub loopback: bool,
    /// Its trapped calls, and who answers them; empty: no filter at all.
    pub traps: Vec<Rule>,
    /// Whether programs may gain privileges *inside* by setuid files (su, sudo).
    pub setuid: bool,
    /// What the user should know before he relies on it, a line each.
    pub notes: Vec<String>,
}

impl Plan {
    /// All shared, but for the namespaces that every environment has; ids as outside.
    pub fn new() -> io::Result<Plan> {
        Ok(Plan {
            namespaces: Namespaces::BASE,
            ids: IdMap::same()?,
            root: None,
            mounts: Vec::new(),
            host_name: None,
            loopback: false,
            traps: Vec::new(),
            setuid: false,
            notes: Vec::new(),
        })
    }
}
