//! Checks of memory files, socket options, and the file systems of later releases.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;

use hurdle_sys::ns::Namespaces;
use hurdle_sys::process::effective_ids;
use hurdle_sys::target::socket;
use hurdle_sys::{memfd, mount};

use super::trouble::{Outcome, Report, Step};
use super::world;

/// 64 bits in a socket that mean nothing to it.
pub(crate) fn socket_mark(report: &Report) -> Outcome {
    let mark = 0xfedc_ba98_7654_3210;
    let (one, _other) = report.try_to(Step::Prepare, UnixStream::pair)?;
    report.try_to(Step::Mark, || socket::set_mark(one.as_fd(), mark))?;
    let found = report.try_to(Step::Mark, || socket::mark(one.as_fd()))?;
    if found == mark { Ok(()) } else { Err(report.wrong(format!("it reads {found:#x} after {mark:#x} was written"))) }
}

pub(crate) fn sealed_memory(report: &Report) -> Outcome {
    let bytes = b"sealed";
    let fd = report.try_to(Step::Seal, || memfd::sealed(c"hurdle-doctor", bytes))?;
    let found = report.try_to(Step::Seal, || memfd::read_sealed(&fd, bytes.len()))?;
    if found != bytes {
        return Err(report.wrong("it does not hold what was written"));
    }
    match File::from(fd).write_all(b"x") {
        Err(_) => Ok(()),
        Ok(()) => Err(report.wrong("it can be written though it is sealed")),
    }
}

/// INIT of linux/fuse.h: the kernel's first request on a connection.
const INIT: u32 = 26;

pub(crate) fn fuse(report: &Report) -> Outcome {
    world::inside(report, Namespaces::BASE, |report| {
        let place = world::scratch(report)?;
        // Opened in the user namespace that mounts, as the kernel wants it.
        let mut device =
            report.try_to(Step::FuseDevice, || OpenOptions::new().read(true).write(true).open("/dev/fuse"))?;
        let (uid, gid) = effective_ids();
        let options = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
        report.try_to(Step::FuseMount, || mount::instance("fuse", &place, &options))?;
        // The kernel refuses buffers below 8 KiB (FUSE_MIN_READ_BUFFER).
        let mut request = [0; 16 * 1024];
        let length = report.try_to(Step::FuseInit, || device.read(&mut request))?;
        let opcode = request[..length].get(4..8).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
        if opcode == Some(INIT) {
            Ok(())
        } else {
            Err(report.wrong(format!("its first request is {opcode:?}, not INIT")))
        }
    })
}

pub(crate) fn overlay(report: &Report) -> Outcome {
    world::inside(report, Namespaces::BASE, |report| {
        let place = world::scratch(report)?;
        let dir = |name: &str| place.join(name);
        report.try_to(Step::Prepare, || {
            ["lower", "upper", "work", "all"].iter().try_for_each(|name| fs::create_dir(dir(name)))?;
            fs::write(dir("lower/old"), "below")?;
            fs::write(dir("lower/gone"), "below")
        })?;
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| dir(name).display().to_string());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work},userxattr");
        report.try_to(Step::Overlay, || mount::instance("overlay", &dir("all"), &options))?;
        report.try_to(Step::Whiteout, || {
            fs::write(dir("all/old"), "above")?;
            fs::remove_file(dir("all/gone"))
        })?;
        let kept = report.try_to(Step::Whiteout, || fs::read_to_string(dir("lower/old")))?;
        let above = report.try_to(Step::Whiteout, || fs::read_to_string(dir("upper/old")))?;
        let gone = report.try_to(Step::Whiteout, || fs::metadata(dir("upper/gone")))?;
        let whiteout = gone.file_type().is_char_device() && gone.rdev() == 0;
        if kept == "below" && above == "above" && whiteout {
            Ok(())
        } else {
            Err(report.wrong("a change went elsewhere than to the upper directory"))
        }
    })
}
