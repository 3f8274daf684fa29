//! A receive right: who serves an interface of the environment at the moment, and what he was lent.
//!
//! The core owns the right, its attachments, its store and the servers' ends of its clients' channels; a server borrows
//! duplicates of them. Starting a server, starting its successor after a death, and swapping it are the same act: lend to
//! another process.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hurdle_proto::core::{RightInfo, RightState, Swapped};
use hurdle_proto::fs::{CONNECTIONS, is_connection};
use hurdle_proto::server::{self, ClientChannel, Grant, Peer, Stock};
use hurdle_proto::spec::Spec;
use hurdle_sys::process::{self, Child, Launch};
use hurdle_sys::seqpacket;
use hurdle_wire::{CallError, Channel, Fd, Refused, Router, ServeOptions};
use tokio::sync::oneshot;

use crate::refuse::Refuser;
use crate::{Command, os};

/// How long to wait before the next start after so many servers in a row that died young; after one more nobody is started.
const BACK_OFF: [Duration; 4] = [Duration::ZERO, Duration::ZERO, Duration::from_millis(20), Duration::from_millis(100)];
/// A server that dies before it has served for so long has died young.
const YOUNG: Duration = Duration::from_millis(20);
/// So many that were killed young in a row are an accident. One more killed itself.
const KILLED_YOUNG: usize = 32;
/// How long a server that does not read may hold up the core.
const ROOM: Duration = Duration::from_millis(100);
/// Lines of a server's standard error that are kept.
const LINES: usize = 20;

/// The last lines of what servers wrote to their standard error.
#[derive(Default)]
struct Words {
    lines: VecDeque<String>,
    /// The last one has no end yet.
    open: bool,
}

impl Words {
    /// Takes in what there is to read. False at its end.
    fn read(&mut self, stderr: &mut File) -> bool {
        let mut buffer = [0; 4096];
        let got = stderr.read(&mut buffer).unwrap_or(0);
        for piece in String::from_utf8_lossy(&buffer[..got]).split_inclusive('\n') {
            let open = std::mem::replace(&mut self.open, !piece.ends_with('\n'));
            // It is shown on a terminal.
            let text: String = piece.trim_end_matches('\n').replace(|c: char| c.is_control() && c != '\t', "\u{fffd}");
            let text = text.as_str();
            match self.lines.back_mut().filter(|line| open && line.len() < 4096) {
                Some(line) => line.push_str(text),
                None if text.trim().is_empty() => {}
                None => self.lines.push_back(text.to_string()),
            }
            if self.lines.len() > LINES {
                self.lines.pop_front();
            }
        }
        got > 0
    }

    fn last(&self) -> Option<&str> {
        self.lines.back().map(String::as_str)
    }
}

/// Who has the right.
pub(crate) enum Holder {
    /// Nobody: what arrives starts a server.
    Nobody,
    /// Nobody until then: the last ones died too soon.
    BackOff(Instant),
    /// This process.
    Lent(Borrower),
    /// A caller who serves it himself.
    Guest(Guest),
    /// Nobody, for this reason, until a swap. Trapped calls are refused.
    Failed { reason: String, _refuser: Option<Refuser> },
}

/// A server process.
pub(crate) struct Borrower {
    /// Its number among the servers of this core.
    pub(crate) id: u64,
    pub(crate) process: Child,
    pub(crate) boot: Arc<server::server::Client>,
    /// Until it closes its end.
    pub(crate) stderr: Option<File>,
    since: Instant,
    /// It has answered `borrow`.
    pub(crate) ready: bool,
}

/// A server in the process of a caller.
pub(crate) struct Guest {
    peer: Peer,
    channel: Channel,
    server: server::server::Client,
    since: Instant,
}

/// A swap under way.
pub(crate) struct Swap {
    to: Spec,
    pub(crate) id: u64,
    /// Until the right is its own.
    successor: Option<Borrower>,
    pub(crate) answer: oneshot::Sender<Result<Swapped, Refused>>,
}

/// A client of the right: the server's end of his channel, kept so that his messages wait while no server lives.
pub(crate) struct Client {
    pub(crate) peer: Peer,
    pub(crate) channel: Channel,
}

