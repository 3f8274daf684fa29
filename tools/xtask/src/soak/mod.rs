//! A soak: environments under load, in which servers die and are swapped, and others nest, come and go, at random from a seed that is
//! printed, while nothing may fail and nothing may be left.
//!
//! `plan` draws what happens; `run` does it for one user, of whose environments `env` and `nested` are one each; `load` reads what the
//! clients of the programs in tests/load say; `count` is what has to come back to where it was; `fold` is a user's place.
//!
//! Who starts it holds a pipe to the process that does the work, in a group of its own: when he ends, however it comes, that
//! process puts everything away.

mod count;
mod env;
mod fold;
mod load;
mod nested;
mod plan;
mod run;

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use clap::Args;

use crate::shell::{Result, cargo, installed, run as run_command, user_id};
use crate::stage::{Stage, USER, User};
use crate::test::release_directory;
use fold::Fold;
use run::Figures;

/// How long it is in continuous integration.
pub(crate) const CI_MINUTES: f64 = 3.0;

/// What the loads are made of.
const PROGRAMS: [&str; 9] =
    ["nginx", "curl", "wrk", "redis-server", "redis-benchmark", "redis-cli", "pgbench", "pg_isready", "python3"];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long.
    #[arg(long, default_value_t = CI_MINUTES)]
    minutes: f64,
    /// The plan; one of its own, which is printed, if none is given.
    #[arg(long)]
    seed: Option<u64>,
    /// Do it, until standard input ends.
    #[arg(long, hide = true)]
    watched: bool,
}

/// The soak of continuous integration.
pub(crate) fn briefly() -> Result {
    run(&Options { minutes: CI_MINUTES, seed: None, watched: false })
}

/// Which program of a load is not here.
pub(crate) fn lacks() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|program| installed(program).is_none())
}

/// The chore.
pub(crate) fn run(options: &Options) -> Result {
    if let Some(program) = lacks() {
        return Err(format!("{program} is not installed (cargo xtask install)").into());
    }
    let now = || SystemTime::UNIX_EPOCH.elapsed().map_or(1, |now| u64::from(now.subsec_nanos()) << 16 ^ now.as_secs());
    let seed = options.seed.unwrap_or_else(now);
    if options.watched {
        return watched(options.minutes, seed);
    }
    run_command(&mut cargo(&["build", "--release", "--package", "hurdle"]))?;
    run_command(&mut cargo(&["build", "--package", "hurdle-netstack", "--examples"]))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["soak", "--watched", "--minutes", &options.minutes.to_string(), "--seed", &seed.to_string()]);
    let mut child = command.stdin(Stdio::piped()).process_group(0).spawn()?;
    // Its other end closes with this process.
    let pipe = child.stdin.take();
    let status = child.wait()?;
    drop(pipe);
    if status.success() { Ok(()) } else { Err(format!("the soak failed: --seed {seed} repeats its plan").into()) }
}

/// Does it, until it is over or standard input ends.
fn watched(minutes: f64, seed: u64) -> Result {
    let (release, stage) = (release_directory()?, Stage::new()?);
    stage.program(&release.join("hurdle"), "hurdle")?;
    stage.program(&std::env::current_exe()?, "xtask")?;
    let examples = release.with_file_name("debug").join("examples");
    ["slow", "count"].iter().try_for_each(|name| stage.program(&examples.join(name), name).map(drop))?;
    let mut users = vec![User::current()];
    users.extend(User::named(USER).filter(|_| user_id() == 0));
    println!("soak: {minutes} minutes, seed {seed}, as {}", names(&users));

    static STOP: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        STOP.store(true, Ordering::SeqCst);
    });
    let length = Duration::from_secs_f64(minutes * 60.0);
    let soak = |user: &User| -> std::result::Result<Figures, String> {
        let fold = Fold::new(stage.path(), user.clone(), seed).map_err(|error| error.to_string())?;
        let done = run::run(&fold, seed, length, &STOP).map_err(|error| error.to_string());
        if done.is_err() {
            // The others need not go on.
            STOP.store(true, Ordering::SeqCst);
        }
        fold.sweep();
        done
    };
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = users.iter().map(|user| scope.spawn(move || soak(user))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("it panicked".into()))).collect()
    });
    let mut failed = false;
    for (user, done) in users.iter().zip(done) {
        match done {
            Ok(figures) => print!("as {}:\n{figures}", user.name),
            Err(error) => {
                failed = true;
                println!("FAILED as {}, seed {seed}: {error}", user.name);
            }
        }
    }
    if failed { Err("the soak failed".into()) } else { Ok(()) }
}

fn names(users: &[User]) -> String {
    users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>().join(" and ")
}
