//! One layer: a directory, held open.
//!
//! ```text
//! NAME/layer.json      what it is (`Meta`)
//! NAME/lock            held exclusively by the environment that writes it, shared by environments that lie on it
//! NAME/committing      held by a commit
//! NAME/commit.journal  what a commit that was interrupted still has to do
//! NAME/mN/upper, work  of its Nth mount, as the kernel's overlay keeps them
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use crate::error::{At as _, Error, Result};
use crate::lock::Lock;
use crate::meta::{Meta, Mount};
use crate::{store, tree};

const META: &str = "layer.json";
const LOCK: &str = "lock";
/// What a commit holds, beside the layer's own lock or, while an environment has that, instead of it.
const COMMITTING: &str = "committing";
/// Where a commit notes what it does.
pub(crate) const JOURNAL: &str = "commit.journal";
/// More layers than this below each other are a loop.
const DEEPEST: usize = 64;

/// A layer. It is held by an fd, so it stays the same one whatever happens to its name.
#[derive(Debug)]
pub struct Layer {
    dir: OwnedFd,
    path: PathBuf,
    meta: Meta,
}

/// What a layer takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Size {
    /// Bytes of disk space.
    pub bytes: u64,
    /// Entries of its upper directories, marks of deletion among them.
    pub entries: u64,
    /// Directories that the caller may not read, so that they are not in the sum.
    pub unreadable: u64,
}

impl Layer {
    /// Makes the directory `path` (its parents too) a layer without mounts. [`Error::Exists`] if there is anything. Nobody sees
    /// it before it is whole: it is made under a hidden name, which is what a crash leaves.
    pub fn create(path: &Path, meta: Meta) -> Result<Layer> {
        let (hidden, _) = store::hidden(path)?;
        rustix::fs::mkdir(&hidden, Mode::RWXU).at(|| format!("mkdir {}", hidden.display()))?;
        let made = open(&hidden).and_then(|dir| Layer::make(dir, path, meta)).and_then(|layer| {
            let flags = RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(rustix::fs::CWD, &hidden, rustix::fs::CWD, path, flags) {
                Err(Errno::EXIST) => Err(Error::Exists(path.into())),
                other => other.at(|| path.display().to_string()).map(|()| layer),
            }
        });
        if made.is_err() {
            let _ = std::fs::remove_dir_all(&hidden);
        }
        made
    }

    /// As [`create`](Layer::create), in an empty directory that is open already; `path` is for messages.
    pub fn create_at(dir: OwnedFd, path: &Path, meta: Meta) -> Result<Layer> {
        if tree::names(&dir).at(|| path.display().to_string())?.iter().any(|(name, _)| name.as_c_str() == c"layer.json")
        {
            return Err(Error::Exists(path.into()));
        }
        Layer::make(dir, path, meta)
    }

    fn make(dir: OwnedFd, path: &Path, mut meta: Meta) -> Result<Layer> {
        let mounts = std::mem::take(&mut meta.mounts);
        let mut layer = Layer { dir, path: path.into(), meta };
        if let Some(base) = &layer.meta.base {
            // It must be there and of a version that this crate knows.
            store::base(&layer.path, base)?;
        }
        layer.write_meta()?;
        for mount in mounts {
            layer.add_mount(&mount.path)?;
        }
        Ok(layer)
    }

    /// Opens the layer at `path`.
    pub fn open(path: &Path) -> Result<Layer> {
        match Layer::open_once(path) {
            // One that is gone may have had the inode number of the one that is there now.
            Err(Error::Damaged { .. }) => Layer::open_once(path),
            opened => opened,
        }
    }

