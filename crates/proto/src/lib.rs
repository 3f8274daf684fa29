//! What hurdle's core and its standard servers say to each other: one file per interface, and the two plain types that a
//! launch is made of.
//!
//! - [`spec`]: how a user names a server (`kind:argument`, `a+b`, a path);
//! - [`plan`]: what a chosen server asks of an environment before its first program starts;
//! - interfaces, each declared once and numbered for ever: [`core`], [`server`], [`init`], [`net`], [`auth`], [`process`],
//!   [`fs`]. Numbers from 1000 on are for users' own.

pub mod auth;
pub mod core;
pub mod fs;
pub mod init;
pub mod net;
pub mod plan;
pub mod process;
pub mod server;
pub mod spec;
