//! `hurdle trace`: prints what the servers of an environment and its core report, or what was recorded of it.
//!
//! `live` hears the reports, `recording` reads and writes files, `show` makes lines of both, so that a recording is printed as it was
//! live.

mod live;
mod recording;
mod show;

use std::path::Path;
use std::process::ExitCode;

use hurdle_wire::tap::Event;
use serde::{Deserialize, Serialize};

use crate::cli::Trace;
use crate::failure::Failure;
use recording::{Reader, Recorder};
use show::Printer;

/// One event, and who reported it by the core's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// Whose server: an interface's name, or `core`.
    server: String,
    /// Whether that is one of several, one on the other.
    #[serde(default)]
    stack: bool,
    #[serde(flatten)]
    event: Event,
}

/// Which events are wanted.
struct Wanted<'a> {
    interfaces: &'a [String],
    pid: Option<u32>,
}

impl Wanted<'_> {
    fn matches(&self, Event { interface, who, .. }: &Event) -> bool {
        let of_process = self.pid.is_none_or(|pid| pid != 0 && [who.pid, who.inside, who.thread].contains(&pid));
        of_process && (self.interfaces.is_empty() || self.interfaces.contains(interface))
    }
}

pub(crate) fn trace(options: &Trace, json: bool) -> Result<ExitCode, Failure> {
    let wanted = Wanted { interfaces: &options.iface, pid: options.pid };
    if is_file(&options.what) {
        if options.record.is_some() {
            return Err(Failure::new(
                "--record",
                "what is printed is a recording already; name an environment that runs",
            ));
        }
        return replay(&options.what, &wanted, json);
    }
    let env = options.what.to_string_lossy();
    let mut live = live::Live::start(&env, &options.iface)?;
    let begun_us = hurdle_wire::tap::microseconds(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default());
    let mut recorder = options.record.as_deref().map(|path| Recorder::create(path, &env, begun_us)).transpose()?;
    let mut printer = Printer::new(begun_us, json);
    if printer.head().is_err() {
        return Ok(ExitCode::SUCCESS);
    }
    while let Some(line) = live.next(|| printer.flush()) {
        if !wanted.matches(&line.event) {
            continue;
        }
        if let Some(recorder) = &mut recorder {
            recorder.write(&line)?;
        }
        if printer.print(&line).is_err() {
            // Nobody reads what is printed.
            return Ok(ExitCode::SUCCESS);
        }
    }
    let _ = printer.flush();
    live.finish(&env)?;
    Ok(ExitCode::SUCCESS)
}

/// An environment goes before a file of the same name; `./NAME` is the file.
fn is_file(what: &Path) -> bool {
    let text = what.to_string_lossy();
    let runs = || hurdle_core::names().is_ok_and(|names| names.iter().any(|name| *name == text));
    text.contains('/') || (what.exists() && !runs())
}

fn replay(path: &Path, wanted: &Wanted<'_>, json: bool) -> Result<ExitCode, Failure> {
    let mut reader = Reader::open(path)?;
    let mut printer = Printer::new(reader.begun_us, json);
    let mut printed = printer.head();
    while printed.is_ok()
        && let Some(line) = reader.next()?
    {
        if wanted.matches(&line.event) {
            printed = printer.print(&line);
        }
    }
    let _ = printer.flush();
    Ok(ExitCode::SUCCESS)
}
