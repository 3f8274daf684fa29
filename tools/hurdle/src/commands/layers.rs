//! `hurdle layers`, `discard`: what is kept of environments, and what is not; and how other commands find a layer.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use hurdle_layer::{Error, Layer, Listed, Lock, Meta};
use hurdle_proto::fs::fs;
use serde::Serialize;

use super::{inside, look};
use crate::cli::Layers;
use crate::failure::Failure;
use crate::output::{self, Table};
use crate::progress;

/// The layer of the environment that runs under this name, else the one that was kept under it.
pub(crate) fn find(name: &str) -> Result<Layer, Failure> {
    if let Some(layer) = inside::layer()? {
        return Ok(layer);
    }
    match running(name)? {
        Some(layer) => Ok(layer),
        None => Ok(hurdle_layer::locate(name)?),
    }
}

/// The layer of an environment that runs; `None`: no such environment, or none of a layer.
fn running(name: &str) -> Result<Option<Layer>, Failure> {
    // A path is a layer's.
    if name.contains('/') || !hurdle_core::names().is_ok_and(|names| names.iter().any(|other| other == name)) {
        return Ok(None);
    }
    let client = fs::Client::from(look::server(name, "fs")?);
    match client.layer().wait() {
        Ok(fd) => {
            let dir = fd.into_owned()?;
            // Where it is on disk; in memory the path is for messages only.
            let path = std::fs::read_link(hurdle_sys::mount::path_of(&dir)).unwrap_or_default();
            let path = if path.join("layer.json").exists() { path } else { name.into() };
            Ok(Some(Layer::open_at(dir, &path)?))
        }
        Err(hurdle_wire::CallError::Refused(_)) => Ok(None),
        Err(e) => Err(Failure::call(name, &e)),
    }
}

/// Refuses a layer of which a commit was interrupted: it and the host have each a part of what the environment had.
pub(crate) fn settled(layer: &Layer) -> Result<(), Failure> {
    if !layer.interrupted() {
        return Ok(());
    }
    let name = layer.name();
    let why = format!("a commit of it was interrupted: `hurdle commit {name}` finishes it, `--abort` forgets the rest");
    Err(Failure::new(name, why))
}

pub(crate) fn discard(names: &[String]) -> Result<ExitCode, Failure> {
    for name in names {
        remove(find(name)?, None)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes a layer that nobody uses, or the caller alone, who has its lock.
pub(crate) fn remove(layer: Layer, lock: Option<Lock>) -> Result<(), Failure> {
    if inside::needed(&layer)? {
        // Let go, so that it can be had in there.
        drop(lock);
        let code = inside::again(Some(&layer), ["discard", "layer"].iter().map(Into::into), false)?;
        let gone = code == ExitCode::SUCCESS;
        return if gone { Ok(()) } else { Err(Failure::new(layer.name(), "it is not removed")) };
    }
    let lock = match lock {
        Some(lock) => lock,
        None => layer.lock_exclusive(&format!("its removal (process {})", std::process::id()))?,
    };
    let what = format!("removing {}", layer.name());
    Ok(progress::during(&what, || layer.remove(lock))?)
}

/// One layer, as it is printed.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    path: String,
    /// Bytes on disk.
    size: Option<u64>,
    /// Entries, marks of deletion among them.
    entries: Option<u64>,
    /// In milliseconds.
    age_ms: Option<u64>,
    base: Option<String>,
    in_use: Option<String>,
    interrupted: bool,
    /// Why it can't be used.
    error: Option<String>,
    /// Its size is not known to the caller.
    #[serde(skip)]
    partly: bool,
}

pub(crate) fn layers(action: Option<Layers>, json: bool) -> Result<ExitCode, Failure> {
    match action {
        None => list(json),
        Some(Layers::Snapshot { from, name }) => snapshot(&from, &name, json),
        Some(Layers::Prune { older, dry_run }) => prune(older, dry_run, json),
    }
}

fn list(json: bool) -> Result<ExitCode, Failure> {
    let rows: Vec<Row> = all()?.into_iter().map(row).collect();
    if rows.iter().any(|row| row.partly) && !inside::here() {
        return inside::again(None, std::env::args_os().skip(1), false);
    }
    if json {
        return output::json(&rows);
    }
    let mut table = Table::new(&["NAME", "SIZE", "ENTRIES", "AGE", "BASE", "STATE"]);
    let dash = || "-".to_string();
    for row in rows {
        let state = match (&row.error, &row.in_use) {
            (Some(error), _) => error.clone(),
            (None, Some(by)) => format!("in use by {by}"),
            (None, None) if row.interrupted => "its commit was interrupted".into(),
            (None, None) => dash(),
        };
        table.row(vec![
            row.name,
            row.size.map_or_else(dash, output::bytes),
            row.entries.map_or_else(dash, |n| n.to_string()),
            row.age_ms.map_or_else(dash, output::age),
            row.base.unwrap_or_else(dash),
            state,
        ]);
    }
    output::print(table)
}

fn all() -> Result<Vec<Listed>, Failure> {
    Ok(hurdle_layer::list(&hurdle_layer::layers_dir()?)?)
}

fn age_ms(meta: &Meta) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or(u64::MAX).saturating_sub(meta.created / 1_000_000)
}

