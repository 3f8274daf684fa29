//! A `hurdle` of its own that the demo starts: what it prints, by the line and with a deadline, and its end.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::failure::Failure;

/// A measurement that takes a second must not take ten.
const PATIENCE: Duration = Duration::from_secs(10);

/// One environment of the demo. It ends when this is dropped.
pub(crate) struct Part {
    what: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    complaint: Option<JoinHandle<String>>,
}

impl Part {
    /// Runs this binary with `arguments`.
    pub(crate) fn start(arguments: &[&str]) -> Result<Part, Failure> {
        let what = format!("hurdle {}", arguments.join(" "));
        let mut child = Command::new("/proc/self/exe")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Failure::new(&what, e))?;
        let (sender, lines) = channel();
        if let Some(out) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let complaint = child.stderr.take().map(|err| std::thread::spawn(move || read(err)));
        Ok(Part { what, input: child.stdin.take(), child, lines, complaint })
    }

    /// The next line that it prints, which is JSON.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => serde_json::from_str(&line).map_err(|e| Failure::new(&self.what, format!("{e} in {line:?}"))),
            Err(RecvTimeoutError::Timeout) => {
                Err(Failure::new(&self.what, format!("it said nothing for {} seconds", PATIENCE.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let said = self.complaint.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
                // Its own words name the cause already.
                let last =
                    said.trim().lines().last().unwrap_or("it ended without a word").trim_start_matches("hurdle: ");
                let hint = if last.contains("hurdle doctor") {
                    ""
                } else {
                    " (`hurdle doctor` tells what this machine lacks)"
                };
                Err(Failure::new(&self.what, format!("{last}{hint}")))
            }
        }
    }

    /// Asks it to go on with a line.
    pub(crate) fn ask(&mut self) -> Result<(), Failure> {
        let asked = self.input.as_mut().map(|input| input.write_all(b"\n"));
        asked.unwrap_or(Ok(())).map_err(|e| Failure::new(&self.what, e))
    }

    /// Ends its standard input, and takes its last word.
    pub(crate) fn last<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        self.input = None;
        self.next()
    }
}

fn read(mut err: ChildStderr) -> String {
    let mut said = String::new();
    let _ = err.read_to_string(&mut said);
    said
}

impl Drop for Part {
    fn drop(&mut self) {
        self.input = None;
        // The end of a core is the end of its environment.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
