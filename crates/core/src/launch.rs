//! The launch of an environment: clone init, write its id maps, take over its trapped calls.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use hurdle_proto::plan::{IdMap, MapWriter, Plan, Root};
use hurdle_sys::ns::{self, Extent, Ids, Init};
use hurdle_sys::process::{self, Group, Launch, SignalMask, Until};
use hurdle_sys::seccomp::Filter;
use hurdle_sys::seqpacket;

use crate::inside::{self, ATTACH, FAILED, GO, Inside, NOT_RUN, READY, STARTED};
use crate::{Error, Policy, files};

/// The first program of an environment.
#[derive(Debug)]
pub struct Start {
    /// Its arguments; the first is looked up in `PATH` of `env`.
    pub argv: Vec<OsString>,
    /// Its environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub cwd: OsString,
    /// Its place among sessions and groups.
    pub group: Group,
    /// Fds that it gets besides the standard three, under their own numbers.
    pub fds: Vec<i32>,
    /// Whether to wait until its exec has succeeded.
    pub confirm: bool,
}

/// What a lack of fds is called, and what to do.
const OUT_OF_FDS: &str = "no file descriptor is free for the environment (raise `ulimit -n`)";

/// An environment that stands, once init has said all its `words`.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) init: Init,
    /// From here on the channel of the `init` interface.
    pub(crate) control: OwnedFd,
    /// Statuses of the first program.
    pub(crate) status: OwnedFd,
    /// What init has yet to say, in this order.
    pub(crate) words: VecDeque<u8>,
    /// The directory of its layer, if the core made or opened it.
    pub(crate) layer: Option<OwnedFd>,
    program_name: String,
}

/// Makes the environment; what becomes of it shows in the words of init. The caller has one thread.
pub(crate) fn launch(plan: &Plan, start: Start, mask: SignalMask, policy: &dyn Policy) -> Result<Launched, Error> {
    let system = |what: &'static str| move |e: io::Error| Error::System(what, e);
    let filter = match plan.traps.as_slice() {
        [] => None,
        rules => Some(Filter::new(rules).map_err(system("the filter of the trapped calls can't be built"))?),
    };
    let name = start.argv.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    let program =
        prepare(&start, mask, !matches!(plan.root, Root::Directory(_))).map_err(|e| match e.raw_os_error() {
            Some(_) => Error::System(OUT_OF_FDS, e),
            None => Error::Program(name.clone(), e),
        })?;
    let (control, inner) = seqpacket::pair().map_err(system(OUT_OF_FDS))?;
    let (status, inner_status) = process::pipe().map_err(system(OUT_OF_FDS))?;
    let words = [(plan.root.is_mirrored(), ATTACH), (true, READY), (start.confirm, STARTED)];
    let words = words.into_iter().filter_map(|(expected, word)| expected.then_some(word)).collect();
    let prepared = files::prepare(plan, &|layer| policy.made(layer)).map_err(Error::SetUp)?;
    let layer = prepared.layer.as_ref().map(OwnedFd::try_clone).transpose().map_err(system(OUT_OF_FDS))?;
    let inside = Inside {
        plan,
        filter,
        prepared,
        control: inner,
        program,
        program_name: name.clone(),
        status: inner_status,
        report_start: start.confirm,
    };
    let mut inside = Some(inside);
    let init = ns::clone_init(plan.namespaces, || inside.take().map_or(1, inside::run)).map_err(Error::Namespaces)?;
    // This copy of init's ends must go: their last close is how an end is seen.
    drop(inside);

    if plan.ids.writer != MapWriter::Itself {
        write_maps(&plan.ids, init.pid)?;
        // A failure shows as the report of init, or as its end.
        let _ = seqpacket::send(control.as_fd(), GO, &[], true);
    }
    Ok(Launched { init, control, status, words, layer, program_name: name })
}

