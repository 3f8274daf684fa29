//! Which changes are carried over, in which steps, in which order.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::step::{Owner, Spot, Step, Way};
use super::{How, Plan, check};
use crate::at::{self, Stat};
use crate::change::{Aspect, Change, Kind};
use crate::error::{At as _, Result};
use crate::ids::Which;
use crate::owners::UNMAPPED;
use crate::view::View;
use check::Obstacle;

pub(crate) fn plan(
    view: &View<'_>,
    how: How,
    all: Vec<Change>,
    select: &mut dyn FnMut(&Change) -> bool,
) -> Result<Plan> {
    let mut wanted: Vec<bool> = all.iter().map(&mut *select).collect();
    // What is as on the host only needs to leave the layer.
    if how.running {
        wanted.iter_mut().zip(&all).for_each(|(wanted, change)| *wanted &= change.kind != Kind::Same);
    }
    let mut obstacles = Vec::new();
    parents(&all, &mut wanted, &mut obstacles);
    renames(&all, &wanted, &mut obstacles);
    left_behind(&all, &mut wanted);
    stacked(view, &mut obstacles)?;
    let selected: Vec<&Change> = all.iter().zip(&wanted).filter(|(_, wanted)| **wanted).map(|(c, _)| c).collect();
    if how.running {
        for change in selected.iter().filter(|c| c.kind == Kind::Renamed) {
            let why =
                "a directory that was renamed can't be renamed on the host while the environment uses it: end it first";
            obstacles.push(Obstacle { path: change.path.clone(), why: why.into() });
        }
    }
    obstacles.extend(check::obstacles(view, &selected)?);
    let conflicts = check::conflicts(view, &all, &selected)?;
    let mut notes = Vec::new();
    let steps = if obstacles.is_empty() { steps(view, how, &all, &wanted, &mut notes)? } else { Vec::new() };
    let changes = selected.into_iter().filter(|change| change.kind != Kind::Same).cloned().collect();
    Ok(Plan { steps, how, changes, conflicts, obstacles, notes })
}

/// What is carried over needs the new directories that it lies in; those that took the place of something else are the user's
/// own to name.
fn parents(all: &[Change], wanted: &mut [bool], obstacles: &mut Vec<Obstacle>) {
    let place: HashMap<&Path, usize> = all
        .iter()
        .enumerate()
        .filter(|(_, change)| change.kind != Kind::Deleted)
        .map(|(number, change)| (change.path.as_path(), number))
        .collect();
    for number in 0..all.len() {
        if !wanted[number] || all[number].kind == Kind::Same {
            continue;
        }
        for above in all[number].path.ancestors().skip(1) {
            let Some(&above) = place.get(above) else { continue };
            match all[above].kind {
                _ if wanted[above] => {}
                Kind::Added => wanted[above] = true,
                Kind::Type | Kind::Renamed => {
                    let was = if all[above].kind == Kind::Type { "takes another's place" } else { "was renamed" };
                    let why =
                        format!("it lies in {}, which {was}: name that one too", crate::text::path(&all[above].path));
                    obstacles.push(Obstacle { path: all[number].path.clone(), why });
                    break;
                }
                _ => {}
            }
        }
    }
}

/// A directory of the host can only move, or go, together with those that were moved out of it.
fn renames(all: &[Change], wanted: &[bool], obstacles: &mut Vec<Obstacle>) {
    let rest: Vec<&Change> =
        all.iter().zip(wanted).filter(|(c, wanted)| c.kind == Kind::Renamed && !**wanted).map(|(c, _)| c).collect();
    for (change, _) in all.iter().zip(wanted).filter(|(_, wanted)| **wanted) {
        let moves = matches!(change.kind, Kind::Renamed | Kind::Deleted | Kind::Type);
        let Some(from) = change.place.lower.as_deref().filter(|_| moves) else { continue };
        let inside = |other: &&&Change| {
            let lower = other.place.lower.as_deref().unwrap_or_default();
            other.place.mount == change.place.mount && at::is_below(lower, from)
        };
        if let Some(other) = rest.iter().find(inside) {
            let why = format!("{} was moved out of it: name that one too", crate::text::path(&other.path));
            obstacles.push(Obstacle { path: change.path.clone(), why });
        }
    }
}

/// The mark that a renamed directory left at its old path leaves the layer with it, and not before.
fn left_behind(all: &[Change], wanted: &mut [bool]) {
    let moved: HashSet<(usize, &[u8])> = all
        .iter()
        .zip(&*wanted)
        .filter(|(change, wanted)| change.kind == Kind::Renamed && **wanted)
        .map(|(change, _)| (change.place.mount, change.place.lower.as_deref().unwrap_or_default()))
        .collect();
    for (change, wanted) in all.iter().zip(wanted).filter(|(change, _)| change.kind == Kind::Same) {
        let whiteout = change.place.upper.is_some_and(|stat| stat.is_whiteout());
        // One that has something below is such a mark; any other hides nothing.
        if let Some(lower) = change.place.lower.as_deref().filter(|_| whiteout) {
            *wanted = moved.contains(&(change.place.mount, lower));
        }
    }
}

