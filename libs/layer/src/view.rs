//! A layer with what lies below it, opened: what a walk, a commit and a reader of contents work on.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::at::{self, Stat};
use crate::change::Attr;
use crate::error::{At as _, Error, Result};
use crate::ids::{Ids, Which};
use crate::layer::Layer;
use crate::lower::Lower;
use crate::marks::Prefix;
use crate::owners::Owners;
use crate::tree;

/// A layer and what lies below it.
#[derive(Debug)]
pub struct View<'l> {
    pub(crate) layer: &'l Layer,
    pub(crate) mounts: Vec<MountView>,
    pub(crate) owners: Owners,
    pub(crate) prefix: Prefix,
}

/// One overlaid file system.
#[derive(Debug)]
pub(crate) struct MountView {
    pub(crate) path: PathBuf,
    pub(crate) upper: OwnedFd,
    pub(crate) lower: Lower,
    /// Its place on the host is not there, and nothing was changed in it: there is nothing to be told of it.
    pub(crate) gone: bool,
}

impl<'l> View<'l> {
    /// Opens `layer` above the host's tree at `root` (`/`), seen from where `owners` says. A mount whose place is gone from the
    /// host is an error, if something was changed there.
    pub fn open(layer: &'l Layer, root: &Path, owners: Owners) -> Result<View<'l>> {
        // Each level of a tree that is walked takes two fds.
        raise_fd_limit();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let host = rustix::fs::open(root, flags, Mode::empty()).at(|| root.display().to_string())?;
        let bases = layer.bases()?;
        let mut mounts = Vec::new();
        for (number, mount) in layer.meta().mounts.iter().enumerate() {
            let upper = layer.open_upper(number)?;
            let mut between = Vec::new();
            for base in &bases {
                // A base that did not overlay this mount has nothing to say about it.
                if let Some(at) = base.meta().mounts.iter().position(|other| other.path == mount.path) {
                    between.push((base.open_upper(at)?, Prefix::of(base.meta().ids.mirrored)));
                }
            }
            let relative = relative(&mount.path);
            let what = || format!("{}, which the layer overlays", crate::text::path(&root.join(&mount.path)));
            let (below, gone) = match at::open_below(&host, relative, flags) {
                Err(Errno::NOENT) if tree::names(&upper).at(what)?.is_empty() => (upper.try_clone().at(what)?, true),
                below => (below.at(what)?, false),
            };
            mounts.push(MountView { path: mount.path.clone(), upper, lower: Lower::new(between, below), gone });
        }
        if mounts.is_empty() && layer.interrupted() {
            return Err(Error::damaged(layer.path(), "it overlays nothing, and yet a commit of it was interrupted"));
        }
        Ok(View { layer, mounts, owners, prefix: Prefix::of(layer.meta().ids.mirrored) })
    }

    pub(crate) fn ids(&self) -> &Ids {
        &self.layer.meta().ids
    }

    /// The path from the environment's `/` of `rel` below a mount.
    pub(crate) fn path(&self, mount: usize, rel: &[u8]) -> PathBuf {
        let path = &self.mounts[mount].path;
        if rel.is_empty() { path.clone() } else { path.join(std::ffi::OsStr::from_bytes(rel)) }
    }

    /// Attributes of an entry of a layer.
    pub(crate) fn attr_in_layer(&self, stat: &Stat) -> Attr {
        let id = |which, seen| self.owners.in_layer(self.ids(), which, seen);
        attr(stat, id(Which::Users, stat.uid), id(Which::Groups, stat.gid))
    }

    /// Attributes of a file of the host, as the environment saw them; and whether its owner could be told.
    pub(crate) fn attr_on_host(&self, stat: &Stat) -> (Attr, bool) {
        let id = |which, seen| self.owners.on_host(which, seen);
        let (uid, gid) = (id(Which::Users, stat.uid), id(Which::Groups, stat.gid));
        let shown = |which, host: Option<u32>| host.and_then(|host| self.shown(which, host));
        let known = uid.is_some() && gid.is_some();
        (attr(stat, shown(Which::Users, uid), shown(Which::Groups, gid)), known)
    }

    /// How the environment saw an owner of the host.
    pub(crate) fn shown(&self, which: Which, host: u32) -> Option<u32> {
        self.ids().shown(which, host, &self.owners.member)
    }

    pub(crate) fn upper(&self, mount: usize) -> BorrowedFd<'_> {
        self.mounts[mount].upper.as_fd()
    }
}

fn attr(stat: &Stat, uid: Option<u32>, gid: Option<u32>) -> Attr {
    let mtime = i128::from(stat.mtime.0) * 1_000_000_000 + i128::from(stat.mtime.1);
    Attr { kind: stat.kind.into(), mode: stat.mode, uid, gid, size: stat.size, mtime }
}

/// An absolute path from its root.
pub(crate) fn relative(path: &Path) -> &[u8] {
    let bytes = path.as_os_str().as_bytes();
    let start = bytes.iter().position(|b| *b != b'/').unwrap_or(bytes.len());
    &bytes[start..]
}

fn raise_fd_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Without it, a very deep tree ends in EMFILE.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}
