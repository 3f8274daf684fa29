//! Environments in environments: each with traps of its own, to any depth, and none with more than the one around it.

use std::time::Duration;

use hurdle_tests::{Hurdle, finish, skip, until};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(30);

/// `hurdle run OUTER -- hurdle run INNER -- sh -c TEXT`.
fn nested(hurdle: &Hurdle, outer: &[&str], inner: &[&str], text: &str) -> hurdle_tests::Finished {
    let mut command = hurdle.run(outer, hurdle.binary());
    finish(command.arg("run").args(inner).args(["--", "/bin/sh", "-c", text]), LIMIT)
}

#[test]
fn one_that_traps_nothing_runs_in_any_other() {
    let hurdle = Hurdle::new();
    for outer in [&[][..], &["--net", "none"], &["--net", "local"], &["--auth", "root"]] {
        for inner in [&[][..], &["--net", "none"], &["--auth", "root,ids=one"]] {
            let done = nested(&hurdle, outer, inner, "exit 42").exits(42);
            assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""), "{outer:?} {inner:?}: {done}");
        }
    }
    hurdle.assert_nothing_left();
}

#[test]
fn the_first_that_traps_may_be_an_inner_one() {
    let hurdle = Hurdle::new();
    let listen = "python3 -c 'import socket; s = socket.create_server((\"\", 80)); print(s.getsockname())'";
    for outer in [&[][..], &["--net", "none"]] {
        let done = nested(&hurdle, outer, &["--net", "local", "--auth", "root,ids=one"], listen).success();
        assert_eq!(done.stdout, "('0.0.0.0', 80)\n", "{outer:?}: {done}");
    }
    hurdle.assert_nothing_left();
}

/// What a network of one's own allows: a listener, a connection to it, and none to the outer one's port.
const OWN: &str = "import socket
s = socket.create_server(('127.0.0.1', 8080)); c = socket.create_connection(('127.0.0.1', 8080))
assert s.accept()[1] == c.getsockname() and c.getpeername() == ('127.0.0.1', 8080)
print(socket.socket().connect_ex(('127.0.0.1', 8081)))";

#[test]
fn a_second_that_traps_has_a_network_of_its_own() {
    let hurdle = Hurdle::new();
    let outside = "import socket, subprocess, sys; s = socket.create_server(('127.0.0.1', 8081))\n\
                   sys.exit(subprocess.run(sys.argv[1:]).returncode)";
    let own = hurdle.binary().to_str().expect("a plain path");
    for outer in [&["--net", "local"][..], &["--swappable"], &["--net", "local", "--auth", "root,ids=one"]] {
        for inner in [&["--net", "local"][..], &["--swappable", "--net", "local", "--auth", "root,ids=one"]] {
            let mut run = hurdle.run(outer, "python3");
            run.args(["-c", outside, own, "run"]).args(inner).args(["--", "python3", "-c", OWN]);
            let done = finish(&mut run, LIMIT).success();
            assert_eq!((&*done.stdout, &*done.stderr), ("111\n", ""), "{outer:?} {inner:?}: {done}");
        }
    }
    hurdle.assert_nothing_left();
}

#[test]
fn what_stands_for_a_nested_one_passes_files_status_and_signals() {
    let hurdle = Hurdle::new();
    let local = &["--net", "local"][..];
    for (text, code) in [("exit 42", 42), ("kill -TERM $$", 128 + 15), ("exec /nonexistent", 127)] {
        nested(&hurdle, local, local, text).exits(code);
    }
    let own = hurdle.binary().to_str().expect("a plain path");
    let text = format!("cd /usr && echo word | {own} run --net local -- sh -c 'cat; pwd; echo $X; echo err >&2'");
    let mut run = hurdle.run(local, "/bin/sh");
    let done = finish(run.env("X", "from outside").args(["-c", &text]), LIMIT).success();
    assert_eq!((&*done.stdout, &*done.stderr), ("word\n/usr\nfrom outside\n", "err\n"));
    // A signal reaches the innermost program, which ends by its own choice.
    let inner = "trap \"exit 7\" TERM; echo > ready; sleep 1000 & wait";
    let text = format!("cd {} && exec {own} run --net local -- sh -c '{inner}'", hurdle.logs().display());
    let name = hurdle.name("outer");
    let running = hurdle.start(hurdle.run(&["--name", &name, "--net", "local"], "/bin/sh").args(["-c", &text]), "log");
    until("it is ready", || hurdle.logs().join("ready").exists().then_some(()));
    hurdle.call(&["kill", &name, "-TERM"]).success();
    assert_eq!(running.join().code(), Some(7));
    hurdle.assert_nothing_left();
}

