//! What each kind of proc server asks of a launch.

use hurdle_proto::plan::{MountStep, Plan};
use hurdle_proto::spec::{Spec, SpecError};

/// The kinds there are.
pub const KINDS: &[&str] = &["own"];

/// Adds what `spec` needs to `plan`: a /proc that shows the environment's own processes.
pub fn plan(spec: &Spec, plan: &mut Plan) -> Result<(), SpecError> {
    let layer = spec.single()?;
    if layer.kind != "own" {
        return Err(spec.unknown("proc", KINDS));
    }
    layer.check(false, &["hostname"])?;
    if let Some(name) = layer.option("hostname") {
        if name.is_empty() || name.len() > 64 {
            return Err(spec.error("a host name has 1 to 64 bytes"));
        }
        plan.host_name = Some(name.to_string());
    }
    plan.mounts.push(MountStep::Instance { kind: "proc", target: "/proc".into(), options: String::new() });
    Ok(())
}
