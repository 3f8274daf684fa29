//! What a shell asks while its user types: the names of his environments, and the kinds of servers.
//!
//! The script that `hurdle completions` prints calls this program, with [`VARIABLE`] set, at each press of the key.

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output;

/// Set by the script; not a name that a user would set for something else.
const VARIABLE: &str = "HURDLE_COMPLETE";

/// bash breaks words at `=` and `:`, and replaces what stands behind the last of them. So the words are taken from the line
/// itself, and answers are cut.
const BASH: &str = r#"_hurdle() {
    local line="${COMP_LINE:0:COMP_POINT}" words cut
    read -ra words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    local last=$(( ${#words[@]} - 1 ))
    local IFS=$'\013'
    COMPREPLY=( $(HURDLE_COMPLETE=bash _CLAP_IFS="$IFS" _CLAP_COMPLETE_INDEX="$last" _CLAP_COMPLETE_COMP_TYPE="$COMP_TYPE" \
        _CLAP_COMPLETE_SPACE=false hurdle -- "${words[@]}" 2> /dev/null) )
    cut="${words[last]%"${words[last]##*[=:]}"}"
    COMPREPLY=( "${COMPREPLY[@]#"$cut"}" )
    [[ "${COMPREPLY-}" =~ [=/:+]$ ]] && compopt -o nospace 2> /dev/null
    return 0
}
complete -o bashdefault -o default -F _hurdle hurdle
"#;

/// Answers the shell, and ends, if it is one that asks.
pub(crate) fn answer() {
    if std::env::var_os(VARIABLE).is_some() {
        CompleteEnv::with_factory(<Cli>::command).var(VARIABLE).complete();
    }
}

/// The script of a shell.
pub(crate) fn script(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    if shell == clap_complete::Shell::Bash {
        return output::print(BASH);
    }
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string()).ok_or_else(|| Failure::new(shell, "no such shell"))?;
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, "hurdle", "hurdle", "hurdle", &mut script)?;
    output::print(String::from_utf8_lossy(&script))
}

/// Those of `names` that begin like what was typed.
fn matching<'a>(typed: &OsStr, names: impl IntoIterator<Item = &'a str>) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    names.into_iter().filter(|name| name.starts_with(&*typed)).map(CompletionCandidate::new).collect()
}

/// Environments that run.
pub(crate) fn environments(typed: &OsStr) -> Vec<CompletionCandidate> {
    let names = hurdle_core::names().unwrap_or_default();
    matching(typed, names.iter().map(String::as_str))
}

/// The kinds of servers of a standard interface, each up to where the user's own words begin.
fn kinds(interface: &str) -> impl Iterator<Item = &'static str> {
    let kinds = match interface {
        "fs" => hurdle_fs::KINDS,
        "net" => hurdle_net::KINDS,
        "auth" => hurdle_auth::KINDS,
        "proc" => hurdle_proc::KINDS,
        _ => &[],
    };
    kinds.iter().map(|kind| kind.split_inclusive([':', '=']).next().unwrap_or(kind))
}

/// Kinds of fs servers.
pub(crate) fn fs(typed: &OsStr) -> Vec<CompletionCandidate> {
    matching(typed, kinds("fs"))
}

/// Kinds of net servers.
pub(crate) fn net(typed: &OsStr) -> Vec<CompletionCandidate> {
    matching(typed, kinds("net"))
}

/// Kinds of auth servers.
pub(crate) fn auth(typed: &OsStr) -> Vec<CompletionCandidate> {
    matching(typed, kinds("auth"))
}

/// Kinds of proc servers.
pub(crate) fn proc(typed: &OsStr) -> Vec<CompletionCandidate> {
    matching(typed, kinds("proc"))
}

/// What a swap can put in the place of what.
pub(crate) fn swaps(typed: &OsStr) -> Vec<CompletionCandidate> {
    let all = crate::policy::STANDARD.iter().flat_map(|name| kinds(name).map(move |kind| format!("{name}={kind}")));
    let all: Vec<String> = all.collect();
    matching(typed, all.iter().map(String::as_str))
}
