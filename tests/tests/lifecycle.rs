//! Looking into environments that run, and changing them: detach, ls, ps, enter, wait, kill, swap, rpc.

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use hurdle_tests::pty::Terminal;
use hurdle_tests::{Finished, Hurdle, Running, finish, scene, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// Ends an environment when the test is over, however it ends.
struct Ends<'a>(&'a Hurdle, String);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let _ = self.0.command().args(["kill", &self.1]).output();
    }
}

fn detached<'a>(hurdle: &'a Hurdle, base: &str, options: &[&str], program: &[&str]) -> Ends<'a> {
    let name = hurdle.name(base);
    hurdle.detach(&name, options, program);
    Ends(hurdle, name)
}

fn enter(hurdle: &Hurdle, name: &str, program: &[&str]) -> Finished {
    hurdle.call(&[&["enter", name, "--"], program].concat())
}

fn server_pid(hurdle: &Hurdle, name: &str, interface: &str) -> Option<i32> {
    let pid = hurdle.right(name, interface)["state"]["Running"]["pid"].as_i64()?;
    i32::try_from(pid).ok()
}

#[test]
fn a_detached_environment_is_listed_until_it_is_killed() {
    let hurdle = Hurdle::new();
    let env = detached(&hurdle, "listed", &["--net", "local"], &["sleep", "1000"]);
    let table = hurdle.call(&["ls"]).success().stdout;
    assert!(table.starts_with("ENV") && table.contains(&env.1), "{table}");
    let info = hurdle.info(&env.1);
    assert_eq!(info["name"], env.1.as_str());
    assert_eq!(info["parent"], "host");
    assert_eq!(hurdle.right(&env.1, "net")["spec"], "local");
    assert_eq!(hurdle.right(&env.1, "fs")["spec"], "share");
    // Nothing has needed a net server yet.
    assert_eq!(hurdle.right(&env.1, "net")["state"], "Idle");

    let processes = hurdle.json(&["ps", &env.1]);
    let list = processes.as_array().expect("a list");
    assert!(list.iter().any(|process| process["pid"] == 1), "{processes}");
    assert!(list.iter().any(|process| process["command"] == "sleep 1000"), "{processes}");
    assert!(hurdle.call(&["ps", &env.1]).success().stdout.contains("sleep 1000"));

    hurdle.call(&["kill", &env.1]).success();
    // It is gone when the command returns, not later.
    assert!(!hurdle.call(&["ls"]).success().stdout.contains(&env.1));
    hurdle.call(&["ls", &env.1]).exits(125).says("no environment");
    hurdle.assert_nothing_left();
}

#[test]
fn enter_runs_one_more_program_inside() {
    let hurdle = Hurdle::new();
    let env = detached(&hurdle, "entered", &["--net", "local", "--auth", "root"], &["sleep", "1000"]);
    assert_eq!(enter(&hurdle, &env.1, &["id", "-u"]).success().stdout, "0\n");
    enter(&hurdle, &env.1, &["sh", "-c", "exit 42"]).exits(42);
    enter(&hurdle, &env.1, &["sh", "-c", "kill -TERM $$"]).exits(143);
    let told = enter(&hurdle, &env.1, &["sh", "-c", "echo out; echo err >&2"]).success();
    assert_eq!((told.stdout.as_str(), told.stderr.as_str()), ("out\n", "err\n"));
    // It sees the processes of the environment, and those alone.
    let seen = enter(&hurdle, &env.1, &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).success().stdout;
    assert!(seen.contains("sleep 1000") && !seen.contains("hurdle enter"), "{seen}");
    enter(&hurdle, &env.1, &["/nonexistent/program"]).exits(127).says("/nonexistent/program");
    let mut input = hurdle.command();
    input.args(["enter", &env.1, "--", "wc", "-c"]).stdin(std::fs::File::open("/etc/passwd").expect("a file"));
    let counted = hurdle_tests::finish::finish_with(&mut input, LIMIT).success();
    let size = std::fs::metadata("/etc/passwd").expect("a file").len();
    assert_eq!(counted.stdout.trim(), size.to_string());
    drop(env);
    hurdle.assert_nothing_left();
}

/// Starts `hurdle wait`, and returns once it has reached the core and sleeps until there is an answer.
fn waiting(hurdle: &Hurdle, name: &str) -> Running {
    let running = hurdle.start(hurdle.command().args(["wait", name]), "wait.log");
    until("it waits", || {
        // The core's end of a connection has the name of the socket that listens.
        let sockets = std::fs::read_to_string("/proc/net/unix").ok()?;
        let ends = sockets.lines().filter(|line| line.split_once('@').is_some_and(|(_, path)| path.contains(name)));
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.id())).ok()?;
        (ends.count() >= 2 && stat.contains(") S ")).then_some(())
    });
    running
}

