//! What each kind of auth server asks of a launch: the id map.

use std::io;
use std::path::Path;

use hurdle_proto::plan::{IdMap, MapWriter, Plan};
use hurdle_proto::spec::{Spec, SpecError};
use hurdle_sys::ns::Extent;
use hurdle_sys::process::effective_ids;

/// The kinds there are.
pub const KINDS: &[&str] = &["same", "root"];

/// Adds what `spec` needs to `plan`: who inside is who outside.
pub fn plan(spec: &Spec, plan: &mut Plan) -> Result<(), SpecError> {
    let layer = spec.single()?;
    match layer.kind.as_str() {
        "same" => layer.check(false, &[]),
        "root" => {
            layer.check(false, &["ids"])?;
            let ids = layer.options.get("ids").map_or("auto", String::as_str);
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
                _ => match range() {
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

/// Root inside is the caller, and the ids from 1 on are those that /etc/subuid and /etc/subgid grant him (subuid(5)).
fn range() -> Result<IdMap, String> {
    let (uid, gid) = effective_ids();
    let name = user_name(uid);
    for helper in ["newuidmap", "newgidmap"] {
        if !["/usr/bin", "/bin", "/usr/local/bin"].iter().any(|dir| Path::new(dir).join(helper).exists()) {
            return Err(format!("{helper} is not installed (package uidmap)"));
        }
    }
    let extents = |file: &str, outside| -> Result<Vec<Extent>, String> {
        let granted = granted(file, uid, name.as_deref()).map_err(|e| format!("{file}: {e}"))?;
        let (start, count) = granted.ok_or_else(|| format!("{file} grants no ids to uid {uid}"))?;
        Ok(vec![Extent { inside: 0, outside, count: 1 }, Extent { inside: 1, outside: start, count }])
    };
    Ok(IdMap { users: extents("/etc/subuid", uid)?, groups: extents("/etc/subgid", gid)?, writer: MapWriter::Helper })
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
