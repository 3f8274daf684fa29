//! What happens next, all of it from the seed: the same seed gives the same plan, whatever the machine makes of it.

/// Numbers that look random (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// Those of one act of one user's plan.
    pub(crate) fn of(seed: u64, user: u64, act: u64) -> Self {
        let mut random = Self(seed ^ user.wrapping_mul(0xd6e8_feb8_6659_fd93));
        random.0 = random.next().wrapping_add(act);
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// One of them.
    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        if all.is_empty() { None } else { Some(all[self.below(all.len())]) }
    }
}

/// What is done to the environments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// SIGKILL to a net server: the only one, or one of a stack.
    KillNet,
    /// SIGKILL to a server while somebody asks it.
    KillAsked(&'static str),
    /// Another net server, live.
    Swap,
    /// A nested environment with a load of its own, this deep.
    Nest(usize),
    /// A nested one ends by itself.
    EndNested,
    /// SIGKILL to one of the cores of a nested one.
    KillNested,
    /// SIGKILL to the core, or to pid 1, of a whole environment.
    KillWhole,
    /// `ls`, `ps`, `enter` or `rpc`.
    Look,
}

/// The next act, by how often each is to be.
pub(crate) fn act(random: &mut Random) -> Act {
    match random.below(100) {
        0..40 => Act::KillNet,
        40..47 => Act::KillAsked("auth"),
        47..54 => Act::KillAsked("proc"),
        54..70 => Act::Swap,
        70..77 => Act::Nest(1 + random.below(4)),
        77..81 => Act::EndNested,
        81..84 => Act::KillNested,
        84..86 => Act::KillWhole,
        _ => Act::Look,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acts(seed: u64, user: u64) -> Vec<Act> {
        (0..2000).map(|number| act(&mut Random::of(seed, user, number))).collect()
    }

    #[test]
    fn a_seed_is_a_plan() {
        assert_eq!(acts(7, 0), acts(7, 0));
        assert_ne!(acts(7, 0), acts(7, 1));
        assert_ne!(acts(7, 0), acts(8, 0));
        for wanted in [Act::KillNet, Act::Swap, Act::Nest(4), Act::KillNested, Act::KillWhole, Act::KillAsked("auth")] {
            assert!(acts(7, 0).contains(&wanted), "{wanted:?}");
        }
    }
}
