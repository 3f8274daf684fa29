//! Which of two threads waits for the next request: one leads, the other stands by.
//!
//! If both waited, the kernel would wake one for each request that the other, who is awake already, takes: and to wake another CPU takes
//! longer than most answers. So the one that leads waits, takes a request, answers it, and waits for the next one. The other takes its place when it
//! is with one request for long (a nap's time: a disk is slow), or when a second one waits already as it is taken. When nothing is asked, both sleep,
//! and the next request wakes both.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::places::lock;

/// Whose turn it is. `T` belongs to who leads.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// So long a request may take before the other thread leads, at most twice; so often that one looks while there are requests.
    nap: Duration,
    /// Held by who waits for a request.
    lead: Mutex<T>,
    /// Requests that were taken.
    taken: AtomicU64,
    /// The other thread is there for more.
    stands_by: AtomicBool,
    /// It sleeps until it is rung.
    sleeps: AtomicBool,
    rung: Mutex<Rung>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct Rung {
    /// There is a request that nobody has taken.
    more: bool,
    /// There will be no more turns.
    end: bool,
}

impl<T: Default> Turns<T> {
    pub(super) fn new(nap: Duration) -> Turns<T> {
        Turns {
            nap,
            lead: Mutex::default(),
            taken: AtomicU64::new(0),
            stands_by: AtomicBool::new(false),
            sleeps: AtomicBool::new(false),
            rung: Mutex::default(),
            bell: Condvar::new(),
        }
    }

    /// Waits for the caller's turn, which lasts until it says what it [took](Turns::took). `None`: there are no more.
    pub(super) fn wait(&self) -> Option<MutexGuard<'_, T>> {
        let mut rung = lock(&self.rung);
        if rung.end {
            return None;
        }
        if let Some(lead) = self.try_lead() {
            return Some(lead);
        }
        self.stands_by.store(true, Ordering::Relaxed);
        let lead = loop {
            if rung.end {
                return None;
            }
            if std::mem::take(&mut rung.more)
                && let Some(lead) = self.try_lead()
            {
                break lead;
            }
            let seen = self.taken.load(Ordering::SeqCst);
            rung = self.bell.wait_timeout(rung, self.nap).unwrap_or_else(PoisonError::into_inner).0;
            if self.taken.load(Ordering::SeqCst) == seen && !rung.end && !rung.more {
                if let Some(lead) = self.try_lead() {
                    break lead;
                }
                // Who leads waits. It looks whether somebody sleeps after it took a request: one of both sees what the other did.
                self.sleeps.store(true, Ordering::SeqCst);
                while self.taken.load(Ordering::SeqCst) == seen && !rung.end && !rung.more {
                    rung = self.bell.wait(rung).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleeps.store(false, Ordering::SeqCst);
            }
        };
        self.stands_by.store(false, Ordering::Relaxed);
        Some(lead)
    }

    /// Who leads has taken a request, and goes to answer it. `more` is asked, if somebody can help, whether there is another one.
    pub(super) fn took(&self, lead: MutexGuard<'_, T>, more: impl FnOnce() -> bool) {
        self.taken.fetch_add(1, Ordering::SeqCst);
        drop(lead);
        let sleeps = self.sleeps.load(Ordering::SeqCst);
        if self.stands_by.load(Ordering::Relaxed) {
            let more = more();
            if more || sleeps {
                lock(&self.rung).more |= more;
                self.bell.notify_all();
            }
        }
    }

    /// Who leads does so no more: the other one does.
    pub(super) fn leave(&self) {
        lock(&self.rung).more = true;
        self.bell.notify_all();
    }

    /// Ends all waiting.
    pub(super) fn end(&self) {
        lock(&self.rung).end = true;
        self.bell.notify_all();
    }

    fn try_lead(&self) -> Option<MutexGuard<'_, T>> {
        match self.lead.try_lock() {
            Ok(lead) => Some(lead),
            Err(TryLockError::Poisoned(lead)) => Some(lead.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const LONG: Duration = Duration::from_secs(3600);

    /// What two threads share in a test: each waits for its turn, says so, and takes what it is sent as a request to be answered.
    struct Two {
        turns: Turns<u32>,
        turn: Sender<usize>,
    }

    fn answer(two: &Two, me: usize, requests: &Mutex<Receiver<Receiver<()>>>, more: bool) {
        while let Some(mut lead) = two.turns.wait() {
            two.turn.send(me).unwrap();
            let Ok(request) = lock(requests).recv() else { break };
            *lead += 1;
            two.turns.took(lead, || more);
            let _ = request.recv();
        }
        two.turns.leave();
    }

    /// Has two threads answer, and calls `act` with what sends them requests (which end when their sender does) and tells of turns.
    fn with_two(nap: Duration, more: bool, act: impl FnOnce(&Sender<Receiver<()>>, &Receiver<usize>)) {
        let (turn, turned) = channel();
        let (ask, asked) = channel();
        let (two, asked) = (Two { turns: Turns::new(nap), turn }, Mutex::new(asked));
        std::thread::scope(|scope| {
            for me in 0..2 {
                let (two, asked) = (&two, &asked);
                scope.spawn(move || answer(two, me, asked, more));
            }
            // One leads, one stands by.
            while !two.turns.stands_by.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            act(&ask, &turned);
            // Who leads hears of it, and the other by him.
            drop(ask);
        });
    }

    /// A request that is answered when what comes with it is dropped.
    fn ask(requests: &Sender<Receiver<()>>) -> Sender<()> {
        let (answered, request) = channel();
        requests.send(request).unwrap();
        answered
    }

    #[test]
    fn one_leads_as_long_as_it_answers() {
        with_two(LONG, false, |requests, turns| {
            let first = turns.recv_timeout(SOON).unwrap();
            for _ in 0..1000 {
                drop(ask(requests));
                assert_eq!(turns.recv_timeout(SOON).unwrap(), first);
            }
        });
    }

    #[test]
    fn the_other_leads_while_one_is_with_a_request_for_long() {
        let nap = Duration::from_millis(1);
        with_two(nap, false, |requests, turns| {
            for _ in 0..20 {
                let first = turns.recv_timeout(SOON).unwrap();
                // Both sleep by now.
                std::thread::sleep(nap * 5);
                let slow = ask(requests);
                assert_ne!(turns.recv_timeout(SOON).unwrap(), first);
                drop(slow);
                drop(ask(requests));
            }
        });
    }

    #[test]
    fn the_other_leads_at_once_when_there_is_more() {
        with_two(LONG, true, |requests, turns| {
            let first = turns.recv_timeout(SOON).unwrap();
            let slow = ask(requests);
            assert_ne!(turns.recv_timeout(SOON).unwrap(), first);
            drop(slow);
        });
    }
}
