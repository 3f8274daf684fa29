//! Taking the steps.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::journal::Journal;
use super::step::{Owner, Spot, Step, Way};
use super::{attrs, file};
use crate::at::{self, Stat};
use crate::error::{At as _, Error, Result};
use crate::marks::{Marks, plain_xattrs};
use crate::tree;
use crate::view::View;
use crate::walk::TRIES;

/// How many files are put before the journal hears of it.
const BATCH: usize = 1000;
/// Threads that copy.
const THREADS: usize = 4;
/// How often a file that is being written is copied again.
const WRITTEN: usize = 3;

/// Takes all steps that are left.
pub(crate) fn run(view: &View<'_>, journal: &mut Journal) -> Result<()> {
    let steps = std::mem::take(&mut journal.steps);
    let result = run_all(view, journal, &steps);
    journal.steps = steps;
    result
}

fn run_all(view: &View<'_>, journal: &mut Journal, steps: &[Step]) -> Result<()> {
    let made = if journal.head.keep { made(steps) } else { Made::new() };
    let mut hands = Hands::new(view, journal, &made);
    let copies = |step: &Step| matches!(step, Step::Put { way: Way::Copy, .. });
    while journal.done < steps.len() {
        let start = journal.done;
        let mut end = start + 1;
        match &steps[start] {
            // In any order: none of them depends on another.
            step if copies(step) => {
                while end < steps.len() && end - start < BATCH && copies(&steps[end]) {
                    end += 1;
                }
                together(view, journal, &made, &steps[start..end], start)?;
                journal.note(end, false)?;
            }
            Step::Sync => {
                sync(view, steps)?;
                journal.note(end, true)?;
            }
            first => {
                hands.take(first, start)?;
                // These find out by themselves that they were taken before.
                let simple = |step: &Step| {
                    matches!(step, Step::Put { .. } | Step::Unlink { .. } | Step::Clean { .. } | Step::Dress { .. })
                };
                while simple(first)
                    && end < steps.len()
                    && end - start < BATCH
                    && simple(&steps[end])
                    && !copies(&steps[end])
                {
                    hands.take(&steps[end], end)?;
                    end += 1;
                }
                journal.note(end, false)?;
            }
        }
    }
    Ok(())
}

/// The directories that a commit of what still runs makes: mount and path.
type Made<'s> = HashSet<(usize, &'s [u8])>;

fn made(steps: &[Step]) -> Made<'_> {
    steps
        .iter()
        .filter_map(|step| if let Step::Dir { at } = step { Some((at.mount, &*at.rel)) } else { None })
        .collect()
}

/// Copies by several threads.
fn together(view: &View<'_>, journal: &Journal, made: &Made<'_>, steps: &[Step], first: usize) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let share = steps.len().div_ceil(threads).max(16);
    let work = |(part, steps): (usize, &[Step])| -> Result<()> {
        let mut hands = Hands::new(view, journal, made);
        steps.iter().enumerate().try_for_each(|(n, step)| hands.take(step, first + part * share + n))
    };
    let work = &work;
    std::thread::scope(|scope| {
        let mut parts = steps.chunks(share).enumerate();
        // The caller takes a share too.
        let own = parts.next();
        let others: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        let mut result = own.map_or(Ok(()), work);
        for other in others {
            let done =
                other.join().unwrap_or_else(|_| Err(Error::damaged(view.layer.path(), "a thread of the commit ended")));
            result = result.and(done);
        }
        result
    })
}

/// syncfs(2) on all that the steps touch.
fn sync(view: &View<'_>, steps: &[Step]) -> Result<()> {
    let mut seen = Vec::new();
    let mut mounts: Vec<usize> = steps.iter().filter_map(|step| step.spot().map(|at| at.mount)).collect();
    mounts.sort_unstable();
    mounts.dedup();
    for mount in mounts {
        for fd in [view.upper(mount), view.mounts[mount].lower.host()] {
            let dev = at::stat_fd(fd).at(|| "statx".into())?.dev;
            if !seen.contains(&dev) {
                seen.push(dev);
                rustix::fs::syncfs(fd).at(|| format!("syncfs {}", crate::text::path(&view.path(mount, b""))))?;
            }
        }
    }
    // File systems that are mounted below, which a mirror shows in one tree.
    let mut last: Option<Vec<u8>> = None;
    for at in steps.iter().filter(|step| !matches!(step, Step::Clean { .. } | Step::Sync)).filter_map(Step::spot) {
        let parent = at::split(&at.rel).0;
        if last.as_deref() == Some(parent) {
            continue;
        }
        last = Some(parent.to_vec());
        let Ok(dir) = at::open_below(view.mounts[at.mount].lower.host(), parent, OFlags::RDONLY) else { continue };
        let dev = at::stat_fd(&dir).at(|| "statx".into())?.dev;
        if !seen.contains(&dev) {
            seen.push(dev);
            rustix::fs::syncfs(&dir).at(|| format!("syncfs {}", crate::text::path(&view.path(at.mount, parent))))?;
        }
    }
    Ok(())
}

