//! The marks that the kernel's overlay leaves in an upper directory, told from what programs wrote there
//! (Documentation/filesystems/overlayfs.rst in the kernel's source).

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::at::{self, Xattr};

/// Which extended attributes are the overlay's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// `trusted.overlay.`: an overlay that host root mounted.
    Trusted,
    /// `user.overlay.`: one in a user namespace (mount option `userxattr`).
    User,
}

impl Prefix {
    pub(crate) fn of(mirrored: bool) -> Prefix {
        if mirrored { Prefix::User } else { Prefix::Trusted }
    }

    fn text(self) -> &'static [u8] {
        match self {
            Prefix::Trusted => b"trusted.overlay.",
            Prefix::User => b"user.overlay.",
        }
    }

    /// The full name of the overlay's attribute `key`.
    pub(crate) fn key(self, key: &str) -> CString {
        CString::new([self.text(), key.as_bytes()].concat()).unwrap_or_default()
    }

    /// What the overlay calls `name` in its own file systems: its own attribute (`Err`), or one that programs see (`Ok`). A
    /// program's attribute that looks like a mark is kept with one more `overlay.` in its name.
    pub(crate) fn shown(self, name: &CStr) -> Result<CString, &[u8]> {
        match name.to_bytes().strip_prefix(self.text()) {
            None => Ok(name.to_owned()),
            Some(own) => match own.strip_prefix(b"overlay.") {
                Some(rest) => Ok(CString::new([self.text(), rest].concat()).unwrap_or_default()),
                None => Err(own),
            },
        }
    }
}

/// What an entry of an upper directory says beside its attributes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Marks {
    /// Nothing of the directory below shines through.
    pub(crate) opaque: bool,
    /// The directory below is not the one of the same name, but this one: from the overlay's root if it begins with `/`, else
    /// beside it.
    pub(crate) redirect: Option<Vec<u8>>,
    /// The contents are those of the file below.
    pub(crate) metacopy: bool,
    /// It was copied from below: what it was there, as a file handle.
    pub(crate) origin: bool,
    /// The names of its other marks and of these, as they are on disk.
    pub(crate) own: Vec<CString>,
    /// The names that programs see, with those on disk.
    pub(crate) shown: Vec<(CString, CString)>,
}

impl Marks {
    /// Those of `name` in `dir`.
    pub(crate) fn read(dir: impl AsFd, name: &CStr, prefix: Prefix) -> Result<Marks, Errno> {
        let mut marks = Marks::default();
        for key in at::xattr_names(&dir, name)? {
            let own = match prefix.shown(&key) {
                Ok(shown) => {
                    marks.shown.push((shown, key));
                    continue;
                }
                Err(own) => own,
            };
            match own {
                b"opaque" => marks.opaque = at::xattr(&dir, name, &key)?.as_deref() == Some(b"y"),
                b"redirect" => marks.redirect = at::xattr(&dir, name, &key)?.filter(|text| !text.is_empty()),
                b"metacopy" => marks.metacopy = true,
                b"origin" => marks.origin = true,
                _ => {}
            }
            marks.own.push(key);
        }
        Ok(marks)
    }

    /// The attributes that programs see, by name.
    pub(crate) fn values(&self, dir: impl AsFd, name: &CStr) -> Result<Vec<Xattr>, Errno> {
        let mut found = Vec::with_capacity(self.shown.len());
        for (shown, key) in &self.shown {
            if let Some(value) = at::xattr(&dir, name, key)? {
                found.push((shown.clone(), value));
            }
        }
        found.sort();
        Ok(found)
    }
}

/// The extended attributes of a file that is in no layer, by name.
pub(crate) fn plain_xattrs(dir: impl AsFd, name: &CStr) -> Result<Vec<Xattr>, Errno> {
    let mut found = Vec::new();
    for key in at::xattr_names(&dir, name)? {
        if let Some(value) = at::xattr(&dir, name, &key)? {
            found.push((key, value));
        }
    }
    found.sort();
    Ok(found)
}
