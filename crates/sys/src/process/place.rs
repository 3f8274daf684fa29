//! Where another process stands, for a program that is started beside it: its namespaces (setns(2)), its ids, and the limits of its
//! rights. What is not taken over are its seccomp filters, which is the point: a trap can't be added below another one.

use std::fs;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::seccomp::Filter;

/// All namespaces that a process can be moved into, or its children, by their names in /proc/PID/ns.
const NAMESPACES: [(&str, libc::c_int); 8] = [
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", libc::CLONE_NEWTIME),
];

/// The place of one process, looked at while it lived.
#[derive(Debug)]
pub struct Place {
    pidfd: OwnedFd,
    /// Those of its namespaces that this process is not in.
    namespaces: libc::c_int,
    /// Its root and working directory.
    root: OwnedFd,
    cwd: OwnedFd,
    /// Keeps it from typing on the terminal that it may share with somebody outside.
    guard: Filter,
    stance: Stance,
}

/// What a process that is started in a [`Place`] has from there, but for its working directory. Two that are equal could do the
/// same, to each other too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stance {
    /// The file that it runs, and its root.
    program: FileId,
    root: FileId,
    /// Its namespaces, all of them.
    namespaces: Vec<PathBuf>,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// Capabilities that it can't have, by number, and the sets of those that it has: permitted, inheritable.
    lost: Vec<u8>,
    permitted: u64,
    inheritable: u64,
    no_new_privileges: bool,
    umask: u32,
    nice: libc::c_int,
    /// Signals that it ignores, a bit each.
    ignored: u64,
    /// Resource limits, soft and hard.
    limits: Vec<(u64, u64)>,
    affinity: Affinity,
}

impl Stance {
    /// Whether `pid`, a child of the caller's, runs the same file.
    pub fn is_program_of(&self, pid: i32) -> bool {
        led_to(format!("/proc/{pid}/exe")).and_then(|exe| file_id(&exe)).is_ok_and(|id| id == self.program)
    }
}

/// A cpu_set_t.
type Affinity = [u64; size_of::<libc::cpu_set_t>() / 8];

/// A file and the mount by which it was reached: device, inode, mount.
type FileId = [u64; 3];

/// statx(2) of what an fd stands for.
fn file_id(fd: &OwnedFd) -> io::Result<FileId> {
    // SAFETY: all-zero is a valid statx; the call fills it, and reads an empty string.
    unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        let wanted = libc::STATX_INO | libc::STATX_MNT_ID;
        match libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, wanted, &raw mut found) {
            0 => Ok([libc::makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino, found.stx_mnt_id]),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// What a link of /proc leads to, without opening it (O_PATH).
fn led_to(path: String) -> io::Result<OwnedFd> {
    Ok(fs::File::options().read(true).custom_flags(libc::O_PATH).open(path)?.into())
}

/// One line of /proc/PID/status, without its name.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map_or("", str::trim)
}

/// A file of /proc, in one read: none of those here is longer.
fn whole(path: &str) -> io::Result<String> {
    let mut bytes = vec![0; 16 * 1024];
    let got = fs::File::open(path)?.read(&mut bytes)?;
    bytes.truncate(got);
    String::from_utf8(bytes).map_err(|_| odd(path))
}

/// The caller's own ones, which do not change after its start.
fn own_namespaces() -> io::Result<&'static Vec<PathBuf>> {
    static OWN: OnceLock<Vec<PathBuf>> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let links = NAMESPACES.iter().map(|(name, _)| fs::read_link(format!("/proc/self/ns/{name}")));
    Ok(OWN.get_or_init({
        let links = links.collect::<io::Result<_>>()?;
        || links
    }))
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/proc shows no {what} of the caller"))
}

/// The id inside that `outside` stands for, by a map as /proc/PID/uid_map has it.
fn inside(map: &str, outside: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut words = line.split_whitespace().map_while(|word| word.parse::<u32>().ok());
        let (inside, first, count) = (words.next()?, words.next()?, words.next()?);
        (outside >= first && outside - first < count).then(|| inside + (outside - first))
    })
}

