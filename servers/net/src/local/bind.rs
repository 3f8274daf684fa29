//! socket(2), bind(2), listen(2) and shutdown(2).

use super::Shared;
use super::state::{Answer, Errno, Handled, State, Trap};
use hurdle_netstack::address::{Endpoint, Family, LONGEST, Written, parse};
use hurdle_netstack::mark::{BOUND, Mark, REUSE_PORT, V6_ONLY};
use hurdle_netstack::name::{Bound, Meaning, Name};
use hurdle_netstack::ports::EPHEMERAL;
use hurdle_sys::target::socket;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// The longest queue that a listener may have.
const WIDEST: u32 = 4096;

impl State {
    pub(super) fn socket(&mut self, trap: &Trap<'_>) -> Handled {
        let flags = trap.int(1) & !0xf;
        if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let family = if trap.int(0) == libc::AF_INET { Family::V4 } else { Family::V6 };
        let fd = self.pool.socket(family, flags & libc::SOCK_NONBLOCK != 0)?;
        Ok(Answer::Socket { fd, close_on_exec: flags & libc::SOCK_CLOEXEC != 0, accepted: false })
    }

    pub(super) fn bind(&mut self, trap: &Trap<'_>) -> Handled {
        let (mut bytes, mut length) = ([0; LONGEST], 0);
        let readable = sockaddr(trap, &mut bytes, &mut length);
        let Some((fd, mark)) = self.fetch(trap)? else { return Ok(Answer::Native) };
        readable?;
        let endpoint = match parse(mark.family(), &bytes[..length]) {
            Written::Local(endpoint) => endpoint,
            Written::Elsewhere => return Err(Errno(libc::EADDRNOTAVAIL)),
            Written::Short => return Err(Errno(libc::EINVAL)),
            // An old habit that the kernel allows: no family, and 0.0.0.0.
            Written::Unspecified if mark.family() == Family::V4 && length >= 16 && bytes[4..8] == [0; 4] => {
                Endpoint { port: u16::from_be_bytes([bytes[2], bytes[3]]), ..Endpoint::unbound(Family::V4) }
            }
            Written::Unspecified | Written::OtherFamily(_) => return Err(Errno(libc::EAFNOSUPPORT)),
        };
        if mark.has(V6_ONLY) && matches!(endpoint.host, hurdle_netstack::address::Host::Four(_)) {
            return Err(Errno(libc::EINVAL));
        }
        if !socket::name(fd.as_fd())?.bytes().is_empty() {
            let same = |name: socket::Name| {
                Meaning::decode(name.bytes())
                    .is_some_and(|is| is.local().host == endpoint.host && [0, is.local().port].contains(&endpoint.port))
            };
            let done = trap.recovered && same(socket::name(fd.as_fd())?);
            return if done { Ok(Answer::Value(0)) } else { Err(Errno(libc::EINVAL)) };
        }
        self.bind_to(fd.as_fd(), mark, endpoint)?;
        Ok(Answer::Value(0))
    }

    /// Binds one of ours, to an ephemeral port if the port is 0.
    pub(super) fn bind_to(&mut self, fd: BorrowedFd<'_>, mark: Mark, endpoint: Endpoint) -> Result<Bound, Errno> {
        let reuse_address = socket::option(fd, libc::SO_REUSEADDR)? != 0;
        let mut bound =
            Bound { endpoint, reuse_address, reuse_port: mark.has(REUSE_PORT), v6_only: mark.has(V6_ONLY), sibling: 0 };
        if endpoint.port != 0 {
            self.hold(fd, &mut bound)?;
        } else {
            // Ports nobody is known to use first; then those whose sockets may be gone.
            let tries = usize::from(EPHEMERAL.1 - EPHEMERAL.0) / 2;
            let mut port = self.ports.ephemeral(true);
            for _ in 0..tries {
                if !self.ports.is_used(port) {
                    break;
                }
                port = self.ports.ephemeral(true);
            }
            let mut result = Err(Errno(libc::EADDRINUSE));
            // Two binds to port 0 never share a port.
            let (reuse_address, reuse_port) = (bound.reuse_address, bound.reuse_port);
            for _ in 0..tries {
                bound.endpoint.port = port;
                let exclusive = Bound { reuse_address: false, reuse_port: false, ..bound };
                let pool = &mut self.pool;
                if !self.ports.conflict(&exclusive, false, |old| State::alive(pool, old)) {
                    result = self.hold(fd, &mut bound);
                    if result.is_ok() {
                        break;
                    }
                }
                port = self.ports.ephemeral(true);
            }
            (bound.reuse_address, bound.reuse_port) = (reuse_address, reuse_port);
            result?;
        }
        socket::set_mark(fd, mark.with(BOUND, 1).0)?;
        if self.destinations.remove(&bound.name()).is_some() {
            self.memory.forget(&bound.name())?;
        }
        Ok(bound)
    }

