//! Ways out of an environment that must be none: docs/security.md names these tests.

use std::process::Command;
use std::time::Duration;

use hurdle_tests::{Finished, Hurdle, finish, skip, until};

const LIMIT: Duration = Duration::from_secs(60);

/// Settings of the environment's own namespaces, and so its own.
const OWN: [&str; 9] = [
    "/proc/sys/fs/mqueue/",
    "/proc/sys/kernel/auto_msgmni",
    "/proc/sys/kernel/msg",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/kernel/sem",
    "/proc/sys/kernel/shm",
    "/proc/sys/net/",
    "/proc/sys/user/",
];

#[test]
fn settings_of_the_host_cannot_be_written() {
    if nix::unistd::geteuid().is_root() {
        // As docs/security.md says: the host's root is root to the host's settings, in an environment too.
        return skip::skip("settings_of_the_host_cannot_be_written", "it holds for ordinary users");
    }
    let hurdle = Hurdle::new();
    for options in [&[][..], &["--auth", "root", "--net", "none"], &["--auth", "root", "--net", "local"]] {
        // Below cgroups the host may have given its user something.
        let list = "find /proc/sys /proc/irq /proc/bus /proc/sysrq-trigger /sys -path /sys/fs/cgroup -prune \
                    -o -type f -writable -print 2>/dev/null; true";
        let done = finish(hurdle.run(options, "sh").args(["-c", list]), LIMIT).success();
        let foreign: Vec<&str> =
            done.stdout.lines().filter(|path| !OWN.iter().any(|own| path.starts_with(own))).collect();
        assert_eq!(foreign, [""; 0], "{options:?}");
        // The list is not empty for want of find.
        assert!(done.stdout.contains("/proc/sys/kernel/ns_last_pid"), "{done}");
    }
    hurdle.assert_nothing_left();
}

/// Root inside may unmount its own /proc. What shows then is the host's, and no more than its list of processes.
#[test]
fn processes_outside_are_out_of_reach() {
    let hurdle = Hurdle::new();
    let mut outside = hurdle.start(Command::new("sleep").arg("1000"), "outside.log");
    let pid = outside.id().to_string();
    let text = r#"
import ctypes, errno, os, signal, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def tried(call, *arguments):
    try: return "reached" if call(*arguments) not in (-1,) else errno.errorcode[ctypes.get_errno()]
    except OSError as error: return errno.errorcode[error.errno]
print("kill", tried(os.kill, pid, signal.SIGKILL))
print("ptrace", tried(libc.ptrace, 16, pid, 0, 0))
print("pidfd", tried(os.pidfd_open, pid))
print("covered", os.path.exists(f"/proc/{pid}"))
print("umount", libc.umount2(b"/proc", 2))
for name in ["mem", "environ", "auxv", "io", "syscall"]:
    print(name, tried(lambda: os.read(os.open(f"/proc/{pid}/{name}", os.O_RDONLY), 1)))
for name in ["root", "cwd", "exe", "fd/0", "ns/mnt", "ns/user"]:
    print(name, tried(os.readlink, f"/proc/{pid}/{name}"))
print("open", tried(os.open, f"/proc/{pid}/fd/0", os.O_RDONLY))
print("again", tried(os.kill, pid, signal.SIGKILL))
"#;
    let done = finish(hurdle.run(&["--auth", "root"], "python3").args(["-c", text, &pid]), LIMIT).success();
    let refused = ["EACCES", "EPERM", "ESRCH"];
    for line in done.stdout.lines() {
        let (what, said) = line.split_once(' ').expect("two words");
        match what {
            "covered" => assert_eq!(said, "False", "{done}"),
            "umount" => assert_eq!(said, "0", "{done}"),
            _ => assert!(refused.contains(&said), "{what}: {done}"),
        }
    }
    assert_eq!(done.stdout.lines().count(), 18, "{done}");
    outside.assert_alive();
    drop(outside);
    hurdle.assert_nothing_left();
}

