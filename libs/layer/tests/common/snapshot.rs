//! A tree as a map, to be compared with another.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// All that one file is, but times of directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: &'static str,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub content: Vec<u8>,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Of regular files.
    pub mtime: (i64, i64),
    /// Another name of it, the first in order, if it has several in the tree.
    pub first_name: Option<PathBuf>,
}

pub type Tree = BTreeMap<PathBuf, Node>;

/// The tree at `root`, by relative path.
pub fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut names = BTreeMap::new();
    add(root, PathBuf::new(), &mut found, &mut names);
    for paths in names.into_values().filter(|paths: &Vec<PathBuf>| paths.len() > 1) {
        let first = paths.iter().min().cloned();
        for path in paths {
            found.get_mut(&path).unwrap().first_name = first.clone();
        }
    }
    found
}

fn add(root: &Path, path: PathBuf, found: &mut Tree, names: &mut BTreeMap<u64, Vec<PathBuf>>) {
    let full = root.join(&path);
    let meta = full.symlink_metadata().unwrap_or_else(|e| panic!("{full:?}: {e}"));
    let kind = meta.file_type();
    let (kind, content) = match kind {
        k if k.is_dir() => ("dir", Vec::new()),
        k if k.is_symlink() => ("link", full.read_link().unwrap().as_os_str().as_bytes().to_vec()),
        k if k.is_file() => ("file", std::fs::read(&full).unwrap_or_else(|e| panic!("{full:?}: {e}"))),
        k if k.is_fifo() => ("fifo", Vec::new()),
        k if k.is_socket() => ("socket", Vec::new()),
        _ => ("device", meta.rdev().to_le_bytes().to_vec()),
    };
    let mtime = if kind == "file" { (meta.mtime(), meta.mtime_nsec()) } else { (0, 0) };
    let node = Node {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        content,
        xattrs: xattrs(&full),
        mtime,
        first_name: None,
    };
    if kind != "dir" && meta.nlink() > 1 {
        names.entry(meta.ino()).or_default().push(path.clone());
    }
    found.insert(path.clone(), node);
    if kind == "dir" {
        for entry in std::fs::read_dir(&full).unwrap_or_else(|e| panic!("{full:?}: {e}")) {
            add(root, path.join(entry.unwrap().file_name()), found, names);
        }
    }
}

/// The attributes that a program in an environment sees.
pub fn xattrs(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    let mut buffer = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap_or(0);
    let mut found = Vec::new();
    for name in buffer[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        found.push((std::ffi::OsStr::from_bytes(name).to_owned(), value[..length].to_vec()));
    }
    found.sort();
    found
}

/// The time that [`random::change`](super::random::change) gives files and that no commit carries over by itself.
pub const TOUCHED: (i64, i64) = (3, 4);

/// Whether two nodes are the same, but for times that say nothing, and for two names that an overlay parts by opening one of
/// them for writing.
fn same(wanted: &Node, got: &Node) -> bool {
    let touched = wanted.content.is_empty() || [wanted.mtime, got.mtime].contains(&TOUCHED);
    let mtime = if touched { wanted.mtime } else { got.mtime };
    let linked = wanted.first_name.is_none() || got.first_name.is_some();
    linked && *wanted == Node { mtime, first_name: wanted.first_name.clone(), ..got.clone() }
}

/// What is in one and not, or otherwise, in the other, a line each.
pub fn differences(wanted: &Tree, got: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for path in wanted.keys().chain(got.keys().filter(|path| !wanted.contains_key(*path))) {
        match (wanted.get(path), got.get(path)) {
            (Some(w), Some(g)) if same(w, g) => {}
            (Some(w), Some(g)) => lines.push(format!("{path:?}: wanted {}, got {}", brief(w), brief(g))),
            (Some(w), None) => lines.push(format!("{path:?}: wanted {}, is not there", brief(w))),
            (None, g) => lines.push(format!("{path:?}: should not be there: {}", g.map(brief).unwrap_or_default())),
        }
    }
    lines
}

fn brief(node: &Node) -> String {
    let text = String::from_utf8_lossy(&node.content[..node.content.len().min(30)]).into_owned();
    format!(
        "{} {:o} {}:{} {} bytes {text:?} {:?} {:?} {:?}",
        node.kind,
        node.mode,
        node.uid,
        node.gid,
        node.content.len(),
        node.xattrs,
        node.mtime,
        node.first_name
    )
}
