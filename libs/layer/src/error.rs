//! What can go wrong with a layer, in words for the user.

use std::io;
use std::path::{Path, PathBuf};

use crate::at;

/// The result of most calls of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong with a layer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no layer of this name.
    #[error("no layer {}: `hurdle layers` lists those there are", text(.0))]
    Missing(PathBuf),
    /// A layer, or something else, has this name already.
    #[error("{} is there already", text(.0))]
    Exists(PathBuf),
    /// A later hurdle made it.
    #[error(
        "{} has layer version {found}, and this hurdle knows versions up to {known}: use the hurdle that made it", text(.path)
    )]
    Newer {
        /// The layer.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The latest version that this crate knows.
        known: u32,
    },
    /// Somebody else uses it.
    #[error("{} is in use by {by}", text(.path))]
    Busy {
        /// The layer.
        path: PathBuf,
        /// Who says to use it.
        by: String,
    },
    /// Other layers lie on it, so it must stay as it is.
    #[error("{} is the base of {}, so it stays as it is", text(.path), .by.join(", "))]
    Frozen {
        /// The layer.
        path: PathBuf,
        /// The names of the layers that lie on it.
        by: Vec<String>,
    },
    /// Files in it belong to ids of an environment, which the caller is not.
    #[error("{} holds files of ids that are yours only inside an environment", text(.0))]
    Foreign(PathBuf),
    /// A name that no layer can have.
    #[error("{0:?} can't be the name of a layer: letters, digits, `-`, `_` and `.` (not first), 100 at most")]
    Name(String),
    /// What lies there is no layer as this crate leaves them.
    #[error("{}: {why}", text(.path))]
    Damaged {
        /// The layer or the file in it.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The kernel refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Its answer.
        source: io::Error,
    },
}

impl Error {
    /// The kernel's answer, where there is one.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Error::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// Whether [`at::is_of_moving`] holds of it.
    pub(crate) fn is_of_moving(&self) -> bool {
        let Error::Io { source, .. } = self else { return false };
        rustix::io::Errno::from_io_error(source).is_some_and(at::is_of_moving)
    }

    pub(crate) fn damaged(path: &Path, why: impl Into<String>) -> Error {
        Error::Damaged { path: path.into(), why: why.into() }
    }
}

fn text(path: &Path) -> String {
    crate::text::path(path)
}

/// Says what was tried when the kernel refuses.
pub(crate) trait At<T> {
    /// `what` is asked for only if it failed.
    fn at(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Io { what: what(), source: e.into() })
    }
}
