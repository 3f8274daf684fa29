//! The command line, as clap reads it.

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};
use hurdle_proto::spec::Spec;

/// Sub-environments whose system servers you choose.
#[derive(Debug, Parser)]
#[command(name = "hurdle", version, max_term_width = 110, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Print for programs: JSON, one value.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program (your shell, if you name none) in an environment of its own.
    Run(Run),
    /// List your environments; with a name, one and all about its servers.
    Ls {
        /// The environment.
        env: Option<String>,
    },
    /// List an environment's processes.
    Ps {
        /// The environment.
        env: String,
    },
    /// Run one more program (your shell, if you name none) in an environment.
    Enter {
        /// The environment.
        env: String,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true)]
        command: Vec<OsString>,
    },
    /// Wait for the end of an environment, and exit as its program did.
    Wait {
        /// The environment.
        env: String,
    },
    /// End an environment, all of it; or send a signal to its first program.
    Kill {
        /// Environments.
        #[arg(required = true)]
        envs: Vec<String>,
        /// A signal, by name or number, for the first program alone.
        #[arg(short, long, value_parser = signal)]
        signal: Option<i32>,
    },
    /// Replace a server while the programs run.
    Swap {
        /// The environment.
        env: String,
        /// What to replace by what: `net=none`, `net=local`.
        #[arg(value_name = "INTERFACE=SPEC", value_parser = assignment)]
        to: (String, Spec),
    },
    /// List interfaces and their calls, and call anything.
    Rpc {
        /// The environment.
        env: String,
        /// `IFACE` lists its calls, `IFACE.CALL` calls one; neither lists the interfaces.
        call: Option<String>,
        /// The call's arguments, each as JSON; a bare word is a string.
        #[arg(allow_negative_numbers = true)]
        arguments: Vec<String>,
    },
    /// Try each kernel facility that hurdle needs, and say what to do about what is missing.
    Doctor,
    /// Show what hurdle does, in a few seconds, with nothing but this binary.
    Demo,
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print a page of the documentation that is made from the program's own tables.
    #[command(hide = true)]
    Docs {
        /// `compatibility`.
        page: String,
    },
    /// Serve an interface on a bootstrap channel (what a core starts).
    #[command(hide = true)]
    Server {
        /// The interface.
        interface: String,
    },
    /// A part of `hurdle demo`.
    #[command(hide = true)]
    DemoPeer {
        /// Its arguments.
        arguments: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Its files: `share`, or `root:DIR` (another system's tree).
    #[arg(long, value_name = "SPEC")]
    pub(crate) fs: Option<Spec>,
    /// Its network: `share`, `none` (loopback alone), or `local` (ports of its own, and data between its programs moves
    /// faster than over loopback; new connections are slower).
    #[arg(long, value_name = "SPEC")]
    pub(crate) net: Option<Spec>,
    /// Who it is: `same`, or `root` (root inside, nobody outside).
    #[arg(long, value_name = "SPEC")]
    pub(crate) auth: Option<Spec>,
    /// Its processes: `own`, or `own,hostname=NAME`.
    #[arg(long, value_name = "SPEC")]
    pub(crate) proc: Option<Spec>,
    /// A server of yours: serve interface NAME by a program.
    #[arg(long = "server", value_name = "NAME=PROGRAM", value_parser = assignment)]
    pub(crate) servers: Vec<(String, Spec)>,
    /// Everything its own, where nothing else is said: `--net local --auth root`.
    #[arg(long)]
    pub(crate) isolated: bool,
    /// Trap what a later `hurdle swap` of its network needs, though `--net share` needs none.
    #[arg(long)]
    pub(crate) swappable: bool,
    /// A name for it.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Return when the program has started; it goes on without a terminal.
    #[arg(long)]
    pub(crate) detach: bool,
    /// Append what a detached program prints to this file; else nobody keeps it.
    #[arg(long, value_name = "FILE", requires = "detach")]
    pub(crate) log: Option<std::path::PathBuf>,
    /// Hand down this open fd too (of those above 2, none goes down by itself).
    #[arg(long = "fd", value_name = "N", value_parser = clap::value_parser!(i32).range(3..256))]
    pub(crate) fds: Vec<i32>,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true)]
    pub(crate) command: Vec<OsString>,
}

fn assignment(text: &str) -> Result<(String, Spec), String> {
    let (name, spec) = text.split_once('=').ok_or("it must read INTERFACE=SPEC, as in `net=none`")?;
    Ok((name.to_string(), spec.parse::<Spec>().map_err(|e| e.to_string())?))
}

fn signal(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().or_else(|| hurdle_sys::process::signal_number(text));
    number
        .filter(|n| (1..=64).contains(n))
        .ok_or_else(|| "no such signal; name one (TERM, HUP, USR1…) or give its number".into())
}
