//! A copy of a layer, taken while an environment goes on to write it.
//!
//! What moves while it is looked at may be missed or met twice, so the layer is walked until a walk finds nothing new. What is
//! written all the time is copied as it was at some moment of its last walk.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::at::{self, Stat};
use crate::error::{At as _, Error, Result};
use crate::layer::Layer;
use crate::marks::plain_xattrs;
use crate::meta::{Meta, Mount};
use crate::{copy, store, tree};

/// How often a layer is walked at most.
const WALKS: usize = 8;

/// What became of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// Entries copied, those that were copied again included.
    pub copied: u64,
    /// The last walk found nothing new: the copy is the layer as it was at one moment, but for what is written in place.
    pub settled: bool,
}

/// Copies `layer` to a new layer at `path`, on the same base. Blocks are shared where the file system can. [`Error::Exists`] if
/// there is anything; what a crash leaves has a hidden name. The caller needs to be able to read all of it
/// ([`Layer::foreign`]).
pub fn snapshot(layer: &Layer, path: &Path) -> Result<Snapshot> {
    if path.symlink_metadata().is_ok() {
        return Err(Error::Exists(path.into()));
    }
    // Not over one that comes meanwhile.
    write(layer, path, RenameFlags::NOREPLACE)
}

/// Copies `layer` to the place of the layer at `path`, which goes. One of both is there at any time.
pub fn replace(layer: &Layer, path: &Path) -> Result<Snapshot> {
    write(layer, path, RenameFlags::EXCHANGE)
}

/// Copies what `layer` holds into an empty one, whose directory is `to`: its environment continues it.
pub fn load(layer: &Layer, to: &OwnedFd) -> Result<()> {
    for (number, mount) in layer.meta().mounts.iter().enumerate() {
        copy_mount(layer, number, mount, to, layer.path())?;
    }
    Ok(())
}

fn write(layer: &Layer, path: &Path, flags: RenameFlags) -> Result<Snapshot> {
    let (hidden, target) = store::hidden(path)?;
    let name = at::c_name(std::os::unix::ffi::OsStrExt::as_bytes(hidden.file_name().unwrap_or_default()));
    let base = match layer.meta().base.as_deref() {
        // A name means a layer beside the one that has it.
        Some(name) if !name.starts_with('/') && path.parent() != layer.path().parent() => {
            let beside = layer.path().parent().unwrap_or(Path::new("/")).join(name);
            Some(beside.to_str().map(str::to_string).ok_or_else(|| Error::damaged(&beside, "its path is no UTF-8"))?)
        }
        other => other.map(str::to_string),
    };
    let meta = Meta { base, copied: true, ..layer.meta().clone() };
    let copy = Layer::create(&hidden, Meta { mounts: Vec::new(), ..meta.clone() })?;
    let made = fill(layer, &copy, &meta).and_then(|done| {
        rustix::fs::renameat_with(rustix::fs::CWD, &hidden, rustix::fs::CWD, path, flags).map_err(|e| match e {
            Errno::EXIST => Error::Exists(path.into()),
            e => Error::Io { what: path.display().to_string(), source: e.into() },
        })?;
        Ok(done)
    });
    if made.is_err() || flags == RenameFlags::EXCHANGE {
        // What is whole has the name: the rest may also go later.
        let _ = tree::remove(target.as_fd(), &name);
    }
    made
}

fn fill(layer: &Layer, copy: &Layer, meta: &Meta) -> Result<Snapshot> {
    let _lock = copy.lock_use(&format!("a snapshot (process {})", std::process::id()))?;
    let mut done = Snapshot { copied: 0, settled: true };
    for (number, mount) in meta.mounts.iter().enumerate() {
        let one = copy_mount(layer, number, mount, copy, copy.path())?;
        done.copied += one.copied;
        done.settled &= one.settled;
    }
    // Only now it is a layer with all its mounts.
    let text = meta.to_bytes();
    copy.write_file("layer.json", &text)?;
    Ok(done)
}

/// Copies what mount `number` of `layer` holds into the layer whose directory is `to`; `path` is for messages.
fn copy_mount(layer: &Layer, number: usize, mount: &Mount, to: impl AsFd, path: &Path) -> Result<Snapshot> {
    for name in [mount.dir.clone(), format!("{}/upper", mount.dir), format!("{}/work", mount.dir)] {
        match rustix::fs::mkdirat(&to, &name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).at(|| path.join(&name).display().to_string()),
        }
    }
    let from = layer.open_upper(number)?;
    let to = at::open_below(&to, format!("{}/upper", mount.dir).as_bytes(), OFlags::RDONLY);
    let to = to.at(|| path.display().to_string())?;
    let mut walk = Walk { known: HashMap::new(), names: HashMap::new(), copied: 0, root: to };
    let mut settled = false;
    for _ in 0..WALKS {
        let before = walk.copied;
        walk.names.clear();
        let what = || layer.upper(number).display().to_string();
        walk.directory(at::open_below(&from, b"", OFlags::RDONLY).at(what)?.as_fd(), b"").at(what)?;
        walk.attributes(from.as_fd(), c".", &at::stat_fd(&from).at(what)?, b"").at(what)?;
        settled = walk.copied == before;
        if settled {
            break;
        }
    }
    Ok(Snapshot { copied: walk.copied, settled })
}

/// What an entry was when it was copied.
type Mark = (u64, at::Time, u64, FileType);

fn mark(stat: &Stat) -> Mark {
    (stat.ino, stat.ctime, stat.size, stat.kind)
}

