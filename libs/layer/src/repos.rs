//! Which git repository a path belongs to: the nearest directory above it that has a `.git`, a directory or, in worktrees and
//! submodules, a file (gitrepository-layout(5)).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::at;
use crate::error::{At as _, Result};
use crate::view::{View, relative};

/// Finds repositories as the environment sees them, and remembers what it found.
#[derive(Debug)]
pub struct Repositories<'v> {
    view: &'v View<'v>,
    known: HashMap<PathBuf, Option<PathBuf>>,
}

impl<'v> Repositories<'v> {
    /// None known yet.
    pub fn new(view: &'v View<'v>) -> Repositories<'v> {
        Repositories { view, known: HashMap::new() }
    }

    /// The working tree that directory `dir` lies in, or is. What lies in a `.git` belongs to the tree around it.
    pub fn of(&mut self, dir: &Path) -> Result<Option<PathBuf>> {
        if let Some(known) = self.known.get(dir) {
            return Ok(known.clone());
        }
        let here = self.has_git(dir).at(|| crate::text::path(dir))?;
        let found = match dir.parent() {
            _ if here => Some(dir.to_owned()),
            Some(parent) => self.of(parent)?,
            None => None,
        };
        self.known.insert(dir.to_owned(), found.clone());
        Ok(found)
    }

    fn has_git(&self, dir: &Path) -> Result<bool, Errno> {
        let covers = |n: &usize| dir.starts_with(&self.view.mounts[*n].path);
        let deepest =
            (0..self.view.mounts.len()).filter(covers).max_by_key(|n| self.view.mounts[*n].path.as_os_str().len());
        let Some(mount) = deepest else { return Ok(false) };
        let Ok(rel) = dir.strip_prefix(&self.view.mounts[mount].path) else { return Ok(false) };
        let rel = relative(rel);
        match at::open_below(self.view.upper(mount), rel, OFlags::PATH) {
            Ok(upper) => {
                if let Some(stat) = at::stat(&upper, c".git")? {
                    return Ok(!stat.is_whiteout());
                }
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(e) => return Err(e),
        }
        let lower = &self.view.mounts[mount].lower;
        match lower.at(rel) {
            Ok(Some(below)) => Ok(lower.look(&below, c".git")?.is_some()),
            Ok(None) => Ok(false),
            // What the user may not look into on the host holds no repository of his.
            Err(Errno::ACCESS) => Ok(false),
            Err(e) => Err(e),
        }
    }
}