impl Client {
    fn copy(&self) -> io::Result<ClientChannel> {
        Ok(ClientChannel { peer: self.peer, channel: Fd::from(self.channel.as_fd().try_clone_to_owned()?) })
    }
}

pub(crate) struct Right {
    pub(crate) interface: String,
    pub(crate) spec: Spec,
    pub(crate) holder: Holder,
    pub(crate) attachments: Vec<(String, OwnedFd)>,
    pub(crate) clients: Vec<Client>,
    pub(crate) swap: Option<Swap>,
    stored: Stock,
    /// Servers in a row that died young.
    young: usize,
    /// Servers in a row that somebody killed young.
    killed: usize,
    deaths: u32,
    swaps: u32,
    stderr: Words,
    was_guest: bool,
}

impl Right {
    pub(crate) fn new(interface: &str, spec: Spec, attachments: Vec<(String, OwnedFd)>) -> Right {
        Right {
            interface: interface.to_string(),
            spec,
            holder: Holder::Nobody,
            attachments,
            clients: Vec::new(),
            swap: None,
            stored: Stock::default(),
            young: 0,
            killed: 0,
            deaths: 0,
            swaps: 0,
            stderr: Words::default(),
            was_guest: false,
        }
    }

    /// Whether this borrower holds it.
    pub(crate) fn is_lent_to(&self, id: u64) -> bool {
        matches!(&self.holder, Holder::Lent(borrower) if borrower.id == id)
    }

    /// The process of a successor on its way.
    pub(crate) fn successor(&self) -> Option<i32> {
        self.swap.as_ref().and_then(|swap| swap.successor.as_ref()).map(|successor| successor.process.own())
    }

    /// The fd on which programs' calls arrive by themselves, if this right has one.
    pub(crate) fn trap(&self) -> Option<&OwnedFd> {
        self.attachment("trap")
    }

    /// The fds that become readable when a program needs the server.
    pub(crate) fn bells(&self) -> impl Iterator<Item = &OwnedFd> {
        self.trap().into_iter().chain(CONNECTIONS.iter().filter_map(|(device, _)| self.attachment(device)))
    }

    fn attachment(&self, name: &str) -> Option<&OwnedFd> {
        self.attachments.iter().find(|(other, _)| other == name).map(|(_, fd)| fd)
    }

    /// Whether somebody may wait for an answer already: a trap that a dead server had received, or a client.
    pub(crate) fn awaited(&self) -> bool {
        self.bells().next().is_some() || !self.clients.is_empty()
    }

