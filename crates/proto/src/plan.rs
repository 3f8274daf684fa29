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
    /// A new instance of a kernel file system over the parent's one, whose further mounts stay in their places. Where the kernel
    /// does not allow it, or nothing is there, the parent's remains.
    Renew {
        /// The file system's name.
        kind: &'static str,
        /// Where, seen from the environment's root.
        target: PathBuf,
    },
    /// A file or a directory, with what is mounted below it, shown at a second place.
    Bind {
        /// As the caller of `hurdle run` names it.
        source: PathBuf,
        /// Where, seen from the environment's root; made if missing.
        target: PathBuf,
        /// Whether it can't be written there: EROFS.
        read_only: bool,
    },
    /// A file or a directory of the parent's at its own place, which nobody can write or make writable: an overlay without a
    /// layer. The root is [`Root::Layered`].
    Frozen {
        /// Where.
        target: PathBuf,
        /// Whether it is a directory.
        directory: bool,
    },
    /// An empty directory or file in the place of what is there, which can't be written. Nothing, if nothing is there.
    Hide {
        /// What is covered, seen from the environment's root.
        target: PathBuf,
    },
    /// What is mounted there by now, and all that is mounted below it, can't be written any more: EROFS.
    ReadOnly {
        /// Where, seen from the environment's root.
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

impl MountStep {
    /// Where a part of the parent's files is shown.
    pub fn shared(&self) -> Option<&std::path::Path> {
        match self {
            MountStep::Bind { target, .. } | MountStep::Frozen { target, .. } => Some(target),
            _ => None,
        }
    }
}

/// What becomes the environment's `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The parent's.
    Parent,
    /// This directory.
    Directory(PathBuf),
    /// The parent's, and what the environment changes goes to a layer above it.
    Layered(Layered),
}

impl Root {
    /// Whether the fs server shows the parent's files through FUSE ([`Layered::mirrored`]).
    pub fn is_mirrored(&self) -> bool {
        matches!(self, Root::Layered(layered) if layered.mirrored)
    }
}

/// Files that stand apart from the parent's: kernel overlays (overlayfs in the kernel's documentation) on its file systems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layered {
    /// Where the changes go.
    pub place: Place,
    /// What is overlaid, `/` first.
    pub mounts: Vec<Overlaid>,
    /// Paths of the parent's that are not there inside, by any name. Where the fs server shows the files it must see to that.
    pub hidden: Vec<PathBuf>,
    /// Whether the fs server shows the parent's files through FUSE, as a caller without privileges over the host needs:
    /// files of ids that are not his can't be copied up else. Then there is one mount, `/`.
    pub mirrored: bool,
    /// Directories of the parent's whose large files are read, and copied, past the fs server that shows them, where the kernel can.
    /// A path that is found in one of them is not looked for in those after it. The server is told of those that can be by
    /// an attachment, `content`: a memory file of their paths, with a NUL after each.
    pub content: Vec<PathBuf>,
}

/// The first of [`Layered::content`]: what programs are made of.
pub const CONTENT: &str = "/usr";

/// Where a layer lies. In it each mount has a directory with an `upper` and a `work`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In memory, as long as the environment lives: options of its tmpfs, and what `layer.json` says.
    Memory {
        /// As tmpfs(5) takes them.
        options: Vec<(String, String)>,
        /// The file's text.
        label: Vec<u8>,
    },
    /// This directory, which is there already.
    Directory(PathBuf),
    /// Nowhere: each is refused (EROFS). An overlay without a layer can't be made to take any, not even by root inside.
    Nowhere,
}

/// One overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlaid {
    /// Which of the parent's file systems: where it is mounted.
    pub at: PathBuf,
    /// Its directory in the layer.
    pub dir: String,
    /// Upper directories of the layers in between, the newest first.
    pub bases: Vec<PathBuf>,
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

impl IdMap {
    /// Whether the caller is root inside, who may undo what was mounted there.
    pub fn is_root(&self) -> bool {
        let own = hurdle_sys::process::effective_ids().0;
        self.users.iter().any(|extent| extent.inside == 0 && extent.outside == own)
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
    /// Its files.
    pub root: Root,
    /// Its mounts, in order.
    pub mounts: Vec<MountStep>,
    /// Its host name, if not the parent's.
    pub host_name: Option<String>,
    /// Whether `lo` of its own network is brought up.
    pub loopback: bool,
    /// Its trapped calls, and who answers them; empty: no filter at all.
    pub traps: Vec<Rule>,
    /// Whether programs must be kept from typing on the terminal that they share with the caller.
    pub guard_terminal: bool,
    /// Whether programs may gain privileges *inside* by setuid files (su, sudo).
    pub setuid: bool,
    /// What the user should know before he relies on it, a line each.
    pub notes: Vec<String>,
}

impl Plan {
    /// All shared, but for the namespaces that every environment has; ids as outside.
    pub fn new() -> io::Result<Plan> {
        Ok(Plan::of(IdMap::same()?))
    }

    /// The same with these ids.
    pub fn of(ids: IdMap) -> Plan {
        Plan {
            namespaces: Namespaces::BASE,
            ids,
            root: Root::Parent,
            mounts: Vec::new(),
            host_name: None,
            loopback: false,
            traps: Vec::new(),
            guard_terminal: false,
            setuid: false,
            notes: Vec::new(),
        }
    }
}
