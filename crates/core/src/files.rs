//! The files of an environment: what the core prepares of them before the clone, and what init makes of a plan's mounts.
//!
//! A layered root is one kernel overlay on each of the parent's file systems. The host's root makes them before the clone, in
//! the host's own mount namespace, with all that overlays can do; init only attaches them. Anybody else's init makes one
//! overlay, and what lies below it is shown by the fs server through FUSE (see `Layered::mirrored`).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hurdle_proto::fs::{CONNECTIONS, PLAIN, is_connection};
use hurdle_proto::plan::{CONTENT, Layered, MountStep, Place, Plan, Root};
use hurdle_sys::memfd;
use hurdle_sys::mount::{self, Tree};

use crate::inside::Lent;
use crate::os;

/// Where init has the parent's files, as the fs server shows them, on its stage: the uppermost first.
const PARTS: [&str; CONNECTIONS.len()] = ["plain", "below"];

/// What the core has made before the clone.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    /// Overlays, in the order of the plan.
    overlays: Vec<OwnedFd>,
    /// The layer's directory.
    pub(crate) layer: Option<OwnedFd>,
    /// Of each [`MountStep::Frozen`] of the host's root, in their order: an overlay of its directory, and those of what is mounted
    /// below.
    frozen: Vec<Vec<(PathBuf, OwnedFd)>>,
}

impl Prepared {
    /// The fds that init needs.
    pub(crate) fn fds(&self) -> impl Iterator<Item = &OwnedFd> {
        self.overlays.iter().chain(&self.layer).chain(self.frozen.iter().flatten().map(|(_, overlay)| overlay))
    }
}

/// Makes what must be made in the parent's namespaces. `made` hears of a layer in memory before it is used.
pub(crate) fn prepare(plan: &Plan, made: &dyn Fn(&OwnedFd) -> Result<(), String>) -> Result<Prepared, String> {
    let Root::Layered(layered) = &plan.root else { return Ok(Prepared::default()) };
    let layer = match &layered.place {
        Place::Directory(path) => {
            Some(open(path).map_err(|e| format!("the layer {} can't be opened: {e}", path.display()))?)
        }
        Place::Memory { .. } if layered.mirrored => None,
        Place::Nowhere => None,
        Place::Memory { options, label } => {
            let tmpfs = memory(options).and_then(|tmpfs| fill(&tmpfs, layered, label).map(|()| tmpfs));
            let tmpfs = tmpfs.map_err(|e| format!("no layer in memory: {e}"))?;
            made(&tmpfs)?;
            Some(tmpfs)
        }
    };
    let mut prepared = Prepared { overlays: Vec::new(), layer, frozen: Vec::new() };
    if !layered.mirrored {
        let all: Vec<&Path> = layered.mounts.iter().map(|mount| mount.at.as_path()).collect();
        let shown: Vec<&Path> = plan.mounts.iter().filter_map(MountStep::shared).collect();
        for frozen in plan.mounts.iter().filter_map(frozen) {
            let made = freeze(frozen, layered, &all, &shown);
            prepared.frozen.push(made.map_err(|e| format!("no overlay on {}: {e}", frozen.target.display()))?);
        }
        for mount in &layered.mounts {
            let made = open(&mount.at).and_then(|below| {
                let mut bases = opened(&mount.bases)?;
                bases.splice(0..0, mask(layered, &mount.at, &all, &[])?);
                let lower = Lower { below: &below, bases: &bases, content: &[] };
                overlay(lower, &mount.dir, prepared.layer.as_ref(), layered)
            });
            prepared.overlays.push(made.map_err(|e| format!("no overlay on {}: {e}", mount.at.display()))?);
        }
    }
    Ok(prepared)
}

/// What a step shows that nobody can make writable.
fn frozen(step: &MountStep) -> Option<Frozen<'_>> {
    match step {
        MountStep::Frozen { target, directory: true } => Some(Frozen { target, root: target, file: None }),
        MountStep::Frozen { target, directory: false } => {
            Some(Frozen { target, root: target.parent()?, file: target.file_name() })
        }
        _ => None,
    }
}

/// See [`MountStep::Frozen`].
#[derive(Clone, Copy)]
struct Frozen<'a> {
    target: &'a Path,
    /// What an overlay is made of: the directory, or that of the file.
    root: &'a Path,
    /// The name in it.
    file: Option<&'a OsStr>,
}

