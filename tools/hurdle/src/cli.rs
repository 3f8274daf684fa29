//! The command line, as clap reads it.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::engine::ArgValueCompleter;
use hurdle_proto::spec::Spec;

use crate::complete;

use crate::cow::OnExit;

/// Sub-environments whose system servers you choose.
#[derive(Debug, Parser)]
#[command(name = "hurdle", version, max_term_width = 110)]
pub(crate) struct Cli<C: Subcommand = Command> {
    /// Print for programs: JSON, one value.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: C,
}

/// What each environment waits for. To read one of these as one of all commands takes longer than most of what it does.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub(crate) enum Launch {
    /// Run a program (your shell, if you name none) in an environment of its own.
    Run(Run),
    /// Serve an interface on a bootstrap channel (what a core starts).
    #[command(hide = true)]
    Server {
        /// The interface.
        interface: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Launch(Launch),
    /// List your environments, and those in them (as `outer/inner`); with a name, one and all about its servers.
    Ls {
        /// The environment.
        #[arg(add = ArgValueCompleter::new(complete::environments))]
        env: Option<String>,
    },
    /// List an environment's processes.
    Ps {
        /// The environment.
        #[arg(add = ArgValueCompleter::new(complete::environments))]
        env: String,
    },
    /// Run one more program (your shell, if you name none) in an environment.
    Enter {
        /// The environment.
        #[arg(add = ArgValueCompleter::new(complete::environments))]
        env: String,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, value_hint = ValueHint::CommandWithArguments)]
        command: Vec<OsString>,
    },
    /// Wait for the end of an environment, and exit as its program did.
    Wait {
        /// The environment.
        #[arg(add = ArgValueCompleter::new(complete::environments))]
        env: String,
    },
    /// End an environment, all of it; or send a signal to its first program.
    Kill {
        /// Environments.
        #[arg(required = true, add = ArgValueCompleter::new(complete::environments))]
        envs: Vec<String>,
        /// A signal, by name or number, for the first program alone; `-9` and `-HUP` are short for it.
        #[arg(short, long, value_parser = signal)]
        signal: Option<i32>,
    },
    /// Replace a server while the programs run.
    Swap {
        /// The environment.
        #[arg(add = ArgValueCompleter::new(complete::environments))]
        env: String,
        /// What to replace by what: `net=none`, `net=local`.
        #[arg(value_name = "INTERFACE=SPEC", value_parser = assignment, add = ArgValueCompleter::new(complete::swaps))]
        to: (String, Spec),
    },
    /// List interfaces and their calls, and call anything.
    Rpc {
        /// The environment.
        #[arg(add = ArgValueCompleter::new(complete::environments))]
        env: String,
        /// `IFACE` lists its calls, `IFACE.CALL` calls one; neither lists the interfaces.
        call: Option<String>,
        /// The call's arguments, each as JSON; a bare word is a string.
        #[arg(allow_negative_numbers = true)]
        arguments: Vec<String>,
    },
    /// Print every message and every trapped call, decoded, until the environment ends or you do.
    Trace(Trace),
    /// Show what an environment with copy-on-write files changed.
    Diff(Diff),
    /// Carry what an environment changed to the host's files.
    Commit(Commit),
    /// Throw away what an environment changed.
    Discard {
        /// Layers, by name or by path.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// List layers: what environments wrote and you kept.
    Layers {
        #[command(subcommand)]
        action: Option<Layers>,
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
    /// Make copies of this process, each to go on as a `hurdle run` (what a core starts for sub-environments).
    #[command(hide = true)]
    Porter,
    /// Ask what is to become of a layer, and tell it by the exit code (what `hurdle run --on-exit ask` starts).
    #[command(hide = true)]
    Ask {
        /// The layer.
        name: String,
    },
    /// Fill a layer in memory from one on disk, or put it in that one's place (what `hurdle run --fs cow:NAME,size=` starts).
    #[command(hide = true)]
    Memory {
        /// `load` or `store`.
        #[arg(value_parser = ["load", "store"])]
        what: String,
        /// The layer on disk.
        path: PathBuf,
    },
    /// Do nothing until a signal ends it (the first program of an environment that another program holds).
    #[command(hide = true)]
    Idle,
    /// A part of `hurdle demo`.
    #[command(hide = true)]
    DemoPeer {
        /// Its arguments.
        arguments: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Its files: `share`; `cow` (yours, and all changes are forgotten) or `cow:NAME` (kept apart under a name); `ro`
    /// (yours, to read); `root:DIR` (another system's tree). `cow` and `ro` take paths: `hide=`, `share=`, `ro=`.
    #[arg(long, value_name = "SPEC", add = ArgValueCompleter::new(complete::fs))]
    pub(crate) fs: Option<Spec>,
    /// Its network: `share`, `none` (loopback alone), or `local` (ports of its own, and data between its programs moves
    /// faster than over loopback; new connections are slower).
    #[arg(long, value_name = "SPEC", add = ArgValueCompleter::new(complete::net))]
    pub(crate) net: Option<Spec>,
    /// Who it is: `same`, or `root` (root inside, nobody outside).
    #[arg(long, value_name = "SPEC", add = ArgValueCompleter::new(complete::auth))]
    pub(crate) auth: Option<Spec>,
    /// Its processes: `own`, or `own,hostname=NAME`.
    #[arg(long, value_name = "SPEC", add = ArgValueCompleter::new(complete::proc))]
    pub(crate) proc: Option<Spec>,
    /// A server of yours: serve interface NAME by a program.
    #[arg(long = "server", value_name = "NAME=PROGRAM", value_parser = assignment)]
    pub(crate) servers: Vec<(String, Spec)>,
    /// Everything its own, where nothing else is said: `--fs cow --net local --auth root`.
    #[arg(long)]
    pub(crate) isolated: bool,
    /// What becomes of the changes of `--fs cow` at the end [default: ask, on a terminal, else discard; keep if named].
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) on_exit: Option<OnExit>,
    /// The same as `--on-exit keep`.
    #[arg(long, conflicts_with = "on_exit")]
    pub(crate) keep: bool,
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
    pub(crate) log: Option<PathBuf>,
    /// Hand down this open fd too (of those above 2, none goes down by itself).
    #[arg(long = "fd", value_name = "N", value_parser = clap::value_parser!(i32).range(3..256))]
    pub(crate) fds: Vec<i32>,
    /// End with the channel that this open fd is, on which its core is called (what `hurdle-embed` holds).
    #[arg(long, hide = true, value_name = "N", conflicts_with = "detach", value_parser = clap::value_parser!(i32).range(3..256))]
    pub(crate) owner: Option<i32>,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// An environment that runs, or a file that `--record` wrote (with a `/` in it, if an environment has the same name).
    #[arg(value_name = "ENV|FILE", add = ArgValueCompleter::new(complete::environments), value_hint = ValueHint::FilePath)]
    pub(crate) what: PathBuf,
    /// Calls of this interface alone (`net` has the trapped calls too); may be given several times.
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) iface: Vec<String>,
    /// What this process calls alone: its number as `hurdle ps` shows it, or outside.
    #[arg(long, value_name = "N")]
    pub(crate) pid: Option<u32>,
    /// Write it to this file too: lines of JSON, which `hurdle trace FILE` prints again.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) record: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// An environment that runs, or a layer that was kept.
    #[arg(value_name = "ENV|NAME")]
    pub(crate) name: String,
    /// These paths, and what lies below them; else all.
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// How much changed, and the sum.
    #[arg(long)]
    pub(crate) stat: bool,
    /// The contents, as a patch for `git apply` or `patch -p1`.
    #[arg(long, conflicts_with_all = ["stat", "json"])]
    pub(crate) patch: bool,
    /// Write a tarball of the changes, as a layer of an OCI image; `-` is the standard output.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["stat", "json", "patch"])]
    pub(crate) tar: Option<PathBuf>,
    /// List files of which only the time of the last change is another.
    #[arg(long)]
    pub(crate) times: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// An environment that runs, or a layer that was kept.
    #[arg(value_name = "ENV|NAME")]
    pub(crate) name: String,
    /// These paths, and what lies below them; else all.
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Ask for each change.
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Replace what changed on the host meanwhile, too.
    #[arg(long)]
    pub(crate) force: bool,
    /// Commit though the environment still runs: files are copied as they are at the moment, and stay in the layer.
    #[arg(long)]
    pub(crate) running: bool,
    /// Forget the rest of a commit that was interrupted; what it had carried over stays on the host.
    #[arg(long, conflicts_with_all = ["paths", "interactive", "force", "running"])]
    pub(crate) abort: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Layers {
    /// Remove layers that nobody uses and no other layer lies on.
    Prune {
        /// Only those that are older than so many days.
        #[arg(long, value_name = "DAYS", default_value_t = 0)]
        older: u64,
        /// Say which, and remove none.
        #[arg(long)]
        dry_run: bool,
    },
    /// Copy what an environment has changed so far, while it goes on.
    Snapshot {
        /// An environment that runs, or a layer that was kept.
        #[arg(value_name = "ENV|NAME")]
        from: String,
        /// The name of the copy.
        name: String,
    },
}

fn assignment(text: &str) -> Result<(String, Spec), String> {
    let (name, spec) = text.split_once('=').ok_or("it must read INTERFACE=SPEC, as in `net=none`")?;
    Ok((name.to_string(), spec.parse::<Spec>().map_err(|e| e.to_string())?))
}

/// Reads a command line. An error is also what was asked for: help, or the version.
pub(crate) fn read(given: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let arguments = arguments(given);
    if arguments.get(1).is_some_and(|command| command == "run" || command == "server") {
        let Cli { json, command } = Cli::<Launch>::try_parse_from(arguments)?;
        return Ok(Cli { json, command: Command::Launch(command) });
    }
    Cli::try_parse_from(arguments)
}

/// The command line with `kill -9` and `kill -HUP` written as `kill --signal=…`, as kill(1) takes them.
fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut given: Vec<OsString> = given.into_iter().collect();
    let is_option = |argument: &OsString| argument.to_string_lossy().starts_with('-');
    let Some(kill) = given.iter().skip(1).position(|argument| !is_option(argument)).map(|at| at + 1) else {
        return given;
    };
    if given[kill] != "kill" {
        return given;
    }
    for argument in given.iter_mut().skip(kill + 1).take_while(|argument| *argument != "--") {
        let name = argument.to_str().and_then(|text| text.strip_prefix('-')).map(str::to_string);
        let is_signal = |name: &str| {
            let plain = |c: char| c.is_ascii_digit() || c.is_ascii_uppercase();
            !name.is_empty() && name.chars().all(plain)
        };
        if let Some(name) = name.filter(|name| is_signal(name)) {
            *argument = format!("--signal={name}").into();
        }
    }
    given
}

