//! What a hostile or careless user, program or server does to an environment, and what must hold all the same.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use hurdle_tests::pty::Terminal;
use hurdle_tests::{Hurdle, finish, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(20);

fn number(value: &serde_json::Value) -> Pid {
    Pid::from_raw(i32::try_from(value.as_i64().expect("a process id")).expect("a process id"))
}

#[test]
fn a_program_inside_neither_controls_nor_plays_a_core() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("outer");
    hurdle.detach(&name, &[], &["sleep", "1000"]);
    // The same user, and the same network: only the place differs.
    let mut inside = hurdle.run(&[], hurdle.binary());
    finish(inside.args(["kill", &name]), LIMIT).exits(125);
    assert_eq!(hurdle.info(&name)["name"], name.as_str());
    // It takes a name as a core would, and waits to be told secrets.
    let false_name = hurdle.name("false");
    let uid = nix::unistd::geteuid();
    let text = format!(
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
         s.bind('\\0hurdle/{uid}/{false_name}'); s.listen(); print('listens', flush=True)\n\
         got = s.accept()[0].recv(100); print('got', len(got), flush=True)"
    );
    let mut program = hurdle.run(&[], "python3");
    let running = hurdle.start(program.args(["-c", &text]), "false.log");
    until("it listens", || running.log().contains("listens").then_some(()));
    hurdle.call(&["enter", &false_name, "true"]).exits(125);
    until("it got the end", || running.log().contains("got").then_some(()));
    assert!(running.log().contains("got 0"), "{}", running.log());
    hurdle.call(&["kill", &name]).success();
    drop(running);
    hurdle.assert_nothing_left();
}

/// `hurdle run -- COMMAND` from a Python that has done `first` before it becomes it.
fn after(hurdle: &Hurdle, first: &str, command: &[&str]) -> Command {
    let run = hurdle.run(&[], command[0]);
    let text = format!("import os, signal, sys\n{first}\nos.execv(sys.argv[1], sys.argv[1:])");
    let mut python = Command::new("/usr/bin/env");
    python.args(["python3", "-c", &text]).arg(run.get_program()).args(run.get_args()).args(&command[1..]);
    for (name, value) in run.get_envs() {
        python.env(name, value.unwrap_or_default());
    }
    python
}

#[test]
fn signals_are_as_the_caller_left_them() {
    let hurdle = Hurdle::new();
    let first = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGUSR1])\n\
                 signal.signal(signal.SIGHUP, signal.SIG_IGN)";
    let mut command = after(&hurdle, first, &["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"]);
    let done = finish(&mut command, LIMIT).success();
    assert!(done.stdout.contains("SigBlk:\t0000000000000202"), "{done}");
    assert!(done.stdout.lines().any(|line| line.starts_with("SigIgn") && line.ends_with('1')), "{done}");
}

#[test]
fn a_caller_that_ignores_its_children_gets_the_status() {
    let hurdle = Hurdle::new();
    let first = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)";
    finish(&mut after(&hurdle, first, &["sh", "-c", "exit 9"]), LIMIT).exits(9);
    hurdle.assert_nothing_left();
}

#[test]
fn a_directory_without_a_path_is_kept() {
    let hurdle = Hurdle::new();
    let gone = hurdle.logs().join("gone");
    std::fs::create_dir(&gone).expect("own directory");
    let first = format!("os.chdir({gone:?}); os.rmdir({gone:?})");
    let done = finish(&mut after(&hurdle, &first, &["readlink", "/proc/self/cwd"]), LIMIT).success();
    assert!(done.stdout.contains("gone"), "{done}");
}

#[test]
fn a_server_that_is_none_does_not_take_a_right() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("swap");
    hurdle.detach(&name, &[], &["sleep", "1000"]);
    hurdle.call(&["ps", &name]).success();
    let bad = hurdle.logs().join("bad.sh");
    // One that ends, and one that never says a word.
    for last in ["exit 3", "exec sleep 1000"] {
        std::fs::write(&bad, format!("#!/bin/sh\necho no server at all >&2\n{last}\n")).expect("own file");
        std::fs::set_permissions(&bad, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("own file");
        let before = std::time::Instant::now();
        let done = hurdle.call(&["swap", &name, &format!("proc={}", bad.display())]).exits(125);
        assert!(done.stderr.contains("goes on") && done.stderr.contains("no server at all"), "{done}");
        assert!(before.elapsed() < Duration::from_secs(15), "{last}: {:?}", before.elapsed());
    }
    hurdle.call(&["ps", &name]).success();
    let proc = hurdle.info(&name)["rights"][3].take();
    assert_eq!((&proc["interface"], &proc["deaths"], &proc["swaps"]), (&"proc".into(), &0.into(), &0.into()), "{proc}");
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn a_stopped_init_holds_up_nobody_else() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("stopped");
    hurdle.detach(&name, &[], &["sleep", "1000"]);
    let info = hurdle.info(&name);
    kill(number(&info["init"]), Signal::SIGSTOP).expect("it runs");
    kill(number(&info["core"]), Signal::SIGTERM).expect("it runs");
    let before = std::time::Instant::now();
    assert_eq!(hurdle.info(&name)["name"], name.as_str());
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}