/// Overlays without a layer on what is frozen, and on those of the file systems `all` that are mounted below.
fn freeze(
    frozen: Frozen<'_>,
    layered: &Layered,
    all: &[&Path],
    shown: &[&Path],
) -> io::Result<Vec<(PathBuf, OwnedFd)>> {
    let inner = all.iter().copied().filter(|at| *at != frozen.target && at.starts_with(frozen.target));
    let roots: Vec<&Path> = [frozen.root].into_iter().chain(inner).collect();
    let one = |root: &&Path| {
        let mask: Vec<OwnedFd> = mask(layered, root, &roots, shown)?.into_iter().collect();
        let lower = Lower { below: &open(root)?, bases: &mask, content: &[] };
        Ok((root.to_path_buf(), overlay(lower, "", None, layered)?))
    };
    roots.iter().map(one).collect()
}

/// A layer in which the hidden paths of the file system at `root`, one of `all`, are deleted, if it has any. Directories on the
/// way there look as they do below. Of those with something of `shown` in them an empty directory is left.
fn mask(layered: &Layered, root: &Path, all: &[&Path], shown: &[&Path]) -> io::Result<Option<OwnedFd>> {
    let on = |path: &Path| all.iter().filter(|at| path.starts_with(at)).max_by_key(|at| at.as_os_str().len()).copied();
    let within = |path: &Path| layered.hidden.iter().any(|other| other != path && path.starts_with(other));
    let hidden = layered.hidden.iter().filter(|path| on(path).is_some_and(|at| at == root) && !within(path));
    let hidden: Vec<&PathBuf> = hidden.collect();
    if hidden.is_empty() {
        return Ok(None);
    }
    let mask = memory(&[])?;
    for path in hidden {
        let below = path.strip_prefix(root).unwrap_or(path);
        let mut host = root.to_path_buf();
        let mut ours = mount::path_of(&mask);
        for name in below.parent().into_iter().flat_map(Path::components) {
            host.push(name);
            ours.push(name);
            if !ours.exists() {
                let metadata = host.metadata()?;
                std::fs::create_dir(&ours)?;
                std::os::unix::fs::chown(&ours, Some(metadata.uid()), Some(metadata.gid()))?;
                std::fs::set_permissions(&ours, metadata.permissions())?;
            }
        }
        if let Some(name) = below.file_name()
            && path.symlink_metadata().is_ok()
            && !ours.join(name).exists()
        {
            if shown.iter().any(|shown| shown.starts_with(path)) {
                std::fs::create_dir(ours.join(name))?;
                mount::opaque(&ours.join(name))?;
            } else {
                mount::whiteout(&ours.join(name))?;
            }
        }
    }
    Ok(Some(mask))
}

fn device(path: &str) -> Option<u64> {
    std::fs::metadata(path).ok().map(|found| found.dev())
}

fn opened(paths: &[PathBuf]) -> io::Result<Vec<OwnedFd>> {
    paths.iter().map(|path| open(path)).collect()
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    File::open(path).map(OwnedFd::from)
}

/// A tmpfs for a layer.
fn memory(options: &[(String, String)]) -> io::Result<OwnedFd> {
    // Small inode numbers, so that an overlay can tell them from those of the host by their high bits.
    let given = options.iter().map(|(key, value)| (key.as_str(), Some(value.as_str())));
    let options: Vec<_> = given.chain([("inode32", None)]).collect();
    mount::detached("tmpfs", &options)
}

/// The directories of a new layer, and what says what it is.
fn fill(layer: &OwnedFd, layered: &Layered, label: &[u8]) -> io::Result<()> {
    let path = mount::path_of(layer);
    for mount in &layered.mounts {
        for name in ["upper", "work"] {
            std::fs::create_dir_all(path.join(&mount.dir).join(name))?;
        }
        if !layered.mirrored {
            // It is what the environment sees there.
            let (host, upper) = (mount.at.metadata()?, path.join(&mount.dir).join("upper"));
            std::os::unix::fs::chown(&upper, Some(host.uid()), Some(host.gid()))?;
            std::fs::set_permissions(&upper, host.permissions())?;
        }
    }
    File::create_new(path.join("layer.json"))?.write_all(label)
}