#[test]
fn wait_ends_as_the_program_did() {
    let hurdle = Hurdle::new();
    let gate = hurdle.logs().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("own directory");
    let text = format!("read x < {}; exit 9", gate.display());
    let env = detached(&hurdle, "awaited", &[], &["sh", "-c", &text]);
    let waiting = waiting(&hurdle, &env.1);
    std::fs::write(&gate, "go\n").expect("a reader");
    assert_eq!(waiting.join().code(), Some(9));
    hurdle.assert_nothing_left();
}

#[test]
fn a_signal_goes_to_the_first_program() {
    let hurdle = Hurdle::new();
    let said = hurdle.logs().join("said");
    let text = format!("trap 'echo heard > {0}' USR1; echo > {0}.ready; while :; do sleep 0.01; done", said.display());
    let env = detached(&hurdle, "signalled", &[], &["sh", "-c", &text]);
    until("the trap is set", || said.with_extension("ready").exists().then_some(()));
    hurdle.call(&["kill", "--signal", "USR1", &env.1]).success();
    until("the program hears it", || std::fs::read_to_string(&said).is_ok_and(|text| text == "heard\n").then_some(()));
    // As kill(1) takes it.
    std::fs::remove_file(&said).expect("own file");
    hurdle.call(&["kill", "-USR1", &env.1]).success();
    until("the program hears it again", || said.exists().then_some(()));
    hurdle.call(&["kill", "-99", &env.1]).exits(125).says("no such signal");
    let waiting = waiting(&hurdle, &env.1);
    hurdle.call(&["kill", "-9", &env.1]).success();
    assert_eq!(waiting.join().code(), Some(137));
    hurdle.assert_nothing_left();
}

#[test]
fn a_name_is_taken_once() {
    let hurdle = Hurdle::new();
    let env = detached(&hurdle, "unique", &[], &["sleep", "1000"]);
    hurdle.call(&["run", "--name", &env.1, "--", "true"]).exits(125).says(&env.1).says("--name");
    hurdle.call(&["run", "--name", &env.1, "--detach", "--", "true"]).exits(125).says(&env.1);
    hurdle.call(&["run", "--name", "not/a name", "--", "true"]).exits(125).says("not/a name");
    // A failed detach says so in the foreground.
    hurdle.call(&["run", "--detach", "--", "/nonexistent/program"]).exits(127).says("/nonexistent/program");
    hurdle.call(&["kill", &env.1]).success();
    hurdle.call(&["run", "--name", &env.1, "--", "true"]).success();
    hurdle.assert_nothing_left();
}

/// Serves redis in an environment at the port that everybody uses.
fn redis<'a>(hurdle: &'a Hurdle, base: &str) -> Ends<'a> {
    let server = ["redis-server", "--save", "", "--appendonly", "no", "--port", "6379"];
    let env = detached(hurdle, base, &["--net", "local"], &server);
    until("redis answers", || (cli(hurdle, &env.1, &["ping"]).stdout == "PONG\n").then_some(()));
    env
}

fn cli(hurdle: &Hurdle, name: &str, words: &[&str]) -> Finished {
    enter(hurdle, name, &[&["redis-cli"], words].concat())
}

#[test]
fn environments_have_ports_of_their_own() {
    let hurdle = Hurdle::new();
    let envs = [redis(&hurdle, "one"), redis(&hurdle, "two"), redis(&hurdle, "three")];
    for env in &envs {
        assert_eq!(cli(&hurdle, &env.1, &["set", "name", &env.1]).success().stdout, "OK\n");
    }
    for env in &envs {
        assert_eq!(cli(&hurdle, &env.1, &["get", "name"]).success().stdout, format!("{}\n", env.1));
    }
    // Nothing of it is on the host, and nothing of the host is in there.
    let native = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = native.local_addr().expect("it is bound").port().to_string();
    let refused = cli(&hurdle, &envs[0].1, &["-p", &port, "ping"]);
    assert!(!refused.status.success() && refused.stderr.contains("refused"), "{refused}");
    drop(envs);
    hurdle.assert_nothing_left();
}

