//! The standard auth servers: [`plan`] says what each kind asks of a launch, [`serve`] is the process that answers.

mod plan;
mod serve;

pub use plan::{KINDS, plan};
pub use serve::serve;