    /// Whether the next message or trap should start a server. While a successor is on its way it is for him.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.holder, Holder::Nobody) && self.swap.is_none()
    }

    /// The clients that a grant has no room for.
    pub(crate) fn more_clients(&self) -> io::Result<Vec<ClientChannel>> {
        self.clients.iter().skip(server::GRANTED_CHANNELS).map(Client::copy).collect()
    }

    /// Everything a borrower gets but [`Right::more_clients`]; `core` is his end of a channel for the `store` interface.
    pub(crate) fn grant(&self, env: &str, core: OwnedFd) -> io::Result<Grant> {
        let copy = |fd: &OwnedFd| fd.try_clone().map(Fd::from);
        Ok(Grant {
            interface: self.interface.clone(),
            spec: self.spec.clone(),
            env: env.to_string(),
            attachments: self
                .attachments
                .iter()
                .map(|(name, fd)| Ok((name.clone(), copy(fd)?)))
                .collect::<io::Result<_>>()?,
            store: self.stored.entries(),
            channels: self
                .clients
                .iter()
                .take(server::GRANTED_CHANNELS)
                .map(Client::copy)
                .collect::<io::Result<_>>()?,
            core: Fd::from(core),
        })
    }

    /// What servers have stored.
    pub(crate) fn stored(&mut self) -> &mut Stock {
        &mut self.stored
    }

    /// A channel for one more client, his end returned; the holder learns of it.
    pub(crate) fn connect(&mut self, peer: Peer) -> Result<OwnedFd, Refused> {
        if let Holder::Failed { reason, .. } = &self.holder {
            return Err(Refused::new(self.errno(), format!("the {} server has failed: {reason}", self.interface)));
        }
        let (ours, theirs) = seqpacket::pair()?;
        let ours = Channel::from(ours);
        // Also before it has answered `borrow`: what came with that was gathered earlier.
        if let Holder::Lent(borrower) = &self.holder {
            let channel = Fd::from(ours.as_fd().try_clone_to_owned()?);
            let told = match borrower.boot.connect(ClientChannel { peer, channel }).deadline(ROOM).wait() {
                // Its successor gets the channel with all others.
                Err(CallError::Dead) => Ok(()),
                told => told,
            };
            told.map_err(|e| Refused::new(os::EAGAIN, format!("the {} server takes no clients: {e}", self.interface)))?;
        }
        if let Holder::Guest(guest) = &self.holder {
            // No copy is kept: with this server its clients' channels end.
            let channel = Fd::from(ours.into_owned()?);
            guest.server.connect(ClientChannel { peer, channel }).deadline(ROOM).wait()?;
            return Ok(theirs);
        }
        self.clients.push(Client { peer, channel: ours });
        Ok(theirs)
    }

    /// Lends it to a caller, who is called on `channel`.
    pub(crate) fn lend_to_guest(&mut self, channel: Channel, peer: Peer) {
        let server = server::server::Client::from(channel.clone());
        self.holder = Holder::Guest(Guest { peer, channel, server, since: Instant::now() });
    }

    /// The channel to the caller who serves it.
    pub(crate) fn guest(&self) -> Option<&Channel> {
        if let Holder::Guest(guest) = &self.holder { Some(&guest.channel) } else { None }
    }

    /// He has let go of it.
    pub(crate) fn released(&mut self) {
        let reason = "who served it has let go of it".to_string();
        self.holder = Holder::Failed { reason, _refuser: None };
        self.was_guest = true;
    }

    /// Whether a caller may serve it, as another one did.
    pub(crate) fn vacant(&self) -> bool {
        self.was_guest && matches!(self.holder, Holder::Failed { .. })
    }

    /// What callers get while the right is failed: the errno that a broken service of this kind gives.
    fn errno(&self) -> i32 {
        if self.interface == "net" { os::ENETDOWN } else { os::EIO }
    }

    /// Notes a death; decides what comes next. `killed`: by SIGKILL, which is nobody's own fault.
    pub(crate) fn died(&mut self, why: String, killed: bool) {
        self.deaths += 1;
        let old = matches!(&self.holder, Holder::Lent(b) if b.ready && b.since.elapsed() > YOUNG);
        self.young = match (old, killed) {
            (true, _) => 0,
            (false, true) if self.killed < KILLED_YOUNG => self.young,
            (false, _) => self.young + 1,
        };
        self.killed = if killed && !old { self.killed + 1 } else { 0 };
        for client in &self.clients {
            // A client whose queue is full finds out by his deadline.
            let _ = hurdle_wire::announce_death(&client.channel);
        }
        self.holder = match BACK_OFF.get(self.young) {
            Some(pause) => Holder::BackOff(Instant::now() + *pause),
            None => {
                self.refuse_clients(&why);
                // The last close ends the connection: who waits for files gets ENOTCONN.
                self.attachments.retain(|(name, _)| !is_connection(name));
                Holder::Failed { reason: why, _refuser: self.refuser() }
            }
        };
    }

    /// From now on every client is told why nobody serves him.
    fn refuse_clients(&mut self, why: &str) {
        let refused = Refused::new(self.errno(), format!("the {} server has failed: {why}", self.interface));
        for client in self.clients.drain(..) {
            let router = Router::refusing(refused.clone());
            // Without a thread the channel is closed: he is told less, but at once.
            let refuse = move || hurdle_wire::serve(&client.channel, &router, &ServeOptions::default());
            let _ = std::thread::Builder::new().spawn(refuse);
        }
    }

    /// Who answers trapped calls while the right is failed.
    fn refuser(&self) -> Option<Refuser> {
        let copy = |name: &str| self.attachment(name)?.try_clone().ok();
        Refuser::start(copy("trap")?, copy("ledger")?, self.errno()).ok()
    }

    /// A server left by itself: the next message or trap starts another.
    pub(crate) fn left(&mut self) {
        self.holder = Holder::Nobody;
    }

    /// Starts a swap: once `successor` is up, the holder is to return the right.
    pub(crate) fn begin_swap(
        &mut self,
        to: Spec,
        successor: Borrower,
        answer: oneshot::Sender<Result<Swapped, Refused>>,
    ) {
        self.swap = Some(Swap { to, id: successor.id, successor: Some(successor), answer });
    }

    /// The right is back, or its holder died: from now on the successor's. The old holder is returned, to be ended.
    pub(crate) fn pass_on(&mut self) -> Option<(Option<Borrower>, Swap, Swapped)> {
        let mut swap = self.swap.take()?;
        let successor = swap.successor.take()?;
        let from = std::mem::replace(&mut self.spec, swap.to.clone());
        self.swaps += 1;
        self.young = 0;
        let old = std::mem::replace(&mut self.holder, Holder::Lent(successor));
        let swapped = Swapped { from, to: swap.to.clone(), pause_us: 0 };
        let old = if let Holder::Lent(borrower) = old { Some(borrower) } else { None };
        Some((old, swap, swapped))
    }

    /// The successor never came up: all stays as it is. What it said last, and whom to tell.
    pub(crate) fn call_off(&mut self) -> Option<(String, oneshot::Sender<Result<Swapped, Refused>>)> {
        let mut swap = self.swap.take()?;
        let mut said = Words::default();
        // Killed first: then what it wrote has an end.
        let stderr = swap.successor.take().and_then(|mut successor| successor.stderr.take());
        if let Some(mut stderr) = stderr {
            said.read(&mut stderr);
        }
        Some((said.last().unwrap_or_default().to_string(), swap.answer))
    }

    /// The successor could not take the right: the former kind comes back.
    pub(crate) fn roll_back(&mut self, from: Spec) {
        self.spec = from;
        self.swaps -= 1;
    }

    /// Another kind, with nobody to hand over from.
    pub(crate) fn replace(&mut self, to: Spec) -> Swapped {
        let from = std::mem::replace(&mut self.spec, to.clone());
        self.swaps += 1;
        self.young = 0;
        self.holder = Holder::Nobody;
        Swapped { from, to, pause_us: 0 }
    }

    /// Of the holder.
    pub(crate) fn drain_stderr(&mut self) {
        let Holder::Lent(borrower) = &mut self.holder else { return };
        let Some(stderr) = &mut borrower.stderr else { return };
        if !self.stderr.read(stderr) {
            borrower.stderr = None;
        }
    }

    /// The last line of standard error.
    pub(crate) fn last_words(&self) -> Option<&str> {
        self.stderr.last()
    }

    pub(crate) fn info(&self) -> RightInfo {
        RightInfo {
            interface: self.interface.clone(),
            spec: self.spec.clone(),
            state: match &self.holder {
                Holder::Nobody => RightState::Idle,
                Holder::BackOff(_) => RightState::Starting,
                Holder::Lent(borrower) if !borrower.ready => RightState::Starting,
                Holder::Lent(borrower) => RightState::Running {
                    pid: borrower.process.pid(),
                    up_ms: u64::try_from(borrower.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                },
                Holder::Guest(guest) => RightState::Running {
                    pid: guest.peer.pid,
                    up_ms: u64::try_from(guest.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                },
                Holder::Failed { reason, .. } => RightState::Failed { reason: reason.clone() },
            },
            deaths: self.deaths,
            swaps: self.swaps,
            stderr: self.stderr.lines.iter().cloned().collect(),
        }
    }
}

impl Borrower {
    /// Starts a server process, with its bootstrap channel on fd 3, dying with the core's main thread. `guarded`: with all that it forks.
    pub(crate) fn start(id: u64, command: &Command, guarded: bool) -> io::Result<Borrower> {
        let (ours, theirs) = seqpacket::pair()?;
        let (stderr, writer) = process::pipe()?;
        let launch = Launch::server(&command.file, &command.argv, writer, (theirs, server::BOOTSTRAP))?;
        let process = if guarded { launch.start_guarded()? } else { launch.start_alone()? };
        let boot = Arc::new(server::server::Client::from(Channel::from(ours)));
        let stderr = Some(File::from(stderr));
        Ok(Borrower { id, process, boot, stderr, since: Instant::now(), ready: false })
    }
}
