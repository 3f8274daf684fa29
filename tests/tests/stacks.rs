//! Net servers of a user's own: alone, and standing between programs and another net server, in any number.

use std::os::unix::process::CommandExt as _;
use std::time::{Duration, Instant};

use hurdle_tests::command::example;
use hurdle_tests::{Finished, Hurdle, Running, finish, skip, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(60);
const PYTHON: &str = "/usr/bin/python3";

/// A stack of example servers (`@NAME` is one's path) and standard kinds.
fn stack(text: &str) -> String {
    let path = |part: &str| match part.strip_prefix('@') {
        None => part.to_string(),
        Some(name) => {
            let (name, options) = name.split_at(name.find(',').unwrap_or(name.len()));
            format!("{}{options}", example(name).display())
        }
    };
    text.split('+').map(path).collect::<Vec<_>>().join("+")
}

fn python(hurdle: &Hurdle, net: &str, text: &str) -> Finished {
    finish(hurdle.run(&["--net", &stack(net)], PYTHON).args(["-c", text]), LIMIT)
}

fn stderr_of(hurdle: &Hurdle, name: &str) -> String {
    let lines = hurdle.right(name, "net")["stderr"].clone();
    lines.as_array().expect("a list").iter().filter_map(|line| line.as_str()).collect::<Vec<_>>().join("\n")
}

/// A connection there and back, timed, and what else a program may want of its network.
const ROUND: &str = r#"
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
began = time.monotonic()
client = socket.create_connection(listener.getsockname())
took = time.monotonic() - began
server, peer = listener.accept()
assert peer == client.getsockname() and server.getpeername() == peer, peer
client.sendall(b"there"); assert server.recv(9) == b"there"
server.sendall(b"and back"); assert client.recv(9) == b"and back"
assert socket.socket().connect_ex(("127.0.0.1", 1)) == 111
print(int(took * 1000))
"#;

#[test]
fn one_that_refuses_everything_says_why() {
    if let Some(missing) = skip::missing(&["python3"]) {
        return skip::skip("one_that_refuses_everything_says_why", &format!("{missing} is not installed"));
    }
    let hurdle = Hurdle::new();
    let text = "import socket, errno\n\
                for family in socket.AF_INET, socket.AF_INET6:\n\
                \x20   for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:\n\
                \x20       try: socket.socket(family, kind); print('a socket')\n\
                \x20       except OSError as e: print(errno.errorcode[e.errno])\n\
                socket.socketpair(); s = socket.socket(socket.AF_UNIX); s.bind('\\0x'); s.listen(); print('unix')\n";
    let done = python(&hurdle, "@refuse", text).success();
    assert_eq!(done.stdout, "ENETUNREACH\n".repeat(4) + "unix\n", "{done}");
    let name = hurdle.name("quiet");
    hurdle.detach(&name, &["--net", &stack("@refuse")], &["sleep", "1000"]);
    let refused = hurdle.call(&["enter", &name, "--", PYTHON, "-c", "import socket; socket.socket()"]);
    assert!(refused.stderr.contains("Network is unreachable"), "{refused}");
    until("the reason is shown", || stderr_of(&hurdle, &name).contains("started to work offline").then_some(()));
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn one_that_stands_between_delays_and_the_rest_is_as_below() {
    let hurdle = Hurdle::new();
    let (most, least) = (Duration::from_secs(5).as_millis(), 0);
    for (net, from) in [
        ("local", least),
        ("delay,ms=80+local", 80),
        ("@slow,ms=80+local", 80),
        ("@count+delay,ms=30+@slow,ms=50+local", 80),
        ("delay,ms=20+delay,ms=20+delay,ms=20+delay,ms=20+none", 80),
    ] {
        // The kernel's own network takes what goes on natively.
        let took: u128 = python(&hurdle, net, ROUND).success().stdout.trim().parse().expect("a number");
        assert!((from..most).contains(&took), "{net}: {took} ms");
    }
    hurdle.assert_nothing_left();
}

#[test]
fn one_that_counts_prints_what_it_saw() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("counted");
    hurdle.detach(&name, &["--net", &stack("@count+local")], &["sleep", "1000"]);
    for _ in 0..2 {
        let connect = "import socket; s = socket.create_server(('127.0.0.1', 8080)); \
                       c = socket.create_connection(('127.0.0.1', 8080)); s.accept()";
        hurdle.call(&["enter", &name, "--", PYTHON, "-c", connect]).success();
    }
    let wanted = "connect 127.0.0.1:8080: 2 times, now Passed(Returned(0))";
    until("the second is counted", || stderr_of(&hurdle, &name).contains(wanted).then_some(()));
    // What the lowest one carries is seen through all.
    let counters = hurdle.call(&["rpc", &name, "net.counters"]).success().stdout;
    assert!(counters.contains("\"connections\":2"), "{counters}");
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

/// A server that greets each connection, one that waits in accept(2) for good, and a client that connects until it is told to
/// end; it prints how often it was greeted. Any failure ends it with an error.
const TRAFFIC: &str = r#"
import os, socket, sys, threading
stop = sys.argv[1]
def serve():
    while True:
        connection, peer = listener.accept()
        connection.sendall(b"welcome"); connection.close()
listener = socket.create_server(("127.0.0.1", 9000), backlog=64)
idle = socket.create_server(("127.0.0.1", 9001))
waiting = threading.Thread(target=lambda: idle.accept()[0].sendall(b"at last"), daemon=True)
waiting.start()
threading.Thread(target=serve, daemon=True).start()
kept = socket.create_connection(("127.0.0.1", 9000))
greeted = 0
while not os.path.exists(stop):
    with socket.create_connection(("127.0.0.1", 9000), timeout=20) as client:
        assert client.recv(100) == b"welcome", greeted
    greeted += 1
    with open(stop + ".count", "w") as out: print(greeted, file=out)
assert kept.recv(100) == b"welcome"
with socket.create_connection(("127.0.0.1", 9001), timeout=20) as client:
    assert client.recv(100) == b"at last"
waiting.join(20); assert not waiting.is_alive()
print("greeted", greeted)
"#;

struct Traffic<'a> {
    hurdle: &'a Hurdle,
    name: String,
    stop: std::path::PathBuf,
    client: Running,
}

impl<'a> Traffic<'a> {
    fn start(hurdle: &'a Hurdle, base: &str, net: &str) -> Traffic<'a> {
        let name = hurdle.name(base);
        let stop = hurdle.logs().join("stop");
        let mut command = hurdle.run(&["--name", &name, "--net", &stack(net)], PYTHON);
        command.args(["-c", TRAFFIC]).arg(&stop);
        let client = hurdle.start(&mut command, "traffic");
        let traffic = Traffic { hurdle, name, stop, client };
        traffic.goes_on();
        traffic
    }

    fn greeted(&self) -> u64 {
        let text = std::fs::read_to_string(self.stop.with_extension("count")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    #[track_caller]
    fn goes_on(&self) {
        let before = self.greeted();
        until("clients are greeted", || (self.greeted() > before + 3).then_some(()));
    }

    #[track_caller]
    fn swap(&self, net: &str) {
        self.hurdle.call(&["swap", &self.name, &format!("net={}", stack(net))]).success();
        self.goes_on();
    }

    #[track_caller]
    fn end(self) {
        std::fs::write(&self.stop, "").expect("own file");
        let text = self.hurdle.logs().join("traffic");
        let ended = self.client.join();
        let said = std::fs::read_to_string(text).expect("own file");
        assert!(ended.success() && said.contains("greeted"), "{ended}: {said}");
        self.hurdle.assert_nothing_left();
    }
}

#[test]
fn a_stack_is_swapped_under_traffic() {
    let hurdle = Hurdle::new();
    let traffic = Traffic::start(&hurdle, "swapped", "local");
    for net in ["delay,ms=1+local", "@count+local", "@count+@slow,ms=1+delay,ms=1+local", "local", "@count+local"] {
        traffic.swap(net);
        let right = hurdle.right(&traffic.name, "net");
        assert_eq!((right["deaths"].as_u64(), right["spec"].as_str()), (Some(0), Some(&*stack(net))));
    }
    let refused = hurdle.call(&["swap", &traffic.name, "net=/nonexistent/between+local"]).exits(125);
    assert!(refused.stderr.contains("/nonexistent/between"), "{refused}");
    hurdle.call(&["swap", &traffic.name, "net=delay,ms=5"]).exits(125).says("delay,ms=50+local");
    traffic.goes_on();
    traffic.end();
}

fn numbers(text: &str) -> Vec<i32> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The servers of an environment's net stack, the outermost first: each is the child of the one above.
fn servers(hurdle: &Hurdle, name: &str) -> Vec<i32> {
    let top = hurdle.right(name, "net")["state"]["Running"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let below = |pid: i32| -> Option<i32> {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let children = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        let all: Vec<i32> = children.flat_map(|text| numbers(&text)).collect();
        // What makes sockets for `local`, and its worker under load, are children, too.
        let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        all.into_iter().find(|pid| !["hurdle-mint", "hurdle-traps", ""].contains(&name(pid).trim()))
    };
    std::iter::successors(top, |pid| below(*pid)).collect()
}

#[test]
fn each_server_of_a_stack_may_die_under_traffic() {
    let hurdle = Hurdle::new();
    let traffic = Traffic::start(&hurdle, "mortal", "@count+delay,ms=1+local");
    for round in 0..9 {
        let alive = until("three servers", || Some(servers(&hurdle, &traffic.name)).filter(|alive| alive.len() == 3));
        kill(Pid::from_raw(alive[round % 3]), Signal::SIGKILL).expect("it runs");
        traffic.goes_on();
    }
    traffic.end();
}

#[test]
fn a_program_of_the_users_is_found_from_where_he_swaps() {
    let hurdle = Hurdle::new();
    let traffic = Traffic::start(&hurdle, "relative", "local");
    let path = example("count");
    let mut swap = hurdle.command();
    swap.current_dir(path.parent().expect("a directory")).args(["swap", &traffic.name, "net=./count+local"]);
    finish(&mut swap, LIMIT).success();
    traffic.goes_on();
    traffic.end();
}

#[test]
fn a_lower_server_that_does_not_stay_up_fails_the_stack_with_its_reason() {
    let hurdle = Hurdle::new();
    let began = Instant::now();
    let text = "import socket\ntry: socket.create_server(('127.0.0.1', 0)); print('a listener')\n\
                except OSError as e: print(e.strerror)\n";
    let mut run = hurdle.run(&["--net", "delay,ms=1+/bin/false"], PYTHON);
    run.args(["-c", text]).process_group(0);
    let done = finish(&mut run, LIMIT).success();
    assert_eq!(done.stdout, "Network is down\n", "{done}");
    assert!(done.stderr.contains("the server below, /bin/false, does not stay up"), "{done}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    hurdle.assert_nothing_left();
}
