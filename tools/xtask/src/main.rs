//! Project chores: `cargo xtask install | test | soak | ci | bench | docs`.
//!
//! | module | what it holds |
//! |---|---|
//! | `install` | what the tests need on a bare Debian machine |
//! | `test` | all checks and tests, as root and as an unprivileged user; one closing line that counts them |
//! | `soak` | environments under load while servers die, are swapped and nest, at random, for minutes or hours |
//! | `bench` | the numbers of docs/performance.md, each measured against native and against peers |
//! | `docs` | pages that are printed from the program's own tables |
//! | `probe` | a program that tells how long service was away; `process`: what /proc tells of processes |
//! | `stage` | built programs in a place that every user can read |
//! | `shell` | running commands, and saying so |
//!
//! Everything works as root. As an ordinary user too: `install` then only tells what is missing, and `test` leaves out
//! what needs a second user, and says so.

#![warn(missing_docs)]

mod bench;
mod docs;
mod install;
mod probe;
mod process;
mod shell;
mod soak;
mod stage;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Project chores", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Install what the tests and benchmarks need. Does nothing where it is there.
    Install,
    /// Run all checks and tests.
    Test {
        /// Run these end-to-end tests alone (files of tests/tests).
        names: Vec<String>,
    },
    /// Install, then test: what continuous integration runs.
    Ci,
    /// Kill, swap and nest servers and environments under load, at random; nothing may fail, and nothing be left.
    Soak(soak::Options),
    /// Measure, print a table, and bring docs/performance.md up to date.
    Bench(bench::Options),
    /// Print again the pages that come from the program's own tables; with --check, only compare.
    Docs {
        /// Change nothing; fail if a page is out of date.
        #[arg(long)]
        check: bool,
    },
    /// A program that makes one trapped call after the other.
    #[command(hide = true)]
    Probe {
        /// Rest between two calls, in µs.
        pause: u64,
    },
    /// One row of a benchmark, as the user who measures.
    #[command(hide = true)]
    Measure(bench::MeasureOptions),
    /// The workload of a row, in a world of its own.
    #[command(hide = true)]
    Inside {
        /// The row.
        row: String,
        /// Where the row's files are.
        files: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Install => install::run(),
        Chore::Test { names } => test::run(&names),
        Chore::Ci => install::run().and_then(|()| test::run(&[])),
        Chore::Soak(options) => soak::run(&options),
        Chore::Probe { pause } => probe::run(std::time::Duration::from_micros(pause)),
        Chore::Bench(options) => bench::run(&options),
        Chore::Docs { check } => docs::run(check),
        Chore::Measure(options) => bench::measure(&options),
        Chore::Inside { row, files } => bench::inside(&row, &files),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
