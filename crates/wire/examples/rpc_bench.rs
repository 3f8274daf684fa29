//! What a call costs, against the bare socket below it.
//!
//! Two processes, both on one CPU, echo a payload: once as a call of an interface, once as bare SEQPACKET messages (in
//! pieces of 64 KiB where it is larger). Rounds are interleaved; a line of JSON per size gives the medians in
//! microseconds and their ratio. Run it in a release build.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use hurdle_wire::{Bytes, Channel, Connection, Context, Refused, ServeOptions, serve};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::Pid;

hurdle_wire::interface! {
    /// Gives back what it gets.
    pub mod echo = 1000 {
        /// Gives it back.
        1 idempotent fn echo(data: Bytes) -> Bytes;
    }
}

struct Echo;

impl echo::Server for Echo {
    async fn echo(&self, _: &Context, data: Bytes) -> Result<Bytes, Refused> {
        Ok(data)
    }
}

/// The largest bare message: what fits the default socket buffer three times.
const PIECE: usize = 64 << 10;
const ROUNDS: usize = 31;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pin()?;
    match std::env::args().nth(1).as_deref() {
        Some("serve-rpc") => {
            serve(&inherited()?.into(), &echo::service(Echo).into(), &ServeOptions::default())?;
            return Ok(());
        }
        Some("serve-raw") => return Ok(serve_raw(&inherited()?)?),
        _ => {}
    }
    let (rpc, mut rpc_server) = start("serve-rpc")?;
    let (raw, mut raw_server) = start("serve-raw")?;
    let client = echo::Client::new(&Connection::new(rpc.into()));
    // An argument picks one size.
    let only: Option<usize> = std::env::args().nth(1).and_then(|size| size.parse().ok());
    for (size, calls) in [(64, 2000), (64 << 10, 300), (1 << 20, 30)] {
        if only.is_some_and(|only| only != size) {
            continue;
        }
        let payload = vec![7; size];
        let mut travelling = payload.clone();
        let mut back = vec![0; PIECE + 1];
        let (mut raw_times, mut rpc_times) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let raw_time = time(calls, || raw_echo(&raw, &payload, &mut back))?;
            let rpc_time = time(calls, || {
                travelling = client.echo(Bytes(std::mem::take(&mut travelling))).wait()?.0;
                if travelling.len() == size { Ok(()) } else { Err(io::Error::other("the echo has another size")) }
            })?;
            // The first round warms up.
            if round > 0 {
                raw_times.push(raw_time);
                rpc_times.push(rpc_time);
            }
        }
        let (raw_us, rpc_us) = (median(&mut raw_times), median(&mut rpc_times));
        let ratio = rpc_us / raw_us;
        println!("{{\"bytes\":{size},\"raw_us\":{raw_us:.3},\"rpc_us\":{rpc_us:.3},\"ratio\":{ratio:.3}}}");
    }
    drop((client, raw));
    rpc_server.wait()?;
    raw_server.wait()?;
    Ok(())
}

/// Keeps this process and its children on the first CPU that it may use.
fn pin() -> nix::Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap_or(false)).unwrap_or(0))?;
    sched_setaffinity(Pid::from_raw(0), &one)
}

/// Runs this program again as a server, with its end of a channel as standard input.
fn start(what: &str) -> io::Result<(OwnedFd, Child)> {
    let (ours, theirs) = Channel::pair()?;
    let child = Command::new(std::env::current_exe()?).arg(what).stdin(Stdio::from(theirs.into_owned()?)).spawn()?;
    Ok((ours.into_owned()?, child))
}

fn inherited() -> io::Result<OwnedFd> {
    io::stdin().as_fd().try_clone_to_owned()
}

fn serve_raw(socket: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; PIECE + 1];
    loop {
        let got = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if got == 0 {
            return Ok(());
        }
        send(socket.as_raw_fd(), &buffer[..got], MsgFlags::MSG_NOSIGNAL)?;
    }
}

fn raw_echo(socket: &OwnedFd, payload: &[u8], back: &mut [u8]) -> io::Result<()> {
    for piece in payload.chunks(PIECE) {
        send(socket.as_raw_fd(), piece, MsgFlags::MSG_NOSIGNAL)?;
        recv(socket.as_raw_fd(), back, MsgFlags::empty())?;
    }
    Ok(())
}

/// Microseconds per call.
fn time(calls: usize, mut call: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let start = Instant::now();
    for _ in 0..calls {
        call()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / calls as f64)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
