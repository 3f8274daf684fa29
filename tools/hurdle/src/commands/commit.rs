//! `hurdle commit`: what an environment changed goes to the host.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hurdle_core::complain;
use hurdle_layer::commit::{self, Conflict, How, Obstacle, Plan};
use hurdle_layer::{Change, Error, Kind, Layer, Options, Owners, Stat, View};
use hurdle_sys::tty;
use serde::Serialize;

use super::{diff, inside, layers};
use crate::cli::Commit;
use crate::failure::{Failure, OWN};
use crate::output;
use crate::progress;

/// How many lines of a list are shown before the rest is counted.
const SHOWN: usize = 20;

pub(crate) fn commit(options: &Commit, json: bool) -> Result<ExitCode, Failure> {
    let layer = layers::find(&options.name)?;
    if let Some(code) = inside::instead(&layer)? {
        return Ok(code);
    }
    let held = inside::held();
    let mut view = View::open(&layer, Path::new("/"), inside::owners()?)?;
    if options.abort {
        return match commit::abort(&view)? {
            true => Ok(ExitCode::SUCCESS),
            false => Err(Failure::new(&options.name, "no commit of it was interrupted")),
        };
    }
    finish_earlier(&view, held, json)?;
    let paths = diff::absolute(&options.paths)?;
    let mut wanted = Wanted { paths, picked: None };
    if options.interactive {
        wanted.picked = Some(pick(&mut view, &wanted.paths)?);
    }
    let how = How { force: options.force, running: options.running };
    let plan = planned(&mut view, how, &wanted)?;
    if options.dry_run {
        return show(&plan, json);
    }
    carry_out(&view, &plan, how, held, json)
}

/// Ends a commit that was interrupted, and says so.
fn finish_earlier(view: &View<'_>, held: bool, json: bool) -> Result<(), Failure> {
    if let Some(done) = commit::resume(view, held)?
        && !json
    {
        let steps = done.steps;
        complain(format_args!("note: an earlier commit had been interrupted: its last {steps} steps are done"));
    }
    Ok(())
}

/// Which changes the user wants.
struct Wanted {
    paths: Vec<PathBuf>,
    picked: Option<BTreeSet<(PathBuf, Kind)>>,
}

impl Wanted {
    fn has(&self, change: &Change) -> bool {
        match &self.picked {
            Some(picked) => picked.contains(&(change.path.clone(), change.kind)),
            None => change.is_below(&self.paths),
        }
    }
}

/// Commits all of a layer, of which the caller has the lock; for the end of an environment.
pub(crate) fn all(layer: &Layer, interactive: bool) -> Result<ExitCode, Failure> {
    if inside::needed(layer)? {
        let arguments: &[&str] = if interactive { &["commit", "--interactive", "layer"] } else { &["commit", "layer"] };
        return inside::again(Some(layer), arguments.iter().map(Into::into), true);
    }
    let mut view = View::open(layer, Path::new("/"), Owners::outside())?;
    finish_earlier(&view, true, false)?;
    let picked = if interactive { Some(pick(&mut view, &[])?) } else { None };
    let wanted = Wanted { paths: Vec::new(), picked };
    let how = How::default();
    let plan = planned(&mut view, how, &wanted)?;
    carry_out(&view, &plan, how, true, false)
}

fn planned(view: &mut View<'_>, how: How, wanted: &Wanted) -> Result<Plan, Error> {
    progress::during("looking for changes", || commit::plan(view, how, &mut |change| wanted.has(change)))
}

fn carry_out(view: &View<'_>, plan: &Plan, how: How, held: bool, json: bool) -> Result<ExitCode, Failure> {
    refuse(plan, how)?;
    let what = format!("committing {} changes", plan.changes.len());
    match progress::during(&what, || commit::commit(view, plan, held)) {
        Ok(_) => {}
        Err(e @ Error::Busy { .. }) if !how.running => {
            let hint = "wait for its end, or commit what it has changed so far with --running";
            return Err(Failure::new(e, hint));
        }
        Err(e) => return Err(e.into()),
    }
    if json {
        #[derive(Serialize)]
        struct Done<'p> {
            changes: usize,
            notes: &'p [String],
        }
        return output::json(&Done { changes: plan.changes.len(), notes: &plan.notes });
    }
    few(&plan.notes).iter().for_each(|note| complain(format_args!("note: {note}")));
    output::line(format_args!("committed: {}", diff::total(&Stat::of(&plan.changes))))
}

