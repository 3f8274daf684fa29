//! What the server knows between two calls, and how it looks at a caller.

use super::carry::Carry;
use super::memory::{Destinations, Extras, Memory};
use super::pool::{Pool, Sockets};
use super::{Kept, Shared};
use crate::plan::Kinds;
use hurdle_netstack::address::{Endpoint, Family, Host};
use hurdle_netstack::mark::{ACCEPTED, Mark};
use hurdle_netstack::name::{Bound, Meaning, Name};
use hurdle_netstack::ports::Ports;
use hurdle_netstack::trace::Seen;
use hurdle_proto::net::Outcome;
use hurdle_sys::seccomp::{Call, Listener, Slot};
use hurdle_sys::target::{Alarm, Network, Tasks, memory, socket};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// An errno to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub(super) i32);

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// The end of a call's handling.
#[derive(Debug)]
pub(super) enum Answer {
    /// It returns this.
    Value(i64),
    /// It returns this socket's new fd. An `accepted` one must go back to its listener if the caller is gone.
    Socket { fd: OwnedFd, close_on_exec: bool, accepted: bool },
    /// It is connected to this listener, whose waiting accepts are served after it; a non-blocking one hears EINPROGRESS.
    Connected { to: Name, pending: bool },
    /// It goes on natively.
    Native,
    /// It waits until this listener has a connection for it.
    WaitAccept { on: Name, until: Option<Instant> },
    /// It waits until this listener has room for it.
    WaitConnect { on: Name, until: Option<Instant> },
}

pub(super) type Handled = Result<Answer, Errno>;

/// A trapped call and what its handler needs.
pub(super) struct Trap<'a> {
    pub(super) call: &'a Call,
    pub(super) listener: &'a Listener,
    pub(super) alarm: &'a Alarm,
    /// It was handled before, perhaps up to the answer: its handler died, or a signal cancelled it and it came again.
    pub(super) recovered: bool,
}

impl Trap<'_> {
    /// An argument that the kernel takes as an `int`.
    pub(super) fn int(&self, index: usize) -> i32 {
        self.call.args[index] as i32
    }

    /// Copies the caller's memory.
    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        Ok(memory::read(self.call.tid, address, into)?)
    }

    pub(super) fn read_int(&self, address: u64) -> Result<i32, Errno> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(i32::from_ne_bytes(bytes))
    }

    /// Answers through a pair of pointer and length, as getsockname(2) does: what fits, and the full length.
    #[inline]
    pub(super) fn write_sized(&self, address: u64, length_address: u64, room: i32, bytes: &[u8]) -> Result<(), Errno> {
        let Ok(room) = usize::try_from(room) else { return Err(Errno(libc::EINVAL)) };
        self.still_waiting()?;
        let length = (bytes.len() as u32).to_ne_bytes();
        Ok(memory::write(self.call.tid, [(address, &bytes[..bytes.len().min(room)]), (length_address, &length)])?)
    }

    /// Fails once the call was cancelled: then its thread number may name somebody else.
    pub(super) fn still_waiting(&self) -> Result<(), Errno> {
        if self.listener.is_valid(self.call.id) { Ok(()) } else { Err(Errno(libc::EINTR)) }
    }
}

/// A call that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) slot: Slot,
    pub(super) call: Call,
    pub(super) until: Option<Instant>,
    /// If it was traced when it came.
    pub(super) seen: Option<Box<Seen>>,
}

impl Waiting {
    /// Nobody waits any more.
    pub(super) fn cancelled(self, shared: &Shared) {
        if let Some(seen) = self.seen {
            seen.end(&shared.tap, Outcome::Gone);
        }
        shared.ledger.release(self.slot);
    }
}

/// An option that the mark has no room for.
pub(super) type Extra = ((i32, i32), Vec<u8>);

