//! Which directories a program that walks a tree will list next.
//!
//! Who lists a directory, and then one in it, is taken to go on: through what is in it, in the order of its listing, before all that
//! comes after it. That is how find, tar and `ls -R` go. Who goes another way finds what was listed ahead as long as it is new.
//!
//! What is listed ahead tells of more directories. The kernel has no numbers for these yet, so numbers are held for them, as if it had asked. A death
//! leaves those counted once too often (`table`).

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::listing::Prepared;
use super::table::Id;

/// Directories that were listed lately…
const LISTED: usize = 4096;
/// …that is, or one in them, in this time.
const LATELY: Duration = Duration::from_secs(10);
/// Directories that are known to come next.
const NEXT: usize = 1024;
/// How many of these are listed ahead, the next ones: one more for each that was asked for, half as many when nobody came for one.
const LEAST: usize = 4;
const MOST: usize = 64;
/// From so many on, what is listed ahead may be something that the kernel was not told of.
const SURE: usize = 12;
/// Directories that were listed ahead, and of which a part was asked for.
const PARTS: usize = 16;

/// What is known of it.
#[derive(Debug)]
pub(super) struct Walk {
    listed: LruCache<Id, Instant>,
    /// What comes next is the last one. None is there twice.
    next: Vec<Next>,
    /// Numbers that are held no longer.
    given_back: Vec<Id>,
    /// How many are listed ahead.
    window: usize,
    /// The directory of which a part was listed last, and the last directory in that part.
    end: Option<(Id, Id)>,
    /// The one that is listed again, or was, since it was listed from its beginning.
    again: Option<Id>,
    parts: HashMap<Id, Prepared>,
    /// When somebody listed something.
    last: Option<Instant>,
}

/// A directory that will be listed.
#[derive(Debug)]
struct Next {
    id: Id,
    /// Its number is held for it.
    held: bool,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Waits,
    /// It was listed, but not all directories in it were shown.
    Again,
    InWork(Job),
    Ready(Prepared),
}

impl Step {
    fn is_to_do(&self) -> bool {
        matches!(self, Step::Waits | Step::Again)
    }

    fn is_late(&self) -> bool {
        matches!(self, Step::Ready(prepared) if !prepared.is_new())
    }
}

/// A directory that is to be listed ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) id: Id,
    /// Nobody will ask for it: it is for the directories in it.
    pub(super) again: bool,
    /// Numbers are to be held for the directories in it.
    pub(super) hold: bool,
}

/// What there is of a directory that somebody asks for.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    InWork,
    Ready(Prepared),
}

impl Default for Walk {
    fn default() -> Walk {
        Walk {
            listed: LruCache::unbounded(),
            next: Vec::new(),
            given_back: Vec::new(),
            window: LEAST,
            end: None,
            again: None,
            parts: HashMap::new(),
            last: None,
        }
    }
}

impl Walk {
    /// A directory was listed, or a part of it: `directories` in it, or some of them (`more`); `rest` is kept for the next
    /// part. Says whether it is worth waking somebody, to list ahead.
    pub(super) fn listed(
        &mut self,
        id: Id,
        parent: Id,
        directories: Vec<Id>,
        more: bool,
        rest: Option<Prepared>,
    ) -> bool {
        let now = Instant::now();
        self.last = Some(now);
        let above = self.listed.get_mut(&parent).map(|last| std::mem::replace(last, now));
        let goes_on = above.is_some_and(|last| now - last < LATELY);
        self.listed.put(id, now);
        if self.listed.len() > LISTED {
            self.listed.pop_lru();
        }
        if let Some(rest) = rest {
            self.parts.retain(|_, rest| rest.is_new());
            if self.parts.len() < PARTS {
                self.parts.insert(id, rest);
            }
        }
        if !goes_on || directories.is_empty() && !more {
            return false;
        }
        if more && self.again.replace(id) != Some(id) && self.find(id).is_none() {
            self.next.push(Next { id, held: false, step: Step::Again });
        }
        let part = self.end.filter(|(of, _)| *of == id).and_then(|(_, last)| self.find(last));
        let at = part.or_else(|| self.find(id)).unwrap_or(self.next.len());
        self.end = directories.last().map(|last| (id, *last)).or(self.end);
        self.insert(at, directories, false);
        self.trim();
        self.is_short()
    }