/// What tries something: a word, and the errno that it met with, or `reached`.
const TRIED: &str = r#"
import ctypes, errno, os, platform, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
def tried(name, call, *arguments):
    try: result = call(*arguments)
    except OSError as error: return print(name, errno.errorcode[error.errno])
    print(name, errno.errorcode[ctypes.get_errno()] if result == -1 else "reached")
"#;

fn attempts(hurdle: &Hurdle, options: &[&str], text: &str, arguments: &[&str]) -> Finished {
    let text = format!("{TRIED}\n{text}");
    finish(hurdle.run(options, "python3").args(["-c", &text]).args(arguments), LIMIT).success()
}

/// Each line of what was tried is a word and one of these.
#[track_caller]
fn all_refused(done: &Finished, count: usize, refused: &[&str]) {
    for line in done.stdout.lines() {
        let (what, said) = line.split_once(' ').unwrap_or((line, ""));
        assert!(refused.contains(&said), "{what}: {done}");
    }
    assert_eq!(done.stdout.lines().count(), count, "{done}");
}

/// A socket in a shared directory leads to a process outside, and to a pidfd of it, whose number is hidden.
#[test]
fn a_pidfd_of_a_process_outside_gives_nothing() {
    let hurdle = Hurdle::new();
    let path = hurdle.logs().join("socket");
    let text = "import socket, sys\n\
                s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('up', flush=True)\n\
                all = [s.accept() for _ in range(10)]";
    let mut outside = hurdle.start(Command::new("python3").args(["-c", text]).arg(&path), "outside.log");
    until("it listens", || outside.log().contains("up").then_some(()));
    let text = r#"
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
try: pidfd = int.from_bytes(s.getsockopt(socket.SOL_SOCKET, 77, 4), sys.byteorder)
except OSError: sys.exit("none here")
send, take = (424, 438)
tried("kill", libc.syscall, send, pidfd, signal.SIGKILL, None, 0)
tried("getfd", libc.syscall, take, pidfd, 0, 0)
tried("setns", libc.setns, pidfd, 0x20000)
tried("setns_user", libc.setns, pidfd, 0x10000000)
"#;
    for options in [&[][..], &["--auth", "root"], &["--net", "local"]] {
        let program = format!("{TRIED}\n{text}");
        let mut run = hurdle.run(options, "python3");
        let done = finish(run.args(["-c", &program]).arg(&path), LIMIT);
        if done.stderr.contains("none here") {
            return skip::skip("a_pidfd_of_a_process_outside_gives_nothing", "this kernel has no SO_PEERPIDFD");
        }
        all_refused(&done.success(), 4, &["EPERM", "EINVAL", "ESRCH"]);
        outside.assert_alive();
    }
    drop(outside);
    hurdle.assert_nothing_left();
}

/// The caller's session keyring holds what he has unlocked.
#[test]
fn the_callers_keys_are_out_of_reach() {
    let hurdle = Hurdle::new();
    // With a keyring of its own, so that the user's is left alone; then as the environment.
    let outer = r#"
import ctypes, os, platform, sys
libc = ctypes.CDLL(None, use_errno=True)
add, control = (217, 219) if platform.machine() == "aarch64" else (248, 250)
if libc.syscall(control, 1, None) == -1: sys.exit("no keys")
key = libc.syscall(add, b"user", b"hurdle-test", b"secret", 6, -3)
if key == -1: sys.exit("no keys")
os.environ["KEY"] = str(key)
os.execv(sys.argv[1], sys.argv[1:])
"#;
    let text = format!(
        "{TRIED}\n{}",
        r#"
request, control = (218, 219) if arm else (249, 250)
key = int(os.environ["KEY"])
buffer = ctypes.create_string_buffer(16)
tried("read", libc.syscall, control, 11, key, buffer, 16)
tried("search", libc.syscall, control, 10, -3, b"user", b"hurdle-test", 0)
tried("request", libc.syscall, request, b"user", b"hurdle-test", None, 0)
tried("link", libc.syscall, control, 8, key, -3)
tried("revoke", libc.syscall, control, 3, key)
"#
    );
    for options in [&[][..], &["--auth", "root"], &["--net", "local"]] {
        let run = hurdle.run(options, "python3");
        let mut python = Command::new("/usr/bin/env");
        python.args(["python3", "-c", outer]).arg(run.get_program()).args(run.get_args()).args(["-c", &text]);
        for (name, value) in run.get_envs() {
            python.env(name, value.unwrap_or_default());
        }
        let done = finish(&mut python, LIMIT);
        if done.stderr.contains("no keys") {
            return skip::skip("the_callers_keys_are_out_of_reach", "no keys can be made here (keyctl)");
        }
        all_refused(&done.success(), 5, &["EACCES", "ENOKEY", "EPERM", "ENOSYS"]);
    }
    hurdle.assert_nothing_left();
}

