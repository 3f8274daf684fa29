//! Processes: started from a prepared [`Launch`], held behind pidfds (pidfd_open(2)), reaped by wait4(2).

mod apart;
mod aside;
mod child;
mod guard;
mod launch;
mod near;
mod place;
mod program;
mod signals;
mod twin;
mod wait;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};

pub use apart::{Rest, Work, not_the_worker, run_apart};
pub use aside::run_aside;
pub use child::Child;
pub use guard::END;
pub use launch::{Group, Launch};
pub use near::Near;
pub use place::{Place, Stance};
pub use signals::{SignalMask, Signals, die_by, hear_of_children, signal_name, signal_number};
pub use twin::{rename, take_variable, twin};
pub use wait::{State, Status, try_wait, wait, wait_end};

/// pidfd_open(2). ESRCH: no such process.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new fd, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// pidfd_send_signal(2). ESRCH: it is gone; EPERM: not the caller's.
pub fn signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: siginfo may be null.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, null, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// kill(2) by number: for the caller's own children and their groups (`-pgrp`), whose numbers can't be reused.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// tgkill(2): to one thread of a process.
pub fn signal_thread(pid: i32, thread: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    match unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What [`poll`] waits for on one fd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// There is something to read, or the other side has ended.
    Readable,
    /// The other side has ended.
    Ended,
}

/// poll(2) on `fds`, until `deadline` (`None`: for ever). Says of each fd if it has come to what it was waited for; none has
/// at the deadline, or after a signal.
pub fn poll(fds: &[(BorrowedFd<'_>, Until)], deadline: Option<Instant>) -> io::Result<Vec<bool>> {
    let events = |until| if until == Until::Readable { PollFlags::POLLIN } else { PollFlags::empty() };
    let mut polled: Vec<PollFd> = fds.iter().map(|(fd, until)| PollFd::new(*fd, events(*until))).collect();
    let timeout = match deadline {
        None => PollTimeout::NONE,
        Some(at) => {
            let left = at.saturating_duration_since(Instant::now());
            // Round up, so that the deadline has passed when the poll ends by itself.
            PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
        }
    };
    match nix::poll::poll(&mut polled, timeout) {
        Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(vec![false; fds.len()]),
        Ok(_) => Ok(polled.iter().map(|fd| fd.revents().is_some_and(|got| !got.is_empty())).collect()),
        Err(e) => Err(e.into()),
    }
}

/// Whether the other side of `fd` has ended (POLLHUP or POLLERR).
pub fn ended(fd: BorrowedFd<'_>) -> bool {
    poll(&[(fd, Until::Ended)], Some(Instant::now())).is_ok_and(|ended| ended[0])
}

/// close_range(2) on everything above 2 but `keep`: for a process that is a copy of another and never returns to what the
/// fds belong to.
pub fn close_all_but(keep: &mut [RawFd]) {
    keep.sort_unstable();
    let mut next = 3;
    for &fd in keep.iter().filter(|fd| **fd >= 3) {
        if fd > next {
            // SAFETY: takes integers only; the owners of these fds are never run again in this process.
            unsafe { libc::syscall(libc::SYS_close_range, next as u32, fd as u32 - 1, 0) };
        }
        next = fd + 1;
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, next as u32, u32::MAX, 0) };
}

/// Whether the caller is below a seccomp filter (PR_GET_SECCOMP, prctl(2)).
pub fn is_filtered() -> bool {
    // SAFETY: takes integers only.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) == 2 }
}

/// Ignores a signal (SIG_IGN, signal(7)); what the caller starts does, too.
pub fn ignore(signal: i32) {
    // SAFETY: no handler is installed; an unknown number is refused.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// pipe2(2): (read end, write end), close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// Makes room for so many bytes in a pipe (F_SETPIPE_SZ in fcntl(2)). EPERM: more than this user may have; EBUSY.
pub fn set_pipe_size(pipe: impl AsFd, bytes: i32) -> io::Result<()> {
    nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(bytes))?;
    Ok(())
}

/// The name of an errno (errno(3)), as `ECONNREFUSED`.
pub fn errno_name(errno: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno))
}

/// A duplicate of an fd that the process inherited, close-on-exec (F_DUPFD_CLOEXEC). EBADF: no such fd is open.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl checks the number; the new fd is owned by nobody else.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    // SAFETY: as above.
    if new < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(new) }) }
}

/// Takes over an fd that the process was started with under this number, and marks it close-on-exec. To be called once for
/// each number, before threads start. EBADF: no such fd is open.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    let new = duplicate(fd)?;
    // SAFETY: the number was handed down for this caller to own, and nobody else has claimed it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(new)
}

/// Lets programs that this process starts have the fd too: takes close-on-exec off (F_SETFD, fcntl(2)).
pub fn inheritable(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    Ok(fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop)?)
}

