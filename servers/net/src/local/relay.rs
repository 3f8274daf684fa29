//! The way in to listeners of former networks, under `share`.
//!
//! Who listened under `local` or `none` holds a socket that nobody in the parent's network can reach, though the network is that one now.
//! So this server listens there for him, at the same address; for each client it makes a connection to his listener, and carries the
//! bytes, two threads for each. Programs of the environment need none of this: they come to the listener itself (`carry`).
//!
//! Which listeners there are, the kernel says (sock_diag). Nobody tells when one is closed, so while there are any it is asked again and
//! again. What is open here ends with the server: the next one opens it anew, and what was being carried ends in a reset.

use super::Shared;
use super::connect::PATIENCE;
use super::state::{State, Trap};
use hurdle_netstack::address::{Endpoint, Family, Host};
use hurdle_netstack::name::{Bound, Meaning, Name};
use hurdle_sys::process::{self, Event, Inputs, Rest, Until, not_the_worker, run_apart};
use hurdle_sys::seccomp::Call;
use hurdle_sys::target::{Alarm, socket};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How often to look which listeners there are, while there are any.
const LOOK: Duration = Duration::from_millis(200);
/// How often after a listen(2), and for how long: one that goes on natively is done a moment after it was seen.
const OFTEN: Duration = Duration::from_millis(10);
const FRESH: Duration = Duration::from_millis(100);
/// How long it may take on a busy machine until that is done: it is looked for, less often.
const LATE: Duration = Duration::from_secs(30);
/// When to try again to reach a listener whose queue is full.
const AGAIN: Duration = Duration::from_millis(5);
/// So many clients of a listener may wait for that.
const CROWD: usize = 256;
/// So many are carried at a time; those beyond wait outside.
const CARRIED: usize = 1024;
/// How long an address may be taken before this is said. That of a server that has died is free in a moment.
const SAID: Duration = Duration::from_secs(1);
/// Bytes of the stack of a thread that carries.
const STACK: usize = 64 << 10;

/// What a program listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Door {
    at: Endpoint,
    v6_only: bool,
    reuse_port: bool,
    /// In the private namespace, not in the environment's own.
    local: bool,
}

/// What this server listens on. The lock is taken after that of the state, if both are.
#[derive(Debug)]
pub(super) struct Relay {
    /// A program may have begun to listen, or all ends.
    bell: Event,
    clients: Inputs,
    doors: Mutex<Doors>,
    /// Held once more by each connection that is carried.
    carried: Arc<()>,
}

#[derive(Debug, Default)]
struct Doors {
    open: HashMap<Door, TcpListener>,
    /// Since when each could not be opened, and whether that was said.
    shut: HashMap<Door, (Instant, bool)>,
    /// How often some were closed for a program.
    version: u64,
}

impl Relay {
    pub(super) fn new() -> io::Result<Relay> {
        Ok(Relay { bell: Event::new()?, clients: Inputs::new()?, doors: Mutex::default(), carried: Arc::default() })
    }

    /// Has it look.
    pub(super) fn ring(&self) {
        self.bell.ring();
    }

    /// Before a program binds: what it has closed a moment ago is not in its way.
    pub(super) fn make_way(&self, state: &mut State) {
        let mut doors = self.doors();
        if !doors.open.is_empty()
            && let Ok(wanted) = wanted(state)
        {
            doors.close(&wanted);
            doors.version += 1;
        }
    }

    fn doors(&self) -> MutexGuard<'_, Doors> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens and closes what programs have begun and ceased to listen on. Whether to look again by itself.
    fn look(&self, shared: &Shared) -> bool {
        let version = self.doors().version;
        let wanted = wanted(&mut shared.lock());
        let mut doors = self.doors();
        match wanted {
            Ok(wanted) if doors.version == version => {
                doors.close(&wanted);
                doors.open(&wanted, &self.clients);
                !(doors.open.is_empty() && doors.shut.is_empty())
            }
            // What can't be told stays as it is, and so does what was told too early.
            _ => true,
        }
    }

