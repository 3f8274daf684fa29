//! `hurdle commit` in bad company: killed in the middle, two at once, of a layer that an environment is using. Nothing is lost.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::{Cow, Finished, Hurdle, finish, until};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(120);

const BEFORE: &str =
    "for d in 1 2 3 4 5 6 7 8 9; do mkdir $d; for n in 0 1 2 3 4 5 6 7 8 9; do for m in 0 1 2 3 4 5 6 7 8 9; do
    echo old > $d/$n$m; done; done; done";

/// Some 2,000 changes: of each directory's 100 files a third changed, a third deleted, and as many made anew; one renamed, one replaced.
const CHANGES: &str = "for d in 1 2 3 4 5 6 7; do for n in 0 1 2; do for m in 0 1 2 3 4 5 6 7 8 9; do
    echo changed > $d/$n$m; rm $d/5$m; chmod 600 $d/7$m; mkdir $d/new$n$m; echo new > $d/new$n$m/file; done; done 2>/dev/null; done
    mv 8 moved; rm -r 9; mkdir 9; echo replaced > 9/file; ln -s moved/11 link";

const LISTING: &str =
    "find . -mindepth 1 ! -type f -printf '%P %M %l\\n' | sort; find . -type f -printf '%P %M %s\\n' | sort
    find . -type f -exec cat {} + | sort | uniq -c";

fn sh(directory: &Path, script: &str) -> Finished {
    finish(Command::new("/bin/sh").args(["-ec", script]).current_dir(directory), LIMIT)
}

/// Makes the changes in a layer called `name`, and returns what the files are there.
fn changed(cow: &Cow, name: &str) -> String {
    let spec = format!("cow:{name}");
    let done = cow.sh(&["--fs", &spec, "--auth", "root"], &format!("set +e; {CHANGES}\n{LISTING}"));
    cow.assert_untouched();
    done.success().stdout
}

fn before() -> Cow {
    Cow::watching::<&str>(&[], |dir| drop(sh(dir, BEFORE).success()))
}

fn commit(hurdle: &Hurdle, name: &str) -> Command {
    let mut command = hurdle.command();
    command.args(["commit", name]);
    command
}

/// The host has what the environment had, and nothing besides: no temporary file, no half file.
#[track_caller]
fn assert_same(cow: &Cow, inside: &str) {
    let host = sh(cow.dir(), LISTING).success().stdout;
    let first = inside.lines().zip(host.lines()).find(|(inside, host)| inside != host);
    assert!(
        inside == host,
        "first difference (inside, host): {first:?}; lines: {} {}",
        inside.lines().count(),
        host.lines().count()
    );
}

fn discard(cow: &Cow, name: &str) {
    cow.hurdle.call(&["discard", name]);
    cow.hurdle.assert_nothing_left();
}

/// Killed again and again, each time a little later, until one comes to its end. Every file of the host is at any moment the old one
/// or the new one.
#[test]
fn a_commit_that_is_killed_goes_on_when_it_is_called_again() {
    let cow = before();
    let name = cow.hurdle.name("killed");
    let inside = changed(&cow, &name);
    let mut killed = 0;
    for attempt in 0.. {
        assert!(attempt < 200, "a commit of 2,000 files ends");
        let running = cow.hurdle.start(&mut commit(&cow.hurdle, &name), "commit.log");
        // Time is the very thing that is tried here.
        std::thread::sleep(Duration::from_millis(3 + attempt * 4));
        running.signal(Signal::SIGKILL);
        let log = running.log();
        let status = running.join();
        let texts = "find . -type f ! -name '.*' -exec cat {} + | sort -u | tr '\\n' ' '";
        let texts = sh(cow.dir(), texts).success().stdout;
        assert!(texts.split_whitespace().all(|text| ["old", "changed", "new", "replaced"].contains(&text)), "{texts}");
        if status.success() {
            break;
        }
        killed += 1;
        assert!(log.is_empty() || !log.contains("panicked"), "{log}");
    }
    assert!(killed > 0, "one was killed");
    eprintln!("{killed} were killed");
    assert_same(&cow, &inside);
    discard(&cow, &name);
}

#[test]
fn of_two_commits_at_once_one_waits_or_is_refused() {
    let cow = before();
    let name = cow.hurdle.name("twice");
    let inside = changed(&cow, &name);
    let start = |log: &str| cow.hurdle.start(&mut commit(&cow.hurdle, &name), log);
    let (one, other) = (start("one.log"), start("other.log"));
    let statuses = [one.join(), other.join()];
    let succeeded = statuses.iter().filter(|status| status.success()).count();
    assert!(succeeded >= 1, "{statuses:?}");
    for status in statuses {
        assert!(status.success() || status.code() == Some(125), "{status}");
    }
    assert_same(&cow, &inside);
    discard(&cow, &name);
}

