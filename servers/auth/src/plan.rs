//! What each kind of auth server asks of a launch: the id map.

use std::io;

use hurdle_proto::plan::{IdMap, MapWriter, Plan};
use hurdle_proto::spec::{Spec, SpecError};
use hurdle_sys::ns::{Extent, Ids, map_helper, own_ids};
use hurdle_sys::process::effective_ids;

/// The kinds there are.
pub const KINDS: &[&str] = &["same", "root"];

/// Adds what `spec` needs to `plan`: who inside is who outside. `layered`: files of other ids can be copied up, so these need
/// numbers inside, where that is possible.
pub fn plan(spec: &Spec, layered: bool, plan: &mut Plan) -> Result<(), SpecError> {
    let layer = spec.single()?;
    match layer.kind.as_str() {
        "same" => {
            layer.check(false, &[])?;
            if layered && effective_ids().0 != 0 {
                match range(around) {
                    Ok(map) => plan.ids = map,
                    Err(why) => plan.notes.push(format!("files of others seem to be yours inside: {why}")),
                }
            }
            Ok(())
        }
        "root" => {
            layer.check(false, &["ids"])?;
            let ids = layer.option("ids").unwrap_or("auto");
            if !["auto", "range", "one"].contains(&ids) {
                return Err(spec.error("`ids` is auto, range or one"));
            }
            if effective_ids().0 == 0 && ids != "one" {
                // Root outside already: every id he has is mapped.
                plan.setuid = true;
                return Ok(());
            }
            let range = match ids {
                "one" => None,
                _ => match range(from_root) {
                    Ok(map) => Some(map),
                    Err(why) if ids == "range" => return Err(spec.error(why)),
                    Err(why) => {
                        plan.notes
                            .push(format!("root inside is the only id: {why}; chown and su to others fail (EINVAL)"));
                        None
                    }
                },
            };
            plan.setuid = range.is_some();
            plan.ids = range.unwrap_or_else(one);
            Ok(())
        }
        _ => Err(spec.unknown("auth", KINDS)),
    }
}

/// Root inside is the caller; nobody else exists.
fn one() -> IdMap {
    let (uid, gid) = effective_ids();
    let root = |outside| vec![Extent { inside: 0, outside, count: 1 }];
    IdMap { users: root(uid), groups: root(gid), writer: MapWriter::Itself }
}

/// A map with the ids that /etc/subuid and /etc/subgid grant the caller (subuid(5)).
fn range(extents: fn(u32, (u32, u32)) -> Vec<Extent>) -> Result<IdMap, String> {
    let (uid, gid) = effective_ids();
    let name = user_name(uid);
    for (which, helper) in [(Ids::Users, "newuidmap"), (Ids::Groups, "newgidmap")] {
        if map_helper(which).is_none() {
            return Err(format!("{helper} is not installed (package uidmap)"));
        }
    }
    let all = |which, file: &str, own| -> Result<Vec<Extent>, String> {
        let granted = granted(file, uid, name.as_deref()).map_err(|e| format!("{file}: {e}"))?;
        let (first, count) = granted.ok_or_else(|| format!("{file} grants no ids to uid {uid}"))?;
        let here = own_ids(which).map_err(|e| e.to_string())?;
        let covers = |e: &Extent| {
            first >= e.inside && u64::from(first) + u64::from(count) <= u64::from(e.inside) + u64::from(e.count)
        };
        if !here.iter().any(covers) {
            return Err(format!("the ids that {file} grants are not there in the environment around this one"));
        }
        Ok(extents(own, (first, count)))
    };
    let (users, groups) = (all(Ids::Users, "/etc/subuid", uid)?, all(Ids::Groups, "/etc/subgid", gid)?);
    Ok(IdMap { users, groups, writer: MapWriter::Helper })
}

/// Root inside is the caller, and the ids from 1 on are those granted.
fn from_root(own: u32, (start, count): (u32, u32)) -> Vec<Extent> {
    vec![Extent { inside: 0, outside: own, count: 1 }, Extent { inside: 1, outside: start, count }]
}

/// The caller is himself, and the ids below and above his are those granted.
fn around(own: u32, (start, count): (u32, u32)) -> Vec<Extent> {
    let low = own.min(count);
    let extents = [(0, start, low), (own, own, 1), (own.saturating_add(1), start.saturating_add(low), count - low)];
    let extents = extents.into_iter().filter(|(_, _, count)| *count > 0);
    extents.map(|(inside, outside, count)| Extent { inside, outside, count }).collect()
}

/// The largest range that `file` grants to the user, as (first id, count).
fn granted(file: &str, uid: u32, name: Option<&str>) -> io::Result<Option<(u32, u32)>> {
    let uid = uid.to_string();
    let text = std::fs::read_to_string(file)?;
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (who == uid || Some(who) == name).then_some(range)
    });
    Ok(lines.max_by_key(|(_, count)| *count))
}

/// The user's name in /etc/passwd, which subuid(5) files may use.
fn user_name(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    let uid = uid.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_string())
    })
}