/// Whether `name` in `from` is the file that `stat` is of.
fn is_still(from: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<bool, Errno> {
    Ok(at::stat(from, name)?.is_some_and(|now| (now.ino, now.kind) == (stat.ino, stat.kind)))
}

struct Walk {
    known: HashMap<Vec<u8>, Mark>,
    /// The first name of each file that has several, in this walk.
    names: HashMap<u64, Vec<u8>>,
    copied: u64,
    /// The copy.
    root: OwnedFd,
}

impl Walk {
    fn parent(&self, rel: &[u8]) -> Result<(OwnedFd, CString), Errno> {
        let (dir, name) = at::split(rel);
        Ok((at::open_below(&self.root, dir, OFlags::PATH)?, name))
    }

    /// What was copied to `rel`, and below it, is not there any more.
    fn forget(&mut self, rel: &[u8]) {
        let was = self.known.remove(rel);
        if was.is_some_and(|(_, _, _, kind)| kind == FileType::Directory) {
            self.known.retain(|other, _| !at::is_below(other, rel));
        }
    }

    fn directory(&mut self, from: BorrowedFd<'_>, rel: &[u8]) -> Result<(), Errno> {
        let mut seen = BTreeSet::new();
        for (name, _) in tree::names(from)? {
            let path = at::join(rel, name.to_bytes());
            // It may go at any moment.
            let Some(stat) = at::stat(from, &name)? else { continue };
            match self.entry(from, &name, &path, &stat) {
                Ok(()) => drop(seen.insert(name)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::STALE | Errno::LOOP) => {}
                // What these mean of another kind of file: readlink(2), open(2), setxattr(2).
                Err(Errno::INVAL | Errno::NXIO | Errno::PERM) if !is_still(from, &name, &stat)? => {}
                Err(e) => return Err(e),
            }
        }
        // What has gone since it was copied.
        let to = at::open_below(&self.root, rel, OFlags::RDONLY)?;
        for (name, _) in tree::names(&to)? {
            if !seen.contains(&name) {
                tree::remove(to.as_fd(), &name)?;
                self.forget(&at::join(rel, name.to_bytes()));
                self.copied += 1;
            }
        }
        Ok(())
    }

    fn entry(&mut self, from: BorrowedFd<'_>, name: &CStr, rel: &[u8], stat: &Stat) -> Result<(), Errno> {
        let (dir, own) = self.parent(rel)?;
        let before = self.known.get(rel).copied();
        let same_kind =
            before.is_some_and(|(ino, _, _, kind)| kind == stat.kind && (ino == stat.ino || !stat.is_dir()));
        if before.is_some() && !same_kind {
            tree::remove(dir.as_fd(), &own)?;
            self.forget(rel);
        }
        if stat.is_dir() {
            if !same_kind {
                rustix::fs::mkdirat(&dir, &*own, Mode::RWXU)?;
                self.copied += 1;
            }
            let inner = tree::open_dir(from, name)?;
            // Noted before it is read, so that what comes meanwhile is seen by the next walk.
            let fresh = self.known.insert(rel.to_vec(), mark(stat)) != Some(mark(stat));
            self.directory(inner.as_fd(), rel)?;
            return if fresh { self.attributes(from, name, stat, rel) } else { Ok(()) };
        }
        let first = if stat.nlink > 1 && !stat.is_whiteout() {
            self.names.get(&stat.ino).cloned().or_else(|| {
                self.names.insert(stat.ino, rel.to_vec());
                None
            })
        } else {
            None
        };
        if before == Some(mark(stat)) {
            return Ok(());
        }
        tree::remove(dir.as_fd(), &own)?;
        self.copied += 1;
        if let Some(first) = first {
            let (there, name) = self.parent(&first)?;
            rustix::fs::linkat(there, &name, &dir, &own, AtFlags::empty())?;
        } else {
            make(from, name, dir.as_fd(), &own, stat)?;
            self.attributes(from, name, stat, rel)?;
        }
        self.known.insert(rel.to_vec(), mark(stat));
        Ok(())
    }

    /// Owner, permissions, extended attributes with the overlay's own, times.
    fn attributes(&self, from: BorrowedFd<'_>, name: &CStr, stat: &Stat, rel: &[u8]) -> Result<(), Errno> {
        let (dir, own) = self.parent(rel)?;
        rustix::fs::chownat(
            &dir,
            &*own,
            Some(Uid::from_raw(stat.uid)),
            Some(Gid::from_raw(stat.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        for (key, value) in plain_xattrs(from, name)? {
            match at::set_xattr(&dir, &own, &key, &value) {
                // What only host root may set, he has set elsewhere.
                Err(Errno::PERM | Errno::OPNOTSUPP) if !key.to_bytes().starts_with(b"user.") => {}
                other => other?,
            }
        }
        if stat.kind != FileType::Symlink && !stat.is_whiteout() {
            rustix::fs::chmodat(&dir, &*own, Mode::from_raw_mode(stat.mode), AtFlags::empty())?;
        }
        let at = Timespec { tv_sec: stat.mtime.0, tv_nsec: i64::from(stat.mtime.1) };
        let times = Timestamps { last_access: at, last_modification: at };
        rustix::fs::utimensat(&dir, &*own, &times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Makes a file what `name` in `from` is, but for attributes.
fn make(from: BorrowedFd<'_>, name: &CStr, dir: BorrowedFd<'_>, own: &CStr, stat: &Stat) -> Result<(), Errno> {
    match stat.kind {
        FileType::RegularFile => {
            let from = at::open_file(from, name)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let to = rustix::fs::openat(dir, own, flags, Mode::RUSR | Mode::WUSR)?;
            copy::copy(&from, &to, stat)
        }
        FileType::Symlink => rustix::fs::symlinkat(at::read_link(from, name)?, dir, own),
        kind => {
            let device = rustix::fs::makedev(stat.rdev.0, stat.rdev.1);
            rustix::fs::mknodat(dir, own, kind, Mode::from_raw_mode(stat.mode), device)
        }
    }
}