/// What lies on another layer can reach the host only after that one.
fn stacked(view: &View<'_>, obstacles: &mut Vec<Obstacle>) -> Result<()> {
    for base in view.layer.bases()? {
        for number in 0..base.meta().mounts.len() {
            let entries = crate::tree::names(base.open_upper(number)?);
            if !entries.at(|| base.upper(number).display().to_string())?.is_empty() {
                let why = format!("{} lies on this layer, which is to be committed before", view.layer.name());
                obstacles.push(Obstacle { path: base.path().to_owned(), why });
                break;
            }
        }
    }
    Ok(())
}

/// The names of one file of the layer.
#[derive(Default)]
struct Names {
    /// How many of them are carried over.
    count: u32,
    /// The one that the others become links to: it is on the host when they come.
    first: Option<Spot>,
    /// The host's file that has this name already, and stays.
    stays: Option<u64>,
}

struct Steps<'p, 'v> {
    view: &'p View<'v>,
    how: How,
    /// Each part of the order.
    unhide: Vec<Step>,
    away: Vec<Step>,
    main: Vec<Step>,
    links: Vec<Step>,
    dress: Vec<Step>,
    delete: Vec<Step>,
    sweep: Vec<Spot>,
    clean: Vec<Step>,
    notes: Vec<String>,
    /// Of files with several names in the layer: what is known of them.
    names: HashMap<((u32, u32), u64), Names>,
    /// Whether files can move from the layer to the directory of the host: by directory.
    movable: HashMap<(usize, Vec<u8>), bool>,
}

fn steps(view: &View<'_>, how: How, all: &[Change], wanted: &[bool], notes: &mut Vec<String>) -> Result<Vec<Step>> {
    let mut steps = Steps {
        view,
        how,
        unhide: Vec::new(),
        away: Vec::new(),
        main: Vec::new(),
        links: Vec::new(),
        dress: Vec::new(),
        delete: Vec::new(),
        sweep: Vec::new(),
        clean: Vec::new(),
        notes: Vec::new(),
        names: HashMap::new(),
        movable: HashMap::new(),
    };
    for (change, wanted) in all.iter().zip(wanted) {
        let Some(stat) = change.place.upper.filter(|stat| stat.nlink > 1 && !stat.is_dir() && !stat.is_whiteout())
        else {
            continue;
        };
        let names = steps.names.entry((stat.dev, stat.ino)).or_default();
        if *wanted && needs_put(change) {
            names.count += 1;
        } else if names.stays.is_none()
            && change.place.on_host
            && (change.kind == Kind::Same || (*wanted && change.kind == Kind::Modified))
        {
            names.stays = change.place.below.map(|below| below.ino);
            names.first = Some(spot(change));
        }
    }
    if !how.running {
        steps.unhide(all, wanted);
        let explained = check::explained(all);
        for (change, _) in all.iter().zip(wanted).filter(|(change, wanted)| !**wanted && explained(change)) {
            steps.unhide.push(Step::Forget { at: spot(change) });
        }
    }
    let mut slots = 0;
    for (number, change) in all.iter().enumerate().filter(|(number, _)| wanted[*number]) {
        let replaced = change.kind == Kind::Deleted && all.get(number + 1).is_some_and(|next| next.path == change.path);
        steps.one(change, replaced, &mut slots)?;
    }
    notes.append(&mut steps.notes);
    Ok(steps.in_order())
}

/// Whether a whole file is put on the host, and not only some of its attributes.
fn needs_put(change: &Change) -> bool {
    let dir = change.place.upper.is_none_or(|stat| stat.is_dir());
    let whole = match change.kind {
        Kind::Added | Kind::Type => true,
        Kind::Modified => {
            // One that has other names on the host stays there under those as it is.
            let only_name = change.place.below.is_some_and(|below| below.nlink == 1);
            !change.place.metacopy && (change.what.contains(&Aspect::Content) || !only_name)
        }
        _ => false,
    };
    whole && !dir
}

