//! A bound on calls that have no time limit of their own.
//!
//! A timer (timer_settime(2)) would cost each bounded call two system calls that program the clock. So another thread looks now
//! and then whether the call that it saw last is still under way, and interrupts it. A call that returns at once, as nearly all
//! do, costs two atomic writes.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, Thread};
use std::time::Duration;

use crate::seccomp::interrupt_signal;

/// So many looks without a call, and the other thread sleeps until there is one.
const IDLE: u32 = 64;

/// What is in the low two bits of [`Watch::call`]; the others number the calls.
const RESTS: u64 = 0;
const RUNS: u64 = 1;
/// The signal is being sent.
const SENDING: u64 = 2;
/// It has been sent.
const SENT: u64 = 3;

/// Interrupts calls of one thread by the signal of `seccomp::interrupt`.
#[derive(Debug)]
pub struct Alarm {
    watch: Arc<Watch>,
    watcher: OnceLock<Thread>,
}

#[derive(Debug)]
struct Watch {
    limit: Duration,
    /// Of the thread that makes the calls.
    process: AtomicI32,
    thread: AtomicI32,
    call: AtomicU64,
    sleeps: AtomicBool,
    over: AtomicBool,
}

impl Alarm {
    /// For calls of the calling thread, each of which may take as long as `limit`, and at most twice that.
    pub fn new(limit: Duration) -> Alarm {
        let watch = Watch {
            limit,
            process: AtomicI32::new(0),
            thread: AtomicI32::new(0),
            call: AtomicU64::new(RESTS),
            sleeps: AtomicBool::new(true),
            over: AtomicBool::new(false),
        };
        let alarm = Alarm { watch: Arc::new(watch), watcher: OnceLock::new() };
        alarm.aim();
        alarm
    }

    /// From now on for calls of the calling thread.
    pub fn aim(&self) {
        // SAFETY: no arguments.
        let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
        self.watch.process.store(process, SeqCst);
        self.watch.thread.store(thread, SeqCst);
    }

    /// Makes sure that there is who interrupts.
    ///
    /// # Errors
    /// EAGAIN: there can be no thread for that.
    pub fn ready(&self) -> io::Result<&Thread> {
        if let Some(watcher) = self.watcher.get() {
            return Ok(watcher);
        }
        let started = self.watch.clone().start()?;
        Ok(self.watcher.get_or_init(|| started))
    }

    /// Runs `f`, and interrupts what it waits in after the limit, again and again until it returns.
    ///
    /// # Errors
    /// That of `f`. As [`Alarm::ready`], and `f` was not run.
    pub fn during<T>(&self, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let watch = &self.watch;
        let watcher = self.ready()?;
        let number = (watch.call.load(SeqCst) >> 2) + 1;
        watch.call.store(number << 2 | RUNS, SeqCst);
        if watch.sleeps.swap(false, SeqCst) {
            watcher.unpark();
        }
        let result = f();
        let rest = number << 2 | RESTS;
        while let Err(other) = watch.call.compare_exchange(number << 2 | RUNS, rest, SeqCst, SeqCst) {
            // A signal that was sent has arrived by the end of a system call, and disturbs nothing later.
            std::thread::yield_now();
            // Unless it is being sent again.
            if other & 3 == SENT && watch.call.compare_exchange(other, rest, SeqCst, SeqCst).is_ok() {
                break;
            }
        }
        result
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.watch.over.store(true, SeqCst);
        if let Some(watcher) = self.watcher.get() {
            watcher.unpark();
        }
    }
}

impl Watch {
    fn start(self: Arc<Self>) -> io::Result<Thread> {
        let thread = Builder::new().name("hurdle-alarm".into()).stack_size(64 * 1024);
        Ok(crate::process::not_the_worker(|| thread.spawn(move || self.run()))?.thread().clone())
    }

    fn run(&self) {
        let mut idle = 0;
        while !self.over.load(SeqCst) {
            let before = self.call.load(SeqCst);
            if idle == IDLE {
                idle = 0;
                self.sleeps.store(true, SeqCst);
                // A call that began before that was said does not wake it.
                if before & 3 == RESTS && self.call.load(SeqCst) == before {
                    std::thread::park();
                }
                continue;
            }
            // Not `park_timeout`: an `unpark` from before would end it at once.
            std::thread::sleep(self.limit);
            if before & 3 == RESTS {
                idle = if self.call.load(SeqCst) == before { idle + 1 } else { 0 };
            } else if self.call.compare_exchange(before, before & !3 | SENDING, SeqCst, SeqCst).is_ok() {
                self.interrupt();
                self.call.store(before & !3 | SENT, SeqCst);
            }
        }
    }

    fn interrupt(&self) {
        // The thread lives, since it is in a call of its own.
        let _ = crate::process::signal_thread(self.process.load(SeqCst), self.thread.load(SeqCst), interrupt_signal());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::interruptible;
    use std::time::Instant;

    fn wait_on(read: libc::c_int) -> io::Result<()> {
        let mut byte = 0u8;
        // SAFETY: one live byte.
        let got = unsafe { libc::read(read, (&raw mut byte).cast(), 1) };
        if got < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    #[test]
    fn a_call_that_waits_is_interrupted_and_others_are_not() {
        interruptible().unwrap();
        let mut ends = [0; 2];
        // SAFETY: room for two fds, which this test alone uses.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        let limit = Duration::from_millis(5);
        let alarm = Alarm::new(limit);
        for round in 0..20 {
            let begin = Instant::now();
            let ended = alarm.during(|| wait_on(ends[0])).unwrap_err().raw_os_error();
            assert_eq!(ended, Some(libc::EINTR), "round {round}");
            assert!(begin.elapsed() >= limit, "round {round}: too early");
            // Calls that are short, also while the signal of the one before may still be on its way.
            for _ in 0..1000 {
                // SAFETY: one live byte; the pipe has room.
                assert_eq!(unsafe { libc::write(ends[1], [0u8].as_ptr().cast(), 1) }, 1);
                alarm.during(|| wait_on(ends[0])).unwrap();
            }
            if round == 10 {
                // Until the other thread sleeps.
                let end = Instant::now() + Duration::from_secs(10);
                while !alarm.watch.sleeps.load(SeqCst) {
                    assert!(Instant::now() < end, "it does not fall asleep");
                    std::thread::yield_now();
                }
            }
        }
    }
}
