//! Servers of a user's own that break every rule (libs/server/examples/hostile.rs): they harm the callers of their own
//! environment only, and these no longer than their deadlines.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use hurdle_tests::command::example;
use hurdle_tests::{Finished, Hurdle, finish, for_up_to, leaks, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The deadline of a call from the command line is 30 s.
const LIMIT: Duration = Duration::from_secs(50);
/// A core that is busy with other things than its server answers in a moment. The machine may be.
const PROMPT: Duration = Duration::from_secs(8);

/// The example under the name that says what it does.
fn hostile(hurdle: &Hurdle, mode: &str) -> String {
    let path = hurdle.logs().join(mode);
    if !path.exists() {
        symlink(example("hostile"), &path).expect("own directory");
    }
    path.display().to_string()
}

fn hello(hurdle: &Hurdle, name: &str) -> Finished {
    finish(hurdle.command().args(["rpc", name, "greet.hello", "world"]), LIMIT)
}

/// A core under test: what it has may not grow.
struct Core<'a> {
    hurdle: &'a Hurdle,
    name: &'a str,
    pid: i64,
    fds: usize,
}

impl<'a> Core<'a> {
    fn of(hurdle: &'a Hurdle, name: &'a str) -> Core<'a> {
        let pid = hurdle.info(name)["core"].as_i64().expect("a number");
        let mut core = Core { hurdle, name, pid, fds: 0 };
        core.fds = core.fds();
        core
    }

    fn fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it lives").count()
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// It answers, and so do its other servers.
    #[track_caller]
    fn is_well(&self, mode: &str) {
        for arguments in [["ls", self.name], ["ps", self.name]] {
            let began = Instant::now();
            let done = self.hurdle.call(&arguments).success();
            assert!(began.elapsed() < PROMPT, "{mode}: {arguments:?} took {:?}", began.elapsed());
            assert!(!done.stdout.contains('\x1b'), "{mode}: what a server writes reaches the terminal: {done}");
        }
        let (fds, memory) = (self.fds(), self.resident_kib());
        assert!(fds < self.fds + 60, "{mode}: {fds} fds, {} at first", self.fds);
        assert!(memory < 24 << 10, "{mode}: {memory} KiB");
    }
}

/// One that never serves a call, as its caller sees it.
fn misbehaves(mode: &str, rightly: Option<&str>) {
    let hurdle = Hurdle::new();
    let name = hurdle.name(mode);
    let server = format!("greet={}", hostile(&hurdle, mode));
    hurdle.detach(&name, &["--server", &server], &["sleep", "1000"]);
    let core = Core::of(&hurdle, &name);
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| hello(&hurdle, &name));
        let mut looks = 0;
        while !caller.is_finished() || looks < 3 {
            core.is_well(mode);
            looks += 1;
        }
        let said = caller.join().expect("no panic");
        match rightly {
            Some(answer) => assert!(said.stdout.contains(answer), "{mode}: {said}"),
            None => drop(said.exits(125)),
        }
    });
    // Away from it: the right is good, with whoever holds it.
    let good = format!("greet={}", example("greet").display());
    hurdle.call(&["swap", &name, &good]).success();
    assert!(hello(&hurdle, &name).success().stdout.contains("hello, world"));
    core.is_well(mode);
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

/// `name: mode, answer;` for each.
macro_rules! modes {
    ($($name:ident: $mode:literal, $rightly:expr;)+) => {
        $(#[test] fn $name() { misbehaves($mode, $rightly); })+
    };
}

modes! {
    one_that_never_answers: "never", None;
    one_that_answers_late: "late", Some("hello, world");
    one_that_never_takes_the_right: "mute", None;
    one_that_never_says_a_word: "sleeps", None;
    one_that_closes_its_channel_and_stays: "closes", None;
    one_that_babbles_before_it_is_asked: "babbles", None;
    one_that_ends_when_it_is_lent_the_right: "exits", None;
    one_that_kills_itself_at_each_start: "killed", None;
    one_that_answers_with_garbage: "garbage", None;
    one_that_answers_what_nobody_asked: "noise", None;
    one_that_hands_back_fds_that_nothing_names: "fds", None;
    one_that_hands_back_more_fds_than_it_says: "more_fds", None;
    one_that_says_again_and_again_that_it_died: "dead", None;
    one_that_floods_its_standard_error: "chatter", Some("hello, world");
    one_that_floods_the_store: "stuffs", Some("hello, world");
    one_that_floods_the_core: "shouts", Some("hello, world");
    one_that_does_not_hear_of_new_clients: "deaf", Some("hello, world");
    one_that_does_not_return_the_right: "clings", Some("hello, world");
    one_that_forks_away_and_ends: "forks", None;
}

/// The pids of what runs under the example's name.
fn running(hurdle: &Hurdle, mode: &str) -> Vec<u32> {
    let path = hostile(hurdle, mode);
    let is =
        |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text.starts_with(path.as_bytes()));
    leaks::marked(hurdle.mark()).into_iter().filter(is).collect()
}

