//! Nothing of an environment is left when it ends, however it ends: no process, mount, socket, file or lock.
//!
//! These tests look at the whole host, so they take turns. `HURDLE_DEATHS` says how often the random one kills (60).

use std::process::Command;
use std::time::Duration;

use hurdle_tests::chance::{self, deaths};
use hurdle_tests::leaks::{Watch, descendants, pid, reap};
use hurdle_tests::{Hurdle, Running, finish, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// A redis with a client that never stops, in an environment in the foreground.
fn busy(hurdle: &Hurdle, name: &str) -> Running {
    let text = "redis-server --save '' --appendonly no --port 6379 >/dev/null & server=$!
        until redis-cli ping 2>/dev/null | grep -q PONG; do :; done
        redis-benchmark -q -l -c 10 -t get >/dev/null 2>&1 &
        echo busy; wait $server";
    let mut command = hurdle.run(&["--name", name, "--net", "local", "--auth", "root"], "/bin/bash");
    let running = hurdle.start(command.args(["-c", text]), "busy.log");
    until("it is busy", || running.log().contains("busy").then_some(()));
    running
}

fn killed(choose: fn(&Hurdle, &str, &Value) -> Vec<Pid>, signal: Signal) {
    let watch = Watch::begin();
    let name = watch.hurdle.name("victim");
    let running = busy(&watch.hurdle, &name);
    let info = watch.hurdle.info(&name);
    for victim in choose(&watch.hurdle, &name, &info) {
        kill(victim, signal).expect("it runs");
    }
    let status = running.join();
    assert!(!status.success(), "{status}");
    watch.end();
}

#[test]
fn after_an_ordinary_end() {
    let watch = Watch::begin();
    for options in [&[][..], &["--net", "local"], &["--net", "none", "--auth", "root"], &["--isolated"]] {
        for _ in 0..3 {
            let mut command = watch.hurdle.run(options, "/bin/sh");
            // An orphan that ignores signals is the environment's, too.
            command.args(["-c", "(trap '' HUP INT TERM; exec sleep 1000) & (setsid sleep 1000 &) ; exit 3"]);
            finish(&mut command, LIMIT).exits(3);
        }
    }
    watch.end();
}

#[test]
fn after_the_core_is_killed() {
    killed(|_, _, info| vec![pid(&info["core"])], Signal::SIGKILL);
}

#[test]
fn after_the_core_is_terminated() {
    killed(|_, _, info| vec![pid(&info["core"])], Signal::SIGTERM);
}

#[test]
fn after_init_is_killed() {
    killed(|_, _, info| vec![pid(&info["init"])], Signal::SIGKILL);
}

#[test]
fn after_the_first_program_is_killed() {
    let first = |hurdle: &Hurdle, name: &str, _: &Value| {
        let processes = hurdle.json(&["ps", name]);
        let all = processes.as_array().expect("a list");
        let shell = all
            .iter()
            .find(|process| process["parent"] == 1 && process["command"].as_str().is_some_and(|c| c.contains("bash")));
        vec![pid(&shell.expect("the first program")["outer_pid"])]
    };
    killed(first, Signal::SIGKILL);
}

#[test]
fn after_all_is_killed_at_once() {
    let all = |hurdle: &Hurdle, name: &str, info: &Value| {
        let servers = info["rights"].as_array().expect("a list").iter();
        let mut pids: Vec<Pid> = servers.filter_map(|right| right["state"]["Running"].get("pid")).map(pid).collect();
        assert!(!pids.is_empty(), "the net server of {name} runs: {info} {:?}", hurdle.runtime_dir());
        pids.extend([pid(&info["core"]), pid(&info["init"])]);
        pids
    };
    killed(all, Signal::SIGKILL);
}

#[test]
fn after_a_detached_core_is_killed() {
    let watch = Watch::begin();
    let name = watch.hurdle.name("detached");
    watch.hurdle.detach(&name, &["--net", "local"], &["sleep", "1000"]);
    kill(pid(&watch.hurdle.info(&name)["core"]), Signal::SIGKILL).expect("it runs");
    watch.end();
}

/// A client and a server that make connections for ever.
const CONNECTING: &str = "import socket
server = socket.create_server(('127.0.0.1', 0))
while True:
    client = socket.create_connection(server.getsockname())
    server.accept()[0].close()
    client.close()";

/// From the first moment of an environment on, any of its processes: core, init, servers, their workers, programs, and those of
/// an environment inside. Then, at another moment, the core.
#[test]
fn after_any_process_is_killed_at_any_moment() {
    let watch = Watch::begin();
    let kinds: [&[&str]; 5] = [
        &["--net", "local"],
        &["--net", "local", "--auth", "root"],
        &["--isolated"],
        &["--net", "delay,ms=1+local", "--swappable"],
        &["--fs", "ro", "--net", "none", "--auth", "root"],
    ];
    for round in 0..deaths() {
        let mut command = watch.hurdle.run(kinds[round % kinds.len()], "/bin/sh");
        let inside = format!("\"{}\" run --net local -- ", watch.hurdle.binary().display());
        let inside = if round % 4 == 3 { &inside } else { "" };
        command.args(["-c", &format!("{inside}/usr/bin/python3 -c \"{CONNECTING}\"; exit")]);
        let running = watch.hurdle.start(&mut command, "random.log");
        let core = Pid::from_raw(running.id());
        chance::moment(Duration::from_millis(if round % 2 == 0 { 30 } else { 400 }));
        let all = descendants(std::process::id());
        let victim = all[chance::below(all.len())];
        let what = hurdle_tests::leaks::describe(victim);
        let victim = Pid::from_raw(victim.cast_signed());
        let _ = kill(victim, Signal::SIGKILL);
        if victim != core {
            chance::moment(Duration::from_millis(20));
            let _ = kill(core, Signal::SIGKILL);
        }
        running.join();
        println!("round {round}: killed {what}");
        alone_again(&watch.hurdle);
    }
    watch.end();
}

/// While init sets copy-on-write files up, it asks the fs server for them.
#[test]
fn after_the_core_is_killed_while_files_are_set_up() {
    let watch = Watch::begin();
    for round in 0..deaths() {
        let running = watch.hurdle.start(&mut watch.hurdle.run(&["--fs", "cow"], "/bin/true"), "start.log");
        chance::moment(Duration::from_millis([20, 80][round % 2]));
        running.signal(Signal::SIGKILL);
        running.join();
        alone_again(&watch.hurdle);
    }
    watch.end();
}

/// Waits until this process has no descendant.
#[track_caller]
fn alone_again(hurdle: &Hurdle) {
    hurdle.assert_nothing_left();
    until("no descendant is left", || {
        reap();
        descendants(std::process::id()).is_empty().then_some(())
    });
}

#[test]
fn after_a_hundred_at_once() {
    let watch = Watch::begin();
    let start = |number: usize| {
        let mut command = watch.hurdle.run(&["--net", "local"], "/bin/sh");
        watch.hurdle.start(command.args(["-c", "exit 4"]), &format!("{number}.log"))
    };
    let running: Vec<Running> = (0..100).map(start).collect();
    for running in running {
        assert_eq!(running.join().code(), Some(4));
    }
    watch.end();
}

#[test]
fn without_a_runtime_directory() {
    let watch = Watch::begin();
    let name = watch.hurdle.name("bare");
    let mut command: Command = watch.hurdle.run(&["--name", &name, "--net", "local"], "/bin/true");
    finish(command.env_remove("XDG_RUNTIME_DIR").env_remove("TMPDIR").env_remove("HOME"), LIMIT).success();
    watch.end();
}
