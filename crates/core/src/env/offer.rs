//! What callers add to an environment that stands: servers in processes of their own, and environments inside.

use std::os::fd::OwnedFd;

use hurdle_proto::server::Peer;
use hurdle_proto::spec::Spec;
use hurdle_wire::{Channel, Refused};

use super::Env;
use crate::nest::{self, Below};
use crate::os;
use crate::right::Right;

/// What stands for the spec of an interface that a caller serves.
const GRANTED: &str = "granted";

impl Env {
    /// From now on `interface` is served by who holds the other end of `server`.
    pub(super) fn offer(&mut self, interface: &str, server: OwnedFd, peer: Peer) -> Result<(), Refused> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if interface.is_empty() || interface == "core" || !interface.chars().all(plain) {
            let why = "an interface's name has letters, digits, `-` and `_`, and is not `core`";
            return Err(Refused::new(os::EINVAL, why));
        }
        let at = self.rights.iter().position(|right| right.interface == interface);
        if at.is_some_and(|n| !self.rights[n].vacant()) {
            return Err(Refused::new(os::EEXIST, format!("{interface} has a server already; a swap replaces it")));
        }
        let n = at.unwrap_or_else(|| {
            self.rights.push(Right::new(interface, Spec::plain(GRANTED), Vec::new()));
            self.rights.len() - 1
        });
        self.rights[n].lend_to_guest(Channel::from(server), peer);
        Ok(())
    }

    pub(super) fn open_nest(&mut self) {
        let Some(nest) = &self.nest else { return };
        while let Ok(Some(socket)) = hurdle_sys::abstract_socket::accept(nest) {
            // One too many is not known of.
            if self.below.len() < nest::MOST {
                self.below.push(Below::new(socket));
            }
        }
    }

    /// The core around this one asks for the first time: from now on a thread answers.
    pub(super) fn answer_above(&mut self) {
        if let Some(above) = self.above.take() {
            let _ = self.callers.serve_above(above, self.mailbox.clone(), self.init.clone());
        }
    }

    /// Environment `n` inside has ended. Indices shift: one at a time, the rest at the next turn.
    pub(super) fn forget(&mut self, n: usize) {
        if self.below.get(n).is_some_and(|below| below.channel.hung_up()) {
            self.below.swap_remove(n);
        }
    }
}
