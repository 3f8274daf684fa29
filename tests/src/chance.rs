//! Random moments and victims, for tests of deaths.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// How often something dies in a test: what `HURDLE_DEATHS` says, else 60 times.
pub fn deaths() -> usize {
    std::env::var("HURDLE_DEATHS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// A number that is hard to foretell, below `limit`.
pub fn below(limit: usize) -> usize {
    let hash = RandomState::new().hash_one(0) as usize;
    hash % limit.max(1)
}

/// Lets some time pass, less than `limit`: what happens next is to come at any moment.
pub fn moment(limit: Duration) {
    std::thread::sleep(limit.mul_f64(below(1000) as f64 / 1000.0));
}
