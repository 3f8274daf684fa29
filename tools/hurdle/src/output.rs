//! What commands print: tables for people, JSON for programs.

use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;

use crate::failure::Failure;

/// One JSON value on a line.
pub(crate) fn json(value: &impl Serialize) -> Result<ExitCode, Failure> {
    let text = serde_json::to_string(value).map_err(|e| Failure::new("--json", e))?;
    println!("{text}");
    Ok(ExitCode::SUCCESS)
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

    pub(crate) fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |n: usize| self.rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|n| width(n).unwrap_or(0)).collect();
        let mut out = io::stdout().lock();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            // A reader that has gone (head) is no error of ours.
            if writeln!(out, "{}", line.trim_end()).is_err() {
                return;
            }
        }
    }
}
