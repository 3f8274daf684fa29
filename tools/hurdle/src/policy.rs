//! What the server kinds mean: which crate plans them, which program serves them, what can become what.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use hurdle_core::{Command, Policy};
use hurdle_layer::Lock;
use hurdle_proto::plan::{IdMap, Layered, MapWriter, Plan};
use hurdle_proto::spec::{Layer, Spec, SpecError};
use hurdle_sys::process;

use crate::cow::Memory;

/// The standard interfaces.
pub(crate) const STANDARD: &[&str] = &["fs", "net", "auth", "proc"];

/// The sum of what these servers need at launch. `layer` makes or finds the layer of a copy-on-write environment, once its
/// ids are known.
pub(crate) fn plan<H>(
    rights: &[(String, Spec)],
    swappable: bool,
    layer: impl FnOnce(&Spec, &IdMap) -> Result<(Layered, H), crate::Failure>,
) -> Result<(Plan, Option<H>), crate::Failure> {
    let mut plan = Plan::new()?;
    let of = |name: &str| rights.iter().find(|(interface, _)| interface == name).map(|(_, spec)| spec);
    let root = process::effective_ids().0 == 0 || of("auth").is_some_and(|spec| spec.split().0.kind == "root");
    let files = of("fs").filter(|spec| hurdle_fs::is_layered(spec, root));
    if let Some(spec) = of("auth") {
        hurdle_auth::plan(spec, files.is_some(), &mut plan)?;
    }
    let (layered, held) = match files {
        Some(spec) => layer(spec, &plan.ids).map(|(layered, held)| (Some(layered), Some(held)))?,
        None => (None, None),
    };
    if let Some(spec) = of("fs") {
        hurdle_fs::plan(spec, layered, hurdle_layer::layers_dir().ok(), &mut plan)?;
    }
    for (interface, spec) in rights {
        match interface.as_str() {
            "fs" | "auth" => {}
            "net" => {
                hurdle_net::plan(spec, swappable, &mut plan)?;
                programs(spec).map_err(|why| spec.error(why))?;
            }
            "proc" => hurdle_proc::plan(spec, &mut plan)?,
            _ => custom(spec)?,
        }
    }
    Ok((plan, held))
}

/// Whether these servers need trapped calls.
pub(crate) fn traps(rights: &[(String, Spec)], swappable: bool) -> Result<bool, crate::Failure> {
    // Whose it is makes no difference.
    let mut plan = Plan::of(IdMap { users: Vec::new(), groups: Vec::new(), writer: MapWriter::Itself });
    for (_, spec) in rights.iter().filter(|(interface, _)| interface == "net") {
        hurdle_net::plan(spec, swappable, &mut plan)?;
    }
    Ok(!plan.traps.is_empty())
}

/// An interface of the user's own is served by a program of his.
fn custom(spec: &Spec) -> Result<(), SpecError> {
    program(spec.single()?).map(|_| ()).map_err(|why| spec.error(why))
}

fn program(layer: &Layer) -> Result<&str, String> {
    if !layer.is_program() {
        return Err("it must be the path of a program, with a `/` in it".into());
    }
    let path = std::path::Path::new(&layer.kind);
    match path.metadata() {
        Ok(meta) if meta.is_file() => Ok(&layer.kind),
        Ok(_) => Err(format!("{} is no file that could be run", path.display())),
        Err(e) => Err(format!("{} can't be run: {e}", path.display())),
    }
}

/// Whether every program of a stack can be run.
fn programs(spec: &Spec) -> Result<(), String> {
    spec.layers().iter().filter(|layer| layer.is_program()).try_for_each(|layer| program(layer).map(drop))
}

/// The one policy of the `hurdle` command.
pub(crate) struct Standard {
    /// The environment's name.
    name: String,
    /// The layer in memory whose changes are kept, if there is one.
    memory: Option<Arc<Memory>>,
    /// That of a layer in memory: nobody else writes it while the environment lives.
    lock: OnceLock<Lock>,
}

impl Standard {
    pub(crate) fn new(name: &str, memory: Option<Arc<Memory>>) -> Standard {
        Standard { name: name.into(), memory, lock: OnceLock::new() }
    }
}

impl Policy for Standard {
    fn made(&self, layer: &OwnedFd) -> Result<(), String> {
        let lock = hurdle_layer::Layer::lock_new(layer, Path::new(&self.name), &format!("environment {}", self.name));
        let _ = self.lock.set(lock.map_err(|e| e.to_string())?);
        self.memory.as_ref().map_or(Ok(()), |memory| memory.made(layer))
    }

    fn server(&self, interface: &str, spec: &Spec, trapped: bool) -> Result<Command, String> {
        let layer = spec.split().0;
        if interface == "net" && !trapped {
            return Err(format!(
                "net={spec} is the kernel's own work here: no call is trapped, so there is no server to ask"
            ));
        }
        if layer.is_program() {
            return program(layer).map(|path| Command { file: path.into(), argv: vec![path.into()] });
        }
        // This very file, also if another has taken its place since.
        Ok(Command { file: "/proc/self/exe".into(), argv: vec!["hurdle".into(), "server".into(), interface.into()] })
    }

    fn may_swap(&self, interface: &str, from: &Spec, to: &Spec, trapped: bool) -> Result<(), String> {
        if interface == "net" {
            hurdle_net::may_swap(to).map_err(|e| e.to_string())?;
            programs(to)?;
            if !trapped {
                return Err(format!(
                    "net={from} was launched without traps, which can't be added to running programs; launch it with \
                     `hurdle run --swappable`"
                ));
            }
            return Ok(());
        }
        let layer = to.single().map_err(|e| e.to_string())?;
        if layer.is_program() {
            program(layer)?;
        }
        let same = from.single().is_ok_and(|from| from.kind == layer.kind);
        if STANDARD.contains(&interface) && !same && !layer.is_program() {
            return Err(format!("{interface}={from} can't become {to} while programs run: it is decided at launch"));
        }
        if !STANDARD.contains(&interface) {
            custom(to).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}
