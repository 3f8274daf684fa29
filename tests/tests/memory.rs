//! What a core keeps in memory of those who ask it, and of what was done to its environment.

use std::time::Duration;

use hurdle_tests::leaks::pid;
use hurdle_tests::{Hurdle, Running, for_up_to};
use nix::sys::signal::{Signal, kill};

const LIMIT: Duration = Duration::from_secs(30);

/// How many ask at a time.
const CALLERS: usize = 48;
/// What one of them may take of the core's heap, in KiB: no room for the largest message, of which he sends none.
const EACH: usize = 16;

/// How often much is done at a time, and by how much it may grow meanwhile, in KiB.
const ROUNDS: usize = 24;
const GROWTH: usize = 448;

/// How long the heap of a process is, in KiB: what its memory may come to, though nobody uses it any more.
fn heap(pid: &str) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
    let number = |text| usize::from_str_radix(text, 16).expect("an address");
    // Several, if it was copied meanwhile.
    let heaps = maps.lines().filter(|line| line.ends_with("[heap]"));
    let ends = heaps.filter_map(|line| line.split_once(' ')?.0.split_once('-'));
    ends.map(|(from, to)| (number(to) - number(from)) >> 10).sum()
}

fn threads(pid: &str) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives").count()
}

/// What a process has in memory that is of its own making, in KiB.
fn own_memory(pid: &str) -> usize {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it lives");
    let number = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<usize>().ok());
    rollup
        .lines()
        .filter(|line| line.starts_with("Pss_Anon:") || line.starts_with("Pss_Shmem:"))
        .filter_map(number)
        .sum()
}

/// A core lives as long as its environment. Room for the largest message for each caller, in the heap, was touched by and by all over,
/// and grew by what most callers at a time had needed.
#[test]
fn callers_take_no_room_in_the_heap_of_a_core() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("asked");
    hurdle.detach(&name, &["--net", "local"], &["sleep", "1000"]);
    let core = hurdle.info(&name)["core"].to_string();
    let length = heap(&core);
    let ask = |number: usize| hurdle.start(hurdle.command().args(["wait", &name]), &format!("{number}.log"));
    let waiting: Vec<Running> = (0..CALLERS).map(ask).collect();
    // A thread for each, and those that it has anyway.
    for_up_to(LIMIT, "all of them wait", || (threads(&core) > CALLERS).then_some(()));
    let more = heap(&core).saturating_sub(length);
    println!("{CALLERS} callers: {more} KiB more than {length}");
    assert!(more < CALLERS * EACH, "{more} KiB more than {length} for {CALLERS} callers");
    hurdle.call(&["kill", &name]).success();
    drop(waiting);
    hurdle.assert_nothing_left();
}

/// Much at a time, again and again: each time a core needs a little of all. What it has at most after some of it, it has after all.
#[test]
fn a_core_does_not_grow_by_what_is_done_to_its_environment() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("worked");
    hurdle.detach(&name, &["--net", "local"], &["sleep", "1000"]);
    let binary = hurdle.binary().display().to_string();
    let connect = "import socket; socket.create_server(('127.0.0.1', 0))";
    let nested = ["enter", &name, "--", &binary, "run", "--net", "local", "--", "/usr/bin/python3", "-c", connect];
    let acts: [&[&str]; 6] = [
        &["ls"],
        &["ps", &name],
        &["enter", &name, "--", "true"],
        &["rpc", &name, "auth.maps"],
        &["enter", &name, "--", "/usr/bin/python3", "-c", connect],
        &nested,
    ];
    acts.iter().for_each(|act| drop(hurdle.call(act).success()));
    let core = hurdle.info(&name)["core"].to_string();
    let first = own_memory(&core);
    for round in 0..ROUNDS {
        let swap: &[&str] = &["swap", &name, ["net=delay,ms=1+local", "net=local"][round % 2]];
        let at_once = acts.iter().copied().chain([swap]).enumerate();
        let start = |(number, act)| hurdle.start(hurdle.command().args(act), &format!("{number}.log"));
        let running: Vec<Running> = at_once.map(start).collect();
        if round % 4 == 3 {
            let info = hurdle.info(&name);
            let servers = info["rights"].as_array().expect("a list").iter();
            for server in servers.filter_map(|right| right["state"]["Running"].get("pid")) {
                // It may have been replaced meanwhile.
                let _ = kill(pid(server), Signal::SIGKILL);
            }
        }
        // Not all that asks just then succeeds.
        running.into_iter().for_each(|one| _ = one.join());
    }
    let grown = own_memory(&core).saturating_sub(first);
    println!("{ROUNDS} rounds: {grown} KiB more than {first}");
    assert!(grown < GROWTH, "{grown} KiB more than {first}");
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}
