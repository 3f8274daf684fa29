//! Exit status, signals, standard files, arguments and environment variables pass through `hurdle run`.

use std::ffi::OsString;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::finish::finish_with;
use hurdle_tests::{Hurdle, finish, until};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(30);

const OPTIONS: [&[&str]; 4] =
    [&[], &["--net", "local"], &["--net", "local", "--auth", "root"], &["--net", "none", "--auth", "root"]];

#[test]
fn exit_status_passes_through() {
    let hurdle = Hurdle::new();
    for options in OPTIONS {
        for code in [0, 1, 2, 42, 124, 125, 126, 127, 255] {
            let mut command = hurdle.run(options, "/bin/sh");
            let done = finish(command.args(["-c", &format!("exit {code}")]), LIMIT).exits(code);
            // hurdle itself is silent unless something is wrong.
            assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""), "{done}");
        }
    }
    hurdle.assert_nothing_left();
}

#[test]
fn death_by_signal_passes_through() {
    let hurdle = Hurdle::new();
    for options in OPTIONS {
        for signal in
            [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGHUP, Signal::SIGINT, Signal::SIGSEGV, Signal::SIGUSR1]
        {
            let mut command = hurdle.run(options, "/bin/sh");
            command.args(["-c", &format!("ulimit -c 0; kill -{} $$", signal as i32)]);
            // A shell shows 128 + N for either way to say it.
            finish(&mut command, LIMIT).exits(128 + signal as i32);
        }
    }
    hurdle.assert_nothing_left();
}

#[test]
fn signals_reach_the_program() {
    let hurdle = Hurdle::new();
    let text = "for s in TERM HUP INT QUIT USR1 USR2; do trap \"echo $s; exit 3\" $s; done; echo ready; \
                while :; do sleep 0.01; done";
    // What a user or a supervisor sends; the terminal's own signals reach the program's process group directly.
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2] {
        let mut command = hurdle.run(&["--net", "local"], "/bin/bash");
        let running = hurdle.start(command.args(["-c", text]), signal.as_str());
        until("the program is ready", || running.log().starts_with("ready").then_some(()));
        running.signal(signal);
        let status = running.join();
        assert_eq!(status.code(), Some(3), "{signal}: {status}");
        let said = std::fs::read_to_string(hurdle.logs().join(signal.as_str())).expect("own file");
        assert_eq!(said, format!("ready\n{}\n", &signal.as_str()[3..]));
    }
    hurdle.assert_nothing_left();
}

#[test]
fn a_stopped_environment_goes_on() {
    let hurdle = Hurdle::new();
    let running = hurdle.start(hurdle.run(&[], "/bin/sleep").arg("0.3"), "log");
    running.signal(Signal::SIGTSTP);
    running.signal(Signal::SIGCONT);
    let status = running.join();
    assert!(status.success(), "{status}");
    hurdle.assert_nothing_left();
}

#[test]
fn standard_files_pass_through() {
    let hurdle = Hurdle::new();
    let mut input = tempfile::tempfile().expect("a temporary file");
    let text = "wool\n".repeat(300_000);
    input.write_all(text.as_bytes()).expect("own file");
    std::io::Seek::rewind(&mut input).expect("own file");
    let mut command = hurdle.run(&["--net", "local"], "/bin/sh");
    command.args(["-c", "cat; echo aside >&2"]).stdin(input);
    let done = finish_with(&mut command, LIMIT).success();
    assert!(done.stdout == text, "{} bytes of {}", done.stdout.len(), text.len());
    assert_eq!(done.stderr, "aside\n");
    hurdle.assert_nothing_left();
}

#[test]
fn a_closed_pipe_ends_the_program() {
    let hurdle = Hurdle::new();
    let mut command = Command::new("/bin/bash");
    command.args(["-c", "\"$0\" run -- yes | head -1; exit ${PIPESTATUS[0]}"]).arg(hurdle.binary());
    command.envs(variables(&hurdle));
    let done = finish(&mut command, LIMIT);
    assert_eq!(done.stdout, "y\n", "{done}");
    // `yes` dies of SIGPIPE, or reports EPIPE where its caller ignores that signal.
    assert!(done.code() == 128 + Signal::SIGPIPE as i32 || done.code() == 1, "{done}");
    hurdle.assert_nothing_left();
}

/// The environment variables of a `hurdle` command, for a shell that will start it.
fn variables(hurdle: &Hurdle) -> Vec<(OsString, OsString)> {
    let command = hurdle.command();
    command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect()
}

#[test]
fn arguments_and_variables_pass_through() {
    let hurdle = Hurdle::new();
    let odd = ["", " ", "--net", "a b", "*", "$HOME", "new\nline", "\u{1f411}", "--", "-x"];
    let mut command = hurdle.run(&[], "/usr/bin/printf");
    let done = finish(command.arg("%s\\0").args(odd), LIMIT).success();
    assert_eq!(done.stdout.split_terminator('\0').collect::<Vec<_>>(), odd);

    let mut command = hurdle.run(&[], "/usr/bin/env");
    let done = finish(command.env("SHEEP", "black = white"), LIMIT).success();
    assert!(done.stdout.lines().any(|line| line == "SHEEP=black = white"), "{done}");

    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = hurdle.run(&[], "/bin/pwd");
    let done = finish(command.current_dir(directory.path()), LIMIT).success();
    assert_eq!(done.stdout.trim_end(), directory.path().to_str().expect("a plain path"));

    let mut command = hurdle.run(&[], "/bin/sh");
    let done = finish(command.args(["-c", "umask 027; umask; ulimit -n"]), LIMIT).success();
    let mut native = Command::new("/bin/sh");
    let expected = finish(native.args(["-c", "umask 027; umask; ulimit -n"]), LIMIT).success();
    assert_eq!(done.stdout, expected.stdout);
    hurdle.assert_nothing_left();
}

#[test]
fn no_descriptor_of_the_caller_leaks_in() {
    let hurdle = Hurdle::new();
    for options in OPTIONS {
        let mut command = Command::new("/bin/sh");
        // Descriptor 9 is open in the caller, without close-on-exec.
        command.args(["-c", "exec 9</etc/passwd; exec \"$@\"", "sh"]).arg(hurdle.binary()).arg("run").args(options);
        command.args(["--", "/bin/ls", "/proc/self/fd"]).envs(variables(&hurdle));
        let done = finish(&mut command, LIMIT).success();
        // The fourth is ls's own, for the directory.
        assert_eq!(done.stdout, "0\n1\n2\n3\n", "{options:?}: {done}");
    }
    hurdle.assert_nothing_left();
}
