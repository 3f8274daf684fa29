//! One module a command, or a few that belong together.

pub(crate) mod commit;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod enter;
pub(crate) mod exit;
pub(crate) mod inside;
pub(crate) mod layers;
pub(crate) mod look;
pub(crate) mod rpc;
pub(crate) mod run;
pub(crate) mod trace;