#[test]
fn a_wait_that_races_with_the_end_gets_the_status() {
    let hurdle = Hurdle::new();
    for round in 0..20 {
        let name = hurdle.name(&format!("race{round}"));
        hurdle.detach(&name, &[], &["sh", "-c", "sleep 0.1; exit 7"]);
        let done = hurdle.call(&["wait", &name]);
        // On a busy machine it may be over before the question, or before it is heard; a status is never a wrong one.
        if !done.stderr.contains("no environment") && !done.stderr.contains("ended") {
            done.exits(7);
        }
    }
    hurdle.assert_nothing_left();
}

#[test]
fn links_in_a_foreign_tree_lead_nowhere_outside() {
    let hurdle = Hurdle::new();
    let (root, outside) = (hurdle.logs().join("root"), hurdle.logs().join("outside"));
    std::fs::create_dir(&root).expect("own directory");
    std::fs::create_dir(&outside).expect("own directory");
    symlink("../../outside/made", root.join("dev")).expect("own directory");
    let spec = format!("root:{}", root.display());
    finish(&mut hurdle.run(&["--fs", &spec], "/bin/true"), LIMIT).exits(125).says("leads out of it");
    assert_eq!(std::fs::read_dir(&outside).expect("own directory").count(), 0);
    hurdle.assert_nothing_left();
}

/// What a program types on a terminal that it shares, the user's shell would read and do.
#[test]
fn nobody_inside_types_on_the_terminal() {
    let hurdle = Hurdle::new();
    let text = "import errno, fcntl, os, termios\n\
                def typed(on):\n\
                \x20   try: fcntl.ioctl(on, termios.TIOCSTI, b'x'); return 'typed'\n\
                \x20   except OSError as error: return errno.errorcode[error.errno]\n\
                print('<', typed(0), typed(os.open('/dev/tty', os.O_RDWR)), fcntl.ioctl(0, termios.FIONREAD, b'    '), '>')";
    for options in [&[][..], &["--net", "local"], &["--auth", "root", "--net", "none"]] {
        // In the shell's foreground, and in the background of its session.
        for job in ["", "sh -c 'exec \"$@\" < /dev/tty' sh"] {
            let run = hurdle.run(options, "python3");
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", &format!("{job} \"$@\""), "sh"]).arg(run.get_program()).args(run.get_args());
            for (name, value) in run.get_envs() {
                shell.env(name, value.unwrap_or_default());
            }
            let mut terminal = Terminal::start(shell.args(["-c", text]));
            let said = terminal.expect(" >");
            // EIO: the kernel lets nobody do so.
            let refused = ["EPERM", "EIO"].map(|errno| format!("< {errno} {errno} b'\\x00\\x00\\x00\\x00' >"));
            assert!(refused.iter().any(|refused| said.contains(refused)), "{options:?} {job:?}: {said}");
            assert!(terminal.join().success());
        }
    }
    hurdle.assert_nothing_left();
}

#[test]
fn a_job_at_a_terminal_stops_and_goes_on() {
    let hurdle = Hurdle::new();
    let settings = hurdle.logs().join("bashrc");
    std::fs::write(&settings, "PS1='fold> '; unset HISTFILE\n").expect("own file");
    let mut shell = Command::new("/bin/bash");
    shell.args(["--noprofile", "--noediting", "--rcfile"]).arg(&settings).arg("-i").env("TERM", "dumb");
    let job = hurdle.run(&[], "sh");
    for (name, value) in job.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    let mut terminal = Terminal::start(&shell);
    terminal.expect("fold> ");
    let run = format!("{} run -- sh -c 'echo \"<\"here\">\"; cat; sleep 1000'", hurdle.binary().display());
    terminal.line(&run);
    terminal.expect("<here>");
    // cat runs: a shell that has just vforked does not stop, on Linux either, if what is to become cat stops before its exec.
    terminal.line("wool");
    terminal.expect("wool\r\nwool");
    terminal.keys("\x1a");
    terminal.expect("Stopped");
    terminal.expect("fold> ");
    terminal.line("fg");
    terminal.expect("sleep 1000'\r\n");
    terminal.line("fleece");
    terminal.expect("fleece\r\nfleece");
    // The whole job: not its first process alone.
    terminal.keys("\x03");
    terminal.expect("fold> ");
    terminal.line("echo '<'$?'>'");
    terminal.expect("<130>");
    terminal.line("exit");
    assert!(terminal.join().success());
    hurdle.assert_nothing_left();
}
