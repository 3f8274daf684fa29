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
use super::walk::Job;

/// What a directory's listing is read into at a time.
const LISTING: usize = 32 << 10;

/// The length of what the kernel is told of an entry, but for its name: fuse_entry_out, fuse_dirent.
const FIXED: usize = 128 + 24;

/// An entry of a directory.
#[derive(Debug)]
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
    /// Whether it is neither the directory nor the one above it.
    fn is_inside(&self) -> bool {
        self.name != b"." && self.name != b".."
    }

    /// What it looks like, if it is a directory that can be listed.
    fn directory(&self) -> Option<&Shown> {
        let full = |shown: &&Shown| shown.facts.flags & (NO_CHILDREN | NO_LIST) == 0;
        self.shown.as_ref().filter(full).filter(|_| self.kind == FileType::Directory)
    }

    /// Whether it is certainly no directory.
    fn is_file(&self) -> bool {
        !matches!(self.kind, FileType::Directory | FileType::Unknown)
    }
}

/// A directory that was listed ahead of its asking, whole.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) generation: u32,
    items: Vec<Item>,
    made: Instant,
}

impl Prepared {
    /// Whether it is still what a look at the directory would tell, but for what happened while it was looked at, and in the second after.
    pub(super) fn is_new(&self) -> bool {
        self.made.elapsed() < Duration::from_secs(1)
    }

    #[cfg(test)]
    pub(super) fn empty(made: Instant) -> Prepared {
        Prepared { generation: 0, items: Vec::new(), made }
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

    /// The entries of a directory after `offset`: so many as take `room` bytes of an answer.
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
        Ok(items)
    }

    /// Sees what entries look like, those that are `wanted`.
    fn look(&self, id: Id, node: &Node, items: &mut [Item], wanted: impl Fn(&Item) -> bool) -> Result<(), Errno> {
        if node.facts.flags & NO_CHILDREN != 0 {
            return Ok(());
        }
        let place = self.places().directory(id)?;
        let parent = self.parent(id, node)?;
        for item in items.iter_mut().filter(|item| item.is_inside() && wanted(item)) {
            // What can't be looked at is listed all the same: without a number, so that it is looked up by itself.
            let shown = self.child(place.as_fd(), id, &parent, &item.name);
            item.elsewhere = matches!(shown, Err(Errno::REMOTE));
            item.shown = shown.ok();
        }
        Ok(())
    }

    /// Which entries of a directory are looked at for who lists it. Where those of a marked one lead takes long to see: that is for who goes there,
    /// or done ahead for who is sure to.
    fn wanted(&self, node: &Node, sure: bool) -> impl Fn(&Item) -> bool + use<> {
        let files = self.looks().wanted();
        let directories = sure || node.facts.flags & LEADS == 0;
        move |item| if item.is_file() { files } else { directories }
    }

    /// The whole of a directory, if it is not long.
    pub(super) fn prepare(&self, job: Job) -> Result<Prepared, Errno> {
        const LONG: usize = 256 << 10;
        let node = self.places().node(job.id)?;
        let mut items = self.gather(job.id, &node, 0, LONG)?;
        self.places().close(job.id);
        // One more would have fitted.
        if items.iter().map(|item| length(&item.name)).sum::<usize>() + length(&[0; 255]) > LONG {
            return Err(Errno::TOOBIG);
        }
        if job.again {
            self.look(job.id, &node, &mut items, |item| !item.is_file())?;
        } else {
            self.look(job.id, &node, &mut items, self.wanted(&node, job.hold))?;
        }
        Ok(Prepared { generation: node.generation, items, made: Instant::now() })
    }

    /// Numbers for the directories in one that was listed ahead, which the kernel is not told of yet: each is held until it is forgotten once.
    pub(super) fn hold(&self, id: Id, prepared: &Prepared) -> Vec<Id> {
        let mut table = self.places().table();
        if !table.is(id, prepared.generation) {
            return Vec::new();
        }
        let mut hold = |item: &Item| {
            let facts = item.directory()?.facts;
            // What the kernel was told since is newer.
            let known = table.find(id, &item.name).and_then(|id| table.get(id));
            let other = known.is_some_and(|node| node.facts.file != facts.file);
            if other { None } else { Some(table.refer(id, &item.name, facts, self.stays())?.0) }
        };
        prepared.items.iter().filter_map(&mut hold).collect()
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
        let marked = node.facts.flags & LEADS != 0;
        // Of a marked one more may be looked at just now than is asked for.
        let mut prepared =
            self.ahead().prepared(id, offset, !marked).filter(|found| found.generation == node.generation);
        let mut gathered;
        let items = match prepared.as_mut().and_then(|prepared| prepared.from(offset)) {
            Some(items) => items,
            None => {
                gathered = self.gather(id, &node, offset, size as usize)?;
                self.look(id, &node, &mut gathered, self.wanted(&node, false))?;
                gathered.as_mut_slice()
            }
        };
        if items.iter().any(|item| item.shown.is_none() && !item.elsewhere && item.is_file()) {
            self.looks().left_out(id);
        }
        let left_out = |item: &Item| item.shown.is_none() && item.kind == FileType::Directory && item.is_inside();
        let more = marked && items.iter().any(left_out);
        let (mut left, mut directories) = (size as usize, Vec::new());
        for item in items.iter().take_while(|item| {
            let fits = length(&item.name) <= left;
            left = left.saturating_sub(length(&item.name));
            fits
        }) {
            let number = item
                .shown
                .as_ref()
                .and_then(|shown| self.places().table().refer(id, &item.name, shown.facts, self.stays()));
            let (ino, entry) = match (&item.shown, number) {
                (Some(shown), Some((id, generation))) => {
                    directories.extend(item.directory().map(|_| id));
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
        self.ahead().listed(id, node.parent, directories, more, prepared);
        Ok(())
    }
}

/// What an entry takes of an answer.
fn length(name: &[u8]) -> usize {
    (FIXED + name.len()).next_multiple_of(8)
}
