//! The mirror as the file system that the kernel asks: each request that it may send, answered from the host's files.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions, ZeroCopyWriter,
};
use rustix::fs::{FileType, SeekFrom, fstat};
use rustix::io::Errno;

use super::ahead::Ahead;
use super::content::{self, Content};
use super::looks::Looks;
use super::made_up::{self, Sham};
use super::part::{self, Part};
use super::places::{Open, Places, gone, lock, path_in};
use super::show::{self, HOLLOW, LEADS, MADE_UP, NO_CHILDREN, NO_LIST, ON_THE_WAY, Parent, Show, Shown};
use super::table::{Id, Node, ROOT};

/// How long the kernel may take for granted what it was told. It asks again after that, or when it was told to.
const VALID: Duration = Duration::from_secs(3600);

/// Options of the connection that the mirror wants where the kernel has them (fuse(4), linux/fuse.h).
const OPTIONS: FsOptions = FsOptions::ASYNC_READ
    .union(FsOptions::AUTO_INVAL_DATA)
    .union(FsOptions::DO_READDIRPLUS)
    .union(FsOptions::PARALLEL_DIROPS)
    .union(FsOptions::CACHE_SYMLINKS)
    .union(FsOptions::ZERO_MESSAGE_OPEN)
    .union(FsOptions::ZERO_MESSAGE_OPENDIR)
    .union(FsOptions::MAX_PAGES)
    .union(FsOptions::ABORT_ERROR)
    .union(FsOptions::HAS_RESEND);

/// Extended attributes that are the overlay's own business, not the files'.
const OF_OVERLAYS: &[&[u8]] = &[b"user.overlay.", b"trusted."];

/// The largest value of an extended attribute, and list of names (xattr(7)).
const XATTR: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Tree {
    places: Places,
    show: Show,
    ahead: Ahead,
    looks: Looks,
    part: Part,
    content: Content,
    /// Files that are not what the kernel was told last.
    changed: Mutex<Vec<Id>>,
}