/// The caller's supplementary groups (getgroups(2)).
pub fn groups() -> io::Result<Vec<u32>> {
    Ok(nix::unistd::getgroups()?.into_iter().map(|gid| gid.as_raw()).collect())
}

/// Calls again while it says EINTR.
pub fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// The caller's effective (user id, group id).
pub fn effective_ids() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

/// How many CPUs the caller may run on (sched_getaffinity(2)).
pub fn allowed_cpus() -> io::Result<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    Ok((0..nix::sched::CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).count())
}

/// How many threads of the machine run or want to at this moment, and on how many CPUs (proc_loadavg(5), sched_getaffinity(2)).
///
/// # Errors
/// `InvalidData` if /proc says something else; where it is not mounted, ENOENT.
pub fn runnable() -> io::Result<(usize, usize)> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    let runs = text.split(' ').nth(3).and_then(|field| field.split_once('/')?.0.parse().ok());
    Ok((runs.ok_or(io::ErrorKind::InvalidData)?, allowed_cpus()?))
}

/// Leaves the calling thread with an empty table of fds, apart from that of its process (close_range(2)).
///
/// # Errors
/// ENOMEM, EMFILE.
pub fn let_go_of_files() -> io::Result<()> {
    // SAFETY: plain numbers. The other threads keep their table, and this one uses no fd from here on.
    match unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, libc::CLOSE_RANGE_UNSHARE) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// From now on the calling thread runs only where no other wants to (SCHED_IDLE, sched_setscheduler(2)).
pub fn only_when_idle() -> io::Result<()> {
    policy(libc::SCHED_IDLE)
}

/// From now on the calling thread takes no CPU from another one by waking up (SCHED_BATCH, sched_setscheduler(2)).
pub fn wake_politely() -> io::Result<()> {
    policy(libc::SCHED_BATCH)
}

fn policy(policy: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero is a valid sched_param: the one priority that policies without real time have.
    let done = unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, policy, &raw const parameters)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// InvalidInput if the caller has more than one thread: a copy of it could hang on a lock that another one held (fork(2)).
pub(crate) fn one_thread() -> io::Result<()> {
    // A link for each thread, besides the two of any directory: one system call, where a listing takes five.
    match std::os::unix::fs::MetadataExt::nlink(&std::fs::metadata("/proc/self/task")?) {
        3 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a process with threads can't be copied")),
    }
}

/// fork(2) for a caller that detaches: the child gets a session of its own and goes on as a copy; the parent gets its pid.
/// InvalidInput if the caller has threads.
pub fn detach() -> io::Result<Option<i32>> {
    one_thread()?;
    // SAFETY: the caller has one thread, so the child's copy of its memory holds no foreign lock.
    match unsafe { nix::unistd::fork()? } {
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child.as_raw())),
        nix::unistd::ForkResult::Child => {
            nix::unistd::setsid()?;
            Ok(None)
        }
    }
}

/// Numbers that callers name (signal(7), errno(3)).
pub mod numbers {
    pub use libc::{
        EAGAIN, EBUSY, ECONNREFUSED, EEXIST, EINVAL, EIO, EMFILE, ENETDOWN, ENOENT, ENOPROTOOPT, EOPNOTSUPP, EPERM,
        ESRCH, ETOOMANYREFS, SIGABRT, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP,
        SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
    };
}

/// An event that one thread rings and another polls for (eventfd(2)).
#[derive(Debug)]
pub struct Event(nix::sys::eventfd::EventFd);

