//! Checks of namespaces and mounts: each makes what an environment is made of, in the same order.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hurdle_proto::plan::{IdMap, MapWriter};
use hurdle_sys::ns::{self, Ids, Init, Namespaces};
use hurdle_sys::probe::Ending;
use hurdle_sys::process::{self, State};
use hurdle_sys::{mount, seqpacket};

use super::trouble::{self, Outcome, Report, Step, Trouble};

pub(crate) fn user_namespace(report: &Report) -> Outcome {
    inside(report, Namespaces::BASE, |_| Ok(()))
}

pub(crate) fn fresh_proc(report: &Report) -> Outcome {
    inside(report, Namespaces::BASE, |report| {
        report.try_to(Step::Proc, || mount::instance("proc", Path::new("/proc"), ""))?;
        let me = report.try_to(Step::Proc, || fs::read_link("/proc/self"))?;
        if me == Path::new("1") { Ok(()) } else { Err(report.wrong("it shows the processes of another namespace")) }
    })
}

pub(crate) fn network(report: &Report) -> Outcome {
    inside(report, Namespaces::BASE.with(Namespaces::NET), |report| {
        report.try_to(Step::Loopback, ns::loopback_up)?;
        report.try_to(Step::Loopback, || {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.send_to(b"x", socket.local_addr()?)?;
            socket.recv(&mut [0; 8])
        })?;
        Ok(())
    })
}

/// A root of its own with what programs expect in it, as `--fs root:DIR` makes one.
pub(crate) fn own_root(report: &Report) -> Outcome {
    inside(report, Namespaces::BASE, |report| {
        let root = scratch(report)?;
        report.try_to(Step::Tmpfs, || fs::create_dir_all(root.join("dev/pts")))?;
        let null = root.join("dev/null");
        report.try_to(Step::Bind, || {
            File::create(&null)?;
            mount::bind(Path::new("/dev/null"), &null)
        })?;
        let options = "newinstance,ptmxmode=0666,mode=620";
        report.try_to(Step::Devpts, || mount::instance("devpts", &root.join("dev/pts"), options))?;
        report.try_to(Step::Pivot, || mount::pivot(&root))?;
        report.try_to(Step::Bind, || OpenOptions::new().write(true).open("/dev/null")?.write_all(b"x"))?;
        report.try_to(Step::Devpts, || OpenOptions::new().read(true).write(true).open("/dev/pts/ptmx"))?;
        Ok(())
    })
}

/// An empty directory for the caller's mounts, in his own mount namespace.
pub(crate) fn scratch(report: &Report) -> Result<PathBuf, Trouble> {
    let place = ["/tmp", "/var/tmp", "/mnt", "/run", "/sys"].iter().map(Path::new).find(|dir| dir.is_dir());
    let place = place.ok_or_else(|| report.wrong("no directory to mount on"))?;
    report.try_to(Step::Tmpfs, || mount::instance("tmpfs", place, "mode=755,size=1m"))?;
    Ok(place.to_path_buf())
}

/// Runs `body` as pid 1 of new namespaces, with ids as outside, and waits for its end. It has the last word.
pub(crate) fn inside(report: &Report, namespaces: Namespaces, body: impl FnOnce(&Report) -> Outcome) -> Outcome {
    wait(report, &start(report, namespaces, body)?)
}

/// Waits for the end of a process of [`start`].
pub(crate) fn wait(report: &Report, child: &Init) -> Outcome {
    let (_, status) = report.try_to(Step::Prepare, || process::wait(Some(child.pid)))?;
    // A child that ended well has reported already, and this is not heard.
    match status.state() {
        State::Exited(0) => Ok(()),
        state => trouble::read(&[], Ending::By(state)),
    }
}

/// As [`inside`], without the wait.
pub(crate) fn start(
    report: &Report,
    namespaces: Namespaces,
    body: impl FnOnce(&Report) -> Outcome,
) -> Result<Init, Trouble> {
    let ids = report.try_to(Step::Prepare, IdMap::same)?;
    let (ours, theirs) = report.try_to(Step::Prepare, seqpacket::pair)?;
    let run = || {
        let outcome = settle(report, &ids, &theirs).and_then(|()| body(report));
        report.end(&outcome);
        0
    };
    let child = report.try_to(Step::Namespaces, || ns::clone_init(namespaces, run))?;
    if ids.writer == MapWriter::Core {
        report.try_to(Step::Map, || {
            ns::write_map(Some(child.pid), Ids::Users, &ids.users)?;
            ns::write_map(Some(child.pid), Ids::Groups, &ids.groups)?;
            seqpacket::send(ours.as_fd(), b"go", &[], true)
        })?;
    }
    Ok(child)
}

/// In the child: its ids, and its end with its parent's.
fn settle(report: &Report, ids: &IdMap, go: &impl AsFd) -> Outcome {
    report.try_to(Step::Map, || {
        if ids.writer == MapWriter::Core {
            seqpacket::receive(go.as_fd(), &mut Vec::with_capacity(8))?;
        } else {
            ns::deny_setgroups(None)?;
            ns::write_map(None, Ids::Users, &ids.users)?;
            ns::write_map(None, Ids::Groups, &ids.groups)?;
        }
        ns::die_with_parent()?;
        io::Result::Ok(())
    })
}
