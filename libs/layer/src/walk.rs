//! The walk over a layer: each of its entries is held against what lies below it.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use rustix::io::Errno;

use crate::at::{self, Stat};
use crate::change::{Aspect, Change, Kind, Place};
use crate::compare;
use crate::error::{At as _, Result};
use crate::lower::{Dir, Found, Lower};
use crate::marks::Marks;
use crate::tree;
use crate::view::View;

/// What a walk looks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// A file of which only the time of its last change is another is a change too.
    pub times: bool,
    /// Entries of the layer that are as on the host are listed too ([`Kind::Same`]).
    pub same: bool,
}

/// All changes of the layer, sorted by path; where a path is deleted and something else is renamed to it, in this order. An
/// entry that can't be read is an error.
pub fn walk(view: &mut View<'_>, options: Options) -> Result<Vec<Change>> {
    let mut all = Vec::new();
    for mount in (0..view.mounts.len()).filter(|mount| !view.mounts[*mount].gone).collect::<Vec<_>>() {
        let mut walk = Walk { view, mount, options, changes: Vec::new(), moved: Vec::new(), failed: false };
        walk.root()?;
        let Walk { changes, moved, .. } = walk;
        let moved = moved.into_iter().collect();
        all.extend(changes.into_iter().filter_map(|change| settle(change, &moved)));
    }
    resolve_owners(view, &mut all);
    if !options.same {
        all.retain(|change| change.kind != Kind::Same);
    }
    all.sort_by(|a, b| a.path.cmp(&b.path).then(a.kind.cmp(&b.kind)));
    Ok(all)
}

/// What lies below a directory that was renamed is what that directory has, and nothing that has its old path now.
fn settle(mut change: Change, moved: &BTreeSet<Vec<u8>>) -> Option<Change> {
    let place = &mut change.place;
    let Some(lower) = place.lower.as_deref().filter(|_| !moved.is_empty()) else { return Some(change) };
    let mut ends = (0..=lower.len()).rev().filter(|end| *end == lower.len() || lower[*end] == b'/');
    let owner = ends.find(|end| moved.contains(&lower[..*end])).map(|end| &lower[..end]);
    if owner == place.via.as_deref() {
        return Some(change);
    }
    if change.kind == Kind::Deleted {
        // The mark that it left, which hides nothing any more.
        return place.upper.is_some().then_some(Change { kind: Kind::Same, was: None, ..change });
    }
    *place = Place { lower: None, below: None, on_host: false, unsure: false, ..std::mem::take(place) };
    Some(Change { kind: Kind::Added, what: Vec::new(), from: None, was: None, ..change })
}

/// How often an entry is looked at again that moves each time.
pub(crate) const TRIES: usize = 16;

struct Walk<'v, 'l> {
    view: &'v View<'l>,
    mount: usize,
    options: Options,
    changes: Vec<Change>,
    /// Paths in the trees below that directories of the layer were renamed from.
    moved: Vec<Vec<u8>>,
    /// An entry could not be looked at, however often.
    failed: bool,
}

/// The directory below one that is walked.
struct Level {
    dir: Dir,
    /// Its path in the trees below.
    path: Vec<u8>,
    /// The path there of the renamed directory that it lies in, or is.
    via: Option<Vec<u8>>,
}

/// An entry that is being looked at.
struct Entry<'e> {
    upper: BorrowedFd<'e>,
    name: &'e CStr,
    rel: Vec<u8>,
    stat: Stat,
    marks: Marks,
}

/// What an entry is held against.
struct Below<'e> {
    dir: &'e Dir,
    name: &'e CStr,
    found: Found,
    path: Vec<u8>,
    via: Option<Vec<u8>>,
}

impl Walk<'_, '_> {
    fn lower(&self) -> &Lower {
        &self.view.mounts[self.mount].lower
    }

    fn context<T>(&self, result: Result<T, Errno>, rel: &[u8]) -> Result<T> {
        result.at(|| crate::text::path(&self.view.path(self.mount, rel)))
    }

