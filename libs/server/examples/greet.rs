//! A whole server for an interface of one's own. Try it:
//!
//! ```console
//! $ hurdle run --name hall --detach --server greet=./target/…/examples/greet -- sleep 60
//! $ hurdle rpc hall greet.hello world
//! "hello, world: you are caller 1"
//! ```
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use hurdle_wire::{Context, Refused};

hurdle_wire::interface! {
    /// Greets who calls.
    pub mod greet = 1000 {
        /// Says hello to `name`, and counts.
        1 fn hello(name: String) -> String;
    }
}

#[derive(Default)]
struct Greeter {
    callers: AtomicU32,
}

impl greet::Server for Greeter {
    async fn hello(&self, _: &Context, name: String) -> Result<String, Refused> {
        if name.is_empty() {
            return Err(Refused::new(hurdle_server::EINVAL, "nobody to greet: the name is empty"));
        }
        let caller = self.callers.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(format!("hello, {name}: you are caller {caller}"))
    }
}

fn main() -> ExitCode {
    hurdle_server::run(|_| Ok(greet::service(Greeter::default())))
}
