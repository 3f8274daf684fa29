//! `--fs root:DIR`: another system's tree, with /proc, /dev, /sys and /tmp as its programs expect them, and nothing of the
//! host's files.
//!
//! The tree is a static busybox and this test's own executable, which is static too and looks around from within.

use std::fs::{
    File, Permissions, create_dir_all, metadata, read_dir, read_link, read_to_string, remove_dir, set_permissions,
};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hurdle_tests::pty::Terminal;
use hurdle_tests::{Finished, Hurdle, finish, skip, until};
use nix::sys::stat::{major, minor};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);

/// Says to this executable that it runs in the tree, and names a file of the host that it must not see.
const HIDDEN: &str = "HURDLE_TREE_HIDDEN";

/// Directories that a tree has to have, or its owner's program to be able to make.
const PLACES: [&str; 5] = ["dev", "proc", "sys", "tmp", "run"];

/// A tree that everybody may read and only its maker write; none, with a SKIP line, without a static busybox.
fn tree(test: &str) -> Option<TempDir> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| is_static(path));
    let Some(busybox) = busybox else {
        skip(&format!("tree::{test}"), "there is no static busybox (cargo xtask install)");
        return None;
    };
    let tree = tempfile::Builder::new().prefix("hurdle-tree-").tempdir().expect("a temporary directory");
    for name in PLACES.iter().chain(&["bin", "etc"]) {
        create_dir_all(tree.path().join(name)).expect("own directory");
    }
    let this = std::env::current_exe().expect("a process knows its executable");
    for (from, name) in [(busybox, "busybox"), (&this, "look")] {
        let to = tree.path().join("bin").join(name);
        std::fs::copy(from, &to).expect("own file");
        set_permissions(&to, Permissions::from_mode(0o755)).expect("own file");
    }
    for name in ["sh", "ls", "cat", "id", "sleep", "true", "tty"] {
        symlink("busybox", tree.path().join("bin").join(name)).expect("own directory");
    }
    std::fs::write(tree.path().join("etc/flock"), "sheep\n").expect("own file");
    set_permissions(tree.path(), Permissions::from_mode(0o755)).expect("own directory");
    Some(tree)
}

/// Whether an executable needs no loader: it names no interpreter.
fn is_static(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| !bytes.windows(8).any(|window| window == b"/ld-linu"))
}

fn root(tree: &Path) -> String {
    format!("root:{}", tree.display())
}

fn sh(hurdle: &Hurdle, options: &[&str], text: &str) -> Finished {
    finish(hurdle.run(options, "/bin/sh").args(["-c", text]), LIMIT)
}

#[test]
fn programs_find_what_they_expect_and_nothing_of_the_host() {
    if let Some(hidden) = std::env::var_os(HIDDEN) {
        return look_around(Path::new(&hidden));
    }
    let Some(tree) = tree("programs_find_what_they_expect_and_nothing_of_the_host") else { return };
    let hurdle = Hurdle::new();
    let hidden = hurdle.logs().join("hidden");
    std::fs::write(&hidden, "of the host\n").expect("own file");
    let fs = root(tree.path());
    let more: [&[&str]; 4] = [&[], &["--auth", "root"], &["--net", "local"], &["--net", "local", "--auth", "root"]];
    for options in more {
        let mut command = hurdle.run(&[&["--fs", fs.as_str()], options].concat(), "/bin/look");
        command.args(["--exact", "programs_find_what_they_expect_and_nothing_of_the_host", "--nocapture"]);
        let done = finish(command.env(HIDDEN, &hidden).current_dir("/"), LIMIT).success();
        assert!(done.stdout.contains("1 passed"), "{options:?}: {done}");
    }
    // What a program writes to /tmp and /dev is gone with it; the tree is as it was.
    for name in PLACES {
        assert_eq!(read_dir(tree.path().join(name)).expect("own directory").count(), 0, "{name}");
    }
    hurdle.assert_nothing_left();
}