#[test]
fn who_forks_away_is_ended_though_the_environment_goes_on() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("away");
    hurdle.detach(&name, &["--server", &format!("greet={}", hostile(&hurdle, "forks"))], &["sleep", "1000"]);
    // A server of the environment that has done nothing wrong goes on.
    hurdle.call(&["ps", &name]).success();
    let good = hurdle.right(&name, "proc")["state"]["Running"]["pid"].clone();
    for _ in 0..3 {
        hello(&hurdle, &name).exits(125);
    }
    // The one that has the right by now, and its child, are not gone yet.
    until("nothing is left of those before", || (running(&hurdle, "forks").len() <= 2).then_some(()));
    assert_eq!(hurdle.right(&name, "proc")["state"]["Running"]["pid"], good);
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

/// How many processes run a server of this example, its forks counted, and who they belong to.
fn family(hurdle: &Hurdle, mode: &str, interface: &str, options: [&str; 2]) -> (String, Vec<u32>) {
    let name = hurdle.name(&format!("guarded-{interface}"));
    hurdle.detach(&name, &options, &["sleep", "1000"]);
    let mut call = hurdle.command();
    // Its answer is no matter.
    let _ = finish(call.args(["rpc", &name, interface]), LIMIT);
    let all = until("it has forked", || Some(running(hurdle, mode)).filter(|all| all.len() >= 2));
    (name, all)
}

