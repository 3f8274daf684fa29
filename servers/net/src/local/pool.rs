//! A few sockets made ahead, so that socket(2) is answered at once.

use hurdle_netstack::address::Family;
use hurdle_netstack::mark::Mark;
use hurdle_sys::target::{Begun, Mint, Recipe};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Below this many of a kind, more are asked for.
const LOW: usize = 6;

/// What is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sockets {
    /// AF_UNIX, with a mark.
    Unix,
    /// TCP.
    Tcp,
}

/// The sockets, by kind: family and O_NONBLOCK.
#[derive(Debug)]
pub(super) struct Pool {
    mint: Mint,
    ready: [Vec<OwnedFd>; 4],
    asked: [bool; 4],
    broken: bool,
}

fn kind(family: Family, nonblocking: bool) -> usize {
    usize::from(family == Family::V6) * 2 + usize::from(nonblocking)
}

impl Pool {
    /// Starts what makes them, while the process has one thread.
    pub(super) fn begin(namespaces: Option<(OwnedFd, OwnedFd)>, what: Sockets) -> io::Result<Begun> {
        let recipes = [(Family::V4, false), (Family::V4, true), (Family::V6, false), (Family::V6, true)].map(
            |(of, nonblocking)| {
                let family = match (what, of) {
                    (Sockets::Unix, _) => libc::AF_UNIX,
                    (Sockets::Tcp, Family::V4) => libc::AF_INET,
                    (Sockets::Tcp, Family::V6) => libc::AF_INET6,
                };
                Recipe { family, nonblocking, mark: Mark::new(of).0 }
            },
        );
        Mint::begin(namespaces, &recipes)
    }

    /// Waits until it is there.
    pub(super) fn new(begun: Begun) -> io::Result<Pool> {
        Ok(Pool { mint: begun.mint()?, ready: Default::default(), asked: [false; 4], broken: false })
    }

    pub(super) fn namespaces(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        self.mint.namespaces()
    }

    pub(super) fn diagnosis(&self) -> BorrowedFd<'_> {
        self.mint.diagnosis()
    }

    /// Whether there will never be another socket.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Has some of a kind made, and does not wait for them.
    pub(super) fn prepare(&mut self, family: Family, nonblocking: bool) -> io::Result<()> {
        let kind = kind(family, nonblocking);
        self.mint.ask(kind as u8)?;
        self.asked[kind] = true;
        Ok(())
    }

    /// A fresh socket.
    pub(super) fn socket(&mut self, family: Family, nonblocking: bool) -> io::Result<OwnedFd> {
        let made = self.next(family, nonblocking);
        self.broken |= made.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EPIPE));
        made
    }

    fn next(&mut self, family: Family, nonblocking: bool) -> io::Result<OwnedFd> {
        let kind = kind(family, nonblocking);
        if self.ready[kind].len() < LOW {
            if !self.asked[kind] {
                self.mint.ask(kind as u8)?;
                self.asked[kind] = true;
            }
            // Whatever is there by now; it waits only if there is none at all.
            while self.asked[kind] {
                match self.mint.take(self.ready[kind].is_empty()) {
                    Ok(made) => {
                        let kind = usize::from(made.kind) % self.ready.len();
                        self.asked[kind] = false;
                        self.ready[kind].extend(made.sockets);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        self.ready[kind].pop().ok_or_else(|| io::Error::from_raw_os_error(libc::ENFILE))
    }
}
