//! What happens between the clone of init and its last word: the environment comes to stand.

use hurdle_proto::fs::CONNECTIONS;
use hurdle_sys::memfd;
use hurdle_sys::process::Place;
use hurdle_sys::seccomp::Ledger;

use super::Env;
use crate::Error;
use crate::inside::{ATTACH, READY};
use crate::right::Holder;

impl Env {
    /// Waits until init has said that the environment stands. Servers that it needs for that are started on the way.
    pub(super) fn stand(&mut self) -> Result<(), Error> {
        let system = |what: &'static str| move |e| Error::System(what, e);
        if self.launched.words.front() == Some(&ATTACH) {
            // The server starts while init still works.
            let n = self.find("fs").map_err(|e| Error::SetUp(e.reason))?;
            let spec = self.rights[n].spec.clone();
            let borrower = self.new_borrower(n, &spec).map_err(Error::SetUp)?;
            let lent = self.launched.word()?;
            if lent.is_empty() {
                return Err(self.launched.failure());
            }
            if let Some((_, layer)) = lent.iter().find(|(name, _)| name == "layer") {
                // Init mounts nothing on it before the server answers.
                self.policy.made(layer).map_err(Error::SetUp)?;
            }
            let right = &mut self.rights[n];
            for (_, nodes) in CONNECTIONS.iter().filter(|(device, _)| lent.iter().any(|(name, _)| name == device)) {
                let memory = memfd::create(c"hurdle-nodes").map_err(system("no memory for the fs server"))?;
                right.attachments.push((nodes.to_string(), memory));
            }
            right.attachments.extend(lent);
            right.holder = Holder::Lent(borrower);
            self.hand_over(n);
        }
        while !self.launched.words.is_empty() && self.over.is_none() {
            self.over = self.turn()?;
            if let Some(Holder::Failed { reason, .. }) = self.rights.first().map(|right| &right.holder) {
                return Err(Error::SetUp(format!("the server of its files failed: {reason}")));
            }
        }
        if self.launched.words.is_empty() { Ok(()) } else { Err(self.launched.failure()) }
    }

    /// The next word of init.
    pub(super) fn word(&mut self) -> Result<(), Error> {
        let ready = self.launched.words.front() == Some(&READY);
        let lent = self.launched.word()?;
        if !ready {
            return Ok(());
        }
        let mut attachments = Vec::new();
        for (name, fd) in lent {
            match name.as_str() {
                "nest" => self.nest = Some(fd),
                "door" => self.door = Some(fd),
                _ => attachments.push((name, fd)),
            }
        }
        if !attachments.is_empty() {
            let n = self.find("net").map_err(|e| Error::SetUp(e.reason))?;
            let ledger = Ledger::create().map_err(|e| Error::System("no memory for trapped calls", e))?;
            self.filters = Place::filters(&self.launched.init.pidfd).unwrap_or(0);
            self.rights[n].attachments.extend(attachments.into_iter().chain([("ledger".to_string(), ledger)]));
        }
        Ok(())
    }
}
