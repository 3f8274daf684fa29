//! The `hurdle` command: it reads the command line, and hands over to the module of each command.
//!
//! It holds all standard servers too: a core starts `hurdle server NAME`, so one file installs everything. `policy` says what
//! server kinds mean; `failure` what is said when something can't be done; `output` how results are printed.

mod cli;
mod commands;
mod failure;
mod output;
mod policy;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use cli::{Cli, Command};
use commands::{enter, look, rpc, run};
use failure::{Failure, OWN};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(OWN) } else { ExitCode::SUCCESS };
        }
    };
    match perform(cli) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("hurdle: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn perform(cli: Cli) -> Result<ExitCode, Failure> {
    let json = cli.json;
    match cli.command {
        Command::Run(options) => run::run(options),
        Command::Ls { env } => look::ls(env.as_deref(), json),
        Command::Ps { env } => look::ps(&env, json),
        Command::Enter { env, command } => enter::enter(&env, command),
        Command::Wait { env } => look::wait(&env, json),
        Command::Kill { envs, signal } => look::kill(&envs, signal),
        Command::Swap { env, to: (interface, spec) } => look::swap(&env, interface, spec, json),
        Command::Rpc { env, call, arguments } => rpc::rpc(&env, call.as_deref(), &arguments, json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "hurdle", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Docs { page } => match page.as_str() {
            "compatibility" => {
                print!("{}", hurdle_net::compatibility_markdown());
                Ok(ExitCode::SUCCESS)
            }
            _ => Err(Failure::new(page, "no such page; there is compatibility")),
        },
        Command::Server { interface } => match interface.as_str() {
            "fs" => Ok(hurdle_fs::serve()),
            "net" => Ok(hurdle_net::serve()),
            "auth" => Ok(hurdle_auth::serve()),
            "proc" => Ok(hurdle_proc::serve()),
            _ => Err(Failure::new(interface, "no standard server has this interface")),
        },
        Command::Doctor => commands::doctor::doctor(json),
        Command::Demo => commands::demo::demo(json),
        Command::DemoPeer { arguments } => commands::demo::peer(&arguments),
    }
}
