//! The net server's process: it borrows the trapped calls, answers them, and tells what it carries.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use hurdle_netstack::between;
use hurdle_proto::net::{self, net as interface};
use hurdle_proto::server::Stored;
use hurdle_server::Borrowed;
use hurdle_wire::{Context, Fd, Refused, Router};

use crate::Kind;
use crate::delay::Delay;
use crate::local::{Calls, Kept, Passer, Server, SocketInfo};
use crate::plan::{Kinds, Part, part};

/// Where what outlives a server is in the store, and which kinds of network there were.
const SOCKETS: &str = "sockets";

/// Serves until the right is given back.
pub fn serve() -> ExitCode {
    hurdle_server::run(start)
}

fn start(borrowed: &mut Borrowed) -> Result<Router, Refused> {
    let invalid = |why: String| Refused::new(hurdle_server::EINVAL, why);
    match part(&borrowed.spec).map_err(|e| invalid(e.to_string()))? {
        Part::Network(kind) => Ok(network(kind, borrowed)?.into()),
        Part::Delay(by) => Ok(between::stand(borrowed, Delay(by))?.into()),
        Part::Program => Err(invalid(format!("{} is served by a program of its own", borrowed.spec))),
    }
}

fn network(kind: Kind, borrowed: &mut Borrowed) -> Result<impl hurdle_wire::Service + use<>, Refused> {
    let calls = match borrowed.attachment("trap") {
        Ok(trap) => Calls::Own(trap),
        Err(_) => Calls::Above(borrowed.attachment("calls")?),
    };
    let ledger = borrowed.attachment("ledger")?;
    let network = borrowed.attachment("network")?;
    let stored = borrowed.stored(SOCKETS);
    let before = stored.as_ref().and_then(|stored| stored.bytes.first().copied()).unwrap_or(0);
    let kept = stored.and_then(|stored| {
        let fds = stored.fds.into_iter().map(|fd| fd.into_owned().ok()).collect::<Option<Vec<_>>>()?;
        let [user, network, memory] = fds.try_into().ok()?;
        Some(Kept { user, network, memory })
    });
    let kinds = Kinds::from(kind).after(before);
    let known = kept.is_some() && kinds.bits() == before;
    let server = Server::start(kinds, calls, ledger, network, kept, borrowed.tap())?;
    let passer = server.passer();
    if !known {
        let Kept { user, network, memory } = server.kept()?;
        let fds = [user, network, memory].map(Fd::from).into();
        borrowed.store().put(Stored { key: SOCKETS.into(), bytes: vec![kinds.bits()], fds }).wait()?;
    }
    // Programs wait for answers at any moment, also those that are parked.
    borrowed.stay();
    let server = Arc::new(Mutex::new(Some(server)));
    let returned = server.clone();
    borrowed.on_return(move || {
        let server = returned.lock().unwrap_or_else(PoisonError::into_inner).take();
        server.into_iter().for_each(Server::stop);
    });
    Ok(interface::service(Network { server, passer }))
}

fn describe(socket: &SocketInfo) -> net::Socket {
    let state = match (socket.listening, socket.connected) {
        (true, _) => "LISTEN",
        (_, true) => "ESTAB",
        _ => "UNCONN",
    };
    net::Socket {
        state: state.to_string(),
        local: socket.local.to_string(),
        peer: socket.remote.map(|peer| peer.to_string()).unwrap_or_default(),
    }
}

struct Network {
    server: Arc<Mutex<Option<Server>>>,
    passer: Option<Passer>,
}

impl Network {
    fn with<T>(&self, act: impl FnOnce(&Server) -> std::io::Result<T>) -> Result<T, Refused> {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let server =
            server.as_ref().ok_or_else(|| Refused::new(hurdle_server::EAGAIN, "this server has been replaced"))?;
        Ok(act(server)?)
    }
}

impl interface::Server for Network {
    async fn sockets(&self, _: &Context) -> Result<Vec<net::Socket>, Refused> {
        self.with(|server| Ok(server.sockets()?.iter().map(describe).collect()))
    }

    async fn counters(&self, _: &Context) -> Result<net::Counters, Refused> {
        self.with(|server| {
            let now = server.counters();
            Ok(net::Counters { traps: now.traps, connections: now.connections, parked: now.waiting })
        })
    }

    async fn trapped(&self, _: &Context, call: net::Trapped) -> Result<net::Outcome, Refused> {
        let alone = || Refused::new(hurdle_server::EINVAL, "this server receives its calls by itself");
        let passer = self.passer.as_ref().ok_or_else(alone)?;
        // Stopped meanwhile: the call is in the ledger, for the successor.
        Ok(passer.pass(call).await.unwrap_or(net::Outcome::Waits))
    }
}
