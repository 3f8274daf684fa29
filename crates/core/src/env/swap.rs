//! A swap: the successor starts, the holder returns the right, the successor is lent it.

use std::time::Instant;

use hurdle_proto::core::Swapped;
use hurdle_proto::spec::Spec;
use hurdle_wire::{CallError, Refused};

use super::{Answer, Ask, Env, PATIENCE};
use crate::os;
use crate::right::Holder;

impl Env {
    /// Starts the successor; once it is up, asks the holder to return the right.
    pub(super) fn swap(&mut self, interface: &str, to: Spec, answer: Answer<Result<Swapped, Refused>>) {
        let checked = self.find(interface).and_then(|n| {
            let right = &self.rights[n];
            if right.swap.is_some() {
                return Err(Refused::new(os::EBUSY, "another swap is under way; try again"));
            }
            let invalid = |why| Refused::new(os::EINVAL, why);
            self.policy.may_swap(interface, &right.spec, &to, right.trap().is_some()).map_err(invalid)?;
            if !matches!(right.holder, Holder::Lent(_)) {
                return Ok((n, None));
            }
            self.new_borrower(n, &to).map(|successor| (n, Some(successor))).map_err(invalid)
        });
        match checked {
            Err(refused) => _ = answer.send(Err(refused)),
            Ok((n, None)) => _ = answer.send(Ok(self.rights[n].replace(to))),
            Ok((n, Some(successor))) => {
                let Holder::Lent(holder) = &self.rights[n].holder else { return };
                let (id, up, old, mailbox) =
                    (successor.id, successor.boot.clone(), holder.boot.clone(), self.mailbox.clone());
                self.rights[n].begin_swap(to, successor, answer);
                let wanted = std::thread::Builder::new().spawn(move || {
                    let described = hurdle_wire::describe_within(up.connection(), PATIENCE);
                    if let Err(e @ (CallError::Dead | CallError::Timeout)) = described {
                        return mailbox.post(Ask::Stillborn { successor: id, why: e.to_string() });
                    }
                    // Whether it answers or not, the predecessor must return the right before it is lent again.
                    let since = Instant::now();
                    let _ = old.give_back().deadline(PATIENCE).wait();
                    mailbox.post(Ask::Returned { successor: id, since });
                });
                if let Err(e) = wanted {
                    self.stillborn(id, &format!("no thread: {e}"));
                }
            }
        }
    }

    fn right_of(&self, successor: u64) -> Option<usize> {
        self.rights.iter().position(|right| right.swap.as_ref().is_some_and(|swap| swap.id == successor))
    }

    pub(super) fn returned(&mut self, successor: u64, since: Instant) {
        let Some(n) = self.right_of(successor) else { return };
        if let Some((old, swap, swapped)) = self.rights[n].pass_on() {
            let from = swapped.from.clone();
            self.swaps.insert(successor, (swap.answer, swapped, since));
            drop(old);
            self.left_behind(n, &from);
        }
        self.hand_over(n);
    }

    pub(super) fn stillborn(&mut self, successor: u64, why: &str) {
        let Some(n) = self.right_of(successor) else { return };
        if let Some((said, answer)) = self.rights[n].call_off() {
            let said = if said.is_empty() { said } else { format!("; it said: {said}") };
            let why = format!("the new server did not come up ({why}){said}; the former one goes on");
            let _ = answer.send(Err(Refused::new(os::EIO, why)));
            self.strays.look();
        }
        // The holder may have died meanwhile.
        if self.rights[n].awaited() {
            self.lend(n);
        }
    }
}