/// A directory on the host, held open for the next step.
struct Dir {
    mount: usize,
    rel: Vec<u8>,
    fd: OwnedFd,
    /// What is made in it gets an access list.
    inherits: Option<bool>,
}

/// What takes steps, one after the other.
struct Hands<'r, 'v> {
    view: &'r View<'v>,
    id: String,
    keep: bool,
    made: &'r Made<'r>,
    host: Option<Dir>,
    upper: Option<Dir>,
    /// File systems between which nothing moves.
    apart: HashMap<usize, bool>,
}

impl<'r, 'v> Hands<'r, 'v> {
    fn new(view: &'r View<'v>, journal: &Journal, made: &'r Made<'r>) -> Hands<'r, 'v> {
        let (id, keep) = (journal.head.id.clone(), journal.head.keep);
        Hands { view, id, keep, made, host: None, upper: None, apart: HashMap::new() }
    }

    fn take(&mut self, step: &Step, number: usize) -> Result<()> {
        for tries in 0.. {
            let done = match self.is_void(step) {
                Ok(true) => {
                    self.pass_over(step, number);
                    Ok(())
                }
                Ok(false) => self.step(step, number),
                Err(e) => Err(e),
            };
            match done {
                // The environment has moved it at this moment.
                Err(e) if self.keep && tries < TRIES && at::is_of_moving(e) => (self.host, self.upper) = (None, None),
                done => {
                    return done.at(|| match step.spot() {
                        Some(at) => format!("committing {}", crate::text::path(&self.view.path(at.mount, &at.rel))),
                        None => "committing".into(),
                    });
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, number: usize) -> Result<(), Errno> {
        match step {
            Step::Sync => Ok(()),
            Step::Unhide { at, below } => self.unhide(at, below.as_ref()),
            Step::Forget { at } => self.forget(at),
            Step::Away { from, ino, slot } => self.away(from, *ino, *slot),
            Step::Back { slot, at } => self.back(*slot, at),
            Step::Trash { at, ino } => self.trash(at, *ino, number),
            Step::Dir { at } => self.dir(at),
            Step::Open { at } => self.open(at),
            Step::Put { at, way, owner, marked } => self.put(at, way, owner, *marked, number),
            Step::Dress { at, owner, time } => self.dress(at, owner, *time),
            Step::Unlink { at, ino } => self.unlink(at, *ino),
            Step::Sweep { at, number } => self.sweep(at, *number),
            Step::Unslot { mount } => self.unslot(*mount),
            Step::Clean { at } => self.clean(at),
        }
    }

    /// Whether an environment that goes on has taken away since what a step would carry over, or has again what it would remove. The layer
    /// keeps all, so it is for the next commit.
    fn is_void(&self, step: &Step) -> Result<bool, Errno> {
        if !self.keep {
            return Ok(false);
        }
        let there = |at: &Spot| Ok(self.now(at)?.filter(|stat| !stat.is_whiteout()));
        // A directory that was to be made for it was void.
        let nowhere = |at: &Spot| {
            let parent = at::split(&at.rel).0;
            let ends = (0..=parent.len()).filter(|end| *end == parent.len() || parent[*end] == b'/');
            ends.map(|end| &parent[..end]).any(|dir| self.made.contains(&(at.mount, dir)))
                && at::open_below(self.host_root(at.mount), parent, OFlags::PATH).is_err_and(at::is_of_moving)
        };
        Ok(match step {
            Step::Dir { at } => nowhere(at) || !there(at)?.is_some_and(|stat: Stat| stat.is_dir()),
            Step::Put { at, .. } => nowhere(at) || there(at)?.is_none_or(|stat: Stat| stat.is_dir()),
            Step::Dress { at, .. } => nowhere(at) || there(at)?.is_none(),
            Step::Unlink { at, .. } => there(at)?.is_some(),
            _ => false,
        })
    }

    /// What a step that was begun before a kill may have left goes.
    fn pass_over(&mut self, step: &Step, number: usize) {
        let temporary = self.temporary(number);
        if let Step::Put { at, .. } = step
            && let Ok((dir, _)) = self.host(at)
        {
            let _ = remove_file(dir, &temporary);
        }
    }

    /// What the layer has at a spot by now.
    fn now(&self, at: &Spot) -> Result<Option<Stat>, Errno> {
        let (rel, name) = at::split(&at.rel);
        match at::open_below(self.view.upper(at.mount), rel, OFlags::PATH) {
            Ok(dir) => at::stat(&dir, &name),
            Err(e) if at::is_of_moving(e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The name that something has for a while, beside its place.
    fn temporary(&self, number: usize) -> CString {
        CString::new(format!(".hurdle-{}-{number}", self.id)).unwrap_or_default()
    }

    /// The directory of renamed directories, at the root of a mount.
    fn slots(&self) -> CString {
        CString::new(format!(".hurdle-{}-moved", self.id)).unwrap_or_default()
    }

    fn host_root(&self, mount: usize) -> BorrowedFd<'r> {
        self.view.mounts[mount].lower.host()
    }

    /// The host's directory that a spot lies in, and the spot's name there.
    fn host(&mut self, at: &Spot) -> Result<(BorrowedFd<'_>, CString), Errno> {
        let (rel, name) = at::split(&at.rel);
        let root = self.host_root(at.mount);
        Ok((held(&mut self.host, root, at.mount, rel)?.fd.as_fd(), name))
    }

    /// Both directories that a spot lies in: on the host and in the layer.
    fn both(&mut self, at: &Spot) -> Result<(&mut Dir, &mut Dir, CString), Errno> {
        let (rel, name) = at::split(&at.rel);
        let roots = (self.host_root(at.mount), self.view.upper(at.mount));
        Ok((held(&mut self.host, roots.0, at.mount, rel)?, held(&mut self.upper, roots.1, at.mount, rel)?, name))
    }

    fn unhide(&mut self, at: &Spot, below: Option<&Spot>) -> Result<(), Errno> {
        let prefix = self.view.prefix;
        let upper = at::open_below(self.view.upper(at.mount), &at.rel, OFlags::RDONLY)?;
        let host = match below {
            Some(below) => at::open_below(self.host_root(below.mount), &below.rel, OFlags::RDONLY),
            None => Err(Errno::NOENT),
        };
        let opaque = prefix.key("opaque");
        match host {
            Ok(host) => {
                for (name, _) in tree::names(&host)? {
                    let Some(hidden) = at::stat(&host, &name)? else { continue };
                    match at::stat(&upper, &name)? {
                        None => rustix::fs::mknodat(&upper, &*name, FileType::CharacterDevice, Mode::empty(), 0)?,
                        Some(own) if own.is_dir() && hidden.is_dir() => at::set_xattr(&upper, &name, &opaque, b"y")?,
                        Some(_) => {}
                    }
                }
            }
            // Nothing lies below.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(e) => return Err(e),
        }
        at::remove_xattr(&upper, c".", &opaque)
    }

    fn forget(&mut self, at: &Spot) -> Result<(), Errno> {
        let key = self.view.prefix.key("origin");
        let (rel, name) = at::split(&at.rel);
        let root = self.view.upper(at.mount);
        at::remove_xattr(&held(&mut self.upper, root, at.mount, rel)?.fd, &name, &key)
    }

    fn away(&mut self, from: &Spot, ino: u64, slot: usize) -> Result<(), Errno> {
        let slots = self.slots();
        let root = self.host_root(from.mount);
        match rustix::fs::mkdirat(root, &slots, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        let to = tree::open_dir(root, &slots)?;
        let (dir, name) = self.host(from)?;
        let name_there = at::c_name(slot.to_string().as_bytes());
        match at::stat(dir, &name)? {
            Some(stat) if stat.ino == ino => rustix::fs::renameat(dir, &name, &to, &name_there),
            // It has gone there already.
            _ if at::stat(&to, &name_there)?.is_some() => Ok(()),
            _ => Err(Errno::NOENT),
        }
    }

    fn back(&mut self, slot: usize, at: &Spot) -> Result<(), Errno> {
        let from = match tree::open_dir(self.host_root(at.mount), &self.slots()) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let name = at::c_name(slot.to_string().as_bytes());
        if at::stat(&from, &name)?.is_none() {
            return Ok(());
        }
        let (dir, new) = self.host(at)?;
        rustix::fs::renameat_with(&from, &name, dir, &new, RenameFlags::NOREPLACE)
    }

    fn trash(&mut self, at: &Spot, ino: u64, number: usize) -> Result<(), Errno> {
        let aside = self.temporary(number);
        let (dir, name) = self.host(at)?;
        match at::stat(dir, &name)? {
            Some(stat) if stat.ino == ino => rustix::fs::renameat_with(dir, &name, dir, &aside, RenameFlags::NOREPLACE),
            // It has gone, or another has its name.
            _ => Ok(()),
        }
    }

    fn dir(&mut self, at: &Spot) -> Result<(), Errno> {
        let (dir, name) = self.host(at)?;
        match rustix::fs::mkdirat(dir, &name, Mode::RWXU) {
            Err(Errno::EXIST) if at::stat(dir, &name)?.is_some_and(|stat| stat.is_dir()) => Ok(()),
            other => other,
        }
    }

    fn open(&mut self, at: &Spot) -> Result<(), Errno> {
        let (dir, name) = self.host(at)?;
        let Some(stat) = at::stat(dir, &name)? else { return Err(Errno::NOENT) };
        match stat.mode & 0o700 {
            0o700 => Ok(()),
            _ => attrs::chmod(dir, &name, stat.kind, Mode::from_raw_mode(stat.mode | 0o700)),
        }
    }

    fn put(&mut self, at: &Spot, way: &Way, owner: &Owner, marked: bool, number: usize) -> Result<(), Errno> {
        match way {
            Way::Link(to) => self.link(at, to, owner, number),
            Way::Copy => self.copy(at, owner, number),
            Way::Take if self.apart.contains_key(&at.mount) => self.copy(at, owner, number),
            Way::Take => match self.take_file(at, owner, marked) {
                Err(Errno::XDEV) => {
                    self.apart.insert(at.mount, true);
                    self.copy(at, owner, number)
                }
                other => other,
            },
        }
    }

    /// One rename(2), after what the host must not see is taken off.
    fn take_file(&mut self, at: &Spot, owner: &Owner, marked: bool) -> Result<(), Errno> {
        let (prefix, mirrored) = (self.view.prefix, self.view.ids().mirrored);
        let (host, upper, name) = self.both(at)?;
        // It has moved already.
        let Some(stat) = at::stat(&upper.fd, &name)? else { return Ok(()) };
        if marked {
            let marks = Marks::read(&upper.fd, &name, prefix)?;
            for key in &marks.own {
                at::remove_xattr(&upper.fd, &name, key)?;
            }
        }
        if mirrored && let Some(old) = at::stat(&host.fd, &name)?.filter(|old| old.kind == stat.kind) {
            // Attributes of the old file that the environment could not see.
            let now = plain_xattrs(&upper.fd, &name)?;
            let mut unseen = plain_xattrs(&host.fd, &name)?;
            unseen.retain(|(key, _)| !key.to_bytes().starts_with(b"user.") && !now.iter().any(|(own, _)| own == key));
            if old.is_file() && !unseen.is_empty() {
                unseen.extend(now.iter().cloned());
                attrs::xattrs(&upper.fd, &name, &now, &unseen, true)?;
            }
        }
        let changed = attrs::chown(upper.fd.as_fd(), &name, &stat, owner)?;
        let mode = attrs::mode(&stat, owner);
        if changed || mode != Mode::from_raw_mode(stat.mode) {
            attrs::chmod(upper.fd.as_fd(), &name, stat.kind, mode)?;
        }
        rustix::fs::renameat(&upper.fd, &name, &host.fd, &name)
    }

    fn link(&mut self, at: &Spot, to: &Spot, owner: &Owner, number: usize) -> Result<(), Errno> {
        let temporary = self.temporary(number);
        let (rel, first) = at::split(&to.rel);
        let from = at::open_below(self.host_root(to.mount), rel, OFlags::PATH);
        if self.keep {
            let (mine, other) = (self.now(at)?, self.now(to)?);
            let placed = from.as_ref().map_or(Ok(None), |from| at::stat(from, &first))?;
            // One of the names is another file's by now, or it was void when it was to be carried over.
            let file = |stat: Option<Stat>| stat.map(|stat| (stat.dev, stat.ino));
            let content = |stat: Option<Stat>| stat.map(|stat| (stat.kind, stat.size, stat.mtime));
            if file(mine) != file(other) || content(other) != content(placed) {
                return self.copy(at, owner, number);
            }
        }
        let from = from?;
        let (dir, name) = self.host(at)?;
        remove_file(dir, &temporary)?;
        match rustix::fs::linkat(&from, &first, dir, &temporary, AtFlags::empty()) {
            Ok(()) => {}
            // Names of two file systems of the host; more names than a file may have, or none at all.
            Err(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => return self.copy(at, owner, number),
            Err(e) => return Err(e),
        }
        let done = rustix::fs::renameat(dir, &temporary, dir, &name);
        // Where both were names of one file already, rename(2) leaves both.
        done.and(remove_file(dir, &temporary))
    }

    fn copy(&mut self, at: &Spot, owner: &Owner, number: usize) -> Result<(), Errno> {
        let temporary = self.temporary(number);
        let copied = self.copy_aside(at, owner, &temporary);
        let (dir, name) = self.host(at)?;
        let done = match copied {
            Ok(true) => rustix::fs::renameat(dir, &temporary, dir, &name),
            other => other.map(drop),
        };
        if done.is_err() || copied == Ok(false) {
            // What went wrong says more.
            let _ = remove_file(dir, &temporary);
        }
        done
    }

    /// Copies a file to its temporary name, as it was at some moment; false: it is not there.
    fn copy_aside(&mut self, at: &Spot, owner: &Owner, temporary: &CStr) -> Result<bool, Errno> {
        let (view, keep) = (self.view, self.keep);
        let (host, upper, name) = self.both(at)?;
        for attempt in 1.. {
            // The environment has taken it away, or an earlier commit's clean-up has.
            let Some(stat) = at::stat(&upper.fd, &name)? else { break };
            if keep && (stat.is_dir() || stat.is_whiteout()) {
                break;
            }
            remove_file(host.fd.as_fd(), temporary)?;
            let owner = owner.unless_another(&stat, keep);
            let wanted = Marks::read(&upper.fd, &name, view.prefix)?.values(&upper.fd, &name)?;
            let rights = wanted.iter().any(|(key, _)| &**key == c"security.capability");
            let inherits = inherits(host)?;
            let dirs = (host.fd.as_fd(), upper.fd.as_fd());
            file::copy(view, dirs, (&name, temporary), &stat, &owner, wanted, inherits)?;
            if !keep {
                return Ok(true);
            }
            match at::stat(&upper.fd, &name)? {
                // It is being written, or replaced.
                now if attempt < WRITTEN && file::moved_on(&now, &stat) => {}
                Some(now) if now.kind != stat.kind => return Err(Errno::STALE),
                // Whose capabilities (capabilities(7)) these are is not known.
                now if rights && file::moved_on(&now, &stat) => return Ok(false),
                now => return Ok(now.is_some()),
            }
        }
        Ok(false)
    }

    fn dress(&mut self, at: &Spot, owner: &Owner, time: bool) -> Result<(), Errno> {
        let (prefix, mirrored, keep) = (self.view.prefix, self.view.ids().mirrored, self.keep);
        let (host, upper, name) = self.both(at)?;
        let Some(stat) = at::stat(&upper.fd, &name)? else { return Ok(()) };
        // One that goes on may have taken it away when it was to be carried over.
        let moved = |e| if keep { Ok(()) } else { Err(e) };
        let Some(now) = at::stat(&host.fd, &name)? else { return moved(Errno::NOENT) };
        if now.kind != stat.kind {
            // Another has taken its place since.
            return moved(Errno::STALE);
        }
        let dir = host.fd.as_fd();
        let owner = &owner.unless_another(&stat, keep);
        attrs::chown(dir, &name, &now, owner)?;
        let wanted = Marks::read(&upper.fd, &name, prefix)?.values(&upper.fd, &name)?;
        attrs::xattrs(dir, &name, &plain_xattrs(dir, &name)?, &wanted, mirrored)?;
        attrs::chmod(dir, &name, stat.kind, attrs::mode(&stat, owner))?;
        if time {
            rustix::fs::utimensat(dir, &name, &attrs::times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn unlink(&mut self, at: &Spot, ino: u64) -> Result<(), Errno> {
        let (dir, name) = match self.host(at) {
            // What it lay in went with it.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?,
        };
        match at::stat(dir, &name)? {
            Some(stat) if stat.ino == ino && !stat.is_dir() => remove_file(dir, &name),
            _ => Ok(()),
        }
    }

    fn sweep(&mut self, at: &Spot, number: usize) -> Result<(), Errno> {
        let aside = self.temporary(number);
        match self.host(at) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(e) => Err(e),
            Ok((dir, _)) => tree::remove(dir, &aside),
        }
    }

    fn unslot(&mut self, mount: usize) -> Result<(), Errno> {
        match rustix::fs::unlinkat(self.host_root(mount), self.slots(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn clean(&mut self, at: &Spot) -> Result<(), Errno> {
        let (rel, name) = at::split(&at.rel);
        let prefix = self.view.prefix;
        let root = self.view.upper(at.mount);
        let dir = match held(&mut self.upper, root, at.mount, rel) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other?.fd.as_fd(),
        };
        match at::stat(dir, &name)? {
            None => Ok(()),
            Some(stat) if !stat.is_dir() => {
                if stat.nlink > 1 && !stat.is_whiteout() {
                    // Its other name is no copy of what shows below again: the kernel refuses two files of one origin (ESTALE).
                    at::remove_xattr(dir, &name, &prefix.key("origin"))?;
                }
                remove_file(dir, &name)
            }
            Some(_) => match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
                // What was not carried over stays, in a directory that has its own path on the host now.
                Err(Errno::NOTEMPTY) => at::remove_xattr(dir, &name, &prefix.key("redirect")),
                // An empty directory in one of another id of the environment's: as the host's now, it is no change.
                Err(Errno::PERM | Errno::ACCESS) => Ok(()),
                other => other,
            },
        }
    }
}

/// The directory `rel` below `root`, opened once for steps that follow each other.
fn held<'d>(slot: &'d mut Option<Dir>, root: BorrowedFd<'_>, mount: usize, rel: &[u8]) -> Result<&'d mut Dir, Errno> {
    if slot.as_ref().is_some_and(|dir| dir.mount != mount || dir.rel != rel) {
        *slot = None;
    }
    match slot {
        Some(dir) => Ok(dir),
        None => {
            let fd = at::open_below(root, rel, OFlags::PATH)?;
            Ok(slot.insert(Dir { mount, rel: rel.to_vec(), fd, inherits: None }))
        }
    }
}

fn inherits(dir: &mut Dir) -> Result<bool, Errno> {
    match dir.inherits {
        Some(known) => Ok(known),
        None => {
            let found = attrs::has_default(dir.fd.as_fd())?;
            dir.inherits = Some(found);
            Ok(found)
        }
    }
}

fn remove_file(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Takes back what an interrupted commit left beside its places.
pub(crate) fn undo(view: &View<'_>, journal: &Journal) -> Result<()> {
    let made = Made::new();
    let mut hands = Hands::new(view, journal, &made);
    for (number, step) in journal.steps.iter().enumerate() {
        let temporary = hands.temporary(number);
        let done = match step {
            Step::Put { at, .. } => match hands.host(at) {
                Ok((dir, _)) => remove_file(dir, &temporary),
                Err(_) => Ok(()),
            },
            Step::Trash { at, .. } => match hands.host(at) {
                Ok((dir, name)) => match at::stat(dir, &name) {
                    // Nothing came in its place: it comes back.
                    Ok(None) => match rustix::fs::renameat_with(dir, &temporary, dir, &name, RenameFlags::NOREPLACE) {
                        Err(Errno::NOENT) => Ok(()),
                        other => other,
                    },
                    _ => tree::remove(dir, &temporary),
                },
                Err(_) => Ok(()),
            },
            _ => Ok(()),
        };
        done.at(|| step.spot().map_or_else(String::new, |at| crate::text::path(&view.path(at.mount, &at.rel))))?;
    }
    // The other way round, so that each finds the directory that it was in.
    for step in journal.steps.iter().rev() {
        if let Step::Away { from, slot, .. } = step {
            let spot = crate::text::path(&view.path(from.mount, &from.rel));
            hands.back(*slot, from).at(|| format!("{spot}: moving it back"))?;
        }
    }
    for step in &journal.steps {
        if let Step::Unslot { mount } = step {
            hands.unslot(*mount).at(|| "removing the commit's own directory".into())?;
        }
    }
    Ok(())
}
