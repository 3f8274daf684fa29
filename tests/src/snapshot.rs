//! What a part of the host's files is at one moment, to prove later that nobody has touched it.
//!
//! Contents are not read: no write, change of mode, owner, times, links or extended attributes leaves `ctime` as it was, and
//! nobody can set that. So a snapshot of 150,000 files is a matter of half a second.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How many differences a failure shows.
const SHOWN: usize = 20;

/// What the kernel tells of a file without reading it; times are in ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    size: u64,
    changed: i128,
}

/// All files below some paths, as they were.
#[derive(Debug)]
pub struct Snapshot {
    roots: Vec<PathBuf>,
    found: BTreeMap<PathBuf, Entry>,
}

impl Snapshot {
    /// Looks at `roots` and all below them, on whatever file systems. A root that is not there is remembered as such.
    pub fn of<P: AsRef<Path>>(roots: &[P]) -> Self {
        let roots: Vec<PathBuf> = roots.iter().map(|root| root.as_ref().to_owned()).collect();
        let mut found = BTreeMap::new();
        let mut pending = roots.clone();
        while let Some(path) = pending.pop() {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_dir() {
                let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
                pending.extend(entries.map(|entry| entry.path()));
            }
            let entry = Entry {
                inode: metadata.ino(),
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                links: metadata.nlink(),
                size: metadata.size(),
                changed: i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()),
            };
            found.insert(path, entry);
        }
        Self { roots, found }
    }

    /// How many files it knows.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// True if it knows none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// What is not as it was, a line each.
    pub fn differences(&self) -> Vec<String> {
        let now = Self::of(&self.roots);
        let gone =
            self.found.keys().filter(|path| !now.found.contains_key(*path)).map(|path| (path, "gone".to_owned()));
        let other = now.found.iter().filter_map(|(path, entry)| match self.found.get(path) {
            None => Some((path, "new".to_owned())),
            Some(old) if old != entry => Some((path, format!("was {old:?}, is {entry:?}"))),
            Some(_) => None,
        });
        gone.chain(other).map(|(path, what)| format!("{}: {what}", path.display())).collect()
    }

    /// # Panics
    /// Panics with what is not as it was.
    #[track_caller]
    pub fn assert_untouched(&self) {
        let mut differences = self.differences();
        let count = differences.len();
        differences.truncate(SHOWN);
        assert!(count == 0, "the host has changed, {count} differences: {differences:#?}");
    }
}