impl Place {
    /// That of the process behind `pidfd`.
    ///
    /// # Errors
    /// ESRCH: it has ended. `PermissionDenied`: it is in this process's own pid namespace; or what it started would have more than
    /// itself: it is below more than `filters` seccomp filters, or has given up capabilities in a way that an exec undoes.
    pub fn of(pidfd: OwnedFd, filters: u32) -> io::Result<Place> {
        let pid = super::pid_of(&pidfd)?;
        let read = |file: &str| whole(&format!("/proc/{pid}/{file}"));
        let (status, users, groups) = (read("status")?, read("uid_map")?, read("gid_map")?);
        let (mut namespaces, mut links) = (0, Vec::with_capacity(NAMESPACES.len()));
        for ((name, flag), own) in NAMESPACES.into_iter().zip(own_namespaces()?) {
            let link = fs::read_link(format!("/proc/{pid}/ns/{name}"))?;
            // One that may not be entered need not be, if it is the same.
            if link != *own {
                namespaces |= flag;
            }
            links.push(link);
        }
        let (root, cwd) = (led_to(format!("/proc/{pid}/root"))?, led_to(format!("/proc/{pid}/cwd"))?);
        let program = file_id(&led_to(format!("/proc/{pid}/exe"))?)?;
        let (limits, affinity, nice) = (limits(pid)?, affinity(pid)?, nice(pid)?);
        // Alive after the look: so the number was its own, nobody else's.
        super::alive(&pidfd)?;
        let denied = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if namespaces & libc::CLONE_NEWPID == 0 {
            return denied("the caller is in no environment");
        }
        let under: u32 = field(&status, "Seccomp_filters").parse().map_err(|_| odd("filters"))?;
        if under > filters {
            return denied(
                "the caller is in a sandbox of its own (a seccomp filter), which what it starts would not be in",
            );
        }
        if whole("/proc/sys/fs/suid_dumpable").is_ok_and(|text| text.trim() == "1") {
            return denied("fs.suid_dumpable is 1, so what is being started could be looked into: set it to 0 or 2");
        }
        let id = |name, map: &str| {
            let effective = field(&status, name).split_whitespace().nth(1).and_then(|id| id.parse().ok());
            effective.and_then(|outside| inside(map, outside)).ok_or_else(|| odd(name))
        };
        let set = |name| u64::from_str_radix(field(&status, name), 16).map_err(|_| odd(name));
        let (bounding, permitted, inheritable) = (set("CapBnd")?, set("CapPrm")?, set("CapInh")?);
        let (uid, gid) = (id("Uid", &users)?, id("Gid", &groups)?);
        let no_new_privileges = field(&status, "NoNewPrivs") != "0";
        if uid == 0 && !no_new_privileges && permitted & bounding != bounding {
            return denied("the caller has given up capabilities that what it starts would have");
        }
        let also = field(&status, "Groups").split_whitespace().filter_map(|id| inside(&groups, id.parse().ok()?));
        let stance = Stance {
            program,
            root: file_id(&root)?,
            namespaces: links,
            uid,
            gid,
            groups: also.collect(),
            lost: (0..64).filter(|number| bounding & (1 << number) == 0).collect(),
            permitted,
            inheritable,
            no_new_privileges,
            umask: u32::from_str_radix(field(&status, "Umask"), 8).map_err(|_| odd("umask"))?,
            ignored: set("SigIgn")?,
            nice,
            limits,
            affinity,
        };
        Ok(Place { pidfd, namespaces, root, cwd, guard: Filter::without_typing()?, stance })
    }

    /// What else is known of it.
    pub fn stance(&self) -> &Stance {
        &self.stance
    }

    /// Its working directory.
    ///
    /// # Errors
    /// EMFILE.
    pub fn cwd(&self) -> io::Result<OwnedFd> {
        self.cwd.as_fd().try_clone_to_owned()
    }

