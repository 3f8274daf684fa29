//! The porter of an environment: a program of hurdle's in it, below no trap, a copy of which becomes each sub-environment's core.
//!
//! `hurdle run` in an environment whose calls are trapped asks the core to start it again in its place ([`door`](crate::door)). The
//! exec and what precedes a program's first own instruction take as long as much of the rest. So after the first time the core keeps
//! one that has done that much, and a copy of it that waits for its task. They serve callers alone who stand as the first one did in
//! every respect ([`Stance`]); anybody else has an exec, as without a porter, and so has who finds it dead or stopped.
//!
//! Both are children of the core, and end with its main thread. Locks: `Door::all` before [`Porter::copy`].

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hurdle_proto::core::porter;
use hurdle_proto::init::Program;
use hurdle_proto::server::BOOTSTRAP;
use hurdle_sys::process::{self, Group, Launch, Place, Stance};
use hurdle_sys::seqpacket;
use hurdle_wire::{Channel, Context, Fd, Refused};

use crate::inside::prepare;
use crate::os;

/// How long one stays that has nothing to do.
const STAYS: Duration = Duration::from_secs(5);
/// How long a copy may take to be there, and to stand.
const PATIENCE: Duration = Duration::from_secs(1);

/// The porter of an environment, if it has one.
pub(crate) type Slot = Arc<Mutex<Option<Arc<Porter>>>>;

/// A porter, as its core sees it.
pub(crate) struct Porter {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    stance: Stance,
    client: porter::Client,
    /// The one that waits.
    copy: Mutex<Option<Copy>>,
}

/// A copy of it.
struct Copy {
    pid: i32,
    pidfd: OwnedFd,
    channel: Channel,
}

/// Whom a porter is to stand for from here on.
pub(crate) struct First {
    /// The caller, and how many seccomp filters the environment's programs are below.
    pub(crate) peer: OwnedFd,
    pub(crate) filters: u32,
    /// The path of the program that it runs, and its environment variables.
    pub(crate) path: Vec<u8>,
    pub(crate) env: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a child that nobody has reaped yet.
fn end(pid: i32) {
    let _ = process::kill(pid, os::SIGKILL);
    let _ = process::wait_end(pid);
}

impl Porter {
    /// Starts one where that caller stands, by the calling thread, with which it ends.
    pub(crate) fn start(first: First) -> io::Result<Porter> {
        let place = Place::of(first.peer, first.filters)?;
        let stance = place.stance().clone();
        let (ours, theirs) = seqpacket::pair()?;
        let null = || -> io::Result<OwnedFd> { Ok(File::options().read(true).write(true).open("/dev/null")?.into()) };
        let argv = [os::string(first.path), "porter".into()];
        let launch = Launch::new(&argv, &os::pairs(first.env), [null()?, null()?, null()?])?;
        let pid = launch.fd(theirs, BOOTSTRAP).group(Group::Session).in_place_of(place).start()?;
        let pidfd = process::pidfd_or_end(pid)?;
        if !stance.is_program_of(pid) {
            end(pid);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the caller named another program than its own"));
        }
        let client = porter::Client::from(Channel::from(ours));
        Ok(Porter { pid, pidfd, stance, client, copy: Mutex::default() })
    }

    /// A process that goes on as `program` in the place of that caller, its own program: a child of this one's, with its pidfd. `None`: there
    /// is none, and there will be none. `all` knows the copies that live.
    pub(crate) fn run(&self, place: &Place, program: &Program, all: &mut HashSet<i32>) -> Option<(i32, OwnedFd)> {
        if *place.stance() != self.stance {
            return None;
        }
        let cwd = Fd::from(place.cwd().ok()?);
        self.stock(all);
        let copy = held(&self.copy).take()?;
        let client = porter::Client::from(copy.channel.clone());
        let sent = client.run(program.clone(), cwd).deadline(PATIENCE).wait();
        let heard = || hear(&copy.channel).filter(|(said, _)| *said);
        let stands = sent.ok().and_then(|()| heard()).or_else(|| {
            // From here on it can't say that it stands, so it does not go on. It may have said so just now.
            copy.channel.shutdown();
            heard()
        });
        if stands.is_none() {
            end(copy.pid);
            all.remove(&copy.pid);
            return None;
        }
        Some((copy.pid, copy.pidfd))
    }

