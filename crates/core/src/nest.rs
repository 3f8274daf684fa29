//! Environments in environments: a core makes itself known to the one around it, which passes callers on.
//!
//! Pid 1 listens on an abstract name with the number of its pid namespace. A core that starts connects there, and serves the
//! `core` interface on that very connection. Nothing is said, so it costs a launch next to nothing; who asks learns the rest.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use hurdle_proto::core::{NEST, core};
use hurdle_sys::{abstract_socket, ns};
use hurdle_wire::Channel;

use crate::control;

/// How long a core has to say its name.
const PATIENCE: Duration = Duration::from_millis(300);
/// How many environments one takes note of.
pub(crate) const MOST: usize = 1024;

/// What may be an environment inside.
#[derive(Clone)]
pub(crate) struct Below {
    pub(crate) channel: Channel,
    core: core::Client,
}

/// The name on which pid 1 listens for the cores in the caller's pid namespace.
fn address() -> io::Result<String> {
    Ok(format!("{NEST}{}", ns::own_pid_namespace()?))
}

/// In pid 1, before its programs run: where the cores inside come to.
pub(crate) fn listen() -> io::Result<OwnedFd> {
    abstract_socket::listen(&address()?)
}

/// Makes this core known to the one around it, which calls it on what is returned. `None`: it is in no environment, or in one
/// whose network it is cut off from.
pub(crate) fn enrol() -> Option<OwnedFd> {
    let above = abstract_socket::connect(&address().ok()?).ok()?;
    // Only pid 1 of the caller's own namespace is to be trusted with what a core does: the name could be anybody's who shares
    // the network.
    (abstract_socket::peer(&above).ok()?.0 == 1).then_some(above)
}

impl Below {
    pub(crate) fn new(socket: OwnedFd) -> Below {
        let channel = Channel::from(socket);
        Below { core: core::Client::from(channel.clone()), channel }
    }
}

/// The environments in the one whose pid 1 is `init`, by their names. Who only shares its network is none, nor who does not answer.
pub(crate) async fn named(all: Vec<Below>, init: i32) -> Vec<(String, core::Client)> {
    let inside = |below: &Below| -> io::Result<bool> {
        let socket = below.channel.as_fd().try_clone_to_owned()?;
        control::same_place(&socket, abstract_socket::peer(&socket)?.0, &init.to_string())
    };
    let all = all.into_iter().filter(|below| inside(below).unwrap_or(false));
    // All at once: one that is stopped holds up nobody twice.
    let asked: Vec<_> = all.map(|below| (below.core.info().deadline(PATIENCE).send(), below.core)).collect();
    let mut named = Vec::new();
    for (info, core) in asked {
        if let Ok(info) = info.await
            && control::legal(&info.name)
        {
            named.push((info.name, core));
        }
    }
    named
}
