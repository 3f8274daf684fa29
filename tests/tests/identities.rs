//! Who is who inside: `--auth same`, `--auth root` with one id and with a range, and `--isolated`.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::{Finished, Hurdle, finish, skip};

const LIMIT: Duration = Duration::from_secs(30);

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Runs a script inside, in a directory of the caller's own.
fn script(hurdle: &Hurdle, options: &[&str], text: &str) -> Finished {
    let mut command = hurdle.run(options, "/bin/sh");
    finish(command.args(["-ec", text]).current_dir(hurdle.logs()), LIMIT)
}

/// Whether the caller has more than one id to give away: as root, or by /etc/subuid.
fn has_range(test: &str) -> bool {
    let granted = |file: &str| {
        let name = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
        let text = std::fs::read_to_string(file).unwrap_or_default();
        name.is_some_and(|name| text.lines().any(|line| line.starts_with(&format!("{name}:"))))
    };
    let has = is_root() || (granted("/etc/subuid") && granted("/etc/subgid"));
    if !has {
        skip(&format!("identities::{test}"), "no ids in /etc/subuid for this user (cargo xtask install)");
    }
    has
}

#[test]
fn same_is_who_one_was() {
    let hurdle = Hurdle::new();
    let native = finish(Command::new("/usr/bin/id").arg("-u"), LIMIT).success().stdout;
    for options in [&[][..], &["--auth", "same", "--net", "local"]] {
        assert_eq!(script(&hurdle, options, "id -u").success().stdout, native);
    }
    hurdle.assert_nothing_left();
}

#[test]
fn with_a_range_root_gives_files_and_programs_to_others() {
    if !has_range("with_a_range_root_gives_files_and_programs_to_others") {
        return;
    }
    let hurdle = Hurdle::new();
    for options in [&["--auth", "root"][..], &["--auth", "root", "--net", "local"], &["--auth", "root,ids=range"]] {
        let text = "id -u; id -g; echo wool > fleece; chown 1000:1000 fleece; stat -c '%u %g' fleece; chmod 600 fleece
            su -s /bin/sh nobody -c 'id -u; id -g; cat fleece 2>/dev/null || echo closed'
            setpriv --reuid 1000 --regid 1000 --clear-groups cat fleece";
        let done = script(&hurdle, options, text).success();
        assert_eq!(done.stdout, "0\n0\n1000 1000\n65534\n65534\nclosed\nwool\n", "{options:?}: {done}");
        assert_eq!(done.stderr, "", "{options:?}: nothing to note: {done}");
        // Outside it belongs to an id of the caller's range, never to the host's user 1000 unless he is the host's root.
        let owner = std::fs::metadata(hurdle.logs().join("fleece")).expect("it is there").uid();
        assert!(if is_root() { owner == 1000 } else { owner >= 100_000 }, "{options:?}: {owner}");
        script(&hurdle, options, "rm fleece").success();
    }
    hurdle.assert_nothing_left();
}

/// The id helpers are set-uid programs, and one that became another user inside has what they gave, nothing more.
#[test]
fn a_user_inside_does_not_become_root_again() {
    if !has_range("a_user_inside_does_not_become_root_again") {
        return;
    }
    let hurdle = Hurdle::new();
    let text = "setpriv --reuid 1000 --regid 1000 --clear-groups sh -c '
        id -u; chown 0 . 2>/dev/null && echo chowned; mount -t tmpfs none /mnt 2>/dev/null && echo mounted
        kill -0 1 2>/dev/null && echo signalled; echo done'";
    assert_eq!(script(&hurdle, &["--auth", "root"], text).success().stdout, "1000\ndone\n");
    hurdle.assert_nothing_left();
}

