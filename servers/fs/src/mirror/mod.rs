//! The host's `/`, read-only, over FUSE, in an environment's own terms: the lower layer of copy-on-write files where the user
//! is not root outside.
//!
//! A kernel overlay may only change (a copy of) a file whose owner exists in the environment. Host root's files have none
//! there; the mirror shows them as env root's. It crosses the host's mounts, so that one overlay covers them all.
//!
//! **What is promised.** The kernel keeps what it was told for an hour, and pages for as long as it likes: once warm, a path, a
//! listing and a file's content come from its caches, at its speed. So a change that the host makes *meanwhile* may be
//! seen or not, as with the lower layer of an overlay (its own documentation says so too); a file that was replaced is another
//! one from the next lookup on, and who reads on in one that is gone gets ESTALE.
//!
//! **What is shown.** Everything that the user may see, by the owners that [`Ids`] says. /proc, /sys, /dev, other file systems of the
//! kernel's making, and what the caller names are empty directories: the environment has its own. Where the user is root
//! inside, programs expect to be allowed everything; what the user may not read on the host is then
//! - an empty directory of root's, for a directory;
//! - made up, for /etc/shadow and /etc/gshadow;
//! - an empty file, for one that is empty, and for any below /var/log and /var/cache;
//! - a file that may be removed and replaced, but not read (EACCES), else.
//!
//! **What is not read here.** Of large files of a few directories the overlay reads the content by itself, where the kernel can (`content`).
//!
//! **Death.** Node numbers lie in a memory file (`table`) that the core keeps, with the connection. A successor goes on with both, and
//! asks the kernel to send again what was not answered (Linux
//! 6.9; before that, who waited for a server that died waits for ever). All requests only read, so a second answer is as good as the first.
//!
//! **In two parts.** Where content is not read here, two mirrors show the host, so that fewer questions are asked (`part`).
//!
//! `table`: nodes; `places`: from a node to an open file; `show`: attributes; `tree`, `listing`: requests; `ahead`, `walk`: what will
//! be asked for next; `turns`: which thread answers; `ids`, `made_up`.

mod ahead;
mod content;
mod ids;
mod listing;
mod looks;
mod made_up;
mod part;
mod places;
mod show;
mod table;
mod tree;
mod turns;
mod walk;

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{InHeader, OutHeader};
use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, MetricsHook, Server};
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader};
use hurdle_server::spare_cpu;
use hurdle_sys::process::Near;
use hurdle_sys::seqpacket::{self, Interruptible};
use hurdle_sys::shared::SharedWords;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use content::Content;
pub use ids::Ids;
pub use part::{Above, Part};
use places::{Places, lock};
use show::Show;
use table::Table;
use tree::Tree;
use turns::Turns;

/// So many requests in quick succession are a walk: the thread waits awake for the next one.
const BURST: u32 = 16;

/// Requests that are waited for no longer than this are in quick succession.
const GAP: Duration = Duration::from_micros(500);

/// How long a thread waits awake. Most programs ask again within that, and to fetch a CPU back from its sleep takes as long.
const AWAKE: Duration = Duration::from_micros(80);

/// Threads that answer: as many requests that take long are answered at a time, so one slow disk does not stop everybody.
const WORKERS: usize = 2;

/// One that takes longer than this has the other thread wait for the next one.
const NAP: Duration = Duration::from_micros(250);

/// So many requests are answered before more threads are started: a launch waits for each thing that is done in it.
const LAUNCH: u64 = 64;

/// For so long at most there is one thread for what waits for a disk that does not answer.
const ALONE: Duration = Duration::from_secs(1);

/// For so long at most the thread of a launch stays beside who asks.
const NEAR: Duration = Duration::from_millis(20);

/// Threads that read ahead: a disk does several things in the time of one.
const AHEAD: usize = 2;

/// Room for nodes: 1 GiB of addresses, of which those are memory that were used; some 15 million nodes.
const WORDS: usize = 1 << 27;

/// A request is at most as long as the longest write (which a read-only file system never gets), and its header.
const BUFFER: usize = MAX_BUFFER_SIZE as usize + 4096;

/// What to mirror.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose the files are.
    pub ids: Ids,
    /// Directories of the host that are shown empty, besides /proc, /sys and /dev. Absolute.
    pub hidden: Vec<PathBuf>,
    /// Which part of the files.
    pub part: Part,
    /// A pidfd of the process that asks first; if it stays on one CPU for the time, it is answered there.
    pub near: Option<Arc<OwnedFd>>,
    /// Directories of whose large files the overlay above reads the content by itself.
    pub content: Vec<PathBuf>,
}

