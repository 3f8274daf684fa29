//! Init: pid 1 of an environment, the core's only hand inside. It sets the place up, starts the first program, reaps, and
//! serves the `init` interface from the moment somebody asks.
//!
//! It is a copy of the core made by clone3(2), single-threaded until its first caller; it never makes a trapped call after
//! the filter is in place, since nobody could answer it.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use hurdle_proto::core::DOOR;
use hurdle_proto::init::{self, Group, Program};
use hurdle_proto::plan::{MapWriter, Plan};
use hurdle_sys::ns::{self, Ids};
use hurdle_sys::process::{self, Launch, Near, Signals, State, Status, Until};
use hurdle_sys::seccomp::{Filter, ListenerFlags};
use hurdle_sys::target::Network;
use hurdle_sys::{abstract_socket, seqpacket, tty};
use hurdle_wire::{Channel, Context, Fd, Refused, ServeOptions};

use crate::files::{self, Prepared};
use crate::{nest, os};

/// What the core says before the new namespace has its maps; the core then writes them and answers.
pub(crate) const GO: &[u8] = b"g";
/// What init says before its files stand, if the fs server must show them; what that server needs comes along.
pub(crate) const ATTACH: u8 = b'a';
/// What init says once the environment stands: where cores inside come to comes along, and, if calls are trapped, their listener,
/// the network namespace and the door.
pub(crate) const READY: u8 = b'r';
/// What init says once its first program's exec has succeeded.
pub(crate) const STARTED: u8 = b's';
/// What init says once that exec has failed; the exit code that shells have for it follows, then a text.
pub(crate) const NOT_RUN: u8 = b'n';
/// What init says if it can't go on; a text follows.
pub(crate) const FAILED: u8 = b'f';

/// The process group of the first program, which is the first process that pid 1 makes.
pub(crate) const FIRST_GROUP: i32 = -2;

/// What init lends the core, by the names of attachments.
pub(crate) type Lent<'a> = &'a [(&'static str, OwnedFd)];

/// All that init needs, gathered by the core before the clone.
pub(crate) struct Inside<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) filter: Option<Filter>,
    /// Of its files.
    pub(crate) prepared: Prepared,
    /// First the few words above, then the channel of the `init` interface.
    pub(crate) control: OwnedFd,
    pub(crate) program: Launch,
    /// For messages.
    pub(crate) program_name: String,
    pub(crate) status: OwnedFd,
    /// Whether the core waits for [`STARTED`].
    pub(crate) report_start: bool,
}

/// Runs as pid 1 until the first program ends. Returns the exit code of init itself.
pub(crate) fn run(mut inside: Inside<'_>) -> i32 {
    // What else the core has open is not for this place; its control socket, above all.
    let mut keep = inside.program.fds();
    keep.extend([inside.control.as_raw_fd(), inside.status.as_raw_fd()]);
    keep.extend(inside.prepared.fds().map(OwnedFd::as_raw_fd));
    process::close_all_but(&mut keep);
    let ready = set_up(&inside).and_then(|lent| {
        let lent = lend(&inside.control, READY, &lent);
        lent.map_err(|e| format!("what the core needs can't be handed to it: {}", os::with_cure(&e)))
    });
    if let Err(why) = ready {
        let mut text = vec![FAILED];
        text.extend_from_slice(why.as_bytes());
        let _ = say(&inside.control, &text);
        return 1;
    }
    inside.prepared = Prepared::default();
    live(inside)
}

fn say(control: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    seqpacket::send(control.as_fd(), bytes, &[], true)
}

/// A word, and what is lent with it by name: the names follow the word.
fn lend(control: &OwnedFd, word: u8, lent: Lent<'_>) -> io::Result<()> {
    let names: Vec<&str> = lent.iter().map(|(name, _)| *name).collect();
    let fds: Vec<_> = lent.iter().map(|(_, fd)| fd.as_fd()).collect();
    seqpacket::send(control.as_fd(), &[&[word], names.join(" ").as_bytes()].concat(), &fds, true)
}

