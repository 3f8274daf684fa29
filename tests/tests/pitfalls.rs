//! What may happen to a program between a system call and its answer: each first on Linux as it is, then where its calls are
//! trapped. The cases are in pitfalls/pitfalls.c. A Go, a Java and a Node program of many threads: threads.rs, node.rs; a program at its
//! limit of fds: limits.rs.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use hurdle_tests::{Hurdle, Scene, finish, in_worlds, skip, until};

/// Compiles the cases; `None`, with a word about it, where nobody can.
fn compiled(scene: &Scene, flags: &[&str]) -> Option<String> {
    if scene.lacks(&["gcc"]) {
        return None;
    }
    let source = scene.write("pitfalls.c", include_str!("pitfalls/pitfalls.c"));
    let program = scene.path("pitfalls");
    let mut gcc = scene.command("gcc");
    gcc.args(["-O1", "-pthread"]).args(flags).arg("-o").arg(&program).arg(source);
    finish(&mut gcc, Duration::from_secs(100)).success();
    Some(program.display().to_string())
}

fn case(scene: &Scene, name: &str) {
    let Some(program) = compiled(scene, &[]) else { return };
    let done = finish(scene.command(program).arg(name), Duration::from_secs(120)).success();
    match done.stdout.as_str() {
        "little room\n" => scene.skip("too few file descriptors are allowed"),
        said => assert_eq!(said, "good\n", "{done}"),
    }
}

/// `body: case;` for each.
macro_rules! cases {
    ($($body:ident: $case:literal;)+) => {
        $(
            in_worlds!($body: native, local);
            fn $body(scene: &Scene) { case(scene, $case); }
        )+
    };
}

cases! {
    the_target_execs: "exec";
    the_target_exits: "exit";
    an_alarm_storm_on_accept_that_restarts: "alarm_restart";
    an_alarm_storm_on_accept_that_is_interrupted: "alarm_eintr";
    a_signal_storm_on_accept_that_restarts: "storm_restart";
    a_signal_storm_on_accept_that_is_interrupted: "storm_eintr";
    another_thread_closes_the_fd: "closed";
    another_thread_puts_another_file_there: "replaced";
    a_fork_meanwhile: "fork";
    a_vfork: "vfork";
    a_process_that_is_not_dumpable: "undumpable";
    ten_thousand_sockets: "many_sockets";
    two_thousand_connections_in_a_queue: "long_queue";
}

in_worlds!(a_static_binary: native, local);
fn a_static_binary(scene: &Scene) {
    let Some(program) = compiled(scene, &["-static"]) else { return };
    for case in ["exec", "fork", "alarm_restart"] {
        assert_eq!(scene.run(&program, &[case]).success().stdout, "good\n", "{case}");
    }
}

in_worlds!(a_pid_is_used_again: native, local_root);
fn a_pid_is_used_again(scene: &Scene) {
    if !scene.inside() {
        return scene.skip("the host's process numbers are everybody's");
    }
    case(scene, "same_pid");
}

in_worlds!(a_setuid_program: native, local_root);
fn a_setuid_program(scene: &Scene) {
    let map = std::fs::read_to_string("/proc/self/uid_map").expect("it can be read");
    let ids: u64 = map.lines().filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum();
    if !nix::unistd::geteuid().is_root() || ids < 1000 {
        return scene.skip("one id alone: no program can change it");
    }
    let Some(program) = compiled(scene, &[]) else { return };
    std::os::unix::fs::chown(&program, Some(65534), None).expect("root of a range of ids may chown");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).expect("own file");
    let done = scene.run(&program, &["setuid"]);
    if done.stderr.contains("geteuid() != getuid()") {
        return scene.skip("set-user-ID means nothing on this file system");
    }
    assert_eq!(done.success().stdout, "good\n");
}

