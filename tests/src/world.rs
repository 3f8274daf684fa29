//! The worlds, and running a body in one.
//!
//! A body enters an environment by running this test binary again in there, for that one test, with `HURDLE_INSIDE`
//! set. So the body's own sockets and files are the environment's too.

use std::time::Duration;

use crate::{Hurdle, Scene, skip};

/// Set for the test binary that runs inside an environment.
const INSIDE: &str = "HURDLE_INSIDE";

/// How long a body may take in an environment, all in all.
const LIMIT: Duration = Duration::from_secs(240);

/// Where a body runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// On Linux as it is.
    Native,
    /// In `hurdle run` with these options.
    Env(&'static [&'static str]),
}

/// On Linux as it is.
pub fn native() -> World {
    World::Native
}

/// In an environment that shares all but the processes.
pub fn share() -> World {
    World::Env(&[])
}

/// With a network of its own that carries streams between the environment's processes.
pub fn local() -> World {
    World::Env(&["--net", "local"])
}

/// The same, and root inside.
pub fn local_root() -> World {
    World::Env(&["--net", "local", "--auth", "root"])
}

/// With a network of its own where all goes through the kernel's loopback device.
pub fn none() -> World {
    World::Env(&["--net", "none"])
}

/// With a private layer over all files.
pub fn cow() -> World {
    World::Env(crate::cow::SAME)
}

/// The same, and root inside.
pub fn cow_root() -> World {
    World::Env(crate::cow::ROOT)
}

/// With all of its own.
pub fn isolated() -> World {
    World::Env(&["--isolated"])
}

/// Runs `body` in `world` for the test whose full path, with the crate's name, is `path`.
///
/// # Panics
/// Panics if the body does, and if the environment leaves something behind.
pub fn run(path: &str, world: World, body: fn(&Scene)) {
    let inside = std::env::var_os(INSIDE).is_some();
    let name = path.split_once("::").map_or(path, |(_crate, name)| name);
    let options = match world {
        World::Env(options) if !inside => options,
        _ => return body(&Scene::new(path, inside)),
    };
    let hurdle = Hurdle::new();
    let this = std::env::current_exe().expect("a process knows its executable");
    let mut command = hurdle.run(options, this);
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    // What a body writes to the host's files may be forgotten with it, so it says on stderr what it skips.
    let ended = crate::finish(command.env_remove(skip::FILE), LIMIT);
    ended.stderr.lines().filter_map(|line| line.strip_prefix("SKIP ")?.split_once(": ")).for_each(|(name, reason)| {
        skip::skip(name, reason);
    });
    // A body that was not found would pass as well: libtest is content with no test at all.
    assert!(ended.status.success() && ended.stdout.contains("1 passed"), "in the environment: {ended}");
    hurdle.assert_nothing_left();
}
