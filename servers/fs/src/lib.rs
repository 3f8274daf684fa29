//! The standard fs servers: [`plan`] says what each kind asks of a launch, [`serve`] is the process that answers.

pub mod mirror;
mod mounts;
mod plan;
mod points;
mod serve;

pub use mounts::{overlaid, plain_above};
pub use plan::{KINDS, is_layered, plan, resolve};
pub use points::MountPoints;
pub use serve::serve;