    fn root(&mut self) -> Result<()> {
        let upper = self.view.upper(self.mount);
        let dir = self.context(self.lower().root(), b"")?;
        let stat = self.context(at::stat_fd(upper), b"")?;
        let marks = self.context(Marks::read(upper, c".", self.view.prefix), b"")?;
        let opaque = marks.opaque;
        let found = self.context(self.lower().look(&dir, c"."), b"")?;
        let entry = Entry { upper, name: c".", rel: Vec::new(), stat, marks };
        if let Some(found) = found {
            self.compare(&entry, &Below { dir: &dir, name: c".", found, path: Vec::new(), via: None }, Kind::Modified)?;
        }
        // Opened anew, since a listing moves the fd's position.
        let upper = self.context(at::open_below(upper, b"", rustix::fs::OFlags::RDONLY), b"")?;
        self.directory(upper.as_fd(), b"", Some(Level { dir, path: Vec::new(), via: None }), opaque)
    }

    /// All entries of `upper`. With `opaque`, what is below and not in it is gone.
    fn directory(&mut self, upper: BorrowedFd<'_>, rel: &[u8], level: Option<Level>, opaque: bool) -> Result<()> {
        let names = self.context(tree::names(upper), rel)?;
        let mut here = BTreeSet::new();
        for (name, _) in names {
            let rel = at::join(rel, name.to_bytes());
            let stat = self.steady(upper, &name, &rel, level.as_ref(), opaque)?;
            if opaque && level.is_some() && stat.is_some_and(|stat| !stat.is_whiteout()) {
                here.insert(name);
            }
        }
        if let Some(level) = level.filter(|_| opaque) {
            for (name, found) in self.context(self.lower().list(&level.dir), rel)? {
                if !here.contains(&name) {
                    let via = level.via.clone();
                    let place = Place { rel: at::join(rel, name.to_bytes()), via, ..Place::default() };
                    self.deleted(place, at::join(&level.path, name.to_bytes()), &found);
                }
            }
        }
        Ok(())
    }

    /// An entry, also of a layer that is being written: what became another one while it was looked at is looked at again, and `None`
    /// is what went. Nothing stays of what was seen of it.
    fn steady(
        &mut self,
        upper: BorrowedFd<'_>,
        name: &CStr,
        rel: &[u8],
        level: Option<&Level>,
        opaque: bool,
    ) -> Result<Option<Stat>> {
        let (changes, moved) = (self.changes.len(), self.moved.len());
        for tries in 0.. {
            let Some(stat) = self.context(at::stat(upper, name), rel)? else { return Ok(None) };
            match self.entry(upper, name, rel.to_vec(), stat, level, opaque) {
                Err(e) if e.is_of_moving() && tries < TRIES && !self.failed => {
                    self.changes.truncate(changes);
                    self.moved.truncate(moved);
                }
                done => {
                    self.failed = done.is_err();
                    return done.map(|()| Some(stat));
                }
            }
        }
        Ok(None)
    }

    fn entry(
        &mut self,
        upper: BorrowedFd<'_>,
        name: &CStr,
        rel: Vec<u8>,
        stat: Stat,
        level: Option<&Level>,
        opaque: bool,
    ) -> Result<()> {
        let found = match level {
            Some(level) => self.context(self.lower().look(&level.dir, name), &rel)?,
            None => None,
        };
        let path = level.map(|level| at::join(&level.path, name.to_bytes()));
        let via = level.and_then(|level| level.via.clone());
        if stat.is_whiteout() {
            let place = Place { mount: self.mount, rel, upper: Some(stat), via, ..Place::default() };
            match (found, path) {
                (Some(found), Some(path)) if !opaque => self.deleted(place, path, &found),
                // In an opaque directory it says nothing; elsewhere what it hid is gone by itself.
                _ => {
                    let path = self.view.path(self.mount, &place.rel);
                    let (what, kind) = (Vec::new(), Kind::Same);
                    self.changes.push(Change { path, kind, what, from: None, was: None, is: None, place });
                }
            }
            return Ok(());
        }
        let marks = self.context(Marks::read(upper, name, self.view.prefix), &rel)?;
        let entry = Entry { upper, name, rel, stat, marks };
        if stat.is_dir() {
            return self.subdirectory(entry, level, found, path, opaque);
        }
        match (level, found, path) {
            (Some(level), Some(found), Some(path)) => {
                let kind = if found.stat.kind == stat.kind { Kind::Modified } else { Kind::Type };
                self.compare(&entry, &Below { dir: &level.dir, name, found, path, via }, kind)
            }
            _ => {
                self.added(&entry, false);
                Ok(())
            }
        }
    }

