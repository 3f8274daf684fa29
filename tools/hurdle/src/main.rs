//! The `hurdle` command: it reads the command line, and hands over to the module of each command.
//!
//! It holds all standard servers too: a core starts `hurdle server NAME`, so one file installs everything. `policy` says what
//! server kinds mean; `failure` what is said when something can't be done; `output` how results are printed,
//! `progress` what is said meanwhile.

mod cli;
mod commands;
mod complete;
mod cow;
mod failure;
mod output;
mod policy;
mod progress;

use std::ffi::OsString;
use std::process::ExitCode;

use cli::{Cli, Command, Launch};
use commands::{commit, diff, enter, layers, look, rpc, run, trace};
use failure::{Failure, OWN};
use hurdle_proto::core::door::Client as Door;

fn main() -> ExitCode {
    complete::answer();
    carry_out(std::env::args_os().collect())
}

fn carry_out(arguments: Vec<OsString>) -> ExitCode {
    // The core of the environment that this is in makes ready while the command line is read. Who has come through has no need of it.
    let may_ask =
        arguments.get(1).is_some_and(|command| command == "run") && std::env::var_os(run::UNTRAPPED).is_none();
    let door = may_ask.then(hurdle_core::knock).flatten();
    let done = match cli::read(arguments) {
        Ok(cli) => perform(cli, door),
        Err(e) if e.use_stderr() => {
            let _ = e.print();
            return ExitCode::from(OWN);
        }
        // What was asked for: help, or the version.
        Err(e) => output::printed(e.print()),
    };
    done.unwrap_or_else(|failure| {
        hurdle_core::complain(&failure);
        ExitCode::from(failure.code)
    })
}

/// A server that many may ask at a time, and none of them much.
fn one_heap(serve: fn() -> ExitCode) -> ExitCode {
    hurdle_sys::process::one_heap();
    serve()
}

fn perform(cli: Cli, door: Option<Door>) -> Result<ExitCode, Failure> {
    let json = cli.json;
    match cli.command {
        Command::Launch(Launch::Run(options)) => run::run(options, door),
        Command::Ls { env } => look::ls(env.as_deref(), json),
        Command::Ps { env } => look::ps(&env, json),
        Command::Enter { env, command } => enter::enter(&env, command),
        Command::Wait { env } => look::wait(&env, json),
        Command::Kill { envs, signal } => look::kill(&envs, signal),
        Command::Swap { env, to: (interface, spec) } => {
            look::swap(&env, interface, spec.from_directory(&std::env::current_dir()?), json)
        }
        Command::Rpc { env, call, arguments } => rpc::rpc(&env, call.as_deref(), &arguments, json),
        Command::Trace(options) => trace::trace(&options, json),
        Command::Commit(options) => commit::commit(&options, json),
        Command::Diff(options) => diff::diff(&options, json),
        Command::Discard { names } => layers::discard(&names),
        Command::Layers { action } => layers::layers(action, json),
        Command::Completions { shell } => complete::script(shell),
        Command::Docs { page } => match page.as_str() {
            "compatibility" => output::print(hurdle_net::compatibility_markdown()),
            _ => Err(Failure::new(page, "no such page; there is compatibility")),
        },
        Command::Launch(Launch::Server { interface }) => match interface.as_str() {
            "fs" => Ok(hurdle_fs::serve()),
            "net" => Ok(hurdle_net::serve()),
            "auth" => Ok(one_heap(hurdle_auth::serve)),
            "proc" => Ok(one_heap(hurdle_proc::serve)),
            _ => Err(Failure::new(interface, "no standard server has this interface")),
        },
        Command::Porter => match hurdle_core::serve_porter(|| {
            // The memory that the next command line takes.
            let _ = cli::read(["hurdle", "run", "--net", "local", "--", "true"].map(OsString::from));
        })? {
            // A copy of this process, which is to be another command.
            Some(arguments) => Ok(carry_out(arguments)),
            None => Ok(ExitCode::SUCCESS),
        },
        Command::Ask { name } => commands::exit::ask_here(&name),
        Command::Memory { what, path } => cow::memory_here(what == "store", &path),
        Command::Idle => loop {
            std::thread::park();
        },
        Command::Doctor => commands::doctor::doctor(json),
        Command::Demo => commands::demo::demo(json),
        Command::DemoPeer { arguments } => commands::demo::peer(&arguments),
    }
}