/// What the tree lacks is there inside, and not afterwards; but for what somebody put there, and what another one needs.
#[test]
fn mount_points_that_were_made_are_gone_afterwards() {
    let Some(tree) = tree("mount_points_that_were_made_are_gone_afterwards") else { return };
    let hurdle = Hurdle::new();
    for name in PLACES {
        remove_dir(tree.path().join(name)).expect("own directory");
    }
    let fs = root(tree.path());
    let names = || {
        let mut names: Vec<String> = read_dir(tree.path())
            .expect("own")
            .map(|e| e.expect("own").file_name().into_string().expect("plain"))
            .collect();
        names.sort();
        names.join(" ")
    };
    let look = "cat /proc/self/comm; ls -d /dev/null /sys/class /tmp /run; echo x > /tmp/x";
    let inside = "cat\n/dev/null\n/run\n/sys/class\n/tmp\n";
    for options in [&["--auth", "same"], &["--auth", "root"]] {
        assert_eq!(sh(&hurdle, &[&["--fs", fs.as_str()], &options[..]].concat(), look).success().stdout, inside);
        assert_eq!(names(), "bin etc", "{options:?}");
    }
    // The first one to end leaves the other what it stands on.
    let (first, second) = (hurdle.name("first"), hurdle.name("second"));
    for name in [&first, &second] {
        hurdle.detach(name, &["--fs", &fs], &["/bin/sleep", "1000"]);
    }
    hurdle.call(&["kill", &first]).success();
    hurdle.call(&["wait", &first]);
    assert_eq!(hurdle.call(&["enter", &second, "/bin/sh", "-c", look]).success().stdout, inside);
    assert_eq!(names(), "bin dev etc proc run sys tmp");
    hurdle.call(&["kill", &second]).success();
    until("the second one has cleaned up", || (names() == "bin etc").then_some(()));
    // One that is killed leaves them to the next one; what somebody put there stays.
    let running =
        hurdle.start(hurdle.run(&["--fs", &fs], "/bin/sh").args(["-c", "echo ready; exec sleep 1000"]), "log");
    until("it runs", || running.log().contains("ready").then_some(()));
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.join();
    assert_eq!(names(), "bin dev etc proc run sys tmp");
    std::fs::write(tree.path().join("run/mine"), "mine\n").expect("own file");
    sh(&hurdle, &["--fs", &fs], "true").success();
    assert_eq!(names(), "bin etc run");
    hurdle.assert_nothing_left();
}