impl Steps<'_, '_> {
    /// Directories that stay in the layer though a part of what they hold leaves it.
    fn unhide(&mut self, all: &[Change], wanted: &[bool]) {
        for (number, dir) in all.iter().enumerate() {
            if !dir.place.hidden || dir.kind == Kind::Deleted {
                continue;
            }
            let below = (number + 1..all.len()).take_while(|n| all[*n].path.starts_with(&dir.path));
            let (mut leaves, mut stays) = (wanted[number] && dir.kind != Kind::Same, !wanted[number]);
            for inner in below {
                leaves |= wanted[inner] && all[inner].kind != Kind::Same;
                stays |= !wanted[inner] && all[inner].place.upper.is_some();
                // An entry that hides something without a mark of its own.
                stays |= !wanted[inner] && all[inner].kind == Kind::Deleted;
            }
            if leaves && stays {
                let below = dir.place.lower.clone().map(|rel| Spot { mount: dir.place.mount, rel });
                self.unhide.push(Step::Unhide { at: spot(dir), below });
            }
        }
    }

    fn one(&mut self, change: &Change, replaced: bool, slots: &mut usize) -> Result<()> {
        let at = spot(change);
        let below = change.place.below;
        let ino = below.map_or(0, |below| below.ino);
        let is_dir = change.place.upper.is_some_and(|stat| stat.is_dir());
        match change.kind {
            Kind::Same if self.is_apart(change) => self.put(change)?,
            Kind::Same => {}
            Kind::Deleted if replaced => self.trash(&at, ino),
            Kind::Deleted if below.is_some_and(|below| below.is_dir()) => {
                self.delete.push(Step::Trash { at: at.clone(), ino });
                self.sweep.push(at.clone());
            }
            Kind::Deleted => self.delete.push(Step::Unlink { at: at.clone(), ino }),
            Kind::Renamed => {
                let from = Spot { mount: at.mount, rel: change.place.lower.clone().unwrap_or_default() };
                self.away.push(Step::Away { from, ino, slot: *slots });
                self.main.push(Step::Back { slot: *slots, at: at.clone() });
                *slots += 1;
                if !change.what.is_empty() {
                    self.dress(change, false)?;
                }
            }
            Kind::Type if is_dir || below.is_some_and(|below| below.is_dir()) => {
                self.trash(&at, ino);
                if is_dir { self.new_dir(change)? } else { self.put(change)? }
            }
            Kind::Added if is_dir => self.new_dir(change)?,
            Kind::Modified if is_dir => {
                if change.what.contains(&Aspect::Mode) && !rustix::process::geteuid().is_root() {
                    self.main.push(Step::Open { at: at.clone() });
                }
                self.dress(change, false)?;
            }
            _ if needs_put(change) => self.put(change)?,
            _ => self.dress(change, true)?,
        }
        if !at.rel.is_empty() && !self.how.running {
            self.clean.push(Step::Clean { at });
        }
        Ok(())
    }

    /// Whether a file is as on the host, and yet another name of one that is another file there.
    fn is_apart(&self, change: &Change) -> bool {
        let names = change.place.upper.and_then(|stat| self.names.get(&(stat.dev, stat.ino)));
        let host = change.place.below.map(|below| below.ino);
        names.is_some_and(|names| names.stays.is_some() && names.stays != host)
    }

    fn trash(&mut self, at: &Spot, ino: u64) {
        self.main.push(Step::Trash { at: at.clone(), ino });
        self.sweep.push(at.clone());
    }

    fn new_dir(&mut self, change: &Change) -> Result<()> {
        self.main.push(Step::Dir { at: spot(change) });
        self.dress(change, true)
    }

    fn dress(&mut self, change: &Change, time: bool) -> Result<()> {
        let owner = self.owner(change);
        self.dress.push(Step::Dress { at: spot(change), owner, time });
        Ok(())
    }

    fn put(&mut self, change: &Change) -> Result<()> {
        let at = spot(change);
        let Some(stat) = change.place.upper else { return Ok(()) };
        let owner = self.owner(change);
        let mut movable = self.movable(change)?;
        let mut way = None;
        if stat.nlink > 1
            && let Some(names) = self.names.get_mut(&(stat.dev, stat.ino))
        {
            // One that stays in the layer under another name must not be the host's file too.
            movable &= names.count == stat.nlink;
            match &names.first {
                Some(first) if !movable => way = Some(Way::Link(first.clone())),
                Some(_) => {}
                None => names.first = Some(at.clone()),
            }
        }
        let way = way.unwrap_or(if movable { Way::Take } else { Way::Copy });
        let list = if matches!(way, Way::Link(_)) { &mut self.links } else { &mut self.main };
        list.push(Step::Put { at, way, owner, marked: change.place.marked });
        Ok(())
    }