#[test]
fn who_asks_for_a_nested_one_gets_no_more_than_he_has() {
    let hurdle = Hurdle::new();
    let own = hurdle.binary().to_str().expect("a plain path");
    let inner = format!("{own} run --net local -- sh -c 'id -u; id -g; grep NoNewPrivs /proc/self/status'");
    let seen = |auth: &str, before: &str| {
        let text = format!("{before} sh -c '{}'", inner.replace('\'', "'\\''"));
        finish(hurdle.run(&["--net", "local", "--auth", auth], "/bin/sh").args(["-c", &text]), LIMIT)
    };
    let root = seen("root", "").success().stdout;
    assert!(root.starts_with("0\n0\n"), "{root}");
    if hurdle_tests::skip::missing(&["setpriv"]).is_none() {
        let ranged = finish(hurdle.run(&["--auth", "root"], "/bin/cat").arg("/proc/self/uid_map"), LIMIT).success();
        if ranged.stdout.lines().count() > 1 || ranged.stdout.contains("4294967295") {
            let nobody = "setpriv --reuid 1234 --regid 1235 --clear-groups";
            assert!(seen("root", nobody).success().stdout.starts_with("1234\n1235\n"), "not root again");
        }
        let denied = seen("root", "setpriv --no-new-privs").success().stdout;
        assert!(denied.contains("NoNewPrivs:\t1"), "{denied}");
    }
    // A filter of its own would be left behind.
    let sandbox = "import ctypes, os, sys
code = (ctypes.c_uint64 * 1)(0x7fff0000_00000006)
class Program(ctypes.Structure): _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
libc = ctypes.CDLL(None); libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(Program(1, ctypes.addressof(code)))) == 0
os.execv(sys.argv[1], sys.argv[1:])";
    let mut run = hurdle.run(&["--net", "local"], "python3");
    let done = finish(run.args(["-c", sandbox, own, "run", "--net", "local", "--", "true"]), LIMIT).exits(125);
    assert!(done.stderr.contains("a sandbox of its own"), "{done}");
    hurdle.assert_nothing_left();
}

/// Root inside starts nested environments, stops what appears between the clone and the exec, and looks into it. What is still a
/// copy of the core outside carries the outer environment's name in its arguments.
const LOOK: &str = r#"
import ctypes, os, signal, subprocess, sys, time
outer, own = sys.argv[1], sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
def refused(pid, what):
    try: what()
    except (PermissionError, FileNotFoundError, ProcessLookupError): return
    # It may have been stopped at the end of its exec.
    now = open(f"/proc/{pid}/cmdline").read()
    if outer in now: raise SystemExit("it may be looked into")
def fd_of(fd, number):
    if libc.syscall(438, fd, number, 0) < 0: raise PermissionError
for attempt in range(30):
    run = subprocess.Popen([own, "run", "--net", "local", "--", "true"])
    end = time.time() + 2
    while run.poll() is None and time.time() < end:
        for pid in range(run.pid + 1, run.pid + 6):
            try:
                fd = os.pidfd_open(pid)
                signal.pidfd_send_signal(fd, signal.SIGSTOP)
                arguments = open(f"/proc/{pid}/cmdline").read()
            except OSError: continue
            if outer in arguments:
                refused(pid, lambda: open(f"/proc/{pid}/mem", "rb"))
                refused(pid, lambda: os.readlink(f"/proc/{pid}/root"))
                for number in range(64):
                    refused(pid, lambda: fd_of(fd, number))
                    refused(pid, lambda: os.readlink(f"/proc/{pid}/fd/{number}"))
            try: signal.pidfd_send_signal(fd, signal.SIGCONT)
            except OSError: pass
            os.close(fd)
    run.kill(); run.wait()
print("seen")
"#;

#[test]
fn what_is_about_to_be_a_nested_one_shows_nothing_of_the_outside() {
    let hurdle = Hurdle::new();
    let (outer, own) = (hurdle.name("outer"), hurdle.binary().to_str().expect("a plain path"));
    for auth in ["root", "same"] {
        let mut run = hurdle.run(&["--name", &outer, "--net", "local", "--auth", auth], "python3");
        let done = finish(run.args(["-c", LOOK, &outer, own]), LIMIT).success();
        assert_eq!(done.stdout, "seen\n", "{done}");
    }
    hurdle.assert_nothing_left();
}