/// What an overlay shows changed.
struct Lower<'a> {
    below: &'a OwnedFd,
    /// Layers between it and the overlay's own, the uppermost first.
    bases: &'a [OwnedFd],
    /// Where the content of large files below is read: see [`readable`].
    content: &'a [OwnedFd],
}

/// One overlay, attached nowhere yet; `dir` is its own directory in the layer. Without a layer it can't be written.
fn overlay(lower: Lower<'_>, dir: &str, layer: Option<&OwnedFd>, layered: &Layered) -> io::Result<OwnedFd> {
    let Lower { below, bases, content } = lower;
    let unprivileged = layered.mirrored;
    // Options are at most 255 bytes and have separators, so all paths are those of fds.
    let text = |fd: &OwnedFd| mount::path_of(fd).to_string_lossy().into_owned();
    let apart = if bases.is_empty() || unprivileged || layer.is_none() { None } else { Some(apart(below)?) };
    let below = apart.as_ref().unwrap_or(below);
    // An overlay that can't be written has two lower layers at least.
    let empty = if layer.is_none() { Some(memory(&[("mode".to_string(), "755".to_string())])?) } else { None };
    let lower: Vec<String> = bases.iter().chain(&empty).chain([below]).map(text).collect();
    let lower = lower.join(":") + &content.iter().map(|content| format!("::{}", text(content))).collect::<String>();
    let mut options = vec![("source", Some("hurdle")), ("lowerdir", Some(lower.as_str()))];
    let own = layer.map(|layer| {
        let own = mount::path_of(layer).join(dir);
        io::Result::Ok((open(&own.join("upper"))?, open(&own.join("work"))?))
    });
    let own = own.transpose()?;
    let own_text = own.as_ref().map(|(upper, work)| (text(upper), text(work)));
    if let Some((upper, work)) = &own_text {
        options.extend([("upperdir", Some(upper.as_str())), ("workdir", Some(work.as_str()))]);
    }
    // Only the host's root may have the kernel move directories by a mark.
    options.push(if unprivileged { ("userxattr", None) } else { ("redirect_dir", Some("on")) });
    // Files of both file systems are shown as of one: what walks a tree and stays on it (find -xdev, tar) goes by that, and git
    // by an inode's number.
    options.push(("xino", Some("on")));
    // Links of one file stay so when it is written. The index refers to the very inodes of the host: nothing to be kept for later.
    if !unprivileged && layer.is_some() && matches!(layered.place, Place::Memory { .. }) {
        options.push(("index", Some("on")));
    }
    mount::detached("overlay", &options)
}

/// The same directory as a file system of its own, to be read: an overlay refuses a layer that lies below another (ELOOP), and
/// the bases may lie below the directory itself.
fn apart(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let empty = memory(&[])?;
    let lower = format!("{}:{}", mount::path_of(&empty).display(), mount::path_of(directory).display());
    mount::detached("overlay", &[("source", Some("hurdle")), ("lowerdir", Some(&lower))])
}

