//! What each kind of net server asks of a launch, and what a running one can become.

use std::time::Duration;

use hurdle_netstack::table::rules;
use hurdle_proto::plan::{MountStep, Plan};
use hurdle_proto::spec::{Layer, Spec, SpecError};
use hurdle_sys::ns::Namespaces;
use hurdle_sys::seccomp::{Action, ArgMatch, Rule};

/// The kinds there are.
pub const KINDS: &[&str] = &["share", "none", "local", "delay,ms=N+…"];

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

/// The kind of network that an environment has, and those that it had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    /// What new sockets belong to.
    pub now: Kind,
    ever: u8,
}

impl From<Kind> for Kinds {
    fn from(now: Kind) -> Kinds {
        Kinds { now, ever: 1 << now as u8 }
    }
}

impl Kinds {
    /// `now` after those that [`Kinds::bits`] has told.
    #[must_use]
    pub fn after(self, bits: u8) -> Kinds {
        Kinds { ever: self.ever | bits, ..self }
    }

    /// All of them, for a successor.
    pub fn bits(self) -> u8 {
        self.ever
    }

    /// Whether this is or was one of them.
    pub fn had(self, kind: Kind) -> bool {
        self.ever & (1 << kind as u8) != 0
    }

    /// Whether there has never been another.
    pub fn is_one(self) -> bool {
        self.ever.is_power_of_two()
    }

    /// Those before the present one.
    pub fn former(self) -> impl Iterator<Item = Kind> {
        [Kind::Local, Kind::None, Kind::Share].into_iter().filter(move |kind| *kind != self.now && self.had(*kind))
    }
}

/// One server of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A network.
    Network(Kind),
    /// Each connection takes longer, and is the server's below.
    Delay(Duration),
    /// A program of the user's.
    Program,
}

/// The outermost server of a spec, which is right as a whole.
///
/// # Errors
/// A kind is unknown, has an argument or options that it has no use for, or stands where it can't.
pub(crate) fn part(spec: &Spec) -> Result<Part, SpecError> {
    let (layer, below) = spec.split();
    let part = match layer.kind.as_str() {
        _ if layer.is_program() => Part::Program,
        "share" => Part::Network(Kind::Share),
        "none" => Part::Network(Kind::None),
        "local" => Part::Network(Kind::Local),
        "delay" => Part::Delay(delay(spec, layer)?),
        _ => return Err(spec.unknown("net", KINDS)),
    };
    match (part, below) {
        (Part::Network(_), None) => layer.check(false, &[])?,
        (Part::Network(_), Some(_)) => {
            return Err(spec.error(format!("`{}` stands on nothing, so no `+` can follow it", layer.kind)));
        }
        (Part::Delay(_), None) => {
            return Err(spec.error("`delay` stands on another server: `delay,ms=50+local`"));
        }
        (Part::Program, None) => {}
        (_, Some(below)) => _ = self::part(&below).map_err(|e| spec.error(e.why))?,
    }
    Ok(part)
}

fn delay(spec: &Spec, layer: &Layer) -> Result<Duration, SpecError> {
    layer.check(false, &["ms"])?;
    let asked = layer.option("ms").ok_or_else(|| spec.error("`delay` needs `ms=`: by how many milliseconds"))?;
    let ms: u32 = asked.parse().map_err(|_| spec.error(format!("ms={asked}: not a number of milliseconds")))?;
    Ok(Duration::from_millis(ms.into()))
}

/// Adds what `spec` needs to `plan`. `swappable`: also what another kind would need later.
///
/// # Errors
/// A kind is unknown, has an argument or options that it has no use for, or stands where it can't.
pub fn plan(spec: &Spec, swappable: bool, plan: &mut Plan) -> Result<(), SpecError> {
    let part = part(spec)?;
    // Who stands between, or is not known, is asked about every call.
    let all = swappable || !matches!(part, Part::Network(_));
    if part != Part::Network(Kind::Share) || all {
        plan.namespaces = plan.namespaces.with(Namespaces::NET);
        plan.loopback = true;
        // The parent's shows the parent's interfaces.
        plan.mounts.push(MountStep::Renew { kind: "sysfs", target: "/sys".into() });
    }
    if all {
        // Under `share` every socket of these families is the parent's, so all of them are asked for.
        plan.traps = vec![Rule::new(libc::SYS_socket, [ArgMatch::In(0, crate::table::INET.to_vec())], Action::Notify)];
    }
    if part == Part::Network(Kind::Local) || all {
        plan.traps.extend(rules(&crate::table::rows()));
    }
    Ok(())
}

/// Whether a network whose calls are trapped can become `to` while programs run.
///
/// # Errors
/// See [`plan`].
pub fn may_swap(to: &Spec) -> Result<(), SpecError> {
    part(to).map(|_| ())
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
        for stack in ["delay,ms=5+share", "delay,ms=5+delay,ms=1+none", "./mine", "./mine+local"] {
            assert_eq!(planned(stack, false), (true, true), "{stack}");
        }
    }

    #[test]
    fn former_networks_are_told_on() {
        let one = Kinds::from(Kind::Local);
        assert!(one.is_one() && one.former().next().is_none());
        let two = Kinds::from(Kind::None).after(one.bits());
        assert_eq!((two.is_one(), two.former().collect::<Vec<_>>()), (false, vec![Kind::Local]));
        let back = Kinds::from(Kind::Local).after(two.bits());
        assert_eq!(back.former().collect::<Vec<_>>(), [Kind::None]);
        assert!(back.had(Kind::Local) && !back.had(Kind::Share));
    }

    #[test]
    fn what_is_no_kind_is_refused_with_a_reason() {
        for (spec, why) in [
            ("lan", "share, none, local"),
            ("local:x", "no argument"),
            ("none,mtu=9", "no options"),
            ("delay,ms=5", "stands on another"),
            ("delay+local", "needs `ms=`"),
            ("delay,ms=soon+local", "not a number"),
            ("local+share", "stands on nothing"),
            ("./mine+lan", "share, none, local"),
        ] {
            let error = may_swap(&spec.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(spec), "{error}");
        }
    }
}
