//! What commands print: tables for people, JSON for programs.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::Failure;

/// Writes to standard output, at once.
pub(crate) fn print(text: impl fmt::Display) -> Result<ExitCode, Failure> {
    printed(write!(io::stdout().lock(), "{text}"))
}

/// After something has been printed: whether all of it has arrived.
pub(crate) fn printed(written: io::Result<()>) -> Result<ExitCode, Failure> {
    match written.and_then(|()| io::stdout().flush()) {
        // A reader that has gone (head) is no error of ours.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new("standard output can't be written", e)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The same, and ends the line.
pub(crate) fn line(text: impl fmt::Display) -> Result<ExitCode, Failure> {
    print(format_args!("{text}\n"))
}

/// One JSON value on a line.
pub(crate) fn json(value: &impl Serialize) -> Result<ExitCode, Failure> {
    line(serde_json::to_string(value).map_err(|e| Failure::new("--json", e))?)
}

/// A duration in milliseconds, in its largest unit: `4s`, `2m`, `3h`, `5d`.
pub(crate) fn age(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}s", ms / 1000),
        60_000..3_600_000 => format!("{}m", ms / 60_000),
        3_600_000..86_400_000 => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

/// An amount of bytes, in its largest unit: `12`, `3.4K`, `17M`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["", "K", "M", "G", "T"] {
        if value < 1000.0 || unit == "T" {
            return if unit.is_empty() || value >= 10.0 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1024.0;
    }
    String::new()
}

/// A duration in microseconds.
pub(crate) fn micros(us: u64) -> String {
    if us < 1000 { format!("{us} µs") } else { format!("{}.{} ms", us / 1000, us % 1000 / 100) }
}

/// Columns as wide as their widest cell; the last one is cut by nobody.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(ToString::to_string).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        // A cell must not forge a line or drive the terminal.
        let clean = |c: char| if c.is_control() { '?' } else { c };
        self.rows.push(cells.into_iter().map(|cell| cell.chars().map(clean).collect()).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |n: usize| self.rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|n| width(n).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, "{cell:width$}  ")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