fn signal(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().or_else(|| hurdle_sys::process::signal_number(text));
    number
        .filter(|n| (1..=64).contains(n))
        .ok_or_else(|| "no such signal; name one (TERM, HUP, USR1…) or give its number".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments_of(line: &str) -> String {
        let words = arguments(line.split(' ').map(OsString::from));
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn signals_are_named_as_kill_takes_them() {
        for (given, read) in [
            ("hurdle kill -9 web", "hurdle kill --signal=9 web"),
            ("hurdle --json kill web -HUP", "hurdle --json kill web --signal=HUP"),
            ("hurdle kill -SIGTERM a b", "hurdle kill --signal=SIGTERM a b"),
            ("hurdle kill -s 9 web", "hurdle kill -s 9 web"),
            ("hurdle kill --help", "hurdle kill --help"),
            ("hurdle kill -- -9", "hurdle kill -- -9"),
            ("hurdle run kill -9 web", "hurdle run kill -9 web"),
            ("hurdle", "hurdle"),
        ] {
            assert_eq!(arguments_of(given), read);
        }
    }

    #[test]
    fn a_launch_is_read_as_among_all_commands() {
        for line in [
            "run",
            "run --net local --json -- true",
            "run --help",
            "run --nothing",
            "server net",
            "server",
            "server --help",
        ] {
            let words = || std::iter::once("hurdle").chain(line.split(' ')).map(OsString::from);
            let said = |read: Result<Cli, clap::Error>| match read {
                Ok(cli) => format!("{cli:?}"),
                Err(e) => format!("{} {e}", e.exit_code()),
            };
            assert_eq!(said(read(words())), said(Cli::try_parse_from(words())), "{line}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
        let kill = read(["hurdle", "kill", "-KILL", "web"].map(OsString::from)).unwrap();
        assert!(matches!(kill.command, Command::Kill { signal: Some(9), .. }));
        assert!(read(["hurdle", "kill", "-99", "web"].map(OsString::from)).is_err());
    }
}