/// What the server knows.
#[derive(Debug)]
pub(super) struct State {
    pub(super) pool: Pool,
    pub(super) tasks: Tasks,
    pub(super) ports: Ports,
    /// The private namespace's cookie.
    home: u64,
    /// The environment's own network namespace.
    pub(super) network: Network,
    /// The networks that it had before.
    pub(super) carry: Option<Carry>,
    /// Calls that wait for a connection, by listener.
    pub(super) accepting: HashMap<Name, VecDeque<Waiting>>,
    /// Calls that wait for room in a backlog, by listener.
    pub(super) connecting: HashMap<Name, VecDeque<Waiting>>,
    /// Connections whose accept(2) was cancelled at the last moment, by listener: the next one gets them.
    pub(super) returned: HashMap<Name, VecDeque<(OwnedFd, Instant)>>,
    /// Where the holder of a bound name connected to, if the listener's own name does not say it.
    pub(super) destinations: Destinations,
    /// Options by socket cookie.
    pub(super) extras: Extras,
    /// Where both are noted for the next server.
    pub(super) memory: Memory,
    /// Where each listener was last seen, to widen its backlog: thread and fd.
    pub(super) seen: HashMap<Name, (u32, i32)>,
    /// How many connections the queues of each port hold at most, and the shortest may hold. Accepts that go natively are not seen, so
    /// the first is a bound.
    pub(super) queues: HashMap<u16, (u32, u32)>,
    /// Calls whose connection is being handed over.
    pub(super) handed: Vec<Call>,
    /// Calls that were done when a signal cancelled them, by thread: they come again, with the same arguments.
    pub(super) cancelled: HashMap<u32, Call>,
    /// Room that [`Ports::listeners`] fills, kept between calls.
    pub(super) found: Vec<Bound>,
}

impl State {
    pub(super) fn new(kinds: Kinds, network: Network, kept: Option<Kept>) -> io::Result<State> {
        let (inherited, kept) = (kept.is_some(), kept.map(|kept| ((kept.user, kept.network), kept.memory)));
        let (namespaces, noted) = kept.unzip();
        // Side by side: traffic may wait.
        let (begun, other) = (Pool::begin(namespaces, Sockets::Unix)?, Carry::begin(kinds, &network)?);
        let mut memory = Memory::open(noted)?;
        let (extras, destinations) = memory.recall()?;
        let mut pool = Pool::new(begun)?;
        // They are made while the rest goes on.
        pool.prepare(Family::V4, false)?;
        let carry = Carry::new(kinds, other)?;
        let home = socket::namespace(pool.diagnosis())?;
        let seed = std::time::UNIX_EPOCH.elapsed().map_or(0, |now| now.subsec_nanos() as u16);
        let mut state = State {
            pool,
            tasks: Tasks::new(),
            ports: Ports::new(seed),
            home,
            network,
            carry,
            accepting: HashMap::new(),
            connecting: HashMap::new(),
            returned: HashMap::new(),
            destinations,
            extras,
            memory,
            seen: HashMap::new(),
            queues: HashMap::new(),
            handed: Vec::new(),
            cancelled: HashMap::new(),
            found: Vec::new(),
        };
        if inherited {
            for socket in state.sockets()? {
                if let Meaning::Bound(bound) = socket.meaning
                    && !socket.connected
                {
                    state.ports.add(bound, socket.listening);
                }
            }
        }
        Ok(state)
    }

