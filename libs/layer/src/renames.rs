//! Renames that the kernel did not note: a file that is gone and one with the same contents that is new are one that was renamed.

use std::collections::HashMap;

use crate::change::{Change, Kind, Type};
use crate::compare;
use crate::contents::Body;
use crate::error::{At as _, Result};
use crate::view::View;

/// Among how many deleted files of the same length the one is looked for that a new file was.
const CANDIDATES: usize = 16;

/// Joins deleted and added regular files of the same contents to renames, for showing; a commit works on them as they were.
/// Empty files are nobody's.
pub fn join_renames(view: &View<'_>, changes: &mut Vec<Change>) -> Result<()> {
    let file = |attr: Option<crate::Attr>| attr.filter(|a| a.kind == Type::File && a.size > 0);
    let mut gone: HashMap<u64, Vec<usize>> = HashMap::new();
    for (number, change) in changes.iter().enumerate() {
        if let (Kind::Deleted, Some(was)) = (change.kind, file(change.was)) {
            gone.entry(was.size).or_default().push(number);
        }
    }
    if gone.is_empty() {
        return Ok(());
    }
    let mut pairs = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        let (Kind::Added, Some(is)) = (change.kind, file(change.is)) else { continue };
        let Some(candidates) = gone.get_mut(&is.size) else { continue };
        // The same name elsewhere is the likeliest.
        candidates.sort_by_key(|at| changes[*at].path.file_name() != change.path.file_name());
        for place in 0..candidates.len().min(CANDIDATES) {
            if same(view, &changes[candidates[place]], change)? {
                pairs.push((candidates.remove(place), number));
                break;
            }
        }
    }
    for (old, new) in &pairs {
        let was = changes[*old].was;
        let from = changes[*old].path.clone();
        let change = &mut changes[*new];
        change.kind = Kind::Renamed;
        change.from = Some(from);
        change.was = was;
        if let (Some(was), Some(is)) = (was, change.is) {
            change.what.extend((was.mode != is.mode).then_some(crate::Aspect::Mode));
            change.what.extend(((was.uid, was.gid) != (is.uid, is.gid)).then_some(crate::Aspect::Owner));
        }
    }
    let mut joined: Vec<usize> = pairs.into_iter().map(|(old, _)| old).collect();
    joined.sort_unstable();
    let mut number = 0;
    changes.retain(|_| {
        number += 1;
        joined.binary_search(&(number - 1)).is_err()
    });
    Ok(())
}

fn same(view: &View<'_>, old: &Change, new: &Change) -> Result<bool> {
    match (view.before(old)?, view.unless_gone(new, || view.now(new))?) {
        (Body::File(a), Some(Body::File(b))) => compare::same(&a.into(), &b.into()).at(|| crate::text::path(&new.path)),
        _ => Ok(false),
    }
}
