//! One change that an environment made.

use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use serde::{Serialize, Serializer};

use crate::at::Stat;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is gone; a directory with all below it.
    Deleted,
    /// It was elsewhere before: [`Change::from`]. Changes below a renamed directory follow as changes of their own.
    Renamed,
    /// It was not there.
    Added,
    /// It is of another type than before.
    Type,
    /// [`Change::what`] of it is another.
    Modified,
    /// It lies in the layer, and is as on the host.
    Same,
}

impl Kind {
    /// The letter that stands for it in a listing.
    pub fn letter(self) -> char {
        match self {
            Kind::Deleted => 'D',
            Kind::Renamed => 'R',
            Kind::Added => 'A',
            Kind::Type => 'T',
            Kind::Modified => 'M',
            Kind::Same => '=',
        }
    }
}

/// What of a file changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// Its contents; of a symbolic link what it says, of a device which one.
    Content,
    /// Its length.
    Size,
    /// Its permissions.
    Mode,
    /// Its owner or its group.
    Owner,
    /// Its extended attributes, access lists among them.
    Xattrs,
    /// When it was changed, and nothing else ([`Options::times`](crate::Options::times)).
    Time,
}

impl Aspect {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Aspect::Content => "content",
            Aspect::Size => "size",
            Aspect::Mode => "mode",
            Aspect::Owner => "owner",
            Aspect::Xattrs => "xattrs",
            Aspect::Time => "time",
        }
    }
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    Character,
    /// A block device.
    Block,
}

impl Type {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Type::File => "file",
            Type::Directory => "directory",
            Type::Symlink => "symlink",
            Type::Fifo => "fifo",
            Type::Socket => "socket",
            Type::Character => "character device",
            Type::Block => "block device",
        }
    }
}

impl From<FileType> for Type {
    fn from(kind: FileType) -> Type {
        match kind {
            FileType::Directory => Type::Directory,
            FileType::Symlink => Type::Symlink,
            FileType::Fifo => Type::Fifo,
            FileType::Socket => Type::Socket,
            FileType::CharacterDevice => Type::Character,
            FileType::BlockDevice => Type::Block,
            _ => Type::File,
        }
    }
}

/// A file's attributes, as the environment sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Attr {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Type,
    /// Its permissions: twelve bits; in JSON octal digits.
    #[serde(serialize_with = "octal")]
    pub mode: u32,
    /// Its owner, by the environment's number; `None`: nobody that the environment has a number for.
    pub uid: Option<u32>,
    /// Its group, likewise.
    pub gid: Option<u32>,
    /// Its length in bytes.
    pub size: u64,
    /// When it was changed, in nanoseconds since 1970.
    pub mtime: i128,
}

fn octal<S: Serializer>(mode: &u32, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format!("{mode:04o}"))
}

/// One change.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// Where, from the environment's `/`.
    #[serde(serialize_with = "crate::text::serialize")]
    pub path: PathBuf,
    /// What happened.
    pub kind: Kind,
    /// What of it changed, where it was there before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub what: Vec<Aspect>,
    /// Where it was before, if it was renamed.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "from")]
    pub from: Option<PathBuf>,
    /// What it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub was: Option<Attr>,
    /// What it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is: Option<Attr>,
    #[serde(skip)]
    pub(crate) place: Place,
}

fn from<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    crate::text::serialize(path.as_deref().unwrap_or(Path::new("")), to)
}

/// Where a change lies in the layer and below it, for this crate's own use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    /// Which mount of the layer.
    pub(crate) mount: usize,
    /// The path below the mount, as the environment has it.
    pub(crate) rel: Vec<u8>,
    /// The path in the trees below of what was there, or of what it was renamed from.
    pub(crate) lower: Option<Vec<u8>>,
    /// The path there of the renamed directory that it lies in, or is.
    pub(crate) via: Option<Vec<u8>>,
    /// What lies in the upper directory; a whiteout too. `None`: nothing does, its directory hides what is below.
    pub(crate) upper: Option<Stat>,
    /// What lies below.
    pub(crate) below: Option<Stat>,
    /// What lies below is the host's own, not a base layer's.
    pub(crate) on_host: bool,
    /// A directory that nothing shines through, by its own mark or that of one above, though something is below.
    pub(crate) hidden: bool,
    /// The contents are those of the file below.
    pub(crate) metacopy: bool,
    /// It was copied up.
    pub(crate) origin: bool,
    /// It has marks that must not reach the host.
    pub(crate) marked: bool,
    /// It has attributes that programs know by another name.
    pub(crate) escaped: bool,
    /// What it was made from is gone below.
    pub(crate) lost: bool,
    /// Its owner below could not be told.
    pub(crate) unsure: bool,
}

impl Change {
    /// Whether it is, or was, a directory.
    pub fn is_dir(&self) -> bool {
        let attr = if self.kind == Kind::Deleted { self.was } else { self.is };
        attr.is_some_and(|attr| attr.kind == Type::Directory)
    }

    /// Whether it, or what it was renamed from, is one of `paths` or lies below one; all are where there are none.
    pub fn is_below(&self, paths: &[PathBuf]) -> bool {
        let below = |path: &Path| paths.iter().any(|dir| path.starts_with(dir));
        paths.is_empty() || below(&self.path) || self.from.as_deref().is_some_and(below)
    }
}
