//! The control socket of a core, and how the user's tools find it.
//!
//! It is an abstract AF_UNIX name, `hurdle/UID/NAME`: nothing is left of it when the core ends, however it ends. Names of this
//! kind are open to everyone in the network namespace, so each side checks the other's user, and the core turns away who comes
//! out of an environment (another pid namespace).

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hurdle_proto::core::{DOOR, EnvInfo, Swapped, core, door};
use hurdle_proto::init::{Program, init};
use hurdle_proto::server::{Peer, Stored, store};
use hurdle_proto::spec::Spec;
use hurdle_sys::{abstract_socket, process, seqpacket};
use hurdle_wire::tap::Tap;
use hurdle_wire::{self as wire, Channel, Context, Fd, Refused, Router, ServeOptions, Stopper};
use tokio::sync::oneshot;

use crate::door::Door;
use crate::env::{Ask, Mailbox};
use crate::porter::Slot;
use crate::{nest, os};

fn prefix() -> String {
    format!("hurdle/{}/", process::effective_ids().0)
}

/// The names of the caller's environments that run, in order.
pub fn names() -> io::Result<Vec<String>> {
    let prefix = prefix();
    Ok(abstract_socket::names(&prefix)?.iter().map(|name| name[prefix.len()..].to_string()).collect())
}

/// A client of the core of the caller's environment `name`. ECONNREFUSED: no such environment; EPERM: the socket of this name
/// is another user's.
pub fn connect(name: &str) -> io::Result<core::Client> {
    let socket = abstract_socket::connect(&(prefix() + name))?;
    let (pid, uid) = abstract_socket::peer(&socket)?;
    // A program inside an environment that shares the network can take such a name, too, and is not to be trusted with
    // what a core is told.
    if uid != process::effective_ids().0 || !same_place(&socket, pid, "self").unwrap_or(false) {
        return Err(io::Error::from_raw_os_error(os::EPERM));
    }
    Ok(core::Client::from(Channel::from(socket)))
}

/// A client of the door of the environment that the caller is in, if its calls are trapped.
pub fn knock() -> Option<door::Client> {
    // Who is below no filter needs none.
    if !process::is_filtered() {
        return None;
    }
    let socket = abstract_socket::connect(DOOR).ok()?;
    let (pid, uid) = abstract_socket::peer(&socket).ok()?;
    // Its listener is pid 1 of the caller's environment, or of one around that, which is not seen from here: then it is the
    // caller's own user, and no id that has no meaning here. Else it could be anybody's who shares the network.
    let own = pid == 1 || (pid == 0 && uid == process::effective_ids().0 && uid != NOBODY);
    own.then(|| door::Client::from(Channel::from(socket)))
}

/// What an id without a mapping shows as (user_namespaces(7)).
const NOBODY: u32 = 65534;

/// Whether an environment may have this name.
pub fn legal(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(legal)
}

/// The core itself, as a caller.
fn own() -> Peer {
    Peer { pid: i32::try_from(std::process::id()).unwrap_or(0), uid: process::effective_ids().0 }
}

pub(crate) fn listen(name: &str) -> io::Result<OwnedFd> {
    abstract_socket::listen(&(prefix() + name))
}

/// Whether the core may listen to this caller: the same user or root, from outside every environment.
pub(crate) fn admit(socket: &OwnedFd) -> io::Result<Option<Peer>> {
    let (pid, uid) = abstract_socket::peer(socket)?;
    let own = process::effective_ids().0;
    Ok(((uid == own || uid == 0) && same_place(socket, pid, "self")?).then_some(Peer { pid, uid }))
}

/// Whether the process at the other end of `socket`, `pid`, is in the pid namespace of `as_whom`: with `self`, outside every
/// environment.
pub(crate) fn same_place(socket: &OwnedFd, pid: i32, as_whom: &str) -> io::Result<bool> {
    let held = match abstract_socket::peer_pidfd(socket) {
        Err(e) if e.raw_os_error() == Some(os::ENOPROTOOPT) => process::pidfd(pid)?,
        held => held?,
    };
    let same =
        std::fs::read_link(format!("/proc/{pid}/ns/pid"))? == std::fs::read_link(format!("/proc/{as_whom}/ns/pid"))?;
    // Alive after the look: so the number was its own, nobody else's.
    Ok(process::pid_of(held)? == pid && same)
}

/// The threads that serve callers.
#[derive(Clone)]
pub(crate) struct Callers {
    stopper: Stopper,
    tap: Tap,
    threads: Arc<AtomicUsize>,
    /// The processes that were started for them. Locked from before the start of one.
    pub(crate) started: Arc<Mutex<HashSet<i32>>>,
    /// Who may start them.
    pub(crate) porter: Slot,
}

