//! The server below: who stands between two servers of an interface starts the lower one, lends it what itself was lent, and
//! starts its successor when it dies. The upper one does for it what the core does for the upper one, by the same messages.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hurdle_proto::server::{BOOTSTRAP, ClientChannel, Grant, Peer, SERVERS, Stock, Stored, server, store};
use hurdle_proto::spec::{Layer, Spec};
use hurdle_sys::process::numbers::{EINVAL, SIGKILL};
use hurdle_sys::process::{self, Child, Event, Launch, State, Until};
use hurdle_sys::seqpacket;
use hurdle_wire::tap::Tap;
use hurdle_wire::{CallError, Channel, Context, Fd, Refused, ServeOptions, announce_death, serve};

use crate::Borrowed;

/// How long the server below has to borrow the right, and to return it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long what the last one has left behind has to end by itself.
const LAST: Duration = Duration::from_secs(1);
/// How long one that does not read may hold up this one.
const ROOM: Duration = Duration::from_millis(100);
/// A server that ends before it has served for so long has died young.
const YOUNG: Duration = Duration::from_millis(20);
/// So many in a row that died young: then this process ends too, still young, and the core decides about the next start.
const ENOUGH: u32 = 2;
/// So many that were killed young in a row are an accident. One more killed itself.
const KILLED_YOUNG: u32 = 32;

/// The server below this one, whoever serves at the moment.
pub struct Below {
    shared: Arc<Shared>,
    client: Channel,
    watcher: Option<JoinHandle<()>>,
}

struct Shared {
    interface: String,
    spec: Spec,
    env: String,
    attachments: Vec<(String, Fd)>,
    /// The program of the standard servers.
    servers: OwnedFd,
    /// The server's end of the client's channel: what is sent while no server lives waits in it.
    channel: Channel,
    keeper: Arc<Keeper>,
    /// How the server that lives is told.
    lives: Mutex<Option<Arc<server::Client>>>,
    stopping: AtomicBool,
    /// The one that lives has had its time to return the right.
    over: Event,
    tap: Tap,
}

/// Has the server below report to those who trace, too.
#[derive(Clone)]
pub(crate) struct Lower(Arc<Shared>);

impl Lower {
    pub(crate) fn tap(&self, number: u64, pipe: Fd) {
        // One that comes after it gets the pipes with its start.
        if let Some(boot) = &*lock(&self.0.lives) {
            let _ = boot.tap(number, pipe).deadline(ROOM).wait();
        }
    }

    pub(crate) fn untap(&self, number: u64) {
        if let Some(boot) = &*lock(&self.0.lives) {
            let _ = boot.untap(number).deadline(ROOM).wait();
        }
    }
}

/// Keeps what the server below stores, and has the core keep it too.
struct Keeper {
    stock: Mutex<Stock>,
    core: store::Client,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl store::Server for Keeper {
    async fn put(&self, _: &Context, entry: Stored) -> Result<(), Refused> {
        let Stored { key, bytes, fds } = entry;
        let again = Stored { key: key.clone(), bytes: bytes.clone(), fds: fds.clone() };
        self.core.put(again).await?;
        lock(&self.stock).put(Stored { key, bytes, fds })
    }

    async fn remove(&self, _: &Context, key: String) -> Result<(), Refused> {
        lock(&self.stock).remove(&key);
        Ok(self.core.remove(key).await?)
    }
}

impl Below {
    /// Starts it. It gets the attachments and the store that `borrowed` has at this moment; the attachment `trap` is called
    /// `calls` there.
    ///
    /// # Errors
    /// EINVAL: the core did not lend the program of the standard servers. EMFILE.
    pub(crate) fn start(borrowed: &mut Borrowed, spec: Spec) -> Result<Below, Refused> {
        let servers = borrowed.attachment(SERVERS)?;
        let (ours, theirs) = seqpacket::pair()?;
        let mut stock = Stock::default();
        borrowed.stored.iter().for_each(|entry| {
            // What the core keeps there is room for.
            let _ = stock.put(Stored { key: entry.key.clone(), bytes: entry.bytes.clone(), fds: entry.fds.clone() });
        });
        let lower = |name: &str| if name == "trap" { "calls".to_string() } else { name.to_string() };
        let shared = Arc::new(Shared {
            interface: borrowed.interface.clone(),
            spec,
            env: borrowed.env.clone(),
            attachments: borrowed.attachments.iter().map(|(name, fd)| (lower(name), fd.clone())).collect(),
            servers,
            channel: Channel::from(theirs),
            keeper: Arc::new(Keeper { stock: Mutex::new(stock), core: borrowed.store() }),
            lives: Mutex::new(None),
            stopping: AtomicBool::new(false),
            over: Event::new()?,
            tap: borrowed.tap(),
        });
        borrowed.below.push(Lower(shared.clone()));
        let watched = shared.clone();
        // The server dies with the thread that starts it, which is this one.
        let watcher = std::thread::Builder::new().name("below".into()).spawn(move || watched.watch())?;
        Ok(Below { shared, client: Channel::from(ours), watcher: Some(watcher) })
    }