/// The part of the test above that runs in the tree.
fn look_around(hidden: &Path) {
    let text = |path: &str| read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));

    // The tree is all there is.
    assert_eq!(text("/etc/flock"), "sheep\n");
    let mut names: Vec<String> =
        read_dir("/").expect("/").map(|e| e.expect("/").file_name().into_string().expect("plain")).collect();
    names.sort();
    assert_eq!(names, ["bin", "dev", "etc", "proc", "run", "sys", "tmp"]);
    let under = |prefix: &str| PathBuf::from(prefix).join(hidden.strip_prefix("/").expect("absolute"));
    for prefix in ["/", "/..", "/proc/1/root", "/proc/self/root", "/proc/1/cwd/..", "/proc/self/cwd/../.."] {
        assert!(!under(prefix).exists(), "{prefix}");
    }

    // /proc is the environment's own.
    assert_eq!(read_link("/proc/self").expect("/proc").to_string_lossy(), std::process::id().to_string());
    assert!(text("/proc/1/stat").starts_with("1 ") && text("/proc/self/maps").contains("/bin/look"));
    assert!(Path::new("/sys/class/net/lo").is_dir() && Path::new("/sys/devices").is_dir());

    // Devices: their numbers are those of Documentation/admin-guide/devices.txt.
    let devices = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, expected_major, expected_minor) in devices {
        let device = metadata(format!("/dev/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(device.file_type().is_char_device(), "{name}");
        assert_eq!((major(device.rdev()), minor(device.rdev())), (expected_major, expected_minor), "{name}");
    }
    File::options().write(true).open("/dev/null").and_then(|mut null| null.write_all(b"wool")).expect("/dev/null");
    let mut bytes = [1; 64];
    File::open("/dev/zero").and_then(|mut zero| zero.read_exact(&mut bytes)).expect("/dev/zero");
    assert_eq!(bytes, [0; 64]);
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).expect("/dev/urandom");
    assert_ne!(bytes, [0; 64]);
    let full = File::options().write(true).open("/dev/full").and_then(|mut full| full.write_all(b"wool"));
    assert_eq!(full.expect_err("it is full").raw_os_error(), Some(nix::errno::Errno::ENOSPC as i32));
    for (name, number) in [("stdin", 0), ("stdout", 1), ("stderr", 2)] {
        assert_eq!(
            read_link(format!("/dev/{name}")).expect("a link"),
            PathBuf::from(format!("/proc/self/fd/{number}"))
        );
    }
    assert!(Path::new("/dev/fd/0").exists());

    // A terminal of its own.
    let pty = nix::pty::openpty(None, None).expect("a pseudo-terminal");
    let name = nix::unistd::ttyname(&pty.slave).expect("it has a name here");
    assert!(name.starts_with("/dev/pts/") && name.exists(), "{}", name.display());
    File::from(pty.master.try_clone().expect("a duplicate")).write_all(b"baa\n").expect("the terminal");
    let mut line = [0; 4];
    File::from(pty.slave).read_exact(&mut line).expect("the terminal");
    assert_eq!(&line, b"baa\n");

    // Places to write to, sticky and open to everybody.
    for place in ["/tmp", "/dev/shm"] {
        assert_eq!(metadata(place).expect("a place").mode() & 0o7777, 0o1777, "{place}");
        let file = format!("{place}/flock");
        std::fs::write(&file, "lamb").unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(text(&file), "lamb");
    }
    assert!(Path::new("/run").is_dir());
}