#[test]
fn a_nested_one_has_the_limits_of_who_asks() {
    let hurdle = Hurdle::new();
    let own = hurdle.binary().to_str().expect("a plain path");
    let seen = |net: &str| {
        let text = format!(
            "umask 0027; ulimit -n 300; ulimit -c 0; cd /usr; trap '' USR2; nice -n 3 {own} run --net {net} -- \
             sh -c 'umask; ulimit -n; pwd; nice; grep SigIgn /proc/self/status | tail -c 5; grep Cpus_allowed: /proc/self/status'"
        );
        finish(hurdle.run(&["--net", "local"], "/bin/sh").args(["-c", &text]), LIMIT).success().stdout
    };
    assert_eq!(seen("local"), seen("none"), "none is started by the caller himself");
    hurdle.assert_nothing_left();
}

/// `hurdle run --net local` so often, one in the other, each with a listener of its own on one port; then `$LAST`.
const DEEP: &str = r#"
if [ "$1" -gt 0 ]; then exec "$HURDLE" run --name "$NAME-$1" --net local -- sh -c "$TEXT" sh $(($1 - 1)); fi
eval "$LAST"
"#;

fn deep(hurdle: &Hurdle, depth: u32, last: &str) -> std::process::Command {
    let mut command = hurdle.command();
    command.env("TEXT", DEEP).env("LAST", last).env("NAME", hurdle.name("deep")).env("HURDLE", hurdle.binary());
    command.args(["run", "--net", "local", "--", "sh", "-c", DEEP, "sh", &(depth - 1).to_string()]);
    command
}

#[test]
fn sixteen_deep_each_traps_for_itself() {
    let hurdle = Hurdle::new();
    let last = format!("python3 -c \"{OWN}\"");
    let done = finish(&mut deep(&hurdle, 16, &last), LIMIT).success();
    assert_eq!(done.stdout, "111\n", "{done}");
    hurdle.assert_nothing_left();
}

#[test]
fn what_lies_below_is_seen_and_swapped_and_killed_and_nothing_above() {
    let hurdle = Hurdle::new();
    let own = hurdle.binary().to_str().expect("a plain path");
    let (outer, inner) = (hurdle.name("outer"), hurdle.name("inner"));
    let text = format!(
        "{own} run --name {inner} --detach --net local -- sleep 1000 && {own} ls | tail -n +2 | cut -d' ' -f1; \
         {own} ps {inner} | grep -c '^2 '; {own} swap {inner} net=none; {own} enter {inner} -- echo entered; \
         {own} kill {inner}; {own} ls | tail -n +2; {own} kill {outer}"
    );
    let mut run = hurdle.run(&["--name", &outer, "--net", "local"], "/bin/sh");
    let done = finish(run.args(["-c", &text]), LIMIT).exits(125);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines[..3], [&inner, &inner, "1"], "{done}");
    assert!(lines[3].contains("net=local is now net=none") && lines[4] == "entered", "{done}");
    assert!(lines.get(5).is_none(), "nothing is left, and what is above is not seen: {done}");
    assert!(done.stderr.contains(&outer), "{done}");
    hurdle.assert_nothing_left();
}

#[test]
fn the_death_of_one_ends_all_below() {
    let hurdle = Hurdle::new();
    let ready = hurdle.logs().join("ready");
    let last = format!("echo > {}; sleep 1000", ready.display());
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut command = deep(&hurdle, 4, &last);
        let running = hurdle.start(&mut command, "log");
        until("the deepest runs", || ready.exists().then_some(()));
        // The outermost core, or its program.
        running.signal(signal);
        assert!(!running.join().success());
        hurdle.assert_nothing_left();
        std::fs::remove_file(&ready).expect("own file");
    }
}

/// A listener outside of the cut, and a client in it: what the client's connect says.
const CUT: &str = r#"
import errno, socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
client = "import socket, sys; print(socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))))"
command = sys.argv[1:] + [sys.executable, "-c", client, str(listener.getsockname()[1])]
code = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
print(errno.errorcode[code] if code else "connected")
"#;

/// A thread goes to a network of its own, and then executes a program, which gets the process's first number.
const GO: &str = r#"
import ctypes, errno, os, socket, sys, threading
def ask():
    code = socket.socket().connect_ex(("127.0.0.1", port))
    print(errno.errorcode[code] if code else "connected", flush=True)
def go():
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000): os._exit(1)
    ask()
    gone.set()
    asked.wait()
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], str(port)])
if len(sys.argv) > 1:
    port = int(sys.argv[1])
    ask()
    sys.exit()
listener = socket.create_server(("127.0.0.1", 0), backlog=9)
os.set_inheritable(listener.fileno(), True)
port = listener.getsockname()[1]
ask()
gone, asked = threading.Event(), threading.Event()
threading.Thread(target=go).start()
gone.wait()
ask()
asked.set()
threading.Event().wait()
"#;