/// How init tells the core of an attachment of the fs server.
pub(crate) type Attach<'a> = &'a dyn Fn(Lent<'_>) -> io::Result<()>;

/// Makes the files of the plan, in the new mount namespace.
pub(crate) fn set_up(plan: &Plan, prepared: &Prepared, attach: Attach<'_>) -> Result<(), String> {
    // Before anything covers them.
    let mut held = plan.mounts.iter().map(hold).collect::<Result<Vec<_>, _>>()?;
    let root = match &plan.root {
        Root::Parent => None,
        Root::Directory(root) => {
            mount::bind(root, root).map_err(|e| format!("{} can't be made a root: {e}", root.display()))?;
            Some(root.clone())
        }
        Root::Layered(layered) => {
            let Stand { root, stage, content } = stand(layered, prepared, attach)?;
            let steps = plan.mounts.iter().zip(&mut held).filter_map(|(step, held)| Some((frozen(step)?, held)));
            for (n, (frozen, held)) in steps.enumerate() {
                let made = prepared.frozen.get(n).and_then(|made| made.first()).map(|(_, overlay)| overlay);
                let shown = show_frozen(frozen, held.take(), made, layered, (&stage, &content));
                *held = Some(shown.map_err(|e| format!("{} can't be shown: {e}", frozen.target.display()))?);
            }
            Some(root)
        }
    };
    let tree = root.as_deref().unwrap_or(Path::new("/"));
    let tree = Tree::open(tree).map_err(|e| format!("{} can't be made a root: {e}", tree.display()))?;
    let mut inner = prepared.frozen.iter().map(|made| &made[1..]);
    for (n, step) in plan.mounts.iter().enumerate() {
        let own = held[n].take();
        let later = plan.mounts[n + 1..].iter().zip(&held[n + 1..]);
        let later = later.filter_map(|(step, held)| Some((step.shared()?, held.as_ref()?)));
        let inner = frozen(step).and_then(|_| inner.next()).unwrap_or_default();
        take(step, own, &tree, later).and_then(|()| attach_all(inner, &tree)).map_err(|(what, e)| {
            let hint = if what.starts_with("proc") && e.raw_os_error() == Some(os::EPERM) {
                "; part of the host's own /proc is hidden (a container?): `hurdle doctor` tells more"
            } else if root.is_some() && e.kind() == io::ErrorKind::NotFound {
                "; a link in that tree leads out of it, or nowhere"
            } else {
                ""
            };
            format!("{what}: {e}{hint}")
        })?;
    }
    match root {
        None => Ok(()),
        Some(root) => mount::pivot(&root).map_err(|e| format!("{} can't become /: {e}", root.display())),
    }
}

/// What a step takes from the parent's files.
fn hold(step: &MountStep) -> Result<Option<OwnedFd>, String> {
    if let Some(frozen) = frozen(step) {
        return Ok(open(frozen.root).ok());
    }
    let MountStep::Bind { source, read_only, .. } = step else { return Ok(None) };
    let held = mount::copy_of(source, true).and_then(|held| {
        if *read_only {
            mount::read_only_detached(&held)?;
        }
        Ok(held)
    });
    held.map(Some).map_err(|e| format!("{} can't be shown: {e}", source.display()))
}

/// The mount of what is frozen: of an overlay that was made before, or of one of the mirror. `direct`: its root, for what is not in
/// the mirror, since something above it is hidden.
fn show_frozen(
    frozen: Frozen<'_>,
    direct: Option<OwnedFd>,
    made: Option<&OwnedFd>,
    layered: &Layered,
    (stage, content): (&Path, &[OwnedFd]),
) -> io::Result<OwnedFd> {
    let mirrored = |path: &Path| -> Vec<PathBuf> {
        let path = path.strip_prefix("/").unwrap_or(path);
        let parts = PARTS.iter().map(|part| stage.join(part).join(path));
        parts.filter(|path| path.symlink_metadata().is_ok()).collect()
    };
    let own = match made {
        Some(_) => None,
        None => {
            let mut parts = match direct {
                Some(direct) if mirrored(frozen.target).is_empty() => vec![direct],
                _ => opened(&mirrored(frozen.root))?,
            };
            let below = parts.pop().ok_or(io::ErrorKind::NotFound)?;
            Some(overlay(Lower { below: &below, bases: &parts, content }, "", None, layered)?)
        }
    };
    let Some(overlay) = made.or(own.as_ref()) else { return Err(io::ErrorKind::NotFound.into()) };
    let Some(file) = frozen.file else { return overlay.try_clone() };
    // Only of what is attached a part can be had, on kernels before 6.15.
    let place = stage.join("frozen");
    if !place.exists() {
        std::fs::create_dir(&place)?;
    }
    mount::attach(overlay, &place)?;
    mount::copy_of(&place.join(file), false)
}

/// Nothing is followed out of the tree: whoever wrote it may not be trusted. `later`: what is to be shown, and
/// where.
fn take<'a>(
    step: &MountStep,
    held: Option<OwnedFd>,
    tree: &Tree,
    later: impl Iterator<Item = (&'a Path, &'a OwnedFd)>,
) -> Result<(), (String, io::Error)> {
    let (done, what) = match step {
        MountStep::Instance { kind, target, options } => (
            tree.directory(target).and_then(|place| mount::instance(kind, &place.path(), options)),
            format!("{kind} can't be mounted on {}", target.display()),
        ),
        MountStep::Renew { kind, target } => {
            let _ = tree.find(target).and_then(|place| mount::renew(kind, &place.path()));
            return Ok(());
        }
        MountStep::Bind { source, target, .. } => {
            // Its own path may be covered by now.
            let attached = held.map_or(Ok(()), |held| {
                let place = if mount::path_of(&held).is_dir() { tree.directory(target) } else { tree.file(target) };
                mount::attach(held, &place?.path())
            });
            (attached, format!("{} can't be shown at {}", source.display(), target.display()))
        }
        MountStep::Frozen { target, directory } => {
            let attached = held.map_or(Ok(()), |held| {
                let place = if *directory { tree.directory(target) } else { tree.file(target) };
                mount::attach(held, &place?.path())
            });
            (attached, format!("{} can't be shown", target.display()))
        }
        MountStep::Hide { target } => (hide(target, tree, later), format!("{} can't be hidden", target.display())),
        MountStep::ReadOnly { target } => (
            tree.find(target).and_then(|place| mount::read_only(&place.path())),
            format!("{} can't be made read-only", target.display()),
        ),
        MountStep::Symlink { text, target } => {
            (tree.symlink(text, target), format!("the link {} can't be made", target.display()))
        }
    };
    done.map_err(|e| (what, e))
}

