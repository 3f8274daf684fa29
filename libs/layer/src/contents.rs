//! What files of a layer, and of what lies below it, hold.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::at::{self, Stat, Xattr};
use crate::change::Change;
use crate::error::{At as _, Result};
use crate::lower::{Dir, Found};
use crate::marks::Marks;
use crate::view::View;
use crate::walk::TRIES;

/// A file with what it holds, ready to be read.
#[derive(Debug)]
pub(crate) enum Body {
    File(File),
    /// What a symbolic link says.
    Link(CString),
    /// Nothing to read.
    None,
}

impl View<'_> {
    /// The directory in the layer that `change` lies in.
    pub(crate) fn upper_parent(&self, change: &Change) -> Result<(OwnedFd, CString)> {
        let (dir, name) = at::split(&change.place.rel);
        let fd = at::open_below(self.upper(change.place.mount), dir, OFlags::PATH);
        Ok((fd.at(|| crate::text::path(&change.path))?, name))
    }

    /// What the environment has there now.
    pub(crate) fn now(&self, change: &Change) -> Result<Body> {
        if change.place.metacopy {
            return self.before(change);
        }
        let (dir, name) = self.upper_parent(change)?;
        let kind = change.place.upper.map(|stat| stat.kind);
        body(&dir, &name, kind).at(|| crate::text::path(&change.path))
    }

    /// Its extended attributes, as programs see them.
    pub(crate) fn xattrs_now(&self, change: &Change) -> Result<Vec<Xattr>> {
        let (dir, name) = self.upper_parent(change)?;
        let read = Marks::read(&dir, &name, self.prefix).and_then(|marks| marks.values(&dir, &name));
        read.at(|| crate::text::path(&change.path))
    }

    /// What `read` finds of a change, unless that has gone since: its environment may still run.
    pub(crate) fn unless_gone<T>(&self, change: &Change, read: impl Fn() -> Result<T>) -> Result<Option<T>> {
        let was = change.place.upper.map(|stat| stat.kind);
        let is_there = || -> Result<bool> {
            let (dir, name) = self.upper_parent(change)?;
            let now = at::stat(&dir, &name).at(|| crate::text::path(&change.path))?;
            Ok(now.is_some_and(|now| Some(now.kind) == was))
        };
        for tries in 0.. {
            match read() {
                Err(e) if e.is_of_moving() && tries < TRIES => match is_there() {
                    Ok(true) => {}
                    Err(e) if !e.is_of_moving() => return Err(e),
                    _ => break,
                },
                done => return done.map(Some),
            }
        }
        Ok(None)
    }

    /// What was there before.
    pub(crate) fn before(&self, change: &Change) -> Result<Body> {
        let Some(path) = change.place.lower.as_deref() else { return Ok(Body::None) };
        let lower = &self.mounts[change.place.mount].lower;
        let read = || {
            let (parent, name) = at::split(path);
            let Some(dir) = lower.at(parent)? else { return Ok(Body::None) };
            let Some(found) = lower.look(&dir, &name)? else { return Ok(Body::None) };
            body(lower.fd(&dir, &found), &name, Some(found.stat.kind))
        };
        read().at(|| crate::text::path(&self.path(change.place.mount, path)))
    }

    /// Calls `each` for all that lies below the directory at `path` in the trees below, parents first, names in order.
    pub(crate) fn each_below(
        &self,
        mount: usize,
        path: &[u8],
        each: &mut dyn FnMut(Below<'_>) -> Result<()>,
    ) -> Result<()> {
        let lower = &self.mounts[mount].lower;
        match lower.at(path).at(|| crate::text::path(&self.path(mount, path)))? {
            Some(dir) => self.each_in(mount, &dir, path, each),
            None => Ok(()),
        }
    }

    fn each_in(
        &self,
        mount: usize,
        dir: &Dir,
        path: &[u8],
        each: &mut dyn FnMut(Below<'_>) -> Result<()>,
    ) -> Result<()> {
        let lower = &self.mounts[mount].lower;
        let context = || crate::text::path(&self.path(mount, path));
        for (name, found) in lower.list(dir).at(context)? {
            let path = at::join(path, name.to_bytes());
            each(Below { view: self, mount, dir, name: &name, found: &found, path: &path })?;
            if found.stat.is_dir()
                && let Some(inner) = lower.enter(dir, &name).at(context)?
            {
                self.each_in(mount, &inner, &path, each)?;
            }
        }
        Ok(())
    }
}

/// A file in the trees below.
pub(crate) struct Below<'b> {
    view: &'b View<'b>,
    pub(crate) mount: usize,
    dir: &'b Dir,
    name: &'b CString,
    found: &'b Found,
    pub(crate) path: &'b [u8],
}

impl Below<'_> {
    pub(crate) fn stat(&self) -> &Stat {
        &self.found.stat
    }

    pub(crate) fn attr(&self) -> crate::Attr {
        if self.found.on_host {
            self.view.attr_on_host(&self.found.stat).0
        } else {
            self.view.attr_in_layer(&self.found.stat)
        }
    }

    pub(crate) fn body(&self) -> Result<Body> {
        let lower = &self.view.mounts[self.mount].lower;
        body(lower.fd(self.dir, self.found), self.name, Some(self.found.stat.kind)).at(|| self.text())
    }

    pub(crate) fn xattrs(&self) -> Result<Vec<Xattr>> {
        let lower = &self.view.mounts[self.mount].lower;
        lower.xattrs(self.dir, self.name, self.found).at(|| self.text())
    }

    fn text(&self) -> String {
        crate::text::path(&self.view.path(self.mount, self.path))
    }
}

fn body(dir: impl std::os::fd::AsFd, name: &CString, kind: Option<FileType>) -> Result<Body, Errno> {
    Ok(match kind {
        Some(FileType::RegularFile) => Body::File(at::open_file(dir, name)?.into()),
        Some(FileType::Symlink) => Body::Link(at::read_link(dir, name)?),
        _ => Body::None,
    })
}
