//! A worker that a kill of its process does not reach in the midst of a step.
//!
//! SIGKILL ends all threads of a process wherever they are. A worker that acts for somebody else in several system calls must not be
//! ended between two of them. So it runs in a process of its own that shares everything (clone(2) with CLONE_VM, CLONE_FILES)
//! but the thread group: a kill of the one leaves the other, which then hears of it by a signal (PR_SET_PDEATHSIG) and ends by itself, as
//! soon as all its threads rest ([`Rest`]).
//!
//! The thread that makes it is suspended until it ends (CLONE_VFORK), and lends it its thread-local storage meanwhile.

use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use crate::pages::Pages;

/// Bytes of the worker's stack, and of the page below it that nobody may touch.
const STACK: usize = 256 << 10;
const GUARD: usize = 4096;

fn leave_signal() -> libc::c_int {
    libc::SIGRTMIN() + 6
}

/// How many threads of a worker are in the midst of a step, whether they end with it, and with which status the last one does.
#[derive(Debug)]
struct Steps {
    under_way: AtomicUsize,
    leaves: AtomicBool,
    status: AtomicI32,
}

thread_local! {
    /// Of the worker's own thread, whose handler looks at them.
    static STEPS: Cell<*const Steps> = const { Cell::new(null()) };
}

extern "C" fn leave(_: libc::c_int) {
    // SAFETY: null, or what the worker holds until its process ends.
    let Some(steps) = (unsafe { STEPS.get().as_ref() }) else { return };
    steps.leaves.store(true, Ordering::SeqCst);
    if steps.under_way.load(Ordering::SeqCst) == 0 {
        // SAFETY: ends the process; async-signal-safe.
        unsafe { libc::_exit(0) }
    }
}

/// Runs `start`, whose threads do not hear what is meant for the worker in whose process they are: not even at their beginning.
pub fn not_the_worker<T>(start: impl FnOnce() -> T) -> T {
    // SAFETY: all-zero sets are valid; the calls read and write locals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut before = set;
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, leave_signal());
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before);
        let started = start();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        started
    }
}

/// When a thread of the worker may be ended.
#[derive(Debug)]
pub struct Rest(Option<Arc<Steps>>);

impl Rest {
    /// For the same work in an ordinary thread, which a kill ends anywhere.
    pub const NONE: Rest = Rest(None);

    /// Whether it is a worker's.
    pub fn is_apart(&self) -> bool {
        self.0.is_some()
    }

    /// For another thread of the same worker, which rests at first.
    pub fn another(&self) -> Rest {
        Rest(self.0.clone())
    }

    /// From here on the thread may be ended at any moment.
    pub fn begin(&self) {
        let Some(steps) = &self.0 else { return };
        if steps.under_way.fetch_sub(1, Ordering::SeqCst) == 1 && steps.leaves.load(Ordering::SeqCst) {
            // SAFETY: ends this process, which has nothing of its own to clean up.
            unsafe { libc::_exit(steps.status.load(Ordering::SeqCst)) }
        }
    }

    /// From here on it is not, until it rests again. A call that waits is not ended by the signal, but goes on (SA_RESTART). What the
    /// thread `holds` that others may wait for is let go of if it goes no further.
    pub fn end<T>(&self, holds: T) -> T {
        let Some(steps) = &self.0 else { return holds };
        steps.under_way.fetch_add(1, Ordering::SeqCst);
        if steps.leaves.load(Ordering::SeqCst) {
            drop(holds);
            self.stay();
        }
        holds
    }

    /// Ends the worker, and with it its process: what this thread is at is the successor's. Others end their steps. It lets go of what it
    /// `holds`, as at [`Rest::end`].
    pub fn leave<T>(&self, holds: T) -> ! {
        let Some(steps) = &self.0 else { std::process::exit(1) };
        steps.status.store(1, Ordering::SeqCst);
        steps.leaves.store(true, Ordering::SeqCst);
        drop(holds);
        self.stay()
    }

    /// Begins nothing any more: another thread, at its last step, ends the process.
    fn stay(&self) -> ! {
        self.begin();
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    }
}

/// What a worker does.
pub type Work = Box<dyn FnOnce(&Rest)>;

/// What the child is handed.
struct Errand {
    run: Option<Work>,
    pid: Arc<AtomicI32>,
    parent: libc::pid_t,
}

