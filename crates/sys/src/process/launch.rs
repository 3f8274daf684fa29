//! A process about to be: everything that its exec needs is prepared before the fork.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::{Child, Place, SignalMask, guard, pipe, program, retry, wait_end};

/// How a new process stands to sessions, process groups and the terminal (credentials(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The caller's process group.
    Inherit,
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
    /// The candidates come from PATH.
    searched: bool,
    argv: Vec<CString>,
    envp: Vec<CString>,
    cwd: Option<CString>,
    stdio: [OwnedFd; 3],
    extra: Vec<(OwnedFd, RawFd)>,
    group: Group,
    dies_with_parent: bool,
    no_new_privileges: bool,
    mask: SignalMask,
    stays: bool,
    place: Option<Place>,
}

/// Fds, and the numbers under which they are handed down.
type Moves = Vec<(OwnedFd, RawFd)>;

/// How many fds above 2 a [`Launch`] hands down at most: the child sorts them without allocating.
const NAMED_FDS: usize = 16;

/// Of a path in the child: one system call.
fn is_directory(path: &CStr) -> bool {
    // SAFETY: all-zero is a valid stat; stat(2) reads a string and fills the structure.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        libc::stat(path.as_ptr(), &raw mut found) == 0 && found.st_mode & libc::S_IFMT == libc::S_IFDIR
    }
}