    fn open_once(path: &Path) -> Result<Layer> {
        match open(path) {
            Err(Error::Io { source, .. })
                if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                Err(Error::Missing(path.into()))
            }
            dir => {
                let dir = dir?;
                let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
                let opened = rustix::fs::fstat(&dir).map(id).at(|| path.display().to_string())?;
                Layer::open_at(dir, path).map_err(|e| match rustix::fs::stat(path).map(id) {
                    // Somebody took it away while this looked.
                    now if now != Ok(opened) => Error::Missing(path.into()),
                    _ => e,
                })
            }
        }
    }

    /// The layer whose directory is `dir`; `path` is for messages, and where its base is looked for.
    pub fn open_at(dir: OwnedFd, path: &Path) -> Result<Layer> {
        // That of a layer in memory is known by its path alone (O_PATH), which nothing can be synced by.
        let dir = crate::at::open_below(&dir, b"", OFlags::RDONLY).at(|| path.display().to_string())?;
        let text = match read_file(dir.as_fd(), META) {
            Ok(text) => text,
            Err(Errno::NOENT) => return Err(Error::damaged(path, "it is no layer: there is no layer.json in it")),
            Err(e) => return Err(e).at(|| format!("{}", path.join(META).display())),
        };
        let meta = Meta::parse(path, &text)?;
        Ok(Layer { dir, path: path.into(), meta })
    }

    /// Where it is, for messages, and for the kernel's mount options where it lies on disk.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name: the last part of its path.
    pub fn name(&self) -> String {
        self.path.file_name().map(|name| crate::text::escape(name.as_bytes())).unwrap_or_default()
    }

    /// What it is.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Adds the host's mount at `path`, or finds it among those there are: its number. The upper directory gets the mode and,
    /// for root, the owner of `path`, since the environment sees them there. Not durable before the next sync.
    pub fn add_mount(&mut self, path: &Path) -> Result<usize> {
        if let Some(known) = self.meta.mounts.iter().position(|mount| mount.path == path) {
            return Ok(known);
        }
        let number = self.meta.mounts.len();
        let dir = format!("m{number}");
        let stat = rustix::fs::stat(path).at(|| format!("stat {}", path.display()))?;
        for name in [dir.clone(), format!("{dir}/upper"), format!("{dir}/work")] {
            match rustix::fs::mkdirat(&self.dir, &name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e).at(|| format!("mkdir {}", self.path.join(&name).display())),
            }
        }
        let upper = format!("{dir}/upper");
        let dress = || {
            if !self.meta.ids.mirrored && rustix::process::geteuid().is_root() {
                let ids = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
                rustix::fs::chownat(&self.dir, &upper, ids.0, ids.1, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            rustix::fs::chmodat(&self.dir, &upper, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())
        };
        dress().at(|| format!("{}", self.path.join(&upper).display()))?;
        self.meta.mounts.push(Mount { path: path.into(), dir });
        self.write_meta()?;
        Ok(number)
    }

    /// The path of the upper directory of mount `number`.
    pub fn upper(&self, number: usize) -> PathBuf {
        self.path.join(&self.meta.mounts[number].dir).join("upper")
    }

    /// The path of the directory that the kernel works in, of mount `number`.
    pub fn work(&self, number: usize) -> PathBuf {
        self.path.join(&self.meta.mounts[number].dir).join("work")
    }

    /// The upper directory of mount `number`, open for reading.
    pub fn open_upper(&self, number: usize) -> Result<OwnedFd> {
        self.open_below(&format!("{}/upper", self.meta.mounts[number].dir))
    }

    /// The working directory of mount `number`, open for reading.
    pub fn open_work(&self, number: usize) -> Result<OwnedFd> {
        self.open_below(&format!("{}/work", self.meta.mounts[number].dir))
    }

    fn open_below(&self, name: &str) -> Result<OwnedFd> {
        use rustix::fs::ResolveFlags;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = rustix::fs::openat2(&self.dir, name, flags, Mode::empty(), resolve);
        opened.at(|| self.path.join(name).display().to_string())
    }

    /// Takes it for writing: no other environment may, nor lie on it. [`Error::Busy`], [`Error::Frozen`] where others do.
    /// `by` tells the others who has it.
    pub fn lock_exclusive(&self, by: &str) -> Result<Lock> {
        let lock = self.lock_use(by)?;
        let above = store::above(&self.path)?;
        if !above.is_empty() {
            return Err(Error::Frozen { path: self.path.clone(), by: above });
        }
        Ok(lock)
    }

    /// Takes the lock of a layer that was just made in `dir`, so nobody else has it, nor lies on it. `path` is for messages.
    pub fn lock_new(dir: impl AsFd, path: &Path, by: &str) -> Result<Lock> {
        Lock::take(dir.as_fd(), path, LOCK, true, by)
    }

    /// Takes it as the base of an environment: nobody writes it meanwhile.
    pub fn lock_shared(&self) -> Result<Lock> {
        Lock::take(self.as_fd(), &self.path, LOCK, false, "")
    }

    /// Takes it for writing, though other layers may lie on it.
    pub(crate) fn lock_use(&self, by: &str) -> Result<Lock> {
        Lock::take(self.as_fd(), &self.path, LOCK, true, by)
    }

    /// Takes it for a commit: one at a time.
    pub(crate) fn lock_commit(&self) -> Result<Lock> {
        let by = format!("a commit (process {})", std::process::id());
        Lock::take(self.as_fd(), &self.path, COMMITTING, true, &by)
    }

    /// Who writes it now, if somebody does.
    pub fn in_use(&self) -> Result<Option<String>> {
        match Lock::holder(self.as_fd(), &self.path, LOCK)? {
            None => Lock::holder(self.as_fd(), &self.path, COMMITTING),
            some => Ok(some),
        }
    }

    /// Whether a commit of it was interrupted: it has to be finished before the layer is used otherwise.
    pub fn interrupted(&self) -> bool {
        rustix::fs::statat(&self.dir, JOURNAL, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// The layers below it, the nearest first.
    pub fn bases(&self) -> Result<Vec<Layer>> {
        let mut found: Vec<Layer> = Vec::new();
        let mut next = self.meta.base.clone();
        while let Some(name) = next {
            let above = found.last().map_or(self.path(), Layer::path);
            let base = store::base(above, &name)?;
            next = base.meta.base.clone();
            found.push(base);
            if found.len() > DEEPEST {
                return Err(Error::damaged(&self.path, "its bases are too many, or form a loop"));
            }
        }
        Ok(found)
    }

    /// What it takes on disk.
    pub fn size(&self) -> Result<Size> {
        let mut all = tree::Usage::default();
        let mut entries = 0;
        for number in 0..self.meta.mounts.len() {
            let before = all.files;
            tree::usage(self.open_upper(number)?.as_fd(), &mut all).at(|| self.upper(number).display().to_string())?;
            entries += all.files - before;
            tree::usage(self.open_work(number)?.as_fd(), &mut all).at(|| self.work(number).display().to_string())?;
        }
        Ok(Size { bytes: all.bytes, entries, unreadable: all.unreadable })
    }

    /// Removes it, all of it. `lock` says that nobody else has it. Its name is free as soon as this begins; what a crash leaves
    /// has a hidden name. [`Error::Foreign`], and nothing is done: files in it belong to ids of an environment.
    pub fn remove(self, lock: Lock) -> Result<()> {
        if self.foreign()? {
            return Err(Error::Foreign(self.path));
        }
        store::remove(&self.path)?;
        drop(lock);
        Ok(())
    }

    /// Whether something in it belongs to other ids than the caller's, or is closed to him, so that only a process that has them
    /// all (root inside an environment of the same ids) can read and remove everything.
    pub fn foreign(&self) -> Result<bool> {
        let me = rustix::process::geteuid();
        if me.is_root() {
            return Ok(false);
        }
        let foreign = (0..self.meta.mounts.len()).map(|number| {
            let (upper, work) = (self.open_upper(number)?, self.open_work(number)?);
            // The kernel keeps its working directory closed, which its owner may open.
            let any = tree::foreign(upper.as_fd(), me.as_raw(), true)
                .and_then(|f| Ok(f || tree::foreign(work.as_fd(), me.as_raw(), false)?));
            any.at(|| self.path.display().to_string())
        });
        foreign.into_iter().try_fold(false, |any, one| Ok(any || one?))
    }

    fn write_meta(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.meta).map_err(std::io::Error::from).at(|| META.into())?;
        self.write_file(META, text.as_bytes())
    }

    /// Replaces a small file of the layer: the old one or the new one is there at any time.
    pub(crate) fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = format!(".{name}.new");
        let write = || -> std::io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::openat(&self.dir, &temporary, flags, Mode::from_raw_mode(0o600))?;
            std::io::Write::write_all(&mut std::fs::File::from(file), bytes)?;
            Ok(rustix::fs::renameat(&self.dir, &temporary, &self.dir, name)?)
        };
        write().at(|| self.path.join(name).display().to_string())
    }
}

impl AsFd for Layer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at(|| path.display().to_string())
}

pub(crate) fn read_file(dir: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = std::fs::File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    let mut text = Vec::new();
    match std::io::Read::read_to_end(&mut &file, &mut text) {
        Ok(_) => Ok(text),
        Err(e) => Err(e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)),
    }
}
