//! What files do, in a copy-on-write environment as on Linux as it is: memory maps, programs, locks, attributes, links, holes,
//! nameless files, directories, names, times, notification; on fresh files and on files of the host.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::cow::{self, ROOT, SAME};
use hurdle_tests::differences::{Results, assert_reviewed};
use hurdle_tests::{Cow, Finished, finish};

const LIMIT: Duration = Duration::from_secs(120);

const PYTHON: &str = "/usr/bin/python3";

const PROGRAM: &str = include_str!("cow/semantics.py");

/// Where a layer rightly differs.
const DIFFERENCES: &str = include_str!("cow/semantics-differences.txt");

/// How many tests the program has, at least.
const AT_LEAST: usize = 55;

fn results(done: &Finished) -> Results {
    let lines = done.stdout.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(name, result)| (name.to_owned(), result.to_owned())).collect()
}

/// Makes the files of the host that the tests work on.
fn prepare(directory: &Path) {
    let program = directory.join("semantics.py");
    std::fs::write(&program, PROGRAM).expect("own directory");
    finish(Command::new(PYTHON).arg(program).arg("prepare").arg(directory), LIMIT).success();
}

fn tests(mut command: Command, directory: &Path) -> Finished {
    command.arg(directory.join("semantics.py")).arg("run").arg(directory);
    finish(&mut command, LIMIT).success()
}

fn same_results(test: &str, options: &[&str]) {
    if cow::lacks(&format!("cow_semantics::{test}"), &["python3"]) {
        return;
    }
    let native = tempfile::Builder::new().prefix("hurdle-cow-").tempdir().expect("a temporary directory");
    prepare(native.path());
    let expected = tests(Command::new(PYTHON), native.path());
    let expected_results = results(&expected);
    assert!(expected_results.len() >= AT_LEAST, "only {} results natively: {expected}", expected_results.len());
    assert!(expected_results.values().all(|result| result == "ok"), "natively: {expected}");
    let cow = Cow::watching::<&str>(&[], prepare);
    let found = tests(cow.command(options, PYTHON), cow.dir());
    eprintln!("{}", found.stderr);
    assert_reviewed(&expected_results, &results(&found), DIFFERENCES);
    cow.end();
}

#[test]
fn as_the_user() {
    same_results("as_the_user", SAME);
}

#[test]
fn as_root_inside() {
    same_results("as_root_inside", ROOT);
}
