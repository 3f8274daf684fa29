//! Listeners of the networks that the environment had before.
//!
//! A swap leaves a listener where it is: its program holds it, and goes on accepting. It is the connecting socket that comes to it. At
//! connect(2) the present network is asked first, then the former ones; where the listener is, there a new socket is made with the options
//! of the caller's, and put in its place ([`hurdle_sys::target::Held`]). Then the call goes its way as if it had always been one of that
//! network. bind(2) and listen(2) bring a socket of a former network into the present one, and no address is given twice.
//!
//! Nothing of this is asked of an environment that has had one network only.
//!
//! Which listeners there are, the kernel says (sock_diag). In the parent's network only those of the environment's own programs count: their
//! cookies are noted at listen(2), and searched once by each new server.

use super::bind::sockaddr;
use super::pool::{Pool, Sockets};
use super::state::{Answer, Errno, Handled, State, Trap};
use crate::plan::{Kind, Kinds};
use hurdle_netstack::address::{Endpoint, Family, Host, LONGEST, Written, parse};
use hurdle_netstack::mark::{Mark, REUSE_PORT, V6_ONLY};
use hurdle_netstack::name::{Bound, Meaning};
use hurdle_netstack::ports::{EPHEMERAL, overlaps};
use hurdle_sys::target::socket::{self, Listening};
use hurdle_sys::target::{Begun, Network, Tasks};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The networks that an environment has and had.
#[derive(Debug)]
pub(super) struct Carry {
    kinds: Kinds,
    own: Option<Own>,
    parent: Option<Parent>,
}

/// TCP of the environment's own network namespace.
#[derive(Debug)]
enum Own {
    /// What makes its sockets is on its way. Nobody waits for it before the first call that needs it.
    Begun(Option<Begun>),
    /// It is there.
    Ready { pool: Pool, cookie: u64 },
}

