//! Reading ahead: what a program that walks a tree will ask for next is made ready while it is busy with what it has.
//!
//! A disk is slow by waiting, and so is a kernel that asks a process: a walk (find, tar, git) would wait for both, one file
//! after the other. A few more threads see two patterns and go before:
//! - a directory is listed, and so was the one above it: what comes next is listed too (`walk`);
//! - a few files of a directory are read one after the other, in the order of its listing or of their names: so are the next
//!   ones (`Job::Fetch`), into the host's page cache.
//!
//! It is bounded in all it holds, never waited for unless it does just what is asked for, and sleeps when nobody walks. What
//! it reads is not pushed on to the kernel (FUSE_NOTIFY_STORE): that waits for pages that are just being read, so a server
//! that is killed meanwhile could not end before its successor answered, who is not started before it ended.
//!
//! Lock order: `state` is held while nothing else is locked or waited for.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Advice, FileType, fadvise};
use rustix::io::Errno;

use super::listing::Prepared;
use super::places::lock;
use super::table::Id;
use super::tree::Tree;
use super::walk::{Found, Walk};

/// What nobody asks for in that time is let go.
const LATE: Duration = Duration::from_secs(2);
/// Directories whose files are read one after the other.
const STREAMS: usize = 8;
/// The most files that are read ahead at a time.
const WINDOW: usize = 32;
/// The most bytes of one file that are read ahead.
const MOST: u64 = 256 << 10;
/// The most files that are read ahead with the listing of their directory.
const FIRST: usize = 16;
/// So many directories may be listed one after the other by who reads the files in them.
const SKIPPED: usize = 4;
/// How far from the last one in order the next file may be.
const STEP: usize = 4;
/// So many files of a directory may be read without anything being read ahead.
const FEW: u32 = 4;
/// How many files out of order end a stream.
const MISSES: u32 = 16;

/// What is known of who walks where.
#[derive(Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    /// Rung for the threads when there is a job, and for workers when one is done.
    changed: Condvar,
    /// That there was a job, until threads were started for them.
    needed: AtomicBool,
    started: AtomicBool,
}

#[derive(Default)]
struct State {
    stop: bool,
    walk: Walk,
    /// Threads that wait for a job.
    idle: usize,
    streams: Vec<Stream>,
    jobs: VecDeque<Job>,
    /// Directories that were listed since a file was read.
    listed: usize,
}

impl State {
    /// Whether who walks reads the files too: then they are read ahead with their directory.
    fn eager(&self) -> bool {
        !self.streams.is_empty() && self.listed < SKIPPED
    }
}

/// Files of a directory that are read one after the other.
struct Stream {
    directory: Id,
    last: Vec<u8>,
    names: Option<Names>,
    window: usize,
    misses: u32,
}

/// The regular files of a directory in two orders.
struct Names {
    listed: Vec<Vec<u8>>,
    /// Places in `listed`, by name.
    sorted: Vec<usize>,
    /// Where the reader is, and how far was read ahead, in each order.
    reached: [(usize, usize); 2],
}

enum Job {
    /// The names of a directory's files.
    Names(Id),
    /// The content of files of a directory.
    Fetch(Id, Vec<Vec<u8>>),
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").finish_non_exhaustive()
    }
}

impl Ahead {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// What was made ready of a directory that is being listed. If that is just being done, its end is waited for, if `waits`.
    pub(super) fn prepared(&self, id: Id, offset: u64, waits: bool) -> Option<Prepared> {
        let mut state = self.state();
        if offset > 0 {
            return state.walk.part(id);
        }
        loop {
            let waits = waits && !state.stop;
            match state.walk.asked(id, waits) {
                Found::InWork => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                found => {
                    // So many at a time that it is worth waking a thread.
                    if state.idle > 0 && state.walk.is_short() {
                        self.ring();
                    }
                    return if let Found::Ready(prepared) = found { Some(prepared) } else { None };
                }
            }
        }
    }

    /// A directory was listed, or a part of it; see [`Walk::listed`].
    pub(super) fn listed(&self, id: Id, parent: Id, directories: Vec<Id>, more: bool, rest: Option<Prepared>) {
        let mut state = self.state();
        state.listed += 1;
        if state.walk.listed(id, parent, directories, more, rest) {
            self.ring();
        }
    }

    /// A file of a directory is read from its beginning, for the first time in a while.
    pub(super) fn read(&self, directory: Id, name: &[u8]) {
        let mut state = self.state();
        state.listed = 0;
        let Some(at) = state.streams.iter().position(|stream| stream.directory == directory) else {
            if state.streams.len() == STREAMS {
                state.streams.remove(0);
            }
            state.streams.push(Stream { directory, last: name.to_vec(), names: None, window: 4, misses: 0 });
            return;
        };
        // The one used last is the last.
        let mut stream = state.streams.remove(at);
        let job = stream.next(name);
        if stream.misses < MISSES {
            state.streams.push(stream);
        }
        if let Some(job) = job {
            state.jobs.push_back(job);
            self.ring();
        }
    }