    /// Takes clients in, as many of each listener as may wait. Whether some are left outside.
    fn welcome(&self, waiting: &mut Vec<(TcpStream, Door)>) -> bool {
        let mut left = false;
        for (door, listener) in &self.doors().open {
            let own = waiting.iter().filter(|(_, of)| of == door).count();
            left |= own >= CROWD;
            for _ in own..CROWD {
                if Arc::strong_count(&self.carried) + waiting.len() > CARRIED {
                    return true;
                }
                let client = match listener.accept() {
                    Ok((client, _)) => client,
                    Err(error) => {
                        left |= error.kind() != io::ErrorKind::WouldBlock;
                        break;
                    }
                };
                // Until all has been carried its end is a reset, whatever happens to this process.
                let _ = client.set_nodelay(true);
                let _ = linger(&client, true);
                waiting.push((client, *door));
            }
        }
        left
    }
}

impl Doors {
    fn close(&mut self, wanted: &HashSet<Door>) {
        self.open.retain(|door, _| wanted.contains(door));
        self.shut.retain(|door, _| wanted.contains(door));
    }

    fn open(&mut self, wanted: &HashSet<Door>, clients: &Inputs) {
        for door in wanted.iter().filter(|door| !self.open.contains_key(door)).collect::<Vec<_>>() {
            match door.open().and_then(|listener| clients.add(&listener).map(|()| listener)) {
                Ok(listener) => {
                    self.shut.remove(door);
                    self.open.insert(*door, listener);
                }
                Err(error) => {
                    let (since, said) = self.shut.entry(*door).or_insert((Instant::now(), false));
                    if !*said && since.elapsed() >= SAID {
                        *said = true;
                        eprintln!("what listens on {} is not reached from outside: {error}", door.at);
                    }
                }
            }
        }
    }
}

/// Starts the thread that serves all of this.
pub(super) fn spawn(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    Builder::new().name("hurdle-relay".into()).stack_size(128 << 10).spawn(move || {
        // Its clients wake programs that wait in accept(2): as the worker, it is not to be killed in the midst of such an answer.
        let own = shared.clone();
        match run_apart(&Arc::default(), Box::new(move |rest| run(&own, rest))) {
            Ok(()) => {}
            Err(e) if e.raw_os_error().is_some() => run(&shared, &Rest::NONE),
            Err(e) => {
                eprintln!("{e}");
                std::process::exit(1);
            }
        }
    })
}

fn run(shared: &Arc<Shared>, rest: &Rest) {
    let Some(relay) = &shared.relay else { return };
    let alarm = Alarm::new(PATIENCE);
    rest.begin();
    // Clients of listeners whose queues are full.
    let mut waiting = Vec::new();
    let mut fresh = Instant::now();
    let mut look = Some(fresh);
    while !shared.stop.load(Ordering::SeqCst) {
        let now = Instant::now();
        if look.is_some_and(|at| at <= now) {
            let any = relay.look(shared);
            let later = any || now < fresh + LATE;
            look = (now < fresh).then_some(OFTEN).or(later.then_some(LOOK)).map(|pause| now + pause);
        }
        let left = relay.welcome(&mut waiting);
        introduce(&mut waiting, shared, relay, &alarm, rest);
        let retry = (left || !waiting.is_empty()).then(|| Instant::now() + AGAIN);
        let fds = [(relay.bell.as_fd(), Until::Readable), (relay.clients.as_fd(), Until::Readable)];
        let fds = if left { &fds[..1] } else { &fds[..] };
        let happened = process::poll(fds, look.into_iter().chain(retry).min());
        if happened.is_ok_and(|happened| happened[0]) {
            relay.bell.clear();
            let now = Instant::now();
            (fresh, look) = (now + FRESH, Some(now));
        }
    }
    relay.doors().open.clear();
}

/// Brings clients to the listeners that they have come for.
fn introduce(waiting: &mut Vec<(TcpStream, Door)>, shared: &Arc<Shared>, relay: &Relay, alarm: &Alarm, rest: &Rest) {
    let mut full = HashSet::new();
    waiting.retain(|(client, door)| {
        if full.contains(door) {
            return true;
        }
        match knock(shared, alarm, rest, client, door) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => full.insert(*door),
            Err(_) => false,
            Ok(inner) => {
                if let Ok(client) = client.try_clone() {
                    // Without a thread it is closed.
                    let carried = relay.carried.clone();
                    let carry = move || {
                        inner.carry(client);
                        drop(carried);
                    };
                    let thread = Builder::new().name("hurdle-relay".into()).stack_size(STACK);
                    let _ = not_the_worker(|| thread.spawn(carry));
                }
                false
            }
        }
    });
}