impl Event {
    /// EMFILE: out of fds.
    pub fn new() -> io::Result<Event> {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        Ok(Event(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Makes it readable.
    pub fn ring(&self) {
        let _ = self.0.write(1);
    }

    /// Makes it unreadable.
    pub fn clear(&self) {
        let _ = self.0.read();
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Fds, one of which can be read from where this can (epoll(7)). One that is closed is none of them any more.
#[derive(Debug)]
pub struct Inputs(nix::sys::epoll::Epoll);

impl Inputs {
    /// None yet. EMFILE.
    pub fn new() -> io::Result<Inputs> {
        Ok(Inputs(nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// One more. ENOSPC: the user has too many in such sets.
    pub fn add(&self, fd: impl AsFd) -> io::Result<()> {
        use nix::sys::epoll::{EpollEvent, EpollFlags};
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?)
    }
}

impl AsFd for Inputs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// From now on the calling thread has no capability, and neither have those that it starts (capset(2)). Errors: none are known.
pub fn drop_capabilities() -> io::Result<()> {
    // linux/capability.h: version 3; effective, permitted and inheritable, twice 32 bits of each.
    let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: two live structures as the version says.
    match unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// From now on processes below the caller that lose their parent become the caller's children
/// (PR_SET_CHILD_SUBREAPER(2const)).
pub fn adopt_orphans() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// The caller's children, those too that it adopted or that ended and were not reaped (proc_pid_task_tid_children(5)).
/// None on a kernel that lists none (without CONFIG_PROC_CHILDREN).
pub fn children() -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task")? {
        // If the thread has ended, its children are another thread's now.
        let text = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        found.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Ok(found)
}

/// Stops the caller as Ctrl-Z would (SIGSTOP), until somebody sends SIGCONT.
pub fn stop_self() {
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
}

/// Whether there is a process group of this number (kill(2) with signal 0).
pub fn is_group(pgrp: i32) -> bool {
    kill(-pgrp, 0).is_ok()
}

/// Sets or clears O_NONBLOCK on the open file (fcntl(2)): for all who have it.
pub fn set_nonblocking(fd: impl AsFd, on: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let mut flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) != on {
        flags.toggle(OFlag::O_NONBLOCK);
        fcntl(&fd, FcntlArg::F_SETFL(flags))?;
    }
    Ok(())
}

/// Whether the caller leads its process group: it is a job of its own.
pub fn leads_group() -> bool {
    nix::unistd::getpgrp() == nix::unistd::getpid()
}

/// dup2(2): makes `number` (0, 1 or 2) a duplicate of `fd`.
pub fn replace(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if !(0..3).contains(&number) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only the standard three are nobody's own"));
    }
    // SAFETY: the standard three are owned by no OwnedFd in this process.
    match unsafe { libc::dup2(fd.as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The pid of the process behind a pidfd, in the caller's namespace (fdinfo, proc_pid_fdinfo(5)). ESRCH: it has ended and was
/// reaped.
pub fn pid_of(pidfd: impl AsFd) -> io::Result<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// ESRCH if the process behind a pidfd has ended, reaped or not.
pub(crate) fn alive(pidfd: &OwnedFd) -> io::Result<()> {
    match poll(&[(pidfd.as_fd(), Until::Readable)], Some(Instant::now()))?[0] {
        true => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        false => Ok(()),
    }
}

/// When a process that mostly waits has left its start-up behind, and may call [`release_code`].
pub const SETTLED: Duration = Duration::from_millis(300);

/// How far below the caller the stack stays as it is.
const DEPTH: usize = 16 << 10;

/// The pidfd of a child that was not reaped. Where there is none to be had the child is ended and reaped: nobody could do so later.
/// Errors: as [`pidfd`].
pub fn pidfd_or_end(child: i32) -> io::Result<OwnedFd> {
    pidfd(child).inspect_err(|_| {
        let _ = kill(child, libc::SIGKILL);
        let _ = wait_end(child);
    })
}

/// All threads of the caller share one heap (mallopt(3), M_ARENA_MAX). For a process whose threads come and go, and allocate little:
/// each heap keeps what its threads needed at most, and never gives it back.
pub fn one_heap() {
    // SAFETY: takes two integers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Lets go of what start-up alone needed (madvise(2), MADV_DONTNEED): the pages of the caller's own machine code and constants, of
/// which those needed again come back from the page cache by themselves; the main thread's stack below the caller; what malloc(3)
/// has free. For a process that begins to wait, called by its main thread.
pub fn release_code() {
    let here = 0u8;
    let below = (&raw const here).addr().saturating_sub(DEPTH) & !0xfff;
    let file = file_ranges(below);
    // SAFETY: takes an integer.
    unsafe { libc::malloc_trim(0) };
    // Last, and the code at the end: what runs from here on comes back, each page with its neighbours.
    for (from, to) in file {
        // SAFETY: a read-only private mapping of a file that nobody has written to, since it holds no relocation: its pages are read
        // again from the file when next touched, also those of this very function. An empty range is no error.
        unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
    }
}

/// Where the caller's constants and code are mapped. On the way it lets go of the main thread's stack below `below`.
fn file_ranges(below: usize) -> [(usize, usize); 2] {
    let mut found = [(0, 0); 2];
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let exe = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| usize::from_str_radix(text, 16).ok();
        let ends = |range: &str| range.split_once('-').and_then(|(from, to)| Some((number(from)?, number(to)?)));
        match words[..] {
            [range, _, _, _, _, "[stack]"] => {
                if let Some((from, _)) = ends(range).filter(|(from, to)| (*from..*to).contains(&below)) {
                    // SAFETY: stack that nobody uses: it lies below this frame, with room for the calls that this function makes.
                    unsafe { libc::madvise(from as *mut libc::c_void, below - from, libc::MADV_DONTNEED) };
                }
            }
            // A replaced file's mapping has another name, and stays. What is read-only at the file's begin was never writable; what
            // follows the code was, while it was relocated.
            [range, "r--p", "00000000", _, _, path] if std::path::Path::new(path) == exe => {
                found[0] = ends(range).unwrap_or((0, 0))
            }
            [range, "r-xp", _, _, _, path] if std::path::Path::new(path) == exe => {
                found[1] = ends(range).unwrap_or((0, 0))
            }
            _ => {}
        }
    }
    found
}
