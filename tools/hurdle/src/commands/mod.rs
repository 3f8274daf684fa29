//! One module a command, or a few that belong together.

pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod enter;
pub(crate) mod look;
pub(crate) mod rpc;
pub(crate) mod run;