impl Own {
    fn ready(&mut self) -> io::Result<(&mut Pool, u64)> {
        if let Own::Begun(begun) = self {
            let begun = begun.take().ok_or(io::ErrorKind::NotConnected)?;
            let pool = Pool::new(begun)?;
            let cookie = socket::namespace(pool.diagnosis())?;
            *self = Own::Ready { pool, cookie };
        }
        match self {
            Own::Ready { pool, cookie } => Ok((pool, *cookie)),
            Own::Begun(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// TCP of the parent's, where this server is.
#[derive(Debug)]
struct Parent {
    diagnosis: OwnedFd,
    cookie: u64,
    ours: HashSet<u64>,
    searched: bool,
}

/// A stream socket of the caller's.
struct Stream {
    fd: OwnedFd,
    kind: Kind,
    family: Family,
    mark: Option<Mark>,
}

impl Carry {
    /// Starts what makes TCP sockets of the environment's own network, if there has been that and another one. To be called while the
    /// process has one thread.
    pub(super) fn begin(kinds: Kinds, network: &Network) -> io::Result<Option<Begun>> {
        if kinds.is_one() || !kinds.had(Kind::None) {
            return Ok(None);
        }
        Pool::begin(Some(network.namespaces()?), Sockets::Tcp).map(Some)
    }

    /// `None` where there has been one network only.
    pub(super) fn new(kinds: Kinds, begun: Option<Begun>) -> io::Result<Option<Carry>> {
        if kinds.is_one() {
            return Ok(None);
        }
        let own = begun.map(|begun| Own::Begun(Some(begun)));
        let parent = if kinds.had(Kind::Share) {
            let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
            let diagnosis = socket::make(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG)?;
            let cookie = socket::namespace(diagnosis.as_fd())?;
            Some(Parent { diagnosis, cookie, ours: HashSet::new(), searched: false })
        } else {
            None
        };
        Ok(Some(Carry { kinds, own, parent }))
    }

    /// Whether there will never be another socket of the environment's own network.
    pub(super) fn is_broken(&self) -> bool {
        matches!(&self.own, Some(Own::Ready { pool, .. }) if pool.is_broken())
    }

    /// The TCP listeners of the environment's own network, if it had that.
    pub(super) fn own_listeners(&mut self) -> io::Result<Vec<Listening>> {
        self.own.as_mut().map_or(Ok(Vec::new()), |own| socket::listeners(own.ready()?.0.diagnosis()))
    }

    /// A fresh TCP socket of that network, which waits.
    pub(super) fn own_socket(&mut self, family: Family) -> io::Result<OwnedFd> {
        self.own.as_mut().ok_or(io::ErrorKind::NotConnected)?.ready()?.0.socket(family, false)
    }

    /// The caller's socket, if it is a stream of a network that the environment has or had.
    fn stream(&mut self, state: &mut State, trap: &Trap<'_>) -> Result<Option<Stream>, Errno> {
        let Ok(fd) = state.tasks.fd(trap.call.tid, trap.int(0)) else { return Ok(None) };
        trap.still_waiting()?;
        if let Some(mark) = state.mark(fd.as_fd()) {
            return Ok(Some(Stream { fd, kind: Kind::Local, family: mark.family(), mark: Some(mark) }));
        }
        let family = match socket::tcp_family(fd.as_fd()) {
            Some(libc::AF_INET) => Family::V4,
            Some(_) => Family::V6,
            None => return Ok(None),
        };
        let namespace = socket::namespace(fd.as_fd())?;
        let kind = if self.own.as_mut().is_some_and(|own| own.ready().is_ok_and(|(_, cookie)| cookie == namespace)) {
            Kind::None
        } else if self.parent.as_ref().is_some_and(|parent| parent.cookie == namespace) {
            Kind::Share
        } else {
            return Ok(None);
        };
        Ok(Some(Stream { fd, kind, family, mark: None }))
    }

    /// The network that has a listener of the environment's for this endpoint, the present one first.
    fn network_of(&mut self, state: &mut State, to: Endpoint) -> Option<Kind> {
        let kinds = self.kinds;
        std::iter::once(kinds.now).chain(kinds.former()).find(|kind| self.listens(state, *kind, to).unwrap_or(false))
    }

    fn listens(&mut self, state: &mut State, kind: Kind, to: Endpoint) -> io::Result<bool> {
        let address = to.host.octets();
        match kind {
            Kind::Local => {
                let mut found = std::mem::take(&mut state.found);
                state.ports.listeners(to, &mut found);
                let listens = found.iter().any(|bound| State::alive(&mut state.pool, bound));
                state.found = found;
                Ok(listens)
            }
            Kind::None => {
                let Some(own) = &mut self.own else { return Ok(false) };
                Ok(socket::find_listener(own.ready()?.0.diagnosis(), &address, to.port)?.is_some())
            }
            Kind::Share => {
                let Some(parent) = &mut self.parent else { return Ok(false) };
                let found = socket::find_listener(parent.diagnosis.as_fd(), &address, to.port)?;
                Ok(found.is_some_and(|listener| parent.is_ours(&mut state.tasks, &state.network, listener.cookie)))
            }
        }
    }

    /// Whether a listener of a former network has the address already.
    fn conflicts(&mut self, state: &mut State, new: &Bound) -> io::Result<bool> {
        let former = self.kinds.former();
        for kind in former {
            let found = match kind {
                Kind::Local => {
                    let pool = &mut state.pool;
                    state.ports.conflict(new, true, |old| State::alive(pool, old))
                }
                // Whether they share their ports is not told.
                _ if new.reuse_port => false,
                Kind::None => match &mut self.own {
                    Some(own) => socket::listeners(own.ready()?.0.diagnosis())?.iter().any(|one| in_the_way(new, one)),
                    None => false,
                },
                Kind::Share => match &mut self.parent {
                    Some(parent) => socket::listeners(parent.diagnosis.as_fd())?.iter().any(|one| {
                        in_the_way(new, one) && parent.is_ours(&mut state.tasks, &state.network, one.cookie)
                    }),
                    None => false,
                },
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A new socket of network `to` with the options of the caller's, bound where that one is.
    fn fresh(&mut self, state: &mut State, old: &Stream, to: Kind) -> Result<OwnedFd, Errno> {
        let nonblocking = socket::is_nonblocking(old.fd.as_fd())?;
        let new = match to {
            Kind::Local => state.pool.socket(old.family, nonblocking)?,
            Kind::None => {
                let own = self.own.as_mut().ok_or(Errno(libc::ENETDOWN))?;
                own.ready()?.0.socket(old.family, nonblocking)?
            }
            Kind::Share => {
                let family = if old.family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
                let flags = libc::SOCK_CLOEXEC | if nonblocking { libc::SOCK_NONBLOCK } else { 0 };
                socket::make(family, libc::SOCK_STREAM | flags, 0)?
            }
        };
        let mark = (to == Kind::Local).then(|| Mark::new(old.family));
        let mark = state.copy_options(old.fd.as_fd(), old.mark, new.as_fd(), mark, old.family)?;
        if let Some(mut at) = old.bound()? {
            let port = u16::from_be_bytes([at[2], at[3]]);
            let mut bound = bind_alike(state, new.as_fd(), mark, old.family, &at);
            if bound == Err(Errno(libc::EADDRINUSE)) && (EPHEMERAL.0..=EPHEMERAL.1).contains(&port) {
                // Its program most likely got this one for 0.
                at[2..4].fill(0);
                bound = bind_alike(state, new.as_fd(), mark, old.family, &at);
            }
            bound?;
        }
        Ok(new)
    }

    /// Before connect(2). `None`: the call is to go on as any other.
    fn connect(&mut self, state: &mut State, trap: &Trap<'_>) -> Result<Option<Answer>, Errno> {
        let (mut bytes, mut length) = ([0; LONGEST], 0);
        if sockaddr(trap, &mut bytes, &mut length).is_err() {
            return Ok(None);
        }
        let Some(stream) = self.stream(state, trap)? else { return Ok(None) };
        // A socket of the parent's network is handed only to who has that network, unless it is connected.
        let lent = |to: Kind| to == Kind::Share && self.kinds.now != Kind::Share;
        if !stream.is_idle()? {
            return Ok((trap.recovered && lent(stream.kind)).then_some(Answer::Value(0)));
        }
        let network = match parse(stream.family, &bytes[..length]) {
            Written::Local(to) => self.network_of(state, Endpoint { host: to.host.concrete(), ..to }),
            Written::Elsewhere => None,
            _ => return Ok(None),
        };
        let network = network.unwrap_or(self.kinds.now);
        if network == Kind::Share && self.kinds.now != Kind::Share {
            let new = self.fresh(state, &stream, network)?;
            let connected = trap.alarm.during(|| socket::connect_address(new.as_fd(), &bytes[..length]));
            return match connected.map_err(Errno::from) {
                Ok(()) => state.put(trap, stream.fd.as_fd(), new.as_fd()).map(|()| Some(Answer::Value(0))),
                // It is under way; a blocking one goes on waiting natively.
                Err(Errno(libc::EINTR)) => state.put(trap, stream.fd.as_fd(), new.as_fd()).map(|()| None),
                Err(Errno(libc::EINPROGRESS)) => {
                    state.put(trap, stream.fd.as_fd(), new.as_fd())?;
                    Err(Errno(libc::EINPROGRESS))
                }
                Err(errno) => Err(errno),
            };
        }
        if network != stream.kind {
            let new = self.fresh(state, &stream, network)?;
            state.put(trap, stream.fd.as_fd(), new.as_fd())?;
        }
        Ok(None)
    }

    /// Before bind(2).
    fn bind(&mut self, state: &mut State, trap: &Trap<'_>) -> Result<(), Errno> {
        let (mut bytes, mut length) = ([0; LONGEST], 0);
        if sockaddr(trap, &mut bytes, &mut length).is_err() {
            return Ok(());
        }
        let Some(stream) = self.stream(state, trap)? else { return Ok(()) };
        if !stream.is_idle()? || stream.bound()?.is_some() {
            return Ok(());
        }
        if let Written::Local(endpoint) = parse(stream.family, &bytes[..length])
            && endpoint.port != 0
        {
            let (reuse_port, v6_only) = stream.flags();
            // The number is one that no socket of ours has.
            let new = Bound { endpoint, reuse_address: false, reuse_port, v6_only, sibling: u16::MAX };
            if self.conflicts(state, &new)? {
                return Err(Errno(libc::EADDRINUSE));
            }
        }
        if stream.kind != self.kinds.now {
            let new = self.fresh(state, &stream, self.kinds.now)?;
            state.put(trap, stream.fd.as_fd(), new.as_fd())?;
        }
        Ok(())
    }

    /// Before listen(2).
    fn listen(&mut self, state: &mut State, trap: &Trap<'_>) -> Result<(), Errno> {
        let Some(stream) = self.stream(state, trap)? else { return Ok(()) };
        let mut fd = stream.fd.as_fd();
        let new;
        let mut kind = stream.kind;
        if kind != self.kinds.now && stream.is_idle()? && stream.bound()?.is_none() {
            kind = self.kinds.now;
            new = self.fresh(state, &stream, kind)?;
            state.put(trap, fd, new.as_fd())?;
            fd = new.as_fd();
        }
        if kind == Kind::Share
            && let Some(parent) = &mut self.parent
        {
            parent.ours.insert(socket::cookie(fd)?);
        }
        Ok(())
    }
}

impl Parent {
    /// Whether a listener belongs to a process of the environment: one whose network is the environment's.
    fn is_ours(&mut self, tasks: &mut Tasks, network: &Network, cookie: u64) -> bool {
        if !std::mem::replace(&mut self.searched, true) {
            let inodes = sockets_of(tasks, network);
            let all = socket::listeners(self.diagnosis.as_fd()).unwrap_or_default();
            self.ours.extend(all.iter().filter(|one| inodes.contains(&one.inode)).map(|one| one.cookie));
        }
        self.ours.contains(&cookie)
    }
}

/// Binds a fresh socket, one of ours if it has a mark.
fn bind_alike(
    state: &mut State,
    new: BorrowedFd<'_>,
    mark: Option<Mark>,
    family: Family,
    at: &[u8],
) -> Result<(), Errno> {
    match (mark, parse(family, at)) {
        (None, _) => Ok(socket::bind_address(new, at)?),
        (Some(mark), Written::Local(endpoint)) => state.bind_to(new, mark, endpoint).map(drop),
        (Some(_), _) => Err(Errno(libc::ENETUNREACH)),
    }
}

/// The inode numbers of all sockets that processes in this network namespace hold.
fn sockets_of(tasks: &mut Tasks, network: &Network) -> HashSet<u32> {
    let mut inodes = HashSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if !tasks.is_in(pid, network).unwrap_or(false) {
            continue;
        }
        for entry in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let number = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            inodes.extend(number.and_then(|number| number.parse::<u32>().ok()));
        }
    }
    inodes
}

/// Whether a listener of another network would keep this one from being bound in its own.
fn in_the_way(new: &Bound, listener: &Listening) -> bool {
    let bytes = listener.address;
    let ip = match listener.family {
        libc::AF_INET => IpAddr::from(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        _ => IpAddr::from(Ipv6Addr::from(bytes)),
    };
    let Some(host) = Host::of(ip) else { return false };
    let endpoint = Endpoint { host, port: listener.port };
    let (reuse_address, reuse_port) = (false, false);
    let old = Bound { endpoint, reuse_address, reuse_port, v6_only: listener.v6_only, sibling: 0 };
    endpoint.port == new.endpoint.port && overlaps(new, &old)
}

impl Stream {
    /// Whether it is neither connected, nor connecting, nor listening.
    fn is_idle(&self) -> io::Result<bool> {
        let fd = self.fd.as_fd();
        match self.mark {
            Some(_) => Ok(socket::peer_name(fd).is_err() && socket::option(fd, libc::SO_ACCEPTCONN)? == 0),
            None => Ok(socket::is_closed(fd)),
        }
    }

    /// The sockaddr that it is bound to.
    fn bound(&self) -> io::Result<Option<Vec<u8>>> {
        let fd = self.fd.as_fd();
        if self.mark.is_some() {
            let own = Meaning::decode(socket::name(fd)?.bytes());
            return Ok(own.map(|own| own.local().sockaddr(self.family).bytes().to_vec()));
        }
        let (bytes, length) = socket::address(fd)?;
        // Both families have the port there.
        Ok((bytes[2..4] != [0, 0]).then(|| bytes[..length].to_vec()))
    }

    /// SO_REUSEPORT and IPV6_V6ONLY.
    fn flags(&self) -> (bool, bool) {
        let Some(mark) = self.mark else {
            let mut only = [0; 4];
            let six = socket::option_bytes(self.fd.as_fd(), (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY), &mut only).is_ok();
            let shared = socket::option(self.fd.as_fd(), libc::SO_REUSEPORT).is_ok_and(|on| on != 0);
            return (shared, six && only != [0; 4]);
        };
        (mark.has(REUSE_PORT), mark.has(V6_ONLY))
    }
}

impl State {
    fn carrying<T: Default>(
        &mut self,
        act: impl FnOnce(&mut Carry, &mut State) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let Some(mut carry) = self.carry.take() else { return Ok(T::default()) };
        let done = act(&mut carry, self);
        self.carry = Some(carry);
        done
    }

    /// Before connect(2): the answer, if there is one already.
    pub(super) fn carry_connect(&mut self, trap: &Trap<'_>) -> Result<Option<Answer>, Errno> {
        self.carrying(|carry, state| carry.connect(state, trap))
    }

    /// bind(2), in an environment that may have had other networks.
    pub(super) fn carry_bind(&mut self, trap: &Trap<'_>) -> Handled {
        self.carrying(|carry, state| carry.bind(state, trap))?;
        self.bind(trap)
    }

    /// listen(2), likewise.
    pub(super) fn carry_listen(&mut self, trap: &Trap<'_>) -> Handled {
        self.carrying(|carry, state| carry.listen(state, trap))?;
        self.listen(trap)
    }

    /// Puts `new` into the place of the caller's socket `old`: under each of its numbers in the caller's table of fds, and in the epoll
    /// sets that watch it there.
    pub(super) fn put(&mut self, trap: &Trap<'_>, old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> Result<(), Errno> {
        let (tid, id, own) = (trap.call.tid, trap.call.id, trap.int(0));
        let held = self.tasks.held(tid, own, old)?;
        trap.still_waiting()?;
        held.transplant(old, new)?;
        let closes = |number| held.numbers.iter().any(|(known, closes)| *known == number && *closes);
        if let Err(error) = trap.listener.replace_fd(id, new, own, closes(own)) {
            // The call was cancelled, and comes again.
            let _ = held.transplant(new, old);
            return Err(error.into());
        }
        for (number, closes) in held.numbers.iter().filter(|(number, _)| *number != own) {
            if self.tasks.still_holds(tid, *number, &held) {
                trap.listener.replace_fd(id, new, *number, *closes)?;
            }
        }
        Ok(())
    }
}
