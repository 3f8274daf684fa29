//! `delay,ms=N+…`: each connection takes so many milliseconds longer to be made. What is then sent on it is not delayed.

use std::time::Duration;

use hurdle_netstack::between::{Answer, Between, Call, Next};

pub(crate) struct Delay(pub(crate) Duration);

impl Between for Delay {
    async fn call(&self, call: Call, next: Next) -> Answer {
        if call.name() == "connect" && call.address().is_some() {
            tokio::time::sleep(self.0).await;
        }
        next.pass().await
    }
}