fn prepare(start: &Start, mask: SignalMask, same_files: bool) -> io::Result<Launch> {
    let own = |fd: i32| process::duplicate(fd);
    let stdio = [own(0)?, own(1)?, own(2)?];
    let mut launch = Launch::new(&start.argv, &start.env, stdio)?.group(start.group).mask(mask).cwd(&start.cwd)?;
    if same_files {
        // A directory that was deleted, or whose path may not be walked: better there than in `/`.
        launch = launch.or_stay();
    }
    for &fd in &start.fds {
        let duplicate = own(fd).map_err(|e| io::Error::new(e.kind(), format!("fd {fd} is not open")))?;
        launch = launch.fd(duplicate, fd);
    }
    Ok(launch)
}

impl Launched {
    /// Waits for the next word of init, and what it lends with it. No word and no status: it died.
    pub(crate) fn word(&mut self) -> Result<Vec<(String, OwnedFd)>, Error> {
        let word = self.words.pop_front().unwrap_or(FAILED);
        self.report(word)
    }

    fn report(&self, word: u8) -> Result<Vec<(String, OwnedFd)>, Error> {
        let mut bytes = Vec::with_capacity(4096);
        // The status pipe says if init ends without a word.
        let fds = [(self.control.as_fd(), Until::Readable), (self.status.as_fd(), Until::Readable)];
        let ready = loop {
            let ready = process::poll(&fds, None).map_err(|e| Error::System("poll", e))?;
            if ready.contains(&true) {
                break ready;
            }
        };
        if !ready[0] {
            // Init ended without a word.
            return Ok(Vec::new());
        }
        let received =
            seqpacket::receive(self.control.as_fd(), &mut bytes).map_err(|e| Error::System("init is gone", e))?;
        match bytes.split_first() {
            Some((&NOT_RUN, [code, text @ ..])) => {
                let name = self.program_name.clone();
                Err(Error::Exec { name, code: *code, why: String::from_utf8_lossy(text).into_owned() })
            }
            Some((&FAILED, text)) => Err(Error::SetUp(String::from_utf8_lossy(text).into_owned())),
            Some((&first, names)) if first == word => {
                let names = String::from_utf8_lossy(names).into_owned();
                Ok(names.split_whitespace().map(str::to_string).zip(received.fds).collect())
            }
            _ => Err(Error::SetUp("init ended before the environment stood".into())),
        }
    }

    /// Why init ended without a status, if it said so.
    pub(crate) fn failure(&self) -> Error {
        match self.report(FAILED) {
            Err(error) => error,
            Ok(_) => Error::Ended,
        }
    }
}

fn write_maps(ids: &IdMap, pid: i32) -> Result<(), Error> {
    match ids.writer {
        MapWriter::Itself => Ok(()),
        MapWriter::Core => [(Ids::Users, &ids.users), (Ids::Groups, &ids.groups)]
            .into_iter()
            .try_for_each(|(which, extents)| ns::write_map(Some(pid), which, extents))
            .map_err(|e| Error::System("the id maps were refused", e)),
        MapWriter::Helper => {
            // Side by side: each is an exec of a setuid program.
            let users = helper(Ids::Users, "newuidmap", pid, &ids.users)?;
            let groups = helper(Ids::Groups, "newgidmap", pid, &ids.groups)?;
            users.finish()?;
            groups.finish()
        }
    }
}

struct Helper {
    name: &'static str,
    child: std::process::Child,
}

fn helper(which: Ids, name: &'static str, pid: i32, extents: &[Extent]) -> Result<Helper, Error> {
    let numbers = extents.iter().flat_map(|e| [e.inside, e.outside, e.count]).map(|n| n.to_string());
    let program = ns::map_helper(which).unwrap_or_else(|| name.into());
    let child = Command::new(program).arg(pid.to_string()).args(numbers).stderr(Stdio::piped()).spawn();
    Ok(Helper { name, child: child.map_err(|e| Error::System("newuidmap can't be run (package uidmap)", e))? })
}

impl Helper {
    fn finish(mut self) -> Result<(), Error> {
        let status = self.child.wait().map_err(|e| Error::System("newuidmap can't be waited for", e))?;
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        Err(Error::SetUp(format!(
            "{} refused the id map ({}); `--auth root,ids=one` needs no range",
            self.name,
            said.trim()
        )))
    }
}
