//! Environments in an environment, with a load in the innermost.

use std::process::{Child, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::env::Env;
use super::fold::{Fold, within};
use super::load::Load;
use super::plan::Random;
use crate::process::command_line;
use crate::shell::Result;

const CLIENTS: [&str; 2] = ["echo", "each"];
/// How long one may take to end.
const END: Duration = Duration::from_secs(60);

/// A chain of them.
pub(crate) struct Nested<'a> {
    fold: &'a Fold,
    mark: String,
    child: Child,
    pub(crate) load: Load,
}

impl<'a> Nested<'a> {
    /// Starts it inside of `env`; its clients begin by and by.
    pub(crate) fn start(fold: &'a Fold, env: &Env<'_>, mark: String, depth: usize) -> Result<Self> {
        let dir = fold.load(&mark)?;
        let mut command = env.enter(&mark);
        for _ in 0..depth {
            command.arg(fold.program("hurdle")).args(["run", "--net", "local", "--"]);
        }
        command.args(fold.loaded(&dir, &CLIENTS)).stdout(fold.log(&mark)?).stderr(fold.log(&format!("{mark}.err"))?);
        Ok(Self { fold, child: command.spawn()?, load: Load::new(&dir, &CLIENTS), mark })
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        let mut status = None;
        within(END, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status
    }

    /// Reads what its clients say. An error: one failed, or it has ended.
    pub(crate) fn look(&mut self) -> Result {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("{} ended: {status}: {}", self.mark, self.said()).into());
        }
        self.load.look()
    }

    fn said(&self) -> String {
        self.fold.said(&format!("{}.err", self.mark))
    }

    /// Has the load end by itself.
    pub(crate) fn end(mut self) -> Result<Load> {
        self.load.stop()?;
        let status = self.ended();
        self.load.look()?;
        match status {
            Some(status) if status.success() => self.fold.gone(&self.mark)?,
            Some(status) => return Err(format!("{} ended: {status}: {}", self.mark, self.said()).into()),
            None => return Err(format!("{} does not end: {}", self.mark, self.said()).into()),
        }
        Ok(self.load)
    }

    /// Kills one of the cores, or who stands for one: all below ends, nothing is left. False: none was there yet.
    pub(crate) fn kill(mut self, random: &mut Random) -> Result<bool> {
        let cores = || -> Vec<i32> {
            let is_core = |pid: &i32| {
                let line = command_line(*pid);
                line.contains("hurdle run ") && !line.contains(" enter ")
            };
            let mut found: Vec<i32> = self.fold.marked(&self.mark).into_iter().filter(is_core).collect();
            found.sort_unstable();
            found
        };
        let victim = random.pick(&cores());
        let Some(victim) = victim else { return self.end().map(|_| false) };
        let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        match self.ended() {
            None => Err(format!("{} outlives one of its cores", self.mark).into()),
            Some(status) if status.success() => Err(format!("{} was killed, and says {status}", self.mark).into()),
            Some(_) => self.fold.gone(&self.mark).map(|()| true),
        }
    }
}