/// A client that increments a counter over one connection for as long as it lives, and fails at the first error.
fn counting(hurdle: &Hurdle, name: &str) -> Running {
    let text = "exec 3<>/dev/tcp/127.0.0.1/6379 || exit 1
        while :; do printf 'INCR count\\r\\n' >&3; read -t 20 -u 3 answer || exit 1; [ \"${answer:0:1}\" = : ] || exit 1; done";
    hurdle.start(hurdle.command().args(["enter", name, "--", "bash", "-c", text]), "counting.log")
}

fn count(hurdle: &Hurdle, name: &str) -> u64 {
    cli(hurdle, name, &["get", "count"]).success().stdout.trim().parse().unwrap_or(0)
}

/// Waits until the counter has gone on by a hundred.
fn assert_goes_on(hurdle: &Hurdle, name: &str, client: &mut Running) {
    let before = count(hurdle, name);
    until("the client goes on", || {
        client.assert_alive();
        (count(hurdle, name) > before + 100).then_some(())
    });
}

#[test]
fn a_live_swap_keeps_connections() {
    let hurdle = Hurdle::new();
    let env = redis(&hurdle, "swapped");
    let mut client = counting(&hurdle, &env.1);
    assert_goes_on(&hurdle, &env.1, &mut client);
    let mut last = server_pid(&hurdle, &env.1, "net");
    for swap in 1..=3 {
        let swapped = hurdle.json(&["swap", &env.1, "net=local"]);
        assert_eq!((&swapped["from"], &swapped["to"]), (&Value::from("local"), &Value::from("local")));
        assert_goes_on(&hurdle, &env.1, &mut client);
        let now = server_pid(&hurdle, &env.1, "net");
        assert_ne!(now, last, "another process serves");
        last = now;
        assert_eq!(hurdle.right(&env.1, "net")["swaps"], swap);
    }
    drop(client);
    drop(env);
    hurdle.assert_nothing_left();
}

#[test]
fn a_server_that_is_killed_is_replaced() {
    let hurdle = Hurdle::new();
    let env = redis(&hurdle, "restarted");
    let mut client = counting(&hurdle, &env.1);
    assert_goes_on(&hurdle, &env.1, &mut client);
    for death in 1..=3 {
        let pid = until("a net server runs", || server_pid(&hurdle, &env.1, "net"));
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        // Old connections go on, new ones are made.
        assert_goes_on(&hurdle, &env.1, &mut client);
        until("the death is counted", || (hurdle.right(&env.1, "net")["deaths"] == death).then_some(()));
    }
    drop(client);
    drop(env);
    hurdle.assert_nothing_left();
}

#[test]
fn a_swap_that_cannot_be_says_why() {
    let hurdle = Hurdle::new();
    let env = detached(&hurdle, "shared", &[], &["sleep", "1000"]);
    hurdle.call(&["swap", &env.1, "net=local"]).exits(125).says("--swappable");
    let trapped = detached(&hurdle, "trapped", &["--net", "local"], &["sleep", "1000"]);
    hurdle.call(&["swap", &trapped.1, "net=bogus"]).exits(125).says("bogus");
    drop(trapped);
    hurdle.call(&["swap", &env.1, "bogus=local"]).exits(125).says("bogus");
    hurdle.call(&["swap", &env.1, "net"]).exits(125);
    // The environment is as it was.
    assert_eq!(hurdle.right(&env.1, "net")["spec"], "share");
    enter(&hurdle, &env.1, &["true"]).success();
    drop(env);
    hurdle.assert_nothing_left();
}

#[test]
fn rpc_lists_and_calls_anything() {
    let hurdle = Hurdle::new();
    let env = redis(&hurdle, "called");
    let interfaces = hurdle.call(&["rpc", &env.1]).success().stdout;
    for name in ["core", "net", "proc"] {
        assert!(interfaces.lines().any(|line| line == name), "{interfaces}");
    }
    assert!(hurdle.call(&["rpc", &env.1, "net"]).success().stdout.contains("sockets()"));
    let sockets: Value = serde_json::from_str(&hurdle.call(&["rpc", &env.1, "net.sockets"]).success().stdout).unwrap();
    let listens = |socket: &Value| socket["state"] == "LISTEN" && socket["local"] == "0.0.0.0:6379";
    assert!(sockets.as_array().is_some_and(|all| all.iter().any(listens)), "{sockets}");
    hurdle.call(&["rpc", &env.1, "proc.set_host_name", "fold"]).success();
    assert_eq!(enter(&hurdle, &env.1, &["hostname"]).success().stdout, "fold\n");
    hurdle.call(&["rpc", &env.1, "net.bogus"]).exits(125).says("bogus");
    hurdle.call(&["rpc", &env.1, "bogus.list"]).exits(125).says("bogus");
    hurdle.call(&["rpc", &env.1, "proc.signal", "1"]).exits(125).says("2 arguments");
    hurdle.call(&["rpc", &env.1, "proc.signal", "word", "{}"]).exits(125);
    drop(env);
    hurdle.assert_nothing_left();
}

#[test]
fn what_takes_longer_than_a_second_is_said_on_a_terminal() {
    let hurdle = Hurdle::new();
    // A server that never answers.
    let server = hurdle.logs().join("mute");
    std::fs::write(&server, "#!/bin/sh\nexec sleep 1000\n").expect("own file");
    std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).expect("own file");
    let env = detached(&hurdle, "patient", &["--server", &format!("mute={}", server.display())], &["sleep", "1000"]);
    let mut call = hurdle.command();
    let mut terminal = Terminal::start(call.args(["rpc", &env.1, "mute.speak"]));
    terminal.expect("waiting for mute.speak … 1 s");
    terminal.keys("\x03");
    assert!(!terminal.join().success());
    drop(env);
    hurdle.assert_nothing_left();
}

