//! A thousand environments alive at once, each with a network and a listening program of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::launch::of_hurdle;
use super::rows::Found;
use crate::process::family;
use crate::shell::{Result, output, succeeds};

/// How many.
const MANY: usize = 1000;
/// How long the last may take to listen.
const LIMIT: Duration = Duration::from_secs(300);

/// All of them, and how long they took to be there. They end with this value.
struct Many {
    hurdle: PathBuf,
    names: Vec<String>,
    took: Duration,
}

impl Many {
    fn start(stage: &Path, quick: bool) -> Result<Self> {
        let count = if quick { MANY / 20 } else { MANY };
        let name = |number: usize| format!("many-{}-{number}", std::process::id());
        let begin = Instant::now();
        let mut many =
            Self { hurdle: stage.join("hurdle"), names: (0..count).map(name).collect(), took: Duration::ZERO };
        let workers = std::thread::available_parallelism()?.get();
        let detach = |name: &String| -> Result {
            let mut command = Command::new(&many.hurdle);
            command.args(["run", "--detach", "--name", name, "--net", "local", "--"]).arg(stage.join("xtask"));
            command.args(["inside", "many-rate"]).arg(stage.join("files").join(name));
            // What is detached keeps the standard error.
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
            if status.success() { Ok(()) } else { Err(format!("{name}: {status}").into()) }
        };
        std::thread::scope(|scope| {
            let start = |names: &[String]| names.iter().try_for_each(detach).map_err(|error| error.to_string());
            let threads: Vec<_> =
                many.names.chunks(count.div_ceil(workers)).map(|names| scope.spawn(move || start(names))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("a worker panicked".to_owned())))
        })?;
        for name in &many.names {
            while !stage.join("files").join(name).exists() {
                if begin.elapsed() > LIMIT {
                    return Err(format!("{name} does not listen").into());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        many.took = begin.elapsed();
        Ok(many)
    }

    /// All of them are there, and each has a net server that serves.
    fn list(&self) -> Result<(Duration, Vec<serde_json::Value>)> {
        let begin = Instant::now();
        let text = output(Command::new(&self.hurdle).args(["--json", "ls"]))?;
        let took = begin.elapsed();
        let all: Vec<serde_json::Value> = serde_json::from_str(&text)?;
        let serves = |info: &&serde_json::Value| {
            let rights = info["rights"].as_array().map_or(&[][..], Vec::as_slice);
            let net = rights.iter().find(|right| right["interface"] == "net");
            let own = info["name"].as_str().is_some_and(|name| self.names.iter().any(|own| own == name));
            own && net.is_some_and(|net| net["state"]["Running"].is_object() && net["deaths"] == 0)
        };
        let there: Vec<serde_json::Value> = all.iter().filter(serves).cloned().collect();
        if there.len() == self.names.len() {
            return Ok((took, there));
        }
        Err(format!("{} environments, and {} of them serve", self.names.len(), there.len()).into())
    }
}

impl Drop for Many {
    fn drop(&mut self) {
        // Those that there are, each by itself if one is not.
        if !succeeds(Command::new(&self.hurdle).arg("kill").args(&self.names)) {
            self.names.iter().for_each(|name| _ = succeeds(Command::new(&self.hurdle).args(["kill", name])));
        }
    }
}

fn found(figure: f64) -> Found {
    vec![("hurdle".into(), vec![figure])]
}

/// How many are made in a second, counted until the last one listens.
pub(crate) fn rate(stage: &Path, quick: bool) -> Result<Found> {
    let many = Many::start(stage, quick)?;
    many.list()?;
    Ok(found(many.names.len() as f64 / many.took.as_secs_f64()))
}

/// Memory of each: its core, init and net server, in MiB.
pub(crate) fn memory(stage: &Path, quick: bool) -> Result<Found> {
    let many = Many::start(stage, quick)?;
    // Idle means: a second after it last had something to do.
    std::thread::sleep(Duration::from_secs(1));
    let mut figures = Vec::new();
    for info in many.list()?.1.iter().step_by(20) {
        let core = info["core"].as_i64().and_then(|pid| i32::try_from(pid).ok()).ok_or("no core")?;
        let all: Result<Vec<u64>> = family(core).into_iter().filter_map(|pid| of_hurdle(pid).transpose()).collect();
        figures.push(all?.iter().sum::<u64>() as f64 / 1024.0);
    }
    Ok(vec![("hurdle".into(), figures)])
}

/// The time of `hurdle ls`, in ms.
pub(crate) fn ls(stage: &Path, quick: bool) -> Result<Found> {
    let many = Many::start(stage, quick)?;
    let times: Result<Vec<f64>> = (0..5).map(|_| Ok(many.list()?.0.as_secs_f64() * 1e3)).collect();
    Ok(vec![("hurdle".into(), times?)])
}

/// The workload: listens, says so by making the file `ready`, and waits for its end.
pub(crate) fn listen(ready: &Path) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:8080")?;
    std::fs::write(ready, "")?;
    loop {
        drop(listener.accept()?);
    }
}