/// The same of any kind.
fn exists(path: &CStr) -> bool {
    // SAFETY: access(2) reads a string.
    unsafe { libc::access(path.as_ptr(), libc::F_OK) == 0 }
}

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
            searched: !program.as_bytes().contains(&b'/'),
            argv: argv.iter().map(|a| c_string(a)).collect::<io::Result<_>>()?,
            envp: env.iter().map(pair).collect::<io::Result<_>>()?,
            cwd: None,
            stdio,
            extra: Vec::new(),
            group: Group::Inherit,
            dies_with_parent: false,
            no_new_privileges: false,
            mask: SignalMask::empty(),
            stays: false,
            place: None,
        })
    }

    /// A server of hurdle's: no terminal, nothing to read, `bootstrap` under its number; it ends with the thread that starts it.
    /// Errors: as [`Launch::new`]; EMFILE.
    pub fn server(
        file: &OsStr,
        argv: &[OsString],
        stderr: OwnedFd,
        (bootstrap, number): (OwnedFd, RawFd),
    ) -> io::Result<Launch> {
        let null =
            || -> io::Result<OwnedFd> { Ok(std::fs::File::options().read(true).write(true).open("/dev/null")?.into()) };
        let env: Vec<_> = std::env::vars_os().collect();
        let launch = Launch::new(argv, &env, [null()?, null()?, stderr])?.program(file)?.fd(bootstrap, number);
        Ok(launch.group(Group::Session).no_new_privileges().dies_with_parent())
    }

    /// Executes the file at `path` instead of the one that `argv[0]` names.
    pub fn program(mut self, path: &OsStr) -> io::Result<Launch> {
        self.candidates = vec![c_string(path)?];
        self.searched = false;
        Ok(self)
    }

    /// The working directory; if it can't be entered, `/`.
    pub fn cwd(mut self, dir: &OsStr) -> io::Result<Launch> {
        self.cwd = Some(c_string(dir)?);
        Ok(self)
    }

    /// If the working directory can't be entered by its path, stay in the caller's instead of `/`.
    pub fn or_stay(mut self) -> Launch {
        self.stays = true;
        self
    }

    /// Starts it in the namespaces and the working directory of another process, with its ids and no more rights than it has.
    pub fn in_place_of(mut self, place: Place) -> Launch {
        self.place = Some(place);
        self.cwd = None;
        self
    }

    /// The signals that are blocked in it; without this, none.
    pub fn mask(mut self, mask: SignalMask) -> Launch {
        self.mask = mask;
        self
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

    /// Reads what the start will, as far as it can be told: afterwards the kernel has it.
    pub fn read_ahead(&self) {
        let _ = self.cwd.as_deref().map(exists);
        if let Some(program) = self.candidates.iter().find(|path| exists(path)) {
            program::read_ahead(program);
        }
    }

    /// fork(2) and execve(2). Returns the child's pid once its exec has succeeded; the caller reaps it.
    ///
    /// Errors: that of the exec, as execvp(3) reports it (ENOENT, EACCES, ENOEXEC…), and EISDIR; EAGAIN at the limit of
    /// processes.
    pub fn start(self) -> io::Result<i32> {
        self.fork(None).map(|(child, _)| child)
    }

    /// As [`Launch::start`], held as a [`Child`]. Errors: also EMFILE.
    pub fn start_alone(self) -> io::Result<Child> {
        Child::alone(self.start()?)
    }

    /// The same behind a guard: with the thread that starts it, all ends that it has forked. None in another's place.
    pub fn start_guarded(self) -> io::Result<Child> {
        let (status, writer) = pipe()?;
        let (guard, process) = self.dies_with_parent().fork(Some(writer))?;
        let process = process.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        Ok(Child::guarded(process, guard, File::from(status)))
    }

    /// `guarded`: behind a guard, which writes there how it ends.
    fn fork(self, guarded: Option<OwnedFd>) -> io::Result<(i32, Option<i32>)> {
        let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
            list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (argv, envp) = (pointers(&self.argv), pointers(&self.envp));
        let (moves, lift) = self.lifted()?;
        let (verdict, low) = pipe()?;
        let report = lift(&low)?;
        let end = guarded.as_ref().map(&lift).transpose()?;
        // The last close of this side is how success is seen.
        drop(low);

        let mut keep: Vec<RawFd> = moves.iter().map(|(fd, _)| fd.as_raw_fd()).chain([report.as_raw_fd()]).collect();
        keep.extend(self.place.iter().flat_map(Place::fds));
        keep.sort_unstable();
        let parent = std::process::id() as libc::pid_t;
        // SAFETY: the child calls only `exec`, which makes async-signal-safe calls alone.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let exec = |parent| self.exec(parent, &moves, &argv, &envp);
                let errno = match (&self.place, &end) {
                    (Some(place), _) => place.step_in(report.as_raw_fd(), &keep, &|| exec(parent)),
                    (None, Some(end)) => {
                        guard::stand(parent, report.as_raw_fd(), end.as_raw_fd()).map_or_else(|errno| errno, exec)
                    }
                    (None, None) => exec(parent),
                };
                // SAFETY: writes four bytes of a local to an open fd, then ends the child.
                unsafe {
                    libc::write(report.as_raw_fd(), (&raw const errno).cast(), 4);
                    libc::_exit(127)
                }
            }
            pid => {
                drop(report);
                let next = || -> io::Result<Option<i32>> {
                    let mut word = [0; 4];
                    let read = retry(|| nix::unistd::read(&verdict, &mut word))?;
                    Ok((read > 0).then_some(i32::from_ne_bytes(word)))
                };
                let (mut made, mut failed) = (None, None);
                while let Some(said) = next()? {
                    if said < 0 { made = Some(-said) } else { failed = Some(said) }
                }
                let mut pid = Some(pid);
                if self.place.is_some() {
                    // The helper has ended; the process that it made is this one's child.
                    let _ = pid.map(wait_end);
                    pid = made;
                    failed = failed.or(made.is_none().then_some(libc::ESRCH));
                }
                let Some(errno) = failed else {
                    return Ok((pid.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?, made));
                };
                let _ = pid.map(wait_end);
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    /// Of the fds that are handed down, duplicates above all numbers that these are to have, since the child may overwrite those while it
    /// moves them to their places; and what makes such duplicates.
    fn lifted(&self) -> io::Result<(Moves, impl Fn(&OwnedFd) -> io::Result<OwnedFd> + use<>)> {
        if self.extra.len() > NAMED_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {NAMED_FDS} fds handed down")));
        }
        let floor = self.extra.iter().map(|(_, n)| *n).chain([2]).max().unwrap_or(2) + 1;
        let lift = move |fd: &OwnedFd| -> io::Result<OwnedFd> {
            let raw = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(floor))?;
            // SAFETY: F_DUPFD_CLOEXEC made a new fd, owned by nobody else.
            Ok(unsafe { OwnedFd::from_raw_fd(raw) })
        };
        let standard = self.stdio.iter().zip(0..);
        let all = standard.chain(self.extra.iter().map(|(fd, number)| (fd, *number)));
        let moves = all.map(|(fd, number)| Ok((lift(fd)?, number))).collect::<io::Result<_>>()?;
        Ok((moves, lift))
    }

    /// Instead of a start: the calling process, a [`twin`], goes on as what would have been started, in `cwd`, without an exec. It sends a
    /// byte on `report`, a SEQPACKET socket, once it stands. All fds above 2 but those handed down are closed then: whoever owned one
    /// forgets it.
    ///
    /// # Errors
    /// InvalidInput if the caller has more than one thread; EPIPE: nobody hears the report; EMFILE; of fchdir(2). The caller is to end.
    pub fn become_it(self, cwd: &OwnedFd, report: BorrowedFd<'_>) -> io::Result<()> {
        super::one_thread()?;
        let (moves, lift) = self.lifted()?;
        let (cwd, report) = (lift(cwd)?, lift(&report.try_clone_to_owned()?)?);
        nix::unistd::fchdir(&cwd)?;
        match self.stand(0, &moves) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        // As at any start of a Rust program.
        super::ignore(libc::SIGPIPE);
        crate::seqpacket::send(report.as_fd(), b"!", &[], false)?;
        let mut keep: Vec<RawFd> = self.extra.iter().map(|(_, number)| *number).collect();
        std::mem::forget((self, moves, cwd, report));
        super::close_all_but(&mut keep);
        Ok(())
    }

    /// In the child: system calls only, no allocation, no lock. Returns the errno of what failed.
    fn exec(
        &self,
        parent: libc::pid_t,
        moves: &[(OwnedFd, RawFd)],
        argv: &[*const libc::c_char],
        envp: &[*const libc::c_char],
    ) -> i32 {
        match self.stand(parent, moves) {
            0 => self.execute(argv, envp),
            errno => errno,
        }
    }

    /// All but the exec, as it. 0: nothing failed.
    fn stand(&self, parent: libc::pid_t, moves: &[(OwnedFd, RawFd)]) -> i32 {
        // SAFETY: async-signal-safe system calls on fds and strings that live in `self` and `moves`.
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
                Group::Foreground => {
                    libc::setpgid(0, 0);
                    // SIGTTOU would stop a background process here.
                    let old = libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                    libc::tcsetpgrp(0, libc::getpid());
                    libc::signal(libc::SIGTTOU, old);
                }
                Group::Session => _ = libc::setsid(),
                Group::Terminal => {
                    libc::setsid();
                    libc::ioctl(0, libc::TIOCSCTTY, 0);
                }
            }
            libc::sigprocmask(libc::SIG_SETMASK, self.mask.as_ptr(), std::ptr::null_mut());
            if let Some(cwd) = &self.cwd
                && libc::chdir(cwd.as_ptr()) != 0
                && !self.stays
                && libc::chdir(c"/".as_ptr()) != 0
            {
                return errno();
            }
            if self.dies_with_parent {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                // It may have ended before that. From another pid namespace it is not seen; there `Place` looks.
                if self.place.is_none() && libc::getppid() != parent {
                    libc::_exit(127);
                }
            }
            if self.no_new_privileges {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            }
            0
        }
    }

    /// The exec itself.
    fn execute(&self, argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> i32 {
        // SAFETY: async-signal-safe system calls on strings that live in `self`, `argv` and `envp`.
        unsafe {
            let errno = || *libc::__errno_location();
            let mut failed = libc::ENOENT;
            for file in &self.candidates {
                libc::execve(file.as_ptr(), argv.as_ptr(), envp.as_ptr());
                match errno() {
                    libc::ENOENT | libc::ENOTDIR => {}
                    // The kernel says EACCES of a directory too.
                    libc::EACCES if is_directory(file) => {
                        failed = if failed == libc::EACCES { failed } else { libc::EISDIR }
                    }
                    // What a directory of PATH holds that may not be searched is not there, as shells have it.
                    libc::EACCES if self.searched && !exists(file) => {}
                    libc::EACCES => failed = libc::EACCES,
                    other => return other,
                }
            }
            failed
        }
    }
}
