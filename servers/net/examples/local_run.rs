//! Runs a command under `--net local` without the rest of hurdle: a network namespace in a user namespace, the filter, and a
//! [`Server`] in this process. For the server's own tests and measurements:
//!
//!     local_run CMD…
//!
//! With LOCAL_RUN=native in the environment the command gets the network namespace alone, and real TCP in it. With
//! LOCAL_RUN=crash the server is a process of its own; it is killed and a successor started whenever the command makes the
//! file that CRASH_FILE names, which is removed once the successor serves.

use hurdle_net::Kind;
use hurdle_net::local::{Calls, Kept, Server};
use hurdle_sys::ns::{self, Extent, Ids, Namespaces};
use hurdle_sys::seccomp::{Filter, Ledger, ListenerFlags};
use hurdle_sys::target::{Network, Tasks};
use hurdle_wire::tap::Tap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// In the environment of the second stage, which becomes the command.
const STAGE: &str = "LOCAL_RUN_STAGE";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let result = match std::env::var(STAGE) {
        Err(_) => outside(&arguments),
        Ok(_) => inside(&arguments).map(|()| ExitCode::FAILURE),
    };
    result.unwrap_or_else(|error| {
        eprintln!("local_run: {error}");
        ExitCode::from(125)
    })
}

fn outside(arguments: &[std::ffi::OsString]) -> io::Result<ExitCode> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut child =
        Command::new(std::env::current_exe()?).args(arguments).env(STAGE, "1").stdin(OwnedFd::from(theirs)).spawn()?;
    // As a core starts a server.
    ns::no_new_privileges()?;
    let mut number = [0; 4];
    if ours.read_exact(&mut number).is_err() {
        return Ok(ExitCode::from(child.wait()?.code().unwrap_or(125) as u8));
    }
    let trap = Tasks::new().fd(child.id(), i32::from_ne_bytes(number))?;
    if std::env::var_os("LOCAL_RUN").is_some_and(|mode| mode == "crash") {
        ours.write_all(&[1])?;
        return crash(child, trap);
    }
    let network = Network::of(child.id())?.into();
    let server = Server::start(Kind::Local.into(), Calls::Own(trap), Ledger::create()?, network, None, Tap::default())?;
    ours.write_all(&[1])?;
    let status = child.wait()?;
    if std::env::var_os("LOCAL_RUN_COUNT").is_some() {
        eprintln!("{:?}", server.counters());
    }
    server.stop();
    use std::os::unix::process::ExitStatusExt;
    Ok(ExitCode::from(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) as u8))
}

/// Serves by one process after the other, each killed in the midst of its work.
fn crash(mut child: std::process::Child, trap: OwnedFd) -> io::Result<ExitCode> {
    let ledger = Ledger::create()?;
    let mut kept: Option<Kept> = None;
    let mut deaths = 0;
    let file = std::path::PathBuf::from(std::env::var_os("CRASH_FILE").ok_or(io::ErrorKind::InvalidInput)?);
    loop {
        // A server hands what it keeps over a pipe by number: it is its own keeper's child, which can fetch them.
        let (mut told, mut tell) = UnixStream::pair()?;
        let Some(server) = hurdle_sys::process::detach()? else {
            let mut serve = || -> io::Result<()> {
                ns::die_with_parent()?;
                let copy = |kept: &Kept| -> io::Result<Kept> {
                    let (user, network) = (kept.user.try_clone()?, kept.network.try_clone()?);
                    Ok(Kept { user, network, memory: kept.memory.try_clone()? })
                };
                let inherited = kept.as_ref().map(copy).transpose()?;
                let network = Network::of(child.id())?.into();
                let (trap, ledger) = (trap.try_clone()?, ledger.try_clone()?);
                let mut server =
                    Server::start(Kind::Local.into(), Calls::Own(trap), ledger, network, inherited, Tap::default())?;
                let Kept { user, network, memory } = server.kept()?;
                for fd in [&user, &network, &memory] {
                    tell.write_all(&fd.as_raw_fd().to_ne_bytes())?;
                }
                server.wait();
                Ok(())
            };
            std::process::exit(i32::from(serve().is_err()));
        };
        drop(tell);
        let mut numbers = [0; 12];
        told.read_exact(&mut numbers)?;
        if kept.is_none() {
            let mut tasks = Tasks::new();
            let mut fetch = |at: usize| {
                let number = [numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]];
                tasks.fd(server as u32, i32::from_ne_bytes(number))
            };
            kept = Some(Kept { user: fetch(0)?, network: fetch(4)?, memory: fetch(8)? });
        }
        let _ = std::fs::remove_file(&file);
        let over = loop {
            let over = child.try_wait()?;
            if over.is_some() || file.exists() {
                break over;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        hurdle_sys::process::kill(server, 9)?;
        hurdle_sys::process::wait(Some(server))?;
        if let Some(status) = over {
            eprintln!("the server died {deaths} times");
            return Ok(ExitCode::from(status.code().unwrap_or(125) as u8));
        }
        deaths += 1;
    }
}

fn inside(arguments: &[std::ffi::OsString]) -> io::Result<()> {
    ns::die_with_parent()?;
    let mut outside = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Also for root: the server gives its capabilities up, and traces who is in a user namespace of its user's.
    let (uid, gid) = hurdle_sys::process::effective_ids();
    ns::unshare(Namespaces::NET.with(Namespaces::USER))?;
    ns::deny_setgroups(None)?;
    ns::write_map(None, Ids::Users, &[Extent { inside: uid, outside: uid, count: 1 }])?;
    ns::write_map(None, Ids::Groups, &[Extent { inside: gid, outside: gid, count: 1 }])?;
    ns::loopback_up()?;
    if std::env::var_os("LOCAL_RUN").is_some_and(|mode| mode == "native") {
        return become_command(arguments);
    }
    ns::no_new_privileges()?;
    let filter = Filter::new(&hurdle_netstack::table::rules(&hurdle_net::table::rows()))?;
    let trap = filter.install(ListenerFlags::default())?;
    outside.write_all(&trap.as_raw_fd().to_ne_bytes())?;
    outside.read_exact(&mut [0])?;
    drop((trap, outside));
    become_command(arguments)
}

fn become_command(arguments: &[std::ffi::OsString]) -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    hurdle_sys::process::replace(null.as_fd(), 0)?;
    let Some((program, rest)) = arguments.split_first() else { return Err(io::ErrorKind::InvalidInput.into()) };
    Err(Command::new(program).args(rest).env_remove(STAGE).exec())
}
