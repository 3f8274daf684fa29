//! A right is handed to its borrower, with all that comes with it.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use hurdle_proto::init::init;
use hurdle_proto::server::SERVERS;
use hurdle_sys::process::{self, Until};
use hurdle_sys::seqpacket;
use hurdle_wire::{CallError, Fd, Refused};

use super::{Ask, Env, PATIENCE};
use crate::control;
use crate::right::Holder;

/// How long a server may take from the end of its channel to its own.
const LAST_WORDS: Duration = Duration::from_millis(200);

impl Env {
    /// Sends the holder of right `n` all that comes with it.
    pub(super) fn hand_over(&mut self, n: usize) {
        self.tap_holder(n);
        let Holder::Lent(borrower) = &self.rights[n].holder else { return };
        let (id, boot, pid) = (borrower.id, borrower.boot.clone(), borrower.process.pid());
        let (ended, more) = (borrower.process.as_fd().try_clone_to_owned(), self.rights[n].more_clients());
        let granted = seqpacket::pair().and_then(|(ours, theirs)| {
            control::serve_store(ours, &self.rights[n].interface, pid, self.mailbox.clone(), &self.tracing.tap)?;
            let mut grant = self.rights[n].grant(&self.name, theirs)?;
            if grant.spec.layers().len() > 1 {
                // It starts the next one.
                grant.attachments.push((SERVERS.into(), File::open(self.policy.servers())?.into()));
            }
            Ok(grant)
        });
        let (mailbox, init) = (self.mailbox.clone(), (self.rights[n].interface == "proc").then(|| self.init.clone()));
        let lent = granted.and_then(|mut grant| {
            let (more, ended) = (more?, ended?);
            std::thread::Builder::new().spawn(move || {
                let result = match init.map(|init| channel_to(&init)).transpose() {
                    Err(e) => Err(e),
                    Ok(channel) => {
                        grant.attachments.extend(channel.map(|channel| ("init".to_string(), channel)));
                        let lent = boot.borrow(grant).deadline(PATIENCE).wait();
                        let told = |client| boot.connect(client).deadline(PATIENCE).wait();
                        lent.and_then(|()| more.into_iter().try_for_each(told))
                    }
                };
                if matches!(result, Err(CallError::Dead)) {
                    // Its end, if it is one, says more.
                    let _ = process::poll(&[(ended.as_fd(), Until::Readable)], Some(Instant::now() + LAST_WORDS));
                }
                mailbox.post(Ask::Borrowed { borrower: id, result });
            })
        });
        if let Err(e) = lent {
            self.lost(n, format!("the right can't be lent: {e}"), false);
        }
    }
}

/// A channel of its own to init, whose replies nobody else reads.
fn channel_to(init: &init::Client) -> Result<Fd, CallError> {
    let (ours, theirs) = seqpacket::pair().map_err(Refused::from)?;
    init.connect(Fd::from(ours)).deadline(PATIENCE).wait()?;
    Ok(Fd::from(theirs))
}
