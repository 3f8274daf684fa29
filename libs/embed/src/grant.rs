//! An interface of an environment that this process serves: a server that was never started, since it is here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hurdle_proto::core::core;
use hurdle_proto::server::{ClientChannel, server};
use hurdle_wire::{Channel, Context, Fd, Peer, Refused, Router, ServeOptions, serve};

use crate::Error;

/// The channels of its clients.
type Clients = Arc<Mutex<Vec<Channel>>>;

/// What serves it, until this is dropped: then its clients' channels end.
#[derive(Debug)]
pub(crate) struct Granted(Clients);

impl Drop for Granted {
    fn drop(&mut self) {
        lock(&self.0).drain(..).for_each(|client| client.shutdown());
    }
}

fn lock(clients: &Clients) -> MutexGuard<'_, Vec<Channel>> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes each client as the core announces him, a thread each.
struct Host {
    router: Router,
    clients: Clients,
}

impl server::Server for Host {
    async fn connect(&self, _: &Context, client: ClientChannel) -> Result<(), Refused> {
        let channel = Channel::from(client.channel.into_owned()?);
        let peer = Peer { pid: client.peer.pid.unsigned_abs(), uid: client.peer.uid, ..Peer::default() };
        let options = ServeOptions { peer, ..ServeOptions::default() };
        let router = self.router.clone();
        let mut clients = lock(&self.clients);
        clients.retain(|client| !client.hung_up());
        clients.push(channel.clone());
        std::thread::Builder::new().spawn(move || serve(&channel, &router, &options))?;
        Ok(())
    }
}

pub(crate) fn start(core: &core::Client, interface: &str, router: Router) -> Result<Granted, Error> {
    let (ours, theirs) = Channel::pair()?;
    let clients = Clients::from(Mutex::new(vec![ours.clone()]));
    let host = Host { router, clients: clients.clone() };
    let granted = Granted(clients);
    std::thread::Builder::new().spawn(move || serve(&ours, &server::service(host).into(), &ServeOptions::default()))?;
    core.serve(interface.into(), Fd::from(theirs.into_owned()?)).wait()?;
    Ok(granted)
}