    /// How many seccomp filters the process behind `pidfd` is below.
    ///
    /// # Errors
    /// ESRCH: it has ended.
    pub fn filters(pidfd: &OwnedFd) -> io::Result<u32> {
        let status = whole(&format!("/proc/{}/status", super::pid_of(pidfd)?))?;
        super::alive(pidfd)?;
        field(&status, "Seccomp_filters").parse().map_err(|_| odd("filters"))
    }

    /// Fds that [`Place::step_in`] needs.
    pub(super) fn fds(&self) -> [RawFd; 3] {
        [self.pidfd.as_raw_fd(), self.root.as_raw_fd(), self.cwd.as_raw_fd()]
    }

    /// In a forked child: moves into the namespaces, and makes the process that is in all of them, a child of the caller's parent,
    /// to which `then` is left; it returns the errno of what failed. To `report` goes that process's number, negative, and before
    /// it the errno, if one failed. The caller ends. System calls only.
    ///
    /// Until its exec that process is a copy of one outside, which those inside may see and stop. So all fds but `keep` (in order) are
    /// closed before, and nobody may look into it: it is not dumpable, and its memory belongs to the user namespace outside.
    pub(super) fn step_in(&self, report: RawFd, keep: &[RawFd], then: &dyn Fn() -> i32) -> i32 {
        // SAFETY: async-signal-safe system calls on integers and on arrays that live in `self` or on this stack.
        unsafe {
            let errno = || *libc::__errno_location();
            let mut next = 0;
            for fd in keep.iter().copied().chain([RawFd::MAX]) {
                if fd > next {
                    let last = if fd == RawFd::MAX { u32::MAX } else { fd as u32 - 1 };
                    if libc::syscall(libc::SYS_close_range, next as u32, last, 0) != 0 {
                        return errno();
                    }
                }
                next = fd.saturating_add(1);
            }
            if libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 {
                return errno();
            }
            if libc::setns(self.pidfd.as_raw_fd(), self.namespaces) != 0 {
                return errno();
            }
            // As vfork(2), on a stack of its own, but the child is the parent's: who reaps it knows its number.
            let mut arrival = Arrival { place: self, report, then };
            let flags = libc::CLONE_PARENT | libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            let mut stack = [const { MaybeUninit::<u128>::uninit() }; 2048];
            let top = stack.as_mut_ptr().add(stack.len());
            match libc::clone(arrive, top.cast(), flags, (&raw mut arrival).cast()) {
                -1 => errno(),
                pid => {
                    let said = -pid;
                    libc::write(report, (&raw const said).cast(), 4);
                    libc::_exit(0)
                }
            }
        }
    }

    /// In the process that is in all namespaces: 0, or the errno of what failed.
    fn settle(&self, report: RawFd) -> i32 {
        // SAFETY: as in `step_in`.
        unsafe {
            let errno = || *libc::__errno_location();
            // While it still may.
            if self.guard.install_alone().is_err() || !self.take_over() {
                return errno();
            }
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            // Nobody reads the report any more: the parent ended before it could be heard of.
            let mut gone = libc::pollfd { fd: report, events: 0, revents: 0 };
            libc::poll(&raw mut gone, 1, 0);
            if gone.revents & libc::POLLERR != 0 {
                libc::_exit(127);
            }
            0
        }
    }