/// `hurdle run` with few fds for itself and all that it starts.
fn few_fds(hurdle: &Hurdle, fds: u32, options: &[&str], text: &str) -> std::process::Command {
    let run = hurdle.run(options, "python3");
    let mut shell = hurdle.command();
    let mut bash = std::process::Command::new("/bin/bash");
    bash.args(["-c", &format!("ulimit -n {fds}; exec \"$@\""), "bash"]);
    bash.arg(run.get_program()).args(run.get_args()).args(["-c", text]);
    for (name, value) in shell.env("LC_ALL", "C.UTF-8").get_envs() {
        bash.env(name, value.unwrap_or_default());
    }
    bash
}

/// The server needs none of its own for a program's sockets, so a program gets as far as natively.
#[test]
fn a_server_at_its_limit_of_fds() {
    if let Some(missing) = skip::missing(&["python3", "bash"]) {
        return skip::skip("a_server_at_its_limit_of_fds", &format!("{missing} is not installed"));
    }
    let hurdle = Hurdle::new();
    let text = "import errno, os, socket\n\
                listener = socket.create_server(('127.0.0.1', 0)); held = []\n\
                for n in range(30):\n\
                \x20   pid = os.fork()\n\
                \x20   if pid: held.append(pid); continue\n\
                \x20   all = []\n\
                \x20   try:\n\
                \x20       while True: all.append(socket.create_connection(listener.getsockname(), timeout=20))\n\
                \x20   except OSError as e: os._exit(0 if e.errno == errno.EMFILE and len(all) > 100 else 1)\n\
                served = 0\n\
                listener.settimeout(20)\n\
                while served < 30 * 100: listener.accept()[0].close(); served += 1\n\
                print([os.waitpid(pid, 0)[1] for pid in held].count(0))\n";
    // Of its own accord a server raises the limit as far as it may, which is no further here.
    let done = finish(&mut few_fds(&hurdle, 120, &["--net", "local"], text), Duration::from_secs(100)).success();
    assert_eq!(done.stdout, "30\n", "{done}");
    hurdle.assert_nothing_left();
}

/// More callers than a core has fds for: it turns some away, and is as before once they have gone.
#[test]
fn a_core_at_its_limit_of_fds() {
    if let Some(missing) = skip::missing(&["python3", "bash"]) {
        return skip::skip("a_core_at_its_limit_of_fds", &format!("{missing} is not installed"));
    }
    let hurdle = Hurdle::new();
    let name = hurdle.name("few");
    let text = "import socket, time\n\
                socket.create_server(('127.0.0.1', 0)); print('up', flush=True); time.sleep(1000)";
    let mut run = few_fds(&hurdle, 40, &["--name", &name, "--net", "local"], text);
    let program = hurdle.start(&mut run, "program");
    until("it runs", || program.log().contains("up").then_some(()));
    let crowd = format!(
        "import socket, sys\n\
         all = []\n\
         for n in range(150):\n\
         \x20   s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(5)\n\
         \x20   try: s.connect('\\0hurdle/{}/{name}')\n\
         \x20   except OSError: break\n\
         \x20   all.append(s)\n\
         print(len(all), flush=True); sys.stdin.read()",
        nix::unistd::geteuid()
    );
    let mut python = std::process::Command::new("python3");
    python.args(["-c", &crowd]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut crowd = python.spawn().expect("it is installed");
    let mut said = [0; 16];
    let got = std::io::Read::read(crowd.stdout.as_mut().expect("a pipe"), &mut said).expect("a pipe");
    let many: u32 = String::from_utf8_lossy(&said[..got]).trim().parse().expect("a number");
    assert!(many > 40, "{many} callers at once");
    drop(crowd.stdin.take());
    crowd.wait().expect("own child");
    until("it answers", || {
        let done = hurdle.call(&["enter", &name, "--", "echo", "here"]);
        (done.stdout == "here\n").then_some(())
    });
    hurdle.call(&["kill", &name]).success();
    drop(program);
    hurdle.assert_nothing_left();
}