#[test]
fn the_directory_may_be_relative_and_a_program_may_enter() {
    let Some(tree) = tree("the_directory_may_be_relative_and_a_program_may_enter") else { return };
    let hurdle = Hurdle::new();
    let (parent, name) = (tree.path().parent().expect("a parent"), tree.path().file_name().expect("a name"));
    let fs = format!("root:{}", name.to_str().expect("a plain name"));
    let mut command = hurdle.run(&["--fs", &fs], "/bin/cat");
    let done = finish(command.arg("/etc/flock").current_dir(parent), LIMIT).success();
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("sheep\n", ""), "{done}");
    let mut command = hurdle.run(&["--fs", "root:."], "/bin/cat");
    finish(command.arg("/etc/flock").current_dir(tree.path()), LIMIT).success();

    let env = hurdle.name("tree");
    hurdle.detach(&env, &["--fs", &root(tree.path()), "--net", "local"], &["/bin/sleep", "1000"]);
    assert_eq!(hurdle.call(&["enter", &env, "--", "cat", "/etc/flock"]).success().stdout, "sheep\n");
    hurdle.call(&["enter", &env, "--", "bash", "-c", "true"]).exits(127).says("bash");
    let mounts = hurdle.call(&["rpc", &env, "fs.mounts"]).success().stdout;
    let mounts: serde_json::Value = serde_json::from_str(&mounts).expect("JSON");
    let targets: Vec<&str> = mounts.as_array().expect("a list").iter().filter_map(|m| m["target"].as_str()).collect();
    for target in ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/sys", "/tmp"] {
        assert!(targets.contains(&target), "{target}: {targets:?}");
    }
    hurdle.call(&["kill", &env]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn a_program_that_only_the_host_has_is_not_found() {
    let Some(tree) = tree("a_program_that_only_the_host_has_is_not_found") else { return };
    let hurdle = Hurdle::new();
    let fs = root(tree.path());
    for program in ["bash", "/usr/bin/python3"] {
        finish(&mut hurdle.run(&["--fs", &fs], program), LIMIT).exits(127).says(program);
    }
    // The working directory is not there either: the program starts in one that is.
    assert_eq!(sh(&hurdle, &["--fs", &fs], "cat /etc/flock").success().stdout, "sheep\n");
    hurdle.assert_nothing_left();
}

#[test]
fn a_program_at_a_terminal_knows_its_name() {
    let Some(tree) = tree("a_program_at_a_terminal_knows_its_name") else { return };
    let hurdle = Hurdle::new();
    let text = "tty && echo '<'wool'>' > \"$(tty)\"; exec cat";
    let mut run = hurdle.run(&["--fs", &root(tree.path())], "/bin/sh");
    let mut terminal = Terminal::start(run.args(["-c", text]));
    terminal.expect("/dev/console");
    terminal.expect("<wool>");
    // Where no terminal is, none is shown.
    let done = sh(&hurdle, &["--fs", &root(tree.path())], "ls /dev; tty").exits(1);
    assert!(done.stdout.contains("not a tty") && !done.stdout.contains("console"), "{done}");
    terminal.keys("\x04");
    assert!(terminal.join().success());
    hurdle.assert_nothing_left();
}

#[test]
fn a_tree_that_cannot_be_is_refused() {
    let hurdle = Hurdle::new();
    let file = hurdle.logs().join("file");
    std::fs::write(&file, "").expect("own file");
    for (argument, says) in [("/nonexistent/tree", "/nonexistent/tree"), (file.to_str().expect("plain"), "directory")] {
        let done = hurdle.call(&["run", "--fs", &format!("root:{argument}"), "--", "true"]).exits(125).says(says);
        assert_eq!((done.stdout.as_str(), done.stderr.lines().count()), ("", 1), "{done}");
    }
    hurdle.assert_nothing_left();
}

/// Where a tree lacks a place to mount on, its owner gets one made; who may not make it is told which.
#[test]
fn a_tree_without_places_is_completed_or_refused() {
    let Some(tree) = tree("a_tree_without_places_is_completed_or_refused") else { return };
    let hurdle = Hurdle::new();
    for name in PLACES {
        std::fs::remove_dir(tree.path().join(name)).expect("own directory");
    }
    let fs = root(tree.path());
    if nix::unistd::geteuid().is_root() {
        let mut command = std::process::Command::new("/usr/bin/setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(hurdle.binary());
        command.args(["run", "--fs", &fs, "--", "/bin/true"]);
        let done = finish(command.current_dir("/"), LIMIT).exits(125).says("permission denied");
        assert_eq!((done.stdout.as_str(), done.stderr.lines().count()), ("", 1), "{done}");
    }
    assert_eq!(sh(&hurdle, &["--fs", &fs], "cat /etc/flock; : > /dev/null").success().stdout, "sheep\n");
    hurdle.assert_nothing_left();
}

/// Who made the tree does not choose what of the host is covered: a link in it leads to places in it.
#[test]
fn links_in_the_tree_lead_into_the_tree() {
    let Some(tree) = tree("links_in_the_tree_lead_into_the_tree") else { return };
    let hurdle = Hurdle::new();
    let outside = hurdle.logs().join("outside");
    std::fs::create_dir(&outside).expect("own directory");
    std::fs::remove_dir(tree.path().join("dev")).expect("own directory");
    symlink(&outside, tree.path().join("dev")).expect("own directory");
    let done = sh(&hurdle, &["--fs", &root(tree.path())], "[ -c /dev/null ] && echo there");
    // Either is honest; half of each is not.
    let refused = done.code() == 125 && done.stderr.contains("/dev");
    assert!(refused || done.stdout == "there\n", "{done}");
    assert_eq!(read_dir(&outside).expect("own directory").count(), 0);
    hurdle.assert_nothing_left();
}
