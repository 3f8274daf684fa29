//! What speaks against a commit: the host's files changed since the environment took them, or the caller may not write there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use rustix::fs::{Access, AtFlags, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::at::{self, Stat, Time};
use crate::change::{Change, Kind};
use crate::error::{At as _, Result};
use crate::view::View;

/// Something of the host that is not as the environment found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// Where.
    #[serde(serialize_with = "crate::text::serialize")]
    pub path: PathBuf,
    /// What it is.
    pub why: &'static str,
}

/// Something that no force gets out of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// Where.
    #[serde(serialize_with = "crate::text::serialize")]
    pub path: PathBuf,
    /// What it is, and what to do.
    pub why: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", crate::text::path(&self.path), self.why)
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", crate::text::path(&self.path), self.why)
    }
}

/// Tells which new files are copies of the host's under another name: the environment renamed or linked them.
pub(crate) fn explained(all: &[Change]) -> impl Fn(&Change) -> bool {
    let gone_files = all.iter().any(|c| c.kind == Kind::Deleted && c.place.below.is_some_and(|stat| !stat.is_dir()));
    let mut linked: BTreeMap<u64, usize> = BTreeMap::new();
    for change in all.iter().filter(|c| c.place.origin) {
        *linked.entry(change.place.upper.map_or(0, |stat| stat.ino)).or_default() += 1;
    }
    move |change| {
        let another = change.place.upper.is_some_and(|stat| linked.get(&stat.ino).is_some_and(|count| *count > 1));
        is_copy(change) && (gone_files || another)
    }
}

/// Whether a file was copied up from where there is nothing now.
fn is_copy(change: &Change) -> bool {
    let is_dir = change.place.upper.is_some_and(|stat| stat.is_dir());
    change.kind == Kind::Added && change.place.origin && change.place.lower.is_none() && !is_dir
}

/// What of the host behind the selected changes is not as the environment found it. `all` are all changes of the layer.
pub(crate) fn conflicts(view: &View<'_>, all: &[Change], selected: &[&Change]) -> Result<Vec<Conflict>> {
    let mut found = Vec::new();
    let explained = explained(all);
    for change in selected {
        let place = &change.place;
        let conflict = |why| Conflict { path: change.path.clone(), why };
        let since = reference(view, place.upper.as_ref());
        match change.kind {
            Kind::Added if place.lost => found.push(conflict("what it was made from is gone from the host")),
            Kind::Added if is_copy(change) && !explained(change) => {
                found.push(conflict("it was changed here, and is gone from the host"));
            }
            Kind::Added => {}
            Kind::Modified | Kind::Type => {
                let changed = |below: &Stat| !below.is_dir() && below.ctime > since;
                if place.below.as_ref().is_some_and(changed) {
                    found.push(conflict("it changed on the host meanwhile"));
                }
                if change.kind == Kind::Type && place.below.is_some_and(|below| below.is_dir()) {
                    tree(view, change, since, &mut found)?;
                }
            }
            Kind::Deleted => match place.below {
                Some(below) if below.is_dir() => tree(view, change, since, &mut found)?,
                Some(below) if below.ctime > since => {
                    found.push(conflict("it was deleted here, and changed on the host meanwhile"));
                }
                _ => {}
            },
            Kind::Renamed | Kind::Same => {}
        }
    }
    Ok(found)
}

/// Since when the host's side of an entry must be as it was: since the entry came to be, where that is known.
fn reference(view: &View<'_>, upper: Option<&Stat>) -> Time {
    let created = view.layer.meta().created;
    let layer = ((created / 1_000_000_000) as i64, (created % 1_000_000_000) as u32);
    match upper.and_then(|stat| stat.btime) {
        Some(time) if !view.layer.meta().copied => time,
        _ => layer,
    }
}

