//! The loop of a core: one thread owns the environment and hears everything that happens to it.

mod job;
mod lend;
mod offer;
mod porter;
mod stand;
mod strays;
mod swap;
mod trace;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use hurdle_proto::core::{EnvInfo, Swapped};
use hurdle_proto::init::init;
use hurdle_proto::server::{Peer, Stored};
use hurdle_proto::spec::Spec;
use hurdle_sys::process::{self, Event, Group, Signals, State, Status, Until};
use hurdle_sys::tty;
use hurdle_wire::{CallError, Channel, Connection, Refused};
use tokio::sync::oneshot;

use crate::control::Callers;
use crate::launch::{self, Launched};
use crate::nest::{self, Below};
use crate::porter::{First, Porter};
use crate::right::{Borrower, Holder, Right};
use crate::{Error, Policy, Setup, control, os};
use strays::Strays;

/// How long a server has to borrow a right, and to return one.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a caller who has come just before the end has to ask.
const LAST_QUESTIONS: Duration = Duration::from_millis(50);
/// How long a caller who does not read his answer holds up the end.
const FAREWELL: Duration = Duration::from_secs(1);
/// Signals that `hurdle run` and `hurdle enter` hand on to their program.
pub const FORWARDED: &[i32] = &[os::SIGTERM, os::SIGHUP, os::SIGINT, os::SIGQUIT, os::SIGUSR1, os::SIGUSR2];

type Answer<T> = oneshot::Sender<T>;
/// A swap whose successor has yet to borrow: whom to tell, what, and since when traffic waits.
type Unanswered = (Answer<Result<Swapped, Refused>>, Swapped, Instant);
/// A call to init whose result nobody waits for.
type Tell = Box<dyn FnOnce(&init::Client) + Send>;

/// What other threads ask of the loop, or tell it.
pub(crate) enum Ask {
    Info(Answer<EnvInfo>),
    Lookup {
        interface: String,
        peer: Peer,
        answer: Answer<Result<OwnedFd, Refused>>,
    },
    Swap {
        interface: String,
        spec: Spec,
        answer: Answer<Result<Swapped, Refused>>,
    },
    Trace {
        interfaces: Vec<String>,
        answer: Answer<Result<OwnedFd, Refused>>,
    },
    /// A server in the process of a caller.
    Serve {
        interface: String,
        server: OwnedFd,
        peer: Peer,
        answer: Answer<Result<(), Refused>>,
    },
    /// The caller of the door would be served faster by a porter.
    Porter(First),
    /// What may be environments inside, and the number of pid 1.
    Below(Answer<(Vec<Below>, i32)>),
    Wait(Answer<i32>),
    End(Answer<()>),
    Put {
        interface: String,
        entry: Stored,
        answer: Answer<Result<(), Refused>>,
    },
    Remove {
        interface: String,
        key: String,
        answer: Answer<()>,
    },
    /// The borrower of this number has answered `borrow`.
    Borrowed {
        borrower: u64,
        result: Result<(), CallError>,
    },
    /// The holder of the right with this successor has answered `give_back`, or is late. It was asked at `since`: traffic waits.
    Returned {
        successor: u64,
        since: Instant,
    },
    /// This successor did not come up: the holder keeps the right.
    Stillborn {
        successor: u64,
        why: String,
    },
}

/// Where to post to the loop.
#[derive(Clone)]
pub(crate) struct Mailbox {
    sender: Sender<Ask>,
    bell: Arc<Event>,
}

impl Mailbox {
    pub(crate) fn post(&self, ask: Ask) {
        if self.sender.send(ask).is_ok() {
            self.bell.ring();
        }
    }

    /// Wakes the loop.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }
}

