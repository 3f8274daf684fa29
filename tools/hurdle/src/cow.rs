//! `--fs cow`: where the changes of an environment go, and what becomes of them when it has ended.

use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::path::PathBuf;

use clap::ValueEnum;
use hurdle_layer::{Ids, Layer, Lock, Meta, Mount};
use hurdle_proto::plan::{IdMap, Layered, Overlaid, Place};
use hurdle_proto::spec::Spec;
use hurdle_sys::mount;

use crate::commands::exit::{self, Choice};
use crate::commands::layers;
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
    pub(crate) on_exit: OnExit,
    /// By the user, who will find it there.
    named: bool,
}

impl Held {
    /// Fds that must stay open as long as the environment lives.
    pub(crate) fn fds(&self) -> impl Iterator<Item = RawFd> {
        [&self.lock].into_iter().chain(&self.bases).map(|lock| lock.as_fd().as_raw_fd())
    }
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
    let size = spec.option("size");
    let on_exit = wanted.on_exit.unwrap_or(match (&spec.argument, wanted.interactive) {
        (Some(_), _) => OnExit::Keep,
        (None, true) if size.is_none() => OnExit::Ask,
        (None, _) => OnExit::Discard,
    });
    if spec.argument.is_none() && on_exit == OnExit::Discard {
        if spec.option("base").is_some() {
            return Err(bad("a layer on a base has a name: `cow:NAME,base=OTHER`"));
        }
        let size = size.map(|text| bytes(text).ok_or_else(|| bad("`size` is a number of bytes, as 64M or 2G")));
        return Ok((in_memory(below, own, size.transpose()?), None));
    }
    if size.is_some() {
        return Err(bad("`size` holds for a layer in memory, which is discarded at the end; this one is on disk"));
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
    let mut mounts = Vec::new();
    for at in below {
        let number = layer.add_mount(&at)?;
        let same = |base: &Layer| base.meta().mounts.iter().position(|mount| mount.path == at).map(|n| base.upper(n));
        let dir = layer.meta().mounts[number].dir.clone();
        let bases = chain.iter().filter_map(same).collect();
        mounts.push(Overlaid { at, dir, bases });
    }
    let bases = chain.iter().map(Layer::lock_shared).collect::<Result<_, _>>()?;
    let layered = Layered { place: Place::Directory(path), mounts, hidden: Vec::new(), mirrored };
    let named = spec.argument.is_some();
    Ok((layered, Some(Held { layer, lock, bases, on_exit, named })))
}

/// After the environment's end: what the user wants done with its changes.
pub(crate) fn settle(held: Held) -> Result<(), Failure> {
    let Held { layer, lock, on_exit, named, .. } = held;
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

fn in_memory(below: Vec<PathBuf>, ids: Ids, size: Option<u64>) -> Layered {
    let mirrored = ids.mirrored;
    let mut meta = Meta::new(ids);
    meta.mounts = below.into_iter().enumerate().map(|(n, path)| Mount { path, dir: format!("m{n}") }).collect();
    let overlaid = |mount: &Mount| Overlaid { at: mount.path.clone(), dir: mount.dir.clone(), bases: Vec::new() };
    let mounts = meta.mounts.iter().map(overlaid).collect();
    let mut options = vec![("mode".to_string(), "755".to_string())];
    options.extend(size.map(|bytes| ("size".to_string(), bytes.to_string())));
    Layered { place: Place::Memory { options, label: meta.to_bytes() }, mounts, hidden: Vec::new(), mirrored }
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
