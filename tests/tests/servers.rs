//! Servers as processes: one that a user wrote for an interface of his own, and how those that nobody calls leave.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use hurdle_tests::{Finished, Hurdle, finish, leaks, skip, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// An environment with the example server for the interface `greet`.
fn hall(hurdle: &Hurdle) -> String {
    let name = hurdle.name("hall");
    let server = format!("greet={}", hurdle_tests::command::example("greet").display());
    hurdle.detach(&name, &["--server", &server], &["sleep", "1000"]);
    name
}

fn hello(hurdle: &Hurdle, name: &str, who: &str) -> Finished {
    hurdle.call(&["rpc", name, "greet.hello", who])
}

fn server_pid(hurdle: &Hurdle, name: &str, interface: &str) -> Option<i64> {
    hurdle.right(name, interface)["state"]["Running"]["pid"].as_i64()
}

#[test]
fn one_of_the_users_own_serves_and_refuses() {
    let hurdle = Hurdle::new();
    let name = hall(&hurdle);
    assert_eq!(hurdle.right(&name, "greet")["state"], "Idle", "nobody has called yet");
    assert_eq!(hello(&hurdle, &name, "world").success().stdout, "\"hello, world: you are caller 1\"\n");
    // The reason is the server's own; a call that is refused is no death.
    let refused = hello(&hurdle, &name, "").exits(125).says("nobody to greet: the name is empty");
    assert_eq!(refused.stdout, "");
    assert_eq!(hello(&hurdle, &name, "fold").success().stdout, "\"hello, fold: you are caller 2\"\n");
    assert_eq!(hurdle.right(&name, "greet")["deaths"], 0);
    // It is listed and described like any other, though nothing of hurdle knows it.
    assert!(hurdle.call(&["rpc", &name]).success().stdout.lines().any(|line| line == "greet"));
    let described = hurdle.call(&["rpc", &name, "greet"]).success().stdout;
    for text in ["greet = 1000", "Greets who calls.", "1 hello(name: String) -> String", "Says hello to `name`"] {
        assert!(described.contains(text), "{text}: {described}");
    }
    hurdle.call(&["rpc", &name, "greet.hello"]).exits(125).says("argument");
    hurdle.call(&["rpc", &name, "greet.bye"]).exits(125).says("bye");
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn one_process_serves_all_its_clients() {
    let hurdle = Hurdle::new();
    let name = hall(&hurdle);
    let call =
        |who: usize| hurdle.start(hurdle.command().args(["rpc", &name, "greet.hello", "x"]), &format!("client-{who}"));
    // The first of them starts the server, the others find it or wait for it.
    let clients: Vec<_> = (0..8).map(call).collect();
    for client in clients {
        assert!(client.join().success());
    }
    let said = |who: usize| std::fs::read_to_string(hurdle.logs().join(format!("client-{who}"))).expect("own file");
    let answers: BTreeSet<String> = (0..8).map(said).collect();
    let expected: BTreeSet<String> = (1..=8).map(|caller| format!("\"hello, x: you are caller {caller}\"\n")).collect();
    assert_eq!(answers, expected);
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn after_a_kill_the_next_call_finds_another() {
    let hurdle = Hurdle::new();
    let name = hall(&hurdle);
    for death in 1..=3 {
        assert!(hello(&hurdle, &name, "ram").success().stdout.contains("caller 1"), "a fresh one counts from 1");
        assert!(hello(&hurdle, &name, "ewe").success().stdout.contains("caller 2"));
        let pid = server_pid(&hurdle, &name, "greet").and_then(|pid| i32::try_from(pid).ok()).expect("it runs");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        until("the death is counted", || (hurdle.right(&name, "greet")["deaths"] == death).then_some(()));
    }
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn a_swap_takes_a_program_of_the_users_own() {
    let hurdle = Hurdle::new();
    let name = hall(&hurdle);
    assert!(hello(&hurdle, &name, "one").success().stdout.contains("caller 1"));
    let first = server_pid(&hurdle, &name, "greet");
    let spec = format!("greet={}", hurdle_tests::command::example("greet").display());
    hurdle.call(&["swap", &name, &spec]).success();
    assert!(hello(&hurdle, &name, "two").success().stdout.contains("caller 1"), "another process counts");
    assert_ne!(server_pid(&hurdle, &name, "greet"), first);
    hurdle.call(&["swap", &name, "greet=/nonexistent/server"]).exits(125).says("/nonexistent/server");
    assert!(hello(&hurdle, &name, "three").success().stdout.contains("caller 2"), "the old one goes on");
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

/// A program that listens in the environment, and says so.
const LISTENER: &str = "\
import socket, sys
listener = socket.create_server(('127.0.0.1', 8080))
open(sys.argv[1], 'w').close()
while True:
    listener.accept()[0].sendall(b'served')
";

#[test]
fn those_that_nobody_calls_leave_and_come_back() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("idle");
    let ready = hurdle.logs().join("ready");
    let mut run = hurdle.command();
    run.env("HURDLE_IDLE_MS", "200").args(["run", "--detach", "--name", &name, "--net", "local", "--"]);
    finish(run.args(["/usr/bin/python3", "-c", LISTENER]).arg(&ready), LIMIT).success();
    until("it listens", || ready.exists().then_some(()));
    // It answers traps as soon as it has them; the core learns of it a moment later.
    let net = until("a net server runs", || server_pid(&hurdle, &name, "net"));

    let calls = [("proc", "proc.list"), ("auth", "auth.maps"), ("fs", "fs.mounts")];
    let answer = |call: &str| -> Value {
        serde_json::from_str(&hurdle.call(&["rpc", &name, call]).success().stdout).expect("JSON")
    };
    for _ in 0..2 {
        for (interface, call) in calls {
            assert_ne!(answer(call), Value::Null, "{call}");
            // It may have gone already.
            let state = hurdle.right(&name, interface)["state"].clone();
            assert!(state == "Idle" || state["Running"]["pid"].is_i64(), "{interface}: {state}");
        }
        for (interface, _) in calls {
            until("it leaves", || (hurdle.right(&name, interface)["state"] == "Idle").then_some(()));
            let right = hurdle.right(&name, interface);
            assert_eq!((&right["deaths"], &right["stderr"]), (&Value::from(0), &Value::from(Vec::<Value>::new())));
        }
    }
    // A net server keeps state for the programs, so it stays, and its listener is served.
    assert_eq!(server_pid(&hurdle, &name, "net"), Some(net));
    let connect = format!("import socket; print(socket.create_connection(('{}', 8080)).recv(9))", Ipv4Addr::LOCALHOST);
    let served = hurdle.call(&["enter", &name, "--", "/usr/bin/python3", "-c", &connect]).success();
    assert_eq!(served.stdout, "b'served'\n");
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn calls_from_two_cpus_at_once_have_two_receivers() {
    let test = "calls_from_two_cpus_at_once_have_two_receivers";
    if let Some(missing) = skip::missing(&["python3"]) {
        return skip::skip(test, &format!("{missing} is not installed"));
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return skip::skip(test, "there is one CPU");
    }
    let hurdle = Hurdle::new();
    let name = hurdle.name("pair");
    let mut run = hurdle.run(&["--name", &name, "--net", "local"], "python3");
    let load = "import socket, os\n\
                os.fork(); print('up', flush=True)\n\
                while True: socket.socket().close()";
    let receivers = || {
        let net = u32::try_from(server_pid(&hurdle, &name, "net")?).ok()?;
        let tasks = |pid| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let called = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let count = |pid| tasks(pid).filter(|task| called(task).trim() == "hurdle-traps").count();
        leaks::descendants(net).into_iter().map(count).max()
    };
    let program = hurdle.start(run.args(["-c", load]), "load");
    until("it runs", || program.log().contains("up").then_some(()));
    until("a second one receives", || (receivers()? == 2).then_some(()));
    hurdle.call(&["kill", &name]).success();
    drop(program);
    hurdle.assert_nothing_left();
}
