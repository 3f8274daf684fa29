//! What lies below an environment is seen, named and reached from above; nothing above or beside is from below, and nothing is to
//! be had there that the parent has not.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use hurdle_tests::leaks::{describe, marked, processes_marked};
use hurdle_tests::{Finished, Hurdle, finish, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(60);

/// Starts environments one in the other, `$1 $2 …` their options, named `$NAME-0` and so on; each says `up` in its turn and stays,
/// also when what lies in it has ended, and tells of that.
const CHAIN: &str = r#"
level=$1; shift
if [ $# -gt 0 ]; then
    options=$1; shift
    "$HURDLE" run --name "$NAME-$level" $options -- sh -c "$CHAIN" sh $((level + 1)) "$@"
    echo "$level ended $?" >> "$SAID"
else
    echo up >> "$SAID"
fi
exec sleep $((1000 + level))
"#;

fn chain(hurdle: &Hurdle, levels: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.envs(hurdle.command().get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.env("CHAIN", CHAIN).env("NAME", hurdle.name("env")).env("HURDLE", hurdle.binary());
    command.env("SAID", hurdle.logs().join("said")).args(["-c", CHAIN, "sh", "0"]).args(levels);
    command
}

fn said(hurdle: &Hurdle) -> String {
    std::fs::read_to_string(hurdle.logs().join("said")).unwrap_or_default()
}

/// The path of the environment at this depth, from 0.
fn path(hurdle: &Hurdle, depth: usize) -> String {
    let name = hurdle.name("env");
    (0..=depth).map(|level| format!("{name}-{level}")).collect::<Vec<_>>().join("/")
}

/// Names and parents of those that `ls` shows.
fn listed(hurdle: &Hurdle) -> Vec<(String, String)> {
    let all = hurdle.json(&["ls"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
    let all = all.as_array().map_or(&[][..], Vec::as_slice).iter();
    let own = hurdle.name("env");
    all.map(|env| (text(&env["name"]), text(&env["parent"]))).filter(|(name, _)| name.starts_with(&own)).collect()
}

#[test]
fn all_that_lies_below_is_listed_reached_and_ended_by_its_path() {
    let hurdle = Hurdle::new();
    let running = hurdle.start(&mut chain(&hurdle, &["--net local", "--auth root,ids=one", "--net local"]), "log");
    until("all stand", || said(&hurdle).contains("up").then_some(()));
    let paths: Vec<String> = (0..3).map(|depth| path(&hurdle, depth)).collect();
    let expected: Vec<(String, String)> =
        (0..3).map(|n| (paths[n].clone(), if n == 0 { "host".into() } else { paths[n - 1].clone() })).collect();
    assert_eq!(listed(&hurdle), expected);

    let deepest = &paths[2];
    let one = hurdle.json(&["ls", deepest]);
    assert_eq!((&one[0]["name"], &one[0]["parent"]), (&deepest.as_str().into(), &paths[1].as_str().into()));
    assert!(hurdle.call(&["ps", deepest]).success().stdout.contains("sleep 1003"));
    assert!(!hurdle.call(&["ps", &paths[1]]).success().stdout.contains("sleep 1001"), "that is above");
    let entered = hurdle.call(&["enter", deepest, "sh", "-c", "echo $$; cat /proc/1/comm; exit 3"]).exits(3).stdout;
    assert!(entered.lines().next().and_then(|pid| pid.parse::<i32>().ok()).is_some_and(|pid| pid < 100), "{entered}");
    assert_eq!(hurdle.call(&["rpc", deepest, "proc.signal", "2", "0"]).success().stdout, "null\n");
    let swapped = hurdle.call(&["swap", &paths[0], "net=none"]).success().stdout;
    assert!(swapped.contains("net=local is now net=none"), "{swapped}");
    for wrong in [format!("{}/nobody", paths[1]), format!("nobody/{}", paths[0])] {
        hurdle.call(&["ps", &wrong]).exits(125).says("nobody");
    }
    hurdle.call(&["kill", deepest]).success();
    until("its parent hears of it", || said(&hurdle).contains("2 ended 137").then_some(()));
    assert_eq!(listed(&hurdle), expected[..2]);
    hurdle.call(&["kill", &paths[0]]).success();
    assert!(listed(&hurdle).is_empty());
    drop(running);
    hurdle.assert_nothing_left();
}

/// The number, outside, of the core of the environment at this depth: the parent of its pid 1, which is a copy of it.
fn core(hurdle: &Hurdle, depth: usize) -> Option<i32> {
    let option = format!(" --name {}-{depth} ", hurdle.name("env"));
    let status = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_string();
        line.split_whitespace().last().and_then(|number| number.parse::<i32>().ok())
    };
    let mut found = marked(hurdle.mark()).into_iter().filter(|pid| describe(*pid).contains(&option)).map(status);
    found.find(|status| field(status, "NSpid:") == Some(1)).and_then(|status| field(&status, "PPid:"))
}

#[test]
fn the_death_of_a_core_at_any_depth_ends_all_below_and_nothing_above() {
    let hurdle = Hurdle::new();
    for depth in [15, 8, 1] {
        let _ = std::fs::remove_file(hurdle.logs().join("said"));
        let running = hurdle.start(&mut chain(&hurdle, &["--net local"; 16]), "log");
        hurdle_tests::poll::for_up_to(LIMIT, "all stand", || said(&hurdle).contains("up").then_some(()));
        assert_eq!(listed(&hurdle).len(), 16);
        let core = core(&hurdle, depth).expect("it runs");
        let start = Instant::now();
        kill(Pid::from_raw(core), Signal::SIGKILL).expect("it runs");
        let sleeps = |level: usize| {
            let own = format!(": sleep {}", 1000 + level);
            processes_marked(hurdle.mark()).iter().any(|line| line.trim_end().ends_with(&own))
        };
        until("all below are gone", || (depth + 1..=16).all(|level| !sleeps(level)).then_some(()));
        let took = start.elapsed();
        until("its parent hears of it", || said(&hurdle).contains(&format!("{depth} ended 137")).then_some(()));
        assert!(took < Duration::from_secs(5), "{took:?}");
        // Those below may have had the time to tell of it, too.
        let level = |line: &str| line.split(' ').next().and_then(|level| level.parse().ok());
        assert!(said(&hurdle).lines().filter_map(level).all(|level: usize| level >= depth), "{}", said(&hurdle));
        assert_eq!(listed(&hurdle).len(), depth, "those above go on");
        assert!(depth == 0 || hurdle.call(&["enter", &path(&hurdle, depth - 1), "true"]).code() == 0);
        hurdle.call(&["kill", &path(&hurdle, 0)]).success();
        drop(running);
        hurdle.assert_nothing_left();
    }
}

/// `hurdle run OUTER -- sh -c TEXT`, in which `$HURDLE` is the command.
fn within(hurdle: &Hurdle, outer: &[&str], text: &str) -> Finished {
    finish(hurdle.run(outer, "sh").env("HURDLE", hurdle.binary()).args(["-c", text]), LIMIT)
}

#[test]
fn what_is_above_or_beside_is_neither_seen_nor_reached() {
    let hurdle = Hurdle::new();
    let beside = hurdle.name("beside");
    hurdle.detach(&beside, &["--net", "local"], &["sleep", "1000"]);
    let outer = hurdle.name("outer");
    for net in ["share", "none", "local"] {
        let inner = format!("$HURDLE run --net {net} -- sh -c '$HURDLE ls; $HURDLE ps {outer}; $HURDLE kill {beside}'");
        let done = within(&hurdle, &["--net", net, "--name", &outer], &inner).exits(125);
        assert_eq!(done.stdout.lines().count(), 1, "the head alone: {done}");
        assert!(done.stderr.contains(&outer) && done.stderr.contains(&beside), "{done}");
    }
    hurdle.call(&["kill", &beside]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn a_nested_one_gets_no_files_that_its_parent_has_not() {
    let hurdle = Hurdle::new();
    let hidden = hurdle.logs().join("hidden");
    std::fs::write(&hidden, "secret").expect("own file");
    let directory = hurdle.logs().display().to_string();
    let root = format!("root:{}", hurdle.logs().display());
    let inner = ["share", "cow", "ro", &root].map(|fs| fs.to_string());
    for outer in [format!("ro,hide={directory}"), format!("cow,hide={directory}")] {
        for fs in &inner {
            let text =
                format!("$HURDLE run --fs {fs} --auth root,ids=one -- cat {0} /hidden 2>/dev/null", hidden.display());
            assert_eq!(within(&hurdle, &["--fs", &outer], &text).stdout, "", "{outer} {fs}");
        }
    }
    // What is written lands at most in the parent's layer.
    let target = hurdle.logs().join("new");
    for outer in ["ro", "cow"] {
        for fs in ["share", "cow", "ro"] {
            let text = format!(
                "$HURDLE run --fs {fs} -- sh -c 'echo x > {0}'; $HURDLE run --fs share -- rm -f {1}",
                target.display(),
                hidden.display()
            );
            let _ = within(&hurdle, &["--fs", outer], &text);
            assert!(!target.exists() && hidden.exists(), "{outer} {fs}");
        }
    }
    hurdle.assert_nothing_left();
}

#[test]
fn a_nested_one_gets_no_network_that_its_parent_has_not() {
    let hurdle = Hurdle::new();
    let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = outside.local_addr().expect("a port").port();
    let connect = format!("import socket; print(socket.socket().connect_ex((\"127.0.0.1\", {port})))");
    for outer in ["none", "local"] {
        for inner in ["--net share", "--net none", "--net local", "--swappable", "--isolated"] {
            let text = format!("$HURDLE run {inner} -- python3 -c '{connect}'");
            let done = within(&hurdle, &["--net", outer], &text);
            // One without traps can't have one with traps inside, and says so.
            assert!(done.stdout == "111\n" || (outer == "none" && done.stdout.is_empty()), "{outer} {inner}: {done}");
        }
    }
    assert!(outside.set_nonblocking(true).is_ok() && outside.accept().is_err(), "nobody came");
    hurdle.assert_nothing_left();
}

#[test]
fn a_nested_one_gets_no_ids_rights_or_processes_that_its_parent_has_not() {
    let hurdle = Hurdle::new();
    let file = hurdle.logs().join("file");
    std::fs::write(&file, "").expect("own file");
    for net in ["share", "local"] {
        // An id that the parent's map has not is nobody's to give.
        let text = format!(
            "$HURDLE run --net {net} --auth root,ids=one -- sh -c 'id -u; chown 4242 {}; echo $?'",
            file.display()
        );
        let done = within(&hurdle, &["--net", net, "--auth", "root,ids=one"], &text);
        assert_eq!(done.stdout.lines().collect::<Vec<_>>(), ["0", "1"], "{done}");
        // The bounding set is no larger, whoever starts it.
        let bound = "grep CapBnd /proc/self/status";
        let done = within(
            &hurdle,
            &["--net", net],
            &format!("{bound}; $HURDLE run --net {net} --auth root,ids=one -- {bound}"),
        );
        let sets: Vec<u64> =
            done.stdout.lines().map(|line| u64::from_str_radix(line[7..].trim(), 16).expect("hex")).collect();
        assert!(sets.len() == 2 && sets[1] & !sets[0] == 0, "{done}");
        // The parent's processes have no numbers there, and no /proc.
        let text = format!(
            "sleep 1234 & echo $!; $HURDLE run --net {net} --auth root,ids=one -- sh -c 'ls /proc | grep -c \"^[0-9]\"; \
             cat /proc/[0-9]*/cmdline | tr \"\\0\" \" \" | grep -c \"[s]leep 1234\"; kill -0 $0 2>/dev/null; echo $?' 999999"
        );
        let done = within(&hurdle, &["--net", net], &text);
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert!(lines[1].parse::<u32>().is_ok_and(|count| count < 12) && lines[2..] == ["0", "1"], "{done}");
    }
    hurdle.assert_nothing_left();
}

/// The door starts nothing for one who is in no environment, or who keeps a filter of his own.
#[test]
fn the_door_is_no_way_for_a_stranger() {
    let hurdle = Hurdle::new();
    let outer = hurdle.name("outer");
    hurdle.detach(&outer, &["--net", "local"], &["sleep", "1000"]);
    // From outside there is no such name: it belongs to the environment's own network.
    let knock =
        "import socket; print(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect_ex('\\0hurdle-door'))";
    let outside = finish(Command::new("python3").args(["-c", knock]), LIMIT).success().stdout;
    assert_eq!(outside, "111\n");
    let beside = finish(hurdle.run(&["--net", "none"], "python3").args(["-c", knock]), LIMIT).success().stdout;
    assert_eq!(beside, "111\n");
    // What comes through it is below the same: no new privileges, and the guard of the terminal.
    let status = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status";
    let done =
        within(&hurdle, &["--net", "local"], &format!("{status}; $HURDLE run --net local -- sh -c \"{status}\""));
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert!(lines.len() == 4 && lines[..2] == lines[2..], "{done}");
    hurdle.call(&["kill", &outer]).success();
    hurdle.assert_nothing_left();
}
