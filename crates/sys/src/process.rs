//! Processes: started from a prepared [`Launch`], held behind pidfds (pidfd_open(2)), reaped by wait4(2).

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};

/// How a new process stands to sessions, process groups and the terminal (credentials(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The caller's process group.
    Inherit,
    /// A process group of its own, in the background.
    Own,
    /// A process group of its own, put in the foreground of its standard input.
    Foreground,
    /// A session of its own without a terminal.
    Session,
    /// A session of its own whose controlling terminal is its standard input.
    Terminal,
}

/// A process about to be: everything is allocated here, so that the child makes nothing but system calls until its exec.
#[derive(Debug)]
pub struct Launch {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    envp: Vec<CString>,
    cwd: Option<CString>,
    stdio: [OwnedFd; 3],
    extra: Vec<(OwnedFd, RawFd)>,
    group: Group,
    dies_with_parent: bool,
    no_new_privileges: bool,
}

/// How many fds above 2 a [`Launch`] hands down at most: the child sorts them without allocating.
const NAMED_FDS: usize = 16;

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{text:?} holds a NUL byte")))
}

/// The paths that execvp(3) would try for `program`, given the value of `PATH`.
fn candidates(program: &OsStr, path: Option<&OsStr>) -> io::Result<Vec<CString>> {
    if program.as_bytes().contains(&b'/') {
        return Ok(vec![c_string(program)?]);
    }
    let path = path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin"));
    let whole = |dir: &[u8]| {
        let mut file = if dir.is_empty() { b".".to_vec() } else { dir.to_vec() };
        file.push(b'/');
        file.extend_from_slice(program.as_bytes());
        c_string(&OsString::from_vec(file))
    };
    path.as_bytes().split(|&b| b == b':').map(whole).collect()
}

