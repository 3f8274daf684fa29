//! Ways out of an environment that must be none: docs/security.md names these tests.

use std::process::Command;
use std::time::Duration;

use hurdle_tests::{Hurdle, finish, skip};

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
