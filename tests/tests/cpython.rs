//! CPython's own tests of sockets and of its event loop, natively and under `--net local`: the same results but for a
//! reviewed list with a reason for each.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use hurdle_tests::{Hurdle, finish, skip, source};

/// How long one run of one suite may take.
const LIMIT: Duration = Duration::from_secs(400);

/// `test: reason` on each line; lines that begin with `#` explain. A test whose reason begins with [`BY_TIMING`] may differ.
const DIFFERENCES: &str = "servers/net/tests/cpython-differences.txt";

/// Others have to differ.
const BY_TIMING: &str = "by timing";

/// What each test came to: `ok`, `skipped`, `FAIL`, `ERROR`.
type Results = BTreeMap<String, String>;

fn arguments(command: &mut Command, suite: &str) {
    // VSOCK reaches the host of a virtual machine: no business of these tests, and it may hang there.
    command.args(["-m", "test", "-v", "-u", "network", "-i", "*VSOCK*", suite]);
}

/// Reads lines like `test_name (test.test_socket.Class.test_name) ... ok`; a test may print between name and result.
fn results(text: &str) -> Results {
    let mut results = Results::new();
    let mut current: Option<String> = None;
    for line in text.lines() {
        let named = line.split_once(" (").and_then(|(name, rest)| {
            let (path, rest) = rest.split_once(')')?;
            let test = name.starts_with("test") && path.ends_with(name.split_whitespace().last()?);
            (test && path.contains('.') && !rest.contains('=')).then(|| path.to_owned())
        });
        if named.is_some() {
            current = named;
        }
        let Some(name) = &current else { continue };
        let end = line.rsplit_once(" ... ").map_or(line, |(_, end)| end).trim();
        let word = end.split(' ').next().unwrap_or_default();
        if ["ok", "FAIL", "ERROR", "skipped"].contains(&word) && (end == word || word == "skipped") {
            results.insert(name.clone(), word.to_owned());
            current = None;
        }
    }
    results
}

fn reviewed(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(": ").unwrap_or_else(|| panic!("no reason: {line}"))).collect()
}

fn same_results(suite: &str, at_least: usize) {
    if !std::path::Path::new("/usr/lib/python3.11/test/test_socket.py").exists() {
        return skip(&format!("cpython::{suite}"), "libpython3.11-testsuite is not installed (cargo xtask install)");
    }
    let hurdle = Hurdle::new();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut native = Command::new("/usr/bin/python3");
    arguments(&mut native, suite);
    native.current_dir(directory.path()).env("PATH", skip::PATH).env("LC_ALL", "C.UTF-8");
    let native = finish(&mut native, LIMIT);
    let mut inside = hurdle.run(&["--net", "local"], "/usr/bin/python3");
    arguments(&mut inside, suite);
    let inside = finish(inside.current_dir(directory.path()), LIMIT);
    hurdle.assert_nothing_left();

    let expected = results(&format!("{}\n{}", native.stdout, native.stderr));
    let found = results(&format!("{}\n{}", inside.stdout, inside.stderr));
    assert!(expected.len() >= at_least, "only {} results natively: {native}", expected.len());
    let names: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let of = |results: &Results, name: &String| results.get(name).cloned().unwrap_or_else(|| "not run".to_owned());
    let differs = |name: &&&String| of(&expected, name) != of(&found, name);
    let listed = source::read(DIFFERENCES);
    let reviewed = reviewed(&listed);
    let new = names.iter().filter(differs).filter(|name| !reviewed.contains_key(name.as_str()));
    let new: Vec<String> =
        new.map(|name| format!("{name}: {} natively, {} inside", of(&expected, name), of(&found, name))).collect();
    assert!(new.is_empty(), "{} differences that nobody has reviewed: {new:#?}", new.len());
    // A list that is longer than the truth hides the next difference.
    let constant = reviewed.iter().filter(|(_, reason)| !reason.starts_with(BY_TIMING)).map(|(name, _)| name);
    let stale: Vec<&&str> = constant
        .filter(|name| name.contains(&format!(".{suite}.")))
        .filter(|name| !names.iter().filter(differs).any(|other| other.as_str() == **name))
        .collect();
    assert!(stale.is_empty(), "listed, but no different any more: {stale:#?}");
}

#[test]
fn test_socket() {
    same_results("test_socket", 300);
}

#[test]
fn test_asyncio() {
    same_results("test_asyncio", 1000);
}

#[test]
fn results_are_read() {
    let text = "test_a (test.test_x.C.test_a) ... ok\ntest_b (test.test_x.C.test_b)\nDoc. ... FAIL\n\
                test_c (test.test_x.C.test_c) ... noise\nok\ntest_d (test.test_x.C.test_d) ... skipped 'why'\n";
    let read: Vec<(String, String)> = results(text).into_iter().collect();
    let expected = [("a", "ok"), ("b", "FAIL"), ("c", "ok"), ("d", "skipped")];
    assert_eq!(read, expected.map(|(name, result)| (format!("test.test_x.C.test_{name}"), result.to_owned())));
}
