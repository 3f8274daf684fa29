//! Servers behind walls of their own (`hurdle_server::confine_files`, `confine_calls`): what they can't do any more.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;

use hurdle_tests::command::example;
use hurdle_tests::{Hurdle, leaks, skip, until};
use serde_json::Value;

const EPERM: i64 = 1;
const EACCES: i64 = 13;
const EXDEV: i64 = 18;

/// What the example `confined`, started under this name, met with: (attempt, error number). `None`: these walls are not to be had here.
fn tried(hurdle: &Hurdle, walls: &str) -> Option<Vec<(String, i64)>> {
    let server = hurdle.logs().join(walls);
    symlink(example("confined"), &server).expect("own directory");
    std::fs::write(hurdle.logs().join("old"), "as it was").expect("own file");
    let mut outside = hurdle.start(Command::new("sleep").arg("1000"), "outside.log");
    let pid = outside.id().to_string();
    let address = SocketAddr::from_abstract_name(format!("hurdle-tries-{pid}")).expect("a short name");
    let _listener = UnixListener::bind_addr(&address).expect("nobody else has this name");
    let name = hurdle.name(walls);
    hurdle.detach(&name, &["--server", &format!("tries={}", server.display())], &["sleep", "1000"]);
    let done = hurdle.call(&["rpc", &name, "tries.all", &hurdle.logs().display().to_string(), &pid]);
    if done.stderr.contains("no Landlock") {
        return None;
    }
    let list: Value = serde_json::from_str(&done.success().stdout).expect("JSON");
    let pair = |pair: &Value| (pair[0].as_str().expect("text").to_string(), pair[1].as_i64().expect("a number"));
    let all = list.as_array().expect("a list").iter().map(pair).collect();
    outside.assert_alive();
    assert_eq!(std::fs::read_to_string(hurdle.logs().join("old")).expect("it is there"), "as it was");
    hurdle.call(&["kill", &name]).success();
    drop(outside);
    hurdle.assert_nothing_left();
    Some(all)
}

/// All attempts but `allowed` met with one of `refused`. Root without capabilities may not look into a process of root's that has
/// some, whatever the walls.
#[track_caller]
fn refused(all: &[(String, i64)], allowed: &[&str], refused: &[i64]) {
    for (what, errno) in all {
        let without_walls = *errno == 0 || what == "environ" && *errno == EACCES;
        let as_meant = if allowed.contains(&what.as_str()) { without_walls } else { refused.contains(errno) };
        assert!(as_meant, "{what} met with {errno}: {all:?}");
    }
    assert_eq!(all.len(), 14);
}

#[test]
fn without_walls_each_attempt_can_succeed() {
    let hurdle = Hurdle::new();
    let server = format!("tries={}", example("confined").display());
    let name = hurdle.name("free");
    hurdle.detach(&name, &["--server", &server], &["sleep", "1000"]);
    let directory = hurdle.logs().join("free");
    std::fs::create_dir(&directory).expect("own directory");
    std::fs::write(directory.join("old"), "").expect("own file");
    let outside = hurdle.start(Command::new("sleep").arg("1000"), "outside.log");
    let pid = outside.id().to_string();
    let done = hurdle.call(&["rpc", &name, "tries.all", &directory.display().to_string(), &pid]).success();
    // So what is refused elsewhere is refused by the walls.
    for what in ["create", "append", "remove", "mkdir", "exec", "kill", "udp"] {
        assert!(done.stdout.contains(&format!("[\"{what}\",0]")), "{what}: {done}");
    }
    outside.join();
    hurdle.call(&["kill", &name]).success();
    std::fs::remove_dir_all(&directory).expect("own directory");
    hurdle.assert_nothing_left();
}

#[test]
fn a_server_behind_landlock_reads_what_it_named_and_reaches_nobody() {
    let hurdle = Hurdle::new();
    let Some(all) = tried(&hurdle, "files") else {
        return skip::skip("a_server_behind_landlock_reads_what_it_named_and_reaches_nobody", "no Landlock here");
    };
    refused(&all, &["udp"], &[EPERM, EACCES, EXDEV]);
}

#[test]
fn a_server_behind_its_filter_writes_and_executes_nothing() {
    let hurdle = Hurdle::new();
    let all = tried(&hurdle, "calls").expect("every kernel here has seccomp");
    refused(&all, &["read", "environ", "abstract"], &[EPERM]);
}

/// What a net server of the user's own met with, started under this name.
fn net_server_tried(hurdle: &Hurdle, walls: &str) -> String {
    let server = hurdle.logs().join(walls);
    symlink(example("walled"), &server).expect("own directory");
    let directory = hurdle.logs().join(format!("of-{walls}"));
    std::fs::create_dir(&directory).expect("own directory");
    std::fs::write(directory.join("old"), "").expect("own file");
    let outside = hurdle.start(Command::new("sleep").arg("1000"), "outside.log");
    let name = hurdle.name(walls);
    let net = format!("{},dir={},pid={}+local", server.display(), directory.display(), outside.id());
    hurdle.detach(&name, &["--net", &net], &["sleep", "1000"]);
    // What it does for programs goes on as ever.
    hurdle
        .call(&["enter", &name, "--", "/usr/bin/python3", "-c", "import socket; socket.create_server(('', 80))"])
        .success();
    let met = until("it has tried", || {
        let lines = hurdle.right(&name, "net")["stderr"].clone();
        let line = |line: &Value| line.as_str()?.strip_prefix("met with: ").map(str::to_owned);
        lines.as_array()?.iter().find_map(line)
    });
    hurdle.call(&["kill", &name]).success();
    std::fs::remove_dir_all(&directory).expect("own directory");
    std::fs::remove_file(&server).expect("own link");
    drop(outside);
    hurdle.assert_nothing_left();
    met
}

