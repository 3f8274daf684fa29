//! The commit: changes of a layer are carried to the host.
//!
//! | module | what it holds |
//! |---|---|
//! | `plan` | which changes, in which steps, in which order |
//! | `check` | what changed on the host meanwhile, and what the caller may not write |
//! | `step`, `journal` | the steps, and the file in the layer that they are written down in before the first is taken |
//! | `run`, `attrs` | taking them |
//!
//! Principles:
//! - Each file of the host is the old one or the new one at any time: it is made beside its place, or moves out of the layer,
//!   and rename(2) puts it there.
//! - Directories come first, deletions after all that is new; what a renamed directory leaves is moved before anything else.
//! - Whenever a commit is killed, layer and journal together still hold all that is not on the host yet: the same commit again
//!   ends it. Each step may be taken again.
//! - No symbolic link is followed, on the host or in the layer: every parent directory is resolved from the root with
//!   RESOLVE_NO_SYMLINKS (openat2(2)).
//! - An entry leaves the layer only when what it became is on disk.

mod attrs;
mod check;
mod file;
mod journal;
mod plan;
mod run;
mod step;

use crate::change::{Change, Kind, Type};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::lock::Lock;
use crate::view::View;
use crate::walk::{Options, walk};

pub use check::{Conflict, Obstacle};

/// How a commit is to be made.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// Also where the host's files changed meanwhile.
    pub force: bool,
    /// An environment uses the layer: files are copied as they are at the moment, and the layer keeps its entries.
    pub running: bool,
}

/// A commit that has been thought through, and of which nothing is done yet.
#[derive(Debug)]
pub struct Plan {
    steps: Vec<step::Step>,
    how: How,
    /// What it carries over, sorted by path.
    pub changes: Vec<Change>,
    /// What changed on the host meanwhile: with any of these, only a forced commit is carried out.
    pub conflicts: Vec<Conflict>,
    /// What keeps it from being carried out at all.
    pub obstacles: Vec<Obstacle>,
    /// What will not be as the environment has it, a line each.
    pub notes: Vec<String>,
}

/// What a commit did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Done {
    /// Steps taken, those that only tidy up among them.
    pub steps: usize,
    /// It ended an earlier commit, which had been interrupted.
    pub resumed: bool,
}

/// Thinks a commit through: those changes that `select` wants, and the new directories that they lie in.
pub fn plan(view: &mut View<'_>, how: How, select: &mut dyn FnMut(&Change) -> bool) -> Result<Plan> {
    let options = Options { times: false, same: true };
    let mut changes = walk(view, options)?;
    let is_dir = |change: &Change| change.was.is_some_and(|was| was.kind == Type::Directory);
    if how.running && changes.iter().any(|change| is_dir(change) && matches!(change.kind, Kind::Deleted | Kind::Type)) {
        // One that was renamed during the walk, to where that had been already, looks as if it were deleted. Now its new name is seen.
        changes = walk(view, options)?;
    }
    plan::plan(view, how, changes, select)
}

/// Carries a plan out. `held`: the caller has the layer's lock already. Refused while another commit of the layer is under way, or (but for [`How::running`]) an environment has
/// the layer: [`Error::Busy`]. After any other error, as after a kill, the commit is to be resumed.
pub fn commit(view: &View<'_>, plan: &Plan, held: bool) -> Result<Done> {
    if let Some(first) = plan.obstacles.first() {
        return Err(Error::damaged(view.layer.path(), format!("it can't be committed: {first}")));
    }
    if !plan.conflicts.is_empty() && !plan.how.force {
        return Err(Error::damaged(view.layer.path(), "the host's files changed meanwhile"));
    }
    let _locks = locks(view.layer, plan.how.running || held)?;
    if view.layer.interrupted() {
        return Err(Error::damaged(view.layer.path(), "an earlier commit of it was interrupted"));
    }
    if plan.steps.is_empty() {
        return Ok(Done::default());
    }
    let mut journal = journal::Journal::begin(view.layer, plan.how.running, plan.steps.clone())?;
    run::run(view, &mut journal)?;
    let steps = journal.steps.len();
    journal.end(view.layer)?;
    Ok(Done { steps, resumed: false })
}

/// Ends a commit that was interrupted; `None`: there is none. `held` as for [`commit`].
pub fn resume(view: &View<'_>, held: bool) -> Result<Option<Done>> {
    let Some(journal) = journal::Journal::resume(view.layer)? else { return Ok(None) };
    let _locks = locks(view.layer, journal.head.keep || held)?;
    // Read again: another process may have ended it before the lock was had.
    let Some(mut journal) = journal::Journal::resume(view.layer)? else { return Ok(None) };
    let before = journal.done;
    run::run(view, &mut journal)?;
    let steps = journal.steps.len() - before;
    journal.end(view.layer)?;
    Ok(Some(Done { steps, resumed: true }))
}

/// Forgets the rest of a commit that was interrupted: what lies beside its place on the host is removed, what was moved aside
/// to be renamed comes back, what was carried over stays. `false`: there is none.
pub fn abort(view: &View<'_>) -> Result<bool> {
    let Some(journal) = journal::Journal::resume(view.layer)? else { return Ok(false) };
    let _locks = locks(view.layer, journal.head.keep)?;
    let Some(journal) = journal::Journal::resume(view.layer)? else { return Ok(false) };
    run::undo(view, &journal)?;
    journal.end(view.layer)?;
    Ok(true)
}

fn locks(layer: &Layer, has_use: bool) -> Result<(Lock, Option<Lock>)> {
    let commit = layer.lock_commit()?;
    let by = format!("a commit (process {})", std::process::id());
    // A base may be committed while other layers lie on it: what leaves it is on the host then, below them all the same.
    let whole = if has_use { None } else { Some(layer.lock_use(&by)?) };
    Ok((commit, whole))
}
