//! What a new socket is, as the kind of the server decides. It can change while programs run (`hurdle swap`), so each socket
//! remembers by itself what it is: one of ours by its mark, any other is the kernel's.
//!
//! A program that has made a network namespace of its own (unshare(1), a container) gets its sockets there, as natively.
//! This is asked when a socket is made and never again: a socket belongs to where it was made, wherever its holder goes.

use super::Shared;
use super::state::{Answer, Errno, Handled, State, Trap};
use crate::Kind;
use hurdle_sys::target::socket;

/// Answers socket(2).
pub(super) fn socket(shared: &Shared, state: &mut State, trap: &Trap<'_>) -> Handled {
    let kind = shared.kinds.now;
    let (family, kind_of, protocol) = (trap.int(0), trap.int(1), trap.int(2));
    let stream = kind_of & 0xf == libc::SOCK_STREAM;
    if kind == Kind::None || !state.is_inside(trap, shared.ledger.moved())? {
        // Its own network namespace.
        return Ok(Answer::Native);
    }
    match kind {
        Kind::Local if stream && [0, libc::IPPROTO_TCP].contains(&protocol) => state.socket(trap),
        Kind::Local if stream && protocol == libc::IPPROTO_MPTCP => Err(Errno(libc::EPROTONOSUPPORT)),
        Kind::Local | Kind::None => Ok(Answer::Native),
        // This server stands in the parent's network: a socket that it makes belongs there, wherever it is handed.
        Kind::Share => {
            let fd = socket::make(family, kind_of | libc::SOCK_CLOEXEC, protocol)?;
            Ok(Answer::Socket { fd, close_on_exec: kind_of & libc::SOCK_CLOEXEC != 0, accepted: false })
        }
    }
}
