//! Changes as a tarball of the kind that OCI images are layered from (image-spec, layer.md): what is deleted is an empty file
//! `.wh.NAME`, also each entry that a replaced directory no longer has. Names that are long or no UTF-8, large numbers and
//! extended attributes are PAX records (pax(1)).

use std::collections::HashMap;
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::at::{Stat, Xattr};
use crate::change::{Attr, Change, Kind, Type};
use crate::contents::Body;
use crate::error::{At as _, Result};
use crate::view::{View, relative};

/// Writes `changes` as one tarball; owners by the environment's numbers. Sockets have no place in it.
pub fn tarball(view: &View<'_>, changes: &[Change], out: &mut dyn Write) -> Result<()> {
    let mut tar = Tar { builder: Builder::new(out), names: HashMap::new() };
    // Marks of deletion come first, since a path may be deleted and come again.
    for change in changes {
        match change.kind {
            Kind::Deleted => tar.whiteout(&change.path)?,
            Kind::Renamed => tar.whiteout(change.from.as_deref().unwrap_or(&change.path))?,
            _ => {}
        }
    }
    for change in changes {
        let (Some(is), Some(stat)) = (change.is, change.place.upper) else { continue };
        if change.kind == Kind::Same {
            continue;
        }
        let read = || Ok((view.now(change)?, view.xattrs_now(change)?));
        let Some((body, xattrs)) = view.unless_gone(change, read)? else {
            tar.whiteout(&change.path)?;
            continue;
        };
        tar.entry(&change.path, &is, &stat, body, &xattrs)?;
        // A directory in place of something else needs no mark: a layer replaces what is no directory.
        if change.kind == Kind::Renamed && is.kind == Type::Directory {
            tar.moved(view, changes, change)?;
        }
    }
    tar.builder.finish().at(|| "tarball".into())
}

struct Tar<W: Write> {
    builder: Builder<W>,
    /// The first name of each file that has several.
    names: HashMap<((u32, u32), u64), PathBuf>,
}

impl<W: Write> Tar<W> {
    fn whiteout(&mut self, path: &Path) -> Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let marked = path.with_file_name(std::ffi::OsStr::from_bytes(&[b".wh.", name.as_bytes()].concat()));
        let mut header = Header::new_ustar();
        header.set_mode(0o600);
        header.set_entry_type(EntryType::Regular);
        self.write(header, &marked, None, Vec::new(), io::empty(), 0)
    }

    /// What a renamed directory still holds of what it held below.
    fn moved(&mut self, view: &View<'_>, all: &[Change], change: &Change) -> Result<()> {
        let from = change.place.lower.as_deref().unwrap_or_default();
        let known = |path: &Path| all.binary_search_by(|other| other.path.as_path().cmp(path)).ok().map(|at| &all[at]);
        view.each_below(change.place.mount, from, &mut |below| {
            let inside = below.path[from.len()..].strip_prefix(b"/").unwrap_or_default();
            let path = change.path.join(std::ffi::OsStr::from_bytes(inside));
            let gone =
                |above: &Path| known(above).is_some_and(|other| matches!(other.kind, Kind::Deleted | Kind::Type));
            let hidden = path.ancestors().take_while(|above| *above != change.path).any(gone);
            if hidden || known(&path).is_some() {
                return Ok(());
            }
            self.entry(&path, &below.attr(), below.stat(), below.body()?, &below.xattrs()?)
        })
    }

    fn entry(&mut self, path: &Path, attr: &Attr, stat: &Stat, body: Body, xattrs: &[Xattr]) -> Result<()> {
        let kind = match attr.kind {
            Type::File => EntryType::Regular,
            Type::Directory => EntryType::Directory,
            Type::Symlink => EntryType::Symlink,
            Type::Fifo => EntryType::Fifo,
            Type::Character => EntryType::Char,
            Type::Block => EntryType::Block,
            Type::Socket => return Ok(()),
        };
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(attr.mode);
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        for (key, id) in [("uid", attr.uid), ("gid", attr.gid)] {
            // Nobody's number, as the kernel shows it.
            let id = u64::from(id.unwrap_or(65534));
            if id > 0o777_7777 {
                pax.push((key.into(), id.to_string().into_bytes()));
            }
            let short = id.min(0o777_7777);
            if key == "uid" { header.set_uid(short) } else { header.set_gid(short) }
        }
        let seconds = attr.mtime.div_euclid(1_000_000_000);
        header.set_mtime(u64::try_from(seconds).unwrap_or(0).min(0o777_7777_7777));
        if attr.mtime % 1_000_000_000 != 0 || seconds < 0 {
            pax.push(("mtime".into(), decimal(attr.mtime).into_bytes()));
        }
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let device = header.set_device_major(stat.rdev.0).and_then(|()| header.set_device_minor(stat.rdev.1));
            device.at(|| crate::text::path(path))?;
        }
        for (name, value) in xattrs {
            pax.push((format!("SCHILY.xattr.{}", name.to_string_lossy()), value.clone()));
        }
        if stat.nlink > 1 && kind != EntryType::Directory {
            if let Some(first) = self.names.get(&(stat.dev, stat.ino)).cloned() {
                header.set_entry_type(EntryType::Link);
                return self.write(header, path, Some(relative(&first)), pax, io::empty(), 0);
            }
            self.names.insert((stat.dev, stat.ino), path.into());
        }
        match body {
            Body::File(file) => self.write(header, path, None, pax, file, attr.size),
            Body::Link(text) => self.write(header, path, Some(text.as_bytes()), pax, io::empty(), 0),
            Body::None => self.write(header, path, None, pax, io::empty(), 0),
        }
    }

    fn write(
        &mut self,
        mut header: Header,
        path: &Path,
        link: Option<&[u8]>,
        mut pax: Vec<(String, Vec<u8>)>,
        data: impl io::Read,
        size: u64,
    ) -> Result<()> {
        let mut name = relative(path).to_vec();
        if header.entry_type() == EntryType::Directory {
            // The root itself is `./`.
            name.extend_from_slice(if name.is_empty() { b"./" } else { b"/" });
        }
        let mut field = |key: &str, bytes: &[u8], field: &mut [u8; 100]| {
            if bytes.len() > field.len() || !bytes.is_ascii() {
                if std::str::from_utf8(bytes).is_err() && !pax.iter().any(|(key, _)| key == "hdrcharset") {
                    pax.insert(0, ("hdrcharset".into(), b"BINARY".to_vec()));
                }
                pax.push((key.into(), bytes.to_vec()));
            }
            let length = bytes.len().min(field.len());
            field[..length].copy_from_slice(&bytes[..length]);
        };
        let old = header.as_old_mut();
        field("path", &name, &mut old.name);
        if let Some(link) = link {
            field("linkpath", link, &mut old.linkname);
        }
        if size > 0o777_7777_7777 {
            pax.push(("size".into(), size.to_string().into_bytes()));
        }
        header.set_size(size);
        header.set_cksum();
        let records = pax.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        let written = if pax.is_empty() { Ok(()) } else { self.builder.append_pax_extensions(records) };
        // Exactly as long as the header says, though the file may change meanwhile.
        let exact = data.take(size).chain(io::repeat(0)).take(size);
        written
            .and_then(|()| self.builder.append(&header, exact))
            .at(|| format!("tarball: {}", crate::text::path(path)))
    }
}

/// Nanoseconds as seconds.
fn decimal(ns: i128) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    format!("{sign}{}.{:09}", ns.abs() / 1_000_000_000, ns.abs() % 1_000_000_000)
}
