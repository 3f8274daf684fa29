//! The porter of the environment: who starts it and sees its end.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdle_sys::process::{self, Until};

use super::Env;
use crate::os;
use crate::porter::{First, Porter, held};

/// How long to wait between two looks for what keeps pid 1 from its end.
const AGAIN: Duration = Duration::from_millis(20);

impl Env {
    /// Has one stand where this caller does. One that stands elsewhere stays there until it leaves.
    pub(super) fn engage_porter(&mut self, first: First) {
        if self.porter.is_some() {
            return;
        }
        // The caller has what he asked for. Without a porter the next one waits as long.
        let Ok(porter) = Porter::start(first).map(Arc::new) else { return };
        porter.stock(&mut held(&self.guests.started));
        self.engaged = true;
        self.porter = Some(porter.clone());
        *held(&self.guests.porter) = Some(porter);
    }

    /// Ends it, if it has not ended by itself.
    pub(super) fn dismiss_porter(&mut self) {
        let Some(porter) = self.porter.take() else { return };
        *held(&self.guests.porter) = None;
        porter.dismiss(&mut held(&self.guests.started));
        // Copies that nobody has heard of.
        self.strays.look();
    }

    /// Pid 1 ends after all others in its namespace, some of which are children of this core and to be reaped by it. It knows them all
    /// but copies of a porter that were ended before they said a word.
    pub(super) fn clear_the_way(&self) {
        let init = [(self.launched.init.pidfd.as_fd(), Until::Readable)];
        let ended = || process::poll(&init, Some(Instant::now() + AGAIN)).is_ok_and(|ended| ended[0]);
        while self.engaged && !ended() {
            for pid in self.orphans().unwrap_or_default() {
                let _ = process::kill(pid, os::SIGKILL);
                let _ = process::try_wait(Some(pid));
            }
        }
    }
}
