//! `--fs cow`: where the changes of an environment go, and what becomes of them when it has ended; and `--fs ro` of one in which the
//! user is root.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use clap::ValueEnum;
use hurdle_layer::{Ids, Layer, Lock, Meta, Mount};
use hurdle_proto::plan::{CONTENT, IdMap, Layered, Overlaid, Place};
use hurdle_proto::spec::Spec;
use hurdle_sys::mount;

use crate::commands::exit::{self, Choice};
use crate::commands::{inside, layers};
use crate::failure::Failure;

/// What becomes of the changes when the program has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnExit {
    /// Show what changed, and ask.
    Ask,
    /// Carry them to the host.
    Commit,
    /// Forget them.
    Discard,
    /// Keep them as a layer.
    Keep,
}

/// A layer on disk, held while its environment lives.
pub(crate) struct Held {
    pub(crate) layer: Layer,
    pub(crate) lock: Lock,
    /// The layer below it, and those below that one: nobody writes them meanwhile.
    bases: Vec<Lock>,
    /// While the environment lives its changes are in memory, in a layer with a quota; this one takes them at the end.
    memory: Option<Arc<Memory>>,
    pub(crate) on_exit: OnExit,
    /// By the user, who will find it there.
    named: bool,
}

impl Held {
    /// The layer in memory that the environment uses in place of this one.
    pub(crate) fn memory(&self) -> Option<Arc<Memory>> {
        self.memory.clone()
    }

    /// Fds that must stay open as long as the environment lives.
    pub(crate) fn fds(&self) -> impl Iterator<Item = RawFd> {
        [&self.lock].into_iter().chain(&self.bases).map(|lock| lock.as_fd().as_raw_fd())
    }
}

/// A layer in memory whose changes are kept.
#[derive(Debug)]
pub(crate) struct Memory {
    /// What it continues, and where it goes in the end: a layer on disk.
    path: PathBuf,
    /// Its directory, once it is made.
    made: OnceLock<OwnedFd>,
}

