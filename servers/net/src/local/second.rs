//! A second thread that receives, for programs that call from two CPUs at once.
//!
//! A call wakes its receiver on the CPU that it comes from, and the answer goes on there: nobody is fetched from elsewhere. But one
//! receiver serves one caller, and the other waits, whose CPU falls asleep. With two, each stays where its caller is.
//! The kernel wakes all that wait for a call, so a second one that has nothing to do costs each call 4 µs. It is on duty
//! for a while, whenever calls are often seen to wait.

use super::Shared;
use super::worker::Worker;
use hurdle_sys::process::{Rest, allowed_cpus, not_the_worker};
use hurdle_sys::seccomp::interrupt;
use hurdle_sys::target::socket::poll_now;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{Builder, JoinHandle, park};

/// At every so many calls there is a look whether another one waits.
const LOOK: u32 = 16;
/// What such looks have to come to: one that finds a call counts two, one that does not takes one away.
const OFTEN: u32 = 4;
/// So many calls both serve before it is looked again whether it takes two.
const TERM: u32 = 8192;

/// What [`Duty::left`] says of a thread that has to end.
const END: u32 = u32::MAX;

/// How many calls are left until the second thread sleeps.
#[derive(Debug, Default)]
pub(super) struct Duty {
    left: AtomicU32,
}

impl Duty {
    pub(super) fn is_on(&self) -> bool {
        !matches!(self.left.load(Ordering::SeqCst), 0 | END)
    }

    /// Rests until it is on duty. False: it has to end.
    pub(super) fn wait(&self) -> bool {
        loop {
            match self.left.load(Ordering::SeqCst) {
                0 => park(),
                left => return left != END,
            }
        }
    }

    /// So many calls were served.
    pub(super) fn spend(&self, calls: u32) {
        let less = |left: u32| (left != END).then(|| left.saturating_sub(calls));
        let _ = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
    }
}

/// The second thread, as the first one sees it.
pub(super) struct Second<'a> {
    shared: &'a Arc<Shared>,
    rest: &'a Rest,
    duty: Arc<Duty>,
    thread: Option<JoinHandle<()>>,
    calls: u32,
    often: u32,
    /// There can be none.
    never: bool,
}

impl<'a> Second<'a> {
    /// None yet.
    pub(super) fn new(shared: &'a Arc<Shared>, rest: &'a Rest) -> Second<'a> {
        let never = !rest.is_apart() || allowed_cpus().is_ok_and(|cpus| cpus < 2);
        Second { shared, rest, duty: Arc::default(), thread: None, calls: 0, often: 0, never }
    }

    /// The first thread has received a call, and not answered it: another one that waits now is another caller's.
    pub(super) fn look(&mut self) {
        self.calls += 1;
        if self.never || self.calls < LOOK {
            return;
        }
        self.calls = 0;
        if self.duty.is_on() {
            return self.duty.spend(LOOK);
        }
        let waits = poll_now(self.shared.listener.as_fd(), libc::POLLIN).is_ok_and(|events| events & libc::POLLIN != 0);
        self.often = if waits { self.often + 2 } else { self.often.saturating_sub(1) };
        if self.often >= OFTEN {
            self.often = 0;
            self.duty.left.store(TERM, Ordering::SeqCst);
            match &self.thread {
                Some(thread) => thread.thread().unpark(),
                None => self.start(),
            }
        }
    }

    fn start(&mut self) {
        let (shared, duty, rest) = (self.shared.clone(), self.duty.clone(), self.rest.another());
        let assist = move || Worker::new(&shared, &rest).assist(&duty);
        let thread = Builder::new().name("hurdle-traps".into()).stack_size(256 * 1024);
        let started = not_the_worker(|| thread.spawn(assist));
        self.never = started.is_err();
        self.thread = started.ok();
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.duty.left.store(END, Ordering::SeqCst);
        self.shared.join(thread, self.rest, |thread| {
            thread.thread().unpark();
            interrupt(thread);
        });
    }
}