/// What an fd in the poll set stands for.
#[derive(Clone, Copy)]
enum Source {
    /// Init says how far it is.
    Word,
    Signal,
    Status,
    Mail,
    Control,
    /// A program inside wants a sub-environment.
    Door,
    /// The porter has ended.
    Porter,
    /// A core inside makes itself known.
    Nest,
    /// The core around this one asks.
    Above,
    /// That of environment N inside has ended.
    Below(usize),
    /// A trap or a client's message for right N, which nobody serves.
    Activate(usize),
    /// The holder of right N, this borrower, has ended. What happened in the same turn may have put another one in its place.
    Ended(usize, u64),
    /// The caller who serves right N has let go of it.
    Released(usize),
    /// It wrote to its standard error.
    Stderr(usize, u64),
    /// One who traces has gone.
    Tracer,
    /// Client M of right N has hung up.
    HungUp(usize, usize),
}

pub(crate) struct Env {
    name: String,
    command: String,
    started: Instant,
    /// The program has a process group of its own, in the foreground of the terminal.
    foreground: bool,
    launched: Launched,
    init: Arc<init::Client>,
    status: File,
    signals: Signals,
    /// Closed first at the end, so that the name is free before anybody hears of it.
    listener: Option<OwnedFd>,
    /// Where programs inside come to.
    door: Option<OwnedFd>,
    /// Who helps them, at the moment; whether there ever was one.
    porter: Option<Arc<Porter>>,
    engaged: bool,
    /// Where cores inside come to.
    nest: Option<OwnedFd>,
    below: Vec<Below>,
    /// Where the core around this one asks, until it does.
    above: Option<OwnedFd>,
    /// How many seccomp filters they are below.
    filters: u32,
    callers: Callers,
    guests: Callers,
    /// Where calls to init are made, in order, so that a stopped one holds up nobody.
    teller: Option<Sender<Tell>>,
    mailbox: Mailbox,
    mail: Receiver<Ask>,
    rights: Vec<Right>,
    policy: Box<dyn Policy>,
    waiters: Vec<Answer<i32>>,
    tracing: trace::Tracing,
    borrowers: u64,
    /// What start-up needed has been let go of.
    settled: bool,
    /// `hurdle kill` has ended it.
    ending: bool,
    /// Swaps answered once the successor has borrowed: by its number.
    swaps: HashMap<u64, Unanswered>,
    /// It ended while it was still being set up: as [`Env::turn`] says it.
    over: Option<Option<Status>>,
    /// What servers that have ended left behind.
    strays: Strays,
    /// The system calls that are trapped.
    trapped: Vec<i64>,
}

