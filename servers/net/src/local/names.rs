//! getsockname(2) and getpeername(2).

use super::state::{Answer, Errno, Handled, State, Trap};
use hurdle_netstack::address::Endpoint;
use hurdle_netstack::mark::{CLIENT, Mark};
use hurdle_netstack::name::Meaning;
use hurdle_sys::target::socket;
use std::os::fd::{AsFd, BorrowedFd};

impl State {
    pub(super) fn own_name(&mut self, trap: &Trap<'_>) -> Handled {
        // Whether the caller still waits is asked before its memory is written; nothing else is changed.
        let Some((fd, mark)) = self.fetch_unchecked(trap)? else { return Ok(Answer::Native) };
        let local = self.local(fd.as_fd(), mark)?;
        self.write_name(trap, mark, local)
    }

    pub(super) fn peer_name(&mut self, trap: &Trap<'_>) -> Handled {
        let Some((fd, mark)) = self.fetch_unchecked(trap)? else { return Ok(Answer::Native) };
        let remote = self.remote(fd.as_fd(), mark)?;
        self.write_name(trap, mark, remote)
    }

    #[inline]
    fn write_name(&self, trap: &Trap<'_>, mark: Mark, endpoint: Endpoint) -> Handled {
        let room = trap.read_int(trap.call.args[2])?;
        trap.write_sized(trap.call.args[1], trap.call.args[2], room, endpoint.sockaddr(mark.family()).bytes())?;
        Ok(Answer::Value(0))
    }

    /// What a socket says of itself.
    pub(super) fn local(&self, fd: BorrowedFd<'_>, mark: Mark) -> Result<Endpoint, Errno> {
        let own = match Meaning::decode(socket::name(fd)?.bytes()) {
            None => return Ok(Endpoint::unbound(mark.family())),
            Some(Meaning::Connection { local, .. }) => return Ok(local),
            Some(Meaning::Bound(own)) => own.endpoint,
        };
        if !own.host.is_any() {
            return Ok(own);
        }
        let Ok(peer) = socket::peer_name(fd) else { return Ok(own) };
        // Connected under a wildcard: it is called what the other end called it.
        let meant = match Meaning::decode(peer.bytes()) {
            Some(Meaning::Connection { remote, .. }) => remote.host,
            Some(Meaning::Bound(peer)) if !mark.has(CLIENT) => {
                self.destinations.get(&peer.name()).map_or(peer.endpoint.host, |to| to.host)
            }
            Some(Meaning::Bound(peer)) => peer.endpoint.host,
            None => own.host,
        };
        Ok(Endpoint { host: meant.concrete(), ..own })
    }

    /// What a socket says of its peer.
    pub(super) fn remote(&self, fd: BorrowedFd<'_>, mark: Mark) -> Result<Endpoint, Errno> {
        let peer = socket::peer_name(fd)?;
        let own = Meaning::decode(socket::name(fd)?.bytes());
        if let Some(Meaning::Connection { remote, .. }) = own {
            return Ok(remote);
        }
        if mark.has(CLIENT)
            && let Some(Meaning::Bound(own)) = own
            && let Some(to) = self.destinations.get(&own.name())
        {
            return Ok(*to);
        }
        let peer = Meaning::decode(peer.bytes()).ok_or(Errno(libc::ENOTCONN))?.local();
        Ok(Endpoint { host: peer.host.concrete(), ..peer })
    }
}
