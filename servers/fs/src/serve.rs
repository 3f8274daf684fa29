//! The fs server's process: it tells what is mounted where, hands out the layer that changes go to, and shows the parent's files
//! through FUSE where the environment needs that.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use hurdle_proto::fs::{Mount, PLAIN, SHOWN, fs};
use hurdle_server::{Borrowed, Reads, Target, confine_files};
use hurdle_sys::memfd::Mapping;
use hurdle_sys::ns::Extent;
use hurdle_sys::process::numbers::EINVAL;
use hurdle_wire::{Context, Fd, Refused};
use rustix::fs::fstat;

use crate::mirror::{self, Ids, Mirror, Part};
use crate::plan::hidden;

/// Serves until the right is given back.
pub fn serve() -> ExitCode {
    hurdle_server::run(|borrowed: &mut Borrowed| {
        // It shows files, and lets the kernel write them. Each of its threads has the device for itself.
        let device = Path::new("/dev/fuse");
        let writes: &[&Path] = if borrowed.has(SHOWN.0) { &[device] } else { &[] };
        confine_files(Reads::All, writes)?;
        let init = borrowed.target()?;
        let layer = borrowed.attachment("layer").ok();
        if borrowed.has(SHOWN.0) {
            show(borrowed, &init)?;
        }
        Ok(fs::service(Files { init, layer }))
    })
}

/// Shows the parent's files to an environment that may not copy them up itself.
fn show(borrowed: &mut Borrowed, init: &Target) -> Result<(), Refused> {
    let extent = |(inside, outside, count)| Extent { inside, outside, count };
    let map = |name| io::Result::Ok(init.map(name)?.into_iter().map(extent).collect());
    let ids = Ids::new(map("uid_map")?, map("gid_map")?)?;
    let hidden = borrowed.spec.single().map(|layer| hidden(layer).collect()).unwrap_or_default();
    let near = Some(Arc::new(init.pidfd().try_clone_to_owned()?));
    let content = borrowed.attachment("content").map_or(Ok(Vec::new()), paths)?;
    let options = mirror::Options { ids, hidden, part: Part::Whole, content, near };
    let two = borrowed.has(PLAIN.0);
    let mut start = |(device, nodes), part| -> Result<Mirror, Refused> {
        let options = mirror::Options { part, ..options.clone() };
        Ok(Mirror::start(borrowed.attachment(device)?, borrowed.attachment(nodes)?, options)?)
    };
    let mut mirrors = Vec::new();
    if two {
        let plain = start(PLAIN, Part::Plain)?;
        mirrors.extend([start(SHOWN, Part::Rest(plain.above()))?, plain]);
    } else {
        mirrors.push(start(SHOWN, Part::Whole)?);
    }
    // Any program may need a file at any time.
    borrowed.stay();
    borrowed.on_return(move || mirrors.into_iter().for_each(Mirror::stop));
    Ok(())
}

/// The paths in the attachment `content`.
fn paths(file: OwnedFd) -> io::Result<Vec<PathBuf>> {
    let len = usize::try_from(fstat(&file)?.st_size).unwrap_or_default();
    let text = Mapping::new(file.as_fd(), len)?;
    let paths = text.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    Ok(paths.map(|path| OsStr::from_bytes(path).into()).collect())
}

struct Files {
    init: Target,
    layer: Option<OwnedFd>,
}

impl fs::Server for Files {
    async fn mounts(&self, _: &Context) -> Result<Vec<Mount>, Refused> {
        let text = self.init.read("mountinfo")?;
        Ok(text.lines().filter_map(parse).collect())
    }

    async fn layer(&self, _: &Context) -> Result<Fd, Refused> {
        let none = || Refused::new(EINVAL, "its files are not copy-on-write (--fs cow), so there is no layer");
        Ok(Fd::from(self.layer.as_ref().ok_or_else(none)?.try_clone()?))
    }
}

/// One line of mountinfo (proc_pid_mountinfo(5)): id parent major:minor root target options optional… - kind source more.
pub(crate) fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let mut right = right.split(' ');
    Some(Mount {
        target: unescape(left.get(4)?),
        options: left.get(5)?.to_string(),
        kind: right.next()?.to_string(),
        source: unescape(right.next()?),
    })
}

/// Blanks and the like stand in mountinfo as `\040`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root\134x rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.target.as_str(), mount.source.as_str()), ("/mnt 2", "/dev/root\\x"));
        assert_eq!((mount.kind.as_str(), mount.options.as_str()), ("ext3", "rw,noatime"));
        assert_eq!(parse("garbage"), None);
    }
}
