//! An environment as a value: launched by a builder, gone when it is dropped, however that comes about.
//!
//! The `hurdle` command does the work, as a child of the program. The two share one channel: on it the program calls the core of
//! the environment, and its end, also by a kill of the program, ends the environment. Nothing here depends on the thread that
//! calls, so it works in a multi-threaded program (a test, a server), and in an environment as well as outside.
//!
//! - `builder`: what the environment is to be, and its launch; `environment`: what can be done with it; `program`: what runs in
//!   it, and its end; `grant`: interfaces that this very process serves.

mod builder;
mod environment;
mod grant;
mod program;

pub use builder::Builder;
pub use environment::Environment;
pub use hurdle_proto as proto;
pub use hurdle_wire as wire;
pub use program::{Child, Program};

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The `hurdle` command can't be run.
    #[error("{0}: {1} (is hurdle installed? `Builder::binary` or HURDLE_BIN name it)")]
    Binary(std::path::PathBuf, #[source] std::io::Error),
    /// The environment could not be; what `hurdle` said.
    #[error("no environment: {0}")]
    Launch(String),
    /// Its core, or a server of it, refused or did not answer.
    #[error("{0}")]
    Call(#[from] hurdle_wire::CallError),
    /// What a server is to be can't be read.
    #[error("{0}")]
    Spec(#[from] hurdle_proto::spec::SpecError),
    /// A system call of this process failed.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// The page for users, whose examples are tested.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/embedding.md")]
mod embedding {}
