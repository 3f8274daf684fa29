//! One row's rounds: the sides take turns, and each side's median stands for it.

use std::path::Path;
use std::process::Command;

use super::report::{Figure, Measured};
use super::rows::{Bound, Found, Measure, Row, Side};
use super::{launch, peers};
use crate::shell::{Result, installed, output, user_id};

/// How often fuse-overlayfs is measured where no bound names it: it takes ten times as long as all others together.
const LOOKS: usize = 3;

/// Measures a row; `stage` holds `hurdle`, `xtask`, and a directory `files`.
pub(crate) fn row(row: &Row, stage: &Path, quick: bool) -> Result<Measured> {
    let sides: Vec<Side> = row.sides.iter().copied().filter(|side| available(*side)).collect();
    let mut figures: Found = sides.iter().map(|side| (side.name().to_owned(), Vec::new())).collect();
    match row.measure {
        Measure::Rpc => figures = rpc(stage)?,
        Measure::Own { measure, .. } => figures = measure(stage, quick)?,
        Measure::Launch => {
            // Blocks of launches, so that what disturbs the machine for a while disturbs all sides alike.
            for _ in 0..if quick { 2 } else { 20 } {
                for (side, (_, found)) in sides.iter().zip(&mut figures) {
                    found.extend(launch::times(|| command(*side, stage, Path::new("/bin/true")), 20)?);
                }
            }
        }
        Measure::Rate => {
            for _ in 0..if quick { 1 } else { 5 } {
                for (side, (_, found)) in sides.iter().zip(&mut figures) {
                    found.push(launch::rate(|| command(*side, stage, Path::new("/bin/true")), quick)?);
                }
            }
        }
        Measure::Memory => {
            for _ in 0..if quick { 1 } else { 5 } {
                for (side, (_, found)) in sides.iter().zip(&mut figures) {
                    found.push(launch::memory(workload(*side, stage, row))?);
                }
            }
        }
        Measure::Inside { prepare, rounds, .. } => {
            prepare(&stage.join("files"))?;
            // The first turn warms caches and is not counted.
            for round in 0..if quick { 2 } else { rounds + 1 } {
                for (side, (_, found)) in sides.iter().zip(&mut figures) {
                    if round > LOOKS && matches!(side, Side::FuseOverlayfs { .. }) {
                        continue;
                    }
                    let figure: f64 = output(&mut workload(*side, stage, row))?.trim().parse()?;
                    if round > 0 {
                        found.push(figure);
                    }
                }
            }
        }
        Measure::Cold { prepare, rounds, .. } => {
            prepare(&stage.join("files"))?;
            for _ in 0..if quick { 1 } else { rounds } {
                for (side, (_, found)) in sides.iter().zip(&mut figures) {
                    peers::drop_caches(stage)?;
                    found.push(output(&mut workload(*side, stage, row))?.trim().parse()?);
                }
            }
        }
    }
    Ok(result(row, &figures))
}

fn result(row: &Row, figures: &[(String, Vec<f64>)]) -> Measured {
    let sides = figures.iter().map(|(side, found)| Figure::of(side, found)).collect::<Vec<_>>();
    let median = |name: &str| sides.iter().find(|figure| figure.side == name).map(|figure| figure.median);
    let hurdle = median("hurdle");
    let over = |against: &str| Some(hurdle? / median(against)?);
    let bound = match row.bound {
        Bound::AtMostFor { root, against, .. } if user_id() == 0 => Bound::AtMost(root, against),
        Bound::AtMostFor { user, against, .. } => Bound::AtMost(user, against),
        other => other,
    };
    let (at_least, ratio, met) = match bound {
        Bound::AtMost(limit, against) | Bound::AtMostFor { root: limit, against, .. } => {
            let ratio = over(against);
            (format!("{limit} × {against} or less"), ratio, ratio.map(|ratio| ratio <= limit))
        }
        Bound::AtLeast(limit, against) => {
            let ratio = over(against);
            (format!("{limit} × {against} or more"), ratio, ratio.map(|ratio| ratio >= limit))
        }
        Bound::Below(limit) => (format!("{limit} {} or less", row.unit), None, hurdle.map(|hurdle| hurdle <= limit)),
        Bound::Above(limit) => (format!("{limit} {} or more", row.unit), None, hurdle.map(|hurdle| hurdle >= limit)),
    };
    let runs = figures.iter().map(|(_, found)| found.len()).max().unwrap_or(0);
    Measured {
        row: row.name.to_owned(),
        what: row.what.to_owned(),
        unit: row.unit.to_owned(),
        at_least,
        sides,
        ratio,
        met,
        runs,
    }
}

fn available(side: Side) -> bool {
    match side {
        Side::Bwrap(_) => installed("bwrap").is_some(),
        Side::FuseOverlayfs { .. } => installed("fuse-overlayfs").is_some(),
        Side::RootOverlay => user_id() == 0,
        Side::Native | Side::Hurdle(_) | Side::Overlay { .. } => true,
    }
}

/// A program in a side.
fn command(side: Side, stage: &Path, program: &Path) -> Command {
    let (runner, first, options) = match side {
        Side::Native => return Command::new(program),
        Side::Hurdle(options) => (stage.join("hurdle"), Some("run"), options),
        Side::Bwrap(options) => ("/usr/bin/bwrap".into(), None, options),
        Side::Overlay { disk } => return peers::command(false, disk, stage, program),
        Side::RootOverlay => return peers::command(false, false, stage, program),
        Side::FuseOverlayfs { disk } => return peers::command(true, disk, stage, program),
    };
    let mut command = Command::new(runner);
    command.args(first).args(options).arg("--").arg(program);
    command
}

/// The workload of a row in a side.
fn workload(side: Side, stage: &Path, row: &Row) -> Command {
    let mut command = command(side, stage, &stage.join("xtask"));
    command.arg("inside").arg(row.name).arg(stage.join("files"));
    command
}

/// What the wire crate's benchmark prints: one line of JSON for each size, 64 bytes first.
fn rpc(stage: &Path) -> Result<Found> {
    let text = output(&mut Command::new(stage.join("rpc_bench")))?;
    let mut figures = Vec::new();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    for (line, size) in lines.zip(["", ", 64 KiB", ", 1 MiB"]) {
        for (side, key) in [("native", "raw_us"), ("hurdle", "rpc_us")] {
            let figure = line[key].as_f64().ok_or_else(|| format!("rpc_bench prints no {key}: {line}"))?;
            figures.push((format!("{side}{size}"), vec![figure]));
        }
    }
    if figures.is_empty() { Err("rpc_bench printed no JSON".into()) } else { Ok(figures) }
}
