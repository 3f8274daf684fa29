//! The control socket of a core, and how the user's tools find it.
//!
//! It is an abstract AF_UNIX name, `hurdle/UID/NAME`: nothing is left of it when the core ends, however it ends. Names of this
//! kind are open to everyone in the network namespace, so each side checks the other's user, and the core turns away who comes
//! out of an environment (another pid namespace).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hurdle_proto::core::{EnvInfo, Swapped, core};
use hurdle_proto::init::{Program, init};
use hurdle_proto::server::{Peer, Stored, store};
use hurdle_proto::spec::Spec;
use hurdle_sys::{abstract_socket, process};
use hurdle_wire::{Channel, Context, Fd, Refused, ServeOptions};
use tokio::sync::oneshot;

use crate::env::{Ask, Mailbox};
use crate::os;

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
    if abstract_socket::peer(&socket)?.1 != process::effective_ids().0 {
        return Err(io::Error::from_raw_os_error(os::EPERM));
    }
    Ok(core::Client::from(Channel::from(socket)))
}

pub(crate) fn listen(name: &str) -> io::Result<OwnedFd> {
    abstract_socket::listen(&(prefix() + name))
}

/// Whether the core may listen to this caller: the same user or root, from outside every environment.
pub(crate) fn admit(socket: &OwnedFd) -> io::Result<Option<Peer>> {
    let (pid, uid) = abstract_socket::peer(socket)?;
    let own = process::effective_ids().0;
    let same_place = std::fs::read_link(format!("/proc/{pid}/ns/pid"))? == std::fs::read_link("/proc/self/ns/pid")?;
    Ok(((uid == own || uid == 0) && same_place).then_some(Peer { pid, uid }))
}

/// Starts the thread of one caller.
pub(crate) fn serve(socket: OwnedFd, peer: Peer, mailbox: Mailbox, init: Arc<init::Client>) {
    std::thread::spawn(move || {
        let service = core::service(Arc::new(Control { peer, mailbox, init }));
        let _ = hurdle_wire::serve(&Channel::from(socket), &service.into(), &ServeOptions::default());
    });
}

/// Starts the thread through which a borrower of `interface` reaches its store.
pub(crate) fn serve_store(socket: OwnedFd, interface: &str, mailbox: Mailbox) {
    let interface = interface.to_string();
    std::thread::spawn(move || {
        let service = store::service(Arc::new(Keeper { interface, mailbox }));
        let _ = hurdle_wire::serve(&Channel::from(socket), &service.into(), &ServeOptions::default());
    });
}

struct Control {
    peer: Peer,
    mailbox: Mailbox,
    init: Arc<init::Client>,
}

/// Asks the loop, and waits for its answer.
async fn ask<T>(mailbox: &Mailbox, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Refused> {
    let (answer, answered) = oneshot::channel();
    mailbox.post(ask(answer));
    answered.await.map_err(|_| Refused::new(os::ESRCH, "the environment is ending"))
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

    async fn wait(&self, _: &Context) -> Result<i32, Refused> {
        ask(&self.mailbox, Ask::Wait).await
    }

    async fn kill(&self, _: &Context, signal: i32) -> Result<(), Refused> {
        if signal == 0 {
            return ask(&self.mailbox, Ask::End).await;
        }
        Ok(self.init.signal(0, signal).await?)
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