/// A user namespace made inside has all capabilities over itself, and over nothing else.
#[test]
fn user_namespaces_made_inside_give_nothing() {
    let hurdle = Hurdle::new();
    let text = r#"
def write(path, text):
    with open(path, "w") as file: file.write(text)
host = open("/proc/self/uid_map").read()
NEWNS, NEWUSER, NEWNET = 0x20000, 0x10000000, 0x40000000
if libc.unshare(NEWUSER | NEWNS | NEWNET): sys.exit("no unshare")
tried("map_all", write, "/proc/self/uid_map", "0 0 4294967295\n")
tried("map_root", write, "/proc/self/uid_map", "0 %d 1\n" % (int(sys.argv[1]) + 12345))
tried("setuid", os.setuid, 4242)
tried("hostname", libc.sethostname, b"mine", 4)
tried("mknod", os.mknod, sys.argv[2] + "/sda", 0o60600, os.makedev(8, 0))
tried("disk", libc.mount, b"/dev/vda", sys.argv[2].encode(), b"ext4", 0, None)
tried("module", libc.syscall, 273 if arm else 313, 0, b"", 0)
tried("clock", libc.clock_settime, 0, ctypes.create_string_buffer(16))
tried("reboot", libc.reboot, 0)
"#;
    let directory = hurdle.logs().display().to_string();
    let uid = nix::unistd::geteuid().to_string();
    for options in [&[][..], &["--auth", "root", "--net", "local"]] {
        let done = attempts(&hurdle, options, text, &[&uid, &directory]);
        all_refused(&done, 9, &["EPERM", "EINVAL", "EACCES", "ENOENT", "ENOTBLK", "EBADF", "ENODEV", "ENOSYS"]);
    }
    hurdle.assert_nothing_left();
}

/// Mounts made inside are not seen outside, and what the host has mounted can be neither uncovered nor made writable.
#[test]
fn mounts_inside_change_nothing_outside() {
    let hurdle = Hurdle::new();
    let before = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let text = r#"
directory = sys.argv[1].encode()
if libc.mount(b"tmpfs", directory, b"tmpfs", 0, None): sys.exit("no mount: %s" % ctypes.get_errno())
open(sys.argv[1] + "/inside", "w").close()
libc.mount(None, b"/", None, 0x84000, None)
REMOUNT, BIND = 0x20, 0x1000
tried("umount", libc.umount2, b"/sys" if sys.argv[2] == "share" else b"/", 0)
tried("remount", libc.mount, None, b"/", None, REMOUNT, None)
tried("device", libc.mount, b"devtmpfs", directory, b"devtmpfs", 0, None)
tried("debug", libc.mount, b"debugfs", directory, b"debugfs", 0, None)
"#;
    let directory = hurdle.logs().display().to_string();
    let done = attempts(&hurdle, &["--auth", "root"], text, &[&directory, "share"]);
    all_refused(&done, 4, &["EPERM", "EINVAL", "EBUSY", "ENODEV"]);
    assert!(!hurdle.logs().join("inside").exists());
    let after = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let own = |text: &str| text.lines().filter(|line| line.contains(&directory)).count();
    assert_eq!(own(&after), own(&before));
    hurdle.assert_nothing_left();
}