    /// Takes the name of a bound socket, as the first sibling that is free.
    fn hold(&mut self, fd: BorrowedFd<'_>, bound: &mut Bound) -> Result<(), Errno> {
        let pool = &mut self.pool;
        if self.ports.conflict(bound, false, |old| State::alive(pool, old)) {
            return Err(Errno(libc::EADDRINUSE));
        }
        loop {
            match socket::bind(fd, bound.name().bytes()) {
                Ok(()) => break,
                // A socket that shares the endpoint has this name already.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && bound.sibling < u16::MAX => {
                    bound.sibling += 1
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.ports.add(*bound, false);
        Ok(())
    }

    pub(super) fn listen(&mut self, trap: &Trap<'_>) -> Handled {
        let Some((fd, mark)) = self.fetch(trap)? else { return Ok(Answer::Native) };
        let name = socket::name(fd.as_fd())?;
        let bound = match Meaning::decode(name.bytes()) {
            Some(Meaning::Bound(bound)) => bound,
            Some(Meaning::Connection { .. }) => return Err(Errno(libc::EINVAL)),
            None => self.bind_to(fd.as_fd(), mark, Endpoint::unbound(mark.family()))?,
        };
        let pool = &mut self.pool;
        if self.ports.conflict(&bound, true, |old| State::alive(pool, old)) {
            return Err(Errno(libc::EADDRINUSE));
        }
        socket::listen(fd.as_fd(), trap.int(1))?;
        // The kernel caps it at net.core.somaxconn, which is 4096 in a new namespace.
        let room = u32::try_from(trap.int(1)).unwrap_or(WIDEST).min(WIDEST);
        let (queued, shortest) = self.queues.get(&bound.endpoint.port).copied().unwrap_or((0, WIDEST));
        // A port that nobody listened on starts with an empty queue.
        let fresh = !self.ports.is_listening(bound.endpoint.port);
        self.queues.insert(bound.endpoint.port, if fresh { (0, room) } else { (queued, room.min(shortest)) });
        self.ports.add(bound, true);
        self.seen.insert(bound.name(), (trap.call.tid, trap.int(0)));
        Ok(Answer::Value(0))
    }

    pub(super) fn shutdown(&mut self, trap: &Trap<'_>, shared: &Shared) -> Handled {
        let Some((fd, _)) = self.fetch(trap)? else { return Ok(Answer::Native) };
        if socket::option(fd.as_fd(), libc::SO_ACCEPTCONN)? == 0 {
            // Not connected: TCP says so, AF_UNIX does not.
            return match socket::peer_name(fd.as_fd()) {
                Ok(_) => Ok(Answer::Native),
                Err(_) => Err(Errno(libc::ENOTCONN)),
            };
        }
        socket::shutdown(fd.as_fd(), trap.int(1))?;
        if let Some(Meaning::Bound(bound)) = Meaning::decode(socket::name(fd.as_fd())?.bytes()) {
            self.ports.add(bound, false);
            self.end_accepts(bound.name(), shared, Errno(libc::EINVAL));
        }
        Ok(Answer::Value(0))
    }
}

/// Copies the sockaddr of bind(2) or connect(2), arguments 1 and 2.
pub(super) fn sockaddr(trap: &Trap<'_>, bytes: &mut [u8; LONGEST], length: &mut usize) -> Result<(), Errno> {
    *length = usize::try_from(trap.int(2)).ok().filter(|length| *length <= LONGEST).ok_or(Errno(libc::EINVAL))?;
    trap.read(trap.call.args[1], &mut bytes[..*length])
}

/// The name of a listener, if it has the bound form.
pub(super) fn listener_name(fd: BorrowedFd<'_>) -> Result<Option<Name>, Errno> {
    Ok(match Meaning::decode(socket::name(fd)?.bytes()) {
        Some(Meaning::Bound(bound)) => Some(bound.name()),
        _ => None,
    })
}
