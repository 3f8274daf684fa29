//! What the core says to whoever borrows a receive right: the same three calls start a server, restart and swap it.

use std::collections::BTreeMap;

use hurdle_wire::{Fd, Refused};
use serde::{Deserialize, Serialize};

use crate::spec::Spec;

/// errno(3).
const ENOSPC: i32 = 28;

/// The fd on which a server finds its bootstrap channel.
pub const BOOTSTRAP: i32 = 3;

/// The attachment that is the program of the standard servers, for who starts the server below itself.
pub const SERVERS: &str = "servers";

/// All that comes with a right.
#[derive(Debug, Serialize, Deserialize)]
pub struct Grant {
    /// The interface's name (`net`).
    pub interface: String,
    /// What the user chose.
    pub spec: Spec,
    /// The environment's name.
    pub env: String,
    /// Channels between the kernel and the server, by name: `trap`, `ledger`, `init`, `pidfd`; and `network`, the
    /// environment's network namespace, for who answers its trapped calls. In a stack only the first server gets `trap`; those
    /// below get the same as `calls`, to answer what they are passed.
    pub attachments: Vec<(String, Fd)>,
    /// What former holders of the right left in the store.
    pub store: Vec<Stored>,
    /// Channels of clients, with what waits in them.
    pub channels: Vec<ClientChannel>,
    /// A channel to the core, for the `store` interface.
    pub core: Fd,
}

/// The server's end of one client's channel.
#[derive(Debug, Serialize, Deserialize)]
pub struct ClientChannel {
    /// Who holds the other end, as the kernel told the core.
    pub peer: Peer,
    /// The channel.
    pub channel: Fd,
}

/// Who calls: from the kernel, never from a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Process id, as the core sees it.
    pub pid: i32,
    /// User id, as the core sees it.
    pub uid: u32,
}

/// One entry of the store.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stored {
    /// Chosen by the server.
    pub key: String,
    /// Not interpreted by the core.
    pub bytes: Vec<u8>,
    /// Kept open by the core.
    pub fds: Vec<Fd>,
}

/// How many bytes the store of one right holds, keys and a little for each entry included.
pub const STORED_BYTES: usize = 1 << 20;
/// How many fds: all of them must fit into one [`Grant`].
pub const STORED_FDS: usize = 16;
/// How many clients' channels come with a [`Grant`]; those above follow by `connect`.
pub const GRANTED_CHANNELS: usize = 24;

/// What servers have stored, as its keeper has it.
#[derive(Debug, Default)]
pub struct Stock(BTreeMap<String, (Vec<u8>, Vec<Fd>)>);

impl Stock {
    /// Keeps an entry in the place of one with the same key.
    ///
    /// # Errors
    /// ENOSPC: the store would hold more than [`STORED_BYTES`] or [`STORED_FDS`]; what was there stays.
    pub fn put(&mut self, entry: Stored) -> Result<(), Refused> {
        let size = |key: &str, bytes: &[u8]| key.len() + bytes.len() + 64;
        let others = self.0.iter().filter(|(key, _)| **key != entry.key);
        let (bytes, fds) = others
            .fold((size(&entry.key, &entry.bytes), entry.fds.len()), |sum, (key, (bytes, fds))| {
                (sum.0 + size(key, bytes), sum.1 + fds.len())
            });
        if bytes > STORED_BYTES || fds > STORED_FDS {
            let most = format!("the store of a right holds {STORED_BYTES} bytes and {STORED_FDS} fds at most");
            return Err(Refused::new(ENOSPC, most));
        }
        self.0.insert(entry.key, (entry.bytes, entry.fds));
        Ok(())
    }

    /// Forgets an entry.
    pub fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// All of it.
    pub fn entries(&self) -> Vec<Stored> {
        let entry = |(key, (bytes, fds)): (&String, &(Vec<u8>, Vec<Fd>))| Stored {
            key: key.clone(),
            bytes: bytes.clone(),
            fds: fds.clone(),
        };
        self.0.iter().map(entry).collect()
    }
}

hurdle_wire::interface! {
    /// Served by every server on its bootstrap channel (fd 3), called by the core.
    pub mod server = 2 {
        /// Borrow a receive right: take the attachments, the store and the channels, and serve. Answered once it serves.
        1 fn borrow(grant: Grant) -> ();
        /// One more client.
        2 oneway fn connect(client: ClientChannel);
        /// Return the right: finish what is in flight, put into the store what must outlive this process, then answer.
        3 fn give_back() -> ();
        /// From now on report each call, and each trapped call, to this pipe too (`hurdle_wire::tap`), also before the right is lent.
        4 oneway fn tap(number: u64, pipe: Fd);
        /// No more to the pipe of this number.
        5 oneway fn untap(number: u64);
    }
}

hurdle_wire::interface! {
    /// Served by the core to the holder of a right: what it keeps while no server lives.
    pub mod store = 3 {
        /// Keep `bytes` and `fds` under `key`; replaces what was there.
        1 idempotent fn put(entry: Stored) -> ();
        /// Forget `key`; no error if there is none.
        2 idempotent fn remove(key: String) -> ();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, bytes: usize, fds: usize) -> Stored {
        let fd = || Fd::from(std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        Stored { key: key.into(), bytes: vec![0; bytes], fds: (0..fds).map(|_| fd()).collect() }
    }

    #[test]
    fn a_store_holds_so_much_and_keeps_what_it_has() {
        let mut stock = Stock::default();
        stock.put(entry("a", STORED_BYTES / 2, STORED_FDS - 1)).unwrap();
        assert_eq!(stock.put(entry("b", STORED_BYTES / 2, 0)).unwrap_err().errno, ENOSPC);
        assert_eq!(stock.put(entry("b", 0, 2)).unwrap_err().errno, ENOSPC);
        stock.put(entry("b", 0, 1)).unwrap();
        // In the place of another one.
        stock.put(entry("a", STORED_BYTES - 200, 0)).unwrap();
        let kept: Vec<_> = stock.entries().iter().map(|e| (e.key.clone(), e.bytes.len(), e.fds.len())).collect();
        assert_eq!(kept, [("a".into(), STORED_BYTES - 200, 0), ("b".into(), 0, 1)]);
    }
}