/// The first of a list, and how many more there are.
fn few<T: ToString>(list: &[T]) -> Vec<String> {
    let mut lines: Vec<String> = list.iter().take(SHOWN).map(ToString::to_string).collect();
    if list.len() > SHOWN {
        lines.push(format!("… and {} more", list.len() - SHOWN));
    }
    lines
}

/// Says all that speaks against a plan.
fn refuse(plan: &Plan, how: How) -> Result<(), Failure> {
    let list = |lines: Vec<String>| lines.iter().map(|line| format!("\n  {line}")).collect::<String>();
    if !plan.obstacles.is_empty() {
        let text = format!("nothing is committed:{}", list(few::<Obstacle>(&plan.obstacles)));
        return Err(Failure::plain(text).code(OWN));
    }
    if !plan.conflicts.is_empty() && !how.force {
        let text = format!(
            "nothing is committed, since the host's files are not as the environment found them (--force commits all the \
             same):{}",
            list(few::<Conflict>(&plan.conflicts))
        );
        return Err(Failure::plain(text).code(OWN));
    }
    Ok(())
}

fn show(plan: &Plan, json: bool) -> Result<ExitCode, Failure> {
    if json {
        #[derive(Serialize)]
        struct Shown<'p> {
            changes: &'p [Change],
            conflicts: &'p [Conflict],
            obstacles: &'p [Obstacle],
            notes: &'p [String],
        }
        let Plan { changes, conflicts, obstacles, notes, .. } = plan;
        return output::json(&Shown { changes, conflicts, obstacles, notes });
    }
    let mut out = io::stdout().lock();
    for change in &plan.changes {
        writeln!(out, "{}", diff::line(change, None, diff::colour()))?;
    }
    for conflict in &plan.conflicts {
        writeln!(out, "conflict: {conflict}")?;
    }
    for obstacle in &plan.obstacles {
        writeln!(out, "obstacle: {obstacle}")?;
    }
    for note in &plan.notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(if plan.obstacles.is_empty() && plan.conflicts.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(OWN) })
}

/// Asks for each change on the terminal.
fn pick(view: &mut View<'_>, paths: &[PathBuf]) -> Result<BTreeSet<(PathBuf, Kind)>, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new("--interactive", "there is no terminal to ask on; name the paths instead"));
    }
    let mut changes = hurdle_layer::walk(view, Options::default())?;
    changes.retain(|change| change.is_below(paths));
    let mut picked = BTreeSet::new();
    let mut rest = None;
    for (number, change) in changes.iter().enumerate() {
        let id = || (change.path.clone(), change.kind);
        if let Some(all) = rest {
            picked.extend(Some(id()).filter(|_| all));
            continue;
        }
        let mut out = io::stdout().lock();
        writeln!(out, "[{}/{}] {}", number + 1, changes.len(), diff::line(change, None, diff::colour()))?;
        loop {
            write!(out, "commit it? [y]es [n]o [a]ll the rest [d]one, no more [s]how [q]uit: ")?;
            out.flush()?;
            let key = tty::read_key(io::stdin())?.to_ascii_lowercase();
            writeln!(out, "{}", if key.is_ascii_graphic() { key as char } else { ' ' })?;
            match key {
                b'y' => drop(picked.insert(id())),
                b'n' => {}
                b'a' => {
                    rest = Some(true);
                    picked.insert(id());
                }
                b'd' => rest = Some(false),
                b's' => {
                    hurdle_layer::patch(view, std::slice::from_ref(change), &mut out)?;
                    continue;
                }
                // Ctrl-C, Ctrl-D and the end of input.
                b'q' | 3 | 4 | 0 => return Err(Failure::plain("nothing is committed".into())),
                _ => continue,
            }
            break;
        }
    }
    Ok(picked)
}
