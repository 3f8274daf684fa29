//! What outlives a net server, and what becomes of calls that it had received; and servers that do not live at all.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use hurdle_tests::{Hurdle, Running, chance, finish, in_worlds, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ALL: &str = include_str!("survive/all.py");
const FLIGHT: &str = include_str!("survive/flight.py");
const FIRST: &str = include_str!("survive/first.py");

/// The first server of an interface.
fn server(hurdle: &Hurdle, name: &str, interface: &str) -> Option<i32> {
    let pid = hurdle.right(name, interface)["state"]["Running"]["pid"].as_i64();
    pid.and_then(|pid| i32::try_from(pid).ok())
}

/// Kills the net server, and waits for another one.
fn die(hurdle: &Hurdle, name: &str) {
    let pid = until("a net server runs", || server(hurdle, name, "net"));
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    until("another one runs", || server(hurdle, name, "net").filter(|now| *now != pid));
}

/// The program in an environment of its own, once it is ready.
fn started(hurdle: &Hurdle, net: &str, text: &str) -> (String, Running) {
    let name = hurdle.name("survivor");
    let mut run = hurdle.run(&["--name", &name, "--net", net], "/usr/bin/python3");
    let running = hurdle.start(run.args(["-c", text]).arg(hurdle.logs()), "log");
    until("it is ready", || hurdle.logs().join("ready").exists().then_some(()));
    (name, running)
}

fn say(hurdle: &Hurdle, word: &str) {
    std::fs::write(hurdle.logs().join(word), "").expect("own file");
}

fn ends_well(hurdle: &Hurdle, running: Running, last: &str) {
    let log = hurdle.logs().join("log");
    let status = running.join();
    let said = std::fs::read_to_string(log).expect("own file");
    assert!(status.success() && said == last, "{status}: {said}");
    hurdle.assert_nothing_left();
}

/// Natively nobody dies, and all holds.
fn all_holds(scene: &hurdle_tests::Scene) {
    scene.write("go", "");
    let done = scene.run("python3", &["-c", ALL, scene.dir().to_str().expect("a plain path")]).success();
    assert_eq!(done.stdout, "all as before\n");
}

in_worlds!(all_holds: native, local);

#[test]
fn listeners_queues_names_and_options_outlive_the_server() {
    for net in ["local", "delay,ms=1+local"] {
        let hurdle = Hurdle::new();
        let (name, running) = started(&hurdle, net, ALL);
        (0..3).for_each(|_| die(&hurdle, &name));
        say(&hurdle, "go");
        ends_well(&hurdle, running, "all as before\n");
    }
}

#[test]
fn all_of_that_outlives_a_swap() {
    let hurdle = Hurdle::new();
    let (name, running) = started(&hurdle, "local", ALL);
    for to in ["net=delay,ms=1+local", "net=local", "net=local"] {
        hurdle.call(&["swap", &name, to]).success();
    }
    say(&hurdle, "go");
    ends_well(&hurdle, running, "all as before\n");
}

#[test]
fn a_server_that_dies_at_its_first_calls_takes_nothing_along() {
    for _ in 0..15 {
        let hurdle = Hurdle::new();
        let (name, running) = started(&hurdle, "local", FIRST);
        let pid = until("a net server runs", || server(&hurdle, &name, "net"));
        say(&hurdle, "go");
        chance::moment(Duration::from_millis(5));
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        say(&hurdle, "end");
        ends_well(&hurdle, running, "all welcome\n");
    }
}

/// A server and all that it has started.
fn family(pid: i32) -> Vec<i32> {
    let mut found: Vec<i32> =
        hurdle_tests::leaks::descendants(pid.cast_unsigned()).into_iter().map(u32::cast_signed).collect();
    found.push(pid);
    found
}

#[test]
fn a_call_in_flight_is_answered_once_by_the_successor() {
    let hurdle = Hurdle::new();
    let (name, running) = started(&hurdle, "local", FLIGHT);
    // Nobody answers from here on.
    let old = until("a net server runs", || server(&hurdle, &name, "net"));
    let stopped = family(old);
    stopped.iter().for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGSTOP).expect("it runs"));
    say(&hurdle, "call");
    until("calls are made", || hurdle.logs().join("called").exists().then_some(()));
    kill(Pid::from_raw(old), Signal::SIGKILL).expect("it runs");
    until("another one runs", || server(&hurdle, &name, "net").filter(|now| *now != old));
    say(&hurdle, "end");
    ends_well(&hurdle, running, "each once\n");
}

#[test]
fn one_that_never_lives_fails_with_its_words_and_an_errno() {
    let hurdle = Hurdle::new();
    let stillborn = hurdle.logs().join("stillborn");
    std::fs::write(&stillborn, "#!/bin/sh\necho not today >&2\nexit 3\n").expect("own file");
    std::fs::set_permissions(&stillborn, PermissionsExt::from_mode(0o755)).expect("own file");
    let name = hurdle.name("failed");
    let begin = Instant::now();
    hurdle.detach(&name, &["--net", stillborn.to_str().expect("a plain path")], &["sleep", "1000"]);
    let ask = "import socket\ntry: socket.socket(); print('a socket')\nexcept OSError as e: print(e.strerror)";
    let call = || {
        let mut enter = hurdle.command();
        enter.args(["enter", &name, "--", "/usr/bin/python3", "-c", ask]);
        finish(&mut enter, Duration::from_secs(20)).success().stdout
    };
    assert_eq!(call(), "Network is down\n");
    // Between the starts it waited ever longer.
    assert!(begin.elapsed() > Duration::from_millis(120), "{:?}", begin.elapsed());
    let right =
        until("it has failed", || Some(hurdle.right(&name, "net")).filter(|r| r["state"]["Failed"].is_object()));
    assert!(right["deaths"].as_u64().is_some_and(|deaths| (4..8).contains(&deaths)), "{right}");
    assert!(right["stderr"].as_array().is_some_and(|said| said.iter().all(|line| line == "not today")), "{right}");
    let listed = hurdle.call(&["ls", &name]).success().stdout;
    assert!(listed.contains("net failed: ") && listed.contains("net said: not today"), "{listed}");
    // Nothing else is the worse for it, and it can be mended.
    assert_eq!(call(), "Network is down\n");
    hurdle.call(&["ps", &name]).success();
    hurdle.call(&["swap", &name, "net=local"]).success();
    assert_eq!(call(), "a socket\n");
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}