extern "C" fn child(errand: *mut c_void) -> libc::c_int {
    // SAFETY: the suspended thread holds the errand until this process ends.
    let errand = unsafe { &mut *errand.cast::<Errand>() };
    let (under_way, leaves, status) = (AtomicUsize::new(1), AtomicBool::new(false), AtomicI32::new(0));
    let steps = Arc::new(Steps { under_way, leaves, status });
    STEPS.set(Arc::as_ptr(&steps));
    let rest = Rest(Some(steps));
    // SAFETY: takes integers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, leave_signal(), 0, 0, 0) };
    // SAFETY: takes nothing.
    if unsafe { libc::getppid() } != errand.parent {
        return 0;
    }
    errand.pid.store(std::process::id().cast_signed(), Ordering::SeqCst);
    let run = errand.run.take();
    let ended = catch_unwind(AssertUnwindSafe(|| run.into_iter().for_each(|run| run(&rest))));
    // Not a return, which would end this thread alone, and not those that it has started.
    // SAFETY: ends the process.
    unsafe { libc::_exit(if ended.is_ok() { 0 } else { 101 }) }
}

/// Runs `run` in a worker, which begins in the midst of a step, and waits for its end; `pid` is the worker's number meanwhile.
///
/// # Errors
/// EAGAIN at the limit of processes, ENOMEM: nothing was run. `Other`: it panicked or was killed.
pub fn run_apart(pid: &Arc<AtomicI32>, run: Work) -> io::Result<()> {
    let stack = Pages::private(STACK + GUARD)?;
    let start = stack.start().as_ptr();
    // SAFETY: all zeros is a valid sigaction; the handler makes one async-signal-safe call. The child runs on the stack, whose lowest page
    // is taken away; it lives until the child has ended, since this thread is suspended so long.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = leave as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        if libc::sigaction(leave_signal(), &raw const action, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::mprotect(start.cast(), GUARD, libc::PROT_NONE);
        let mut errand = Errand { run: Some(run), pid: pid.clone(), parent: libc::getpid() };
        let share = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_SIGHAND | libc::CLONE_SYSVSEM;
        let top = start.add(STACK + GUARD).cast();
        let made = libc::clone(child, top, share | libc::CLONE_VFORK | libc::SIGCHLD, (&raw mut errand).cast());
        let error = io::Error::last_os_error();
        // Before it is reaped: the number is still its own.
        pid.store(0, Ordering::SeqCst);
        let ended = if made < 0 { Err(error) } else { super::wait_end(made) };
        match ended?.state() {
            super::State::Exited(0) => Ok(()),
            other => Err(io::Error::other(format!("the worker ended: {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shares_memory_and_ends_when_asked() {
        let pid = Arc::new(AtomicI32::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (number, told) = (pid.clone(), stop.clone());
        let keeper = std::thread::spawn(move || {
            let work = Box::new(move |rest: &Rest| {
                while !told.load(Ordering::SeqCst) {
                    rest.begin();
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    rest.end(());
                    // It allocates and frees what others allocated.
                    assert_eq!(format!("{:?}", vec![1; 1000]).len(), 3000);
                }
            });
            run_apart(&number, work)
        });
        while pid.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert_ne!(pid.load(Ordering::SeqCst), std::process::id().cast_signed(), "a process of its own");
        stop.store(true, Ordering::SeqCst);
        keeper.join().unwrap().unwrap();
        assert_eq!(pid.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn one_that_panics_is_told() {
        let ended = run_apart(&Arc::default(), Box::new(|_: &Rest| panic!("as a test")));
        assert!(ended.unwrap_err().to_string().contains("101"));
    }

    #[test]
    fn one_that_leaves_lets_its_other_thread_end_its_step() {
        let done = Arc::new(AtomicBool::new(false));
        let (told, began) = (done.clone(), Arc::new(AtomicBool::new(false)));
        let work = move |rest: &Rest| {
            let (other, begins) = (rest.another(), began.clone());
            let step = move || {
                other.end(());
                begins.store(true, Ordering::SeqCst);
                (0..20).for_each(|_| std::thread::sleep(std::time::Duration::from_millis(1)));
                told.store(true, Ordering::SeqCst);
                other.begin();
            };
            let _thread = not_the_worker(|| std::thread::spawn(step));
            while !began.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            rest.leave(())
        };
        let ended = run_apart(&Arc::default(), Box::new(work));
        assert!(ended.unwrap_err().to_string().contains("Exited(1)"));
        assert!(done.load(Ordering::SeqCst), "it was in the midst of a step");
    }
}