    /// Whether rename(2) can move a file from the layer to its place: both on one mount. A directory that is not there yet will
    /// be where the nearest one is that is.
    fn movable(&mut self, change: &Change) -> Result<bool> {
        // The names of attributes can't change in one step, least of all under several names of a file.
        if self.how.running || change.place.metacopy || change.place.escaped {
            return Ok(false);
        }
        let (view, mount) = (self.view, change.place.mount);
        let mut dir = at::split(&change.place.rel).0;
        if let Some(known) = self.movable.get(&(mount, dir.to_vec())) {
            return Ok(*known);
        }
        let key = (mount, dir.to_vec());
        let host = view.mounts[mount].lower.host();
        let found = loop {
            match at::open_below(host, dir, rustix::fs::OFlags::PATH) {
                Ok(fd) => break at::mount_of(fd),
                Err(_) if !dir.is_empty() => dir = at::split(dir).0,
                Err(e) => return Err(e).at(|| crate::text::path(&view.path(mount, dir))),
            }
        };
        let movable = found.is_some() && found == at::mount_of(view.upper(mount));
        self.movable.insert(key, movable);
        Ok(movable)
    }

    /// Whose it is to be on the host: still the same's, if the environment left it to the same; else whom the environment means.
    fn owner(&mut self, change: &Change) -> Owner {
        let view = self.view;
        let below = change.place.below.filter(|_| change.place.on_host && change.kind != Kind::Added);
        let (is, was) = (change.is, change.was);
        let one = |which, is: Option<u32>, was: Option<u32>, below: Option<u32>| {
            if let Some(below) = below.filter(|_| is == was || change.place.unsure)
                && (view.owners.is_outside() || below != UNMAPPED)
            {
                return Some(below);
            }
            let meant = view.ids().meant(which, is?)?;
            view.owners.to_kernel(which, meant)
        };
        let uid = one(Which::Users, is.and_then(|a| a.uid), was.and_then(|a| a.uid), below.map(|b: Stat| b.uid));
        let gid = one(Which::Groups, is.and_then(|a| a.gid), was.and_then(|a| a.gid), below.map(|b: Stat| b.gid));
        let (me, my_group) = (rustix::process::geteuid(), rustix::process::getegid());
        // Outside, only root gives files away; a group is one of the caller's own.
        let may = me.is_root() || !view.owners.is_outside();
        let mine = |uid: u32| uid == me.as_raw();
        let groups = || rustix::process::getgroups().unwrap_or_default();
        let in_group = |gid: u32| gid == my_group.as_raw() || groups().iter().any(|group| group.as_raw() == gid);
        let uid = uid.filter(|uid| may || mine(*uid));
        let gid = gid.filter(|gid| may || in_group(*gid));
        if uid.is_none() || gid.is_none() {
            let id = |id: Option<u32>| id.map_or("?".into(), |id| id.to_string());
            self.notes.push(format!(
                "{}: owner {}:{} is not yours to give: it becomes yours",
                crate::text::path(&change.path),
                id(is.and_then(|attr| attr.uid)),
                id(is.and_then(|attr| attr.gid))
            ));
        }
        Owner {
            uid: uid.unwrap_or(me.as_raw()),
            gid: gid.unwrap_or(my_group.as_raw()),
            instead: uid.is_none() || gid.is_none(),
        }
    }

    fn in_order(self) -> Vec<Step> {
        let Steps { unhide, mut away, main, links, mut dress, mut delete, sweep, mut clean, .. } = self;
        if main.is_empty() && dress.is_empty() && delete.is_empty() && clean.is_empty() {
            return Vec::new();
        }
        let mut steps = unhide;
        let takes = main.iter().any(|step| matches!(step, Step::Put { way: Way::Take, .. }));
        if takes {
            // What leaves the layer must not be younger than the rename that takes it away.
            steps.push(Step::Sync);
        }
        // The deepest first, as long as all paths are those of old.
        away.reverse();
        away.sort_by_key(|step| std::cmp::Reverse(step.spot().map_or(0, |at| at.rel.split(|b| *b == b'/').count())));
        let mut mounts: Vec<usize> = away.iter().filter_map(|step| step.spot().map(|at| at.mount)).collect();
        mounts.sort_unstable();
        mounts.dedup();
        steps.append(&mut away);
        steps.extend(main);
        steps.extend(links);
        delete.reverse();
        steps.append(&mut delete);
        // What was moved aside, by the number of the step that did.
        let mut trashed = HashMap::new();
        for (number, step) in steps.iter().enumerate() {
            if let Step::Trash { at, .. } = step {
                trashed.insert((at.mount, at.rel.clone()), number);
            }
        }
        let number = |at: Spot| Some(Step::Sweep { number: trashed.remove(&(at.mount, at.rel.clone()))?, at });
        steps.extend(sweep.into_iter().filter_map(number));
        // The deepest first, since a directory may close itself.
        dress.reverse();
        steps.append(&mut dress);
        steps.extend(mounts.into_iter().map(|mount| Step::Unslot { mount }));
        steps.push(Step::Sync);
        clean.reverse();
        steps.append(&mut clean);
        steps
    }
}

fn spot(change: &Change) -> Spot {
    Spot { mount: change.place.mount, rel: change.place.rel.clone() }
}