/// A mirror that is being served. Dropping it ends that as [`stop`](Mirror::stop) does.
#[derive(Debug)]
pub struct Mirror {
    shared: Arc<Shared>,
}

struct Shared {
    device: OwnedFd,
    server: Server<Arc<Tree>>,
    tree: Arc<Tree>,
    stop: AtomicBool,
    near: Mutex<Option<Arc<OwnedFd>>>,
    /// Who leads knows how many requests came in quick succession, up to [`BURST`].
    turns: Turns<u32>,
    /// All [`WORKERS`] were started.
    all: AtomicBool,
    threads: Mutex<Vec<Thread>>,
    counts: [AtomicU64; OPCODES],
}

/// A thread that was started; what wakes it is there as soon as it runs.
struct Thread {
    handle: JoinHandle<()>,
    wake: Arc<OnceLock<Interruptible>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("tree", &self.tree).finish_non_exhaustive()
    }
}

impl Mirror {
    /// Serves the connection `device` ([`hurdle_sys::fuse::create`]) until it is stopped, or the environment is gone. `log`
    /// is a memory file ([`hurdle_sys::memfd::create`]) that holds the nodes: an empty one, or that of a mirror of the same
    /// connection which is dead or was stopped; then what that one left unanswered is asked for again.
    ///
    /// InvalidData: `log` is of another version; ENOMEM, EMFILE, EAGAIN: out of memory, fds or threads.
    pub fn start(device: OwnedFd, log: OwnedFd, options: Options) -> io::Result<Mirror> {
        // A shell's `ulimit -f` holds for this file too, and to go beyond it is deadly.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        let words = limit.map_or(WORDS, |bytes| WORDS.min(usize::try_from(bytes / 8).unwrap_or(WORDS)));
        let table = Table::new(SharedWords::map(&log, words)?, Show::root())?;
        let adopted = table.adopted();
        let show = Show::new(options.ids, &options.hidden)?;
        let content = Content::new(&options.content);
        let tree = Arc::new(Tree::new(Places::new(table)?, show, options.part, content));
        let shared = Arc::new(Shared {
            device,
            server: Server::new(tree.clone()),
            tree,
            stop: AtomicBool::new(false),
            near: Mutex::new(options.near),
            turns: Turns::new(NAP),
            all: AtomicBool::new(false),
            threads: Mutex::new(Vec::new()),
            counts: [const { AtomicU64::new(0) }; OPCODES],
        });
        if adopted {
            shared.ask_again();
        }
        let mirror = Mirror { shared };
        // The others follow when they are needed: an environment waits for this one.
        Shared::start(&mirror.shared, Shared::work)?;
        Ok(mirror)
    }

    /// Ends serving: what is being answered is answered, the rest stays with the connection for a successor.
    pub fn stop(self) {
        drop(self);
    }

    /// What a mirror of the rest has to know of this one, a plain one.
    pub fn above(&self) -> Above {
        Above(self.shared.tree.clone())
    }

    /// How many requests of each kind were served, those that came at all.
    pub fn requests(&self) -> Vec<(String, u64)> {
        let named = |(code, count): (usize, &AtomicU64)| {
            let count = count.load(Ordering::Relaxed);
            (count > 0).then(|| (name(code as u32), count))
        };
        self.shared.counts.iter().enumerate().filter_map(named).collect()
    }

