//! Whether who lists directories looks at the files in them too.
//!
//! A listing can show what each file looks like, and spares who asks for that (tar, `ls -l`) a request for each. But it takes a
//! look at each file, which on a cold disk is a read: who wants the names alone (find) would wait for it. So files are shown
//! from the moment that one is looked up whose listing left it out; and now and then a listing leaves them out, to see
//! whether anybody still misses them.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::places::lock;
use super::table::Id;

/// Directories that were listed last without their files' looks.
const BARE: usize = 64;
/// One of so many listings leaves them out though they are wanted.
const PROBE: u32 = 64;
/// So many of these may miss nothing.
const UNMISSED: u32 = 2;

/// What is known of that.
#[derive(Debug)]
pub(super) struct Looks {
    state: Mutex<State>,
    /// Whether a file that is looked up may say something new.
    curious: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    bare: VecDeque<Id>,
    listings: u32,
    unmissed: u32,
}

impl Default for Looks {
    fn default() -> Looks {
        Looks { state: Mutex::default(), curious: true.into() }
    }
}

impl Looks {
    /// Whether the next listing is to show what files look like.
    pub(super) fn wanted(&self) -> bool {
        let mut state = lock(&self.state);
        state.listings = state.listings.wrapping_add(1);
        state.wanted && !state.listings.is_multiple_of(PROBE)
    }

    /// A directory's files were listed without their looks.
    pub(super) fn left_out(&self, directory: Id) {
        let mut state = lock(&self.state);
        if state.bare.len() == BARE {
            state.bare.pop_front();
        }
        state.bare.push_back(directory);
        state.unmissed += 1;
        state.wanted &= state.unmissed <= UNMISSED;
        self.curious.store(true, Ordering::Relaxed);
    }

    /// A file of a directory was looked up.
    pub(super) fn looked_up(&self, directory: Id) {
        if !self.curious.load(Ordering::Relaxed) {
            return;
        }
        let mut state = lock(&self.state);
        if state.bare.contains(&directory) {
            (state.wanted, state.unmissed) = (true, 0);
            state.bare.clear();
            self.curious.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many directories are listed with their files' looks, by who looks at a file of each or of none.
    fn shown(looks: &Looks, directories: std::ops::Range<Id>, looks_at_files: bool) -> usize {
        let mut shown = 0;
        for directory in directories {
            if looks.wanted() {
                shown += 1;
            } else {
                looks.left_out(directory);
                if looks_at_files {
                    looks.looked_up(directory);
                }
            }
        }
        shown
    }

    #[test]
    fn files_are_shown_to_who_looks_at_them() {
        let looks = Looks::default();
        assert_eq!(shown(&looks, 0..1000, false), 0, "names alone");
        let many = shown(&looks, 1000..2000, true);
        assert!((900..1000).contains(&many), "{many}");
        let few = shown(&looks, 2000..3000, false);
        assert!(few <= (PROBE * (UNMISSED + 1)) as usize, "{few}");
        looks.looked_up(5);
        assert_eq!(shown(&looks, 3000..3100, false), 0, "a file that no listing left out says nothing");
        looks.looked_up(3099);
        assert!(looks.wanted());
    }
}