/// What programs listen on in the networks that the environment had.
fn wanted(state: &mut State) -> io::Result<HashSet<Door>> {
    let mut found = HashSet::new();
    for one in socket::list_listeners(state.pool.diagnosis())? {
        if let Some(Meaning::Bound(bound)) = Meaning::decode(one.name.bytes()) {
            found.insert(Door {
                at: bound.endpoint,
                v6_only: bound.v6_only,
                reuse_port: bound.reuse_port,
                local: true,
            });
        }
    }
    let own = state.carry.as_mut().map(super::carry::Carry::own_listeners).transpose()?;
    for one in own.into_iter().flatten() {
        let [a, b, c, d, ..] = one.address;
        let ip = match one.family {
            libc::AF_INET => IpAddr::from(Ipv4Addr::new(a, b, c, d)),
            _ => IpAddr::from(Ipv6Addr::from(one.address)),
        };
        // No address but these is the parent's, too.
        if let Some(host) = Host::of(ip) {
            let at = Endpoint { host, port: one.port };
            // Whether it shares its port is not told.
            found.insert(Door { at, v6_only: one.v6_only, reuse_port: false, local: false });
        }
    }
    Ok(found)
}

impl Door {
    fn open(&self) -> io::Result<TcpListener> {
        let (family, number) = match self.at.host {
            Host::Four(_) => (Family::V4, libc::AF_INET),
            _ => (Family::V6, libc::AF_INET6),
        };
        let fd = socket::make(number, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)?;
        // Connections of a server before may still be in TIME_WAIT.
        socket::set_option(fd.as_fd(), libc::SO_REUSEADDR, 1)?;
        socket::set_option(fd.as_fd(), libc::SO_REUSEPORT, i32::from(self.reuse_port))?;
        if family == Family::V6 {
            let only = i32::from(self.v6_only).to_ne_bytes();
            socket::set_option_bytes(fd.as_fd(), (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY), &only)?;
        }
        socket::bind_address(fd.as_fd(), self.at.sockaddr(family).bytes())?;
        socket::listen(fd.as_fd(), libc::SOMAXCONN)?;
        Ok(fd.into())
    }
}

/// SO_LINGER with time 0: the last close is a reset.
fn linger(socket: &TcpStream, on: bool) -> io::Result<()> {
    let value = [i32::from(on).to_ne_bytes(), [0; 4]].concat();
    socket::set_option_bytes(socket.as_fd(), (libc::SOL_SOCKET, libc::SO_LINGER), &value)
}

/// The end of a connection to a program's listener.
struct Inner {
    /// Whatever its family: what is called on it is the same for all streams.
    stream: TcpStream,
    /// It has yet to be connected here.
    to: Option<(Endpoint, Family)>,
}

/// An address as the sockets of an environment have it. Those have no word for most of IPv6.
fn endpoint(address: SocketAddr) -> Endpoint {
    let host = match address.ip().to_canonical() {
        IpAddr::V4(ip) => Host::Four(ip),
        IpAddr::V6(_) => Host::Loopback6,
    };
    Endpoint { host, port: address.port() }
}

/// A connection for a client to the listener that he has come for. `WouldBlock`: its queue is full.
fn knock(shared: &Arc<Shared>, alarm: &Alarm, rest: &Rest, client: &TcpStream, door: &Door) -> io::Result<Inner> {
    let (from, to) = (endpoint(client.peer_addr()?), endpoint(client.local_addr()?));
    let family = if matches!(to.host, Host::Four(_)) { Family::V4 } else { Family::V6 };
    let mut state = shared.lock();
    if !door.local {
        let carry = state.carry.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let stream = TcpStream::from(carry.own_socket(family)?);
        // The environment's own network has no addresses but those of loopback.
        let host = match to.host {
            Host::Four(ip) if !ip.is_loopback() => Host::LOOPBACK4,
            host => host,
        };
        return Ok(Inner { stream, to: Some((Endpoint { host, ..to }, family)) });
    }
    let (fd, listener) = state.knock(family, from, to)?;
    process::set_nonblocking(&fd, false)?;
    shared.connections.fetch_add(1, Ordering::Relaxed);
    // As after a program's connect(2).
    if state.accepting.contains_key(&listener) {
        state = rest.end(state);
        let nobody = Call::default();
        let trap = Trap { call: &nobody, listener: &shared.listener, alarm, recovered: false };
        state.serve_accepts(&trap, listener, shared);
        drop(state);
        rest.begin();
    }
    Ok(Inner { stream: fd.into(), to: None })
}