fn row(listed: Listed) -> Row {
    let path = hurdle_layer::text::path(&listed.path);
    let mut row = Row {
        name: listed.name,
        path,
        size: None,
        entries: None,
        age_ms: None,
        base: None,
        in_use: None,
        interrupted: false,
        error: None,
        partly: false,
    };
    let fill = |row: &mut Row, layer: Layer| -> Result<(), Error> {
        row.age_ms = Some(age_ms(layer.meta()));
        row.base = layer.meta().base.clone();
        row.interrupted = layer.interrupted();
        row.in_use = layer.in_use()?;
        let size = layer.size()?;
        row.size = Some(size.bytes);
        row.entries = Some(size.entries);
        row.partly = size.unreadable > 0;
        Ok(())
    };
    if let Err(e) = listed.layer.and_then(|layer| fill(&mut row, layer)) {
        row.error = Some(e.to_string());
    }
    row
}

fn snapshot(from: &str, name: &str, json: bool) -> Result<ExitCode, Failure> {
    let layer = find(from)?;
    settled(&layer)?;
    if let Some(code) = inside::instead(&layer)? {
        return Ok(code);
    }
    let to = hurdle_layer::path_of(name)?;
    let done = progress::during(&format!("copying {from}"), || hurdle_layer::snapshot(&layer, &to))?;
    if json {
        return output::json(&done);
    }
    if !done.settled {
        hurdle_core::complain(
            "note: the environment never stood still: what it writes all the time is as it was at some moment",
        );
    }
    output::line(name)
}

fn prune(older: u64, dry_run: bool, json: bool) -> Result<ExitCode, Failure> {
    if !dry_run {
        match hurdle_layer::sweep(&hurdle_layer::layers_dir()?) {
            // What is left of a layer with ids of an environment.
            Err(e) if e.kind() == Some(std::io::ErrorKind::PermissionDenied) && !inside::here() => {
                return inside::again(None, std::env::args_os().skip(1), false);
            }
            other => other?,
        }
    }
    let mut gone = Vec::new();
    // A base can go when those on it have gone.
    loop {
        let before = gone.len();
        for listed in all()? {
            let Ok(layer) = listed.layer else { continue };
            if gone.contains(&listed.name) || age_ms(layer.meta()) / 86_400_000 < older || layer.interrupted() {
                continue;
            }
            let lock = match layer.lock_exclusive(&format!("its removal (process {})", std::process::id())) {
                Ok(lock) => lock,
                Err(Error::Busy { .. }) => continue,
                Err(Error::Frozen { by, .. }) if !(dry_run && by.iter().all(|name| gone.contains(name))) => continue,
                Err(Error::Frozen { .. }) => {
                    gone.push(listed.name);
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            if !dry_run {
                remove(layer, Some(lock))?;
            }
            gone.push(listed.name);
        }
        if gone.len() == before {
            break;
        }
    }
    if json {
        return output::json(&gone);
    }
    output::print(gone.iter().map(|name| format!("{name}\n")).collect::<String>())
}
