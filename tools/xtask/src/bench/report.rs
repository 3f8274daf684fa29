//! The results: kept in docs/performance.json, printed as docs/performance.md.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::rows;
use crate::shell::{Result, output, root};

const KEPT: &str = "docs/performance.json";

/// What the rows of copy-on-write files are held against.
const COPY_ON_WRITE: [&str; 6] = ["native", "hurdle", "overlay", "fuse-overlayfs", "bwrap", "cp -a"];

/// One side's figure in a row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) side: String,
    pub(crate) median: f64,
    /// The middle half of the rounds lies between these.
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Figure {
    pub(crate) fn of(side: &str, found: &[f64]) -> Self {
        let mut sorted = found.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| sorted.get((sorted.len().saturating_sub(1) as f64 * part).round() as usize).copied();
        let at = |part: f64| at(part).unwrap_or(f64::NAN);
        Self { side: side.to_owned(), median: at(0.5), low: at(0.25), high: at(0.75) }
    }
}

/// One row, measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) row: String,
    pub(crate) what: String,
    pub(crate) unit: String,
    /// What it has to come to, in words.
    pub(crate) at_least: String,
    pub(crate) sides: Vec<Figure>,
    /// hurdle's median by that of the side it is held against.
    pub(crate) ratio: Option<f64>,
    pub(crate) met: Option<bool>,
    pub(crate) runs: usize,
}

/// Where and when a row was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    machine: String,
    date: String,
    commit: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    place: Place,
    measured: Measured,
}

/// All that was measured last: by user, then by row.
type Kept = BTreeMap<String, BTreeMap<String, Entry>>;

/// A row in one line.
pub(crate) fn line(measured: &Measured) -> String {
    let mut text = format!("{:20}", measured.row);
    for figure in &measured.sides {
        let _ = write!(text, " {} {}", figure.side, amount(figure.median));
    }
    let _ = write!(text, " {}", measured.unit);
    if let Some(ratio) = measured.ratio {
        let _ = write!(text, ", {ratio:.2} ×");
    }
    let verdict = match measured.met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "not comparable",
    };
    let _ = write!(text, " (wanted: {}): {verdict}", measured.at_least);
    text
}

/// Puts results in the place of older ones, and prints the page again.
pub(crate) fn keep(user: &str, results: Vec<Measured>) -> Result {
    let mut kept = load()?;
    let place = place()?;
    let rows = kept.entry(user.to_owned()).or_default();
    for measured in results {
        rows.insert(measured.row.clone(), Entry { place: place.clone(), measured });
    }
    std::fs::create_dir_all(root().join("docs"))?;
    std::fs::write(root().join(KEPT), serde_json::to_string_pretty(&kept)? + "\n")?;
    std::fs::write(root().join("docs/performance.md"), render(&kept))?;
    Ok(())
}

/// The page; none if nothing was measured yet.
pub(crate) fn page() -> Result<Option<String>> {
    let kept = load()?;
    Ok((!kept.is_empty()).then(|| render(&kept)))
}

fn load() -> Result<Kept> {
    match std::fs::read_to_string(root().join(KEPT)) {
        Ok(text) => Ok(serde_json::from_str(&text)?),
        Err(_) => Ok(Kept::new()),
    }
}

fn place() -> Result<Place> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, name)| name);
    let count = std::thread::available_parallelism()?.get();
    let release = read("/proc/sys/kernel/osrelease");
    let git = |arguments: &[&str]| output(Command::new("git").args(arguments).current_dir(root())).unwrap_or_default();
    let changed = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { " with changes" };
    Ok(Place {
        machine: format!("{count} CPUs of {model}, Linux {}", release.trim()),
        date: output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?.trim().to_owned(),
        commit: format!("{}{changed}", git(&["rev-parse", "--short", "HEAD"]).trim()),
    })
}

fn render(kept: &Kept) -> String {
    let mut text = String::from(
        "# Performance\n\nPrinted by `cargo xtask bench`; do not edit. Each row was measured in interleaved rounds of all sides; \
         a figure is the median.\nThe ratio is hurdle's figure by that of the side it is held against. *One CPU* rows run with \
         all processes on CPU 0:\nthey show the cost of the mechanism, the others add wake-ups between CPUs.\n",
    );
    for (user, kept) in kept {
        let _ = write!(text, "\n## As {user}\n");
        let entries: Vec<&Entry> = rows::all().filter_map(|row| kept.get(row.name)).collect();
        for entries in entries.chunk_by(|one, next| one.place == next.place && columns(one) == columns(next)) {
            let Place { machine, date, commit } = &entries[0].place;
            let columns = columns(entries[0]);
            let _ = write!(text, "\n{machine}; {date}; commit {commit}.\n\n| what |");
            columns.iter().for_each(|column| text.extend([" ", column, " |"]));
            let _ = write!(
                text,
                " unit | ratio | wanted | met | runs |\n|---|{}---|---|---|---|---|\n",
                "---|".repeat(columns.len())
            );
            entries.iter().for_each(|entry| table_row(&mut text, &entry.measured, columns));
        }
    }
    text
}

/// The sides that a row's table shows.
fn columns(entry: &Entry) -> &'static [&'static str] {
    match entry.measured.row.split_once('-') {
        Some(("cow", _)) => &COPY_ON_WRITE,
        Some(("depth", _)) => &["depth 1", "hurdle"],
        _ => &["native", "hurdle", "bwrap"],
    }
}

fn table_row(text: &mut String, measured: &Measured, columns: &[&str]) {
    let side = |name: &str| {
        let found = measured.sides.iter().find(|figure| figure.side == name);
        found.map_or("-".to_owned(), |figure| amount(figure.median))
    };
    let Measured { what, unit, at_least, runs, .. } = measured;
    let ratio = measured.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    let met = measured.met.map_or("-", |met| if met { "yes" } else { "**no**" });
    let sides: String = columns.iter().map(|column| format!(" {} |", side(column))).collect();
    let _ = writeln!(text, "| {what} |{sides} {unit} | {ratio} | {at_least} | {met} | {runs} |");
    // Further sizes of the same thing.
    let sizes = measured.sides.iter().filter_map(|figure| figure.side.strip_prefix("native, "));
    for size in sizes {
        let (native, hurdle) = (side(&format!("native, {size}")), side(&format!("hurdle, {size}")));
        let _ = writeln!(text, "| the same, {size} | {native} | {hurdle} | - | {unit} | - | - | - | {runs} |");
    }
}

/// A number with three digits that count.
fn amount(number: f64) -> String {
    match number {
        n if n >= 10_000.0 => format!("{:.1} k", n / 1000.0),
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}
