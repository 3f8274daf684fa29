//! Where named layers live, and which there are.

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{At as _, Error, Result};
use crate::layer::Layer;
use crate::tree;

/// The start of the name of a layer that is being removed.
const REMOVED: &str = ".removed-";
/// The start of the name of a layer that is being made.
const MADE: &str = ".new-";

/// The directory of the caller's named layers: `$XDG_STATE_HOME/hurdle/layers`, else below `~/.local/state`. It may not be
/// there yet. NotFound if neither variable is set.
pub fn layers_dir() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    let why = || std::io::Error::new(std::io::ErrorKind::NotFound, "neither XDG_STATE_HOME nor HOME is set");
    Ok(state.ok_or_else(why).at(|| "layers have no place".into())?.join("hurdle/layers"))
}

/// The path of the layer that the user calls `name`: a name among the named ones, or a path, if it holds a `/`.
pub fn path_of(name: &str) -> Result<PathBuf> {
    if name.contains('/') {
        return std::path::absolute(name).at(|| name.into());
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(legal) {
        return Err(Error::Name(name.into()));
    }
    Ok(layers_dir()?.join(name))
}

/// Opens the layer that the user calls `name`.
pub fn locate(name: &str) -> Result<Layer> {
    Layer::open(&path_of(name)?)
}

/// The base that the layer at `path` calls `name`: beside it, or at an absolute path.
pub(crate) fn base(path: &Path, name: &str) -> Result<Layer> {
    if !name.starts_with('/') && (name.contains('/') || name.starts_with('.') || name.is_empty()) {
        return Err(Error::damaged(path, format!("it names a bad base, {name:?}")));
    }
    // An absolute path replaces all before it.
    let at = path.parent().unwrap_or(Path::new("/")).join(name);
    Layer::open(&at).map_err(|e| match e {
        Error::Missing(at) => Error::damaged(path, format!("its base {} is gone", crate::text::path(&at))),
        e => e,
    })
}

/// The names of the layers beside the one at `path` that lie on it.
pub(crate) fn above(path: &Path) -> Result<Vec<String>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (other, opened) in each(parent)? {
        let Ok(layer) = opened else { continue };
        let base = layer.meta().base.as_deref().unwrap_or_default();
        if base.as_bytes() == name.as_bytes() || Path::new(base) == path {
            found.push(crate::text::escape(other.as_bytes()));
        }
    }
    found.sort();
    Ok(found)
}

/// One layer of a directory of layers.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// Itself; or why it can't be opened (a later version, a damaged file).
    pub layer: Result<Layer>,
}

/// The layers in `dir`, by name. A directory that is not there holds none.
pub fn list(dir: &Path) -> Result<Vec<Listed>> {
    let mut found: Vec<Listed> = each(dir)?
        .into_iter()
        .map(|(name, layer)| Listed { path: dir.join(&name), name: crate::text::escape(name.as_bytes()), layer })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn each(dir: &Path) -> Result<Vec<(OsString, Result<Layer>)>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.at(|| dir.display().to_string())?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.at(|| dir.display().to_string())?;
        let name = entry.file_name();
        if name.as_bytes().starts_with(b".") || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match Layer::open(&entry.path()) {
            // It went while this looked.
            Err(Error::Missing(_)) => {}
            layer => found.push((name, layer)),
        }
    }
    Ok(found)
}

/// Takes the layer at `path` away: its name first, then all that it holds; and what earlier removals left.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let what = || format!("removing {}", crate::text::path(path));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::damaged(path, "it has no name to be removed"));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(parent, flags, Mode::empty()).at(what)?;
    let mut hidden = OsString::from(format!("{REMOVED}{}-", std::process::id()));
    hidden.push(name);
    rustix::fs::renameat(&dir, name, &dir, &hidden).at(what)?;
    let mut result = Ok(());
    for (other, _) in tree::names(&dir).at(what)? {
        if other.to_bytes().starts_with(REMOVED.as_bytes()) {
            // Those of other removals are theirs to fail at.
            let own = CString::new(hidden.as_bytes()).is_ok_and(|hidden| hidden == other);
            let done = tree::remove(dir.as_fd(), &other);
            if own {
                result = done;
            }
        }
    }
    result.at(what)
}

/// Where a layer is made that is to be at `path` when it is whole: a hidden name beside it; and the directory of both.
pub(crate) fn hidden(path: &Path) -> Result<(PathBuf, OwnedFd)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::damaged(path, "a layer can't be here"));
    };
    let mut hidden = OsString::from(format!("{MADE}{}-", std::process::id()));
    hidden.push(name);
    private_dirs(parent)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(parent, flags, Mode::empty()).at(|| parent.display().to_string())?;
    Ok((parent.join(hidden), dir))
}

/// Makes a directory and those above it, for nobody but their owner; what is there stays as it is.
pub(crate) fn private_dirs(path: &Path) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    builder.create(path).at(|| format!("mkdir {}", path.display()))
}

/// Removes from a directory of layers what removals and snapshots that were killed have left.
pub fn sweep(dir: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let what = || dir.display().to_string();
    let fd = match rustix::fs::open(dir, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.at(what)?,
    };
    for (name, _) in tree::names(&fd).at(what)? {
        let left = if name.to_bytes().starts_with(MADE.as_bytes()) {
            // One that is still being made is locked.
            let path = dir.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            !matches!(Layer::open(&path).and_then(|layer| layer.in_use()), Ok(Some(_)))
        } else {
            name.to_bytes().starts_with(REMOVED.as_bytes())
        };
        if left {
            tree::remove(fd.as_fd(), &name).at(what)?;
        }
    }
    Ok(())
}
