//! What an environment wrote: its layers on disk, the diff against the host, the commit to it.
//!
//! A *layer* is a directory with a `layer.json` and, for each file system that was overlaid, an upper directory as the
//! kernel's overlay keeps it. Nothing here mounts anything or knows of environments: it reads what the kernel left.
//! - [`Layer`], [`Meta`], [`Ids`]: the directory, its locks, and whose ids are whose;
//! - [`snapshot()`]: a copy of one that is being written; [`load`], [`replace`]: of one that is kept on disk and used in memory;
//! - [`list`], [`locate`], [`layers_dir`]: where named layers live;
//! - [`View`], [`walk`], [`Change`]: what an environment changed;
//! - [`join_renames`], [`patch`], [`tarball`], [`Stat`]: the same for people and for other programs;
//! - [`commit`]: carrying it to the host;
//! - [`text`]: names are bytes, and printed so that they can be read back.
//!
//! Principles: names are bytes and never printed raw; nothing is followed out of a tree; an entry that can't be read is an
//! error and never "no change".

mod at;
mod change;
pub mod commit;
mod compare;
mod contents;
mod copy;
mod error;
mod ids;
mod layer;
mod lock;
mod lower;
mod marks;
mod meta;
mod owners;
mod patch;
mod renames;
mod repos;
mod snapshot;
mod stat;
mod store;
mod tarball;
pub mod text;
mod tree;
mod view;
mod walk;

pub use change::{Aspect, Attr, Change, Kind, Type};
pub use error::{Error, Result};
pub use ids::{Extent, Ids, Which};
pub use layer::{Layer, Size};
pub use lock::Lock;
pub use meta::{Meta, Mount, VERSION};
pub use owners::{Ask, Owners};
pub use patch::patch;
pub use renames::join_renames;
pub use repos::Repositories;
pub use snapshot::{Snapshot, load, replace, snapshot};
pub use stat::{Stat, summary};
pub use store::{Listed, layers_dir, list, locate, path_of, sweep};
pub use tarball::tarball;
pub use view::View;
pub use walk::{Options, walk};