#[test]
fn with_one_id_there_is_nobody_else_and_it_says_so() {
    let hurdle = Hurdle::new();
    if is_root() {
        // A user without subordinate ids.
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(hurdle.binary());
        command.args(["run", "--auth", "root", "--", "/bin/sh", "-c", "id -u; cat /proc/self/uid_map"]);
        let done = finish(command.current_dir("/"), LIMIT).success().says("note: root inside is the only id");
        assert_eq!(done.stdout.split_whitespace().collect::<Vec<_>>(), ["0", "0", "65534", "1"], "{done}");
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(hurdle.binary());
        command.args(["run", "--auth", "root,ids=range", "--", "true"]);
        finish(&mut command, LIMIT).exits(125).says("/etc/subuid").says("ids=range");
    } else {
        let own = nix::unistd::geteuid().to_string();
        let text = "id -u; touch own; chown 1000 own 2>&1 | grep -o 'Invalid argument'; cat /proc/self/uid_map";
        let done = script(&hurdle, &["--auth", "root,ids=one"], text).success();
        let words: Vec<&str> = done.stdout.split_whitespace().collect();
        assert_eq!(words, ["0", "Invalid", "argument", "0", own.as_str(), "1"], "{done}");
        // He asked for one.
        assert_eq!(done.stderr, "");
    }
    hurdle.call(&["run", "--auth", "root,ids=many", "--", "true"]).exits(125).says("ids");
    hurdle.assert_nothing_left();
}

#[test]
fn root_inside_is_nobody_special_outside() {
    let hurdle = Hurdle::new();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let text = "id -u; hostname inside; hostname; ip link set lo down && echo own
        mknod null c 1 3 2>/dev/null && echo made; :";
    let done = script(&hurdle, &["--isolated"], text).success();
    assert_eq!(done.stdout, "0\ninside\nown\n", "{done}");
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name"), host);
    // Where the host's root is root inside, files of the host that belong to root are his: docs/security.md says so.
    if !is_root() {
        let text = "for file in /etc/shadow /proc/sys/vm/overcommit_memory /sys/power/state; do
            [ -w $file ] && echo $file; done; mount -o remount,rw / 2>/dev/null && echo remounted; :";
        // With files of its own all of this is its own.
        assert_eq!(script(&hurdle, &["--isolated", "--fs", "share"], text).success().stdout, "");
    }
    hurdle.assert_nothing_left();
}

#[test]
fn isolated_is_all_of_its_own_where_nothing_else_is_said() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("isolated");
    hurdle.detach(&name, &["--isolated"], &["sleep", "1000"]);
    let spec = |interface: &str| hurdle.right(&name, interface)["spec"].clone();
    let specs = ["fs", "net", "auth", "proc"].map(spec);
    assert_eq!(specs, ["cow", "local", "root", "own"].map(serde_json::Value::from));
    let text = "id -u; echo /proc/[0-9]* | wc -w; python3 -c 'import socket; print(len(socket.if_nameindex()))'";
    let seen = hurdle.call(&["enter", &name, "--", "/bin/sh", "-c", text]).success().stdout;
    let seen: Vec<&str> = seen.lines().collect();
    assert_eq!(seen[0], "0");
    // Init, the sleeper, and the shell that asks with its own children.
    assert!(seen[1].parse::<u32>().is_ok_and(|count| (3..=6).contains(&count)), "{seen:?}");
    assert!(seen[2].parse::<u32>().is_ok_and(|count| count < 10), "{seen:?}");
    hurdle.call(&["kill", &name]).success();

    // What is said goes before: who he was, on the network that there is.
    let shared = hurdle.name("half");
    hurdle.detach(&shared, &["--isolated", "--net", "share", "--auth", "same"], &["sleep", "1000"]);
    assert_eq!(hurdle.right(&shared, "net")["spec"], "share");
    assert_eq!(hurdle.right(&shared, "auth")["spec"], "same");
    let (inside, native) = ("ip -o link | wc -l", "ip -o link | wc -l");
    let seen = hurdle.call(&["enter", &shared, "--", "/bin/sh", "-c", inside]).success().stdout;
    assert_eq!(seen, finish(Command::new("/bin/sh").args(["-c", native]), LIMIT).success().stdout);
    hurdle.call(&["kill", &shared]).success();
    hurdle.assert_nothing_left();
}
