//! A net server that stands between, and lets each connection take its time. Try it:
//!
//! ```console
//! $ hurdle run --net './target/…/examples/slow,ms=50+local' -- make test
//! ```
use std::process::ExitCode;
use std::time::Duration;

use hurdle_netstack::between::{Answer, Between, Call, Next, run};
use hurdle_wire::Refused;

struct Slow(Duration);

impl Between for Slow {
    async fn call(&self, call: Call, next: Next) -> Answer {
        if call.name() == "connect" && call.address().is_some() {
            tokio::time::sleep(self.0).await;
        }
        next.pass().await
    }
}

fn main() -> ExitCode {
    run(|borrowed| {
        let asked = borrowed.spec.layers()[0].option("ms").unwrap_or("100");
        let wrong = |_| Refused::new(libc::EINVAL, format!("ms={asked}: not a number of milliseconds"));
        Ok(Slow(Duration::from_millis(asked.parse().map_err(wrong)?)))
    })
}
