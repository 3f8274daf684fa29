//! `hurdle doctor`: what it says of this machine, and of one where something is missing.

use std::process::Command;
use std::time::Duration;

use hurdle_tests::{Finished, Hurdle, finish, skip};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

fn findings(done: &Finished) -> Vec<Value> {
    serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {done}"))
}

fn finding<'a>(all: &'a [Value], name: &str) -> &'a Value {
    all.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name}: {all:?}"))
}

#[test]
fn all_that_is_needed_is_here() {
    let hurdle = Hurdle::new();
    let report = hurdle.call(&["doctor"]).success();
    assert!(report.stdout.contains("All that hurdle needs is here"), "{report}");
    let all = hurdle.json(&["doctor"]);
    let all = all.as_array().expect("a list");
    assert!(all.len() >= 10, "{all:?}");
    for finding in all {
        let (status, why) = (&finding["status"], &finding["why"]);
        assert!((status == "ok") == why.is_null(), "what is not ok says why: {finding}");
        assert!(status == "ok" || status == "optional", "{finding}");
        // The table names each once, and says what needs it.
        let line = |line: &&str| line.split_whitespace().nth(1) == finding["name"].as_str();
        assert_eq!(report.stdout.lines().filter(line).count(), 1, "{finding}: {report}");
    }
    hurdle.assert_nothing_left();
}

/// `hurdle doctor ARGUMENTS`, started by a shell in a user namespace of its own after `preparation`.
fn prepared(hurdle: &Hurdle, options: &[&str], preparation: &str, arguments: &str) -> Finished {
    let mut command = Command::new("/usr/bin/unshare");
    command.args(options).args(["/bin/sh", "-c"]);
    command.arg(format!("{preparation} && exec \"$0\" {arguments} doctor")).arg(hurdle.binary());
    finish(&mut command, LIMIT)
}

#[test]
fn forbidden_user_namespaces_are_named_with_their_mend() {
    let hurdle = Hurdle::new();
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces";
    let sysctl = "sysctl -w user.max_user_namespaces=";
    let told = prepared(&hurdle, &["--user", "--map-root-user"], forbid, "").exits(1);
    // One cause fails many checks, and is told once.
    assert_eq!(told.stdout.matches(sysctl).count(), 1, "{told}");
    assert!(told.stdout.contains("are missing"), "{told}");
    let all = findings(&prepared(&hurdle, &["--user", "--map-root-user"], forbid, "--json").exits(1));
    let namespace = finding(&all, "user-namespace");
    assert_eq!(namespace["status"], "missing");
    assert!(namespace["why"].as_str().is_some_and(|why| why.contains("user.max_user_namespaces is 0")), "{namespace}");
    assert!(namespace["mend"].as_str().is_some_and(|mend| mend.contains(sysctl)), "{namespace}");
    // What does not depend on it works.
    assert_eq!(finding(&all, "trap")["status"], "ok");
    hurdle.assert_nothing_left();
}

/// A device that its user may not open is optional as long as nothing of hurdle's needs it; the mend opens it.
#[test]
fn a_closed_device_is_named_with_its_mend() {
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/dev/fuse").exists() {
        return skip("doctor::a_closed_device_is_named_with_its_mend", "root closes /dev/fuse to another user");
    }
    let hurdle = Hurdle::new();
    // In a mount namespace of its own, as on a bare devtmpfs.
    let close = "mount -t tmpfs none /mnt && mknod -m 0600 /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse";
    let become_nobody = "set -- setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\"";
    let run = |arguments: &str, expected: i32| {
        let mut command = Command::new("/usr/bin/unshare");
        let text = format!("{close} && {become_nobody} && exec \"$@\" {arguments}");
        command.args(["--mount", "/bin/sh", "-c", &text]).arg(hurdle.binary());
        finish(&mut command, LIMIT).exits(expected)
    };
    let all = findings(&run("--json doctor", 0));
    let fuse = finding(&all, "fuse");
    assert_eq!(fuse["status"], "optional");
    assert!(fuse["why"].as_str().is_some_and(|why| why.contains("/dev/fuse")), "{fuse}");
    assert!(fuse["mend"].as_str().is_some_and(|mend| mend.ends_with("chmod 0666 /dev/fuse")), "{fuse}");
    assert!(run("doctor", 0).stdout.contains("optional thing"));
    // What needs it says so.
    run("run --fs cow -- true", 125).says("/dev/fuse").says("chmod 666 /dev/fuse");
    // The rest goes without.
    run("run --net local --auth root -- true", 0);
    hurdle.assert_nothing_left();
}
