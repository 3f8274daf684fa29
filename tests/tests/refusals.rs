//! Bad input: each gets one clear error that says what, why and what to do. 125 for hurdle's own errors, 126 and 127 as
//! shells use them, and nothing hangs or stops the core.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::{Finished, Hurdle, finish, until};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};
use std::os::fd::AsRawFd;

const LIMIT: Duration = Duration::from_secs(30);

/// One error of hurdle's own: exit code 125, a line that names `what`, nothing on standard output, no panic.
#[track_caller]
fn refused(hurdle: &Hurdle, arguments: &[&str], what: &str) {
    let done = hurdle.call(arguments).exits(125).says(what);
    assert_clear(&done);
    hurdle.assert_nothing_left();
}

#[track_caller]
fn assert_clear(done: &Finished) {
    assert_eq!(done.stdout, "", "{done}");
    assert!(!done.stderr.contains("panicked") && !done.stderr.contains("Err("), "{done}");
}

#[test]
fn an_unknown_spec_is_named_with_what_there_is() {
    let hurdle = Hurdle::new();
    for kind in ["fs", "net", "auth", "proc"] {
        refused(&hurdle, &["run", &format!("--{kind}"), "bogus", "--", "true"], "bogus");
    }
    refused(&hurdle, &["run", "--net", "bogus", "--", "true"], "local");
    refused(&hurdle, &["run", "--net", "local,speed=9", "--", "true"], "speed");
    refused(&hurdle, &["run", "--net", "bogus+local", "--", "true"], "bogus");
    refused(&hurdle, &["run", "--net", "", "--", "true"], "net");
    refused(&hurdle, &["run", "--net", "./nonexistent", "--", "true"], "nonexistent");
    refused(&hurdle, &["run", "--fs", "root", "--", "true"], "root:");
    refused(&hurdle, &["run", "--fs", "root:/nonexistent", "--", "true"], "/nonexistent");
    refused(&hurdle, &["run", "--fs", "root:/etc/passwd", "--", "true"], "/etc/passwd");
}

#[test]
fn wrong_usage_is_hurdles_own_error() {
    let hurdle = Hurdle::new();
    refused(&hurdle, &["run", "--bogus", "--", "true"], "--bogus");
    refused(&hurdle, &["bogus"], "bogus");
    refused(&hurdle, &["run", "--net"], "--net");
    refused(&hurdle, &["kill"], "usage");
    refused(&hurdle, &["ps", "nobody-has-this-name"], "nobody-has-this-name");
    refused(&hurdle, &["enter", "nobody-has-this-name", "--", "true"], "nobody-has-this-name");
    refused(&hurdle, &["wait", "nobody-has-this-name"], "nobody-has-this-name");
    refused(&hurdle, &["kill", "nobody-has-this-name"], "nobody-has-this-name");
    assert!(hurdle.call(&["--help"]).success().stdout.contains("run"));
    assert!(hurdle.call(&["help", "run"]).success().stdout.contains("--net"));
    assert!(hurdle.call(&["--version"]).success().stdout.starts_with("hurdle "));
}

