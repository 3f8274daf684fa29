//! The end of an environment with copy-on-write files: what becomes of what it changed.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use hurdle_layer::{Kind, Layer, Options, Stat, View, join_renames};
use hurdle_sys::tty;

use super::{commit, diff, inside, layers};
use crate::failure::Failure;

/// How many changes are shown before the question.
const SHOWN: usize = 10;

/// What the user wants to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// All of it goes to the host.
    Commit,
    /// He is asked for each change.
    Pick,
    /// It stays as a layer.
    Keep,
    /// It goes.
    Discard,
}

const CHOICES: [Choice; 4] = [Choice::Commit, Choice::Pick, Choice::Keep, Choice::Discard];

impl Choice {
    /// The exit code that tells of it.
    fn code(self) -> ExitCode {
        ExitCode::from(10 + self as u8)
    }
}

/// `hurdle ask`: the question, asked by a process that can read the layer.
pub(crate) fn ask_here(name: &str) -> Result<ExitCode, Failure> {
    Ok(ask(&layers::find(name)?)?.code())
}

/// Shows what `layer` holds, and asks. Without changes there is nothing to ask: [`Choice::Discard`]. Without a terminal nobody
/// answers: [`Choice::Keep`], as after Ctrl-C.
pub(crate) fn ask(layer: &Layer) -> Result<Choice, Failure> {
    if inside::needed(layer)? {
        let code = inside::again(Some(layer), ["ask", "layer"].iter().map(Into::into), true)?;
        let choice = CHOICES.iter().position(|choice| choice.code() == code);
        return choice.map(|at| CHOICES[at]).ok_or_else(|| Failure::new(layer.name(), "nothing could be asked"));
    }
    let mut view = View::open(layer, Path::new("/"), inside::owners()?)?;
    let mut changes = hurdle_layer::walk(&mut view, Options::default())?;
    join_renames(&view, &mut changes)?;
    if changes.is_empty() {
        return Ok(Choice::Discard);
    }
    let colour = io::stderr().is_terminal() && diff::colour();
    // What lies in a new directory is told by the directory.
    let top = changes.iter().filter(|change| {
        let parent = |other: &&hurdle_layer::Change| {
            other.kind == Kind::Added && other.path != change.path && change.path.starts_with(&other.path)
        };
        change.kind != Kind::Added || !changes.iter().take_while(|other| other.path < change.path).any(|c| parent(&c))
    });
    let mut err = io::stderr().lock();
    let mut shown = 0;
    for change in top.take(SHOWN) {
        shown += 1;
        writeln!(err, "  {}", diff::line(change, None, colour))?;
    }
    if changes.len() > shown {
        writeln!(err, "  …")?;
    }
    writeln!(err, "hurdle: {}", diff::total(&Stat::of(&changes)))?;
    if !io::stdin().is_terminal() {
        return Ok(Choice::Keep);
    }
    loop {
        write!(err, "[c]ommit [k]eep [d]iscard [s]how diff [p]ick: ")?;
        err.flush()?;
        let key = tty::read_key(io::stdin())?.to_ascii_lowercase();
        writeln!(err, "{}", if key.is_ascii_graphic() { key as char } else { ' ' })?;
        match key {
            b'c' => return Ok(Choice::Commit),
            // Ctrl-C, Ctrl-D and the end of input.
            b'k' | 3 | 4 | 0 => return Ok(Choice::Keep),
            b'd' => return Ok(Choice::Discard),
            b'p' => return Ok(Choice::Pick),
            b's' => hurdle_layer::patch(&view, &changes, &mut io::stdout().lock())?,
            _ => {}
        }
    }
}

/// Carries out a choice to commit; the caller has the layer's lock. After a refusal the layer is as it was.
pub(crate) fn carry_out(layer: &Layer, choice: Choice) -> Result<(), Failure> {
    let code = match choice {
        Choice::Commit => commit::all(layer, false)?,
        Choice::Pick => commit::all(layer, true)?,
        Choice::Keep | Choice::Discard => ExitCode::SUCCESS,
    };
    // Why not, the process that tried has said.
    if code == ExitCode::SUCCESS { Ok(()) } else { Err(Failure::new(layer.name(), "it is not committed")) }
}