impl Env {
    pub(crate) fn launch(setup: Setup) -> Result<Env, Error> {
        let system = |what: &'static str| move |e| Error::System(what, e);
        let name = match setup.name {
            Some(name) => name,
            None => format!("run-{}", std::process::id()),
        };
        if !control::legal(&name) {
            return Err(Error::BadName(name));
        }
        if name == "host" {
            return Err(Error::HostName);
        }
        let listener = control::listen(&name).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => Error::NameTaken(name.clone()),
            _ => Error::System("the control socket can't be made", e),
        })?;
        let above = nest::enrol();
        let command = setup.start.argv.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let foreground = setup.start.group == Group::Foreground;
        let job: &[i32] = if foreground { &[os::SIGCONT, os::SIGTSTP] } else { &[] };
        let signals = Signals::block(&[FORWARDED, job].concat()).map_err(system("signals can't be taken over"))?;
        process::hear_of_children();
        process::adopt_orphans().map_err(system("orphans can't be adopted"))?;
        let mut launched = launch::launch(&setup.plan, setup.start, signals.before(), setup.policy.as_ref())?;
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(system("out of fds"));
        let mut rights = Vec::new();
        for (interface, spec) in setup.rights {
            let mut lent = Vec::new();
            if interface != "net" {
                lent.push(("pidfd".to_string(), copy(&launched.init.pidfd)?));
            }
            if interface == "fs" {
                lent.extend(launched.layer.take().map(|layer| ("layer".to_string(), layer)));
            }
            rights.push(Right::new(&interface, spec, lent));
        }
        let tracing = trace::Tracing::default();
        // Pid 1 reports nothing itself.
        let init = Connection::tapped(Channel::from(copy(&launched.control)?), tracing.tap.clone());
        let init = Arc::new(init::Client::new(&init));
        let status = File::from(copy(&launched.status)?);
        let (sender, mail) = channel();
        let bell = Arc::new(Event::new().map_err(system("no eventfd"))?);
        let mut env = Env {
            name,
            command,
            started: Instant::now(),
            foreground,
            launched,
            init,
            status,
            signals,
            listener: Some(listener),
            door: None,
            porter: None,
            engaged: false,
            nest: None,
            below: Vec::new(),
            above,
            filters: 0,
            callers: Callers::new(&tracing.tap),
            guests: Callers::new(&tracing.tap),
            teller: None,
            mailbox: Mailbox { sender, bell },
            mail,
            rights,
            policy: setup.policy,
            waiters: Vec::new(),
            tracing,
            borrowers: 0,
            settled: false,
            ending: false,
            swaps: HashMap::new(),
            over: None,
            strays: Strays::default(),
            trapped: setup.plan.traps.iter().map(|rule| rule.syscall).collect(),
        };
        env.stand().inspect_err(|_| {
            // What stands half is of no use to anybody.
            let _ = process::signal(&env.launched.init.pidfd, os::SIGKILL);
        })?;
        if let Some(owner) = setup.owner {
            let served = env.callers.serve_owner(owner, env.mailbox.clone(), env.init.clone());
            served.map_err(system("no thread for who holds it"))?;
        }
        Ok(env)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn serve(mut self) -> Result<Status, Error> {
        let status = loop {
            if let Some(status) = self.over.take() {
                break Ok(status);
            }
            match self.turn() {
                Ok(None) => {}
                Ok(Some(status)) => break Ok(status),
                Err(e) => break Err(e),
            }
        };
        self.take_down(status.as_ref().ok().copied().flatten());
        match status? {
            Some(status) => Ok(status),
            None if self.ending => Ok(Status(os::SIGKILL)),
            None => Err(self.launched.failure()),
        }
    }

    /// Waits for the next thing to happen, and deals with it. The outer `Some`: the environment is over; the inner one: its
    /// first program's last status, `None` if pid 1 was ended before.
    fn turn(&mut self) -> Result<Option<Option<Status>>, Error> {
        let (sources, fds) = self.watched();
        let ready = process::poll(&fds, self.deadline()).map_err(|e| Error::System("poll", e))?;
        if !self.settled && self.started.elapsed() >= process::SETTLED {
            self.settled = true;
            process::release_code();
        }
        let happened: Vec<Source> = sources.into_iter().zip(ready).filter(|(_, r)| *r).map(|(s, _)| s).collect();
        for source in happened {
            match source {
                Source::Word => self.word()?,
                Source::Signal => self.forward_signals(),
                Source::Status => {
                    let next = Status::read(&mut self.status).map_err(|e| Error::System("the status pipe", e))?;
                    match next.map(Status::state) {
                        None => return Ok(Some(None)),
                        Some(State::Exited(_) | State::Killed(_)) => return Ok(Some(next)),
                        Some(State::Stopped(signal)) if self.foreground => self.stop(signal),
                        Some(_) => {}
                    }
                }
                Source::Mail => {
                    self.mailbox.bell.clear();
                    while let Ok(ask) = self.mail.try_recv() {
                        self.answer(ask);
                    }
                }
                Source::Control => self.admit(),
                Source::Door => self.open_door(),
                Source::Porter => self.dismiss_porter(),
                Source::Nest => self.open_nest(),
                Source::Above => self.answer_above(),
                Source::Below(n) => self.forget(n),
                Source::Released(n) => self.rights[n].released(),
                Source::Activate(n) => self.lend(n),
                Source::Ended(n, id) if self.rights[n].is_lent_to(id) => self.server_ended(n),
                Source::Stderr(n, id) if self.rights[n].is_lent_to(id) => self.rights[n].drain_stderr(),
                Source::Tracer => self.untrace_gone(),
                Source::Ended(..) | Source::Stderr(..) => {}
                Source::HungUp(n, m) => {
                    // Indices shift: one at a time, the rest at the next turn.
                    let clients = &mut self.rights[n].clients;
                    if clients.get(m).is_some_and(|c| c.channel.hung_up()) {
                        clients.swap_remove(m);
                    }
                }
            }
        }
        let now = Instant::now();
        for n in 0..self.rights.len() {
            if matches!(self.rights[n].holder, Holder::BackOff(until) if until <= now) {
                self.rights[n].left();
                // Traps that the dead server had received wait for an answer: somebody must come at once.
                if self.rights[n].awaited() {
                    self.lend(n);
                }
            }
        }
        self.end_strays();
        Ok(None)
    }

    fn watched(&self) -> (Vec<Source>, Vec<(BorrowedFd<'_>, Until)>) {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        if !self.launched.words.is_empty() {
            // Before its status: what it says explains an end.
            sources.push(Source::Word);
            fds.push((self.launched.control.as_fd(), Until::Readable));
        }
        sources.extend([Source::Signal, Source::Status, Source::Mail]);
        fds.extend([
            (self.signals.as_fd(), Until::Readable),
            (self.status.as_fd(), Until::Readable),
            (self.mailbox.bell.as_fd(), Until::Readable),
        ]);
        let mut watch = |source, fd, until| {
            sources.push(source);
            fds.push((fd, until));
        };
        if let Some(listener) = &self.listener {
            watch(Source::Control, listener.as_fd(), Until::Readable);
        }
        if let Some(door) = &self.door {
            watch(Source::Door, door.as_fd(), Until::Readable);
        }
        if let Some(porter) = &self.porter {
            watch(Source::Porter, porter.pidfd.as_fd(), Until::Readable);
        }
        for channel in self.tracing.channels() {
            watch(Source::Tracer, channel.as_fd(), Until::Ended);
        }
        if let Some(nest) = &self.nest {
            watch(Source::Nest, nest.as_fd(), Until::Readable);
        }
        // Who asks before it stands waits.
        if let (Some(above), true) = (&self.above, self.launched.words.is_empty()) {
            watch(Source::Above, above.as_fd(), Until::Readable);
        }
        for (n, below) in self.below.iter().enumerate() {
            watch(Source::Below(n), below.channel.as_fd(), Until::Ended);
        }
        for (n, right) in self.rights.iter().enumerate() {
            if let Holder::Lent(borrower) = &right.holder {
                // What it wrote before its end is heard first.
                if let Some(stderr) = &borrower.stderr {
                    watch(Source::Stderr(n, borrower.id), stderr.as_fd(), Until::Readable);
                }
                watch(Source::Ended(n, borrower.id), borrower.process.as_fd(), Until::Readable);
            }
            if let Some(channel) = right.guest() {
                watch(Source::Released(n), channel.as_fd(), Until::Ended);
            }
            for bell in right.bells().filter(|_| right.waits()) {
                watch(Source::Activate(n), bell.as_fd(), Until::Readable);
            }
            for (m, client) in right.clients.iter().enumerate() {
                watch(Source::HungUp(n, m), client.channel.as_fd(), Until::Ended);
                if right.waits() {
                    watch(Source::Activate(n), client.channel.as_fd(), Until::Readable);
                }
            }
        }
        (sources, fds)
    }

    fn deadline(&self) -> Option<Instant> {
        let waits = self.rights.iter().filter_map(|right| match right.holder {
            Holder::BackOff(until) => Some(until),
            _ => None,
        });
        waits.chain((!self.settled).then_some(self.started + process::SETTLED)).chain(self.strays.due()).min()
    }

    fn new_borrower(&mut self, n: usize, spec: &Spec) -> Result<Borrower, String> {
        let command = self.policy.server(&self.rights[n].interface, spec, self.rights[n].trap().is_some())?;
        self.borrowers += 1;
        // The standard ones fork nothing away.
        let borrower = Borrower::start(self.borrowers, &command, spec.split().0.is_program())
            .map_err(|e| format!("{} can't be started: {}", command.file.to_string_lossy(), os::with_cure(&e)))?;
        self.strays.guards.extend(borrower.process.guard());
        Ok(borrower)
    }

    /// Lends right `n` to a new server, if nobody holds it.
    fn lend(&mut self, n: usize) {
        if !self.rights[n].waits() {
            return;
        }
        let spec = self.rights[n].spec.clone();
        match self.new_borrower(n, &spec) {
            Ok(borrower) => {
                self.rights[n].holder = Holder::Lent(borrower);
                self.hand_over(n);
            }
            Err(why) => self.lost(n, why, false),
        }
    }

    /// The holder of right `n` has ended, or could not take it.
    fn lost(&mut self, n: usize, why: String, killed: bool) {
        self.rights[n].died(why, killed);
        if let Holder::Failed { reason, .. } = &self.rights[n].holder {
            let interface = &self.rights[n].interface;
            os::complain(format_args!(
                "the {interface} server of {} failed: {reason}; `hurdle ls {0}` shows its last words, `hurdle swap {0} \
                 {interface}=…` replaces it",
                self.name
            ));
        }
    }

    fn server_ended(&mut self, n: usize) {
        let right = &mut self.rights[n];
        let Holder::Lent(borrower) = &mut right.holder else { return };
        let Ok(status) = borrower.process.wait() else { return };
        let (id, ready) = (borrower.id, borrower.ready);
        let spec = right.spec.clone();
        if let Some((answer, swapped, _)) = self.swaps.remove(&id) {
            right.roll_back(swapped.from);
            let _ = answer
                .send(Err(Refused::new(os::EIO, "the new server died before it served; the former kind is back")));
        }
        let words = right.last_words().map(|words| format!("; it said: {words}")).unwrap_or_default();
        self.left_behind(n, &spec);
        if status == Status::exit(0) && ready {
            self.rights[n].left();
            return;
        }
        let why = match status.state() {
            State::Killed(signal) => format!("killed by signal {signal}"),
            _ => format!("exit status {}", status.shell_code()),
        };
        self.lost(n, why + &words, status.state() == State::Killed(os::SIGKILL));
    }

    fn find(&self, interface: &str) -> Result<usize, Refused> {
        self.rights.iter().position(|right| right.interface == interface).ok_or_else(|| {
            let names: Vec<&str> = self.rights.iter().map(|right| right.interface.as_str()).collect();
            Refused::new(os::ENOENT, format!("no interface {interface:?} here; there is {}", names.join(", ")))
        })
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Info(answer) => _ = answer.send(self.info()),
            Ask::Lookup { interface, peer, answer } => {
                let result = self.find(&interface).and_then(|n| {
                    let right = &mut self.rights[n];
                    if right.guest().is_none() {
                        let served = self.policy.server(&interface, &right.spec, right.trap().is_some());
                        served.map_err(|why| Refused::new(os::EOPNOTSUPP, why))?;
                    }
                    right.connect(peer)
                });
                let _ = answer.send(result);
            }
            Ask::Swap { interface, spec, answer } => self.swap(&interface, spec, answer),
            Ask::Trace { interfaces, answer } => _ = answer.send(self.trace(interfaces)),
            Ask::Serve { interface, server, peer, answer } => {
                let _ = answer.send(self.offer(&interface, server, peer));
            }
            Ask::Porter(first) => self.engage_porter(first),
            Ask::Below(answer) => {
                // Also those who have just come.
                self.open_nest();
                let _ = answer.send((self.below.clone(), self.launched.init.pid));
            }
            Ask::Wait(answer) => self.waiters.push(answer),
            Ask::End(answer) => {
                self.ending = true;
                let _ = process::signal(&self.launched.init.pidfd, os::SIGKILL);
                let _ = answer.send(());
            }
            Ask::Put { interface, entry, answer } => {
                let _ = answer.send(self.find(&interface).and_then(|n| self.rights[n].stored().put(entry)));
            }
            Ask::Remove { interface, key, answer } => {
                if let Ok(n) = self.find(&interface) {
                    self.rights[n].stored().remove(&key);
                }
                let _ = answer.send(());
            }
            Ask::Borrowed { borrower, result } => self.borrowed(borrower, result),
            Ask::Returned { successor, since } => self.returned(successor, since),
            Ask::Stillborn { successor, why } => self.stillborn(successor, &why),
        }
    }

    fn borrowed(&mut self, id: u64, result: Result<(), CallError>) {
        let Some(n) = self.rights.iter().position(|right| right.is_lent_to(id)) else { return };
        let swap = self.swaps.remove(&id);
        match result {
            Ok(()) => {
                if let Holder::Lent(borrower) = &mut self.rights[n].holder {
                    borrower.ready = true;
                }
                if let Some((answer, mut swapped, paused)) = swap {
                    swapped.pause_us = u64::try_from(paused.elapsed().as_micros()).unwrap_or(u64::MAX);
                    let _ = answer.send(Ok(swapped));
                }
            }
            Err(e) => {
                if let Some((answer, swapped, _)) = swap {
                    self.rights[n].roll_back(swapped.from);
                    let why = format!("the new server did not take the right: {e}; the former kind is back");
                    let _ = answer.send(Err(Refused::new(os::EIO, why)));
                }
                // If it died, its end says more; if it lives, it is of no use.
                let Holder::Lent(borrower) = &self.rights[n].holder else { return };
                let ended = [(borrower.process.as_fd(), Until::Readable)];
                if !process::poll(&ended, Some(Instant::now())).is_ok_and(|ended| ended[0]) {
                    let spec = self.rights[n].spec.clone();
                    self.left_behind(n, &spec);
                    self.lost(n, e.to_string(), false);
                }
            }
        }
    }

    fn info(&self) -> EnvInfo {
        EnvInfo {
            name: self.name.clone(),
            parent: "host".into(),
            core: i32::try_from(std::process::id()).unwrap_or(0),
            init: self.launched.init.pid,
            up_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            command: self.command.clone(),
            rights: self.rights.iter().map(Right::info).collect(),
        }
    }

    fn admit(&mut self) {
        let Some(listener) = &self.listener else { return };
        while let Ok(Some(socket)) = hurdle_sys::abstract_socket::accept(listener) {
            if let Ok(Some(peer)) = control::admit(&socket) {
                // One too many is turned away: his channel ends.
                let _ = self.callers.serve(socket, peer, self.mailbox.clone(), self.init.clone());
            }
        }
    }

    fn open_door(&mut self) {
        let Some(door) = &self.door else { return };
        while let Ok(Some(socket)) = hurdle_sys::abstract_socket::accept(door) {
            // One too many is turned away: his channel ends.
            let _ = self.guests.serve_door(socket, self.filters, self.mailbox.clone());
        }
    }

    /// Ends what is left, servers first, and waits for the end of pid 1, which is the end of all others inside.
    fn take_down(&mut self, status: Option<Status>) {
        if self.foreground {
            let _ = tty::set_foreground(io::stdin(), 0);
        }
        // Who has come just before the end is heard; the name is free when he has his answer.
        self.admit();
        self.listener = None;
        self.door = None;
        self.nest = None;
        self.rights.clear();
        self.dismiss_porter();
        let _ = process::signal(&self.launched.init.pidfd, os::SIGKILL);
        self.clear_the_way();
        let _ = process::wait_end(self.launched.init.pid);
        self.end_all_strays();
        let raw = status.unwrap_or(Status(os::SIGKILL)).0;
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(raw);
        }
        // The callers' threads write the answers, and may still bring questions.
        self.see_off(raw, LAST_QUESTIONS);
        self.callers.stop();
        self.see_off(raw, FAREWELL);
    }

    /// Answers those who wait for the end, until no caller is left or `patience` is over.
    fn see_off(&self, raw: i32, patience: Duration) {
        let end = Instant::now() + patience;
        while !self.callers.gone() && Instant::now() < end {
            let _ = process::poll(&[(self.mailbox.bell.as_fd(), Until::Readable)], Some(end));
            self.mailbox.bell.clear();
            while let Ok(ask) = self.mail.try_recv() {
                if let Ask::Wait(answer) = ask {
                    let _ = answer.send(raw);
                }
            }
        }
    }
}
