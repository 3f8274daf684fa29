//! Load on an environment: real servers with their clients, over connections that are kept and over a new one for each request.

use std::fs;
use std::time::Duration;

use crate::{Hurdle, Running, for_up_to, skip};

const PROGRAMS: [&str; 7] = ["nginx", "curl", "wrk", "redis-server", "redis-benchmark", "pgbench", "python3"];

/// nginx, redis, PostgreSQL and an echo server, asked over kept connections and over a new one for each request.
const LOAD: &str = include_str!("../load/load.sh");
const ECHO: &str = include_str!("../load/echo.py");

/// nginx and redis.
pub const WEB: &[&str] = &["close", "keep", "each", "kept"];
/// All of them.
pub const ALL: &[&str] = &["close", "keep", "each", "kept", "bank", "desk", "echo"];

/// How long a round of each client may take: PostgreSQL makes a database first.
const ROUND: Duration = Duration::from_secs(120);

/// Servers in an environment, and their clients.
#[derive(Debug)]
pub struct Load<'a> {
    hurdle: &'a Hurdle,
    /// The environment.
    pub name: String,
    clients: &'static [&'static str],
    running: Running,
}

impl<'a> Load<'a> {
    /// Starts nginx and redis with these options of `hurdle run`. `None`: not here, which is said.
    #[track_caller]
    pub fn start(hurdle: &'a Hurdle, test: &str, options: &[&str]) -> Option<Load<'a>> {
        Load::of(WEB, hurdle, test, options)
    }

    /// The same of these clients, and what they ask.
    #[track_caller]
    pub fn of(clients: &'static [&'static str], hurdle: &'a Hurdle, test: &str, options: &[&str]) -> Option<Load<'a>> {
        if let Some(missing) = skip::missing(&PROGRAMS) {
            skip::skip(test, &format!("{missing} is not installed"));
            return None;
        }
        let dir = hurdle.logs();
        fs::write(dir.join("echo.py"), ECHO).expect("own file");
        let name = hurdle.name(test);
        let mut run = hurdle.run(&[&["--name", &name], options].concat(), "/bin/sh");
        let running = hurdle.start(run.args(["-c", LOAD, "sh"]).arg(dir).args(clients), "load");
        let load = Load { hurdle, name, clients, running };
        load.goes_on();
        Some(load)
    }

    /// How much the clients have said so far.
    fn said(&self) -> Vec<usize> {
        let said = |client| fs::metadata(self.hurdle.logs().join(format!("{client}.txt")));
        self.clients.iter().map(|client| said(client).map_or(0, |meta| meta.len() as usize)).collect()
    }

    /// Waits until each client has come to the end of a round.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.said();
        let went = || self.said().iter().zip(&before).all(|(now, then)| now > then).then_some(());
        for_up_to(ROUND, "each client goes on", went);
    }

    /// Ends the load, and looks at what the clients said.
    ///
    /// # Panics
    /// Panics with what a client said if an operation failed.
    #[track_caller]
    pub fn end(self) {
        self.goes_on();
        fs::write(self.hurdle.logs().join("stop"), "").expect("own file");
        let ended = self.running.join();
        for client in self.clients {
            let text = fs::read_to_string(self.hurdle.logs().join(format!("{client}.txt"))).expect("own file");
            for bad in ["FAILED", "Socket errors", "Non-2xx", "Could not", "rror", "reset", "aborted", "Traceback"] {
                assert!(!text.contains(bad), "{client}: {bad}: {text}");
            }
            let failed =
                |line: &str| line.strip_prefix("number of failed transactions: ").is_some_and(|n| !n.starts_with("0 "));
            assert!(!text.lines().any(failed), "{client}: {text}");
        }
        assert!(ended.success(), "{ended}");
        self.hurdle.assert_nothing_left();
    }
}