/// Attaches overlays at their own places.
fn attach_all(overlays: &[(PathBuf, OwnedFd)], tree: &Tree) -> Result<(), (String, io::Error)> {
    for (at, overlay) in overlays {
        let done = tree.find(at).and_then(|place| mount::attach(overlay, &place.path()));
        done.map_err(|e| (format!("{} can't be shown", at.display()), e))?;
    }
    Ok(())
}

/// Covers what is at `target`, if there is something. Only what is shown below it by a later step has its place there.
fn hide<'a>(target: &Path, tree: &Tree, later: impl Iterator<Item = (&'a Path, &'a OwnedFd)>) -> io::Result<()> {
    let place = match tree.find(target) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        place => place?,
    };
    let empty = mount::detached("tmpfs", &[("mode", Some("755")), ("size", Some("4k"))])?;
    if place.path().metadata()?.is_dir() {
        for (shown, what) in later {
            let Ok(below) = shown.strip_prefix(target) else { continue };
            let path = mount::path_of(&empty).join(below);
            let is_dir = mount::path_of(what).is_dir();
            std::fs::create_dir_all(if is_dir { &path } else { path.parent().unwrap_or(&path) })?;
            if !is_dir {
                File::create_new(&path)?;
            }
        }
        mount::read_only_detached(&empty)?;
        return mount::attach(empty, &place.path());
    }
    let file = mount::path_of(&empty).join("empty");
    File::create_new(&file)?;
    let file = mount::copy_of(&file, false)?;
    mount::read_only_detached(&file)?;
    mount::attach(file, &place.path())
}

/// Those of `directories` whose large files the overlay reads by itself, where the fs server that shows them says that their
/// content is there: *data-only* layers (overlayfs in the kernel's documentation). So they are read and mapped from the kernel's
/// own cache of them. `empty` is any directory, to try it: the kernel can't, for one without privileges, before Linux 6.16, nor
/// where something is mounted below the directory.
fn readable(directories: Vec<(&Path, OwnedFd)>, empty: &Path) -> (Vec<u8>, Vec<OwnedFd>) {
    let (mut names, mut found) = (Vec::new(), Vec::new());
    for (path, directory) in directories {
        let lower = format!("{}::{}", empty.display(), mount::path_of(&directory).display());
        if mount::detached("overlay", &[("lowerdir", Some(&lower)), ("userxattr", None)]).is_ok() {
            names.extend_from_slice(path.as_os_str().as_bytes());
            names.push(0);
            found.push(directory);
        }
    }
    (names, found)
}

/// A layered root.
struct Stand {
    root: PathBuf,
    /// What it is made of: a tmpfs that goes with the old root.
    stage: PathBuf,
    /// See [`readable`].
    content: Vec<OwnedFd>,
}