/// Makes the environment stand, in the order that the kernel wants: ids, network, files, filter. Returns what goes out with
/// [`READY`].
fn set_up(inside: &Inside<'_>) -> Result<Vec<(&'static str, OwnedFd)>, String> {
    let plan = inside.plan;
    let at = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    if plan.ids.writer == MapWriter::Itself {
        ns::deny_setgroups(None).map_err(at("setgroups can't be given up"))?;
        ns::write_map(None, Ids::Users, &plan.ids.users).map_err(at("the map of user ids was refused"))?;
        ns::write_map(None, Ids::Groups, &plan.ids.groups).map_err(at("the map of group ids was refused"))?;
    } else {
        let mut word = Vec::with_capacity(GO.len());
        seqpacket::receive(inside.control.as_fd(), &mut word).map_err(at("the core is gone"))?;
        if word != GO {
            return Err("the core is gone".into());
        }
    }
    // Only now: a change of credentials clears it.
    ns::die_with_parent().map_err(at("PR_SET_PDEATHSIG"))?;
    if process::ended(inside.control.as_fd()) {
        // It died before it could be heard of.
        return Err("the core is gone".into());
    }
    if plan.loopback {
        ns::loopback_up().map_err(at("the loopback interface can't be brought up"))?;
    }
    if let Some(name) = &plan.host_name {
        ns::set_hostname(name).map_err(at("the host name was refused"))?;
    }
    let attach = |lent: Lent<'_>| lend(&inside.control, ATTACH, lent);
    let mirrored = plan.root.is_mirrored();
    // The fs server keeps beside it: what is asked of it until the program runs is answered without a change of CPU.
    let near = if mirrored { Near::stay().ok() } else { None };
    files::set_up(plan, &inside.prepared, &attach)?;
    if mirrored {
        inside.program.read_ahead();
    }
    drop(near);
    // The caller's holds what he has unlocked (keyrings(7)).
    let keyring = ns::own_session_keyring();
    if !plan.setuid {
        ns::no_new_privileges().map_err(at("PR_SET_NO_NEW_PRIVS"))?;
    }
    if plan.guard_terminal {
        let guard = Filter::without_typing().and_then(|filter| filter.install_alone());
        guard.map_err(at("programs can't be kept from typing on the terminal (seccomp)"))?;
    }
    if let Err(e) = keyring {
        // So many environments that there is no room for another keyring: then without any key.
        let closed = Filter::without_keys().and_then(|filter| filter.install_alone());
        closed.map_err(|_| format!("no session keyring of its own: {e}"))?;
    }
    // Before the filter, as the door. Without it those inside are not seen from outside, and nothing else is lost.
    let nest = nest::listen().ok().map(|nest| ("nest", nest));
    let Some(filter) = &inside.filter else { return Ok(nest.into_iter().collect()) };
    // From here, where it can't be gone yet.
    let network = Network::of(std::process::id()).map_err(at("its network namespace can't be seen"))?;
    // Before the filter: nobody could answer its bind(2). Without it there are no traps below these, and nothing else is lost.
    let door = abstract_socket::listen(DOOR).ok();
    let trap = filter.install(ListenerFlags::default()).map_err(|e| {
        let hint = match e.raw_os_error() {
            // A filter chain has room for one listener.
            Some(os::EBUSY) => {
                "an environment around this one traps them, and its network is not the one here, so it can't be asked: \
                 choose --net share or --net none"
            }
            _ => "`hurdle doctor` tells what is missing",
        };
        format!("system calls can't be trapped (seccomp user notification): {e}; {hint}")
    })?;
    let lent = [("trap", trap), ("network", network.into())].into_iter().chain(door.map(|door| ("door", door)));
    Ok(lent.chain(nest).collect())
}

/// Whose status goes where.
type Watched = Arc<Mutex<HashMap<i32, File>>>;

/// Starts the first program, then reaps and serves until it ends.
fn live(inside: Inside<'_>) -> i32 {
    let Ok(signals) = Signals::block(&[os::SIGCHLD]) else { return 1 };
    let mut first_status = File::from(inside.status);
    let first = match inside.program.start() {
        Ok(pid) => pid,
        Err(e) => {
            let (code, why) = os::exec_failure(&e);
            if inside.report_start {
                let _ = say(&inside.control, &[&[NOT_RUN, code], why.as_bytes()].concat());
            } else {
                os::complain(format_args!("{}: {why}", inside.program_name));
            }
            let _ = first_status.write_all(&Status::exit(code).to_bytes());
            return 0;
        }
    };
    if inside.report_start && say(&inside.control, &[STARTED]).is_err() {
        return 1;
    }
    let watched: Watched = Arc::default();
    let mut settles = Some(Instant::now() + process::SETTLED);
    let mut control = Some(inside.control);
    loop {
        let mut fds = vec![(signals.as_fd(), Until::Readable)];
        fds.extend(control.iter().map(|c| (c.as_fd(), Until::Readable)));
        let Ok(ready) = process::poll(&fds, settles) else { return 1 };
        if settles.is_some_and(|at| at <= Instant::now()) {
            settles = None;
            process::release_code();
        }
        let asked = ready.get(1) == Some(&true);
        if asked && let Some(control) = control.take() {
            let watched = watched.clone();
            serve(control, Arc::new_cyclic(|me| Hand { first, watched, spawned: Mutex::default(), me: me.clone() }));
        }
        while let Ok(Some(_)) = signals.next() {}
        while let Ok(Some((pid, status))) = process::try_wait(None) {
            let ended = matches!(status.state(), State::Exited(_) | State::Killed(_));
            if pid == first {
                let _ = first_status.write_all(&status.to_bytes());
                if ended {
                    // The kernel ends all others with pid 1.
                    return 0;
                }
            } else {
                report(&watched, pid, status, ended);
            }
        }
    }
}

