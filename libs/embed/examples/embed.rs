//! An environment as a value: a program of this one's choice on a network of its own, with an interface that this one serves.
//!
//! ```console
//! $ cargo run -p hurdle-embed --example embed
//! ```
use std::fs::File;
use std::io::Write as _;

use hurdle_embed::wire::{Context, Refused};
use hurdle_embed::{Environment, Error, Program};

hurdle_embed::wire::interface! {
    /// A till.
    pub mod till = 1001 {
        /// Puts money in; the sum.
        1 fn put(amount: u64) -> u64;
    }
}

#[derive(Default)]
struct Till(std::sync::atomic::AtomicU64);

impl till::Server for Till {
    async fn put(&self, _: &Context, amount: u64) -> Result<u64, Refused> {
        Ok(self.0.fetch_add(amount, std::sync::atomic::Ordering::Relaxed) + amount)
    }
}

fn main() -> Result<(), Error> {
    let env = Environment::builder().net("local").launch()?;
    // Every port is free in there.
    let serve = "import socket; s = socket.create_server(('127.0.0.1', 80)); print(s.getsockname()[1])";
    let said = env.output(Program::new("python3").args(["-c", serve]))?;
    println!("port {}", String::from_utf8_lossy(&said.stdout).trim());

    env.grant("till", till::service(Till::default()))?;
    let till: till::Client = env.client("till")?;
    println!("sum {} {}", till.put(3).wait()?, till.put(4).wait()?);

    // An open directory, whatever the environment's own files are.
    let listed = Program::new("ls").args(["-d", "/proc/self/fd/3/."]).fd(3, File::open("/")?);
    println!("listed {}", env.output(listed)?.status.success());

    println!("{}", env.swap("net", "none")?.to);
    let mut child = env.spawn(Program::new("sleep").arg("1000"))?;
    if std::env::args().nth(1).as_deref() == Some("stay") {
        println!("{}", env.name());
        std::io::stdout().flush()?;
        println!("{}", child.wait()?);
    }
    child.kill()?;
    println!("{}", child.wait()?);
    Ok(())
}
