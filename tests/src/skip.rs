//! Saying what was not tested.
//!
//! libtest counts a test that returns early as passed. So a skipped test prints `SKIP name: reason` and writes the
//! same line to the file that `HURDLE_SKIPS` names; `cargo xtask test` counts these lines and subtracts them.

use std::io::Write;
use std::path::Path;

/// Where executables are looked for: the system's own directories, whatever the caller's PATH is.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment variable that names the file of `SKIP` lines.
pub const FILE: &str = "HURDLE_SKIPS";

/// Reports that the test called `name` was not run, and why.
pub fn skip(name: &str, reason: &str) {
    let line = format!("SKIP {name}: {reason}\n");
    eprint!("{line}");
    if let Some(file) = std::env::var_os(FILE) {
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(&file);
        // One write, so that lines of tests that run side by side stay whole.
        opened.and_then(|mut file| file.write_all(line.as_bytes())).expect("the file HURDLE_SKIPS names takes a line");
    }
}

/// The first of `programs` that is not installed.
pub fn missing<'a>(programs: &[&'a str]) -> Option<&'a str> {
    let found = |program: &str| PATH.split(':').any(|dir| Path::new(dir).join(program).exists());
    programs.iter().copied().find(|program| !found(program))
}