    /// A channel to it. Calls wait while no server lives; those marked idempotent outlive a death.
    pub fn channel(&self) -> Channel {
        self.client.clone()
    }

    /// Has the right returned, with what is in flight answered, and ends it.
    pub fn stop(mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let lives = lock(&self.shared.lives).take();
        if let Some(boot) = lives {
            let _ = boot.give_back().deadline(PATIENCE).wait();
        }
        // Who watches kills it: this thread may be behind walls.
        self.shared.over.ring();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl Shared {
    /// Starts a server, and another after its end, until all is stopped.
    fn watch(&self) {
        let (mut young, mut killed_young) = (0, 0);
        let mut left = Left(None);
        loop {
            let since = Instant::now();
            let ended = self.one_life(&mut left);
            // By SIGKILL: nobody's own fault.
            let killed = matches!(&ended, Ok(status) if status.state() == State::Killed(SIGKILL));
            let why = match ended {
                Ok(status) => format!("exit status {}", status.shell_code()),
                Err(why) => why,
            };
            if self.stopping.load(Ordering::SeqCst) {
                left.wait();
                return;
            }
            // A client whose queue is full finds out by his deadline.
            let _ = announce_death(&self.channel);
            (young, killed_young) = match (since.elapsed() > YOUNG, killed && killed_young < KILLED_YOUNG) {
                (true, _) => (0, 0),
                (false, true) => (young, killed_young + 1),
                (false, false) => (young + 1, killed_young),
            };
            if young >= ENOUGH {
                eprintln!("the server below, {}, does not stay up: {why}", self.spec);
                std::process::exit(1);
            }
        }
    }

    /// From the start of a server to its end. What it leaves behind takes the place of what the one before left, which ends.
    fn one_life(&self, left: &mut Left) -> Result<process::Status, String> {
        let (mut child, boot) = self.begin().map_err(|e| format!("it can't be started: {e}"))?;
        let boot = Arc::new(boot);
        let mut lives = lock(&self.lives);
        // Under the lock: who changes the pipes tells it either before or after this.
        for (number, pipe) in self.tap.pipes().unwrap_or_default() {
            let _ = boot.tap(number, pipe).deadline(ROOM).wait();
        }
        *lives = Some(boot.clone());
        drop(lives);
        let lent = self.grant().map_err(|e| format!("the right can't be lent: {e}")).and_then(|grant| {
            match boot.borrow(grant).deadline(PATIENCE).wait() {
                // How it ended says more.
                Err(CallError::Dead) | Ok(()) => self.until_its_end(&child),
                Err(e) => Err(e.to_string()),
            }
        });
        let ended = child.end().map_err(|e| e.to_string());
        *lock(&self.lives) = None;
        *left = Left(child.guard());
        lent.and(ended)
    }

    /// Waits until it has ended, or is to end.
    fn until_its_end(&self, child: &Child) -> Result<(), String> {
        let events = [(child.as_fd(), Until::Readable), (self.over.as_fd(), Until::Readable)];
        while !process::poll(&events, None).map_err(|e| e.to_string())?.contains(&true) {}
        Ok(())
    }

    fn begin(&self) -> io::Result<(Child, server::Client)> {
        let (ours, theirs) = seqpacket::pair()?;
        let stderr = process::duplicate(2)?;
        let (file, argv) = self.command(self.spec.split().0);
        let launch = Launch::server(&file, &argv, stderr, (theirs, BOOTSTRAP))?;
        // A program of the user's takes along what it has forked.
        let guarded = self.spec.split().0.is_program();
        let child = if guarded { launch.start_guarded()? } else { launch.start_alone()? };
        Ok((child, server::Client::from(Channel::from(ours))))
    }

    fn command(&self, layer: &Layer) -> (OsString, Vec<OsString>) {
        if layer.is_program() {
            return (OsString::from(&layer.kind), vec![OsString::from(&layer.kind)]);
        }
        let file = format!("/proc/self/fd/{}", self.servers.as_raw_fd());
        (file.into(), vec!["hurdle".into(), "server".into(), OsString::from(&self.interface)])
    }

    fn grant(&self) -> io::Result<Grant> {
        let (keeper, core) = seqpacket::pair()?;
        let stocked = self.keeper.clone();
        let options = ServeOptions { tap: self.tap.clone(), ..ServeOptions::default() };
        std::thread::Builder::new().spawn(move || {
            let _ = serve(&Channel::from(keeper), &store::service(stocked).into(), &options);
        })?;
        let mut attachments = self.attachments.clone();
        if self.spec.layers().len() > 1 {
            attachments.push((SERVERS.into(), Fd::from(self.servers.try_clone()?)));
        }
        let peer = Peer { pid: i32::try_from(std::process::id()).unwrap_or(0), uid: process::effective_ids().0 };
        let channel = Fd::from(self.channel.as_fd().try_clone_to_owned()?);
        Ok(Grant {
            interface: self.interface.clone(),
            spec: self.spec.clone(),
            env: self.env.clone(),
            attachments,
            store: lock(&self.keeper.stock).entries(),
            channels: vec![ClientChannel { peer, channel }],
            core: Fd::from(core),
        })
    }
}

/// The guard of a server that has ended, which stays as long as that one has left something behind: the worker of one below it
/// finishes the answer that it is giving. It ends with all that once the next server has ended, too.
struct Left(Option<i32>);

impl Left {
    /// Waits a moment for the guard's end. Whether it has ended, and was reaped.
    fn wait(&mut self) -> bool {
        let Some(guard) = self.0 else { return true };
        let ended = process::pidfd(guard)
            .and_then(|pidfd| process::poll(&[(pidfd.as_fd(), Until::Readable)], Some(Instant::now() + LAST)));
        if ended.is_ok_and(|ended| ended[0]) {
            self.0 = None;
            let _ = process::wait_end(guard);
        }
        self.0.is_none()
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        let Some(guard) = self.0 else { return };
        let _ = process::kill(guard, process::END);
        if !self.wait() {
            // It was stopped.
            let _ = process::kill(guard, SIGKILL);
            let _ = process::wait_end(guard);
        }
    }
}

impl Borrowed {
    /// The server that this one stands on, started. To be asked before attachments and store are taken, which it gets too.
    ///
    /// # Errors
    /// EINVAL: there is none.
    pub fn below(&mut self) -> Result<Below, Refused> {
        let (layer, below) = self.spec.split();
        let none = || Refused::new(EINVAL, format!("`{layer}` stands on another server: `{layer}+local`"));
        let below = below.ok_or_else(none)?;
        Below::start(self, below)
    }
}
