//! Copy-on-write environments under test, and the host beside them, which they must not change.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::finish::{Finished, finish};
use crate::skip;
use crate::snapshot::Snapshot;
use crate::{Hurdle, Scene};

/// How long one script may take.
const LIMIT: Duration = Duration::from_secs(240);

/// Where a system keeps what its administrator installs and sets. Home directories, /tmp and logs are left out: other programs
/// of the host write there while the tests run.
pub const SYSTEM: [&str; 8] =
    ["/etc", "/usr", "/opt", "/srv", "/boot", "/var/lib/dpkg", "/var/lib/apt/extended_states", "/var/spool"];

/// Where `cargo xtask install` keeps Debian packages that nothing has installed.
pub const PACKAGES: &str = "/var/cache/hurdle-test/packages";

/// Options of an environment where the user is who he was.
pub const SAME: &[&str] = &["--fs", "cow"];

/// Options of one where he is root.
pub const ROOT: &[&str] = &["--fs", "cow", "--auth", "root"];

/// One test: the command, parts of the host that it may not change, and a directory of the host that is the test's own.
#[derive(Debug)]
pub struct Cow {
    /// The command under test.
    pub hurdle: Hurdle,
    dir: TempDir,
    host: Snapshot,
}

impl Cow {
    /// Watches `paths` and the test's own directory, once `prepare` has filled it.
    pub fn watching<P: AsRef<Path>>(paths: &[P], prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::Builder::new().prefix("hurdle-cow-").tempdir().expect("a temporary directory");
        prepare(dir.path());
        let own = [dir.path()];
        let paths: Vec<&Path> = paths.iter().map(AsRef::as_ref).chain(own).collect();
        let host = Snapshot::of(&paths);
        Self { hurdle: Hurdle::new(), dir, host }
    }

    /// Watches [`SYSTEM`].
    pub fn watching_system() -> Self {
        let cow = Self::watching(&SYSTEM, |_| {});
        assert!(cow.host.len() > 1000, "the host has files");
        cow
    }

    /// The test's own directory on the host.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the test's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// `hurdle run OPTIONS -- PROGRAM` in the test's own directory.
    pub fn command(&self, options: &[&str], program: impl AsRef<OsStr>) -> Command {
        let mut command = self.hurdle.run(options, program);
        command.current_dir(self.dir());
        command
    }

    /// Runs a script of the shell inside of an environment, in the test's own directory.
    #[track_caller]
    pub fn sh(&self, options: &[&str], script: &str) -> Finished {
        finish(self.command(options, "/bin/sh").args(["-ec", script]), LIMIT)
    }

    /// The same as root, which has to succeed; its standard output.
    #[track_caller]
    pub fn root(&self, script: &str) -> String {
        self.sh(ROOT, script).success().stdout
    }

    /// What `hurdle ARGUMENTS` writes to its standard output; it has to succeed.
    #[track_caller]
    pub fn hurdle(&self, arguments: &[&str]) -> String {
        finish(self.hurdle.command().args(arguments).current_dir(self.dir()), LIMIT).success().stdout
    }

    /// # Panics
    /// Panics if the host has changed.
    #[track_caller]
    pub fn assert_untouched(&self) {
        self.host.assert_untouched();
    }

    /// The end of the test: the host is as it was, and nothing is left of the environments.
    ///
    /// # Panics
    /// Panics if it is not so.
    #[track_caller]
    pub fn end(self) {
        self.assert_untouched();
        self.hurdle.assert_nothing_left();
    }
}

/// Runs a script natively and in environments with each of `worlds`, each time in a directory of its own that `prepare` has filled
/// on the host. All have to print the same, with the directory's name as `DIR`; the environments may not change the host.
///
/// # Panics
/// Panics if a script fails, or if it is not so.
#[track_caller]
pub fn as_natively(prepare: &str, script: &str, worlds: &[&[&str]]) {
    let prepare = |dir: &Path| {
        shell(Command::new("/bin/sh"), prepare, dir).success();
    };
    let shown = |done: Finished, dir: &Path| done.stdout.replace(dir.to_str().expect("a plain path"), "DIR");
    let native = tempfile::Builder::new().prefix("hurdle-cow-").tempdir().expect("a temporary directory");
    prepare(native.path());
    let expected = shown(shell(Command::new("/bin/sh"), script, native.path()).success(), native.path());
    for options in worlds {
        let cow = Cow::watching::<&str>(&[], prepare);
        let done = shell(cow.command(options, "/bin/sh"), script, cow.dir()).success();
        let found = shown(done, cow.dir());
        let first = expected.lines().zip(found.lines()).find(|(expected, found)| expected != found);
        assert!(
            found == expected,
            "{options:?}: first difference (native, inside): {first:?}\n{expected}\n---\n{found}"
        );
        cow.end();
    }
}

fn shell(mut command: Command, script: &str, dir: &Path) -> Finished {
    command.args(["-ec", script]).current_dir(dir).env("PATH", skip::PATH).env("LC_ALL", "C.UTF-8").env("HOME", dir);
    finish(command.env("TMPDIR", dir), LIMIT)
}

/// The programs that a test needs: true, with a `SKIP` line, if one is missing.
pub fn lacks(test: &str, programs: &[&str]) -> bool {
    Scene::new(test, false).lacks(programs)
}

/// The worlds of a test that holds for both users and both identities.
pub const BOTH: &[&[&str]] = &[SAME, ROOT];
