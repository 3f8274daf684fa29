//! What a command says when it can't: what, why, and what to do; and the exit code that goes with it.

use std::fmt;

use hurdle_wire::CallError;

/// hurdle's own errors, as env(1) and its like have them.
pub(crate) const OWN: u8 = 125;

/// One error for the user.
#[derive(Debug)]
pub(crate) struct Failure {
    text: String,
    /// The exit code.
    pub(crate) code: u8,
    /// The reader of what is printed has gone.
    pub(crate) broken_pipe: bool,
}

impl Failure {
    /// `what` happened, and `why`, which ends with what to do where there is something.
    pub(crate) fn new(what: impl fmt::Display, why: impl fmt::Display) -> Failure {
        Failure::plain(format!("{what}: {why}"))
    }

    /// What another process has put into words.
    pub(crate) fn plain(text: String) -> Failure {
        Failure { text, code: OWN, broken_pipe: false }
    }

    /// The same with another exit code.
    pub(crate) fn code(mut self, code: u8) -> Failure {
        self.code = code;
        self
    }

    /// A call to the environment `env` that failed.
    pub(crate) fn call(env: &str, error: &CallError) -> Failure {
        match error {
            CallError::Dead => Failure::new(env, "it has ended"),
            CallError::Refused(refused) => Failure::new(env, &refused.reason),
            CallError::Misuse(why) => Failure::new(env, why),
            other => Failure::new(env, other),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<hurdle_proto::spec::SpecError> for Failure {
    fn from(e: hurdle_proto::spec::SpecError) -> Failure {
        Failure::plain(e.to_string())
    }
}

impl From<hurdle_layer::Error> for Failure {
    fn from(e: hurdle_layer::Error) -> Failure {
        let broken_pipe = e.kind() == Some(std::io::ErrorKind::BrokenPipe);
        Failure { broken_pipe, ..Failure::plain(e.to_string()) }
    }
}

impl From<hurdle_core::Error> for Failure {
    fn from(e: hurdle_core::Error) -> Failure {
        let code = match &e {
            hurdle_core::Error::Exec { code, .. } => *code,
            _ => OWN,
        };
        Failure::plain(e.to_string()).code(code)
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure { broken_pipe: e.kind() == std::io::ErrorKind::BrokenPipe, ..Failure::plain(e.to_string()) }
    }
}