    fn ring(&self) {
        self.needed.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// Whether somebody has to start threads now: said once, when there is the first job.
    pub(super) fn needs_threads(&self) -> bool {
        self.needed.load(Ordering::Relaxed)
            && !self.started.load(Ordering::Relaxed)
            && !self.started.swap(true, Ordering::Relaxed)
    }

    /// Ends the threads, and whoever waits for it.
    pub(super) fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }

    /// The life of such a thread.
    pub(super) fn run(&self, tree: &Tree) {
        let mut state = self.state();
        while !state.stop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                match job {
                    Job::Names(directory) => {
                        let names = Names::of(tree, directory);
                        state = self.state();
                        let stream = state.streams.iter_mut().find(|stream| stream.directory == directory);
                        if let (Some(stream), Ok(names)) = (stream, names) {
                            stream.names = Some(names);
                        }
                    }
                    Job::Fetch(directory, names) => {
                        fetch(tree, directory, &names);
                        state = self.state();
                    }
                }
            } else if let Some(job) = state.walk.job() {
                let eager = state.eager();
                drop(state);
                let prepared = tree.prepare(job).ok();
                let files = prepared.as_ref().filter(|_| eager).map_or(Vec::new(), |prepared| prepared.files(FIRST));
                let held =
                    prepared.as_ref().filter(|_| job.hold).map_or(Vec::new(), |prepared| tree.hold(job.id, prepared));
                state = self.state();
                state.walk.done(job, prepared, held);
                self.changed.notify_all();
                if !files.is_empty() {
                    drop(state);
                    fetch(tree, job.id, &files);
                    state = self.state();
                }
            } else {
                state.idle += 1;
                let patience = state.walk.patience(LATE).unwrap_or(Duration::MAX);
                state = self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0;
                state.idle -= 1;
            }
            if state.walk.is_over(LATE) {
                state.walk.let_go();
            }
            state = self.give_back(state, tree);
        }
        state.walk.let_go();
        drop(self.give_back(state, tree));
    }

    fn give_back<'a>(&'a self, mut state: MutexGuard<'a, State>, tree: &Tree) -> MutexGuard<'a, State> {
        let numbers = state.walk.given_back();
        if numbers.is_empty() {
            return state;
        }
        drop(state);
        tree.places().forget(numbers.into_iter().map(|id| (id, 1)));
        self.state()
    }
}

impl Stream {
    /// What to do now that `name` is read.
    fn next(&mut self, name: &[u8]) -> Option<Job> {
        self.last = name.to_vec();
        let Some(names) = &mut self.names else {
            self.misses += 1;
            // Asked for once. A program that starts reads a few libraries.
            return (self.misses == FEW).then_some(Job::Names(self.directory));
        };
        let Some(wanted) = names.advance(name, self.window) else {
            self.misses += 1;
            return None;
        };
        self.misses = 0;
        if wanted.is_empty() {
            return None;
        }
        self.window = (self.window * 2).min(WINDOW);
        Some(Job::Fetch(self.directory, wanted))
    }
}

impl Names {
    fn of(tree: &Tree, directory: Id) -> Result<Names, Errno> {
        let node = tree.places().node(directory)?;
        let mut listed = Vec::new();
        tree.list(directory, &node, 0, |name, kind, _, _| {
            if kind == FileType::RegularFile {
                listed.push(name.to_vec());
            }
            listed.len() < 1 << 14
        })?;
        let mut sorted: Vec<usize> = (0..listed.len()).collect();
        sorted.sort_by(|a, b| listed[*a].cmp(&listed[*b]));
        Ok(Names { listed, sorted, reached: [(usize::MAX, 0); 2] })
    }

    fn name(&self, order: usize, at: usize) -> &[u8] {
        &self.listed[if order == 0 { at } else { self.sorted[at] }]
    }

    /// Which files to read ahead after `name`: nothing yet, if enough are. `None`: it is not in order.
    fn advance(&mut self, name: &[u8], window: usize) -> Option<Vec<Vec<u8>>> {
        let by_name = self.sorted.binary_search_by(|at| self.listed[*at].as_slice().cmp(name)).ok()?;
        let places = [self.sorted[by_name], by_name];
        let mut follows = None;
        for (order, place) in places.into_iter().enumerate() {
            let (last, _) = self.reached[order];
            self.reached[order].0 = place;
            if last != usize::MAX && place > last && place - last <= STEP && follows.is_none() {
                follows = Some(order);
            }
        }
        let order = follows?;
        let (place, ahead) = self.reached[order];
        let from = ahead.max(place + 1);
        let to = (place + 1 + window).min(self.listed.len());
        // Not for each file one: when half of the window is used up.
        if from > place + 1 + window / 2 || from >= to {
            return Some(Vec::new());
        }
        self.reached[order].1 = to;
        Some((from..to).map(|at| self.name(order, at).to_vec()).collect())
    }
}

/// Has the disk begin to read files, all at a time, and waits for none.
fn fetch(tree: &Tree, directory: Id, names: &[Vec<u8>]) {
    for name in names {
        if let Ok(open) = tree.places().open_at(directory, name) {
            let _ = fadvise(&*lock(&open.file), 0, NonZeroU64::new(MOST), Advice::WillNeed);
        }
    }
}
