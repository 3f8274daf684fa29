//! The end of a filter that receives trapped calls and answers them (seccomp_unotify(2)).

use crate::raw::{at, call, int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A trapped call, laid out as the kernel's `struct seccomp_notif`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Call {
    /// Names the call for its answer; never 0 for a call that was received.
    pub id: u64,
    /// The thread that made it, as a number of the *receiver's* pid namespace; 0 if it is not visible from there.
    pub tid: u32,
    flags: u32,
    /// The system call's number.
    pub syscall: i32,
    arch: u32,
    instruction: u64,
    /// Its arguments, not checked by anybody.
    pub args: [u64; 6],
}

impl Call {
    /// Whether the same thread makes the same call as `before`.
    pub fn repeats(&self, before: &Call) -> bool {
        (self.tid, self.syscall, self.args) == (before.tid, before.syscall, before.args)
    }

    /// Whether it may take its thread to another network namespace (unshare(2), setns(2)).
    pub fn moves(&self) -> bool {
        matches!(i64::from(self.syscall), libc::SYS_unshare | libc::SYS_setns)
    }
}

#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

#[repr(C)]
struct AddFd {
    id: u64,
    flags: u32,
    source: u32,
    target: u32,
    target_flags: u32,
}

// linux/seccomp.h, with the '!' ioctls spelt out: direction, size, type, number.
const fn ioctl(direction: u64, number: u64, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | ((b'!' as u64) << 8) | number
}
const RECV: u64 = ioctl(3, 0, size_of::<Call>());
const SEND: u64 = ioctl(3, 1, size_of::<Response>());
const ID_VALID: u64 = ioctl(1, 2, 8);
const ADDFD: u64 = ioctl(1, 3, size_of::<AddFd>());
const SET_FLAGS: u64 = ioctl(1, 4, 8);

const FLAG_CONTINUE: u32 = 1;
const FLAG_SYNC_WAKE_UP: u64 = 1;
const ADDFD_SETFD: u32 = 1;
const ADDFD_SEND: u32 = 2;