impl Tree {
    pub(super) fn new(places: Places, show: Show, part: Part, content: Content) -> Tree {
        Tree {
            places,
            show,
            ahead: Ahead::default(),
            looks: Looks::default(),
            part,
            content,
            changed: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    pub(super) fn show(&self) -> &Show {
        &self.show
    }

    pub(super) fn ahead(&self) -> &Ahead {
        &self.ahead
    }

    pub(super) fn looks(&self) -> &Looks {
        &self.looks
    }

    /// Files that were found changed since the last call: the kernel is to ask for their attributes anew.
    pub(super) fn changed(&self) -> Vec<Id> {
        std::mem::take(&mut *lock(&self.changed))
    }

    pub(super) fn parent(&self, id: Id, node: &Node) -> Result<Parent, Errno> {
        let path = if node.facts.flags & ON_THE_WAY != 0 { Some(self.path(id)?) } else { None };
        Ok(Parent { flags: node.facts.flags, path })
    }

    /// The path of a node; nothing for `/`.
    fn path(&self, id: Id) -> Result<Vec<u8>, Errno> {
        let table = self.places.table();
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT {
            let node = table.get(at).ok_or(Errno::STALE)?;
            names.push(node.name);
            at = node.parent;
        }
        Ok(names.into_iter().rev().flat_map(|name| [b"/".to_vec(), name].concat()).collect())
    }

    fn find(&self, id: Id, name: &[u8]) -> Result<Entry, Errno> {
        let node = self.places.node(id)?;
        if node.facts.flags & NO_CHILDREN != 0 {
            return Ok(nothing());
        }
        let place = self.places.directory(id)?;
        match self.child(place.as_fd(), id, &self.parent(id, &node)?, name) {
            Ok(shown) => {
                if shown.facts.kind != dtype(FileType::Directory) {
                    self.looks.looked_up(id);
                }
                let number = self.places.table().refer(id, name, shown.facts, self.stays());
                let (inode, generation) = number.ok_or(Errno::NOMEM)?;
                Ok(entry(inode, generation, shown.attributes))
            }
            // What another part shows may be this one's later, and what is in neither may come in both: they are to be asked again at a time.
            Err(Errno::REMOTE) => Ok(Entry::default()),
            Err(Errno::NOENT) if self.is_listed_above(&node) => Ok(Entry::default()),
            Err(Errno::NOENT) => Ok(nothing()),
            Err(error) => Err(error),
        }
    }

    /// Looks at `name` in `place`, the directory `id` that is `parent`. EREMOTE: it is in another part.
    pub(super) fn child(&self, place: BorrowedFd<'_>, id: Id, parent: &Parent, name: &[u8]) -> Result<Shown, Errno> {
        if !self.is_of_part(id, name) {
            return Err(Errno::NOENT);
        }
        let mut shown = self.show.child(place, parent, name)?;
        let marked = parent.flags & LEADS != 0;
        let is_directory = shown.facts.kind == dtype(FileType::Directory);
        let empty = shown.facts.flags & (NO_CHILDREN | NO_LIST) != 0;
        let leads = match &self.part {
            Part::Whole => return Ok(shown),
            _ if id == ROOT => is_directory && !empty && part::is_content(name),
            Part::Plain if !is_directory => {
                if marked && (self.is_elsewhere(place, id, name, &shown)? || part::has_attributes(place, name)) {
                    return Err(Errno::REMOTE);
                }
                false
            }
            Part::Plain => marked && self.stays_marked(place, id, name, &shown, empty)?,
            Part::Rest(above) if marked && is_directory => {
                let path = self.path(id)?;
                match above.leads(path.split(|byte| *byte == b'/').skip(1).chain([name])) {
                    Some(false) => return Err(Errno::REMOTE),
                    Some(true) => true,
                    // It lists nothing of it either.
                    None => false,
                }
            }
            Part::Rest(_) => false,
        };
        shown.facts.flags |= if leads { LEADS } else { 0 };
        Ok(shown)
    }

    /// Whether a directory is marked: as the kernel was told of it before, or else as it is judged now.
    fn stays_marked(
        &self,
        place: BorrowedFd<'_>,
        parent: Id,
        name: &[u8],
        shown: &Shown,
        empty: bool,
    ) -> Result<bool, Errno> {
        let table = self.places.table();
        let known = table.find(parent, name).and_then(|id| table.get(id));
        drop(table);
        match known.filter(|node| node.facts.file == shown.facts.file) {
            Some(node) => Ok(node.facts.flags & LEADS != 0),
            None => Ok(!empty && part::leads(place, &self.path(parent)?, name)),
        }
    }

    /// Whether a file's content is elsewhere.
    fn is_elsewhere(&self, place: BorrowedFd<'_>, directory: Id, name: &[u8], shown: &Shown) -> Result<bool, Errno> {
        let whole = shown.facts.flags & (HOLLOW | MADE_UP) == 0;
        let found = || self.content.path(place, &self.path(directory)?, name, shown.facts.file);
        Ok(whole && content::is_large(shown.attributes.st_mode, shown.attributes.st_size) && found()?.is_some())
    }

    /// Whether an entry of a directory can be of this part.
    pub(super) fn is_of_part(&self, id: Id, name: &[u8]) -> bool {
        !matches!(self.part, Part::Plain) || id != ROOT || matches!(name, b"." | b"..") || part::is_content(name)
    }

    /// Which flags of a node stay as the kernel was told: a mark of the plain part, which the rest goes by.
    pub(super) fn stays(&self) -> u8 {
        if matches!(self.part, Part::Plain) { LEADS } else { 0 }
    }

    /// Whether the names of a directory are listed by the part above.
    pub(super) fn is_listed_above(&self, node: &Node) -> bool {
        matches!(self.part, Part::Rest(_)) && node.facts.flags & LEADS != 0
    }

    fn attributes(&self, id: Id) -> Result<stat64, Errno> {
        let node = self.places.node(id)?;
        let shown = self.places.at(id, &node, |place, _| self.show.again(place, id, &node))?;
        if id != ROOT && (shown.facts.kind, shown.facts.file) != (node.facts.kind, node.facts.file) {
            return Err(Errno::STALE);
        }
        self.places.table().told(id, shown.facts);
        Ok(shown.attributes)
    }

    /// Opens a regular file for reading. ESTALE: it is another one by now.
    fn readable(&self, id: Id, node: &Node) -> Result<Arc<Open>, Errno> {
        let open = self.places.open(node)?;
        let stat = fstat(&*lock(&open.file))?;
        if show::version(&stat) != node.facts.version {
            lock(&self.changed).push(id);
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || show::file(&stat) != node.facts.file {
            return Err(Errno::STALE);
        }
        Ok(open)
    }

    fn xattr_path(&self, id: Id, node: &Node) -> Result<Vec<u8>, Errno> {
        // There is no call that takes a directory and a name, but for the newest kernels. The last name is not followed.
        self.places.at(id, node, |place, name| Ok(path_in(place, name)))
    }

    /// What the overlay asks, to know where a file's content is; `None`: here.
    fn elsewhere(&self, id: Id, node: &Node, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        if !(name == content::METACOPY || name == content::REDIRECT) || node.facts.flags & (HOLLOW | MADE_UP) != 0 {
            return Ok(None);
        }
        let path = self.path(node.parent)?;
        let found = self.places.at(id, node, |place, name| self.content.path(place, &path, name, node.facts.file))?;
        Ok(found.map(|path| if name == content::METACOPY { Vec::new() } else { path }))
    }

    fn statfs_of(&self, id: Id) -> Result<statvfs64, Errno> {
        let node = self.places.node(id)?;
        let place = self.places.directory(if id == ROOT { ROOT } else { node.parent })?;
        let found = rustix::fs::fstatvfs(place.as_fd())?;
        // A zeroed one is to be had from the trait's own default alone.
        let mut out = FileSystem::statfs(&Blank, &Context::new(), 0).map_err(|_| Errno::IO)?;
        out.f_bsize = found.f_bsize as _;
        out.f_frsize = found.f_frsize as _;
        out.f_blocks = found.f_blocks as _;
        out.f_bfree = found.f_bfree as _;
        out.f_bavail = found.f_bavail as _;
        out.f_files = found.f_files as _;
        out.f_ffree = found.f_ffree as _;
        out.f_namemax = found.f_namemax as _;
        Ok(out)
    }
}

/// A file system without anything, for what the trait does by itself.
struct Blank;

impl FileSystem for Blank {
    type Inode = u64;
    type Handle = u64;
}

impl FileSystem for Tree {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.places.table().set_negotiated((capable & OPTIONS).bits());
        Ok(OPTIONS)
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        Ok(self.find(id(parent)?, name.to_bytes())?)
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.places.forget(id(inode).ok().map(|id| (id, count)));
    }

    fn batch_forget(&self, _: &Context, requests: Vec<(u64, u64)>) {
        self.places.forget(requests.into_iter().filter_map(|(inode, count)| Some((id(inode).ok()?, count))));
    }

    fn getattr(&self, _: &Context, inode: u64, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        Ok((self.attributes(id(inode)?)?, VALID))
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let id = id(inode)?;
        let node = self.places.node(id)?;
        let text = self.places.at(id, &node, |place, name| match rustix::fs::readlinkat(place, name, Vec::new()) {
            // No link any more.
            Err(Errno::INVAL) => Err(Errno::STALE),
            other => other,
        })?;
        Ok(text.into_bytes())
    }

    /// ENOSYS: the kernel then never asks again, for no file, and keeps what it has read.
    fn open(&self, _: &Context, _: u64, _: u32, _: u32) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        Err(Errno::NOSYS.into())
    }

    /// As `open`.
    fn opendir(&self, _: &Context, _: u64, _: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        Err(Errno::NOSYS.into())
    }

    fn read(
        &self,
        _: &Context,
        inode: u64,
        _: u64,
        out: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let id = id(inode)?;
        let node = self.places.node(id)?;
        if node.facts.flags & HOLLOW != 0 {
            return Ok(0);
        }
        if node.facts.flags & MADE_UP != 0 {
            let content = Sham::of(&node.name).map(made_up::content).unwrap_or_default();
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
            let to = from.saturating_add(size as usize).min(content.len());
            return out.write_all(&content[from..to]).map(|()| to - from);
        }
        let kept = self.places.opened(id);
        if let Some(mut file) = kept.as_ref().and_then(|open| open.file.try_lock().ok()) {
            return out.write_from(&mut *file, size as usize, offset);
        }
        // Not open yet, or somebody reads it just now, maybe from a slow disk.
        let open = self.readable(id, &node)?;
        let count = out.write_from(&mut *lock(&open.file), size as usize, offset)?;
        // A small file was read whole by this: nobody will ask for more of it.
        if kept.is_none() && count == size as usize {
            self.places.keep(id, &node, open);
        }
        if kept.is_none() && offset == 0 {
            self.ahead.read(node.parent, &node.name);
        }
        Ok(count)
    }

    fn statfs(&self, _: &Context, inode: u64) -> io::Result<statvfs64> {
        Ok(self.statfs_of(id(inode)?)?)
    }

    fn getxattr(&self, _: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        if matches!(self.part, Part::Plain) {
            // As with `open`.
            return Err(Errno::NOSYS.into());
        }
        let id = id(inode)?;
        let node = self.places.node(id)?;
        if let Some(value) = self.elsewhere(id, &node, name.to_bytes())? {
            return match size as usize {
                0 => Ok(GetxattrReply::Count(value.len() as u32)),
                room if room < value.len() => Err(Errno::RANGE.into()),
                _ => Ok(GetxattrReply::Value(value)),
            };
        }
        if node.facts.flags & (HOLLOW | MADE_UP) != 0 || OF_OVERLAYS.iter().any(|own| name.to_bytes().starts_with(own))
        {
            return Err(Errno::NODATA.into());
        }
        let path = self.xattr_path(id, &node)?;
        if size == 0 {
            // With no room at all, lgetxattr says 0.
            return Ok(GetxattrReply::Count(rustix::fs::lgetxattr_query(path, name).map_err(gone)? as u32));
        }
        let mut value = vec![0; XATTR.min(size as usize)];
        let len = rustix::fs::lgetxattr(path, name, &mut value).map_err(gone)?;
        value.truncate(len);
        Ok(GetxattrReply::Value(value))
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        if matches!(self.part, Part::Plain) {
            return Err(Errno::NOSYS.into());
        }
        let id = id(inode)?;
        let node = self.places.node(id)?;
        let mut names = vec![0; XATTR];
        let len = rustix::fs::llistxattr(self.xattr_path(id, &node)?, &mut names).map_err(gone)?;
        names.truncate(len);
        let shown = |name: &&[u8]| !name.is_empty() && !OF_OVERLAYS.iter().any(|own| name.starts_with(own));
        let names: Vec<u8> =
            names.split(|byte| *byte == 0).filter(shown).flat_map(|name| [name, b"\0"].concat()).collect();
        match size as usize {
            0 => Ok(ListxattrReply::Count(names.len() as u32)),
            room if room < names.len() => Err(Errno::RANGE.into()),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        _: u64,
        _: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let id = id(inode)?;
        let node = self.places.node(id)?;
        let mut result = Ok(());
        self.list(id, &node, offset, |name, kind, ino, offset| {
            match add(DirEntry { ino, offset, type_: u32::from(dtype(kind)), name }) {
                Ok(told) => told > 0,
                Err(error) => {
                    result = Err(error);
                    false
                }
            }
        })?;
        result
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: u64,
        _: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list_plus(id(inode)?, size, offset, add)
    }

    /// SEEK_DATA and SEEK_HOLE: a copy of a sparse file stays sparse.
    fn lseek(&self, _: &Context, inode: u64, _: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let id = id(inode)?;
        let node = self.places.node(id)?;
        let to = match i32::try_from(whence) {
            Ok(libc_seek::DATA) => SeekFrom::Data(offset),
            Ok(libc_seek::HOLE) => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        if node.facts.flags & (HOLLOW | MADE_UP) != 0 {
            return Err(Errno::INVAL.into());
        }
        let open = self.readable(id, &node)?;
        let file = lock(&open.file);
        Ok(rustix::fs::seek(&*file, to)?)
    }
}

/// lseek(2).
mod libc_seek {
    pub(super) const DATA: i32 = 3;
    pub(super) const HOLE: i32 = 4;
}

fn id(inode: u64) -> Result<Id, Errno> {
    Id::try_from(inode).map_err(|_| Errno::STALE)
}

pub(super) fn entry(id: Id, generation: u32, attr: stat64) -> Entry {
    Entry {
        inode: id.into(),
        generation: generation.into(),
        attr,
        attr_flags: 0,
        attr_timeout: VALID,
        entry_timeout: VALID,
    }
}

/// That there is nothing of this name, for as long.
fn nothing() -> Entry {
    Entry { entry_timeout: VALID, ..Entry::default() }
}

/// What readdir(3) calls it, or 0: unknown.
pub(super) fn dtype(kind: FileType) -> u8 {
    match kind {
        FileType::Unknown => 0,
        kind => (kind.as_raw_mode() >> 12) as u8,
    }
}