fn report(watched: &Watched, pid: i32, status: Status, ended: bool) {
    let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pipe) = watched.get_mut(&pid) {
        // Made non-blocking: one who asked and does not read loses statuses, and holds up nobody.
        let _ = pipe.write_all(&status.to_bytes());
    }
    if ended {
        watched.remove(&pid);
    }
}

/// From now on a thread answers the core. When its channel ends the core is gone, and the environment with it.
fn serve(control: OwnedFd, hand: Arc<Hand>) {
    let serving = std::thread::Builder::new().spawn(move || {
        answer(control, hand);
        std::process::exit(1);
    });
    if let Err(e) = serving {
        // The channel is closed by now: calls are answered with the end of it, and the programs go on.
        os::complain(format_args!("pid 1 can't serve the core any more (no thread: {e})"));
    }
}

fn answer(channel: OwnedFd, hand: Arc<Hand>) {
    let _ = hurdle_wire::serve(&Channel::from(channel), &init::init::service(hand).into(), &ServeOptions::default());
}

struct Hand {
    first: i32,
    watched: Watched,
    /// The last programs, by the inodes of their status pipes.
    spawned: Mutex<VecDeque<(u64, i32)>>,
    me: Weak<Hand>,
}

/// How many programs are remembered after their start.
const SPAWNED: usize = 64;

impl init::init::Server for Hand {
    async fn spawn(&self, _: &Context, program: Program) -> Result<i32, Refused> {
        let (launch, status) = prepare(program)?;
        // Held over the start, so that a child that ends at once finds its pipe.
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spawned = self.spawned.lock().unwrap_or_else(PoisonError::into_inner);
        let status = File::from(status);
        let pipe = status.metadata()?.ino();
        if let Some((_, pid)) = spawned.iter().find(|(known, _)| *known == pipe) {
            return Ok(*pid);
        }
        let pid = launch.start()?;
        if spawned.len() == SPAWNED {
            spawned.pop_front();
        }
        spawned.push_back((pipe, pid));
        watched.insert(pid, status);
        Ok(pid)
    }

    async fn signal(&self, _: &Context, pid: i32, signal: i32) -> Result<(), Refused> {
        let pid = match pid {
            FIRST_GROUP => -self.first,
            // To go on is for all of a job that Ctrl-Z has stopped.
            0 if signal == os::SIGCONT && process::is_group(self.first) => -self.first,
            0 => self.first,
            other => other,
        };
        if pid == -1 || pid == 1 {
            return Err(Refused::new(
                os::EPERM,
                "pid 1 and \"everybody\" are not to be signalled; `hurdle kill` ends it all",
            ));
        }
        Ok(process::kill(pid, signal)?)
    }

    async fn foreground(&self, _: &Context) -> Result<(), Refused> {
        tty::set_foreground(io::stdin(), self.first)?;
        Ok(process::kill(-self.first, os::SIGCONT)?)
    }

    async fn set_host_name(&self, _: &Context, name: String) -> Result<(), Refused> {
        Ok(ns::set_hostname(&name)?)
    }

    async fn host_name(&self, _: &Context) -> Result<String, Refused> {
        Ok(ns::hostname()?)
    }

    async fn connect(&self, _: &Context, channel: Fd) -> Result<(), Refused> {
        let hand = self.me.upgrade().ok_or_else(|| Refused::new(os::ESRCH, "ending"))?;
        let channel = channel.into_owned()?;
        std::thread::Builder::new().spawn(move || answer(channel, hand))?;
        Ok(())
    }
}

/// A program of a message, and the pipe of its statuses.
pub(crate) fn prepare(program: Program) -> Result<(Launch, OwnedFd), Refused> {
    let argv: Vec<_> = program.argv.into_iter().map(os::string).collect();
    let env = os::pairs(program.env);
    let group = match program.group {
        Group::Inherit => process::Group::Inherit,
        Group::Foreground => process::Group::Foreground,
        Group::Session => process::Group::Session,
        Group::Terminal => process::Group::Terminal,
    };
    let [input, output, errors] = program.stdio;
    let stdio = [input.into_owned()?, output.into_owned()?, errors.into_owned()?];
    let mut launch = Launch::new(&argv, &env, stdio)?.group(group);
    launch = launch.cwd(&os::string(program.cwd))?;
    for (number, fd) in program.fds {
        if !(3..256).contains(&number) {
            return Err(Refused::new(os::EINVAL, format!("fd {number} can't be handed down: 3 to 255 can")));
        }
        launch = launch.fd(fd.into_owned()?, number);
    }
    let status = program.status.into_owned()?;
    process::set_nonblocking(&status, true)?;
    Ok((launch, status))
}
