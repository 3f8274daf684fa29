//! Time without service: the longest call of a program, while its net server is killed or replaced.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::rows::Found;
use crate::probe::{self, Probe};
use crate::process::{children, family};
use crate::shell::{Result, output};

/// The workload.
pub(crate) fn probe(_: &Path) -> Result<f64> {
    probe::run(Duration::ZERO).map(|()| 0.0)
}

/// An environment with the probe in it.
struct Mortal {
    hurdle: PathBuf,
    name: String,
    probe: Probe,
    init: i32,
}

impl Mortal {
    fn start(stage: &Path, row: &str) -> Result<Self> {
        let (hurdle, name) = (stage.join("hurdle"), format!("bench-{}", std::process::id()));
        let mut command = Command::new(&hurdle);
        command.args(["run", "--name", &name, "--net", "local", "--"]).arg(stage.join("xtask"));
        let probe = Probe::start(command.arg("inside").arg(row).arg(stage.join("files")))?;
        let mut mortal = Self { hurdle, name, probe, init: 0 };
        let init = mortal.json("ls")?[0]["init"].as_i64().ok_or("`ls` tells no init")?;
        mortal.init = i32::try_from(init)?;
        Ok(mortal)
    }

    fn json(&self, command: &str) -> Result<Value> {
        let mut hurdle = Command::new(&self.hurdle);
        Ok(serde_json::from_str(&output(hurdle.args(["--json", command, &self.name]))?)?)
    }

    /// What the core has started, but init.
    fn servers(&self) -> Vec<i32> {
        children(self.probe.pid().cast_signed()).into_iter().filter(|pid| *pid != self.init).collect()
    }
}

/// Kills the server again and again.
pub(crate) fn death(stage: &Path, quick: bool) -> Result<Found> {
    let mut mortal = Mortal::start(stage, "death")?;
    let count = if quick { 20 } else { 300 };
    let (mut found, mut left) = (Vec::new(), Vec::new());
    for number in 0..count {
        // At no regular moment.
        std::thread::sleep(Duration::from_micros(5000 + number * 7919 % 10_000));
        let others = |pid: &i32| !left.contains(pid);
        let servers: Vec<i32> = mortal.servers().into_iter().filter(others).collect();
        let [server] = servers[..] else { return Err("not one server".into()) };
        // What it leaves behind is the core's child until it ends.
        left.extend(family(server));
        mortal.probe.ask()?;
        kill(Pid::from_raw(server), Signal::SIGKILL)?;
        let (core, init) = (mortal.probe.pid().cast_signed(), mortal.init);
        let successor = || children(core).iter().any(|pid| *pid != init && !left.contains(pid));
        found.push(mortal.probe.longest(successor)?);
    }
    let rights = mortal.json("ls")?[0]["rights"].take();
    let net = rights.as_array().and_then(|rights| rights.iter().find(|right| right["interface"] == "net")).cloned();
    let deaths = net.and_then(|net| net["deaths"].as_u64());
    mortal.probe.end()?;
    if deaths == Some(count) {
        Ok(vec![("hurdle".into(), found)])
    } else {
        Err(format!("{count} kills, and {deaths:?} deaths").into())
    }
}

/// Swaps the server again and again.
pub(crate) fn swap(stage: &Path, quick: bool) -> Result<Found> {
    let mut mortal = Mortal::start(stage, "swap")?;
    let mut found = Vec::new();
    for number in 0..if quick { 10 } else { 200 } {
        let to = ["net=delay,ms=1+local", "net=local"][number % 2];
        mortal.probe.ask()?;
        output(Command::new(&mortal.hurdle).args(["swap", &mortal.name, to]))?;
        found.push(mortal.probe.longest(|| true)?);
    }
    mortal.probe.end()?;
    Ok(vec![("hurdle".into(), found)])
}
