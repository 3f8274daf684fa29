//! Large files whose content the overlay reads by itself, in place of asking for it here.
//!
//! The overlay has a few directories of the host's as data-only layers (overlayfs in the kernel's documentation), `/usr` above
//! all. Of a file whose content is to be had there it is told so by two extended attributes, and reads it in the kernel,
//! from the pages that the host has of it; a copy that it makes shares the host's blocks where both lie on one file system that
//! can. To be told costs two more requests than to be shown a file, so it is for those of more than one
//! read, and elsewhere than in `/usr`, where files change while they are looked at, for those that are long to copy.

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hurdle_proto::plan::CONTENT;
use rustix::fs::{Access, AtFlags, CWD, FileType, StatxFlags, accessat, statx};
use rustix::io::Errno;

use super::show;

/// That the content is elsewhere: the value is empty…
pub(super) const METACOPY: &[u8] = b"user.overlay.metacopy";
/// …and where: a path in the layer.
pub(super) const REDIRECT: &[u8] = b"user.overlay.redirect";

/// Bytes of the largest file of [`CONTENT`] that is not worth it: the kernel reads as many at a time.
const SMALL: u64 = 128 << 10;

/// Whether a file of [`CONTENT`] is worth it.
pub(super) fn is_large(mode: u32, size: i64) -> bool {
    FileType::from_raw_mode(mode) == FileType::RegularFile && size.cast_unsigned() > SMALL
}

/// The same of other directories.
const SHORT: u64 = 8 << 20;

/// The overlay looks for a path of at most so many bytes, with names that it takes for names.
const LONGEST: usize = 255;

/// The directories that are data-only layers, in the order that the overlay searches them.
#[derive(Debug)]
pub(super) struct Content(Vec<Layer>);

#[derive(Debug)]
struct Layer {
    path: Vec<u8>,
    mount: u64,
    small: u64,
}

impl Content {
    pub(super) fn new(directories: &[PathBuf]) -> Content {
        let layer = |path: &PathBuf| {
            let found = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
            let small = if path == Path::new(CONTENT) { SMALL } else { SHORT };
            Some(Layer { path: path.as_os_str().as_bytes().to_vec(), mount: found.stx_mnt_id, small })
        };
        Content(directories.iter().filter_map(layer).collect())
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
        let below = |layer: &Layer| path.strip_prefix(&*layer.path).filter(|rest| matches!(rest, [] | [b'/', ..]));
        let found = self.0.iter().enumerate().find_map(|(at, layer)| Some((at, layer, below(layer)?)));
        let Some((at, layer, below)) = found else { return Ok(None) };
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let found = statx(place, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
        let large =
            FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile && found.stx_size > layer.small;
        if !large
            || found.stx_mnt_id != layer.mount
            || show::file_of(rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino) != file
            || accessat(place, name, Access::READ_OK, AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW).is_err()
        {
            return Ok(None);
        }
        let path = [below, b"/", name].concat();
        // It would be found in an earlier layer.
        let other = |layer: &Layer| statx(CWD, [&*layer.path, &*path].concat(), flags, StatxFlags::TYPE).is_ok();
        let taken = path.len() > LONGEST || self.0[..at].iter().any(other);
        Ok((!taken).then_some(path))
    }
}