/// A directory that goes: the first thing in it that is newer.
fn tree(view: &View<'_>, change: &Change, since: Time, found: &mut Vec<Conflict>) -> Result<()> {
    let path = change.place.lower.as_deref().unwrap_or_default();
    let mut first = None;
    view.each_below(change.place.mount, path, &mut |below| {
        let stat = below.stat();
        // What happens in a directory touches the directory: only whether it is new itself counts.
        let time = if stat.is_dir() { stat.btime.unwrap_or((0, 0)) } else { stat.ctime };
        if first.is_none() && time > since {
            first = Some(view.path(below.mount, below.path));
        }
        Ok(())
    })?;
    let conflict = |path| Conflict { path, why: "it lies in what was deleted here, and changed on the host meanwhile" };
    found.extend(first.map(conflict));
    Ok(())
}

/// What keeps the steps from being taken: directories that the caller may not write, links in the way, other file systems in
/// what is to be deleted.
pub(crate) fn obstacles(view: &View<'_>, selected: &[&Change]) -> Result<Vec<Obstacle>> {
    let mut found = Vec::new();
    let mut parents: BTreeMap<(usize, &[u8]), ()> = BTreeMap::new();
    for change in selected.iter().filter(|change| change.kind != Kind::Same) {
        if !change.place.rel.is_empty() {
            parents.insert((change.place.mount, at::split(&change.place.rel).0), ());
        }
        if change.kind == Kind::Added && change.place.metacopy {
            let why = "its contents were those of a file of the host, which can't be told any more";
            found.push(Obstacle { path: change.path.clone(), why: why.into() });
        }
        let whole = change.place.below.filter(|below| below.is_dir());
        if let (Kind::Deleted | Kind::Type, Some(below)) = (change.kind, whole) {
            let mut other = None;
            let path = change.place.lower.as_deref().unwrap_or_default();
            view.each_below(change.place.mount, path, &mut |inner| {
                if inner.stat().dev != below.dev && other.is_none() {
                    other = Some(view.path(inner.mount, inner.path));
                }
                Ok(())
            })?;
            let why =
                "another file system is mounted here on the host, in what was deleted: unmount it, or delete by hand";
            found.extend(other.map(|path| Obstacle { path, why: why.into() }));
        }
    }
    // Directories that the environment opened for itself are opened on the host in the same way.
    let opened = |mount, rel: &[u8]| {
        selected.iter().any(|c| c.place.mount == mount && c.place.rel == rel && c.what.contains(&crate::Aspect::Mode))
    };
    for (mount, rel) in parents.into_keys() {
        let why = match at::open_below(view.mounts[mount].lower.host(), rel, OFlags::PATH) {
            Ok(dir) => match rustix::fs::accessat(&dir, c".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
                Ok(()) => continue,
                Err(Errno::ACCESS) if opened(mount, rel) => continue,
                Err(Errno::ACCESS | Errno::PERM) => "you may not write in this directory of the host".to_string(),
                Err(Errno::ROFS) => "this directory of the host is read-only".to_string(),
                Err(e) => return Err(e).at(|| crate::text::path(&view.path(mount, rel))),
            },
            // It is to be made, or comes by a rename.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if made(view, selected, mount, rel) => continue,
            Err(Errno::LOOP) => "it lies behind a symbolic link on the host, which no commit follows".to_string(),
            Err(Errno::NOENT | Errno::NOTDIR) => "it is no directory on the host any more".to_string(),
            Err(Errno::ACCESS) => "you may not enter this directory of the host".to_string(),
            Err(e) => return Err(e).at(|| crate::text::path(&view.path(mount, rel))),
        };
        found.push(Obstacle { path: view.path(mount, rel), why });
    }
    Ok(found)
}

/// Whether the commit itself makes directory `rel`, or one that it lies in.
fn made(view: &View<'_>, selected: &[&Change], mount: usize, rel: &[u8]) -> bool {
    let path = view.path(mount, rel);
    path.ancestors().any(|above| {
        let found = selected.binary_search_by(|change| change.path.as_path().cmp(above));
        // Of two changes of one path, either may be found; the other stands beside it.
        found.is_ok_and(|at| {
            let near = at.saturating_sub(1)..(at + 2).min(selected.len());
            selected[near].iter().any(|c| c.path == above && matches!(c.kind, Kind::Added | Kind::Type | Kind::Renamed))
        })
    })
}
