//! Signals: read from an fd, blocked, and by their names.

use crate::raw::{at, call, int};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Signals read from an fd (signalfd(2)). The signals stay blocked in the process and its threads; a [`super::Launch`] has
/// a mask of its own.
#[derive(Debug)]
pub struct Signals {
    fd: nix::sys::signalfd::SignalFd,
    before: SignalMask,
}

/// Signals that are blocked in a thread (sigprocmask(2)).
#[derive(Debug, Clone, Copy)]
pub struct SignalMask(nix::sys::signal::SigSet);

impl SignalMask {
    /// None.
    pub fn empty() -> SignalMask {
        SignalMask(nix::sys::signal::SigSet::empty())
    }

    /// Runs `f` while the calling thread hears no signal but SIGKILL (sigprocmask(2)).
    #[inline]
    pub(crate) fn all_during<T>(f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        // The kernel's own sets (rt_sigprocmask(2)): 64 signals on all that this runs on.
        let (all, mut before) = (u64::MAX, 0u64);
        let set = |new: &u64, old: *mut u64| {
            let arguments = [int(libc::SIG_SETMASK), at(new), at(old), size_of::<u64>(), 0, 0];
            // SAFETY: `new` is live, and `old` null or live, each of the size that is passed.
            unsafe { call(libc::SYS_rt_sigprocmask, arguments) }
        };
        set(&all, &raw mut before)?;
        let result = f();
        // What has been done stays done; a mask that the kernel gave is one that it takes.
        let _ = set(&before, std::ptr::null_mut());
        result
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sigset_t {
        self.0.as_ref()
    }
}

impl Signals {
    /// Blocks `signals` for the calling thread, and all threads that it starts from here on.
    pub fn block(signals: &[i32]) -> io::Result<Signals> {
        let mut set = nix::sys::signal::SigSet::empty();
        for &signal in signals {
            set.add(nix::sys::signal::Signal::try_from(signal)?);
        }
        let before = SignalMask(set.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?);
        let flags = nix::sys::signalfd::SfdFlags::SFD_CLOEXEC | nix::sys::signalfd::SfdFlags::SFD_NONBLOCK;
        Ok(Signals { fd: nix::sys::signalfd::SignalFd::with_flags(&set, flags)?, before })
    }

    /// What was blocked before.
    pub fn before(&self) -> SignalMask {
        self.before
    }

    /// The next signal that is pending, and whether the kernel itself sent it (a terminal's Ctrl-C), not kill(2).
    pub fn next(&self) -> io::Result<Option<(i32, bool)>> {
        Ok(self.fd.read_signal()?.map(|info| (info.ssi_signo as i32, info.ssi_code == libc::SI_KERNEL)))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sets SIGCHLD back to its default. A caller that was started with it ignored (signal(7)) would never hear of its
/// children's ends.
pub fn hear_of_children() {
    // SAFETY: SIG_DFL runs no code of ours.
    let _ =
        unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGCHLD, nix::sys::signal::SigHandler::SigDfl) };
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
