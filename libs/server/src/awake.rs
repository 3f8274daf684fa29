//! Keeps a second CPU from falling asleep while calls come in quick succession.
//!
//! Most answers of a server wake their caller on whatever CPU the kernel finds idle, and the next call wakes the server in the same
//! way. On a virtual machine an idle CPU has to be fetched back from the hypervisor, which takes longer (40 to 60 µs) than
//! all the rest of a call. So in a burst a thread spins that gets only the time which nobody else wants (SCHED_IDLE, sched(7)),
//! and stops right after it. Nothing spins where there is one CPU, or where a quota (a cgroup's cpu.max) would pay for it.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use hurdle_sys::process;

/// Calls that are not further apart than this belong to one burst.
const GAP: Duration = Duration::from_micros(500);
/// How long to spin on after a call.
const LINGER: Duration = Duration::from_micros(500);

/// A watch over the calls of one server; dropping it ends its thread.
#[derive(Debug)]
pub struct Awake {
    begin: Instant,
    burst: u32,
    /// Nanoseconds from `begin` to the last call.
    last: AtomicU64,
    calls: AtomicU32,
    spinner: OnceLock<Option<Spinner>>,
}

#[derive(Debug)]
struct Spinner {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    begin: Instant,
    /// Nanoseconds from `begin`: it spins until then.
    until: AtomicU64,
    asleep: AtomicBool,
    over: AtomicBool,
}

impl Awake {
    /// `burst`: so many calls in quick succession before anything spins.
    pub fn new(burst: u32) -> Awake {
        Awake {
            begin: Instant::now(),
            burst,
            last: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            spinner: OnceLock::new(),
        }
    }

    /// A call has come.
    pub fn call(&self) {
        let now = nanoseconds(self.begin.elapsed());
        let last = self.last.swap(now, Ordering::Relaxed);
        if now.saturating_sub(last) > nanoseconds(GAP) {
            return self.calls.store(0, Ordering::Relaxed);
        }
        if self.calls.fetch_add(1, Ordering::Relaxed) < self.burst {
            return;
        }
        // No overflow, however long it goes on.
        self.calls.store(self.burst, Ordering::Relaxed);
        if let Some(spinner) = self.spinner.get_or_init(|| Spinner::start(self.begin).ok().flatten()) {
            spinner.shared.until.store(now + nanoseconds(LINGER), Ordering::Relaxed);
            if spinner.shared.asleep.swap(false, Ordering::Relaxed) {
                spinner.thread.thread().unpark();
            }
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        if let Some(spinner) = self.spinner.take().flatten() {
            spinner.shared.over.store(true, Ordering::Relaxed);
            spinner.thread.thread().unpark();
            let _ = spinner.thread.join();
        }
    }
}

/// Whether there is a CPU for waiting awake: a second one, and no quota (a cgroup's cpu.max) that pays for it.
pub fn spare_cpu() -> bool {
    let paid = std::thread::available_parallelism().map_or(1, usize::from);
    process::allowed_cpus().is_ok_and(|cpus| cpus > 1 && paid >= cpus)
}

impl Spinner {
    fn start(begin: Instant) -> io::Result<Option<Spinner>> {
        if !spare_cpu() {
            return Ok(None);
        }
        let until = AtomicU64::new(0);
        let shared = Arc::new(Shared { begin, until, asleep: false.into(), over: false.into() });
        let spins = shared.clone();
        let thread = Builder::new().name("hurdle-awake".into()).stack_size(64 * 1024).spawn(move || {
            // It may be long until such a thread runs again, and so until it has ended with its process: nobody shall wait meanwhile
            // for the last close of a file.
            if process::let_go_of_files().and_then(|()| process::only_when_idle()).is_ok() {
                spins.spin();
            }
        })?;
        Ok(Some(Spinner { shared, thread }))
    }
}

impl Shared {
    fn spin(&self) {
        while !self.over.load(Ordering::Relaxed) {
            if nanoseconds(self.begin.elapsed()) < self.until.load(Ordering::Relaxed) {
                (0..64).for_each(|_| std::hint::spin_loop());
            } else if self.asleep.swap(true, Ordering::Relaxed) {
                // Marked before, and nobody came between.
                std::thread::park();
            }
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spins_in_a_burst_and_sleeps_after_it() {
        let awake = Awake::new(16);
        awake.call();
        assert!(awake.spinner.get().is_none(), "one call is no burst");
        let end = Instant::now() + Duration::from_secs(10);
        while awake.spinner.get().is_none() {
            assert!(Instant::now() < end, "no burst was seen");
            awake.call();
        }
        let Some(Some(spinner)) = awake.spinner.get() else {
            return println!("SKIP: one CPU, or a quota");
        };
        while !spinner.shared.asleep.load(Ordering::Relaxed) {
            assert!(Instant::now() < end, "it spins on though nobody calls");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