    /// Somebody asks for a directory from its beginning: it is none of the next ones any more. If it is just being listed he `waits` for it, or else it
    /// is for the directories in it alone from now on.
    pub(super) fn asked(&mut self, id: Id, waits: bool) -> Found {
        self.parts.remove(&id);
        self.end = self.end.filter(|(of, _)| *of != id);
        self.again = self.again.filter(|again| *again != id);
        let Some(at) = self.find(id) else { return Found::Nothing };
        match &mut self.next[at].step {
            Step::InWork(job) if waits && !job.again => Found::InWork,
            Step::InWork(job) => {
                job.again = true;
                Found::Nothing
            }
            _ => match self.remove(at) {
                Step::Ready(prepared) if prepared.is_new() => {
                    self.window = MOST.min(self.window + 1);
                    Found::Ready(prepared)
                }
                _ => Found::Nothing,
            },
        }
    }

    /// Somebody asks for the next part.
    pub(super) fn part(&mut self, id: Id) -> Option<Prepared> {
        self.parts.remove(&id).filter(Prepared::is_new)
    }

    /// What is to be listed ahead now; who takes it says when it is [done](Walk::done).
    pub(super) fn job(&mut self) -> Option<Job> {
        let sure = self.window >= SURE;
        let next = self.ahead().find(|next| next.step.is_to_do())?;
        let again = matches!(next.step, Step::Again);
        let job = Job { id: next.id, again, hold: sure || again };
        next.step = Step::InWork(job);
        Some(job)
    }

    /// Whether so little is ready that it is worth waking somebody.
    pub(super) fn is_short(&mut self) -> bool {
        let half = self.window / 2;
        self.ahead().take(half).any(|next| next.step.is_to_do())
    }

    /// A directory was listed ahead, or could not be; numbers are held for the `directories` in it.
    pub(super) fn done(&mut self, job: Job, prepared: Option<Prepared>, directories: Vec<Id>) {
        let Some(at) = self.find(job.id) else {
            self.given_back.extend(directories);
            return;
        };
        let again = matches!(self.next[at].step, Step::InWork(job) if job.again);
        match prepared.filter(|_| !again) {
            Some(prepared) => self.next[at].step = Step::Ready(prepared),
            None => drop(self.remove(at)),
        }
        self.insert(at, directories, true);
        self.trim();
    }

    /// For how long to wait for more, and then [let go](Walk::let_go); `None`: until there is some.
    pub(super) fn patience(&self, most: Duration) -> Option<Duration> {
        let waits = self.next.iter().any(|next| !matches!(next.step, Step::InWork(_))) || !self.parts.is_empty();
        waits.then(|| self.last.map_or(most, |last| most.saturating_sub(last.elapsed())))
    }

    /// Whether nobody listed anything for so long.
    pub(super) fn is_over(&self, after: Duration) -> bool {
        self.patience(after).is_some_and(|left| left.is_zero())
    }

    /// Nobody lists anything any more.
    pub(super) fn let_go(&mut self) {
        let (kept, gone): (Vec<Next>, Vec<Next>) =
            self.next.drain(..).partition(|next| matches!(next.step, Step::InWork(_)));
        self.next = kept;
        self.given_back.extend(gone.iter().filter(|next| next.held).map(|next| next.id));
        self.parts.clear();
        self.window = LEAST;
    }

    /// Numbers that were held, to be forgotten once each.
    pub(super) fn given_back(&mut self) -> Vec<Id> {
        std::mem::take(&mut self.given_back)
    }

    fn find(&self, id: Id) -> Option<usize> {
        self.next.iter().rposition(|next| next.id == id)
    }

    /// Those that are listed ahead, the next one first.
    fn ahead(&mut self) -> impl Iterator<Item = &mut Next> {
        let window = self.window;
        self.next.iter_mut().rev().take(window)
    }

