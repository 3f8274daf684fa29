//! Layers that lie on others (`base=`), copies of layers (`hurdle layers snapshot`), and changes that are chosen one by one
//! (`hurdle commit --interactive`).

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::pty::Terminal;
use hurdle_tests::{Cow, Finished, finish};

const LIMIT: Duration = Duration::from_secs(120);

fn sh(directory: &Path, script: &str) -> Finished {
    finish(Command::new("/bin/sh").args(["-ec", script]).current_dir(directory), LIMIT)
}

/// A directory of the host with a few files.
fn before() -> Cow {
    Cow::watching::<&str>(&[], |dir| drop(sh(dir, "mkdir d; echo one > a; echo x > d/x; echo gone > gone").success()))
}

/// What `hurdle diff` says of `name`: letters and names.
fn diff(cow: &Cow, name: &str) -> BTreeSet<String> {
    let text = cow.hurdle(&["diff", name]);
    let prefix = format!("{}/", cow.dir().display());
    let short = |line: &str| line.replace(&prefix, "").split("  ").take(2).collect::<Vec<_>>().join(" ");
    text.lines().map(short).collect()
}

fn words(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn a_layer_lies_on_another() {
    for auth in ["same", "root"] {
        let cow = before();
        let (base, top) = (cow.hurdle.name("base"), cow.hurdle.name("top"));
        let (on_base, on_top) = (format!("cow:{base}"), format!("cow:{top}"));
        let run = |spec: &str, script: &str| cow.sh(&["--fs", spec, "--auth", auth], script);
        run(&on_base, "echo base > a; rm gone; echo new > new; echo y > d/y").success();
        let spec = format!("{on_top},base={base}");
        let script = "cat a new; ls d; test ! -e gone; echo top >> a; echo back > gone; rm new d/y";
        assert_eq!(run(&spec, script).success().stdout, "base\nnew\nx\ny\n");
        // The base is what it was, and stays so; the layer on it goes on without being told of it.
        run(&on_base, "echo it ran").exits(125).says(&top);
        assert_eq!(run(&on_top, "cat a gone; ls d; test ! -e new").success().stdout, "base\ntop\nback\nx\n");
        assert_eq!(diff(&cow, &base), words(&["M a", "D gone", "A new", "A d/y"]));
        assert_eq!(diff(&cow, &top), words(&["M a", "A gone", "D new", "D d/y"]));
        cow.assert_untouched();
        // Who lies on it needs it.
        cow.hurdle.call(&["discard", &base]).exits(125).says(&top);
        // To the host they go in their order.
        cow.hurdle.call(&["commit", &top]).exits(125).says(&base);
        cow.hurdle(&["commit", &base]);
        assert_eq!(sh(cow.dir(), "cat a new; ls d; ls gone || true").success().stdout, "base\nnew\nx\ny\n");
        // The host's own change since then, by the base, is one like any other.
        cow.hurdle.call(&["commit", &top]).exits(125).says("/a: it changed on the host meanwhile");
        cow.hurdle(&["commit", "--force", &top]);
        assert_eq!(sh(cow.dir(), "cat a gone; ls d; ls new || true").success().stdout, "base\ntop\nback\nx\n");
        for name in [&top, &base] {
            cow.hurdle(&["discard", name]);
        }
        cow.hurdle.assert_nothing_left();
    }
}

/// The changes of a layer on a base may have a quota, which the base does not count for.
#[test]
fn a_layer_on_a_base_has_a_quota() {
    for auth in ["same", "root"] {
        let cow = before();
        let (base, top) = (cow.hurdle.name("base"), cow.hurdle.name("top"));
        let run = |spec: &str, script: &str| cow.sh(&["--fs", spec, "--auth", auth], script).success().stdout;
        run(
            &format!("cow:{base}"),
            "echo base > a; rm gone; head -c 30M /dev/zero > large; mkdir e; echo x > e/x; echo y > e/y",
        );
        let first = format!("cow:{top},base={base},size=16M");
        let fill = "head -c 64M /dev/zero > big 2>/dev/null || echo full; rm -f big";
        let script = format!(
            "stat -c %s large; {fill}; echo top >> a; rm large d/x; rm -r e; mkdir e; echo z > e/z; head -c 9M /dev/zero > nine"
        );
        assert_eq!(run(&first, &script), "31457280\nfull\n", "{auth}");
        // What it held before counts.
        let again = format!("cow:{top},size=16M");
        let script = "cat a; ls d e; test ! -e large; test ! -e gone; head -c 8M /dev/zero > eight 2>/dev/null || echo full; rm eight nine";
        assert_eq!(run(&again, script), "base\ntop\nd:\n\ne:\nz\nfull\n", "{auth}");
        let (a, large) = ("M a", "D large");
        assert_eq!(diff(&cow, &top), words(&[a, large, "D d/x", "D e/x", "D e/y", "A e/z"]), "{auth}");
        // Without a quota it goes on all the same.
        assert_eq!(run(&format!("cow:{top}"), "cat a; ls e"), "base\ntop\nz\n", "{auth}");
        cow.assert_untouched();
        for name in [&top, &base] {
            cow.hurdle(&["discard", name]);
        }
        cow.end();
    }
}

#[test]
fn what_can_be_no_base_is_refused() {
    let cow = before();
    let (first, second, top) = (cow.hurdle.name("first"), cow.hurdle.name("second"), cow.hurdle.name("top"));
    for name in [&first, &second] {
        cow.sh(&["--fs", &format!("cow:{name}")], "true").success();
    }
    cow.sh(&["--fs", &format!("cow:{top},base={first}")], "true").success();
    for (spec, says) in [
        (format!("cow:{top},base={second}"), "another base"),
        (format!("cow:new,base={first}-not"), "is gone"),
        (format!("cow,base={first}"), "has a name"),
        ("cow:new,base=../../etc".to_owned(), "base"),
    ] {
        let refused = cow.sh(&["--fs", &spec], "echo it ran").exits(125).says(says);
        assert_eq!((refused.stdout.as_str(), refused.stderr.lines().count()), ("", 1), "{refused}");
    }
    for name in [&top, &first, &second] {
        cow.hurdle(&["discard", name]);
    }
    cow.end();
}

#[test]
fn a_layer_is_copied_while_its_environment_goes_on() {
    for auth in ["same", "root"] {
        let cow = before();
        let (name, layer, copy) = (cow.hurdle.name("env"), cow.hurdle.name("layer"), cow.hurdle.name("copy"));
        let (on_layer, on_copy) = (format!("cow:{layer}"), format!("cow:{copy}"));
        let dir = cow.dir().display();
        let script = format!("cd {dir}; echo one > new; rm gone; touch ready; exec sleep 100");
        cow.hurdle.detach(&name, &["--fs", &on_layer, "--auth", auth], &["sh", "-ec", &script]);
        let wait = format!("until test -e {dir}/ready; do sleep 0.02; done");
        cow.hurdle(&["enter", &name, "sh", "-c", &wait]);
        cow.hurdle(&["layers", "snapshot", &name, &copy]);
        cow.hurdle(&["enter", &name, "sh", "-ec", &format!("cd {dir}; echo two > new; echo later > later")]);
        assert_eq!(diff(&cow, &copy), words(&["A new", "D gone", "A ready"]));
        assert_eq!(diff(&cow, &name), words(&["A new", "D gone", "A ready", "A later"]));
        // Each goes its own way.
        let run = |spec: &str, script: &str| cow.sh(&["--fs", spec, "--auth", auth], script).success().stdout;
        assert_eq!(run(&on_copy, "cat new; test ! -e gone; test ! -e later; echo three > new"), "one\n");
        cow.hurdle.call(&["layers", "snapshot", &name, &copy]).exits(125).says("there already");
        cow.hurdle(&["kill", &name]);
        assert_eq!(run(&on_layer, "cat new later"), "two\nlater\n");
        assert_eq!(run(&on_copy, "cat new"), "three\n");
        for name in [&layer, &copy] {
            cow.hurdle(&["discard", name]);
        }
        cow.end();
    }
}

#[test]
fn changes_are_chosen_one_by_one() {
    let cow = before();
    let name = cow.hurdle.name("choice");
    cow.sh(&["--fs", &format!("cow:{name}")], "echo two >> a; rm gone; echo new > new; echo last > z").success();
    let start = || {
        let mut command = cow.hurdle.command();
        command.args(["commit", "--interactive", &name]).current_dir(cow.dir());
        Terminal::start(&command)
    };
    // Nothing, after a look.
    let mut terminal = start();
    terminal.expect("[1/4]");
    terminal.expect("[q]uit: ");
    terminal.keys("s");
    terminal.expect("+two");
    terminal.expect("[q]uit: ");
    terminal.keys("q");
    assert_eq!(terminal.join().code(), Some(125));
    cow.assert_untouched();
    // The first and the third; what was not picked stays in the layer.
    let mut terminal = start();
    for (number, key) in [(1, "y"), (2, "n"), (3, "y"), (4, "d")] {
        terminal.expect(&format!("[{number}/4]"));
        terminal.expect("[q]uit: ");
        terminal.keys(key);
    }
    assert_eq!(terminal.join().code(), Some(0));
    assert_eq!(sh(cow.dir(), "cat a gone new; ls z 2>/dev/null || true").success().stdout, "one\ntwo\ngone\nnew\n");
    assert_eq!(diff(&cow, &name), words(&["D gone", "A z"]));
    let mut terminal = start();
    terminal.expect("[1/2]");
    terminal.keys("a");
    assert_eq!(terminal.join().code(), Some(0));
    assert_eq!(sh(cow.dir(), "cat z; ls gone 2>/dev/null || true").success().stdout, "last\n");
    assert_eq!(diff(&cow, &name), words(&[]));
    // Nobody is there who could be asked.
    cow.hurdle.call(&["commit", "--interactive", &name]).exits(125).says("terminal");
    cow.hurdle(&["discard", &name]);
    cow.hurdle.assert_nothing_left();
}
