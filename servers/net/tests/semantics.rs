//! Linux is the specification: each body in `bodies/` runs over real TCP in an empty network namespace, and under `local`,
//! and must print the same lines. The bodies are Python, which is closest to the plain calls; they run in the harness of
//! `examples/local_run.rs`, as root and as an unprivileged user alike.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long one body may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The harness, which cargo builds beside the tests.
fn harness() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples/local_run")
}

fn run(body: &str, mode: &str) -> Output {
    let bodies = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bodies");
    let crash = std::env::temp_dir().join(format!("hurdle-crash-{}", std::process::id()));
    let mut child = Command::new(harness())
        .args(["/usr/bin/python3", "-B", &format!("{body}.py")])
        .current_dir(bodies)
        .env("LOCAL_RUN", mode)
        .envs((mode == "crash").then(|| ("CRASH_FILE", crash.as_os_str())))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("{body} ({mode}) takes longer than {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Runs a body in both ways and compares.
fn same(body: &str) {
    same_but(body, "local");
}

fn same_but(body: &str, mode: &str) {
    let (native, local) = (run(body, "native"), run(body, mode));
    assert!(native.status.success(), "{body} natively: {}", String::from_utf8_lossy(&native.stderr));
    assert!(local.status.success(), "{body} inside: {}", String::from_utf8_lossy(&local.stderr));
    let (native, local) = (lines(&native), lines(&local));
    assert!(!native.is_empty(), "{body} printed nothing");
    for (line, (native, local)) in native.iter().zip(&local).enumerate() {
        assert_eq!(native, local, "{body}, line {} (left: native, right: inside)", line + 1);
    }
    assert_eq!(native.len(), local.len(), "{body}: one of the two printed more");
}

#[test]
fn names_are_what_programs_bound_and_connected_to() {
    same("names");
}

#[test]
fn ports_conflict_and_are_shared_as_natively() {
    same("ports");
}

#[test]
fn connect_waits_fails_and_succeeds_as_natively() {
    same("connecting");
}

#[test]
fn accept_waits_is_interrupted_and_shared_as_natively() {
    same("accepting");
}

#[test]
fn options_are_checked_and_read_back_as_natively() {
    same("options");
}

#[test]
fn data_ends_and_resets_arrive_as_natively() {
    same("data");
}

#[test]
fn a_network_made_inside_is_a_world_of_its_own() {
    same("networks");
}

#[test]
fn programs_go_on_while_the_server_is_killed_again_and_again() {
    same_but("crash", "crash");
}
