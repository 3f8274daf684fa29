//! The steps of a commit. Each may be done again, also when it was done before by half: what it finds tells it what is left.

use serde::{Deserialize, Serialize};

use crate::at::Stat;

/// A path below a mount of the layer: on the host and in the upper directory alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spot {
    #[serde(rename = "m")]
    pub(crate) mount: usize,
    #[serde(rename = "p", with = "name")]
    pub(crate) rel: Vec<u8>,
}

/// How a file gets from the layer to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    /// It moves: one rename(2), nothing is copied.
    Take,
    /// A copy is made beside the target and renamed over it.
    Copy,
    /// It becomes another name of the file that an earlier step put there.
    Link(Spot),
}

/// Whose a file is to be, in the numbers of the process that commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The owner is another than the environment's, since this process can't give it to that one: no program may run as him
    /// because of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) instead: bool,
}

impl Owner {
    /// The same, but in a commit of what still runs (`keep`) no program may run as him if the file is another's by now: who may put
    /// files of his own in its place is not to give them this owner.
    pub(crate) fn unless_another(&self, now: &Stat, keep: bool) -> Owner {
        let another = keep && (now.uid, now.gid) != (self.uid, self.gid);
        Owner { instead: self.instead || another, ..*self }
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// In the layer: a directory that nothing shines through gets a mark for each thing of the host's `below` that it hides
    /// instead, since a part of what it holds goes to the host.
    Unhide { at: Spot, below: Option<Spot> },
    /// In the layer: a file that was renamed or linked, and stays, forgets what it was copied from. The kernel takes files of one
    /// origin for one file, and the host's may show again.
    Forget { at: Spot },
    /// Waits until all that was done so far is on disk.
    Sync,
    /// On the host: directory `from` moves aside into slot `slot`.
    Away { from: Spot, ino: u64, slot: usize },
    /// On the host: what moved into `slot` comes to its new place.
    Back { slot: usize, at: Spot },
    /// On the host: what is in the way moves aside, to be removed.
    Trash { at: Spot, ino: u64 },
    /// On the host: a directory, open to its owner.
    Dir { at: Spot },
    /// On the host: a directory that is there is opened to its owner.
    Open { at: Spot },
    /// From the layer to the host: a file.
    Put { at: Spot, way: Way, owner: Owner, marked: bool },
    /// On the host: the attributes of what is there become those of the layer's entry.
    Dress { at: Spot, owner: Owner, time: bool },
    /// On the host: a file goes.
    Unlink { at: Spot, ino: u64 },
    /// On the host: what step `number` moved aside goes.
    Sweep { at: Spot, number: usize },
    /// On the host: the directory of the slots goes.
    Unslot { mount: usize },
    /// In the layer: the entry goes; a directory that still holds something stays, and loses its redirect.
    Clean { at: Spot },
}

impl Step {
    /// Where it happens, for messages.
    pub(crate) fn spot(&self) -> Option<&Spot> {
        match self {
            Step::Unhide { at, .. }
            | Step::Forget { at }
            | Step::Back { at, .. }
            | Step::Trash { at, .. }
            | Step::Dir { at }
            | Step::Open { at }
            | Step::Put { at, .. }
            | Step::Dress { at, .. }
            | Step::Unlink { at, .. }
            | Step::Sweep { at, .. }
            | Step::Clean { at } => Some(at),
            Step::Away { from, .. } => Some(from),
            Step::Sync | Step::Unslot { .. } => None,
        }
    }
}

/// A path as text that its bytes can be had back from.
mod name {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&crate::text::escape(value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = crate::text::unescape(&text).ok_or_else(|| serde::de::Error::custom("a path with a bad escape"))?;
        // Nothing in a journal leads out of the tree.
        match bytes.split(|b| *b == b'/').any(|part| part == b".." || part.contains(&0)) || bytes.starts_with(b"/") {
            true => Err(serde::de::Error::custom("a path that leads out of its tree")),
            false => Ok(bytes),
        }
    }
}
