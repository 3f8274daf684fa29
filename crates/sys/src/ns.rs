//! Namespaces and id maps: clone3(2), user_namespaces(7), setns(2).
//!
//! [`clone_init`] makes the first process of an environment; the rest fills in what a fresh namespace lacks.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;

/// Which namespaces a new process gets of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces(CloneFlags);

impl Namespaces {
    /// user, mount, pid, ipc and uts: what every environment has, whatever it shares.
    pub const BASE: Namespaces = Namespaces(
        CloneFlags::CLONE_NEWUSER
            .union(CloneFlags::CLONE_NEWNS)
            .union(CloneFlags::CLONE_NEWPID)
            .union(CloneFlags::CLONE_NEWIPC)
            .union(CloneFlags::CLONE_NEWUTS),
    );
    /// A network namespace: empty, its loopback down.
    pub const NET: Namespaces = Namespaces(CloneFlags::CLONE_NEWNET);
    /// A user namespace alone.
    pub const USER: Namespaces = Namespaces(CloneFlags::CLONE_NEWUSER);

    /// Both sets.
    pub const fn with(self, other: Namespaces) -> Namespaces {
        Namespaces(self.0.union(other.0))
    }

    /// Whether all of `other` is in this set.
    pub const fn has(self, other: Namespaces) -> bool {
        self.0.contains(other.0)
    }
}

/// One line of an id map: `count` ids from `inside` on are `outside` and up in the parent's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Which of the two maps of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// `uid_map`
    Users,
    /// `gid_map`
    Groups,
}

/// Writes an id map of process `pid` (`None`: the caller's own). EPERM: the caller may not map these ids
/// (user_namespaces(7)); a second write to a map fails EPERM too.
pub fn write_map(pid: Option<i32>, ids: Ids, extents: &[Extent]) -> io::Result<()> {
    let mut text = String::new();
    for e in extents {
        let _ = writeln!(text, "{} {} {}", e.inside, e.outside, e.count);
    }
    write_proc(pid, if ids == Ids::Users { "uid_map" } else { "gid_map" }, &text)
}

/// The ids that the caller's own user namespace has, each mapped to itself: the most its root may hand on.
pub fn own_ids(ids: Ids) -> io::Result<Vec<Extent>> {
    let file = if ids == Ids::Users { "/proc/self/uid_map" } else { "/proc/self/gid_map" };
    let bad = |line: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{file}: {line}"));
    let extent = |line: &str| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        match (words.next(), words.next(), words.next()) {
            (Some(Ok(inside)), Some(Ok(_)), Some(Ok(count))) => Ok(Extent { inside, outside: inside, count }),
            _ => Err(bad(line)),
        }
    };
    std::fs::read_to_string(file)?.lines().map(extent).collect()
}

/// Where the setuid program is that writes this map for a user without privileges (newuidmap(1), newgidmap(1)).
pub fn map_helper(ids: Ids) -> Option<PathBuf> {
    let name = if ids == Ids::Users { "newuidmap" } else { "newgidmap" };
    ["/usr/bin", "/bin", "/usr/local/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

/// Gives up setgroups(2) in the namespace of `pid`: a user without privileges must, before he maps a group.
pub fn deny_setgroups(pid: Option<i32>) -> io::Result<()> {
    write_proc(pid, "setgroups", "deny")
}

fn write_proc(pid: Option<i32>, file: &str, text: &str) -> io::Result<()> {
    let who = pid.map_or_else(|| "self".to_string(), |p| p.to_string());
    OpenOptions::new().write(true).open(format!("/proc/{who}/{file}"))?.write_all(text.as_bytes())
}

/// A process made by [`clone_init`], held by its pidfd. Dropping it does not end the process.
#[derive(Debug)]
pub struct Init {
    /// The pid as the caller sees it: for messages and /proc paths while the pidfd is held.
    pub pid: i32,
    /// The process itself (pidfd_open(2)).
    pub pidfd: OwnedFd,
}

/// clone3(2): runs `child` in a new process with `namespaces` of its own, then ends that process with what it returns.
/// The child is a copy of the caller, as after fork(2); it becomes pid 1 if a pid namespace is among them.
///
/// Errors: EINVAL if the caller has more than one thread (a copy of a locked allocator would hang); ENOSPC or EUSERS at
/// the limit of namespaces (`/proc/sys/user`); EPERM where user namespaces are forbidden.
pub fn clone_init(namespaces: Namespaces, child: impl FnOnce() -> i32) -> io::Result<Init> {
    crate::process::one_thread()?;
    let mut fd: libc::c_int = -1;
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (namespaces.0.bits() | libc::CLONE_PIDFD) as u32 as u64;
    args.pidfd = (&raw mut fd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: no stack and no CLONE_VM, so this is fork(2) in effect, and the caller has one thread (checked above);
    // the child runs on a copy of this stack and never returns from here.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = child();
            // SAFETY: ends the child without running the caller's exit handlers.
            unsafe { libc::_exit(code) }
        }
        // SAFETY: clone3 stored a new pidfd, owned by nobody else.
        pid => Ok(Init { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(fd) } }),
    }
}

/// The number of the caller's pid namespace: no other one has it while that lives.
pub fn own_pid_namespace() -> io::Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata("/proc/self/ns/pid")?))
}

/// sethostname(2) in the caller's uts namespace. EINVAL: longer than 64 bytes.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(nix::unistd::sethostname(name)?)
}

/// gethostname(2).
pub fn hostname() -> io::Result<String> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().into_owned())
}

/// Brings up `lo` in the caller's network namespace (netdevice(7), SIOCSIFFLAGS). EPERM without CAP_NET_ADMIN there.
pub fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    // Any kind of socket does; one of this family is never trapped.
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// setns(2) into the namespaces behind `fd` (an ns file or a pidfd). For a user namespace the caller must have one
/// thread (EINVAL).
pub fn enter(fd: impl AsFd, namespaces: Namespaces) -> io::Result<()> {
    Ok(nix::sched::setns(fd, namespaces.0)?)
}

/// unshare(2): new namespaces for the calling process.
pub fn unshare(namespaces: Namespaces) -> io::Result<()> {
    Ok(nix::sched::unshare(namespaces.0)?)
}

/// PR_SET_NO_NEW_PRIVS (prctl(2)): no exec from here on gains a privilege.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: takes integers only.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// KEYCTL_JOIN_SESSION_KEYRING (keyctl(2)): the caller gets a session keyring of its own, new and empty. False: the kernel has no keys,
/// or lets nobody reach them here.
///
/// # Errors
/// EDQUOT: the caller's user has as many keys as he may.
pub fn own_session_keyring() -> io::Result<bool> {
    const JOIN: libc::c_long = 1;
    // SAFETY: a null name makes an anonymous keyring.
    match unsafe { libc::syscall(libc::SYS_keyctl, JOIN, std::ptr::null::<libc::c_char>()) } {
        -1 => match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(false),
            e => Err(e),
        },
        _ => Ok(true),
    }
}

/// PR_SET_PDEATHSIG with SIGKILL (prctl(2)): the caller dies with the *thread* that made it. An exec that gains
/// privileges clears it.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: takes integers only.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
