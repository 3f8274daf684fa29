//! Changes as a unified text diff, in the form that git-apply(1) and patch(1) read.

use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use crate::change::{Attr, Change, Kind, Type};
use crate::contents::Body;
use crate::error::{At as _, Result};
use crate::view::{View, relative};

/// A patch knows no other files.
fn known(attr: &Attr) -> bool {
    matches!(attr.kind, Type::File | Type::Symlink)
}

/// Longer files are not compared line by line.
const LONGEST: u64 = 16 << 20;
/// How long the search for a short diff of one file may take before a longer one does.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much of a file is looked at to tell text from binary.
const PROBE: usize = 8000;

/// One side of a file's diff.
struct Side<'s> {
    path: &'s Path,
    attr: Attr,
    body: Body,
}

/// Writes the contents of all `changes` as one patch. Owners and extended attributes have no place in it.
pub fn patch(view: &View<'_>, changes: &[Change], out: &mut dyn Write) -> Result<()> {
    for change in changes {
        one(view, changes, change, out)?;
    }
    Ok(())
}

fn one(view: &View<'_>, all: &[Change], change: &Change, out: &mut dyn Write) -> Result<()> {
    let old_path = change.place.lower.as_deref().map(|lower| view.path(change.place.mount, lower));
    let old_path = old_path.as_deref().or(change.from.as_deref()).unwrap_or(&change.path);
    let (new, gone) = match change.is.filter(known) {
        Some(attr) => {
            let body = view.unless_gone(change, || view.now(change))?;
            let gone = body.is_none();
            (body.map(|body| Side { path: &change.path, attr, body }), gone)
        }
        None => (None, false),
    };
    let was_dir = change.was.is_some_and(|attr| attr.kind == Type::Directory);
    if was_dir && (gone || matches!(change.kind, Kind::Deleted | Kind::Type)) {
        removed_tree(view, change, out)?;
    } else if was_dir && change.kind == Kind::Renamed {
        moved_tree(view, all, change, out)?;
    }
    let old = match change.was.filter(known) {
        Some(attr) => Some(Side { path: old_path, attr, body: view.before(change)? }),
        None => None,
    };
    if change.kind == Kind::Type {
        // Two entries: a file of another type is another file.
        file(old, None, out).and_then(|()| file(None, new, out))
    } else {
        file(old, new, out)
    }
    .at(|| format!("patch of {}", crate::text::path(&change.path)))
}

/// All files of a directory that is gone.
fn removed_tree(view: &View<'_>, change: &Change, out: &mut dyn Write) -> Result<()> {
    let path = change.place.lower.as_deref().unwrap_or_default();
    view.each_below(change.place.mount, path, &mut |below| {
        if !known(&below.attr()) {
            return Ok(());
        }
        let path = view.path(below.mount, below.path);
        let old = Side { path: &path, attr: below.attr(), body: below.body()? };
        file(Some(old), None, out).at(|| format!("patch of {}", crate::text::path(&path)))
    })
}

/// All files of a directory that was renamed, but those that changed too.
fn moved_tree(view: &View<'_>, all: &[Change], change: &Change, out: &mut dyn Write) -> Result<()> {
    let from = change.place.lower.as_deref().unwrap_or_default();
    let told = |path: &Path| {
        let found = all.binary_search_by(|other| other.path.as_path().cmp(path));
        // A change of a directory above tells of it too, unless that is this rename.
        found.is_ok()
            || path.ancestors().skip(1).take_while(|above| *above != change.path).any(|above| {
                let found = all.binary_search_by(|other| other.path.as_path().cmp(above));
                found.is_ok_and(|at| matches!(all[at].kind, Kind::Deleted | Kind::Type))
            })
    };
    view.each_below(change.place.mount, from, &mut |below| {
        let inside = std::ffi::OsStr::from_bytes(below.path[from.len()..].strip_prefix(b"/").unwrap_or_default());
        let path = change.path.join(inside);
        if !known(&below.attr()) || told(&path) {
            return Ok(());
        }
        let old = view.path(below.mount, below.path);
        head(&old, &path, out)
            .and_then(|()| writeln!(out, "similarity index 100%"))
            .and_then(|()| renamed(&old, &path, out))
            .at(|| format!("patch of {}", crate::text::path(&path)))
    })
}

