//! What a command is at, for the user at the terminal, once it takes longer than a second.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long nothing is said, and how often it is said anew.
const BEAT: Duration = Duration::from_secs(1);

/// Does `work`. If standard error is a terminal, a line there says `what`, and since when, from the first second on; it is taken
/// away at the end. `work` prints nothing itself.
pub(crate) fn during<T>(what: &str, work: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return work();
    }
    let (done, waits) = channel::<()>();
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let tell = move || {
            let mut text = String::new();
            while waits.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                text = format!("{what} … {} s", begin.elapsed().as_secs());
                line(&text);
            }
            if !text.is_empty() {
                line("");
            }
        };
        // Without a thread to be had there is no word of it, and that is all.
        let _ = std::thread::Builder::new().name("progress".into()).spawn_scoped(scope, tell);
        // Ends the line, also when `work` panics.
        let _done = done;
        work()
    })
}

/// The one line, instead of what it said before.
pub(crate) fn line(text: &str) {
    let _ = write!(io::stderr(), "\r\x1b[K{text}");
}
