//! What servers left behind. One that forks, and ends, does not get away: orphans of servers become children of the core
//! (PR_SET_CHILD_SUBREAPER), which ends those that it does not know. And calls that one received and told nobody about are made again.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use hurdle_proto::spec::{Layer, Spec};
use hurdle_sys::process::{self, State};
use hurdle_sys::target;

use super::Env;
use crate::os;
use crate::right::Holder;

/// How long an orphan has to end by itself. The worker of a net server finishes the answer that it is giving; its successor waits for
/// it for a second, and does not come at once.
const GRACE: Duration = Duration::from_secs(3);
/// How long to wait between two looks at least.
const AGAIN: Duration = Duration::from_millis(20);
/// How long the end of an environment goes on to look for orphans.
const LAST: Duration = Duration::from_secs(1);

/// When to look for orphans.
#[derive(Default)]
pub(super) struct Strays {
    due: Option<Instant>,
    /// Orphans, and since when they are.
    seen: HashMap<i32, Instant>,
    /// Who stands between this core and a server of the user's. One whose server has ended is an orphan, with all that it left.
    pub(super) guards: HashSet<i32>,
    /// Whether calls may have been received of which nobody knows.
    calls: bool,
}

impl Strays {
    /// A server has ended.
    pub(super) fn look(&mut self) {
        self.due = Some(Instant::now());
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl Env {
    /// A server of right `n` has ended that served `spec`. Which calls it was about to answer is in the ledger, if it is one of hurdle's.
    pub(super) fn left_behind(&mut self, n: usize, spec: &Spec) {
        self.strays.look();
        self.strays.calls |= self.rights[n].trap().is_some() && spec.layers().iter().any(Layer::is_program);
    }

    /// Ends orphans, each once it has had its time.
    pub(super) fn end_strays(&mut self) {
        let now = Instant::now();
        if self.strays.due.is_none_or(|due| due > now) {
            return;
        }
        let Some(orphans) = self.orphans() else {
            self.strays.due = Some(now + AGAIN);
            return;
        };
        let Strays { seen, guards, .. } = &mut self.strays;
        seen.retain(|pid, _| orphans.contains(pid));
        let mut gone = false;
        for pid in &orphans {
            let since = *seen.entry(*pid).or_insert(now);
            if since + GRACE <= now {
                // A guard ends all that it has. One that was stopped does not hear it.
                let asked = guards.contains(pid) && since + 2 * GRACE > now;
                let _ = process::kill(*pid, if asked { process::END } else { os::SIGKILL });
            }
            // Most have ended by now.
            let status = process::try_wait(Some(*pid)).map(|waited| waited.map(|(_, status)| status.state()));
            if !matches!(status, Ok(None | Some(State::Stopped(_) | State::Continued))) {
                seen.remove(pid);
                guards.remove(pid);
                gone = true;
            }
        }
        // Soon at first, since most end at once, and the less often the longer it takes.
        let next = |since: &Instant| {
            let age = now - *since;
            now + age.min(GRACE.saturating_sub(age)).max(AGAIN)
        };
        // What one that is gone has left came after the look.
        self.strays.due = if gone { Some(now) } else { seen.values().map(next).min() };
        if self.strays.due.is_none() && std::mem::take(&mut self.strays.calls) {
            let (init, calls) = (self.launched.init.pid, self.trapped.clone());
            // It traces, which binds the thread and takes its time. Without one, programs wait until a signal comes.
            let _ = std::thread::Builder::new().spawn(move || target::call_again(init, &calls));
        }
    }

    /// The same at the end, at once, whatever orphans these had in turn.
    pub(super) fn end_all_strays(&self) {
        let end = Instant::now() + LAST;
        while self.borrowers > 0 && Instant::now() < end {
            let orphans = self.orphans().unwrap_or_default();
            for pid in &orphans {
                let _ = process::kill(*pid, os::SIGKILL);
                let _ = process::wait_end(*pid);
            }
            if orphans.is_empty() {
                return;
            }
        }
    }

    /// Children that are none of this core's own: not reaped yet, so the numbers are theirs. `None`: somebody is being started just
    /// now, and not known yet.
    pub(super) fn orphans(&self) -> Option<Vec<i32>> {
        let guests = self.guests.started.try_lock().ok()?;
        let mut known = vec![self.launched.init.pid];
        known.extend(self.porter.iter().map(|porter| porter.pid));
        for right in &self.rights {
            if let Holder::Lent(borrower) = &right.holder {
                known.push(borrower.process.own());
            }
            known.extend(right.successor());
        }
        let own = |pid: &i32| known.contains(pid) || guests.contains(pid);
        Some(process::children().unwrap_or_default().into_iter().filter(|pid| !own(pid)).collect())
    }
}
