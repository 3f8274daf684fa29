//! What the clients of a load say of themselves: how much they did, and whether anything failed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::shell::Result;

/// The load itself, and the client that checks each byte.
pub(crate) const LOAD: &str = include_str!("../../../../tests/load/load.sh");
pub(crate) const ECHO: &str = include_str!("../../../../tests/load/echo.py");

/// How long a client may take for a round, which is short: on a machine that has much else to do.
const LIMIT: Duration = Duration::from_secs(90);

/// The clients of one environment.
pub(crate) struct Load {
    dir: PathBuf,
    clients: Vec<Client>,
}

struct Client {
    name: &'static str,
    path: PathBuf,
    at: u64,
    /// A line that has no end yet.
    rest: String,
    operations: u64,
    last: Instant,
}

impl Load {
    /// Of these clients, which write to files in `dir`.
    pub(crate) fn new(dir: &Path, clients: &[&'static str]) -> Self {
        let client = |name: &&'static str| Client {
            name,
            path: dir.join(format!("{name}.txt")),
            at: 0,
            rest: String::new(),
            operations: 0,
            last: Instant::now(),
        };
        Self { dir: dir.to_owned(), clients: clients.iter().map(client).collect() }
    }

    /// Reads what they have said since. An error: one of them failed, or does not go on.
    pub(crate) fn look(&mut self) -> Result {
        for client in &mut self.clients {
            client.read()?;
            if client.last.elapsed() > LIMIT {
                return Err(format!("{} does not go on: no round in {LIMIT:?}", client.path.display()).into());
            }
        }
        Ok(())
    }

    /// Whether each has come to the end of a round.
    pub(crate) fn is_up(&self) -> bool {
        self.clients.iter().all(|client| client.operations > 0)
    }

    /// What each did so far.
    pub(crate) fn operations(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.clients.iter().map(|client| (client.name, client.operations))
    }

    /// Has them end after this round.
    pub(crate) fn stop(&self) -> Result {
        Ok(std::fs::write(self.dir.join("stop"), "")?)
    }
}

impl Client {
    fn read(&mut self) -> Result {
        let Ok(mut file) = File::open(&self.path) else { return Ok(()) };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.at))?;
        file.read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        // redis-benchmark overwrites its lines.
        while let Some(end) = self.rest.find(['\n', '\r']) {
            let line: String = self.rest.drain(..=end).collect();
            if is_bad(&line) {
                // What it says next explains it.
                return Err(format!("{} failed: {line}{}", self.name, self.rest).into());
            }
            if let Some(done) = operations(self.name, &line) {
                self.operations += done;
                self.last = Instant::now();
            }
        }
        Ok(())
    }
}

/// What no client says while all is well.
fn is_bad(line: &str) -> bool {
    let words = ["FAILED", "Socket errors", "Non-2xx", "Could not", "rror", "reset", "aborted", "Traceback"];
    let failed = line.strip_prefix("number of failed transactions: ").is_some_and(|rest| !rest.starts_with("0 "));
    failed || words.iter().any(|word| line.contains(word))
}

/// How many operations this line is the end of.
fn operations(client: &str, line: &str) -> Option<u64> {
    let first = |text: &str| text.split_whitespace().next()?.parse().ok();
    match client {
        "close" | "keep" => line.contains(" requests in ").then(|| first(line))?,
        "each" => line.contains("requests per second").then_some(100),
        "kept" => line.contains("requests per second").then_some(2000),
        "bank" | "desk" => first(line.strip_prefix("number of transactions actually processed: ")?),
        _ => line.contains(" exchanges").then(|| first(line))?,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_print_is_understood() {
        assert_eq!(operations("close", "  1234 requests in 1.00s, 1MB read\n"), Some(1234));
        assert_eq!(operations("kept", "GET: 95238.09 requests per second, p50=0.023 msec\n"), Some(2000));
        assert_eq!(operations("bank", "number of transactions actually processed: 77\n"), Some(77));
        assert_eq!(operations("echo", "200 exchanges\n"), Some(200));
        assert_eq!(operations("echo", "GET: rps=100.0\r"), None);
        for bad in
            ["FAILED with 1\n", "number of failed transactions: 3 (1.0%)\n", "  Socket errors: connect 0, read 1\n"]
        {
            assert!(is_bad(bad), "{bad}");
        }
        for good in
            ["number of failed transactions: 0 (0.000%)\n", "GET: rps=100.0 (overall: 1.0)\r", "200 exchanges\n"]
        {
            assert!(!is_bad(good), "{good}");
        }
    }
}