impl State {
    /// A socket of ours that is called as the client outside, connected to a listener of that endpoint, whose name is returned.
    fn knock(&mut self, family: Family, from: Endpoint, to: Endpoint) -> io::Result<(OwnedFd, Name)> {
        let fd = self.pool.socket(family, true)?;
        let mut local = from;
        // Somebody inside may be called the same.
        while let Err(error) = socket::bind(fd.as_fd(), Meaning::Connection { local, remote: to }.encode().bytes()) {
            if error.kind() != io::ErrorKind::AddrInUse {
                return Err(error);
            }
            local.port = self.ports.ephemeral(false);
        }
        let mut found: Vec<Bound> = Vec::new();
        self.ports.listeners(to, &mut found);
        let mut result = Err(io::ErrorKind::ConnectionRefused.into());
        for bound in found {
            result = socket::connect(fd.as_fd(), bound.name().bytes()).map(|()| bound.name());
            if result.is_ok() {
                if let Some((queued, _)) = self.queues.get_mut(&to.port) {
                    *queued = queued.saturating_add(1);
                }
                break;
            }
        }
        result.map(|name| (fd, name))
    }
}

impl Inner {
    /// Carries all bytes both ways. Each direction ends by itself; an error ends both, and the client hears of a reset.
    fn carry(self, client: TcpStream) {
        let Inner { stream, to } = self;
        if let Some((to, family)) = to
            && socket::connect_address(stream.as_fd(), to.sockaddr(family).bytes()).is_err()
        {
            return;
        }
        let _ = stream.set_nodelay(true);
        let carried = Arc::new(Carried { outer: client, inner: stream, sent: false.into(), broken: false.into() });
        let other = carried.clone();
        match Builder::new().name("hurdle-relay".into()).stack_size(STACK).spawn(move || other.back()) {
            Ok(back) => {
                carried.there();
                let _ = back.join();
            }
            Err(_) => return,
        }
        if !carried.broken.load(Ordering::SeqCst) {
            let _ = linger(&carried.outer, false);
        }
    }
}

/// A connection that is being carried.
struct Carried {
    outer: TcpStream,
    inner: TcpStream,
    /// All that the client sent has been.
    sent: AtomicBool,
    /// It can't come to an ordinary end.
    broken: AtomicBool,
}

impl Carried {
    fn there(&self) {
        let copied = io::copy(&mut &self.outer, &mut &self.inner).is_ok();
        // Before the program knows, and ends in turn.
        self.sent.store(copied, Ordering::SeqCst);
        if !copied || self.inner.shutdown(Shutdown::Write).is_err() {
            self.give_up();
        }
    }

    fn back(&self) {
        let copied = io::copy(&mut &self.inner, &mut &self.outer).is_ok();
        // A reset is told to one of both directions, and looks like an end to the other.
        let reset = !self.sent.load(Ordering::SeqCst) && socket::is_closed(self.inner.as_fd());
        if !copied || reset || self.broken.load(Ordering::SeqCst) || self.outer.shutdown(Shutdown::Write).is_err() {
            self.give_up();
        }
    }

    /// Ends the other direction too, also in the midst of a write. The client hears of a reset.
    fn give_up(&self) {
        self.broken.store(true, Ordering::SeqCst);
        // AF_UNSPEC: tcp(7) forgets the connection, and tells the other end.
        let _ = (self.inner.shutdown(Shutdown::Both), socket::connect_address(self.outer.as_fd(), &[0; 16]));
    }
}