/// Holds a listener. Whoever holds it can answer every call of it, so it goes to trusted processes only.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl From<OwnedFd> for Listener {
    fn from(fd: OwnedFd) -> Listener {
        Listener(fd)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listener {
    #[inline]
    fn ioctl<T>(&self, request: u64, argument: *mut T) -> io::Result<i32> {
        // SAFETY: each caller passes the structure whose size is part of `request`; it outlives the call.
        let made = unsafe { call(libc::SYS_ioctl, [int(self.0.as_raw_fd()), request as usize, at(argument), 0, 0, 0]) };
        made.map(|value| value as i32)
    }

    /// As [`Listener::ioctl`], of requests that a signal may keep from beginning (EINTR), but never ends in their midst.
    #[inline]
    fn sure_ioctl<T>(&self, request: u64, argument: *mut T) -> io::Result<i32> {
        loop {
            match self.ioctl(request, argument) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                done => return done,
            }
        }
    }

    /// Makes the two ends hand over the CPU when they wake each other, instead of waking another one (Linux 6.6).
    ///
    /// # Errors
    /// EINVAL on a kernel that cannot; everything works without it, slower.
    pub fn set_sync_wake_up(&self) -> io::Result<()> {
        // This request carries its flags in the argument itself.
        self.ioctl(SET_FLAGS, FLAG_SYNC_WAKE_UP as usize as *mut u8).map(drop)
    }

    /// Waits for the next trapped call and writes it to `into`.
    ///
    /// # Errors
    /// EINTR by a signal; ENOENT if the call was cancelled (or its last caller ended) while it was received: try again.
    pub fn receive(&self, into: &mut Call) -> io::Result<()> {
        *into = Call::default();
        self.ioctl(RECV, into).map(drop)
    }

    /// As [`Listener::receive`], into memory that other processes share.
    ///
    /// # Safety
    /// `into` is valid for writing and holds only zeros, and nobody else writes it.
    pub(super) unsafe fn receive_raw(&self, into: *mut Call) -> io::Result<()> {
        self.ioctl(RECV, into).map(drop)
    }

    /// Lets the call return a value or fail with an errno.
    ///
    /// # Errors
    /// ENOENT if the call was cancelled: take its effect back.
    #[inline]
    pub fn answer(&self, id: u64, result: Result<i64, i32>) -> io::Result<()> {
        let (value, error) = match result {
            Ok(value) => (value, 0),
            Err(errno) => (0, -errno),
        };
        self.sure_ioctl(SEND, &mut Response { id, value, error, flags: 0 }).map(drop)
    }

    /// Lets the call go on natively. The kernel reads its arguments' memory anew, so this is no decision about them.
    ///
    /// # Errors
    /// ENOENT if the call was cancelled.
    pub fn resume(&self, id: u64) -> io::Result<()> {
        self.sure_ioctl(SEND, &mut Response { id, value: 0, error: 0, flags: FLAG_CONTINUE }).map(drop)
    }

    /// Puts a copy of `fd` into the caller's fd table and lets the call return its number. In one step: either the
    /// program has the fd and the answer, or neither.
    ///
    /// # Errors
    /// ENOENT if the call was cancelled; EMFILE if the program's table is full (the call still waits for an answer then,
    /// as for any other error but ENOENT).
    pub fn answer_fd(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) -> io::Result<RawFd> {
        let target_flags = if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 };
        let source = fd.as_raw_fd() as u32;
        // A signal in the midst of it would leave the caller with 0 for an answer, and no fd.
        crate::process::SignalMask::all_during(|| {
            self.ioctl(ADDFD, &mut AddFd { id, flags: ADDFD_SEND, source, target: 0, target_flags })
        })
    }

    /// Puts a copy of `fd` over the caller's fd number `over` (as dup3(2)); the call still waits for its answer.
    ///
    /// # Errors
    /// ENOENT if the call was cancelled.
    pub fn replace_fd(&self, id: u64, fd: BorrowedFd<'_>, over: RawFd, close_on_exec: bool) -> io::Result<()> {
        let target_flags = if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 };
        let (source, target) = (fd.as_raw_fd() as u32, over as u32);
        self.ioctl(ADDFD, &mut AddFd { id, flags: ADDFD_SETFD, source, target, target_flags }).map(drop)
    }

    /// Whether the call still waits for an answer. Ask it between each look at the caller's memory or fds and the use of
    /// what was seen: if it holds, the thread number still named that caller.
    #[inline]
    pub fn is_valid(&self, id: u64) -> bool {
        let mut id = id;
        self.sure_ioctl(ID_VALID, &raw mut id).is_ok()
    }
}

/// The signal that ends a wait in [`Listener::receive`] with EINTR: one that processes ignore which have no handler for it, so that a
/// server's filter may let it through (signal(7)).
pub fn interrupt_number() -> u32 {
    interrupt_signal().cast_unsigned()
}

/// The same, as libc takes it.
pub(crate) fn interrupt_signal() -> libc::c_int {
    libc::SIGURG
}

extern "C" fn nothing(_: libc::c_int) {}

/// Gives the calling process a handler without effect for the signal that [`interrupt`] sends. See sigaction(2).
///
/// # Errors
/// None are known.
pub fn interruptible() -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction; the handler touches nothing and is async-signal-safe. No SA_RESTART, so a
    // waiting call ends with EINTR.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(interrupt_signal(), &raw const action, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// As [`interrupt`], of a process: a worker that runs apart.
pub fn interrupt_process(pid: i32) {
    let _ = crate::process::kill(pid, interrupt_signal());
}

/// Sends that signal to one thread. A signal that arrives just before the thread waits is lost to it: repeat this until the
/// thread has ended. See pthread_kill(3).
pub fn interrupt<T>(thread: &std::thread::JoinHandle<T>) {
    use std::os::unix::thread::JoinHandleExt;
    // SAFETY: a `JoinHandle` that is borrowed here was not joined, so its pthread_t is still valid.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), interrupt_signal()) };
}