fn head(old: &Path, new: &Path, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "diff --git {} {}", quoted("a/", old), quoted("b/", new))
}

fn renamed(old: &Path, new: &Path, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "rename from {}\nrename to {}", quoted("", old), quoted("", new))
}

fn file(old: Option<Side<'_>>, new: Option<Side<'_>>, out: &mut dyn Write) -> io::Result<()> {
    let Some(any) = old.as_ref().or(new.as_ref()) else { return Ok(()) };
    let (old_path, new_path) = (old.as_ref().map_or(any.path, |s| s.path), new.as_ref().map_or(any.path, |s| s.path));
    let (from, to) = (old.as_ref().map(|s| mode(&s.attr)), new.as_ref().map(|s| mode(&s.attr)));
    let size = [&old, &new].into_iter().flatten().map(|side| side.attr.size).max().unwrap_or(0);
    let (a, b) = if size > LONGEST { (None, None) } else { (text(old)?, text(new)?) };
    let too_long = size > LONGEST;
    if from == to && old_path == new_path && !too_long && a == b {
        return Ok(());
    }
    head(old_path, new_path, out)?;
    match (from, to) {
        (None, Some(mode)) => writeln!(out, "new file mode {mode}")?,
        (Some(mode), None) => writeln!(out, "deleted file mode {mode}")?,
        (Some(from), Some(to)) if from != to => writeln!(out, "old mode {from}\nnew mode {to}")?,
        _ => {}
    }
    if old_path != new_path {
        renamed(old_path, new_path, out)?;
    }
    let null = || "/dev/null".to_string();
    let old_name = if from.is_some() { quoted("a/", old_path) } else { null() };
    let new_name = if to.is_some() { quoted("b/", new_path) } else { null() };
    let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
    if too_long || is_binary(&a) || is_binary(&b) {
        return writeln!(out, "Binary files {old_name} and {new_name} differ");
    }
    if a == b {
        return Ok(());
    }
    writeln!(out, "--- {old_name}\n+++ {new_name}")?;
    let diff = similar::TextDiff::configure().timeout(PATIENCE).diff_lines(&a[..], &b[..]);
    diff.unified_diff().context_radius(3).to_writer(out)
}

fn text(side: Option<Side<'_>>) -> io::Result<Option<Vec<u8>>> {
    Ok(match side.map(|side| side.body) {
        Some(Body::File(file)) => {
            let mut bytes = Vec::new();
            // It may grow while it is read.
            file.take(LONGEST).read_to_end(&mut bytes)?;
            Some(bytes)
        }
        Some(Body::Link(text)) => Some(text.into_bytes()),
        Some(Body::None) | None => None,
    })
}

fn is_binary(bytes: &[u8]) -> bool {
    bytes[..bytes.len().min(PROBE)].contains(&0)
}

/// As git has it: the type in the first digits, and of the permissions whether it may be run.
fn mode(attr: &Attr) -> &'static str {
    match attr.kind {
        Type::Symlink => "120000",
        _ if attr.mode & 0o111 != 0 => "100755",
        _ => "100644",
    }
}

/// A name as git prints it: in quotes, with C's escapes, if anything in it asks for it.
fn quoted(prefix: &str, path: &Path) -> String {
    let bytes = relative(path);
    if bytes.iter().all(|b| (b' '..=b'~').contains(b) && !matches!(b, b'"' | b'\\')) {
        return format!("{prefix}{}", String::from_utf8_lossy(bytes));
    }
    let mut out = format!("\"{prefix}");
    for byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend(['\\', *byte as char]),
            b'\n' => out.push_str("\\n"),
            b'\t' => out.push_str("\\t"),
            b' '..=b'~' => out.push(*byte as char),
            other => out.push_str(&format!("\\{other:03o}")),
        }
    }
    out.push('"');
    out
}
