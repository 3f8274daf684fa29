//! Servers die and are replaced under load, and no program notices. `HURDLE_DEATHS` says how often (60).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hurdle_tests::chance::{self, deaths};
use hurdle_tests::{Hurdle, Running, skip, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PROGRAMS: [&str; 5] = ["nginx", "curl", "wrk", "redis-server", "redis-benchmark"];

/// nginx and redis, asked over kept connections and over a new one for each request, until the file `stop` is there. Each client says
/// in a file of its own how it went.
const LOAD: &str = r#"
cd "$1"
nginx -p "$1" -e "$1/error.log" -c "$1/nginx.conf" &
redis-server --save '' --port 6379 >redis.log &
until curl -s http://127.0.0.1:8080/ && redis-cli ping; do sleep 0.05; done >up 2>&1
ask() { until [ -e stop ]; do "$@" || echo "FAILED with $?"; done; }
ask wrk -t1 -c4 -d1s --timeout 20s -H 'Connection: close' http://127.0.0.1:8080/ >close.txt 2>&1 & clients=$!
ask wrk -t1 -c4 -d1s --timeout 20s http://127.0.0.1:8080/ >keep.txt 2>&1 & clients="$clients $!"
ask redis-benchmark -q -n 500 -c 5 -k 0 -t get >each.txt 2>&1 & clients="$clients $!"
ask redis-benchmark -q -n 20000 -c 5 -t get >kept.txt 2>&1 & clients="$clients $!"
wait $clients
"#;

const CLIENTS: [&str; 4] = ["close.txt", "keep.txt", "each.txt", "kept.txt"];

fn nginx(dir: &Path) -> String {
    let mut places = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = write!(places, "{kind}_temp_path {}/{kind}; ", dir.display());
    }
    format!(
        "daemon off; worker_processes 2; pid {dir}/nginx.pid; error_log {dir}/error.log;
         events {{ worker_connections 512; }}
         http {{ access_log off; {places} server {{ listen 127.0.0.1:8080; root {dir}; }} }}",
        dir = dir.display()
    )
}

struct Load<'a> {
    hurdle: &'a Hurdle,
    name: String,
    running: Running,
}

impl<'a> Load<'a> {
    /// `None`: not here.
    fn start(hurdle: &'a Hurdle, test: &str, net: &str) -> Option<Load<'a>> {
        if let Some(missing) = skip::missing(&PROGRAMS) {
            skip::skip(test, &format!("{missing} is not installed"));
            return None;
        }
        let dir = hurdle.logs();
        fs::write(dir.join("nginx.conf"), nginx(dir)).expect("own file");
        fs::write(dir.join("index.html"), "in the fold\n").expect("own file");
        let name = hurdle.name(test);
        let mut run = hurdle.run(&["--name", &name, "--net", net], "/bin/sh");
        let running = hurdle.start(run.args(["-c", LOAD, "sh"]).arg(dir), "load");
        let load = Load { hurdle, name, running };
        load.goes_on();
        Some(load)
    }

    /// How much the clients have said so far.
    fn said(&self) -> [usize; 4] {
        CLIENTS.map(|file| fs::metadata(self.hurdle.logs().join(file)).map_or(0, |meta| meta.len() as usize))
    }

    /// Waits until each client has come to the end of a round.
    fn goes_on(&self) {
        let before = self.said();
        until("each client goes on", || self.said().iter().zip(before).all(|(now, then)| *now > then).then_some(()));
    }

    /// Ends the load, and looks at what the clients said.
    fn end(self) {
        self.goes_on();
        fs::write(self.hurdle.logs().join("stop"), "").expect("own file");
        let ended = self.running.join();
        for file in CLIENTS {
            let text = fs::read_to_string(self.hurdle.logs().join(file)).expect("own file");
            for bad in ["FAILED", "Socket errors", "Non-2xx", "Could not", "Error", "reset"] {
                assert!(!text.contains(bad), "{file}: {bad}: {text}");
            }
        }
        assert!(ended.success(), "{ended}");
        self.hurdle.assert_nothing_left();
    }
}

fn server(hurdle: &Hurdle, name: &str, interface: &str) -> Option<i32> {
    let pid = hurdle.right(name, interface)["state"]["Running"]["pid"].as_i64();
    pid.and_then(|pid| i32::try_from(pid).ok())
}

#[test]
fn a_net_server_dies_under_load_and_no_client_notices() {
    let hurdle = Hurdle::new();
    let Some(load) = Load::start(&hurdle, "a_net_server_dies_under_load_and_no_client_notices", "local") else {
        return;
    };
    let mut absent = Vec::new();
    for _ in 0..deaths() {
        let pid = until("a net server runs", || server(&hurdle, &load.name, "net"));
        chance::moment(Duration::from_millis(20));
        let killed = Instant::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        until("another one runs", || server(&hurdle, &load.name, "net").filter(|now| *now != pid));
        absent.push(killed.elapsed());
    }
    absent.sort();
    println!(
        "{} deaths; the next one runs, as `hurdle ls` sees it, after {:?} at the median",
        deaths(),
        absent[deaths() / 2]
    );
    assert_eq!(hurdle.right(&load.name, "net")["deaths"], deaths());
    load.end();
}

#[test]
fn a_net_server_is_swapped_under_load_and_no_client_notices() {
    let hurdle = Hurdle::new();
    let test = "a_net_server_is_swapped_under_load_and_no_client_notices";
    let Some(load) = Load::start(&hurdle, test, "local") else { return };
    let mut pauses: Vec<u64> = (0..deaths())
        .map(|round| {
            let to = ["net=local", "net=delay,ms=1+local"][round % 2];
            chance::moment(Duration::from_millis(20));
            hurdle.json(&["swap", &load.name, to])["pause_us"].as_u64().expect("a number")
        })
        .collect();
    pauses.sort_unstable();
    println!(
        "{} swaps; traffic waited {} µs at the median, {} at most",
        deaths(),
        pauses[deaths() / 2],
        pauses[deaths() - 1]
    );
    let right = hurdle.right(&load.name, "net");
    assert_eq!((&right["swaps"], &right["deaths"]), (&deaths().into(), &0.into()));
    load.end();
}

#[test]
fn auth_and_proc_servers_die_and_who_asks_them_does_not_notice() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("mortal");
    hurdle.detach(&name, &[], &["sleep", "1000"]);
    for round in 0..deaths() {
        let (interface, call) = [("proc", "ps"), ("auth", "rpc")][round % 2];
        let ask = |hurdle: &Hurdle| match call {
            "ps" => hurdle.call(&["ps", &name]).success().stdout.contains("sleep 1000"),
            _ => hurdle.call(&["rpc", &name, "auth.maps"]).success().stdout.contains("users"),
        };
        assert!(ask(&hurdle));
        let pid = until("it runs", || server(&hurdle, &name, interface));
        // While somebody asks.
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&hurdle));
            chance::moment(Duration::from_millis(5));
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            assert!(asking.join().expect("no panic"));
        });
        assert_eq!(hurdle.call(&["enter", &name, "--", "echo", "entered"]).success().stdout, "entered\n");
    }
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}