#[test]
fn a_net_server_of_ones_own_has_the_walls_that_it_does_not_refuse() {
    let test = "a_net_server_of_ones_own_has_the_walls_that_it_does_not_refuse";
    if let Some(missing) = skip::missing(&["python3"]) {
        return skip::skip(test, &format!("{missing} is not installed"));
    }
    let hurdle = Hurdle::new();
    assert_eq!(net_server_tried(&hurdle, "walled"), "create 1, append 1, exec 1, kill 1, udp 1");
    assert_eq!(net_server_tried(&hurdle, "open"), "create 0, append 0, exec 0, kill 0, udp 0");
}

/// How many seccomp filters a thread is below, and its effective capabilities.
fn walls(task: &Path) -> (u32, String) {
    let status = std::fs::read_to_string(task.join("status")).unwrap_or_default();
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned();
    (line("Seccomp_filters:").parse().unwrap_or(0), line("CapEff:"))
}

/// The standard net servers of each kind, each thread of theirs, before and under load, and after each swap.
#[test]
fn net_servers_stand_behind_their_filter() {
    let test = "net_servers_stand_behind_their_filter";
    if let Some(missing) = skip::missing(&["python3"]) {
        return skip::skip(test, &format!("{missing} is not installed"));
    }
    let hurdle = Hurdle::new();
    let name = hurdle.name("kinds");
    let load = "import socket\n\
                l = socket.create_server(('127.0.0.1', 0)); print('up', flush=True)\n\
                while True: socket.create_connection(l.getsockname()).close(); l.accept()[0].close()";
    let mut run = hurdle.run(&["--name", &name, "--swappable", "--net", "local"], "/usr/bin/python3");
    let program = hurdle.start(run.args(["-c", load]), "load");
    until("it runs", || program.log().contains("up").then_some(()));
    let (before, _) = walls(Path::new("/proc/self"));
    for net in ["local", "none", "delay,ms=0+local", "share", "local"] {
        if hurdle.right(&name, "net")["spec"] != net {
            hurdle.call(&["swap", &name, &format!("net={net}")]).success();
        }
        let server = hurdle.right(&name, "net")["state"]["Running"]["pid"].as_u64().expect("it runs");
        let server = u32::try_from(server).expect("a pid");
        // What makes its sockets was made before its walls, and the one that starts the server below starts programs.
        let outside = |task: &Path| {
            ["hurdle-mint", "below"].contains(&std::fs::read_to_string(task.join("comm")).unwrap_or_default().trim())
        };
        let mut looked_at = 0;
        for pid in leaks::descendants(server).into_iter().chain([server]) {
            for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let (filters, capabilities) = walls(&task.path());
                if outside(&task.path()) || capabilities.is_empty() {
                    continue;
                }
                assert!(filters > before, "{net}: {} {}", leaks::describe(pid), task.path().display());
                // Not even under `share`: what it makes and binds is for programs, which have none outside.
                assert_eq!(capabilities, "0".repeat(16), "{net}: {}", leaks::describe(pid));
                looked_at += 1;
            }
        }
        assert!(looked_at > 1, "{net}: {looked_at}");
    }
    hurdle.call(&["kill", &name]).success();
    drop(program);
    hurdle.assert_nothing_left();
}

/// A line of /proc/PID/status.
fn status(pid: u32, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default();
    line.trim().to_string()
}

fn is_server(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.starts_with(b"hurdle\0server\0")
}

/// The standard servers, and the worker of a net server under load, which is a process of its own.
#[test]
fn servers_gain_no_privileges() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("walls");
    let load = "import socket\n\
                l = socket.create_server(('127.0.0.1', 0)); print('up', flush=True)\n\
                while True: socket.create_connection(l.getsockname()).close(); l.accept()[0].close()";
    let mut run = hurdle.run(&["--name", &name, "--net", "local"], "python3");
    let program = hurdle.start(run.args(["-c", load]), "load");
    until("it runs", || program.log().contains("up").then_some(()));
    hurdle.call(&["ps", &name]).success();
    hurdle.call(&["rpc", &name, "auth.maps"]).success();
    let net = hurdle.right(&name, "net")["state"]["Running"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let net = net.expect("it runs");
    let worker = || {
        let named = |pid: &u32| status(*pid, "Name") == "hurdle-traps";
        leaks::descendants(net).into_iter().find(named)
    };
    let worker = until("the worker runs apart", worker);
    let servers: Vec<u32> = leaks::marked(hurdle.mark()).into_iter().filter(|pid| is_server(*pid)).collect();
    assert!(servers.len() >= 3 && servers.contains(&net), "{servers:?}");
    for pid in servers.iter().copied().chain([worker]) {
        assert_eq!(status(pid, "NoNewPrivs"), "1", "{}", leaks::describe(pid));
    }
    hurdle.call(&["kill", &name]).success();
    drop(program);
    hurdle.assert_nothing_left();
}