#[test]
fn a_thread_that_goes_to_another_network_is_cut_off() {
    if let Some(missing) = skip::missing(&["python3"]) {
        return skip::skip("a_thread_that_goes_to_another_network_is_cut_off", &format!("{missing} is not installed"));
    }
    let hurdle = Hurdle::new();
    for options in [&["--net", "local"][..], &["--swappable"], &["--net", "delay,ms=1+local"]] {
        let options = [options, &["--auth", "root"]].concat();
        let done = finish(hurdle.run(&options, "python3").args(["-c", GO]), LIMIT).success();
        let said: Vec<_> = done.stdout.lines().collect();
        assert_eq!(said, ["connected", "ENETUNREACH", "connected", "ENETUNREACH"], "{options:?}: {done}");
    }
    hurdle.assert_nothing_left();
}

#[test]
fn a_network_made_inside_is_cut_off() {
    if let Some(missing) = skip::missing(&["python3", "unshare", "bwrap"]) {
        return skip::skip("a_network_made_inside_is_cut_off", &format!("{missing} is not installed"));
    }
    let hurdle = Hurdle::new();
    let own = hurdle.binary().to_str().expect("a plain path");
    let cuts: &[(&[&str], &[&str])] = &[
        (&[], &["connected"]),
        (&["unshare", "--map-root-user", "--net"], &["ENETUNREACH"]),
        // It brings its loopback up, as this does.
        (&["bwrap", "--unshare-net", "--dev-bind", "/", "/"], &["ECONNREFUSED"]),
        (&[own, "run", "--net", "none", "--"], &["ECONNREFUSED"]),
        (&[own, "run", "--"], &["connected"]),
    ];
    for options in [&["--net", "none"][..], &["--net", "local"], &["--swappable"]] {
        for (cut, said) in cuts {
            let done = finish(hurdle.run(options, "python3").args(["-c", CUT]).args(*cut), LIMIT).success();
            assert_eq!(done.stdout.lines().collect::<Vec<_>>(), *said, "{options:?} {cut:?}: {done}");
        }
    }
    hurdle.assert_nothing_left();
}

/// What is common to the scripts below, in an environment: nested ones, and the porter of this one.
const PORTER: &str = r#"
import os, signal, subprocess, sys, time
own = sys.argv[1]
def words(pid):
    try: return open(f"/proc/{pid}/cmdline").read().split("\0")[:-1]
    except OSError: return []
def porters():
    return [pid for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) if words(pid)[1:] == ["porter"]]
def until(what, test):
    end = time.time() + 20
    while not test():
        assert time.time() < end, what
        time.sleep(0.01)
def run(*command, **how):
    return subprocess.run([own, "run", "--net", "local", "--", *command], stdout=subprocess.PIPE, text=True, timeout=20, **how)
def stand():
    # The first nested one has it started, and the end of each makes the next copy.
    assert run("true").returncode == 0
    until("a porter and its copy", lambda: len(porters()) == 2)
    return porters()
"#;

#[test]
fn a_porter_starts_what_an_exec_would() {
    let hurdle = Hurdle::new();
    let own = hurdle.binary().to_str().expect("a plain path");
    // The ids that it shows, what it was handed, and what the process that serves it shows of itself.
    let script = r#"
SEEN = "pwd; echo $WHAT; umask; ulimit -n; nice; id -u; id -g; cat <&5; grep -E 'SigIgn|SigBlk|NoNewPrivs|Cap|Seccomp' /proc/self/status; exit 7"
def seen(**how):
    read, write = os.pipe(); os.write(write, b"on a pipe\n"); os.close(write)
    def hand(): os.dup2(read, 5)
    command = [own, "run", "--net", "local", "--fd", "5", "--", "sh", "-c", SEEN]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, pass_fds=[5], preexec_fn=hand, timeout=20, **how)
    os.close(read)
    return done.returncode, done.stdout
def both(before=lambda: None, **how):
    before()
    porter, copy = stand()
    by_porter = seen(**how)
    os.kill(porter, signal.SIGKILL)
    until("it is gone", lambda: not porters())
    by_exec = seen(**how)
    assert by_porter == by_exec, (by_porter, by_exec)
    assert by_porter[0] == 7 and "on a pipe" in by_porter[1], by_porter
    until("the next one", lambda: len(porters()) == 2)