    /// Has a copy wait for its task, if none does.
    pub(crate) fn stock(&self, all: &mut HashSet<i32>) {
        let mut waiting = held(&self.copy);
        if waiting.is_some() {
            return;
        }
        *waiting = self.make();
        match &*waiting {
            Some(copy) => _ = all.insert(copy.pid),
            // It has failed, or somebody has stopped it.
            None => _ = process::signal(&self.pidfd, os::SIGKILL),
        }
    }

    fn make(&self) -> Option<Copy> {
        let (ours, theirs) = seqpacket::pair().ok()?;
        seqpacket::set_receive_timeout(ours.as_fd(), Some(PATIENCE)).ok()?;
        self.client.copy(Fd::from(theirs)).deadline(PATIENCE).wait().ok()?;
        let channel = Channel::from(ours);
        // One that comes later finds nobody to tell.
        let pidfd = hear(&channel)?.1?;
        Some(Copy { pid: process::pid_of(&pidfd).ok()?, pidfd, channel })
    }

    /// Ends it and the copy that waits.
    pub(crate) fn dismiss(&self, all: &mut HashSet<i32>) {
        if let Some(copy) = held(&self.copy).take() {
            end(copy.pid);
            all.remove(&copy.pid);
        }
        let _ = process::signal(&self.pidfd, os::SIGKILL);
        let _ = process::wait_end(self.pid);
    }
}

/// A word of a copy: whether it said anything, and its pidfd. `None`: not in time.
fn hear(channel: &Channel) -> Option<(bool, Option<OwnedFd>)> {
    let mut word = Vec::with_capacity(1);
    let received = seqpacket::receive(channel.as_fd(), &mut word).ok()?;
    Some((!word.is_empty(), received.fds.into_iter().next()))
}

/// What a porter is asked for.
enum Task {
    Copy(Fd),
    Run(Program, Fd),
}

#[derive(Default)]
struct Desk(Mutex<Option<Task>>);

impl porter::Server for Desk {
    async fn copy(&self, _: &Context, channel: Fd) -> Result<(), Refused> {
        *held(&self.0) = Some(Task::Copy(channel));
        Ok(())
    }

    async fn run(&self, _: &Context, program: Program, cwd: Fd) -> Result<(), Refused> {
        *held(&self.0) = Some(Task::Run(program, cwd));
        Ok(())
    }
}

/// The life of a porter, and of its copies, each of which begins with `warm`: what is useful to have done. In a copy that has its task
/// `Some`: the arguments with which it goes on. `None` when there is nothing more to do.
///
/// # Errors
/// No core has started it. A task can't be done.
pub fn serve_porter(warm: impl Fn()) -> io::Result<Option<Vec<OsString>>> {
    let desk = Arc::new(Desk::default());
    let router = porter::service(desk.clone()).into();
    let mut own = process::inherited(BOOTSTRAP)?;
    seqpacket::set_receive_timeout(own.as_fd(), Some(STAYS))?;
    loop {
        let channel = Channel::from(own);
        if hurdle_wire::serve_once(&channel, &router)?.is_some() {
            return Ok(None);
        }
        own = channel.into_owned()?;
        let task = held(&desk.0).take();
        match task {
            Some(Task::Copy(channel)) => {
                let channel = channel.into_owned()?;
                if process::twin(&channel)? {
                    std::mem::forget(std::mem::replace(&mut own, channel));
                    warm();
                }
            }
            Some(Task::Run(program, cwd)) => {
                let argv: Vec<_> = program.argv.iter().cloned().map(os::string).collect();
                let env = os::pairs(program.env.clone());
                let (launch, status) =
                    prepare(program).map_err(|refused| io::Error::from_raw_os_error(refused.errno))?;
                let cwd = cwd.into_owned()?;
                launch.become_it(&cwd, own.as_fd())?;
                std::mem::forget((own, status, cwd));
                process::rename(&argv, &env)?;
                return Ok(Some(argv));
            }
            None => {}
        }
    }
}
