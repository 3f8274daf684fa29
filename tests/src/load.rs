//! Load on an environment: nginx and redis with their clients, over connections that are kept and over a new one for each request.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::{Hurdle, Running, skip, until};

const PROGRAMS: [&str; 5] = ["nginx", "curl", "wrk", "redis-server", "redis-benchmark"];

/// nginx and redis, asked over kept connections and over a new one for each request, until the file `stop` is there. Each client says
/// in a file of its own how it went.
const LOAD: &str = r#"
cd "$1"
nginx -p "$1" -e "$1/error.log" -c "$1/nginx.conf" &
redis-server --save '' --port 6379 >redis.log &
until curl -s http://127.0.0.1:8080/ && redis-cli ping; do sleep 0.05; done >up 2>&1
ask() { until [ -e stop ]; do "$@" || echo "FAILED with $?"; done; }
ask wrk -t1 -c4 -d1s --timeout 20s -H 'Connection: close' http://127.0.0.1:8080/ >close.txt 2>&1 & clients=$!
ask wrk -t1 -c4 -d1s --timeout 20s http://127.0.0.1:8080/ >keep.txt 2>&1 & clients="$clients $!"
ask redis-benchmark -q -n 500 -c 5 -k 0 -t get >each.txt 2>&1 & clients="$clients $!"
ask redis-benchmark -q -n 20000 -c 5 -t get >kept.txt 2>&1 & clients="$clients $!"
wait $clients
"#;

const CLIENTS: [&str; 4] = ["close.txt", "keep.txt", "each.txt", "kept.txt"];

fn nginx(dir: &Path) -> String {
    let mut places = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = write!(places, "{kind}_temp_path {}/{kind}; ", dir.display());
    }
    format!(
        "daemon off; worker_processes 2; pid {dir}/nginx.pid; error_log {dir}/error.log;
         events {{ worker_connections 512; }}
         http {{ access_log off; {places} server {{ listen 127.0.0.1:8080; root {dir}; }} }}",
        dir = dir.display()
    )
}

/// nginx and redis in an environment, and their clients.
#[derive(Debug)]
pub struct Load<'a> {
    hurdle: &'a Hurdle,
    /// The environment.
    pub name: String,
    running: Running,
}

impl<'a> Load<'a> {
    /// Starts it with these options of `hurdle run`. `None`: not here, which is said.
    #[track_caller]
    pub fn start(hurdle: &'a Hurdle, test: &str, options: &[&str]) -> Option<Load<'a>> {
        if let Some(missing) = skip::missing(&PROGRAMS) {
            skip::skip(test, &format!("{missing} is not installed"));
            return None;
        }
        let dir = hurdle.logs();
        fs::write(dir.join("nginx.conf"), nginx(dir)).expect("own file");
        fs::write(dir.join("index.html"), "in the fold\n").expect("own file");
        let name = hurdle.name(test);
        let mut run = hurdle.run(&[&["--name", &name], options].concat(), "/bin/sh");
        let running = hurdle.start(run.args(["-c", LOAD, "sh"]).arg(dir), "load");
        let load = Load { hurdle, name, running };
        load.goes_on();
        Some(load)
    }

    /// How much the clients have said so far.
    fn said(&self) -> [usize; 4] {
        CLIENTS.map(|file| fs::metadata(self.hurdle.logs().join(file)).map_or(0, |meta| meta.len() as usize))
    }

    /// Waits until each client has come to the end of a round.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.said();
        until("each client goes on", || self.said().iter().zip(before).all(|(now, then)| *now > then).then_some(()));
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
        for file in CLIENTS {
            let text = fs::read_to_string(self.hurdle.logs().join(file)).expect("own file");
            for bad in ["FAILED", "Socket errors", "Non-2xx", "Could not", "Error", "reset"] {
                assert!(!text.contains(bad), "{file}: {bad}: {text}");
            }
        }
        assert!(ended.success(), "{ended}");
        self.hurdle.assert_nothing_left();
    }
}