both(cwd="/usr", env={**os.environ, "WHAT": "first"})
both(before=lambda: os.umask(0o27), cwd="/", env={**os.environ, "WHAT": "second"})
# The copy itself has become the next one's core, and shows its arguments and its variables, in the session of its own.
porter, copy = stand()
child = subprocess.Popen([own, "run", "--net", "local", "--", "sleep", "1000"], env={**os.environ, "WHAT": "third"})
until("it has its task", lambda: words(copy)[1:2] == ["run"])
assert words(copy)[1:] == ["run", "--net", "local", "--", "sleep", "1000"], words(copy)
assert "WHAT=third" in open(f"/proc/{copy}/environ").read().split("\0")
assert os.getsid(copy) == copy
inside = lambda: any(words(pid) == ["sleep", "1000"] for pid in map(int, filter(str.isdigit, os.listdir("/proc"))))
until("it runs", inside)
# It ends with who asked for it.
child.kill(); child.wait()
until("it ends", lambda: not inside() and not words(copy))
# Who stands elsewhere, in any respect, is not its to serve.
stand()
for before in [lambda: os.nice(1), lambda: os.umask(0o77), lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
               lambda: os.chroot("/") or os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})]:
    porter, copy = porters()
    assert run("true", preexec_fn=before).returncode == 0
    assert porters() == [porter, copy]
assert run("true").returncode == 0 and copy not in porters()
print("same")
"#;
    for auth in ["root,ids=one", "same"] {
        let script = if auth == "same" { script.replace("os.chroot(\"/\") or ", "") } else { script.into() };
        let mut run = hurdle.run(&["--net", "local", "--auth", auth], "python3");
        let done = finish(run.args(["-c", &format!("{PORTER}{script}"), own]), LIMIT).success();
        assert_eq!((&*done.stdout, &*done.stderr), ("same\n", ""), "{auth}: {done}");
    }
    hurdle.assert_nothing_left();
}

#[test]
fn a_porter_may_die_or_stand_still_and_leaves_when_idle() {
    let hurdle = Hurdle::new();
    let own = hurdle.binary().to_str().expect("a plain path");
    let script = r#"
for what in [signal.SIGKILL, signal.SIGSTOP]:
    for whom in [[0], [1], [0, 1]]:
        both = stand()
        for n in whom:
            try: os.kill(both[n], what)
            # A copy does not outlive its porter.
            except ProcessLookupError: assert n == 1
        for code in [5, 6]:
            assert run("sh", "-c", f"exit {code}").returncode == code
        until("they are gone", lambda: not any(both[n] in porters() for n in whom))
stand()
until("it leaves by itself", lambda: not porters())
# One that is there at the end of the environment is no obstacle to it.
stand()
print("went on")
"#;
    let mut run = hurdle.run(&["--net", "local"], "python3");
    let done = finish(run.args(["-c", &format!("{PORTER}{script}"), own]), 2 * LIMIT).success();
    assert_eq!((&*done.stdout, &*done.stderr), ("went on\n", ""), "{done}");
    hurdle.assert_nothing_left();
}

#[test]
fn what_a_nested_one_is_told_goes_no_further() {
    let hurdle = Hurdle::new();
    let own = hurdle.binary().to_str().expect("a plain path");
    let (outer, inner) = (hurdle.name("outer"), hurdle.name("inner"));
    let (logs, server) = (hurdle.logs().display(), hurdle.logs().join("server"));
    std::fs::write(&server, format!("#!/bin/sh\nenv > {logs}/new; mv {logs}/new {logs}/seen.$TURN\n"))
        .expect("own file");
    std::fs::set_permissions(&server, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("own file");
    // By an exec, and by a porter.
    let text = format!(
        "for TURN in 1 2; do export TURN; {own} run --net local --name {inner}$TURN --server seer={} -- sh -c \
         'env; while [ ! -e {logs}/done.$TURN ]; do sleep 0.02; done'; done",
        server.display()
    );
    let running = hurdle.start(hurdle.run(&["--name", &outer, "--net", "local"], "/bin/sh").args(["-c", &text]), "log");
    for turn in 1..=2 {
        let variables = until("its server runs", || {
            // Each call wakes one, which answers nothing.
            hurdle.call(&["rpc", &format!("{outer}/{inner}{turn}"), "seer"]);
            std::fs::read_to_string(hurdle.logs().join(format!("seen.{turn}"))).ok()
        });
        assert!(variables.contains("PATH=") && !variables.contains("HURDLE_UNTRAPPED"), "{variables}");
        std::fs::write(hurdle.logs().join(format!("done.{turn}")), "").expect("own file");
    }
    assert!(running.join().success());
    let log = std::fs::read_to_string(hurdle.logs().join("log")).expect("own file");
    assert!(log.contains("PATH=") && !log.contains("HURDLE_UNTRAPPED"), "{log}");
    hurdle.assert_nothing_left();
}