    /// How many files and directories the kernel holds, or is about to hear of.
    pub fn nodes(&self) -> usize {
        self.shared.tree.places().table().len()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.shared.tree.ahead().stop();
        self.shared.stop.store(true, Ordering::Release);
        self.shared.turns.end();
        // One that is just being started is seen by the next round.
        while let Some(Thread { handle, wake }) = { lock(&self.shared.threads).pop() } {
            // A signal that comes just before the thread blocks is lost, so more than one may be needed.
            while !handle.is_finished() {
                let _ = wake.get().map(|this| seqpacket::wake(*this));
                std::thread::park_timeout(Duration::from_millis(1));
            }
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// Starts a thread.
    fn start(this: &Arc<Shared>, run: fn(&Arc<Shared>)) -> io::Result<()> {
        // What is started after the end began would not be waited for.
        let mut threads = lock(&this.threads);
        if this.stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let (shared, wake) = (this.clone(), Arc::new(OnceLock::new()));
        let mine = wake.clone();
        let handle = std::thread::Builder::new().name("mirror".into()).spawn(move || {
            if let Ok(this) = seqpacket::interruptible() {
                let _ = mine.set(this);
                run(&shared);
            }
        })?;
        threads.push(Thread { handle, wake });
        Ok(())
    }

    /// Starts the threads that requests ask for: `more` than one at a time, or a walk (`ahead`). Without them it is slower, no
    /// more.
    fn start_others(this: &Arc<Shared>, more: bool, ahead: bool) {
        if more && !this.all.swap(true, Ordering::Relaxed) {
            (1..WORKERS).for_each(|_| drop(Shared::start(this, Shared::work)));
        }
        if ahead {
            (0..AHEAD).for_each(|_| drop(Shared::start(this, |shared| shared.tree.ahead().run(&shared.tree))));
        }
    }

    /// Whether there is a request that nobody has taken.
    fn asked(&self) -> bool {
        let mut device = [PollFd::new(&self.device, PollFlags::IN)];
        poll(&mut device, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Waits awake for the next request, for a while.
    fn wait_awake(&self, begin: Instant) {
        while !self.asked() && begin.elapsed() < AWAKE {
            (0..16).for_each(|_| std::hint::spin_loop());
        }
    }

    /// Serves until it is told to stop, or the connection ends (ENODEV). A request that was taken is always answered.
    fn work(this: &Arc<Shared>) {
        // For the first thread, while it is the only one.
        let asker = lock(&this.near).take();
        let mut near = asker.and_then(|asker| Near::beside(asker.as_fd()).ok().flatten());
        let (begin, spare) = (Instant::now(), OnceCell::new());
        let mut served = 0;
        let mut request = vec![0; BUFFER];
        let mut reply = vec![0; BUFFER];
        while let Some(mut quick) = this.turns.wait() {
            let waits = Instant::now();
            if *quick >= BURST && near.is_none() && *spare.get_or_init(spare_cpu) {
                this.wait_awake(waits);
            }
            let len = match rustix::io::read(&this.device, &mut request) {
                Ok(len) => len,
                // A signal; a request that was taken back while it was being read.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT | rustix::io::Errno::AGAIN) => continue,
                Err(_) => break,
            };
            let now = Instant::now();
            *quick = if now - waits < GAP { BURST.min(*quick + 1) } else { 0 };
            this.turns.took(quick, || this.asked());
            let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(&mut request[..len]));
            let writer = FuseDevWriter::<()>::new(this.device.as_fd().as_raw_fd(), &mut reply);
            if let (Ok(reader), Ok(writer)) = (reader, writer) {
                // A failure is that of the answer: its asker is gone.
                let _ = this.server.handle_message(reader, writer.into(), None, Some(this.as_ref()));
            }
            served += 1;
            let ahead = this.tree.ahead().needs_threads();
            // Threads are where the one is that starts them.
            if near.is_some() && (served >= LAUNCH || now - begin > NEAR || ahead) {
                near = None;
            }
            let late = now - begin > ALONE;
            let alone = served >= LAUNCH && !this.all.load(Ordering::Relaxed);
            Shared::start_others(this, alone && (late || this.asked()), ahead);
            for id in this.tree.changed() {
                if let Ok(writer) = FuseDevWriter::<()>::new(this.device.as_fd().as_raw_fd(), &mut reply) {
                    // No offset: the attributes alone. Pages would be waited for, and may be waiting for this thread.
                    let _ = this.server.notify_inval_inode(writer, id.into(), u64::MAX, 0);
                }
            }
        }
        this.turns.leave();
    }

    /// Has the kernel send again what was read and not answered (FUSE_NOTIFY_RESEND, Linux 6.9); that may be the very first
    /// request, so it is not asked what was negotiated.
    fn ask_again(&self) {
        let mut buffer = [0; 64];
        if let Ok(writer) = FuseDevWriter::<()>::new(self.device.as_fd().as_raw_fd(), &mut buffer) {
            let _ = self.server.notify_resend(writer);
        }
    }
}

impl MetricsHook for Shared {
    fn collect(&self, header: &InHeader) {
        if let Some(count) = self.counts.get(header.opcode as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn release(&self, _: Option<&OutHeader>) {}
}

/// Numbers of requests (linux/fuse.h).
const OPCODES: usize = 64;

fn name(code: u32) -> String {
    match code {
        42 => "forgets".into(),
        code => format!("{:?}", fuse_backend_rs::abi::fuse_abi::Opcode::from(code)).to_lowercase(),
    }
}