    /// Root, directory, limits, ids and capabilities, in the order in which they may still be changed.
    ///
    /// # Safety
    /// In a forked child only.
    unsafe fn take_over(&self) -> bool {
        // SAFETY: as in `step_in`.
        unsafe {
            if libc::fchdir(self.root.as_raw_fd()) != 0
                || libc::chroot(c".".as_ptr()) != 0
                || libc::fchdir(self.cwd.as_raw_fd()) != 0
            {
                return false;
            }
            let stance = &self.stance;
            libc::umask(stance.umask as libc::mode_t);
            libc::setpriority(libc::PRIO_PROCESS, 0, stance.nice);
            libc::sched_setaffinity(0, size_of::<Affinity>(), stance.affinity.as_ptr().cast());
            for signal in 1..64 {
                if stance.ignored & (1 << (signal - 1)) != 0 {
                    libc::signal(signal, libc::SIG_IGN);
                }
            }
            for (kind, (rlim_cur, rlim_max)) in stance.limits.iter().copied().enumerate() {
                let limit = libc::rlimit64 { rlim_cur, rlim_max };
                // One that is above what this process may have stays as it is here.
                libc::prlimit64(0, kind as _, &raw const limit, std::ptr::null_mut());
            }
            for number in &stance.lost {
                libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(*number), 0, 0, 0);
            }
            // Where that is denied for good, it has the groups of its own user.
            let _ = libc::syscall(libc::SYS_setgroups, stance.groups.len(), stance.groups.as_ptr());
            let (uid, gid) = (stance.uid, stance.gid);
            if libc::syscall(libc::SYS_setresgid, gid, gid, gid) != 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0
            {
                return false;
            }
            // capset(2), version 3: two words of each set. An exec without new privileges gains none.
            let header: [u32; 2] = [0x2008_0522, 0];
            let half = |set: u64, high: bool| if high { (set >> 32) as u32 } else { set as u32 };
            let sets = [false, true].map(|high| {
                let permitted = half(stance.permitted, high);
                [permitted, permitted, half(stance.inheritable, high) & permitted]
            });
            if libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) != 0 && uid == 0 {
                return false;
            }
            !stance.no_new_privileges || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        }
    }
}

/// What the process that [`Place::step_in`] makes is told.
struct Arrival<'a> {
    place: &'a Place,
    report: RawFd,
    then: &'a dyn Fn() -> i32,
}

/// Its life until its exec.
extern "C" fn arrive(arrival: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the one who made this process waits for its exec or its end, and keeps what it points to until then.
    let arrival = unsafe { &*arrival.cast::<Arrival<'_>>() };
    let errno = match arrival.place.settle(arrival.report) {
        0 => (arrival.then)(),
        errno => errno,
    };
    // SAFETY: writes four bytes of a local to an open fd.
    unsafe { libc::write(arrival.report, (&raw const errno).cast(), 4) };
    127
}

/// Of a process: its resource limits, by their numbers (prlimit(2)).
fn limits(pid: i32) -> io::Result<Vec<(u64, u64)>> {
    let limit = |kind: u32| {
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: fills one structure.
        match unsafe { libc::prlimit64(pid, kind as _, std::ptr::null(), &raw mut limit) } {
            0 => Ok((limit.rlim_cur, limit.rlim_max)),
            _ => Err(io::Error::last_os_error()),
        }
    };
    (0..16).map(limit).collect()
}

/// The CPUs that it may run on (sched_getaffinity(2)).
fn affinity(pid: i32) -> io::Result<Affinity> {
    let mut set = Affinity::default();
    // SAFETY: fills at most the whole array, which has the size and the alignment of a set.
    match unsafe { libc::sched_getaffinity(pid, size_of::<Affinity>(), set.as_mut_ptr().cast()) } {
        0 => Ok(set),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How nice it is (getpriority(2)).
fn nice(pid: i32) -> io::Result<libc::c_int> {
    // SAFETY: integers only; -1 is a valid result, so errno tells.
    unsafe {
        *libc::__errno_location() = 0;
        let nice = libc::getpriority(libc::PRIO_PROCESS, pid as libc::id_t);
        if nice == -1 && *libc::__errno_location() != 0 { Err(io::Error::last_os_error()) } else { Ok(nice) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_through_a_map() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(
            [1000, 100_000, 165_535, 165_536, 0].map(|id| inside(map, id)),
            [Some(0), Some(1), Some(65536), None, None]
        );
    }

    #[test]
    fn a_process_outside_of_all_environments_has_no_place() {
        let own = super::super::pidfd(std::process::id() as i32).unwrap();
        let refused = Place::of(own, u32::MAX).unwrap_err();
        assert_eq!(refused.to_string(), "the caller is in no environment");
    }
}
