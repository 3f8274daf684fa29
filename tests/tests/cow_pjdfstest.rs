//! pjdfstest, a suite for the system calls on files of POSIX, as root inside of a copy-on-write environment: the same results as on
//! the host's file system but for a reviewed list with a reason for each.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::cow::{self, ROOT};
use hurdle_tests::differences::{Results, assert_reviewed};
use hurdle_tests::{Cow, Finished, finish};

const LIMIT: Duration = Duration::from_secs(200);

/// All that Linux has; two users that every Debian has, for the tests that change who they are.
const SETTINGS: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"]]
"#;

/// Where a layer rightly differs.
const DIFFERENCES: &str = include_str!("cow/pjdfstest-differences.txt");

/// How many of its tests have to pass where they pass natively.
const AT_LEAST: usize = 300;

/// Reads lines like `chmod::change_perm::fifo    ok`.
fn results(done: &Finished) -> Results {
    let mut results = Results::new();
    for line in done.stdout.lines().filter(|line| !line.starts_with(char::is_whitespace)) {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(result @ ("ok" | "FAILED" | "skipped")), None) =
            (words.next(), words.next(), words.next())
        {
            results.insert(name.to_owned(), result.to_owned());
        }
    }
    results
}

fn suite(mut command: Command, directory: &Path) -> Finished {
    let settings = directory.join("settings.toml");
    command.arg("-c").arg(settings).arg("-p").arg(directory).current_dir(directory);
    finish(command.env("RUST_BACKTRACE", "0"), LIMIT)
}

fn prepare(directory: &Path) {
    std::fs::write(directory.join("settings.toml"), SETTINGS).expect("own directory");
}

#[test]
fn same_results_as_on_the_file_system_of_the_host() {
    if cow::lacks("cow_pjdfstest::same_results_as_on_the_file_system_of_the_host", &["pjdfstest"]) {
        return;
    }
    let native = Cow::watching::<&str>(&[], prepare);
    // An ordinary user is root on the host's own file system where that is shared.
    let command = if nix::unistd::geteuid().is_root() {
        Command::new("pjdfstest")
    } else {
        native.command(&["--auth", "root"], "pjdfstest")
    };
    let native = suite(command, native.dir());
    let cow = Cow::watching::<&str>(&[], prepare);
    let found = suite(cow.command(ROOT, "pjdfstest"), cow.dir());

    let expected = results(&native);
    let passed = expected.values().filter(|result| *result == "ok").count();
    assert!(passed >= AT_LEAST, "only {passed} pass natively: {native}");
    eprintln!("{}", found.stdout);
    assert_reviewed(&expected, &results(&found), DIFFERENCES);
    cow.end();
}
