//! Who was written against an older version of an interface is understood, as a server and as a client. The older versions are
//! recorded here, types and all: what is declared below is not to be changed.
#![allow(clippy::unwrap_used)]

use std::thread::JoinHandle;

use hurdle_proto::net::{self, Outcome, Trapped};
use hurdle_proto::server::{ClientChannel, Peer};
use hurdle_wire::{CallError, Channel, Context, End, Fd, Refused, Router, ServeOptions, serve};

/// As of the first versions: `net` without `trapped`, `server` without `give_back`.
#[allow(unreachable_pub)]
mod old {
    use hurdle_wire::Fd;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Socket {
        pub state: String,
        pub local: String,
        pub peer: String,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
    pub struct Counters {
        pub traps: u64,
        pub connections: u64,
        pub parked: u64,
    }

    hurdle_wire::interface! {
        /// Served by a net server.
        pub mod net = 5 {
            /// Its stream sockets.
            1 idempotent fn sockets() -> Vec<Socket>;
            /// What it has done.
            2 idempotent fn counters() -> Counters;
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Peer {
        pub pid: i32,
        pub uid: u32,
    }

    #[derive(Debug, Serialize, Deserialize)]
    pub struct ClientChannel {
        pub peer: Peer,
        pub channel: Fd,
    }

    hurdle_wire::interface! {
        /// Served by every server on its bootstrap channel.
        pub mod server = 2 {
            /// One more client.
            2 oneway fn connect(client: ClientChannel);
        }
    }
}

fn serving(router: impl Into<Router>) -> (Channel, JoinHandle<std::io::Result<End>>) {
    let (ours, theirs) = Channel::pair().unwrap();
    let router = router.into();
    (ours, std::thread::spawn(move || serve(&theirs, &router, &ServeOptions::default())))
}

struct OldNet;

impl old::net::Server for OldNet {
    async fn sockets(&self, _: &Context) -> Result<Vec<old::Socket>, Refused> {
        Ok(vec![old::Socket { state: "LISTEN".into(), local: "127.0.0.1:80".into(), peer: String::new() }])
    }

    async fn counters(&self, _: &Context) -> Result<old::Counters, Refused> {
        Ok(old::Counters { traps: 3, connections: 2, parked: 1 })
    }
}

#[test]
fn an_old_server_serves_a_client_of_today() {
    let (channel, _) = serving(old::net::service(OldNet));
    let client = net::net::Client::from(channel);
    assert_eq!(client.sockets().wait().unwrap()[0].local, "127.0.0.1:80");
    // What it has never heard of fails alone.
    let unknown = client.trapped(Trapped { slot: 0, id: 1 }).wait();
    assert!(matches!(unknown, Err(CallError::Misuse(_))), "{unknown:?}");
    assert_eq!(client.counters().wait().unwrap(), net::Counters { traps: 3, connections: 2, parked: 1 });
}

struct Net;

impl net::net::Server for Net {
    async fn sockets(&self, _: &Context) -> Result<Vec<net::Socket>, Refused> {
        Ok(vec![net::Socket { state: "ESTAB".into(), local: "a".into(), peer: "b".into() }])
    }

    async fn counters(&self, _: &Context) -> Result<net::Counters, Refused> {
        Ok(net::Counters { traps: 1, connections: 2, parked: 3 })
    }

    async fn trapped(&self, _: &Context, _: Trapped) -> Result<Outcome, Refused> {
        Ok(Outcome::Native)
    }
}

#[test]
fn a_server_of_today_serves_an_old_client() {
    let (channel, _) = serving(net::net::service(Net));
    let client = old::net::Client::from(channel);
    assert_eq!(client.sockets().wait().unwrap()[0].peer, "b");
    assert_eq!(client.counters().wait().unwrap(), old::Counters { traps: 1, connections: 2, parked: 3 });
}

struct OldServer(std::sync::mpsc::SyncSender<old::Peer>);

impl old::server::Server for OldServer {
    async fn connect(&self, _: &Context, client: old::ClientChannel) -> Result<(), Refused> {
        let channel = Channel::from(client.channel.into_owned().map_err(Refused::from)?);
        std::thread::spawn(move || serve(&channel, &old::net::service(OldNet).into(), &ServeOptions::default()));
        let _ = self.0.send(client.peer);
        Ok(())
    }
}

/// The core of today lends to a server that knows less than it does.
#[test]
fn an_old_server_hears_of_clients_and_is_asked_for_what_it_lacks() {
    let (sender, heard) = std::sync::mpsc::sync_channel(1);
    let (channel, server) = serving(old::server::service(OldServer(sender)));
    let boot = hurdle_proto::server::server::Client::from(channel);
    let (ours, theirs) = Channel::pair().unwrap();
    let client = ClientChannel { peer: Peer { pid: 7, uid: 8 }, channel: Fd::from(theirs) };
    boot.connect(client).wait().unwrap();
    assert_eq!(heard.recv().unwrap(), old::Peer { pid: 7, uid: 8 });
    assert!(matches!(boot.give_back().wait(), Err(CallError::Misuse(_))));
    assert_eq!(net::net::Client::from(ours).counters().wait().unwrap().traps, 3);
    drop(boot);
    assert_eq!(server.join().unwrap().unwrap(), End::Closed);
}
