//! `hurdle diff`: what an environment changed, as a list, in numbers, as a patch or as a tarball.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use hurdle_layer::{Aspect, Change, Kind, Options, Repositories, Stat, Type, View, join_renames, text};

use super::{inside, layers};
use crate::cli::Diff;
use crate::failure::Failure;
use crate::output;
use crate::progress;

pub(crate) fn diff(options: &Diff, json: bool) -> Result<ExitCode, Failure> {
    let layer = layers::find(&options.name)?;
    layers::settled(&layer)?;
    if let Some(code) = inside::instead(&layer)? {
        return Ok(code);
    }
    let mut view = View::open(&layer, Path::new("/"), inside::owners()?)?;
    let paths = absolute(&options.paths)?;
    let walk = || hurdle_layer::walk(&mut view, Options { times: options.times, same: false });
    let mut changes = progress::during("looking for changes", walk)?;
    changes.retain(|change| change.is_below(&paths));
    if let Some(file) = &options.tar {
        return tar(&view, &changes, file);
    }
    if options.patch {
        let mut out = BufWriter::new(io::stdout().lock());
        let done = hurdle_layer::patch(&view, &changes, &mut out);
        return finish(done.map_err(Failure::from).and_then(|()| Ok(out.flush()?)));
    }
    join_renames(&view, &mut changes)?;
    let stat = Stat::of(&changes);
    if json {
        return if options.stat { output::json(&stat) } else { output::json(&changes) };
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = if options.stat { numbers(&changes, &stat, &mut out) } else { list(&view, &changes, &mut out) };
    finish(printed.and_then(|()| Ok(out.flush()?)))
}

/// A reader that has gone (head) is no error of ours.
fn finish(done: Result<(), Failure>) -> Result<ExitCode, Failure> {
    match done {
        Err(failure) if failure.broken_pipe => Ok(ExitCode::SUCCESS),
        other => other.map(|()| ExitCode::SUCCESS),
    }
}

/// Paths as the user means them, from his directory; `..` is taken away without a look at the host, where the environment may
/// have another tree.
pub(crate) fn absolute(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let plain = |path: &PathBuf| -> Result<PathBuf, Failure> {
        let mut plain = PathBuf::from("/");
        for part in std::path::absolute(path)?.components() {
            match part {
                std::path::Component::ParentDir => drop(plain.pop()),
                std::path::Component::Normal(name) => plain.push(name),
                _ => {}
            }
        }
        Ok(plain)
    };
    paths.iter().map(plain).collect()
}

fn tar(view: &View<'_>, changes: &[Change], file: &Path) -> Result<ExitCode, Failure> {
    if file == Path::new("-") {
        if io::stdout().is_terminal() {
            return Err(Failure::new("--tar -", "a terminal is no place for a tarball: send it to a file or a pipe"));
        }
        let mut out = BufWriter::new(io::stdout().lock());
        hurdle_layer::tarball(view, changes, &mut out)?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let failed = |e: io::Error| Failure::new(format!("--tar {}", file.display()), e);
    let mut out = BufWriter::new(File::create(file).map_err(failed)?);
    hurdle_layer::tarball(view, changes, &mut out)?;
    out.flush().map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

/// Each change a line, those of a git repository below its name.
fn list(view: &View<'_>, changes: &[Change], out: &mut dyn Write) -> Result<(), Failure> {
    let colour = colour();
    let mut repositories = Repositories::new(view);
    let mut groups: Vec<(Option<PathBuf>, Vec<&Change>)> = Vec::new();
    for change in changes {
        let is_dir = change.is.is_some_and(|attr| attr.kind == Type::Directory);
        let dir = if is_dir { &change.path } else { change.path.parent().unwrap_or(&change.path) };
        let repository = repositories.of(dir)?;
        match groups.iter_mut().find(|(name, _)| *name == repository) {
            Some((_, group)) => group.push(change),
            None => groups.push((repository, vec![change])),
        }
    }
    // What belongs to none comes first.
    groups.sort_by(|a, b| a.0.cmp(&b.0));
    let mut first = true;
    for (repository, group) in &groups {
        if let Some(repository) = repository {
            let style = if colour { Style::new().bold() } else { Style::new() };
            let gap = if first { "" } else { "\n" };
            writeln!(out, "{gap}{style}git {}{style:#}", text::path(repository))?;
        }
        first = false;
        let inside = |change: &Change| repository.as_ref().is_some_and(|r| change.path.starts_with(r.join(".git")));
        for change in group.iter().filter(|change| !inside(change)) {
            writeln!(out, "{}", line(change, repository.as_deref(), colour))?;
        }
        // What git keeps for itself is of interest as a whole.
        let own = group.iter().filter(|change| inside(change)).count();
        if own > 0 {
            writeln!(out, "   .git: {own} change{}", if own == 1 { "" } else { "s" })?;
        }
    }
    Ok(())
}

pub(crate) fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// One change: its letter, its path (below `base`, where it lies in one), and what changed.
pub(crate) fn line(change: &Change, base: Option<&Path>, colour: bool) -> String {
    let shade = match change.kind {
        Kind::Added => AnsiColor::Green,
        Kind::Deleted => AnsiColor::Red,
        Kind::Modified => AnsiColor::Yellow,
        Kind::Renamed => AnsiColor::Cyan,
        Kind::Type => AnsiColor::Magenta,
        Kind::Same => AnsiColor::White,
    };
    let style = if colour { Style::new().fg_color(Some(shade.into())) } else { Style::new() };
    let short = |path: &Path| match base.and_then(|base| path.strip_prefix(base).ok()) {
        Some(inside) if inside.as_os_str().is_empty() => ".".into(),
        inside => text::path(inside.unwrap_or(path)),
    };
    let slash = if change.is_dir() && change.path != Path::new("/") { "/" } else { "" };
    let mut line = format!("{style}{}{style:#}  ", change.kind.letter());
    if let Some(from) = &change.from {
        line.push_str(&format!("{}{slash} → ", short(from)));
    }
    line.push_str(&format!("{}{slash}", short(&change.path)));
    let details = details(change);
    if !details.is_empty() {
        line.push_str(&format!("  ({details})"));
    }
    line
}

fn details(change: &Change) -> String {
    let (Some(was), Some(is)) = (change.was, change.is) else { return String::new() };
    if change.kind == Kind::Type {
        return format!("{} → {}", was.kind.name(), is.kind.name());
    }
    let id = |id: Option<u32>| id.map_or("?".into(), |id| id.to_string());
    let words: Vec<String> = change
        .what
        .iter()
        .filter_map(|aspect| match aspect {
            // A new length says so already.
            Aspect::Content if change.what.contains(&Aspect::Size) => None,
            Aspect::Size => Some(format!("size {} → {}", was.size, is.size)),
            Aspect::Mode => Some(format!("mode {:04o} → {:04o}", was.mode, is.mode)),
            Aspect::Owner => Some(format!("owner {}:{} → {}:{}", id(was.uid), id(was.gid), id(is.uid), id(is.gid))),
            other => Some(other.name().into()),
        })
        .collect();
    words.join(", ")
}

/// What each change comes to in bytes, and the sum.
fn numbers(changes: &[Change], stat: &Stat, out: &mut dyn Write) -> Result<(), Failure> {
    let names: Vec<String> = changes.iter().map(|change| line(change, None, colour())).collect();
    for (change, name) in changes.iter().zip(names) {
        match change.growth() {
            0 => writeln!(out, "{:>8}  {name}", "")?,
            growth => writeln!(out, "{:>8}  {name}", signed(growth))?,
        }
    }
    writeln!(out, "{}", total(stat))?;
    Ok(())
}

/// `3 added, 1 modified, 2 deleted, +12K`.
pub(crate) fn total(stat: &Stat) -> String {
    let parts =
        [(stat.added, "added"), (stat.modified, "modified"), (stat.deleted, "deleted"), (stat.renamed, "renamed")];
    let mut words: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
    if words.is_empty() {
        return "no changes".into();
    }
    if stat.growth != 0 {
        words.push(signed(stat.growth));
    }
    words.join(", ")
}

fn signed(bytes: i64) -> String {
    format!("{}{}", if bytes < 0 { '-' } else { '+' }, output::bytes(bytes.unsigned_abs()))
}
