//! Directories: what is in them, and what each entry looks like, for the kernel now or ahead of its asking.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use rustix::fs::{FileType, RawDir, SeekFrom, fstat};
use rustix::io::Errno;

use super::places::lock;
use super::show::{LEADS, NO_CHILDREN, NO_LIST, Shown};
use super::table::{Id, Node};
use super::tree::{Tree, dtype, entry};

/// What a directory's listing is read into at a time.
const LISTING: usize = 32 << 10;

/// The length of what the kernel is told of an entry, but for its name: fuse_entry_out, fuse_dirent.
const FIXED: usize = 128 + 24;

/// An entry of a directory.
pub(super) struct Item {
    pub(super) name: Vec<u8>,
    pub(super) kind: FileType,
    inode: u64,
    /// The offset of the entry after it.
    next: u64,
    /// What it looks like, if that could be seen.
    shown: Option<Shown>,
    /// Another part shows it.
    elsewhere: bool,
}

impl Item {
    /// Whether it is certainly no directory.
    fn is_file(&self) -> bool {
        !matches!(self.kind, FileType::Directory | FileType::Unknown)
    }
}

/// A directory that was listed ahead of its asking, whole.
pub(super) struct Prepared {
    pub(super) generation: u32,
    items: Vec<Item>,
    made: Instant,
}

impl Prepared {
    /// Whether it is still what a look at the directory would tell, but for what happened in the last second.
    pub(super) fn is_new(&self) -> bool {
        self.made.elapsed() < Duration::from_secs(1)
    }

    /// The names of the first few regular files.
    pub(super) fn files(&self, most: usize) -> Vec<Vec<u8>> {
        let files = self.items.iter().filter(|item| item.kind == FileType::RegularFile);
        files.take(most).map(|item| item.name.clone()).collect()
    }

    /// The entries from `offset` on; `None`: that is no offset of this listing.
    fn from(&mut self, offset: u64) -> Option<&mut [Item]> {
        let at = match offset {
            0 => 0,
            _ => self.items.iter().position(|item| item.next == offset)? + 1,
        };
        self.items.get_mut(at..)
    }
}

impl Tree {
    /// Calls `each` for the entries after `offset`: name, type, inode number, offset of the next; until it says `false`.
    pub(super) fn list(
        &self,
        id: Id,
        node: &Node,
        offset: u64,
        mut each: impl FnMut(&[u8], FileType, u64, u64) -> bool,
    ) -> Result<(), Errno> {
        if node.facts.flags & NO_LIST != 0 || self.is_listed_above(node) {
            for (at, name) in [b".".as_slice(), b".."].into_iter().enumerate().skip(offset as usize) {
                if !each(name, FileType::Directory, u64::from(id), at as u64 + 1) {
                    break;
                }
            }
            return Ok(());
        }
        let open = self.places().listing(id)?;
        let file = lock(&open.file);
        let device = fstat(&*file)?.st_dev;
        if open.position.load(Ordering::Relaxed) != offset {
            rustix::fs::seek(&*file, SeekFrom::Start(offset))?;
        }
        let mut buffer = [MaybeUninit::uninit(); LISTING];
        let mut directory = RawDir::new(&*file, &mut buffer);
        let mut reached = offset;
        let mut ended = false;
        loop {
            let Some(entry) = directory.next() else {
                ended = true;
                break;
            };
            let entry = entry?;
            let next = entry.next_entry_cookie();
            if !self.is_of_part(id, entry.file_name().to_bytes()) {
                reached = next;
                continue;
            }
            let inode = self.show().inode(device, entry.ino());
            if !each(entry.file_name().to_bytes(), entry.file_type(), inode, next) {
                break;
            }
            reached = next;
        }
        // If it did not end, the host's position is behind what was read ahead: the next reader seeks.
        open.position.store(if ended { reached } else { u64::MAX }, Ordering::Relaxed);
        drop(file);
        if ended && reached == offset {
            // Its reader has seen the end.
            self.places().close(id);
        } else {
            self.places().keep(id, node, open);
        }
        Ok(())
    }

