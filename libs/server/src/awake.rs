//! Keeps a second CPU from falling asleep while calls come in quick succession.
//!
//! Most answers of a server wake their caller on whatever CPU the kernel finds idle, and the next call wakes the server in the same
//! way. On a virtual machine an idle CPU has to be fetched back from the hypervisor, which takes longer (40 to 60 µs) than
//! all the rest of a call. So in a burst a thread spins that gets only the time which nobody else wants (SCHED_IDLE, sched(7)),
//! and ends right after it. Nothing spins where there is one CPU, or where a quota (a cgroup's cpu.max) would pay for it.
//!
//! On a busy machine such a thread gets no time at all, not even to end, and with it nothing that waits for its process. So it
//! begins only while there is a CPU to spare, and nobody waits for it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Builder;
use std::time::{Duration, Instant};

use hurdle_sys::process;

/// Calls that are not further apart than this belong to one burst.
const GAP: Duration = Duration::from_micros(500);
/// How long to spin on after a call.
const LINGER: Duration = Duration::from_micros(500);
/// How long to let be where there was no CPU to spare.
const BUSY: Duration = Duration::from_millis(2);

/// A watch over the calls of one server.
#[derive(Debug)]
pub struct Awake {
    burst: u32,
    /// Nanoseconds from `begin` to the last call.
    last: AtomicU64,
    calls: AtomicU32,
    /// When to look again for a CPU to spare, as `last`.
    next: AtomicU64,
    spare: OnceLock<bool>,
    shared: Arc<Shared>,
}

/// What it has in common with the thread that spins.
#[derive(Debug)]
struct Shared {
    begin: Instant,
    /// Nanoseconds from `begin`: it spins until then.
    until: AtomicU64,
    spins: AtomicBool,
}

impl Awake {
    /// `burst`: so many calls in quick succession before anything spins.
    pub fn new(burst: u32) -> Awake {
        let shared = Shared { begin: Instant::now(), until: AtomicU64::new(0), spins: false.into() };
        Awake {
            burst,
            last: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            next: AtomicU64::new(0),
            spare: OnceLock::new(),
            shared: Arc::new(shared),
        }
    }

    /// A call has come. For one thread.
    pub fn call(&self) {
        if self.spare.get() == Some(&false) {
            return;
        }
        let now = nanoseconds(self.shared.begin.elapsed());
        let last = self.last.swap(now, Ordering::Relaxed);
        if now.saturating_sub(last) > nanoseconds(GAP) {
            return self.calls.store(0, Ordering::Relaxed);
        }
        if self.calls.fetch_add(1, Ordering::Relaxed) < self.burst {
            return;
        }
        // No overflow, however long it goes on.
        self.calls.store(self.burst, Ordering::Relaxed);
        self.shared.until.store(now + nanoseconds(LINGER), Ordering::Relaxed);
        if !self.shared.spins.load(Ordering::Relaxed) && now >= self.next.load(Ordering::Relaxed) {
            self.next.store(now + nanoseconds(BUSY), Ordering::Relaxed);
            if *self.spare.get_or_init(spare_cpu) && process::runnable().is_ok_and(|(runs, cpus)| runs <= cpus) {
                self.shared.clone().start();
            }
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.shared.until.store(0, Ordering::Relaxed);
    }
}

/// Whether there is a CPU for waiting awake: a second one, and no quota (a cgroup's cpu.max) that pays for it.
pub fn spare_cpu() -> bool {
    let paid = std::thread::available_parallelism().map_or(1, usize::from);
    process::allowed_cpus().is_ok_and(|cpus| cpus > 1 && paid >= cpus)
}

impl Shared {
    fn start(self: Arc<Self>) {
        self.spins.store(true, Ordering::Relaxed);
        let spins = self.clone();
        let spin = move || {
            // It may be long until such a thread has ended with its process: nobody shall wait meanwhile for the last close of a file.
            if process::let_go_of_files().and_then(|()| process::only_when_idle()).is_ok() {
                while nanoseconds(spins.begin.elapsed()) < spins.until.load(Ordering::Relaxed) {
                    (0..64).for_each(|_| std::hint::spin_loop());
                }
            }
            spins.spins.store(false, Ordering::Relaxed);
        };
        let thread = Builder::new().name("hurdle-awake".into()).stack_size(64 * 1024);
        if process::not_the_worker(|| thread.spawn(spin)).is_err() {
            self.spins.store(false, Ordering::Relaxed);
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
    fn spins_in_a_burst_and_ends_after_it() {
        let awake = Awake::new(16);
        awake.call();
        let spins = || awake.shared.spins.load(Ordering::Relaxed);
        assert!(!spins(), "one call is no burst");
        if !spare_cpu() {
            return println!("SKIP: one CPU, or a quota");
        }
        let end = Instant::now() + Duration::from_secs(10);
        while !spins() {
            if Instant::now() > end {
                return println!("SKIP: no CPU to spare");
            }
            awake.call();
        }
        while spins() {
            assert!(Instant::now() < end + Duration::from_secs(60), "it spins on though nobody calls");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