    /// Puts directories so that they come after what is at `at`, if it is still there, and before all below.
    fn insert(&mut self, at: usize, directories: Vec<Id>, held: bool) {
        if directories.is_empty() {
            return;
        }
        let mut known: HashSet<Id> = self.next.iter().map(|next| next.id).collect();
        let (new, rest): (Vec<Id>, Vec<Id>) = directories.into_iter().partition(|id| known.insert(*id));
        let (new, far) = new.split_at(NEXT.min(new.len()));
        self.next.splice(at..at, new.iter().rev().map(|id| Next { id: *id, held, step: Step::Waits }));
        self.given_back.extend(rest.iter().chain(far).filter(|_| held));
    }

    fn remove(&mut self, at: usize) -> Step {
        let next = self.next.remove(at);
        self.given_back.extend(next.held.then_some(next.id));
        next.step
    }

    /// Keeps it within its bounds.
    fn trim(&mut self) {
        let over = self.next.len().saturating_sub(NEXT);
        self.given_back.extend(self.next.drain(..over).filter(|next| next.held).map(|next| next.id));
        if self.ahead().any(|next| next.step.is_late()) {
            self.window = LEAST.max(self.window / 2);
        }
        // What is late, or not next any more (it can be large), is not kept.
        let far = self.next.len().saturating_sub(2 * MOST);
        for (at, next) in self.next.iter_mut().enumerate() {
            if next.step.is_late() || at < far && matches!(next.step, Step::Ready(_)) {
                next.step = Step::Waits;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const NONE: Vec<Id> = Vec::new();

    fn ready() -> Option<Prepared> {
        Some(Prepared::empty(Instant::now()))
    }

    fn old() -> Option<Prepared> {
        Some(Prepared::empty(Instant::now() - Duration::from_secs(5)))
    }

    /// A walk that was right so far: 1 was listed, and one in it, and 10, 20 in that come next.
    fn walk() -> Walk {
        let mut walk = Walk { window: MOST, ..Walk::default() };
        assert!(!walk.listed(1, 0, vec![2], false, None), "one directory is no walk");
        assert!(!walk.listed(1, 0, vec![3], true, None), "nor are two parts of it");
        assert!(walk.listed(2, 1, vec![10, 20], false, None));
        walk
    }

    fn order(walk: &Walk) -> Vec<Id> {
        walk.next.iter().rev().map(|next| next.id).collect()
    }

    #[test]
    fn what_is_in_a_directory_comes_before_what_is_after_it() {
        let mut walk = walk();
        let job = walk.job().unwrap();
        assert_eq!(job, Job { id: 10, again: false, hold: true });
        walk.done(job, ready(), vec![11, 12]);
        assert_eq!(order(&walk), [10, 11, 12, 20]);
        assert_eq!(walk.job().unwrap().id, 11);
        assert!(matches!(walk.asked(11, true), Found::InWork));
        assert!(matches!(walk.asked(10, true), Found::Ready(_)));
        assert!(walk.listed(10, 2, vec![11, 12], false, ready()), "12 is to be listed");
        assert_eq!(order(&walk), [11, 12, 20]);
        assert!(walk.part(10).is_some() && walk.part(10).is_none());
        assert_eq!(walk.given_back(), NONE);
        assert!(matches!(walk.asked(12, true), Found::Nothing), "not listed ahead");
        assert_eq!((order(&walk), walk.given_back()), (vec![11, 20], vec![12]));
    }

    #[test]
    fn what_was_listed_without_its_directories_is_listed_again_for_them() {
        let mut walk = walk();
        assert!(matches!(walk.asked(10, true), Found::Nothing));
        assert!(walk.listed(10, 2, NONE, true, ready()));
        assert!(walk.part(10).is_some(), "the next part");
        assert!(!walk.listed(10, 2, NONE, false, None));
        let job = walk.job().unwrap();
        assert_eq!(job, Job { id: 10, again: true, hold: true });
        assert!(matches!(walk.asked(10, true), Found::Nothing), "it is not in work for who asks");
        walk.done(job, ready(), vec![11, 12]);
        assert_eq!(order(&walk), [11, 12, 20]);
        let job = walk.job().unwrap();
        assert!(matches!(walk.asked(11, false), Found::Nothing), "who does not wait");
        walk.done(job, ready(), vec![13]);
        assert_eq!(order(&walk), [13, 12, 20]);
        walk.again = None;
        assert!(walk.listed(10, 2, NONE, true, None));
        let job = walk.job().unwrap();
        walk.done(job, None, NONE);
        walk.listed(10, 2, NONE, true, None);
        assert_eq!(order(&walk), [13, 12, 20], "once for all parts");
    }

    #[test]
    fn parts_of_a_directory_come_one_after_the_other() {
        let mut walk = walk();
        assert!(walk.listed(30, 2, vec![31, 31, 32], false, None));
        assert!(walk.listed(30, 2, vec![33, 32, 34], false, None));
        assert_eq!(order(&walk), [31, 32, 33, 34, 10, 20], "each once");
    }

    #[test]
    fn numbers_that_are_held_are_given_back() {
        let mut walk = walk();
        let job = walk.job().unwrap();
        walk.done(job, ready(), vec![11, 20]);
        assert_eq!(walk.given_back(), [20], "it is known already");
        let (eleven, twenty) = (walk.job().unwrap(), walk.job().unwrap());
        assert_eq!((eleven.id, twenty.id), (11, 20));
        assert!(walk.patience(LATELY).is_some());
        walk.let_go();
        assert_eq!(order(&walk), [11, 20], "these are in work");
        assert!(walk.patience(LATELY).is_none());
        walk.done(eleven, None, vec![13]);
        assert_eq!((order(&walk), walk.given_back()), (vec![13, 20], vec![11]));
        walk.let_go();
        assert_eq!(walk.given_back(), [13]);
        walk.done(Job { id: 99, ..twenty }, ready(), vec![14]);
        assert_eq!(walk.given_back(), [14], "nobody knows 99");
        assert!(walk.listed(20, 2, (1000..4000).collect(), false, None));
        let job = walk.job().unwrap();
        walk.done(job, ready(), (5000..8000).collect());
        assert_eq!((walk.next.len(), walk.given_back().len()), (NEXT, 3000 - NEXT + 2), "what is too much");
    }

    #[test]
    fn less_is_listed_ahead_of_who_does_not_come_for_it() {
        let mut walk = walk();
        let job = walk.job().unwrap();
        walk.done(job, old(), NONE);
        assert_eq!((order(&walk), walk.window), (vec![10, 20], MOST / 2));
        let job = walk.job().unwrap();
        assert_eq!(job.id, 10, "it is too old");
        walk.done(job, ready(), NONE);
        assert_eq!(walk.window, MOST / 2);
        (0..8).for_each(|_| {
            walk.next[0].step = Step::Ready(old().unwrap());
            walk.trim();
        });
        assert_eq!(walk.window, LEAST);
        let job = walk.job().unwrap();
        assert!(!job.hold);
        walk.done(job, None, vec![30]);
        for id in 100..100 + (SURE - LEAST) as Id {
            walk.next.push(Next { id, held: false, step: Step::Ready(ready().unwrap()) });
            assert!(matches!(walk.asked(id, true), Found::Ready(_)));
        }
        assert!(walk.job().unwrap().hold);
    }

    #[test]
    fn it_stays_within_its_bounds() {
        let mut walk = walk();
        assert!(walk.listed(10, 2, (1000..4000).collect(), false, None));
        assert_eq!(walk.next.len(), NEXT);
        let jobs: Vec<Job> = std::iter::from_fn(|| walk.job()).collect();
        assert_eq!(jobs.len(), MOST);
        jobs.into_iter().for_each(|job| walk.done(job, ready(), NONE));
        assert!(walk.job().is_none() && !walk.is_short());
        (1000..1000 + MOST as Id / 2).for_each(|id| assert!(matches!(walk.asked(id, true), Found::Ready(_))));
        assert!(!walk.is_short());
        assert!(matches!(walk.asked(1000 + MOST as Id / 2, true), Found::Ready(_)));
        assert!(walk.is_short());
        // Others come before them.
        assert!(walk.listed(1000, 10, (5000..5200).collect(), false, None));
        assert!(walk.next.iter().all(|next| matches!(next.step, Step::Waits)), "what is far is not kept");
        (0..100).for_each(|id| assert!(!walk.listed(id, 1, NONE, false, ready())));
        assert_eq!(walk.parts.len(), PARTS);
    }
}
