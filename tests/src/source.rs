//! Files of the source tree that tests are held against.

use std::path::{Path, PathBuf};

/// The workspace's directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace")
}

/// The text of a file of the source tree. `HURDLE_SOURCE` names a copy, for users who may not look into the checkout.
///
/// # Panics
/// Panics if there is no such file.
pub fn read(path: &str) -> String {
    let directory = std::env::var_os("HURDLE_SOURCE").map_or_else(|| root().to_owned(), PathBuf::from);
    let path = directory.join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