#[test]
fn a_slip_of_the_key_gets_a_hint() {
    let hurdle = Hurdle::new();
    refused(&hurdle, &["runn", "true"], "similar subcommand exists: 'run'");
    refused(&hurdle, &["run", "--net", "loca", "--", "true"], "did you mean `local`?");
    refused(&hurdle, &["run", "--name", "host", "--", "true"], "can't be a name");
    let name = hurdle.name("orchard");
    hurdle.detach(&name, &[], &["sleep", "1000"]);
    let near = name.replace("orchard", "orchrad");
    hurdle.call(&["ps", &near]).exits(125).says(&format!("did you mean {name}?"));
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn what_cannot_be_written_is_an_error_and_a_reader_that_left_is_none() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("silo");
    hurdle.detach(&name, &[], &["sleep", "1000"]);
    let commands: [&[&str]; 9] = [
        &["ls"],
        &["--json", "ls"],
        &["ls", &name],
        &["ps", &name],
        &["rpc", &name],
        &["rpc", &name, "proc"],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
    ];
    for command in commands {
        assert_written_or_said(&hurdle, command);
    }
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

/// What a command can't print is an error; that nobody reads it is none.
#[track_caller]
fn assert_written_or_said(hurdle: &Hurdle, command: &[&str]) {
    let to = |redirection: &str| {
        let mut shell = Command::new("/bin/bash");
        let all = hurdle.command();
        shell.args(["-c", &format!("set -o pipefail; \"$@\" {redirection}"), "bash"]).arg(all.get_program());
        shell.args(command).envs(all.get_envs().filter_map(|(name, value)| Some((name, value?))));
        finish(&mut shell, LIMIT)
    };
    assert_clear(&to("> /dev/full").exits(125).says("no space left on device"));
    assert_clear(&to("| true").success());
    // Nobody hears why, but the code says that.
    to("> /dev/full 2>&1").exits(125);
}

#[test]
fn what_commands_for_layers_cannot_write_is_an_error_too() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("silo");
    let file = hurdle.logs().join("new");
    let text = format!("echo new > {}; sleep 1000", file.display());
    hurdle.detach(&name, &["--fs", "cow"], &["sh", "-c", &text]);
    until("it has written", || hurdle.call(&["diff", &name]).stdout.contains("/new").then_some(()));
    for command in [&["diff", &name][..], &["diff", "--stat", &name], &["layers"], &["commit", "--running", &name]] {
        assert_written_or_said(&hurdle, command);
    }
    assert!(file.exists(), "it was committed");
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn a_program_that_does_not_run_gets_the_codes_of_a_shell() {
    let hurdle = Hurdle::new();
    let file = hurdle.logs().join("plain");
    std::fs::write(&file, "no program\n").expect("own file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("own file");
    let garbage = hurdle.logs().join("garbage");
    std::fs::write(&garbage, [0x7f, 0x45, 0x4c, 0x46, 0, 0, 0, 0]).expect("own file");
    std::fs::set_permissions(&garbage, std::fs::Permissions::from_mode(0o755)).expect("own file");
    for options in [&[][..], &["--net", "local", "--auth", "root"]] {
        for (program, code) in [
            ("no-such-program-anywhere", 127),
            ("/nonexistent/program", 127),
            (file.to_str().expect("a plain path"), 126),
            (garbage.to_str().expect("a plain path"), 126),
            ("/etc", 126),
        ] {
            let done = finish(&mut hurdle.run(options, program), LIMIT).exits(code).says(program);
            assert_clear(&done);
            if program == "/etc" {
                done.says("is a directory");
            }
        }
    }
    // One in the search path is passed over, and named if nothing else is there.
    std::fs::create_dir_all(hurdle.logs().join("first/tool")).expect("own directory");
    std::fs::create_dir(hurdle.logs().join("second")).expect("own directory");
    symlink("/bin/true", hurdle.logs().join("second/tool")).expect("own directory");
    let at = |name: &str| hurdle.logs().join(name).to_str().expect("a plain path").to_owned();
    let (first, second) = (at("first"), at("second"));
    finish(hurdle.run(&[], "tool").env("PATH", format!("{first}:{second}")), LIMIT).success();
    finish(hurdle.run(&[], "tool").env("PATH", &first), LIMIT).exits(126).says("is a directory");
    // What a directory that may not be searched holds is not there.
    let closed = at("closed");
    std::fs::create_dir(&closed).expect("own directory");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).expect("own directory");
    finish(hurdle.run(&[], "tool").env("PATH", &closed), LIMIT).exits(127).says("no such program");
    finish(hurdle.run(&[], "tool").env("PATH", format!("{closed}:{second}")), LIMIT).success();
    hurdle.assert_nothing_left();
}

#[test]
fn forbidden_user_namespaces_are_diagnosed() {
    let hurdle = Hurdle::new();
    // In a user namespace of its own anybody may forbid further ones.
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["--user", "--map-root-user", "/bin/sh", "-c"]);
    command
        .arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" run --net local -- true")
        .arg(hurdle.binary());
    let done = finish(&mut command, LIMIT).exits(125).says("namespace").says("hurdle doctor");
    assert_clear(&done);
    hurdle.assert_nothing_left();
}

