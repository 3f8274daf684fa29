//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// How long a condition may take that should hold soon. Generous: it is spent only where something is broken.
pub const SOON: Duration = Duration::from_secs(20);

/// Asks `condition` again and again until it answers, for up to [`SOON`].
///
/// # Panics
/// Panics with `what` when the time is over.
#[track_caller]
pub fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    for_up_to(SOON, what, condition)
}

/// Asks `condition` again and again until it answers, for up to `limit`.
///
/// # Panics
/// Panics with `what` when the time is over.
#[track_caller]
pub fn for_up_to<T>(limit: Duration, what: &str, condition: impl FnMut() -> Option<T>) -> T {
    let Some(answer) = within(limit, condition) else { panic!("waited {limit:?} in vain: {what}") };
    answer
}

/// Asks `condition` again and again until it answers; none after `limit`.
pub fn within<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        let answer = condition();
        if answer.is_some() || Instant::now() > end {
            return answer;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