/// How many callers are served at a time; one more is turned away.
const CALLERS: usize = 256;
/// The same of programs inside, each of which may have started one.
const GUESTS: usize = 32;

impl Callers {
    pub(crate) fn new(tap: &Tap) -> Callers {
        Callers {
            stopper: Stopper::new(),
            tap: tap.clone(),
            threads: Arc::default(),
            started: Arc::default(),
            porter: Slot::default(),
        }
    }

    /// Starts the thread of one caller. EAGAIN: there are too many.
    pub(crate) fn serve(
        &self,
        socket: OwnedFd,
        peer: Peer,
        mailbox: Mailbox,
        init: Arc<init::Client>,
    ) -> io::Result<()> {
        let control = Control { peer, mailbox: mailbox.clone(), init, callers: self.clone() };
        self.start(CALLERS, socket, peer, mailbox, move || core::service(control).into(), || ())
    }

    /// The same for the core around this one, which holds up no end: it has the channel as long as it lives.
    pub(crate) fn serve_above(&self, socket: OwnedFd, mailbox: Mailbox, init: Arc<init::Client>) -> io::Result<()> {
        let control = Control { peer: own(), mailbox: mailbox.clone(), init, callers: self.clone() };
        Callers::new(&self.tap).start(1, socket, own(), mailbox, move || core::service(control).into(), || ())
    }

    /// The same for who holds the environment: it ends with his channel.
    pub(crate) fn serve_owner(&self, socket: OwnedFd, mailbox: Mailbox, init: Arc<init::Client>) -> io::Result<()> {
        let (pid, uid) = abstract_socket::peer(&socket)?;
        let peer = Peer { pid, uid };
        let control = Control { peer, mailbox: mailbox.clone(), init, callers: self.clone() };
        let end = mailbox.clone();
        self.start(
            CALLERS,
            socket,
            peer,
            mailbox,
            move || core::service(control).into(),
            move || {
                end.post(Ask::End(oneshot::channel().0));
            },
        )
    }

    /// Starts the thread of one program inside, which is below so many seccomp filters. EAGAIN: there are too many.
    pub(crate) fn serve_door(&self, socket: OwnedFd, filters: u32, mailbox: Mailbox) -> io::Result<()> {
        let (pid, uid) = abstract_socket::peer(&socket)?;
        let peer = abstract_socket::peer_pidfd(&socket)?;
        let (started, porter, mail) = (self.started.clone(), self.porter.clone(), mailbox.clone());
        let router = move || door::service(Door::new(peer, filters, started, porter, mail)).into();
        self.start(GUESTS, socket, Peer { pid, uid }, mailbox, router, || ())
    }

    fn start(
        &self,
        most: usize,
        socket: OwnedFd,
        peer: Peer,
        mailbox: Mailbox,
        router: impl FnOnce() -> Router + Send + 'static,
        after: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        if self.threads.load(Ordering::SeqCst) >= most {
            return Err(io::Error::from_raw_os_error(os::EAGAIN));
        }
        let (stopper, tap) = (self.stopper.clone(), self.tap.clone());
        let options = ServeOptions { peer: caller(peer), stopper, tap, ..ServeOptions::default() };
        let counted = Counted { threads: self.threads.clone(), mailbox };
        self.threads.fetch_add(1, Ordering::SeqCst);
        // Where no thread can be had the closure is dropped, and the count with it.
        std::thread::Builder::new().spawn(move || {
            let _counted = counted;
            let _ = hurdle_wire::serve(&Channel::from(socket), &router(), &options);
            after();
        })?;
        Ok(())
    }

    /// Lets all go once what they have asked is answered.
    pub(crate) fn stop(&self) {
        self.stopper.stop();
    }

    /// Whether all have gone. The mailbox's bell rings for each.
    pub(crate) fn gone(&self) -> bool {
        self.threads.load(Ordering::SeqCst) == 0
    }
}

/// One of the threads, while it is.
struct Counted {
    threads: Arc<AtomicUsize>,
    mailbox: Mailbox,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.threads.fetch_sub(1, Ordering::SeqCst);
        self.mailbox.ring();
    }
}

/// A peer as the wire has it.
fn caller(peer: Peer) -> wire::Peer {
    wire::Peer { pid: peer.pid.cast_unsigned(), uid: peer.uid, ..wire::Peer::default() }
}