    /// Whether the caller is in the environment's own network, and not in one that was made further inside: traps follow
    /// programs anywhere. One that may not be traced is taken for a stranger, whose calls go on natively. `moved`: a thread may have gone
    /// to another by itself. Before that each stays where it began. (And a thread may end up with another's number, by execve(2).)
    pub(super) fn is_inside(&mut self, trap: &Trap<'_>, moved: bool) -> Result<bool, Errno> {
        let tid = trap.call.tid;
        let inside = if moved { self.tasks.is_in(tid, &self.network) } else { self.tasks.stays_in(tid, &self.network) };
        match inside {
            Err(error) => match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES | libc::ESRCH | libc::ENOENT) => Ok(false),
                _ => Err(error.into()),
            },
            Ok(inside) => Ok(inside),
        }
    }

    /// The caller's fd, and what it remembers if it is one of ours. `None`: it is not; let the kernel answer.
    pub(super) fn fetch(&mut self, trap: &Trap<'_>) -> Result<Option<(OwnedFd, Mark)>, Errno> {
        let found = self.fetch_unchecked(trap)?;
        trap.still_waiting()?;
        Ok(found)
    }

    /// As [`State::fetch`], for a handler that asks [`Trap::still_waiting`] itself before anybody could notice.
    #[inline]
    pub(super) fn fetch_unchecked(&mut self, trap: &Trap<'_>) -> Result<Option<(OwnedFd, Mark)>, Errno> {
        let fd = match self.tasks.fd(trap.call.tid, trap.int(0)) {
            Ok(fd) => fd,
            Err(error) => match error.raw_os_error() {
                // A caller that may not be traced gets the empty network, as does a number that is no fd.
                Some(libc::EBADF | libc::EPERM | libc::ESRCH) => return Ok(None),
                _ => return Err(error.into()),
            },
        };
        Ok(self.mark(fd.as_fd()).map(|mark| (fd, mark)))
    }

    /// What a socket remembers, if it is one of ours.
    #[inline]
    pub(super) fn mark(&self, fd: BorrowedFd<'_>) -> Option<Mark> {
        let bits = socket::mark(fd).ok()?;
        if let Some(mark) = Mark::from_kernel(bits) {
            return Some(mark);
        }
        // From an accept that set none; or not ours.
        if socket::namespace(fd).ok()? != self.home {
            return None;
        }
        Some(State::unmarked(Meaning::decode(socket::name(fd).ok()?.bytes())?.local().host))
    }

    /// What an accepted socket without a mark remembers, by the host of its name, which is its listener's.
    pub(super) fn unmarked(host: Host) -> Mark {
        Mark::new(if matches!(host, Host::Four(_)) { Family::V4 } else { Family::V6 }).with(ACCEPTED, 1)
    }

    /// Whether a name is still held by a socket: the kernel refuses it twice.
    pub(super) fn alive(pool: &mut Pool, bound: &Bound) -> bool {
        match pool.socket(Family::V4, false) {
            Ok(probe) => socket::bind(probe.as_fd(), bound.name().bytes()).is_err(),
            Err(_) => true,
        }
    }

    /// Whether what makes sockets for it is gone.
    pub(super) fn is_broken(&self) -> bool {
        self.pool.is_broken() || self.carry.as_ref().is_some_and(Carry::is_broken)
    }

    /// Notes a call whose answer came too late.
    pub(super) fn note_cancelled(&mut self, call: &Call) {
        // Those that never come again are few; this bounds them.
        if self.cancelled.len() >= 256 {
            self.cancelled.clear();
        }
        self.cancelled.insert(call.tid, *call);
    }

    /// Whether this call is one that was done already when a signal cancelled it.
    pub(super) fn comes_again(&mut self, call: &Call) -> bool {
        !self.cancelled.is_empty() && self.cancelled.remove(&call.tid).is_some_and(|old| call.repeats(&old))
    }

    /// Notes no sockets any longer that are gone, when there may be many.
    pub(super) fn tidy(&mut self) -> io::Result<()> {
        if !self.memory.is_long() {
            return Ok(());
        }
        let listed = socket::list(self.pool.diagnosis())?;
        let cookies = listed.iter().map(|one| one.cookie).collect();
        let bound = |name: &socket::Name| match Meaning::decode(name.bytes()) {
            Some(Meaning::Bound(bound)) => Some(bound.name()),
            _ => None,
        };
        let names = listed.iter().filter_map(|one| bound(&one.name)).collect();
        self.memory.sweep(&mut self.extras, &mut self.destinations, (&cookies, &names))
    }

    /// Whether call `id` waits.
    pub(super) fn waits(&self, id: u64) -> bool {
        self.accepting.values().chain(self.connecting.values()).flatten().any(|one| one.call.id == id)
    }

    /// How many calls wait.
    pub(super) fn waiting(&self) -> usize {
        self.accepting.values().chain(self.connecting.values()).map(VecDeque::len).sum()
    }
}

/// One socket of the environment, as ss(8) would list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketInfo {
    /// What its name says.
    pub meaning: Meaning,
    /// Its own endpoint.
    pub local: Endpoint,
    /// Its peer's, if it is connected.
    pub remote: Option<Endpoint>,
    /// Whether it listens.
    pub listening: bool,
    /// Whether it is connected.
    pub connected: bool,
    /// Its inode number, as in /proc/PID/fd.
    pub inode: u32,
    /// Bytes that wait to be read; for a listener, connections that wait to be accepted.
    pub queued: u32,
}

impl State {
    /// Lists the private namespace's sockets.
    pub(super) fn sockets(&self) -> io::Result<Vec<SocketInfo>> {
        let listed = socket::list(self.pool.diagnosis())?;
        Ok(listed
            .iter()
            .filter_map(|entry| {
                let meaning = Meaning::decode(entry.name.bytes())?;
                let connected = entry.state == socket::ESTABLISHED;
                let remote = match meaning {
                    Meaning::Connection { remote, .. } => Some(remote),
                    // Accepted: the peer's name has the other end.
                    Meaning::Bound(_) => entry.peer.and_then(|peer| {
                        let peer = listed.iter().find(|other| other.inode == peer)?;
                        Some(Meaning::decode(peer.name.bytes())?.local())
                    }),
                };
                Some(SocketInfo {
                    meaning,
                    local: meaning.local(),
                    remote: remote.filter(|_| connected),
                    listening: entry.state == socket::LISTENING,
                    connected,
                    inode: entry.inode,
                    queued: entry.queued,
                })
            })
            .collect())
    }
}

/// The time that a limit ends at.
pub(super) fn deadline(limit: Option<Duration>) -> Option<Instant> {
    limit.and_then(|limit| Instant::now().checked_add(limit))
}
