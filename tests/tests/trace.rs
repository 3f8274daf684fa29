//! `hurdle trace`: what it prints, that it disturbs nobody however it ends, and that what it recorded is printed again.

use std::fs;
use std::path::PathBuf;

use hurdle_tests::command::example;
use hurdle_tests::{Finished, Hurdle, Running, for_up_to, skip, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PYTHON: &str = "/usr/bin/python3";

/// An environment that does nothing by itself.
fn env(hurdle: &Hurdle, base: &str, net: &str) -> String {
    let name = hurdle.name(base);
    hurdle.detach(&name, &["--net", net], &["sleep", "1000"]);
    name
}

/// Starts a trace, and returns once it hears of what happens.
#[track_caller]
fn trace(hurdle: &Hurdle, log: &str, arguments: &[&str]) -> Running {
    let mut tracer = hurdle.start(hurdle.command().arg("trace").args(arguments), log);
    until("it has begun", || {
        tracer.assert_alive();
        tracer.log().starts_with("      TIME").then_some(())
    });
    tracer
}

#[track_caller]
fn shows(tracer: &Running, text: &str) {
    let mut last = String::new();
    let seen = hurdle_tests::poll::within(hurdle_tests::poll::SOON, || {
        last = tracer.log();
        last.contains(text).then_some(())
    });
    assert!(seen.is_some(), "no {text:?} in\n{last}");
}

#[track_caller]
fn end(tracer: Running) {
    tracer.signal(Signal::SIGINT);
    tracer.join();
}

#[track_caller]
fn python(hurdle: &Hurdle, env: &str, text: &str) -> Finished {
    hurdle.call(&["enter", env, "--", PYTHON, "-c", text]).success()
}

#[track_caller]
fn gone(hurdle: &Hurdle, env: &str) {
    hurdle.call(&["kill", env]).success();
    hurdle.assert_nothing_left();
}

/// The pid of the server of an interface.
#[track_caller]
fn server(hurdle: &Hurdle, env: &str, interface: &str) -> i32 {
    until("it runs", || {
        let pid = hurdle.right(env, interface)["state"]["Running"]["pid"].as_i64();
        pid.and_then(|pid| i32::try_from(pid).ok())
    })
}

const ROUND: &str = r#"
import os, socket, threading
listener = socket.socket(); listener.setsockopt(socket.SOL_TCP, socket.TCP_NODELAY, 1)
listener.bind(("127.0.0.1", 7000)); listener.listen(16)
client = socket.create_connection(("127.0.0.1", 7000))
accepted, peer = listener.accept()
assert peer == client.getsockname() == accepted.getpeername()
assert socket.socket().connect_ex(("127.0.0.1", 1)) == 111
waiting = threading.Thread(target=lambda: listener.accept()); waiting.start()
while open(f"/proc/self/task/{waiting.native_id}/syscall").read().split()[0] == "running": pass
six = socket.create_server(("::1", 7001), family=socket.AF_INET6)
socket.create_connection(("127.0.0.1", 7000)); waiting.join()
print(os.getpid(), peer[1])
"#;

#[test]
fn the_calls_of_a_program_are_decoded() {
    if let Some(missing) = skip::missing(&["python3"]) {
        return skip::skip("the_calls_of_a_program_are_decoded", &format!("{missing} is not installed"));
    }
    let hurdle = Hurdle::new();
    let name = env(&hurdle, "decoded", "local");
    let tracer = trace(&hurdle, "trace", &[&name]);
    let said = python(&hurdle, &name, ROUND).stdout;
    let (pid, port) = said.trim().split_once(' ').expect("two numbers");
    for call in [
        "  socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, 0) = 3",
        "  setsockopt(3, IPPROTO_TCP, TCP_NODELAY, 1) = 0",
        "  bind(3, 127.0.0.1:7000) = 0",
        "  listen(3, 16) = 0",
        "  connect(4, 127.0.0.1:7000) = 0",
        &format!("  accept4(3, 127.0.0.1:{port}, SOCK_CLOEXEC) = "),
        &format!("  getsockname(4, 127.0.0.1:{port}) = 0"),
        ", 127.0.0.1:1) = ECONNREFUSED",
        "  socket(AF_INET6, SOCK_STREAM|SOCK_CLOEXEC, 0) = ",
        ", [::1]:7001) = 0",
        &format!("  python3 {pid}  "),
        // Once when it begins to wait, and once when it is answered, with its peer.
        "  accept4(3, …, SOCK_CLOEXEC) = waits",
    ] {
        shows(&tracer, call);
    }
    until("the accept that waited is answered", || {
        (tracer.log().matches("  accept4(3, 127.0.0.1:").count() >= 2).then_some(())
    });
    let pid = server(&hurdle, &name, "net").to_string();
    let text = tracer.log();
    let of_server = |line: &&str| line.contains(" = ") && line.contains(&format!("  net {pid}  "));
    assert!(text.lines().filter(of_server).count() > 10, "{text}");
    end(tracer);
    gone(&hurdle, &name);
}

#[test]
fn messages_are_decoded() {
    let hurdle = Hurdle::new();
    let name = env(&hurdle, "messages", "share");
    let tracer = trace(&hurdle, "trace", &[&name]);
    hurdle.call(&["rpc", &name, "auth.maps"]).success();
    hurdle.call(&["ps", &name]).success();
    hurdle.call(&["enter", &name, "--", "/bin/true"]).success();
    hurdle.call(&["rpc", &name, "auth.ids", "77777"]).exits(125);
    hurdle.call(&["rpc", &name, "auth.ids", "true"]).exits(125);
    for call in [
        r#"core.lookup(interface="auth") -> fd "#,
        "server.borrow(grant=Grant { interface: \"auth\"",
        "auth.describe() -> ()",
        "auth.maps() -> Maps { users: [MapLine {",
        "proc.list() -> [ProcessInfo { pid: 1,",
        "auth.ids(pid=77777) failed: no process 77777 inside",
        "auth.ids() failed: the arguments of ids can't be read",
        r#"(program=["/bin/true"] in "#,
        "  init.spawn(",
    ] {
        shows(&tracer, call);
    }
    let text = tracer.log();
    let by = |server: &str, who: &str| {
        let of = |line: &&str| line.contains(&format!("  {server} ")) && line.contains(&format!("  {who} ("));
        text.lines().any(|line| of(&line))
    };
    assert!(by("auth", "hurdle") && by("core", "hurdle") && by("proc", "hurdle"), "{text}");
    assert!(!text.contains("HURDLE_TEST_MARK") && !text.contains("PATH="), "no variables: {text}");
    end(tracer);
    gone(&hurdle, &name);
}

/// A client and a server that connect until they are told to end, and write how often.
const TRAFFIC: &str = r#"
import os, socket, sys, threading
stop = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 9000), backlog=64)
def serve():
    while True:
        connection, _ = listener.accept()
        connection.sendall(b"welcome"); connection.close()