/// Whether it is refused or carries what is there so far: what the environment writes afterwards is in its layer, and nothing is lost.
#[test]
fn a_commit_against_a_running_environment_loses_nothing() {
    let cow = before();
    let name = cow.hurdle.name("running");
    let spec = format!("cow:{name}");
    let go = cow.hurdle.logs().join("go");
    let share = format!("{spec},share={}", cow.hurdle.logs().display());
    let wait = format!("until [ -e {} ]; do sleep 0.02; done", go.display());
    let script = format!("echo first > 1/first; echo ready; {wait}; echo second > 1/second");
    let mut command = cow.command(&["--name", &name, "--fs", &share, "--auth", "root"], "/bin/sh");
    let running = cow.hurdle.start(command.args(["-ec", &script]), "running.log");
    until("it has written", || running.log().contains("ready").then_some(()));
    let meanwhile = cow.hurdle.call(&["commit", &name]);
    let early = sh(cow.dir(), "cat 1/first 2>/dev/null || :").success().stdout;
    if meanwhile.status.success() {
        assert_eq!(early, "first\n");
    } else {
        assert_eq!((meanwhile.code(), early.as_str()), (125, ""), "{meanwhile}");
        cow.assert_untouched();
    }
    let discarded = cow.hurdle.call(&["discard", &name]);
    assert!(!discarded.status.success(), "a layer in use is not thrown away: {discarded}");
    std::fs::write(&go, "").expect("own file");
    assert!(running.join().success());
    finish(&mut commit(&cow.hurdle, &name), LIMIT).success();
    assert_eq!(sh(cow.dir(), "cat 1/first 1/second").success().stdout, "first\nsecond\n");
    discard(&cow, &name);
}

/// Without a name it is in memory, and as much its environment's own.
#[test]
fn a_layer_in_memory_is_carried_over_while_its_environment_runs_if_asked() {
    for size in ["", ",size=64M"] {
        let cow = before();
        let name = cow.hurdle.name("memory");
        let logs = cow.hurdle.logs();
        let fs = format!("cow{size},share={}", logs.display());
        let wait = |file: &str| format!("until [ -e {}/{file} ]; do sleep 0.02; done", logs.display());
        let first = format!("echo first > 1/first; echo ready; {}", wait("go"));
        let script = format!("{first}; echo second > 1/second; echo done; {}", wait("end"));
        let mut command = cow.command(&["--name", &name, "--fs", &fs, "--auth", "root"], "/bin/sh");
        let running = cow.hurdle.start(command.args(["-ec", &script]), "running.log");
        until("it has written", || running.log().contains("ready").then_some(()));
        let by = format!("is in use by environment {name}");
        cow.hurdle.call(&["commit", &name]).exits(125).says(&by).says("--running");
        cow.hurdle.call(&["discard", &name]).exits(125).says(&by);
        cow.assert_untouched();
        cow.hurdle.call(&["commit", "--running", &name]).success();
        assert_eq!(sh(cow.dir(), "cat 1/first").success().stdout, "first\n");
        std::fs::write(logs.join("go"), "").expect("own file");
        until("it goes on", || running.log().contains("done").then_some(()));
        cow.hurdle.call(&["commit", "--running", &name]).success();
        assert_eq!(sh(cow.dir(), "cat 1/first 1/second").success().stdout, "first\nsecond\n");
        std::fs::write(logs.join("end"), "").expect("own file");
        assert!(running.join().success());
        cow.hurdle.assert_nothing_left();
    }
}

/// One layer, two environments: the second is refused while the first writes.
#[test]
fn a_layer_is_one_environments() {
    let cow = before();
    let name = cow.hurdle.name("one");
    let spec = format!("cow:{name}");
    let first = cow.hurdle.name("first");
    cow.hurdle.detach(&first, &["--fs", &spec], &["sleep", "1000"]);
    let refused = cow.sh(&["--fs", &spec], "echo it ran").exits(125).says(&name);
    assert_eq!((refused.stdout.as_str(), refused.stderr.lines().count()), ("", 1), "{refused}");
    cow.hurdle.call(&["kill", &first]).success();
    until("the layer is free", || {
        let done = cow.sh(&["--fs", &spec], "echo it ran");
        (done.stdout == "it ran\n").then_some(())
    });
    cow.hurdle(&["discard", &name]);
    cow.end();
}
