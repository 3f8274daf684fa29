//! A net server that refuses everything with a reason: no program of the environment gets an inet socket. Try it:
//!
//! ```console
//! $ hurdle run --name quiet --net ./target/…/examples/refuse -- curl http://example.org
//! ```
//!
//! What it writes to its standard error, `hurdle ls quiet` shows.
use std::process::ExitCode;

use hurdle_netstack::between::{Answer, Between, Call, Next, run};

struct Refuse;

impl Between for Refuse {
    async fn call(&self, call: Call, _: Next) -> Answer {
        match call.name() {
            "socket" => {
                eprintln!("thread {} may have no network: this environment was started to work offline", call.thread());
                Answer::Fail(libc::ENETUNREACH)
            }
            // Of a socket that is no inet socket.
            _ => Answer::Native,
        }
    }
}

fn main() -> ExitCode {
    run(|_| Ok(Refuse))
}
