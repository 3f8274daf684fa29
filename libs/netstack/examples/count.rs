//! A net server that stands between, counts what programs ask for, and prints it. Try it:
//!
//! ```console
//! $ hurdle run --name web --detach --net './target/…/examples/count+local' -- ./my-server
//! $ hurdle ls web --json
//! ```
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use hurdle_netstack::between::{Answer, Between, Call, Next, run};

#[derive(Default)]
struct Count {
    calls: Mutex<BTreeMap<String, u64>>,
}

impl Between for Count {
    async fn call(&self, call: Call, next: Next) -> Answer {
        let name = call.to_string();
        let answer = next.pass().await;
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let count = calls.entry(name.clone()).or_default();
        *count += 1;
        eprintln!("{name}: {count} times, now {answer:?}");
        answer
    }
}

fn main() -> ExitCode {
    run(|_| Ok(Count::default()))
}
