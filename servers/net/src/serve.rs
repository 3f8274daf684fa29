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
use crate::local::{Calls, Passer, Server, SocketInfo};
use crate::plan::{Kinds, Part, part};

/// Where the private namespaces of the sockets are in the store, and which kinds of network there were.
const NAMESPACES: &str = "namespaces";

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
    let kept = borrowed.stored(NAMESPACES);
    let namespaces = kept.as_ref().and_then(|kept| match kept.fds.as_slice() {
        [user, net] => Some((user.clone().into_owned().ok()?, net.clone().into_owned().ok()?)),
        _ => None,
    });
    let before = kept.as_ref().and_then(|kept| kept.bytes.first().copied()).unwrap_or(0);
    let kinds = Kinds::from(kind).after(before);
    let known = namespaces.is_some() && kinds.bits() == before;
    let server = Server::start(kinds, calls, ledger, network, namespaces, borrowed.tap())?;
    let passer = server.passer();
    if !known {
        let (user, net) = server.namespaces()?;
        let fds = vec![Fd::from(user), Fd::from(net)];
        borrowed.store().put(Stored { key: NAMESPACES.into(), bytes: vec![kinds.bits()], fds }).wait()?;
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