#[test]
fn who_forks_away_is_ended_though_the_core_is_killed() {
    for (mode, interface, option) in [("forks", "greet", "--server"), ("forks_net", "net", "--net")] {
        let hurdle = Hurdle::new();
        let program = hostile(&hurdle, mode);
        let value = if interface == "net" { program } else { format!("{interface}={program}") };
        let (name, all) = family(&hurdle, mode, interface, [option, &value]);
        let core = hurdle.info(&name)["core"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
        kill(Pid::from_raw(core), Signal::SIGKILL).expect("it runs");
        until("nothing is left of it", || running(&hurdle, mode).is_empty().then_some(()));
        assert!(all.len() >= 2, "{all:?}");
        hurdle.assert_nothing_left();
    }
}

/// The core of an environment, its server of `greet`, and the guard between the two.
fn generation(hurdle: &Hurdle, name: &str) -> [Pid; 3] {
    let pid = |value: &serde_json::Value| value.as_i64().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let core = pid(&hurdle.info(name)["core"]).expect("a pid");
    let parent = |of: Pid| leaks::stat(of.as_raw().cast_unsigned(), 4).map(Pid::from_raw);
    until("it runs", || {
        let server = pid(&hurdle.right(name, "greet")["state"]["Running"]["pid"])?;
        let guard = parent(server).filter(|guard| *guard != core && parent(*guard) == Some(core))?;
        Some([core, server, guard])
    })
}

/// The guard between the core and a server of the user's own is killed: then the core is the one who ends all.
#[test]
fn who_forks_away_is_ended_though_its_guard_is_killed() {
    let hurdle = Hurdle::new();
    let server = format!("greet={}", hostile(&hurdle, "forks"));
    let (name, _) = family(&hurdle, "forks", "greet", ["--server", &server]);
    let [_, server, guard] = generation(&hurdle, &name);
    let all = until("it has forked", || Some(running(&hurdle, "forks")).filter(|all| all.len() >= 2));
    kill(guard, Signal::SIGKILL).expect("it runs");
    until("it is ended", || (!running(&hurdle, "forks").contains(&server.as_raw().cast_unsigned())).then_some(()));
    until("they are ended", || running(&hurdle, "forks").iter().all(|pid| !all.contains(pid)).then_some(()));
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

/// First the server ends, then the core, before it has ended what that left behind.
#[test]
fn who_forks_away_is_ended_though_core_and_server_end_at_once() {
    let hurdle = Hurdle::new();
    let server = format!("greet={}", hostile(&hurdle, "forks"));
    let (name, _) = family(&hurdle, "forks", "greet", ["--server", &server]);
    let [core, server, _] = generation(&hurdle, &name);
    let forked = |pid: &u32| leaks::stat(*pid, 4) == Some(server.as_raw());
    until("it has forked", || running(&hurdle, "forks").iter().any(forked).then_some(()));
    kill(server, Signal::SIGKILL).expect("it runs");
    until("it has ended", || {
        leaks::stat(server.as_raw().cast_unsigned(), 3).is_none_or(|state: char| state == 'Z').then_some(())
    });
    assert!(!running(&hurdle, "forks").is_empty());
    kill(core, Signal::SIGKILL).expect("it runs");
    until("nothing is left of it", || running(&hurdle, "forks").is_empty().then_some(()));
    hurdle.assert_nothing_left();
}

/// A server that stops its guard holds up nobody but its own callers.
#[test]
fn who_stops_its_guard_is_swapped_away() {
    let hurdle = Hurdle::new();
    let server = format!("greet={}", hostile(&hurdle, "forks"));
    let (name, all) = family(&hurdle, "forks", "greet", ["--server", &server]);
    let [_, _, guard] = generation(&hurdle, &name);
    kill(guard, Signal::SIGSTOP).expect("it runs");
    hurdle.call(&["swap", &name, &format!("greet={}", example("greet").display())]).success();
    assert!(hello(&hurdle, &name).success().stdout.contains("hello, world"));
    until("they are ended", || running(&hurdle, "forks").iter().all(|pid| !all.contains(pid)).then_some(()));
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

/// Of a net server: as `who_forks_away…`, and its child holds the listener of trapped calls.
#[test]
fn a_net_server_that_forks_away_takes_nothing_with_it() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("listener");
    hurdle.detach(&name, &["--net", &hostile(&hurdle, "forks_net")], &["sleep", "1000"]);
    let began = Instant::now();
    finish(hurdle.command().args(["rpc", &name, "net.sockets"]), LIMIT).exits(125);
    assert!(began.elapsed() < LIMIT);
    hurdle.call(&["swap", &name, "net=local"]).success();
    assert_eq!(
        enter(&hurdle, &name, "import socket; socket.create_server(('127.0.0.1', 80)); print('good')"),
        "good\n"
    );
    until("nothing is left of it", || running(&hurdle, "forks_net").is_empty().then_some(()));
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

#[track_caller]
fn enter(hurdle: &Hurdle, name: &str, text: &str) -> String {
    hurdle.call(&["enter", name, "--", "python3", "-c", text]).success().stdout
}

/// A program whose net server receives its call and never answers: signals reach it, it can be killed, and a swap has the call
/// answered by the next server.
#[test]
fn programs_of_a_net_server_that_never_answers_can_be_interrupted_and_ended() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("silent");
    let text = "import os, signal, socket, sys\n\
                def alarm(*_): raise TimeoutError\n\
                signal.signal(signal.SIGALRM, alarm); signal.setitimer(signal.ITIMER_REAL, 0.3)\n\
                try: socket.socket()\n\
                except TimeoutError: print('interrupted', flush=True)\n\
                children = []\n\
                for n in range(3):\n\
                \x20   pid = os.fork()\n\
                \x20   if not pid: socket.socket(); print('a socket', flush=True); os._exit(0)\n\
                \x20   children.append(pid)\n\
                for how, pid in zip([signal.SIGTERM, signal.SIGKILL], children):\n\
                \x20   os.kill(pid, how); print(os.waitpid(pid, 0)[1], flush=True)\n\
                print('waits', flush=True); print(os.waitpid(children[2], 0)[1], flush=True)\n\
                # Its end would be the swap's.\n\
                signal.pause()\n";
    let mut run = hurdle.run(&["--name", &name, "--net", &hostile(&hurdle, "takes")], "python3");
    let program = hurdle.start(run.args(["-c", text]), "program");
    until("it is interrupted, and ends its children", || program.log().contains("waits").then_some(()));
    assert_eq!(program.log(), "interrupted\n15\n9\nwaits\n");
    hurdle.call(&["swap", &name, "net=local"]).success();
    until("the next server answers", || program.log().ends_with("a socket\n0\n").then_some(()));
    drop(program);
    // And one whose programs are all stuck can be ended.
    let stuck = hurdle.name("stuck");
    let text = "import socket; socket.socket()";
    hurdle.detach(&stuck, &["--net", &hostile(&hurdle, "takes")], &["python3", "-c", text]);
    until("its server runs", || hurdle.right(&stuck, "net")["state"]["Running"]["pid"].as_i64());
    hurdle.call(&["kill", &stuck]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn a_net_server_that_hands_out_what_is_no_socket_harms_its_programs_only() {
    let hurdle = Hurdle::new();
    let (name, other) = (hurdle.name("nulls"), hurdle.name("other"));
    hurdle.detach(&name, &["--net", &hostile(&hurdle, "nulls")], &["sleep", "1000"]);
    hurdle.detach(&other, &["--net", "local"], &["sleep", "1000"]);
    let text = "import os, socket, stat\n\
                got = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0)\n\
                print(stat.S_ISSOCK(os.fstat(got.fileno()).st_mode))";
    assert_eq!(enter(&hurdle, &name, text), "False\n");
    assert_eq!(enter(&hurdle, &other, text), "True\n");
    Core::of(&hurdle, &name).is_well("nulls");
    hurdle.call(&["swap", &name, "net=local"]).success();
    assert_eq!(enter(&hurdle, &name, text), "True\n");
    hurdle.call(&["kill", &name, &other]).success();
    hurdle.assert_nothing_left();
}

/// A killed core takes its servers with it, whatever they are up to.
#[test]
fn a_killed_core_ends_servers_that_hang() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("dead");
    hurdle.detach(&name, &["--net", &hostile(&hurdle, "takes")], &["python3", "-c", "import socket; socket.socket()"]);
    until("its server runs", || hurdle.right(&name, "net")["state"]["Running"]["pid"].as_i64());
    kill(Pid::from_raw(hurdle.info(&name)["core"].as_i64().expect("a number") as i32), Signal::SIGKILL)
        .expect("it runs");
    for_up_to(PROMPT, "nothing runs", || leaks::marked(hurdle.mark()).is_empty().then_some(()));
    hurdle.assert_nothing_left();
}

/// More clients than one message has room for: each is served by the next server.
#[test]
fn a_hundred_clients_outlive_their_server() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("crowd");
    let server = format!("greet={}", hostile(&hurdle, "never"));
    hurdle.detach(&name, &["--server", &server], &["sleep", "1000"]);
    let clients: Vec<_> = (0..100)
        .map(|n| {
            hurdle.start(hurdle.command().args(["rpc", &name, "greet.hello", &format!("number {n}")]), &format!("{n}"))
        })
        .collect();
    let core = hurdle.info(&name)["core"].as_i64().expect("a number");
    let fds = || std::fs::read_dir(format!("/proc/{core}/fd")).expect("it lives").count();
    until("all have their channel", || (fds() > 100).then_some(()));
    hurdle.call(&["swap", &name, &format!("greet={}", example("greet").display())]).success();
    assert_eq!(hurdle.right(&name, "greet")["deaths"], 0);
    // Those whose call the old server had learn that; nobody hangs.
    for (n, client) in clients.into_iter().enumerate() {
        let ended = client.join();
        let said = std::fs::read_to_string(hurdle.logs().join(n.to_string())).expect("own file");
        assert!(ended.success() || ended.code() == Some(125), "{n}: {ended}: {said}");
    }
    assert!(hello(&hurdle, &name).success().stdout.contains("hello, world"));
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}