threading.Thread(target=serve, daemon=True).start()
greeted = 0
while not os.path.exists(stop):
    with socket.create_connection(("127.0.0.1", 9000), timeout=20) as client:
        assert client.recv(100) == b"welcome", greeted
    greeted += 1
    with open(stop + ".count", "w") as out: print(greeted, file=out)
print("greeted", greeted)
"#;

struct Traffic<'a> {
    hurdle: &'a Hurdle,
    name: String,
    stop: PathBuf,
    client: Running,
}

impl<'a> Traffic<'a> {
    fn start(hurdle: &'a Hurdle, base: &str, net: &str) -> Traffic<'a> {
        let (name, stop) = (hurdle.name(base), hurdle.logs().join("stop"));
        let mut command = hurdle.run(&["--name", &name, "--net", net], PYTHON);
        command.args(["-c", TRAFFIC]).arg(&stop);
        let client = hurdle.start(&mut command, "traffic");
        let traffic = Traffic { hurdle, name, stop, client };
        traffic.goes_on(3);
        traffic
    }

    fn greeted(&self) -> u64 {
        let text = fs::read_to_string(self.stop.with_extension("count")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    #[track_caller]
    fn goes_on(&self, by: u64) {
        let before = self.greeted();
        for_up_to(std::time::Duration::from_secs(60), "clients are greeted", || {
            (self.greeted() >= before + by).then_some(())
        });
    }

    #[track_caller]
    fn end(self) {
        fs::write(&self.stop, "").expect("own file");
        let ended = self.client.join();
        let said = fs::read_to_string(self.hurdle.logs().join("traffic")).expect("own file");
        assert!(ended.success() && said.contains("greeted"), "{ended}: {said}");
        self.hurdle.assert_nothing_left();
    }
}

fn fds(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count())
}

#[test]
fn it_starts_and_ends_in_any_way_under_traffic_and_nobody_notices() {
    let hurdle = Hurdle::new();
    let traffic = Traffic::start(&hurdle, "often", "delay,ms=1+local");
    let (net, core) = (server(&hurdle, &traffic.name, "net"), traffic.client.id());
    // What is made at the first time stays.
    end(trace(&hurdle, "first", &[&traffic.name]));
    traffic.goes_on(2);
    let settled = |pid: i32| until("files that were open for a moment are closed", || Some(fds(pid)));
    let before = [settled(net), settled(core)];
    for round in 0..50 {
        let tracer = trace(&hurdle, &format!("trace-{round}"), &[&traffic.name, "--iface", "net"]);
        shows(&tracer, "  connect(");
        tracer.signal([Signal::SIGINT, Signal::SIGKILL, Signal::SIGTERM][round % 3]);
        tracer.join();
    }
    traffic.goes_on(3);
    until("no pipe of a tracer is left open", || (fds(net) <= before[0] && fds(core) <= before[1]).then_some(()));
    assert_eq!(hurdle.right(&traffic.name, "net")["deaths"], 0);
    traffic.end();
}

#[test]
fn one_that_does_not_read_holds_up_nobody_and_hears_what_it_lost() {
    let hurdle = Hurdle::new();
    let traffic = Traffic::start(&hurdle, "stopped", "local");
    let tracer = trace(&hurdle, "trace", &[&traffic.name]);
    tracer.signal(Signal::SIGSTOP);
    // About eight calls each; a pipe has room for some thousand.
    traffic.goes_on(2000);
    tracer.signal(Signal::SIGCONT);
    shows(&tracer, " lost: they came faster than they were read");
    // One that is killed while it is stopped.
    tracer.signal(Signal::SIGSTOP);
    traffic.goes_on(3);
    tracer.signal(Signal::SIGKILL);
    tracer.join();
    traffic.goes_on(3);
    traffic.end();
}

#[test]
fn the_successor_of_a_server_that_dies_is_traced_too() {
    let hurdle = Hurdle::new();
    let traffic = Traffic::start(&hurdle, "mortal", "local");
    let tracer = trace(&hurdle, "trace", &[&traffic.name]);
    for _ in 0..5 {
        let pid = server(&hurdle, &traffic.name, "net");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        let next = until("another one runs", || Some(server(&hurdle, &traffic.name, "net")).filter(|now| *now != pid));
        until("it reports", || {
            let of_next = |line: &str| line.contains(&format!("  net {next}  ")) && line.contains("  connect(");
            tracer.log().lines().any(of_next).then_some(())
        });
    }
    hurdle.call(&["swap", &traffic.name, "net=delay,ms=1+local"]).success();
    shows(&tracer, "  net/delay ");
    shows(&tracer, "server.give_back() -> ()");
    end(tracer);
    traffic.end();
}

#[test]
fn each_server_of_a_stack_reports() {
    let hurdle = Hurdle::new();
    let traffic = Traffic::start(&hurdle, "stack", &format!("{}+delay,ms=1+local", example("count").display()));
    let tracer = trace(&hurdle, "trace", &[&traffic.name]);
    for layer in ["count", "delay", "local"] {
        until("each reports its calls", || {
            let of = |line: &str| {
                line.contains(&format!("  net/{layer} "))
                    && line.contains("  connect(")
                    && line.contains(", 127.0.0.1:9000) = ")
            };
            tracer.log().lines().any(of).then_some(())
        });
    }
    // Those below are started anew, with what they have to report to.
    traffic.goes_on(3);
    let text = tracer.log();
    let line = text.lines().find(|line| line.contains("  net/local ")).expect("there was one");
    let pid = line.split_once("net/local ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    let pid: i32 = pid.expect("a number");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    until("the successor of the lowest reports", || {
        let other = |line: &str| line.contains("  net/local ") && !line.contains(&format!("net/local {pid} "));
        tracer.log().lines().any(other).then_some(())
    });
    end(tracer);
    traffic.end();
}

#[test]
fn a_recording_is_printed_as_it_was_live() {
    let hurdle = Hurdle::new();
    let name = env(&hurdle, "recorded", "local");
    let file = hurdle.logs().join("recording");
    let path = file.to_str().expect("UTF-8");
    let tracer = trace(&hurdle, "trace", &[&name, "--record", path]);
    python(&hurdle, &name, ROUND);
    hurdle.call(&["ps", &name]).success();
    shows(&tracer, "proc.list()");
    hurdle.call(&["kill", &name]).success();
    // It ends with the environment.
    let log = hurdle.logs().join("trace");
    assert!(tracer.join().success());
    let live = fs::read_to_string(log).expect("own file");
    assert!(live.lines().count() > 20, "{live}");
    assert_eq!(hurdle.call(&["trace", path]).success().stdout, live);

    let json = hurdle.call(&["--json", "trace", path]).success().stdout;
    let recorded = fs::read_to_string(&file).expect("own file");
    assert_eq!(json.lines().collect::<Vec<_>>(), recorded.lines().skip(1).collect::<Vec<_>>());
    let one: serde_json::Value = serde_json::from_str(json.lines().next().expect("a line")).expect("JSON");
    assert!(one["took_us"].is_u64() && one["who"]["name"].is_string(), "{one}");

    let only = hurdle.call(&["trace", path, "--iface", "proc"]).success().stdout;
    assert!(only.contains("proc.list()") && !only.contains("connect("), "{only}");

    let head = recorded.lines().next().expect("a line");
    for (text, words) in [
        (head.replace(":1,", ":2,"), "a newer hurdle recorded it (version 2"),
        (recorded[..recorded.len() - 20].to_string(), "can't be read"),
        (format!("{head}\n{{\"server\": 7}}\n"), "line 2 can't be read"),
        ("hello\n".into(), "it is no recording"),
        (String::new(), "it is no recording"),
        ("{\"hurdle_trace\":1}\n".into(), "line 1 can't be read"),
    ] {
        fs::write(&file, text).expect("own file");
        hurdle.call(&["trace", path]).exits(125).says(words);
    }
    hurdle.call(&["trace", path, "--record", "x"]).exits(125).says("a recording already");
    hurdle.call(&["trace", "./no-such-file"]).exits(125).says("No such file");
    hurdle.call(&["trace", "no-such-env"]).exits(125).says("no environment \"no-such-env\"");
    hurdle.assert_nothing_left();
}

#[test]
fn interfaces_and_processes_are_filtered() {
    let hurdle = Hurdle::new();
    let name = env(&hurdle, "filtered", "local");
    let auth = trace(&hurdle, "auth", &[&name, "--iface", "auth"]);
    let core = trace(&hurdle, "core", &[&name, "--iface", "core", "--iface", "server"]);
    let mut program = hurdle.command();
    program.args(["enter", &name, "--", PYTHON, "-uc"]);
    program.arg("import os, socket, time\nprint(os.getpid())\nwhile True: socket.socket(); time.sleep(0.01)");
    let (one, two) = (hurdle.start(&mut program, "one"), hurdle.start(&mut program, "two"));
    let pid = |of: &Running| until("it says who it is", || of.log().trim().parse::<u32>().ok());
    let (one_pid, two_pid) = (pid(&one), pid(&two));
    let both = trace(&hurdle, "both", &[&name, "--iface", "net"]);
    let single = trace(&hurdle, "single", &[&name, "--pid", &one_pid.to_string()]);
    // The first starts the server, the second is one more client of it.
    hurdle.call(&["rpc", &name, "auth.maps"]).success();
    hurdle.call(&["rpc", &name, "auth.maps"]).success();
    shows(&auth, "auth.maps()");
    shows(&core, "core.lookup(");
    shows(&core, "server.connect(");
    shows(&both, &format!("  python3 {one_pid}  "));
    shows(&both, &format!("  python3 {two_pid}  "));
    shows(&single, &format!("  python3 {one_pid}  "));
    let others = |of: &Running, known: &str| -> Vec<String> {
        of.log().lines().skip(1).filter(|line| !line.contains(known)).map(str::to_string).collect()
    };
    assert_eq!(others(&auth, "  auth."), [""; 0]);
    assert_eq!(others(&single, &format!("  python3 {one_pid}  ")), [""; 0]);
    assert_eq!(others(&both, "  python3 "), [""; 0]);
    let unknown = hurdle.call(&["trace", &name, "--iface", "nte"]).exits(125);
    assert!(unknown.stderr.contains("no interface \"nte\" here; there is fs, net, auth, proc, core"), "{unknown}");
    // Four trace already.
    let more: Vec<Running> = (0..4).map(|n| trace(&hurdle, &format!("more-{n}"), &[&name])).collect();
    hurdle.call(&["trace", &name]).exits(125).says("8 trace it already");
    more.into_iter().for_each(end);
    end(trace(&hurdle, "again", &[&name]));
    for tracer in [auth, core, both, single] {
        end(tracer);
    }
    drop((one, two));
    gone(&hurdle, &name);
}
