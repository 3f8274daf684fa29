//! Environments in environments, each with traps of its own.

use std::path::Path;
use std::process::Command;

use super::launch as one_launch;
use super::rows::Found;
use crate::shell::{Result, output};

/// How deep.
const DEEP: usize = 16;
const RUN: [&str; 4] = ["run", "--net", "local", "--"];

/// `program` in so many environments.
fn nested(stage: &Path, depth: usize, program: &Path) -> Command {
    let hurdle = stage.join("hurdle");
    let mut command = Command::new(if depth > 0 { &hurdle } else { program });
    for level in 0..depth {
        command.args(RUN).arg(if level + 1 < depth { &hurdle } else { program });
    }
    command
}

/// Both depths in turn: the workload of `row` that many levels above.
fn both(stage: &Path, quick: bool, row: &str, above: usize) -> Result<Found> {
    let mut found: Found = vec![("hurdle".into(), Vec::new()), ("depth 1".into(), Vec::new())];
    for _ in 0..if quick { 1 } else { 7 } {
        for ((_, figures), depth) in found.iter_mut().zip([DEEP, 1]) {
            let mut command = nested(stage, depth - above, &stage.join("xtask"));
            let text = output(command.arg("inside").arg(row).arg(stage))?;
            figures.push(text.trim().parse()?);
        }
    }
    Ok(found)
}

/// A trapped call at the depth.
pub(crate) fn trap(stage: &Path, quick: bool) -> Result<Found> {
    both(stage, quick, "depth-trap", 0)
}

/// A launch that makes the depth.
pub(crate) fn launch(stage: &Path, quick: bool) -> Result<Found> {
    both(stage, quick, "depth-launch", 1)
}

/// The workload: the median time of 21 launches, in ms.
pub(crate) fn launches(stage: &Path) -> Result<f64> {
    let mut times = one_launch::times(|| nested(stage, 1, Path::new("/bin/true")), 21)?;
    times.sort_by(f64::total_cmp);
    Ok(times[10])
}
