//! /sys: with a network of its own an environment has one of its own, and the parent's other mounts in it.

use std::collections::BTreeSet;
use std::time::Duration;

use hurdle_tests::{Hurdle, Scene, finish, in_worlds};

const LIMIT: Duration = Duration::from_secs(30);

in_worlds!(interfaces: native, share, none, local);

/// Linux is the specification: /sys/class/net lists what the network namespace has, and nothing of another one.
fn interfaces(_: &Scene) {
    let listed = std::fs::read_dir("/sys/class/net").expect("/sys is mounted").flatten();
    let listed: BTreeSet<String> = listed
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let there = nix::net::if_::if_nameindex().expect("the network can be asked");
    let there: BTreeSet<String> = there.iter().map(|one| one.name().to_string_lossy().into_owned()).collect();
    assert_eq!(listed, there);
}

#[test]
fn what_is_mounted_in_sys_stays() {
    let hurdle = Hurdle::new();
    let shown = |options: &[&str]| {
        let list = "cat /proc/self/mountinfo; echo; ls /sys/fs/cgroup /sys/kernel /sys/devices";
        let done = finish(hurdle.run(options, "sh").args(["-c", list]), LIMIT).success();
        let (mounts, names) = done.stdout.split_once("\n\n").expect("both were printed");
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.starts_with("/sys"));
        (targets.map(str::to_owned).collect::<BTreeSet<_>>(), names.to_owned())
    };
    let parent = shown(&[]);
    assert!(!parent.0.is_empty());
    for options in [&["--net", "none"][..], &["--net", "local", "--auth", "root"], &["--net", "none", "--fs", "ro"]] {
        assert_eq!(shown(options), parent, "{options:?}");
    }
    // What can't be written stays so.
    let done = finish(hurdle.run(&["--net", "none", "--fs", "ro"], "touch").arg("/sys/kernel/x"), LIMIT).exits(1);
    assert!(done.stderr.contains("Read-only file system"), "{done}");
    hurdle.assert_nothing_left();
}