#[test]
fn demo_takes_less_than_ten_seconds() {
    let hurdle = Hurdle::new();
    // On a machine that others keep busy, the quickest of three.
    let mut times = Vec::new();
    let shown = loop {
        let begin = Instant::now();
        let shown = hurdle.call(&["demo"]).success();
        times.push(begin.elapsed());
        if times.last() < Some(&Duration::from_secs(10)) {
            break shown;
        }
        assert!(times.len() < 3, "{times:?}");
    };
    for word in ["share", "local", "swap"] {
        assert!(shown.stdout.contains(word), "{word}: {shown}");
    }
    hurdle.assert_nothing_left();
}

/// What bash offers at the end of `line`.
fn completed(hurdle: &Hurdle, line: &str) -> Vec<String> {
    let script = hurdle.logs().join("completion");
    std::fs::write(&script, hurdle.call(&["completions", "bash"]).success().stdout).expect("own file");
    let programs = hurdle.logs().join("bin");
    if std::fs::create_dir(&programs).is_ok() {
        std::os::unix::fs::symlink(hurdle.binary(), programs.join("hurdle")).expect("own directory");
    }
    let ask = "source \"$0\"; COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9; _hurdle; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("/bin/bash");
    bash.args(["-c", ask]).arg(&script).arg(line).env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
    finish(&mut bash, LIMIT).success().stdout.lines().map(str::to_owned).collect()
}

#[test]
fn completions_complete() {
    let hurdle = Hurdle::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = hurdle.call(&["completions", shell]).success().stdout;
        assert!(script.contains("hurdle -- "), "{shell}: {script}");
    }
    let env = detached(&hurdle, "paddock", &[], &["sleep", "1000"]);
    let begin = &env.1[..env.1.len() - 1];
    for (line, offered) in [
        ("hurdle ru".to_owned(), "run"),
        ("hurdle run --swap".to_owned(), "--swappable"),
        ("hurdle run --net l".to_owned(), "local"),
        // bash itself breaks words at `=`.
        ("hurdle run --net=n".to_owned(), "none"),
        ("hurdle run --fs ro".to_owned(), "root:"),
        (format!("hurdle kill -9 {begin}"), &env.1),
        (format!("hurdle swap {begin}"), &env.1),
        (format!("hurdle swap {} net=n", env.1), "none"),
    ] {
        let found = completed(&hurdle, &line);
        assert!(found.iter().any(|word| word == offered), "{line}: {found:?}");
    }
    // Whoever's line it is, it is not run.
    assert_eq!(completed(&hurdle, "hurdle kill no-such-name"), [""]);
    drop(env);
    hurdle.assert_nothing_left();
}

#[test]
fn a_native_port_is_not_taken() {
    // With the network shared, a server inside is the host's to reach, and gone with the environment.
    let hurdle = Hurdle::new();
    let free = std::net::SocketAddr::from(([127, 0, 0, 1], scene::port()));
    let port = free.port().to_string();
    let env =
        detached(&hurdle, "visible", &[], &["/usr/bin/python3", "-m", "http.server", &port, "--bind", "127.0.0.1"]);
    until("the host reaches it", || TcpStream::connect(free).ok());
    drop(env);
    assert!(TcpStream::connect(free).is_err());
    hurdle.assert_nothing_left();
}
