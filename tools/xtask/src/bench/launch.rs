//! Launching: how long one takes, how many go in a second, and what an idle one keeps in memory.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{command_line, family, pss};
use crate::shell::Result;

/// Wall times of `count` launches in turn, in ms.
pub(crate) fn times(command: impl Fn() -> Command, count: usize) -> Result<Vec<f64>> {
    (0..count).map(|_| one(&mut command())).collect()
}

fn one(command: &mut Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let begin = Instant::now();
    let status = command.status()?;
    let time = begin.elapsed();
    if status.success() { Ok(time.as_secs_f64() * 1e3) } else { Err(format!("{command:?}: {status}").into()) }
}

/// Launches per second, as many at once as there are CPUs.
pub(crate) fn rate(command: impl Fn() -> Command + Sync, quick: bool) -> Result<f64> {
    let limit = Duration::from_millis(if quick { 300 } else { 2000 });
    let begin = Instant::now();
    let worker = || -> std::result::Result<usize, String> {
        let mut count = 0;
        while begin.elapsed() < limit {
            one(&mut command()).map_err(|error| error.to_string())?;
            count += 1;
        }
        Ok(count)
    };
    let workers = std::thread::available_parallelism()?.get();
    let counts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a worker panicked".to_owned())))
            .collect()
    });
    let counts: std::result::Result<Vec<usize>, String> = counts;
    Ok(counts?.iter().sum::<usize>() as f64 / begin.elapsed().as_secs_f64())
}

/// PSS in MiB of all processes that the command started but the workload's own.
pub(crate) fn memory(mut command: Command) -> Result<f64> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no pipe")?).read_line(&mut line)?;
    // Idle means: a second after it last had something to do.
    std::thread::sleep(Duration::from_secs(1));
    let mut sum = 0;
    let mut found = Vec::new();
    for pid in family(child.id().cast_signed()) {
        if let Some(pss) = of_hurdle(pid)? {
            found.push(format!("{pss} KiB {}", command_line(pid)));
            sum += pss;
        }
    }
    eprintln!("  {}", found.join("; "));
    // The end of its input ends the workload.
    drop(child.stdin.take());
    child.wait()?;
    if line.trim() == "ready" { Ok(sum as f64 / 1024.0) } else { Err(format!("the workload said {line:?}").into()) }
}

/// PSS of a process in KiB; none of a workload itself.
pub(crate) fn of_hurdle(pid: i32) -> Result<Option<u64>> {
    let name = command_line(pid);
    if name.contains("xtask inside") && !name.contains("hurdle") { Ok(None) } else { pss(pid).map(Some) }
}

/// The workload of an idle environment: one connection, so that a net server runs, then nothing until its input ends.
pub(crate) fn idle() -> Result {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let served = listener.accept()?;
    drop((client, served, listener));
    println!("ready");
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest)?;
    Ok(())
}
