//! Nothing of a copy-on-write environment is left when it ends, however it ends, while it works on many files: no process, mount,
//! temporary file or layer that nobody asked to keep. A layer that was asked for is whole.
//!
//! These tests look at the whole host, so they take turns.

use std::ops::Deref;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::leaks::{Watch, pid};
use hurdle_tests::{Running, Snapshot, finish, for_up_to};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// Reads the host's files, and writes and deletes some, again and again. A wrong answer ends it. It says `round` after each turn.
const LOAD: &str = r#"
reference=$(cat /usr/include/*.h /usr/share/perl/*/*.pm 2>/dev/null | md5sum)
echo busy
mkdir load; cd load
while :; do
    [ "$(cat /usr/include/*.h /usr/share/perl/*/*.pm 2>/dev/null | md5sum)" = "$reference" ] || { echo wrong; exit 9; }
    for n in 1 2 3 4 5 6 7 8 9; do echo $n > $n || exit 8; cp ../old copy$n || exit 8; done
    echo more >> ../old || exit 8
    find /usr/share/doc /etc -maxdepth 2 >/dev/null 2>&1
    [ "$(cat 1 2 3 4 5 6 7 8 9 | wc -l)" = 9 ] || { echo wrong; exit 9; }
    rm -r ./* || exit 8
    echo round
done"#;

/// A watch over the host, and a directory of it that no environment may change.
struct Work {
    watch: Watch,
    old: Snapshot,
}

impl Deref for Work {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl Work {
    fn begin() -> Self {
        let watch = Watch::begin();
        let directory = watch.hurdle.logs().join("work");
        std::fs::create_dir(&directory).expect("own directory");
        std::fs::write(directory.join("old"), "old\n".repeat(20_000)).expect("own file");
        Self { old: Snapshot::of(&[directory]), watch }
    }

    fn end(self) {
        self.old.assert_untouched();
        self.watch.end();
    }

    /// The load, in an environment in the foreground.
    fn busy(&self, name: &str, options: &[&str]) -> Running {
        let mut command = self.hurdle.run(&[&["--name", name], options].concat(), "/bin/sh");
        command.args(["-c", LOAD]).current_dir(self.hurdle.logs().join("work"));
        let running = self.hurdle.start(&mut command, &format!("{name}.log"));
        for_up_to(LIMIT, "it is busy", || running.log().contains("round").then_some(()));
        running
    }
}

/// The servers of an environment that run.
fn servers(info: &Value) -> Vec<Pid> {
    let rights = info["rights"].as_array().expect("a list").iter();
    rights.filter_map(|right| right["state"]["Running"].get("pid")).map(pid).collect()
}

const EACH: [&[&str]; 2] = [&["--fs", "cow"], &["--fs", "cow", "--auth", "root"]];

fn killed(choose: fn(&Value) -> Vec<Pid>, signal: Signal) {
    for options in EACH {
        let watch = Work::begin();
        let name = watch.hurdle.name("victim");
        let running = watch.busy(&name, options);
        for victim in choose(&watch.hurdle.info(&name)) {
            kill(victim, signal).expect("it runs");
        }
        let status = running.join();
        assert!(!status.success(), "{status}");
        watch.end();
    }
}

#[test]
fn after_an_ordinary_end() {
    let watch = Work::begin();
    for options in EACH.iter().chain(&[&["--fs", "ro"][..], &["--fs", "cow,size=8M"][..]]) {
        let mut command = watch.hurdle.run(options, "/bin/sh");
        command.args(["-c", "echo new 2>/dev/null > new; (setsid sleep 1000 &) ; exit 3"]);
        finish(command.current_dir(watch.hurdle.logs().join("work")), LIMIT).exits(3);
    }
    watch.end();
}

#[test]
fn after_the_core_is_killed() {
    killed(|info| vec![pid(&info["core"])], Signal::SIGKILL);
}

#[test]
fn after_the_core_is_terminated() {
    killed(|info| vec![pid(&info["core"])], Signal::SIGTERM);
}

#[test]
fn after_init_is_killed() {
    killed(|info| vec![pid(&info["init"])], Signal::SIGKILL);
}

#[test]
fn after_all_is_killed_at_once() {
    let all = |info: &Value| [servers(info), vec![pid(&info["core"]), pid(&info["init"])]].concat();
    killed(all, Signal::SIGKILL);
}

/// A server that dies is followed by another; the programs notice nothing. Where the kernel does all the work no server runs.
#[test]
fn a_server_that_is_killed_has_a_successor() {
    for options in EACH {
        let watch = Work::begin();
        let name = watch.hurdle.name("victim");
        let mut running = watch.busy(&name, options);
        for death in 1..=5 {
            let victims = servers(&watch.hurdle.info(&name));
            if victims.is_empty() {
                assert!(nix::unistd::geteuid().is_root(), "an ordinary user's files come from a server");
                break;
            }
            let rounds = running.log().matches("round").count();
            victims.into_iter().for_each(|victim| kill(victim, Signal::SIGKILL).expect("it runs"));
            for_up_to(LIMIT, &format!("two more rounds after death {death}"), || {
                running.assert_alive();
                (running.log().matches("round").count() >= rounds + 2).then_some(())
            });
        }
        watch.hurdle.call(&["kill", &name]).success();
        running.join();
        watch.end();
    }
}

/// What was written to a named layer is there after the worst end; and nobody holds the layer.
#[test]
fn a_named_layer_outlives_its_environment() {
    let watch = Work::begin();
    let name = watch.hurdle.name("kept");
    let spec = format!("cow:{name}");
    let running = watch.busy(&name, &["--fs", &spec, "--auth", "root"]);
    kill(pid(&watch.hurdle.info(&name)["core"]), Signal::SIGKILL).expect("it runs");
    running.join();
    let mut command: Command = watch.hurdle.run(&["--fs", &spec, "--auth", "root"], "/bin/sh");
    let script = "tail -n 1 old; ls -d load; rm -r load; echo again";
    let done = finish(command.args(["-c", script]).current_dir(watch.hurdle.logs().join("work")), LIMIT);
    assert_eq!(done.success().stdout, "more\nload\nagain\n");
    watch.hurdle.call(&["discard", &name]).success();
    watch.end();
}
