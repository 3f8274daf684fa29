//! From a node's number to its file: directories are walked name by name, and a few are kept open.
//!
//! No link is ever followed, at no step: each name is opened for itself, in a directory that is held open. So the way of a
//! node can't be bent by whoever may write in a directory on it. Of what was opened a bounded number is kept, those used
//! last; a lookup in one of them is a single system call.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::table::{Id, Node, ROOT, Table};

/// Directories kept open, by O_PATH.
const DIRECTORIES: usize = 256;
/// Files and directories kept open for reading.
const FILES: usize = 64;

/// What all places begin with.
const ANY: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);

/// The nodes, and what is open of them. Lock order: `table`, then one of the others.
#[derive(Debug)]
pub(super) struct Places {
    root: Arc<OwnedFd>,
    table: Mutex<Table>,
    directories: Mutex<LruCache<Id, Arc<OwnedFd>>>,
    files: Mutex<LruCache<Id, Arc<Open>>>,
}

/// A file or a directory that is open for reading. Who reads it holds the lock: the file by itself because its library wants
/// it so, a directory because its position is shared.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) file: Mutex<File>,
    /// A directory's position; `u64::MAX`: unknown.
    pub(super) position: AtomicU64,
}

impl Open {
    fn new(fd: OwnedFd) -> Arc<Open> {
        Arc::new(Open { file: Mutex::new(fd.into()), position: AtomicU64::new(0) })
    }
}

/// A lock that a panic elsewhere can't poison: every step leaves what it guards whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    pub(super) fn new(table: Table) -> Result<Places, Errno> {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        // No more than a part of what the process may have open.
        let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| most as usize);
        let cache = |most: usize, part: usize| NonZeroUsize::new(most.min(limit / part)).unwrap_or(NonZeroUsize::MIN);
        Ok(Places {
            root: Arc::new(root),
            table: Mutex::new(table),
            directories: Mutex::new(LruCache::new(cache(DIRECTORIES, 4))),
            files: Mutex::new(LruCache::new(cache(FILES, 16))),
        })
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// The node with this number. ESTALE: there is none.
    pub(super) fn node(&self, id: Id) -> Result<Node, Errno> {
        self.table().get(id).ok_or(Errno::STALE)
    }

    /// The directory with this number. ESTALE: it, or one above it, is no directory any more.
    pub(super) fn directory(&self, id: Id) -> Result<Arc<OwnedFd>, Errno> {
        if id == ROOT {
            return Ok(self.root.clone());
        }
        if let Some(fd) = lock(&self.directories).get(&id) {
            return Ok(fd.clone());
        }
        // Up to one that is open, then down again.
        let mut way: Vec<(Id, Node)> = Vec::new();
        let mut from = self.root.clone();
        {
            let table = self.table();
            let mut directories = lock(&self.directories);
            let mut at = id;
            while at != ROOT {
                if let Some(fd) = directories.get(&at) {
                    from = fd.clone();
                    break;
                }
                let node = table.get(at).ok_or(Errno::STALE)?;
                let parent = node.parent;
                way.push((at, node));
                at = parent;
            }
        }
        for (at, node) in way.into_iter().rev() {
            let flags = ANY | OFlags::PATH | OFlags::DIRECTORY;
            from = Arc::new(openat(&*from, node.name.as_slice(), flags, Mode::empty()).map_err(gone)?);
            let table = self.table();
            if table.is(at, node.generation) {
                lock(&self.directories).put(at, from.clone());
            }
        }
        Ok(from)
    }

    /// Opens a directory's content for reading, or finds it open.
    pub(super) fn listing(&self, id: Id) -> Result<Arc<Open>, Errno> {
        if let Some(open) = lock(&self.files).get(&id) {
            return Ok(open.clone());
        }
        let place = self.directory(id)?;
        let fd = openat(&*place, c".", ANY | OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        Ok(Open::new(fd))
    }

    /// A regular file that is open already.
    pub(super) fn opened(&self, id: Id) -> Option<Arc<Open>> {
        lock(&self.files).get(&id).cloned()
    }

    /// Opens a regular file for reading. What took its place meanwhile is not waited for (a fifo), and not acquired (a
    /// terminal); the caller looks at what it is.
    pub(super) fn open(&self, node: &Node) -> Result<Arc<Open>, Errno> {
        self.open_at(node.parent, &node.name)
    }

    /// As [`open`](Places::open), for a name in a directory.
    pub(super) fn open_at(&self, directory: Id, name: &[u8]) -> Result<Arc<Open>, Errno> {
        let place = self.directory(directory)?;
        let flags = ANY | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = openat(&*place, name, flags, Mode::empty()).map_err(gone)?;
        Ok(Open::new(fd))
    }

    /// Keeps what is likely to be read again soon.
    pub(super) fn keep(&self, id: Id, node: &Node, open: Arc<Open>) {
        let table = self.table();
        if table.is(id, node.generation) {
            lock(&self.files).put(id, open);
        }
    }

    /// Lets go of what is open for reading of this node.
    pub(super) fn close(&self, id: Id) {
        lock(&self.files).pop(&id);
    }

    /// The kernel takes back `count` references to each of these nodes. What is open of one that is gone is closed before its
    /// number can be another's.
    pub(super) fn forget(&self, nodes: impl IntoIterator<Item = (Id, u64)>) {
        let mut table = self.table();
        for (id, count) in nodes {
            table.forget(id, count, |id| {
                lock(&self.files).pop(&id);
                lock(&self.directories).pop(&id);
            });
        }
    }

    /// What `act` does with a node's parent directory, and its name there; for `/` with itself and `.`.
    pub(super) fn at<T>(
        &self,
        id: Id,
        node: &Node,
        act: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if id == ROOT {
            return act(self.root.as_fd(), b".");
        }
        let place = self.directory(node.parent)?;
        act(place.as_fd(), &node.name).map_err(gone)
    }
}

/// A name in a directory that is open, as a path, for calls that take no directory.
pub(super) fn path_in(place: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", place.as_raw_fd()).as_bytes(), name].concat()
}

/// What is no longer what it was when the kernel was told of it: the kernel then looks the path up anew.
pub(super) fn gone(error: Errno) -> Errno {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Errno::STALE,
        other => other,
    }
}
