//! What lies below an upper directory: the host's tree, and between them the upper directories of base layers, merged as the
//! kernel's overlay merges them.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::at::{self, Stat, Xattr};
use crate::marks::{Marks, Prefix, plain_xattrs};
use crate::tree;

/// The trees below, the nearest first; the host's own is the last.
#[derive(Debug)]
pub(crate) struct Lower {
    trees: Vec<Tree>,
}

#[derive(Debug)]
struct Tree {
    root: OwnedFd,
    /// An upper directory of a base layer, with the overlay's marks.
    layer: Option<Prefix>,
}

/// A directory of the merged tree: the directories that it is merged from.
#[derive(Debug)]
pub(crate) struct Dir {
    parts: Vec<(usize, OwnedFd)>,
}

/// What a name means in a [`Dir`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) stat: Stat,
    /// Which of the directory's parts it lies in.
    part: usize,
    /// It is the host's own, and not a base layer's.
    pub(crate) on_host: bool,
}

impl Lower {
    /// The host's directory `host`, below the upper directories of `bases`, the nearest first.
    pub(crate) fn new(bases: Vec<(OwnedFd, Prefix)>, host: OwnedFd) -> Lower {
        let mut trees: Vec<Tree> = bases.into_iter().map(|(root, prefix)| Tree { root, layer: Some(prefix) }).collect();
        trees.push(Tree { root: host, layer: None });
        Lower { trees }
    }

    /// The host's tree.
    pub(crate) fn host(&self) -> BorrowedFd<'_> {
        // `new` puts one there.
        self.trees[self.trees.len() - 1].root.as_fd()
    }

    pub(crate) fn root(&self) -> Result<Dir, Errno> {
        self.roots_from(0)
    }

    fn roots_from(&self, first: usize) -> Result<Dir, Errno> {
        let mut parts = Vec::new();
        for (number, tree) in self.trees.iter().enumerate().skip(first) {
            // Opened anew, since a listing moves an fd's position.
            parts.push((number, at::open_below(&tree.root, b"", OFlags::RDONLY)?));
            if let Some(prefix) = tree.layer
                && Marks::read(&tree.root, c".", prefix)?.opaque
            {
                break;
            }
        }
        Ok(Dir { parts })
    }

    /// What `name` is in `dir`.
    pub(crate) fn look(&self, dir: &Dir, name: &CStr) -> Result<Option<Found>, Errno> {
        for (part, (tree, fd)) in dir.parts.iter().enumerate() {
            let Some(stat) = at::stat(fd, name)? else { continue };
            let layer = self.trees[*tree].layer.is_some();
            if layer && stat.is_whiteout() {
                return Ok(None);
            }
            return Ok(Some(Found { stat, part, on_host: !layer }));
        }
        Ok(None)
    }

    /// The directory `name` of `dir`; `None` if it is none.
    pub(crate) fn enter(&self, dir: &Dir, name: &CStr) -> Result<Option<Dir>, Errno> {
        let mut parts = Vec::new();
        let mut name = name.to_owned();
        for (tree, fd) in &dir.parts {
            let Some(stat) = at::stat(fd, &name)? else { continue };
            if !stat.is_dir() {
                break;
            }
            parts.push((*tree, tree::open_dir(fd, &name)?));
            let Some(prefix) = self.trees[*tree].layer else { continue };
            let marks = Marks::read(fd, &name, prefix)?;
            match marks.redirect {
                Some(to) if to.starts_with(b"/") => {
                    if let Some(rest) = self.resolve(*tree + 1, &to)? {
                        parts.extend(rest.parts);
                    }
                    break;
                }
                Some(sibling) => name = at::c_name(&sibling),
                None if marks.opaque => break,
                None => {}
            }
        }
        Ok((!parts.is_empty()).then_some(Dir { parts }))
    }

    /// The directory at `path`.
    pub(crate) fn at(&self, path: &[u8]) -> Result<Option<Dir>, Errno> {
        self.resolve(0, path)
    }

    fn resolve(&self, first: usize, path: &[u8]) -> Result<Option<Dir>, Errno> {
        let mut dir = self.roots_from(first)?;
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            match self.enter(&dir, &at::c_name(part))? {
                Some(inner) => dir = inner,
                None => return Ok(None),
            }
        }
        Ok(Some(dir))
    }

    /// All names in `dir` with what they are, sorted.
    pub(crate) fn list(&self, dir: &Dir) -> Result<BTreeMap<CString, Found>, Errno> {
        let mut found = BTreeMap::new();
        for (_, fd) in &dir.parts {
            for (name, _) in tree::names(at::open_below(fd, b"", OFlags::RDONLY)?)? {
                if !found.contains_key(&name)
                    && let Some(what) = self.look(dir, &name)?
                {
                    found.insert(name, what);
                }
            }
        }
        Ok(found)
    }

    /// The directory fd that `found` lies in.
    pub(crate) fn fd<'d>(&self, dir: &'d Dir, found: &Found) -> BorrowedFd<'d> {
        dir.parts[found.part].1.as_fd()
    }

    /// The extended attributes of `found`, as the overlay shows them.
    pub(crate) fn xattrs(&self, dir: &Dir, name: &CStr, found: &Found) -> Result<Vec<Xattr>, Errno> {
        let (tree, fd) = &dir.parts[found.part];
        match self.trees[*tree].layer {
            Some(prefix) => Marks::read(fd, name, prefix)?.values(fd, name),
            None => plain_xattrs(fd, name),
        }
    }
}
