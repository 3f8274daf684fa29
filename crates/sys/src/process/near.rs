//! Two threads that wait for each other in turns, kept on one CPU (sched_setaffinity(2)).
//!
//! The kernel wakes a thread on an idle CPU if there is one. To fetch that one back from its sleep takes longer than a short
//! answer, above all on a virtual machine (40 to 60 µs each way). Side by side, each hands its CPU to the other.

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread stays on one CPU until this is dropped, which that thread does.
#[derive(Debug)]
pub struct Near {
    before: CpuSet,
    not_send: PhantomData<*const ()>,
}

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

impl Near {
    /// Stays where it is now.
    pub fn stay() -> io::Result<Near> {
        let mut one = CpuSet::new();
        one.set(sched_getcpu()?)?;
        Near::on(&one)
    }

    /// Goes where the process behind `pidfd` stays. `None`: it stays nowhere.
    ///
    /// # Errors
    /// ESRCH: it has ended; EINVAL: the caller may not run there.
    pub fn beside(pidfd: BorrowedFd<'_>) -> io::Result<Option<Near>> {
        let there = sched_getaffinity(Pid::from_raw(super::pid_of(pidfd)?))?;
        // Alive after that: so it was its own number, nobody else's.
        super::pid_of(pidfd)?;
        let cpus = (0..CpuSet::count()).filter(|&cpu| there.is_set(cpu).unwrap_or(false)).count();
        if cpus == 1 { Near::on(&there).map(Some) } else { Ok(None) }
    }

    fn on(cpus: &CpuSet) -> io::Result<Near> {
        let before = sched_getaffinity(SELF)?;
        sched_setaffinity(SELF, cpus)?;
        Ok(Near { before, not_send: PhantomData })
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        let _ = sched_setaffinity(SELF, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::process::allowed_cpus;

    #[test]
    fn stays_beside_and_goes_back() {
        let before = allowed_cpus().unwrap();
        if before < 2 {
            return println!("SKIP: one CPU");
        }
        let sleeper = || std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let beside = |child: &std::process::Child| {
            let pidfd = crate::process::pidfd(i32::try_from(child.id()).unwrap()).unwrap();
            Near::beside(pidfd.as_fd()).unwrap()
        };
        let mut free = sleeper();
        assert!(beside(&free).is_none(), "it may run on {before} CPUs");
        let near = Near::stay().unwrap();
        assert_eq!(allowed_cpus().unwrap(), 1);
        let mut stays = sleeper();
        drop(near);
        assert_eq!(allowed_cpus().unwrap(), before);
        let near = beside(&stays).unwrap();
        assert_eq!(allowed_cpus().unwrap(), 1);
        drop(near);
        assert_eq!(allowed_cpus().unwrap(), before);
        for child in [&mut free, &mut stays] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