    /// The entries of a directory after `offset`, as they look: so many as take `room` bytes of an answer.
    fn gather(&self, id: Id, node: &Node, offset: u64, room: usize) -> Result<Vec<Item>, Errno> {
        let (mut left, mut items) = (room, Vec::new());
        self.list(id, node, offset, |name, kind, inode, next| {
            let fits = length(name) <= left;
            if fits {
                left -= length(name);
                items.push(Item { name: name.to_vec(), kind, inode, next, shown: None, elsewhere: false });
            }
            fits
        })?;
        if node.facts.flags & NO_CHILDREN == 0 {
            let place = self.places().directory(id)?;
            let parent = self.parent(id, node)?;
            let files = self.looks().wanted();
            // Where each leads is asked when somebody goes there.
            let marked = node.facts.flags & LEADS != 0;
            let wanted = |item: &Item| if item.is_file() { files } else { !marked };
            let shows = |item: &&mut Item| item.name != b"." && item.name != b".." && wanted(item);
            for item in items.iter_mut().filter(shows) {
                // What can't be looked at is listed all the same: without a number, so that it is looked up by itself.
                let shown = self.child(place.as_fd(), id, &parent, &item.name);
                item.elsewhere = matches!(shown, Err(Errno::REMOTE));
                item.shown = shown.ok();
            }
        }
        Ok(items)
    }

    /// The whole of a directory, if it is not long.
    pub(super) fn prepare(&self, id: Id) -> Result<Prepared, Errno> {
        const LONG: usize = 256 << 10;
        let made = Instant::now();
        let node = self.places().node(id)?;
        let items = self.gather(id, &node, 0, LONG)?;
        // One more would have fitted.
        let whole = items.iter().map(|item| length(&item.name)).sum::<usize>() + length(&[0; 255]) <= LONG;
        self.places().close(id);
        if whole { Ok(Prepared { generation: node.generation, items, made }) } else { Err(Errno::TOOBIG) }
    }

    /// Answers a listing with attributes.
    pub(super) fn list_plus(
        &self,
        id: Id,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let node = self.places().node(id)?;
        let mut prepared = self.ahead().prepared(id, offset).filter(|found| found.generation == node.generation);
        let mut gathered;
        let items = match prepared.as_mut().and_then(|prepared| prepared.from(offset)) {
            Some(items) => items,
            None => {
                gathered = self.gather(id, &node, offset, size as usize)?;
                gathered.as_mut_slice()
            }
        };
        if items.iter().any(|item| item.shown.is_none() && !item.elsewhere && item.is_file()) {
            self.looks().left_out(id);
        }
        let (mut left, mut directories) = (size as usize, Vec::new());
        for item in items.iter().take_while(|item| {
            let fits = length(&item.name) <= left;
            left = left.saturating_sub(length(&item.name));
            fits
        }) {
            let number = item.shown.as_ref().and_then(|shown| self.places().table().refer(id, &item.name, shown.facts));
            let (ino, entry) = match (&item.shown, number) {
                (Some(shown), Some((id, generation))) => {
                    if item.kind == FileType::Directory && shown.facts.flags & (NO_CHILDREN | NO_LIST) == 0 {
                        directories.push(id);
                    }
                    (shown.attributes.st_ino, entry(id, generation, shown.attributes))
                }
                _ => (item.inode, Entry { inode: 0, ..Entry::default() }),
            };
            let told =
                add(DirEntry { ino, offset: item.next, type_: u32::from(dtype(item.kind)), name: &item.name }, entry)?;
            if told == 0 {
                self.places().forget(number.map(|(id, _)| (id, 1)));
                break;
            }
        }
        if items.is_empty() {
            prepared = None;
        }
        self.ahead().listed(id, node.parent, directories, prepared);
        Ok(())
    }
}

/// What an entry takes of an answer.
fn length(name: &[u8]) -> usize {
    (FIXED + name.len()).next_multiple_of(8)
}