    fn subdirectory(
        &mut self,
        entry: Entry<'_>,
        level: Option<&Level>,
        found: Option<Found>,
        path: Option<Vec<u8>>,
        opaque: bool,
    ) -> Result<()> {
        let inner = self.context(tree::open_dir(entry.upper, entry.name), &entry.rel)?;
        let rel = entry.rel.clone();
        if let Some(redirect) = &entry.marks.redirect {
            let from = match redirect.strip_prefix(b"/") {
                Some(absolute) => absolute.to_vec(),
                None => at::join(level.map_or(b"".as_slice(), |level| &level.path), redirect),
            };
            // One that was moved there and back is where it was.
            if Some(&from) != path.as_ref() || opaque {
                if let (Some(found), Some(path)) = (found.filter(|_| !opaque), path) {
                    let via = level.and_then(|level| level.via.clone());
                    let place = Place { rel: rel.clone(), via, ..Place::default() };
                    self.deleted(place, path, &found);
                }
                return self.renamed(entry, inner.as_fd(), from);
            }
        }
        let (Some(level), Some(found), Some(path)) = (level, found, path) else {
            self.added(&entry, false);
            if let Some(change) = self.changes.last_mut() {
                change.place.hidden = entry.marks.opaque;
            }
            return self.directory(inner.as_fd(), &rel, None, false);
        };
        let kind = if found.stat.is_dir() { Kind::Modified } else { Kind::Type };
        let opaque = opaque || entry.marks.opaque;
        let via = level.via.clone();
        let below = Below { dir: &level.dir, name: entry.name, found, path: path.clone(), via: via.clone() };
        self.compare(&entry, &below, kind)?;
        if let Some(change) = self.changes.last_mut() {
            change.place.hidden = opaque;
        }
        let dir = self.context(self.lower().enter(&level.dir, entry.name), &rel)?;
        self.directory(inner.as_fd(), &rel, dir.map(|dir| Level { dir, path, via }), opaque)
    }

    /// A directory that was `from` below.
    fn renamed(&mut self, entry: Entry<'_>, inner: BorrowedFd<'_>, from: Vec<u8>) -> Result<()> {
        let rel = entry.rel.clone();
        let (parent, name) = at::split(&from);
        let above = self.context(self.lower().at(parent), &rel)?;
        let found = match &above {
            Some(above) => self.context(self.lower().look(above, &name), &rel)?,
            None => None,
        };
        let dir = match &above {
            Some(above) => self.context(self.lower().enter(above, &name), &rel)?,
            None => None,
        };
        let (Some(above), Some(found), Some(dir)) = (above, found, dir) else {
            self.added(&entry, true);
            return self.directory(inner, &rel, None, false);
        };
        self.moved.push(from.clone());
        let via = Some(from.clone());
        let below = Below { dir: &above, name: &name, found, path: from.clone(), via: via.clone() };
        self.compare(&entry, &below, Kind::Renamed)?;
        self.directory(inner, &rel, Some(Level { dir, path: from, via }), entry.marks.opaque)
    }

    fn deleted(&mut self, place: Place, path: Vec<u8>, found: &Found) {
        let (was, known) = self.attr_below(found);
        let place = Place {
            mount: self.mount,
            lower: Some(path),
            below: Some(found.stat),
            on_host: found.on_host,
            unsure: !known,
            ..place
        };
        let path = self.view.path(self.mount, &place.rel);
        self.changes.push(Change {
            path,
            kind: Kind::Deleted,
            what: Vec::new(),
            from: None,
            was: Some(was),
            is: None,
            place,
        });
    }

    fn place(&self, entry: &Entry<'_>) -> Place {
        Place {
            mount: self.mount,
            rel: entry.rel.clone(),
            upper: Some(entry.stat),
            metacopy: entry.marks.metacopy,
            origin: entry.marks.origin,
            marked: !entry.marks.own.is_empty(),
            escaped: entry.marks.shown.iter().any(|(shown, key)| shown != key),
            ..Place::default()
        }
    }

    fn added(&mut self, entry: &Entry<'_>, lost: bool) {
        let place = Place { lost: lost || entry.marks.metacopy, ..self.place(entry) };
        let is = Some(self.view.attr_in_layer(&entry.stat));
        let path = self.view.path(self.mount, &entry.rel);
        self.changes.push(Change { path, kind: Kind::Added, what: Vec::new(), from: None, was: None, is, place });
    }