/// Starts the thread through which the borrower of `interface`, process `pid`, reaches its store.
pub(crate) fn serve_store(socket: OwnedFd, interface: &str, pid: i32, mailbox: Mailbox, tap: &Tap) -> io::Result<()> {
    let interface = interface.to_string();
    let peer = caller(Peer { pid, uid: process::effective_ids().0 });
    let options = ServeOptions { peer, tap: tap.clone(), ..ServeOptions::default() };
    std::thread::Builder::new().spawn(move || {
        let service = store::service(Arc::new(Keeper { interface, mailbox }));
        let _ = hurdle_wire::serve(&Channel::from(socket), &service.into(), &options);
    })?;
    Ok(())
}

struct Control {
    peer: Peer,
    mailbox: Mailbox,
    init: Arc<init::Client>,
    callers: Callers,
}

/// Asks the loop, and waits for its answer.
async fn ask<T>(mailbox: &Mailbox, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Refused> {
    let (answer, answered) = oneshot::channel();
    mailbox.post(ask(answer));
    answered.await.map_err(|_| Refused::new(os::ESRCH, "the environment is ending"))
}

impl Control {
    async fn inside(&self) -> Result<Vec<(String, core::Client)>, Refused> {
        let (below, init) = ask(&self.mailbox, Ask::Below).await?;
        Ok(nest::named(below, init).await)
    }
}

impl core::Server for Control {
    async fn info(&self, _: &Context) -> Result<EnvInfo, Refused> {
        ask(&self.mailbox, Ask::Info).await
    }

    async fn lookup(&self, _: &Context, interface: String) -> Result<Fd, Refused> {
        let peer = self.peer;
        ask(&self.mailbox, |answer| Ask::Lookup { interface, peer, answer }).await?.map(Fd::from)
    }

    async fn swap(&self, _: &Context, interface: String, spec: Spec) -> Result<Swapped, Refused> {
        ask(&self.mailbox, |answer| Ask::Swap { interface, spec, answer }).await?
    }

    async fn spawn(&self, _: &Context, program: Program) -> Result<i32, Refused> {
        Ok(self.init.spawn(program).await?)
    }

    async fn trace(&self, _: &Context, interfaces: Vec<String>) -> Result<Fd, Refused> {
        ask(&self.mailbox, |answer| Ask::Trace { interfaces, answer }).await?.map(Fd::from)
    }

    async fn wait(&self, _: &Context) -> Result<i32, Refused> {
        ask(&self.mailbox, Ask::Wait).await
    }

    async fn kill(&self, _: &Context, signal: i32) -> Result<(), Refused> {
        if signal == 0 {
            return ask(&self.mailbox, Ask::End).await;
        }
        Ok(self.init.signal(0, signal).await?)
    }

    async fn serve(&self, _: &Context, interface: String, server: Fd) -> Result<(), Refused> {
        let (server, peer) = (server.into_owned()?, self.peer);
        ask(&self.mailbox, |answer| Ask::Serve { interface, server, peer, answer }).await?
    }

    async fn below(&self, _: &Context) -> Result<Vec<String>, Refused> {
        Ok(self.inside().await?.into_iter().map(|(name, _)| name).collect())
    }

    async fn reach(&self, context: &Context, name: String) -> Result<Fd, Refused> {
        let (name, rest) = name.split_once('/').unwrap_or((&name, ""));
        if name.is_empty() {
            let (ours, theirs) = seqpacket::pair()?;
            self.callers.serve(ours, self.peer, self.mailbox.clone(), self.init.clone())?;
            return Ok(Fd::from(theirs));
        }
        let below = self.inside().await?;
        let found = below.iter().find(|(other, _)| other == name);
        let (_, core) = found.ok_or_else(|| {
            let names: Vec<&str> = below.iter().map(|(name, _)| name.as_str()).collect();
            Refused::new(os::ENOENT, format!("no environment {name:?} inside; there is {}", names.join(", ")))
        })?;
        Ok(core.reach(rest.to_string()).within(context).await?)
    }
}

struct Keeper {
    interface: String,
    mailbox: Mailbox,
}

impl store::Server for Keeper {
    async fn put(&self, _: &Context, entry: Stored) -> Result<(), Refused> {
        let interface = self.interface.clone();
        ask(&self.mailbox, |answer| Ask::Put { interface, entry, answer }).await?
    }

    async fn remove(&self, _: &Context, key: String) -> Result<(), Refused> {
        let interface = self.interface.clone();
        ask(&self.mailbox, |answer| Ask::Remove { interface, key, answer }).await
    }
}