#[test]
fn an_exhausted_descriptor_limit_is_an_error_and_no_crash() {
    let hurdle = Hurdle::new();
    for limit in [3, 4, 6, 8, 10, 12, 16, 20, 24] {
        let mut command = hurdle.command();
        let mut shell = Command::new("/bin/bash");
        shell
            .args(["-c", &format!("ulimit -n {limit}; exec \"$0\" run --net local -- true")])
            .arg(command.get_program());
        shell.envs(command.env("RUST_BACKTRACE", "0").get_envs().filter_map(|(name, value)| Some((name, value?))));
        let done = finish(&mut shell, LIMIT);
        assert!(done.code() == 0 || done.code() == 125, "{limit}: {done}");
        assert!(done.code() == 0 || !done.stderr.is_empty(), "{limit}: {done}");
        assert_clear(&done);
    }
    hurdle.assert_nothing_left();
}

/// A core that was started with many open fds, and may have few: its environment runs, and who calls a server is told what to do.
#[test]
fn a_core_with_no_room_for_a_server_says_how_to_make_some() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("narrow");
    let run = hurdle.run(&["--name", &name], "sleep");
    let mut shell = Command::new("/bin/bash");
    // More than the user's processes have on their way may be refused: then the launch says it.
    let script = "for fd in {10..29}; do eval \"exec $fd</dev/null\"; done; ulimit -n 40; exec \"$@\" 1000";
    shell.args(["-c", script, "bash"]).arg(run.get_program()).args(run.get_args());
    shell.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let running = hurdle.start(&mut shell, "narrow.log");
    let stands = until("it stands, or says why not", || {
        let stands = hurdle.call(&["ls", &name]).code() == 0;
        (stands || running.log().contains("ulimit")).then_some(stands)
    });
    if stands {
        let done = hurdle.call(&["ps", &name]).exits(125).says("proc").says("Too many open files").says("ulimit -n");
        assert_clear(&done);
        hurdle.call(&["kill", &name]).success();
    }
    running.join();
    hurdle.assert_nothing_left();
}

#[test]
fn a_server_that_exits_at_once_fails_its_own_right_only() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("broken");
    hurdle.detach(&name, &["--server", "mine=/bin/false"], &["sleep", "1000"]);
    let done = hurdle.call(&["rpc", &name, "mine"]).exits(125).says("mine");
    assert_clear(&done);
    // The environment lives on, and says what became of the server.
    until("the failure is shown", || {
        let info = hurdle.info(&name);
        let rights = info["rights"].as_array().expect("a list").clone();
        rights.iter().any(|right| right["interface"] == "mine" && right["deaths"].as_u64() > Some(0)).then_some(())
    });
    hurdle.call(&["enter", &name, "--", "true"]).success();
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

/// The abstract sockets whose name contains `text`, without the leading zero byte.
fn abstract_sockets(text: &str) -> Vec<String> {
    let list = std::fs::read_to_string("/proc/net/unix").expect("/proc is mounted");
    let names = list.lines().filter_map(|line| line.split_once('@')).map(|(_, name)| name.to_owned());
    let mut names: Vec<String> = names.filter(|name| name.contains(text)).collect();
    names.dedup();
    names
}

#[test]
fn hostile_frames_do_not_stop_the_core() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("attacked");
    hurdle.detach(&name, &["--net", "local"], &["sleep", "1000"]);
    let sockets = abstract_sockets(&name);
    let socket_name = sockets.first().expect("the control socket of the environment");
    let address = SocketAddr::from_abstract_name(socket_name).expect("a short name");
    let bytes = address.as_abstract_name().expect("an abstract name");
    // A simple generator: the same frames each time.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300_usize {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        connect(fd.as_raw_fd(), &UnixAddr::new_abstract(bytes).expect("a short name")).expect("the core listens");
        let length = if round % 10 == 0 { 60_000 } else { round % 97 };
        let mut frame: Vec<u8> = (0..length).map(|_| random().to_le_bytes()[0]).collect();
        // Half of them begin like a frame of the right version.
        if round % 2 == 0
            && let Some(first) = frame.first_mut()
        {
            *first = 1;
        }
        // Either may be refused, once the core has ended the channel.
        let _ = send(fd.as_raw_fd(), &frame, MsgFlags::MSG_NOSIGNAL);
        let _ = send(fd.as_raw_fd(), &frame[..frame.len() / 2], MsgFlags::MSG_NOSIGNAL);
    }
    assert_eq!(hurdle.info(&name)["name"], name.as_str());
    hurdle.call(&["enter", &name, "--", "true"]).success();
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}
