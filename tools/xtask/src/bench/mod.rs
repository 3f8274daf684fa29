//! The numbers of docs/performance.md: each row measured in interleaved rounds, natively, in an environment, and in what
//! users would pick instead where that is installed.
//!
//! `rows` and `cow` declare what is measured; `traps`, `mortal`, `nested` and `many` measure what only an environment has: trapped
//! calls, deaths and swaps, depth, and a thousand at once; `peers` starts what other things than hurdle are held against; `measure` runs
//! one row's rounds, in a process of its own that is pinned to one CPU if the row is, and that belongs to the user who
//! measures; `workload` is what a row does inside of a side; `report` keeps the results in docs/performance.json and prints them.

mod cow;
mod launch;
mod many;
mod measure;
mod mortal;
mod nested;
mod peers;
mod report;
mod rows;
mod traps;
mod workload;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use clap::Args;

use crate::shell::{Result, cargo, output, run as run_command};
use crate::stage::{Stage, User};
use crate::test::release_directory;
use rows::{Measure, Place, Row};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The rows; all, if none is named.
    rows: Vec<String>,
    /// Fewer rounds: to see whether it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Measure as this user.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Leave docs/performance.md and docs/performance.json as they are.
    #[arg(long)]
    dry: bool,
    /// Print the names of the rows.
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MeasureOptions {
    row: String,
    #[arg(long)]
    stage: PathBuf,
    #[arg(long)]
    quick: bool,
}

/// The chore.
pub(crate) fn run(options: &Options) -> Result {
    if options.list {
        rows::all().for_each(|row| println!("{:24} {}", row.name, row.what));
        return Ok(());
    }
    let chosen = chosen(&options.rows)?;
    let user = match &options.user {
        Some(name) => User::named(name).ok_or_else(|| format!("no user {name}"))?,
        None => User::current(),
    };
    run_command(&mut cargo(&["build", "--release", "--package", "hurdle"]))?;
    let release = release_directory()?;
    let stage = Stage::new()?;
    stage.program(&release.join("hurdle"), "hurdle")?;
    let this = stage.program(&std::env::current_exe()?, "xtask")?;
    if chosen.iter().any(|row| matches!(row.measure, Measure::Rpc)) {
        run_command(&mut cargo(&["build", "--release", "--package", "hurdle-wire", "--example", "rpc_bench"]))?;
        stage.program(&release.join("examples/rpc_bench"), "rpc_bench")?;
    }
    let [files, layers, memory] = ["files", "layers", "layers/memory"].map(|name| stage.path().join(name));
    for directory in [&files, &layers, &memory] {
        std::fs::create_dir(directory)?;
        std::os::unix::fs::chown(directory, Some(user.id), None)?;
    }
    peers::serve_caches(stage.path())?;

    let mut results = Vec::new();
    for row in chosen {
        eprintln!("{}: {}", row.name, row.what);
        let uncharged = (row.place == Place::OneCpuUncharged).then(Uncharged::begin).transpose();
        if let Err(error) = &uncharged {
            eprintln!("{}: not measured: {error}", row.name);
            continue;
        }
        let mut command = if row.place != Place::Anywhere {
            let mut taskset = user.command(Path::new("/usr/bin/taskset"));
            taskset.args(["-c", "0"]).arg(&this);
            taskset
        } else {
            user.command(&this)
        };
        command.arg("measure").arg(row.name).arg("--stage").arg(stage.path()).current_dir(&files);
        command
            .args(options.quick.then_some("--quick"))
            .env("TMPDIR", &files)
            .env("XDG_STATE_HOME", &layers)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        match output(&mut command) {
            Ok(text) => {
                let result: report::Measured = serde_json::from_str(&text)?;
                println!("{}", report::line(&result));
                results.push(result);
            }
            Err(error) => eprintln!("{}: not measured: {error}", row.name),
        }
    }
    if !options.dry && !options.quick {
        report::keep(&user.name, results)?;
    }
    Ok(())
}

/// This process, and what it starts, in the root of the memory cgroups (cgroups(7)) for a while.
struct Uncharged {
    home: PathBuf,
}

impl Uncharged {
    fn begin() -> Result<Uncharged> {
        let groups = std::fs::read_to_string("/proc/self/cgroup")?;
        let of =
            |begins: &str| groups.lines().find_map(|line| line.split_once(begins).map(|(_, path)| path.to_owned()));
        let (root, path) = match of(":memory:/") {
            Some(path) => ("/sys/fs/cgroup/memory", path),
            None => ("/sys/fs/cgroup", of("0::/").ok_or("there are no memory cgroups to leave")?),
        };
        enter(Path::new(root)).map_err(|error| format!("the memory cgroup can't be left: {error}"))?;
        Ok(Uncharged { home: Path::new(root).join(path) })
    }
}

impl Drop for Uncharged {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.home) {
            eprintln!("the memory cgroup can't be entered again: {error}");
        }
    }
}

fn enter(group: &Path) -> std::io::Result<()> {
    std::fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Row>> {
    if names.is_empty() {
        return Ok(rows::all().collect());
    }
    let mut chosen = Vec::new();
    for name in names {
        // `redis` stands for all rows that begin so, as there is no row of just that name.
        let exact = rows::named(name).ok();
        let begins = |row: &&Row| exact.is_none() && row.name.starts_with(name.as_str());
        let found: Vec<&Row> = exact.into_iter().chain(rows::all().filter(begins)).collect();
        if found.is_empty() {
            return Err(format!("no row {name}; cargo xtask bench --list").into());
        }
        chosen.extend(found);
    }
    Ok(chosen)
}

/// One row, in the process that is pinned and belongs to the user; prints the result as JSON.
pub(crate) fn measure(options: &MeasureOptions) -> Result {
    let row = rows::named(&options.row)?;
    let result = measure::row(row, &options.stage, options.quick)?;
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}

/// The workload of a row; prints its figure.
pub(crate) fn inside(row: &str, files: &Path) -> Result {
    match rows::named(row)?.measure {
        Measure::Inside { work, .. } | Measure::Cold { work, .. } | Measure::Own { work, .. } => {
            println!("{}", work(files)?)
        }
        Measure::Memory => launch::idle()?,
        _ => return Err(format!("{row} has no workload of its own").into()),
    }
    Ok(())
}

/// docs/performance.md, from what was measured last; none if nothing was.
pub(crate) fn page() -> Result<Option<String>> {
    report::page()
}
