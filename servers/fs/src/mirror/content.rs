//! Large files whose content the overlay reads by itself, in place of asking for it here.
//!
//! The overlay has the host's [`CONTENT`] as a data-only layer (overlayfs in the kernel's documentation). Of a file whose
//! content is to be had there it is told so by two extended attributes, and reads it in the kernel, from the pages that the
//! host has of it. To be told costs two more requests than to be shown a file, so it is for those of more than one
//! read.

use std::os::fd::BorrowedFd;

use hurdle_proto::plan::CONTENT;
use rustix::fs::{Access, AtFlags, FileType, StatxFlags, accessat, statx};
use rustix::io::Errno;

use super::show;

/// That the content is elsewhere: the value is empty…
pub(super) const METACOPY: &[u8] = b"user.overlay.metacopy";
/// …and where: a path in the layer.
pub(super) const REDIRECT: &[u8] = b"user.overlay.redirect";

/// Bytes of the largest file that is not worth it: the kernel reads as many at a time.
const SMALL: u64 = 128 << 10;

/// The overlay looks for a path of at most so many bytes, with names that it takes for names.
const LONGEST: usize = 255;

/// The directory that is the data-only layer.
#[derive(Debug)]
pub(super) struct Content {
    mount: u64,
}

impl Content {
    pub(super) fn new() -> Result<Content, Errno> {
        let found = statx(rustix::fs::CWD, CONTENT, AtFlags::empty(), StatxFlags::MNT_ID)?;
        Ok(Content { mount: found.stx_mnt_id })
    }

    /// The path in the layer of the file `name` in `place`, the host's directory `path`; `None`: its content is not there, or
    /// is to be read here.
    ///
    /// The layer is one mount, and its paths are walked there without regard to others: so only what lies on the same mount is
    /// at the same path there. `file`: which one the kernel was told of. What the user may not read stays refused here.
    pub(super) fn path(
        &self,
        place: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        file: u32,
    ) -> Result<Option<Vec<u8>>, Errno> {
        let Some(below) = path.strip_prefix(CONTENT.as_bytes()).filter(|rest| matches!(rest, [] | [b'/', ..])) else {
            return Ok(None);
        };
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let found = statx(place, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
        let large = FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile && found.stx_size > SMALL;
        if !large
            || found.stx_mnt_id != self.mount
            || show::file_of(rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino) != file
            || accessat(place, name, Access::READ_OK, AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW).is_err()
        {
            return Ok(None);
        }
        let path = [below, b"/", name].concat();
        Ok(Some(path).filter(|path| path.len() <= LONGEST))
    }
}
