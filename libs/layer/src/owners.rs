//! Owners of files, told from where this process stands: outside the environment, or inside a user namespace like it, where it
//! can read all that the environment wrote and can't tell who owns most of the host's files.

use crate::ids::{Ids, Which};

/// Tells the owner that a path of the host has there: (uid, gid). Each path is absolute; the answers come in the same order.
pub trait Ask: Send + Sync {
    /// `None` for what can't be told.
    fn owners(&mut self, paths: &[std::path::PathBuf]) -> Vec<Option<(u32, u32)>>;
}

/// Where this process stands.
pub struct Owners {
    /// The namespace that it is in, if not the host's.
    inside: Option<Ids>,
    /// The host's groups that the layer's owner is a member of.
    pub(crate) member: Vec<u32>,
    pub(crate) ask: Option<Box<dyn Ask>>,
}

impl std::fmt::Debug for Owners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owners").field("inside", &self.inside).field("member", &self.member).finish_non_exhaustive()
    }
}

/// What the kernel shows for an id that the namespace has no number for (`/proc/sys/kernel/overflowuid`).
pub(crate) const UNMAPPED: u32 = 65534;

impl Owners {
    /// On the host: numbers are the host's. Its groups are the caller's.
    pub fn outside() -> Owners {
        Owners { inside: None, member: groups(), ask: None }
    }

    /// In a user namespace with these ids. `member`: the host's groups of who started it; `ask`: one who stands outside, and is
    /// asked for what has no number here.
    pub fn inside(own: Ids, member: Vec<u32>, ask: Option<Box<dyn Ask>>) -> Owners {
        Owners { inside: Some(own), member, ask }
    }

    pub(crate) fn is_outside(&self) -> bool {
        self.inside.is_none()
    }

    /// The host's number for an owner seen from here; `None` if it can't be told.
    pub(crate) fn on_host(&self, which: Which, seen: u32) -> Option<u32> {
        match &self.inside {
            None => Some(seen),
            Some(_) if seen == UNMAPPED => None,
            Some(own) => own.outside(which, seen),
        }
    }

    /// The environment's number, by its own `ids`, for the owner of an entry of its layer, seen from here.
    pub(crate) fn in_layer(&self, ids: &Ids, which: Which, seen: u32) -> Option<u32> {
        // Here nothing lies that has no number, so that the kernel's number for it is the environment's nobody.
        let outside = match &self.inside {
            None => Some(seen),
            Some(own) => own.outside(which, seen),
        };
        ids.inside(which, outside?)
    }

    /// The number to hand to the kernel here for the host's `id`; `None` if this process has none.
    pub(crate) fn to_kernel(&self, which: Which, id: u32) -> Option<u32> {
        match &self.inside {
            None => Some(id),
            Some(own) => own.inside(which, id),
        }
    }
}

/// The caller's supplementary groups (getgroups(2)).
fn groups() -> Vec<u32> {
    rustix::process::getgroups().unwrap_or_default().into_iter().map(|gid| gid.as_raw()).collect()
}
