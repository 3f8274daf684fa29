//! What each kind of net server asks of a launch, and what a running one can become.

use hurdle_netstack::table::rules;
use hurdle_proto::plan::{MountStep, Plan};
use hurdle_proto::spec::{Spec, SpecError};
use hurdle_sys::ns::Namespaces;
use hurdle_sys::seccomp::{Action, ArgMatch, Rule};

/// The kinds there are.
pub const KINDS: &[&str] = &["share", "none", "local"];

/// The kinds of network there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The parent's.
    Share,
    /// An empty one of its own.
    None,
    /// As `None`, with stream sockets carried by AF_UNIX.
    Local,
}

/// Reads a spec: `share`, `none` or `local`.
///
/// # Errors
/// It is none of these, or has an argument or options.
pub fn kind(spec: &Spec) -> Result<Kind, SpecError> {
    let layer = spec.single()?;
    let kind = match layer.kind.as_str() {
        "share" => Kind::Share,
        "none" => Kind::None,
        "local" => Kind::Local,
        _ => return Err(spec.unknown("net", KINDS)),
    };
    layer.check(false, &[])?;
    Ok(kind)
}

/// Adds what `spec` needs to `plan`. `swappable`: also what another kind would need later.
///
/// # Errors
/// See [`kind`].
pub fn plan(spec: &Spec, swappable: bool, plan: &mut Plan) -> Result<(), SpecError> {
    let kind = kind(spec)?;
    if kind != Kind::Share || swappable {
        plan.namespaces = plan.namespaces.with(Namespaces::NET);
        plan.loopback = true;
        // The parent's shows the parent's interfaces.
        plan.mounts.push(MountStep::Renew { kind: "sysfs", target: "/sys".into() });
    }
    if swappable {
        // Under `share` every socket of these families is the parent's, so all of them are asked for.
        plan.traps = vec![Rule::new(libc::SYS_socket, [ArgMatch::In(0, crate::table::INET.to_vec())], Action::Notify)];
    }
    if kind == Kind::Local || swappable {
        plan.traps.extend(rules(&crate::table::rows()));
    }
    Ok(())
}

/// Whether a network whose calls are trapped can become `to` while programs run.
///
/// # Errors
/// See [`kind`].
pub fn may_swap(to: &Spec) -> Result<(), SpecError> {
    kind(to).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(spec: &str, swappable: bool) -> (bool, bool) {
        let mut sum = Plan::new().unwrap();
        plan(&spec.parse().unwrap(), swappable, &mut sum).unwrap();
        (sum.namespaces.has(Namespaces::NET), !sum.traps.is_empty())
    }

    #[test]
    fn a_kind_costs_only_what_it_replaces() {
        assert_eq!(planned("share", false), (false, false));
        assert_eq!(planned("none", false), (true, false));
        assert_eq!(planned("local", false), (true, true));
        assert_eq!(planned("share", true), (true, true));
    }

    #[test]
    fn what_is_no_kind_is_refused_with_a_reason() {
        for (spec, why) in [("lan", "share, none, local"), ("local:x", "no argument"), ("none,mtu=9", "no options")] {
            let error = kind(&spec.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