impl Launch {
    /// `argv[0]` is looked up in `PATH` of `env`, as a shell does. InvalidInput: `argv` is empty, or a text holds a NUL.
    pub fn new(argv: &[OsString], env: &[(OsString, OsString)], stdio: [OwnedFd; 3]) -> io::Result<Launch> {
        let program = argv.first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program given"))?;
        let path = env.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_os_str());
        let pair = |(key, value): &(OsString, OsString)| {
            let mut text = key.clone();
            text.push("=");
            text.push(value);
            c_string(&text)
        };
        Ok(Launch {
            candidates: candidates(program, path)?,
            argv: argv.iter().map(|a| c_string(a)).collect::<io::Result<_>>()?,
            envp: env.iter().map(pair).collect::<io::Result<_>>()?,
            cwd: None,
            stdio,
            extra: Vec::new(),
            group: Group::Inherit,
            dies_with_parent: false,
            no_new_privileges: false,
        })
    }

    /// Executes the file at `path` instead of the one that `argv[0]` names.
    pub fn program(mut self, path: &OsStr) -> io::Result<Launch> {
        self.candidates = vec![c_string(path)?];
        Ok(self)
    }

    /// The working directory; if it can't be entered, `/`.
    pub fn cwd(mut self, dir: &OsStr) -> io::Result<Launch> {
        self.cwd = Some(c_string(dir)?);
        Ok(self)
    }

    /// See [`Group`].
    pub fn group(mut self, group: Group) -> Launch {
        self.group = group;
        self
    }

    /// Hands `fd` down under number `number`; of all fds above 2 only these are handed down.
    pub fn fd(mut self, fd: OwnedFd, number: RawFd) -> Launch {
        self.extra.push((fd, number));
        self
    }

    /// SIGKILL when the thread that started it ends (PR_SET_PDEATHSIG).
    pub fn dies_with_parent(mut self) -> Launch {
        self.dies_with_parent = true;
        self
    }

    /// PR_SET_NO_NEW_PRIVS before the exec.
    pub fn no_new_privileges(mut self) -> Launch {
        self.no_new_privileges = true;
        self
    }

    /// The fds that it holds.
    pub fn fds(&self) -> Vec<RawFd> {
        self.stdio.iter().chain(self.extra.iter().map(|(fd, _)| fd)).map(AsRawFd::as_raw_fd).collect()
    }

    /// fork(2) and execve(2). Returns the child's pid once its exec has succeeded; the caller reaps it.
    ///
    /// Errors: that of the exec, as execvp(3) reports it (ENOENT, EACCES, ENOEXEC…); EAGAIN at the limit of processes.
    pub fn start(self) -> io::Result<i32> {
        if self.extra.len() > NAMED_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {NAMED_FDS} fds handed down")));
        }
        let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
            list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (argv, envp) = (pointers(&self.argv), pointers(&self.envp));
        // Numbers the child may overwrite while it moves fds to their places: all sources go above them first.
        let floor = self.extra.iter().map(|(_, n)| *n).chain([2]).max().unwrap_or(2) + 1;
        let lift = |fd: &OwnedFd| -> io::Result<OwnedFd> {
            let raw = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(floor))?;
            // SAFETY: F_DUPFD_CLOEXEC made a new fd, owned by nobody else.
            Ok(unsafe { OwnedFd::from_raw_fd(raw) })
        };
        let mut moves = Vec::with_capacity(3 + self.extra.len());
        for (number, fd) in self.stdio.iter().enumerate() {
            moves.push((lift(fd)?, number as RawFd));
        }
        for (fd, number) in &self.extra {
            moves.push((lift(fd)?, *number));
        }
        let (verdict, low) = pipe()?;
        let report = lift(&low)?;
        // The last close of this side is how success is seen.
        drop(low);

        // SAFETY: the child calls only `exec`, which makes async-signal-safe calls alone.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let errno = self.exec(&moves, &argv, &envp);
                // SAFETY: writes four bytes of a local to an open fd, then ends the child.
                unsafe {
                    libc::write(report.as_raw_fd(), (&raw const errno).cast(), 4);
                    libc::_exit(127)
                }
            }
            pid => {
                drop(report);
                let mut errno = [0; 4];
                let read = retry(|| nix::unistd::read(&verdict, &mut errno))?;
                if read == 0 {
                    return Ok(pid);
                }
                let _ = wait(Some(pid));
                Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
            }
        }
    }

    /// In the child: system calls only, no allocation, no lock. Returns the errno of what failed.
    fn exec(&self, moves: &[(OwnedFd, RawFd)], argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> i32 {
        // SAFETY: async-signal-safe system calls on fds and strings that live in `self`, `moves`, `argv` and `envp`.
        unsafe {
            let errno = || *libc::__errno_location();
            // Rust's runtime ignores it; what the user ignores (nohup) stays ignored.
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            for (from, to) in moves {
                if libc::dup2(from.as_raw_fd(), *to) < 0 {
                    return errno();
                }
            }
            // Close-on-exec for whatever else is open: nothing is ambient.
            let mut next = 3;
            let mut named = [RawFd::MAX; NAMED_FDS + 1];
            for (slot, (_, number)) in named.iter_mut().zip(self.extra.iter()) {
                *slot = *number;
            }
            named.sort_unstable();
            for number in named {
                if number > next {
                    let last = if number == RawFd::MAX { u32::MAX } else { number as u32 - 1 };
                    libc::syscall(libc::SYS_close_range, next as u32, last, libc::CLOSE_RANGE_CLOEXEC);
                }
                if number == RawFd::MAX {
                    break;
                }
                next = number + 1;
            }
            match self.group {
                Group::Inherit => {}
                Group::Own => _ = libc::setpgid(0, 0),
                Group::Foreground => {
                    libc::setpgid(0, 0);
                    // SIGTTOU would stop a background process here.
                    libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                    libc::tcsetpgrp(0, libc::getpid());
                    libc::signal(libc::SIGTTOU, libc::SIG_DFL);
                }
                Group::Session => _ = libc::setsid(),
                Group::Terminal => {
                    libc::setsid();
                    libc::ioctl(0, libc::TIOCSCTTY, 0);
                }
            }
            let mut none = MaybeUninit::<libc::sigset_t>::zeroed();
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
            if let Some(cwd) = &self.cwd
                && libc::chdir(cwd.as_ptr()) != 0
                && libc::chdir(c"/".as_ptr()) != 0
            {
                return errno();
            }
            if self.dies_with_parent {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            }
            if self.no_new_privileges {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            }
            let mut denied = false;
            for file in &self.candidates {
                libc::execve(file.as_ptr(), argv.as_ptr(), envp.as_ptr());
                match errno() {
                    libc::ENOENT | libc::ENOTDIR => {}
                    libc::EACCES => denied = true,
                    other => return other,
                }
            }
            if denied { libc::EACCES } else { libc::ENOENT }
        }
    }
}

/// What wait4(2) said of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub i32);

/// A [`Status`], decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Ended by itself with this exit status.
    Exited(i32),
    /// Ended by this signal.
    Killed(i32),
    /// Stopped by this signal; it may go on.
    Stopped(i32),
    /// Goes on after a stop.
    Continued,
}

impl Status {
    /// A status as of a process that exited with `code`.
    pub fn exit(code: u8) -> Status {
        Status(i32::from(code) << 8)
    }