/// io_uring would make calls that no filter sees; abstract names of the host are in another network.
#[test]
fn where_calls_are_trapped_none_goes_around_them() {
    let hurdle = Hurdle::new();
    let name = format!("hurdle-outside-{}", hurdle.mark());
    let text = "import socket, sys\n\
                s = socket.socket(socket.AF_UNIX); s.bind('\\0' + sys.argv[1]); s.listen(); print('up', flush=True); s.accept()";
    let mut outside = hurdle.start(Command::new("python3").args(["-c", text, &name]), "outside.log");
    until("it listens", || outside.log().contains("up").then_some(()));
    let text = r#"
tried("io_uring", libc.syscall, 425, 8, ctypes.create_string_buffer(120))
tried("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\0" + sys.argv[1]))
tried("host", lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=20))
"#;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it has one").port().to_string();
    let done = attempts(&hurdle, &["--net", "local"], text, &[&name, &port]);
    all_refused(&done, 3, &["ENOSYS", "ECONNREFUSED"]);
    let done = attempts(&hurdle, &["--net", "none"], text, &[&name, &port]);
    assert!(done.stdout.contains("abstract ECONNREFUSED\nhost ECONNREFUSED"), "{done}");
    outside.assert_alive();
    drop(outside);
    hurdle.assert_nothing_left();
}

/// Only the fds that `--fd` names go in.
#[test]
fn no_fd_of_the_callers_comes_along() {
    let hurdle = Hurdle::new();
    let secret = hurdle.logs().join("secret");
    std::fs::write(&secret, "secret").expect("own file");
    for options in [&[][..], &["--net", "local"], &["--auth", "root"]] {
        let run = hurdle.run(options, "ls");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "exec 7<\"$0\" 8<>\"$0\"; exec \"$@\""]).arg(&secret).arg(run.get_program());
        shell.args(run.get_args()).args(["-l", "/proc/self/fd"]);
        for (name, value) in run.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        let done = finish(&mut shell, LIMIT).success();
        let numbers = |line: &&str| line.contains(" -> ");
        // Standard input, output and error, and the directory that is listed.
        assert_eq!(done.stdout.lines().filter(numbers).count(), 4, "{done}");
        assert!(!done.stdout.contains("secret"), "{done}");
    }
    hurdle.assert_nothing_left();
}

/// What a program says at the door of its environment, where sub-environments are asked for.
#[test]
fn forged_frames_at_the_door_harm_nobody() {
    let hurdle = Hurdle::new();
    let name = hurdle.name("door");
    hurdle.detach(&name, &["--net", "local"], &["sleep", "1000"]);
    let text = r#"
import array, os, random, socket
random.seed(4)
for n in range(200):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(20)
    try:
        s.connect("\0hurdle-door")
        frame = bytearray(random.randbytes(random.choice([0, 1, 39, 40, 41, 400, 60000])))
        # As a frame begins, and one that claims to be somebody else's answer.
        if len(frame) > 40 and n % 2: frame[0:4] = bytes([1, n % 7, 0, 0])
        fds = array.array("i", [0] * (n % 5))
        s.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else [])
        s.recv(70000)
    except OSError: pass
    s.close()
print("said")
"#;
    assert_eq!(hurdle.call(&["enter", &name, "--", "python3", "-c", text]).success().stdout, "said\n");
    let inner =
        ["enter", &name, "--", &hurdle.binary().display().to_string(), "run", "--net", "local", "--", "echo", "in"];
    assert_eq!(hurdle.call(&inner).success().stdout, "in\n");
    hurdle.call(&["kill", &name]).success();
    hurdle.assert_nothing_left();
}