/// Makes a layered root.
fn stand(layered: &Layered, prepared: &Prepared, attach: Attach<'_>) -> Result<Stand, String> {
    let at = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    let stage = ["/tmp", "/run", "/mnt", "/usr"].iter().map(Path::new).find(|path| path.is_dir());
    let stage = stage.ok_or("the parent has none of /tmp, /run, /mnt and /usr, one of which init works on")?;
    // What init mounts must come from its own namespace; and the stage may cover the place of the layer.
    let own = match (&layered.place, layered.mirrored) {
        (Place::Directory(path), true) => {
            Some(open(path).map_err(|e| format!("the layer {} can't be opened: {e}", path.display()))?)
        }
        _ => None,
    };
    let mut bases = match layered.mounts.as_slice() {
        [mount] if layered.mirrored => opened(&mount.bases).map_err(at("a layer below"))?,
        _ => Vec::new(),
    };
    let content = layered.content.iter().filter_map(|path| Some((path.as_path(), open(path).ok()?))).collect();
    mount::instance("tmpfs", stage, "mode=700").map_err(at("no tmpfs"))?;
    let root = stage.join("root");
    std::fs::create_dir(&root).map_err(at("no directory on a tmpfs"))?;
    if !layered.mirrored {
        for (overlay, mount) in prepared.overlays.iter().zip(&layered.mounts) {
            let attached = match mount.at == Path::new("/") {
                true => mount::attach(overlay, &root),
                false => Tree::open(&root)
                    .and_then(|tree| tree.find(&mount.at))
                    .and_then(|place| mount::attach(overlay, &place.path())),
            };
            attached.map_err(|e| format!("the overlay on {} can't be attached: {e}", mount.at.display()))?;
        }
        return Ok(Stand { root, stage: stage.to_path_buf(), content: Vec::new() });
    }
    let places = PARTS.map(|part| stage.join(part));
    places.iter().try_for_each(std::fs::create_dir).map_err(at("no directory on a tmpfs"))?;
    let (names, content) = readable(content, &places[0]);
    // With a plain part, if the numbers of files then still tell that all are of one file system.
    let two = names.split(|byte| *byte == 0).any(|name| name == CONTENT.as_bytes()) && device(CONTENT) == device("/");
    let parts = || places.iter().zip(CONNECTIONS).filter(|(_, names)| two || *names != PLAIN);
    let mut attachments = Vec::new();
    for (place, (name, _)) in parts() {
        let (device, fuse) = hurdle_sys::fuse::create("hurdle").map_err(|e| {
            format!("the parent's files can't be shown through FUSE: {e}; is /dev/fuse there, and may you write to it? (as root: chmod 666 /dev/fuse)")
        })?;
        mount::attach(fuse, place).map_err(at("FUSE can't be attached"))?;
        attachments.push((name, device));
    }
    if !content.is_empty() {
        let names = memfd::sealed(c"content", &names).map_err(at("no memory file"))?;
        attachments.push(("content", names));
    }
    if let Place::Memory { options, label } = &layered.place {
        let tmpfs = memory(options).and_then(|tmpfs| fill(&tmpfs, layered, label).map(|()| tmpfs));
        let tmpfs = tmpfs.map_err(at("no layer in memory"))?;
        // On kernels before 6.15 only what is attached can be part of an overlay.
        let place = stage.join("layer");
        std::fs::create_dir(&place).and_then(|()| mount::attach(&tmpfs, &place)).map_err(at("no layer in memory"))?;
        attachments.push(("layer", tmpfs));
    }
    attach(&attachments).map_err(at("the core is gone"))?;
    // Its connection ends with the core and the server, who alone hold it now. Else what init asks of it when they die, killed,
    // would wait for ever, and nothing could end init.
    attachments.retain(|(name, _)| !is_connection(name));
    let lent = |name: &str| attachments.iter().find_map(|(other, fd)| (*other == name).then_some(fd));
    let [mount] = layered.mounts.as_slice() else { return Err("a layer that is mirrored has one mount".into()) };
    let layer = own.as_ref().or(lent("layer"));
    if let Some(layer) = layer {
        // The root directory is root's, and others' to read, where there is a root.
        let upper = mount::path_of(layer).join(&mount.dir).join("upper");
        let _ = std::os::unix::fs::chown(&upper, Some(0), Some(0));
    }
    let shown = parts().map(|(place, _)| open(place)).collect::<io::Result<Vec<_>>>();
    let shown = shown.map_err(at("the parent's files, through FUSE"))?;
    bases.extend(shown);
    let below = bases.pop().ok_or("nothing lies below")?;
    let lower = Lower { below: &below, bases: &bases, content: &content };
    let made = overlay(lower, &mount.dir, layer, layered).and_then(|overlay| mount::attach(overlay, &root));
    made.map_err(at("no overlay on the parent's files"))?;
    Ok(Stand { root, stage: stage.to_path_buf(), content })
}
