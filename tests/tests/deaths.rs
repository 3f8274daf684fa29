//! Servers die and are replaced under load, and no program notices. `HURDLE_DEATHS` says how often (60).

use std::time::{Duration, Instant};

use hurdle_tests::chance::{self, deaths};
use hurdle_tests::load::{ALL, Load};
use hurdle_tests::{Hurdle, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn server(hurdle: &Hurdle, name: &str, interface: &str) -> Option<i32> {
    let pid = hurdle.right(name, interface)["state"]["Running"]["pid"].as_i64();
    pid.and_then(|pid| i32::try_from(pid).ok())
}

#[test]
fn a_net_server_dies_under_load_and_no_client_notices() {
    let hurdle = Hurdle::new();
    let Some(load) = Load::of(ALL, &hurdle, "a_net_server_dies_under_load_and_no_client_notices", &["--net", "local"])
    else {
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
    let Some(load) = Load::start(&hurdle, test, &["--net", "local"]) else { return };
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