    /// Which of the four it is.
    pub fn state(self) -> State {
        let raw = self.0;
        if libc::WIFEXITED(raw) {
            State::Exited(libc::WEXITSTATUS(raw))
        } else if libc::WIFSIGNALED(raw) {
            State::Killed(libc::WTERMSIG(raw))
        } else if libc::WIFSTOPPED(raw) {
            State::Stopped(libc::WSTOPSIG(raw))
        } else {
            State::Continued
        }
    }

    /// The exit code that a shell shows: 128 + the signal for a process that a signal ended.
    pub fn shell_code(self) -> i32 {
        match self.state() {
            State::Exited(code) => code,
            State::Killed(signal) | State::Stopped(signal) => 128 + signal,
            State::Continued => 0,
        }
    }
}

/// wait4(2) with WUNTRACED and WCONTINUED: the next change of a child (`None`: of any). ECHILD: there is none.
pub fn wait(pid: Option<i32>) -> io::Result<(i32, Status)> {
    wait4(pid, libc::WUNTRACED | libc::WCONTINUED)
}

/// As [`wait`], but at once: `None` if no child has changed.
pub fn try_wait(pid: Option<i32>) -> io::Result<Option<(i32, Status)>> {
    wait4(pid, libc::WNOHANG).map(|(pid, status)| (pid != 0).then_some((pid, status)))
}

fn wait4(pid: Option<i32>, flags: i32) -> io::Result<(i32, Status)> {
    let mut status = 0;
    retry(|| {
        // SAFETY: wait4 stores one int; rusage may be null.
        let pid = unsafe { libc::wait4(pid.unwrap_or(-1), &raw mut status, flags, std::ptr::null_mut()) };
        nix::errno::Errno::result(pid)
    })
    .map(|pid| (pid, Status(status)))
}

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

/// Signals read from an fd (signalfd(2)). The signals stay blocked in the process and its threads; a [`Launch`] unblocks
/// them for its child.
#[derive(Debug)]
pub struct Signals(nix::sys::signalfd::SignalFd);

impl Signals {
    /// Blocks `signals` for the calling thread, and all threads that it starts from here on.
    pub fn block(signals: &[i32]) -> io::Result<Signals> {
        let mut set = nix::sys::signal::SigSet::empty();
        for &signal in signals {
            set.add(nix::sys::signal::Signal::try_from(signal)?);
        }
        set.thread_block()?;
        let flags = nix::sys::signalfd::SfdFlags::SFD_CLOEXEC | nix::sys::signalfd::SfdFlags::SFD_NONBLOCK;
        Ok(Signals(nix::sys::signalfd::SignalFd::with_flags(&set, flags)?))
    }

    /// The next signal that is pending, and whether the kernel itself sent it (a terminal's Ctrl-C), not kill(2).
    pub fn next(&self) -> io::Result<Option<(i32, bool)>> {
        Ok(self.0.read_signal()?.map(|info| (info.ssi_signo as i32, info.ssi_code == libc::SI_KERNEL)))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Leaves the caller's own copy of signal `number` at its default and sends it to the caller: ends it as a child was ended,
/// without a second core file. Returns if the signal does not end a process.
pub fn die_by(number: i32) {
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    if let Ok(signal) = nix::sys::signal::Signal::try_from(number) {
        let mut set = nix::sys::signal::SigSet::empty();
        set.add(signal);
        // SAFETY: SIG_DFL runs no code of ours.
        let _ = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
        let _ = set.thread_unblock();
        let _ = nix::sys::signal::raise(signal);
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

/// pipe2(2): (read end, write end), close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
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

/// fork(2) for a caller that detaches: the child gets a session of its own and goes on as a copy; the parent gets its pid.
/// InvalidInput if the caller has threads.
pub fn detach() -> io::Result<Option<i32>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a process with threads cannot detach"));
    }
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
        EAGAIN, EBUSY, ECONNREFUSED, EINVAL, EIO, ENETDOWN, ENOENT, EOPNOTSUPP, EPERM, ESRCH, SIGCHLD, SIGCONT, SIGHUP,
        SIGINT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH,
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

/// Stops the caller as Ctrl-Z would (SIGSTOP), until somebody sends SIGCONT.
pub fn stop_self() {
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
}

/// The number of a signal by its name, with or without `SIG`, in any case.
pub fn signal_number(name: &str) -> Option<i32> {
    let name = name.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    name.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

/// The name of a signal (`SIGTERM`); its number as text if it has none.
pub fn signal_name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.as_str().to_string())
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