impl Memory {
    /// It has been made: fills it with what the layer on disk holds.
    pub(crate) fn made(&self, layer: &OwnedFd) -> Result<(), String> {
        let load = || -> Result<bool, Failure> {
            let kept = Layer::open(&self.path)?;
            let _ = self.made.set(layer.try_clone()?);
            if kept.size()?.entries == 0 {
                return Ok(true);
            }
            if !inside::needed(&kept)? {
                hurdle_layer::load(&kept, layer)?;
                return Ok(true);
            }
            Ok(inside::again(Some(&self.layer()?), self.arguments("load"), true)? == ExitCode::SUCCESS)
        };
        match load() {
            Ok(true) => Ok(()),
            Ok(false) => Err("the layer can't be copied to memory".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// The layer.
    fn layer(&self) -> Result<Layer, Failure> {
        let made = self.made.get().ok_or_else(|| Failure::plain("there was no layer in memory".into()))?;
        Ok(Layer::open_at(made.try_clone()?, &self.path)?)
    }

    /// Puts it in the place of the one on disk.
    fn store(&self) -> Result<Layer, Failure> {
        let layer = self.layer()?;
        if !inside::needed(&layer)? {
            hurdle_layer::replace(&layer, &self.path)?;
        } else if inside::again(Some(&layer), self.arguments("store"), true)? != ExitCode::SUCCESS {
            return Err(Failure::new(layer.name(), "what is in memory can't be written to it"));
        }
        Ok(Layer::open(&self.path)?)
    }

    /// Of the command that does the same inside.
    fn arguments(&self, what: &str) -> Vec<OsString> {
        vec!["memory".into(), what.into(), self.path.clone().into()]
    }
}

/// `hurdle memory`: a layer in memory is filled from the one on disk at `path`, or put in its place, by a process that can.
pub(crate) fn memory_here(store: bool, path: &Path) -> Result<ExitCode, Failure> {
    let layer = inside::layer()?.ok_or_else(|| Failure::plain("this is a part of `hurdle run`".into()))?;
    match store {
        true => drop(hurdle_layer::replace(&layer, path)?),
        false => hurdle_layer::load(&Layer::open(path)?, &layer.as_fd().try_clone_to_owned()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What the user asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) spec: &'a Spec,
    /// `None`: nothing was said.
    pub(crate) on_exit: Option<OnExit>,
    /// Whether somebody is there who can be asked.
    pub(crate) interactive: bool,
    /// The environment's name.
    pub(crate) name: &'a str,
}

/// Makes or opens the layer, and says what the launch needs of it. `ids`: those of the environment.
pub(crate) fn prepare(wanted: &Wanted<'_>, ids: &IdMap) -> Result<(Layered, Option<Held>), Failure> {
    let spec = wanted.spec.single()?;
    let bad = |why: &str| Failure::from(wanted.spec.error(why));
    let mirrored = !mount::is_host_root();
    let extents = |extents: &[hurdle_sys::ns::Extent]| extents.iter().map(|e| (*e).into()).collect();
    let own = Ids { users: extents(&ids.users), groups: extents(&ids.groups), mirrored };
    let own = if mirrored { own } else { Ids::same() };
    let below = if mirrored {
        vec![PathBuf::from("/")]
    } else {
        hurdle_fs::overlaid().map_err(|e| Failure::new("the mounts can't be listed", e))?
    };
    let mut content = if mirrored { vec![PathBuf::from(CONTENT)] } else { Vec::new() };
    if spec.kind == "ro" {
        let overlaid = |at| Overlaid { at, dir: String::new(), bases: Vec::new() };
        let mounts = below.into_iter().map(overlaid).collect();
        return Ok((Layered { place: Place::Nowhere, mounts, hidden: Vec::new(), mirrored, content }, None));
    }
    let size =
        spec.option("size").map(|text| bytes(text).ok_or_else(|| bad("`size` is a number of bytes, as 64M or 2G")));
    let size = size.transpose()?;
    let on_exit = wanted.on_exit.unwrap_or(match (&spec.argument, wanted.interactive) {
        (Some(_), _) => OnExit::Keep,
        (None, true) => OnExit::Ask,
        (None, _) => OnExit::Discard,
    });
    if spec.argument.is_none() && on_exit == OnExit::Discard {
        if spec.option("base").is_some() {
            return Err(bad("a layer on a base has a name: `cow:NAME,base=OTHER`"));
        }
        let mut meta = Meta::new(own);
        meta.mounts =
            below.iter().enumerate().map(|(n, at)| Mount { path: at.clone(), dir: format!("m{n}") }).collect();
        let mounts = below.iter().map(|at| overlaid(&meta, at, &[])).collect();
        let layered = Layered { place: in_memory(&meta, size), mounts, hidden: Vec::new(), mirrored, content };
        return Ok((layered, None));
    }
    if spec.argument.as_ref().is_some_and(|name| name.contains('/')) {
        return Err(bad("a layer's name has no `/`"));
    }
    let path = hurdle_layer::path_of(spec.argument.as_deref().unwrap_or(wanted.name))?;
    let mut meta = Meta::new(own.clone());
    meta.base = spec.option("base").map(str::to_string);
    let mut layer = match Layer::open(&path) {
        Err(hurdle_layer::Error::Missing(_)) => match Layer::create(&path, meta) {
            // Another run came first: its lock says which.
            Err(hurdle_layer::Error::Exists(_)) => Layer::open(&path)?,
            made => made?,
        },
        Ok(_) if spec.argument.is_none() => {
            return Err(bad("a layer of the environment's name is there already; choose another --name, or cow:NAME"));
        }
        Ok(layer) if spec.option("base").is_some() && layer.meta().base.as_deref() != spec.option("base") => {
            return Err(bad("this layer has another base already"));
        }
        layer => layer?,
    };
    let lock = layer.lock_exclusive(&format!("environment {}", wanted.name))?;
    if layer.meta().ids != own {
        return Err(bad("this layer was made with other ids (another --auth, another user, or other subuids)"));
    }
    if layer.interrupted() {
        return Err(bad("a commit of this layer was interrupted: `hurdle commit` finishes it"));
    }
    let chain = layer.bases()?;
    for at in &below {
        layer.add_mount(at)?;
    }
    let mounts = below.iter().map(|at| overlaid(layer.meta(), at, &chain)).collect();
    let bases = chain.iter().map(Layer::lock_shared).collect::<Result<_, _>>()?;
    let (place, memory) = match size {
        None => (Place::Directory(path), None),
        Some(_) => {
            let meta = Meta { copied: true, ..layer.meta().clone() };
            (in_memory(&meta, size), Some(Arc::new(Memory { path, made: OnceLock::new() })))
        }
    };
    // Where the layer lies the file system may share blocks between a file and its copy.
    if let (Place::Directory(path), true, []) = (&place, mirrored, chain.as_slice()) {
        content.extend(hurdle_fs::plain_above(path).filter(|dir| !dir.starts_with(CONTENT)));
    }
    let layered = Layered { place, mounts, hidden: Vec::new(), mirrored, content };
    let named = spec.argument.is_some();
    Ok((layered, Some(Held { layer, lock, bases, memory, on_exit, named })))
}

/// After the environment's end: what the user wants done with its changes.
pub(crate) fn settle(held: Held) -> Result<(), Failure> {
    let Held { mut layer, mut lock, memory, on_exit, named, .. } = held;
    if let Some(memory) = memory.filter(|_| on_exit != OnExit::Discard) {
        layer = memory.store()?;
        lock = layer.lock_exclusive(&format!("the end of an environment (process {})", std::process::id()))?;
    }
    let choice = match on_exit {
        OnExit::Ask => exit::ask(&layer)?,
        OnExit::Commit => Choice::Commit,
        OnExit::Discard => Choice::Discard,
        OnExit::Keep => Choice::Keep,
    };
    let kept = || {
        let name = layer.name();
        hurdle_core::complain(format_args!(
            "note: the changes are kept as layer {name}: hurdle diff, commit or discard {name}"
        ));
    };
    match choice {
        Choice::Keep if on_exit == OnExit::Keep => Ok(()),
        Choice::Keep => {
            kept();
            Ok(())
        }
        Choice::Discard => layers::remove(layer, Some(lock)),
        Choice::Commit | Choice::Pick => {
            exit::carry_out(&layer, choice).inspect_err(|_| kept())?;
            // What was not picked is still there.
            match (named, choice) {
                (false, Choice::Commit) => layers::remove(layer, Some(lock)),
                _ => Ok(()),
            }
        }
    }
}

/// What is overlaid at the host's `at`, in the layer that `meta` tells of, above those of `chain`.
fn overlaid(meta: &Meta, at: &Path, chain: &[Layer]) -> Overlaid {
    let number = |meta: &Meta| meta.mounts.iter().position(|mount| mount.path == at);
    let dir = number(meta).map(|number| meta.mounts[number].dir.clone()).unwrap_or_default();
    let bases = chain.iter().filter_map(|base| number(base.meta()).map(|number| base.upper(number))).collect();
    Overlaid { at: at.into(), dir, bases }
}

fn in_memory(meta: &Meta, size: Option<u64>) -> Place {
    let mut options = vec![("mode".to_string(), "755".to_string())];
    options.extend(size.map(|bytes| ("size".to_string(), bytes.to_string())));
    Place::Memory { options, label: meta.to_bytes() }
}

/// `64M`, `2G`, `4096`.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit.trim_end_matches(['B', 'b']) {
        "" => 0,
        "k" | "K" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok().filter(|n| *n > 0)?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_read() {
        let cases = [("64M", Some(64 << 20)), ("1G", Some(1 << 30)), ("4096", Some(4096)), ("0", None), ("M", None)];
        for (text, bytes) in cases {
            assert_eq!(super::bytes(text), bytes, "{text}");
        }
    }
}
