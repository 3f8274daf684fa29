//! The proc server's process: it lists the environment's processes, and acts on them through init.

use std::path::Path;
use std::process::ExitCode;

use hurdle_proto::init::{Program, init};
use hurdle_proto::process::{ProcessInfo, proc};
use hurdle_server::{Borrowed, Process, Reads, Target, confine_files, drop_capabilities};
use hurdle_wire::{Channel, Connection, Context, Refused};

/// Serves until the right is given back.
pub fn serve() -> ExitCode {
    hurdle_server::run(|borrowed: &mut Borrowed| {
        drop_capabilities()?;
        confine_files(Reads::Below(&[Path::new("/proc")]), &[])?;
        // Pid 1 reports nothing itself.
        let init = Connection::tapped(Channel::from(borrowed.attachment("init")?), borrowed.tap());
        let init = init::Client::new(&init);
        Ok(proc::service(Processes { target: borrowed.target()?, init }))
    })
}

struct Processes {
    target: Target,
    init: init::Client,
}

impl proc::Server for Processes {
    async fn list(&self, _: &Context) -> Result<Vec<ProcessInfo>, Refused> {
        Ok(self.target.processes()?.iter().map(info).collect())
    }

    async fn signal(&self, _: &Context, pid: i32, signal: i32) -> Result<(), Refused> {
        Ok(self.init.signal(pid, signal).await?)
    }

    async fn spawn(&self, _: &Context, program: Program) -> Result<i32, Refused> {
        Ok(self.init.spawn(program).await?)
    }

    async fn host_name(&self, _: &Context) -> Result<String, Refused> {
        Ok(self.init.host_name().await?)
    }

    async fn set_host_name(&self, _: &Context, name: String) -> Result<(), Refused> {
        Ok(self.init.set_host_name(name).await?)
    }
}

fn info(process: &Process) -> ProcessInfo {
    let number = |key: &str| -> u64 {
        process.field(key).split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    ProcessInfo {
        pid: process.pid,
        outer_pid: process.outer,
        parent: process.parent,
        uid: process.uid,
        state: process.field("State").chars().next().unwrap_or('?'),
        threads: u32::try_from(number("Threads")).unwrap_or(u32::MAX),
        rss_kib: number("VmRSS"),
        cpu_ms: process.cpu_ms(),
        command: process.command(),
    }
}
