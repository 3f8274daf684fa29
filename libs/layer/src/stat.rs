//! Changes in numbers.

use serde::Serialize;

use crate::change::{Change, Kind};
use crate::error::Result;
use crate::layer::Layer;
use crate::owners::Owners;
use crate::view::View;
use crate::walk::{Options, walk};

/// How many changes of each kind, and what they come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Stat {
    /// New files and directories.
    pub added: u64,
    /// Changed ones; those that are of another type now too.
    pub modified: u64,
    /// Deleted ones; a directory counts once.
    pub deleted: u64,
    /// Renamed ones.
    pub renamed: u64,
    /// Bytes that regular files are longer by, all in all, than what they were before; shorter, if below 0. What lay in deleted
    /// directories does not count.
    pub growth: i64,
}

impl Stat {
    /// Of these changes.
    pub fn of(changes: &[Change]) -> Stat {
        let mut stat = Stat::default();
        for change in changes {
            match change.kind {
                Kind::Added => stat.added += 1,
                Kind::Modified | Kind::Type => stat.modified += 1,
                Kind::Deleted => stat.deleted += 1,
                Kind::Renamed => stat.renamed += 1,
                Kind::Same => continue,
            }
            stat.growth += change.growth();
        }
        stat
    }

    /// All of them together.
    pub fn changes(&self) -> u64 {
        self.added + self.modified + self.deleted + self.renamed
    }
}

impl Change {
    /// Bytes that a regular file is longer by than before.
    pub fn growth(&self) -> i64 {
        let size = |attr: Option<crate::Attr>| {
            let size = attr.filter(|attr| attr.kind == crate::Type::File).map_or(0, |attr| attr.size);
            i64::try_from(size).unwrap_or(i64::MAX)
        };
        size(self.is) - size(self.was)
    }
}

/// What the environment of `layer` changed on the host, in numbers, as the host's kernel tells the caller.
pub fn summary(layer: &Layer) -> Result<Stat> {
    let mut view = View::open(layer, std::path::Path::new("/"), Owners::outside())?;
    Ok(Stat::of(&walk(&mut view, Options::default())?))
}