    fn attr_below(&self, found: &Found) -> (crate::Attr, bool) {
        if found.on_host { self.view.attr_on_host(&found.stat) } else { (self.view.attr_in_layer(&found.stat), true) }
    }

    /// Holds an entry against what lies below; `kind` is what it is called if they differ, a rename in any case.
    fn compare(&mut self, entry: &Entry<'_>, below: &Below<'_>, kind: Kind) -> Result<()> {
        let is = self.view.attr_in_layer(&entry.stat);
        let (was, known) = self.attr_below(&below.found);
        let mut what = Vec::new();
        if kind != Kind::Type {
            let differ = compare::contents(
                (entry.upper, entry.name, &entry.stat, entry.marks.metacopy),
                (self.lower().fd(below.dir, &below.found), below.name, &below.found.stat),
            );
            if self.context(differ, &entry.rel)? {
                what.push(Aspect::Content);
            }
            if entry.stat.is_file() && is.size != was.size {
                what.push(Aspect::Size);
            }
            if is.mode != was.mode {
                what.push(Aspect::Mode);
            }
            if known && (is.uid, is.gid) != (was.uid, was.gid) {
                what.push(Aspect::Owner);
            }
            if self.context(self.xattrs_differ(entry, below), &entry.rel)? {
                what.push(Aspect::Xattrs);
            }
            if self.options.times && what.is_empty() && !entry.stat.is_dir() && is.mtime != was.mtime {
                what.push(Aspect::Time);
            }
        }
        let from = (kind == Kind::Renamed).then(|| self.view.path(self.mount, &below.path));
        let place = Place {
            lower: Some(below.path.clone()),
            via: below.via.clone(),
            below: Some(below.found.stat),
            on_host: below.found.on_host,
            unsure: !known,
            ..self.place(entry)
        };
        let kind = if kind == Kind::Modified && what.is_empty() { Kind::Same } else { kind };
        let path = self.view.path(self.mount, &entry.rel);
        self.changes.push(Change { path, kind, what, from, was: Some(was), is: Some(is), place });
        Ok(())
    }

    fn xattrs_differ(&self, entry: &Entry<'_>, below: &Below<'_>) -> Result<bool, Errno> {
        let mut ours = entry.marks.values(entry.upper, entry.name)?;
        let mut theirs = self.lower().xattrs(below.dir, below.name, &below.found)?;
        if self.view.ids().mirrored && below.found.on_host {
            // The mirror shows no others: one that is not in the layer was never seen there, and so was not removed.
            let user = |name: &CStr| name.to_bytes().starts_with(b"user.");
            theirs.retain(|(name, _)| user(name) || ours.iter().any(|(own, _)| own == name));
            ours.retain(|(name, value)| user(name) || !theirs.iter().any(|(n, v)| (n, v) == (name, value)));
            theirs.retain(|(name, _)| user(name) || ours.iter().any(|(own, _)| own == name));
        }
        Ok(ours != theirs)
    }
}

/// Asks one who can tell for the owners of what this process can't tell them of.
fn resolve_owners(view: &mut View<'_>, changes: &mut [Change]) {
    let unsure: Vec<usize> = (0..changes.len()).filter(|n| changes[*n].place.unsure).collect();
    let below = |c: &Change| view.path(c.place.mount, c.place.lower.as_deref().unwrap_or_default());
    let paths: Vec<PathBuf> = unsure.iter().map(|n| below(&changes[*n])).collect();
    let Some(ask) = view.owners.ask.as_mut().filter(|_| !paths.is_empty()) else { return };
    let answers = ask.owners(&paths);
    for (number, owner) in unsure.into_iter().zip(answers) {
        let (Some((uid, gid)), change) = (owner, &mut changes[number]) else { continue };
        let Some(was) = &mut change.was else { continue };
        was.uid = view.shown(crate::Which::Users, uid);
        was.gid = view.shown(crate::Which::Groups, gid);
        change.place.unsure = false;
        let differ = change.is.is_some_and(|is| (is.uid, is.gid) != (was.uid, was.gid));
        if differ && matches!(change.kind, Kind::Same | Kind::Modified | Kind::Renamed) {
            change.what.push(Aspect::Owner);
            change.what.sort();
            change.kind = if change.kind == Kind::Same { Kind::Modified } else { change.kind };
        }
    }
}
