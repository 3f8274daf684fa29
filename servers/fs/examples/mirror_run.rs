//! Runs a command in a copy-on-write view of the host's files, made by hand: a user, mount and pid namespace, the mirror served
//! from outside, a kernel overlay over it. For measuring and testing the mirror by itself: says what each run took and asked
//! for. With `--kills`, the mirror is served by a process of its own that is killed so many times, and followed by another;
//! with `--swaps`, it is stopped so many times and followed by another in this process.
//!
//! `mirror_run [--same | --range] [--runs N] [--kills N | --swaps N] [--hide DIR] [--upper DIR] [--bare] COMMAND…`
//!
//! `--bare` leaves out /proc, /dev and /sys.

use std::error::Error;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hurdle_fs::mirror::{Ids, Mirror, Options, Part};
use hurdle_sys::ns::{self, Extent, Namespaces};
use hurdle_sys::process::{Launch, Until, numbers};
use hurdle_sys::{fuse, memfd, mount, process, seqpacket};
use rustix::mount::{MountFlags, MoveMountFlags, move_mount};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Wish {
    same: bool,
    range: bool,
    bare: bool,
    runs: usize,
    kills: usize,
    swaps: usize,
    hide: Vec<PathBuf>,
    upper: Option<PathBuf>,
    command: Vec<String>,
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return serve(&std::env::args().skip(2).collect::<Vec<_>>());
    }
    let wish = wish()?;
    let (outer, inner) = seqpacket::pair()?;
    let mut inner = Some(inner);
    let init = ns::clone_init(Namespaces::BASE, || match inner.take().map(|channel| inside(&wish, &channel)) {
        Some(Ok(code)) => code,
        Some(Err(error)) => {
            eprintln!("mirror_run: inside: {error}");
            1
        }
        None => 1,
    })?;
    drop(inner);
    let (users, groups) = map(&wish, init.pid)?;
    seqpacket::send(outer.as_fd(), b"g", &[], true)?;
    let mut word = Vec::with_capacity(64);
    let device = seqpacket::receive(outer.as_fd(), &mut word)?.fds.pop().ok_or("no connection came")?;
    let nodes = memfd::create(c"nodes")?;
    if wish.kills > 0 {
        serve_and_kill(&wish, &outer, &device, &nodes, &[users, groups])?;
        return end(&init);
    }
    let options = Options {
        ids: Ids::new(users, groups)?,
        hidden: wish.hide,
        part: Part::Whole,
        near: None,
        content: Vec::new(),
    };
    let start = || -> Result<Mirror> { Ok(Mirror::start(device.try_clone()?, nodes.try_clone()?, options.clone())?) };
    let mut mirror = start()?;
    for _ in 0..wish.swaps {
        let wait = Instant::now() + Duration::from_millis(20);
        if process::poll(&[(outer.as_fd(), Until::Readable)], Some(wait))? == [false] {
            mirror.stop();
            mirror = start()?;
        }
    }
    let mut before = Vec::new();
    while seqpacket::receive(outer.as_fd(), &mut word).is_ok() && !word.is_empty() {
        let now = mirror.requests();
        let old = |name: &str| before.iter().find(|(other, _)| other == name).map_or(0, |(_, count)| *count);
        let new = now.iter().map(|(name, count)| (name, count - old(name))).filter(|(_, count)| *count > 0);
        let new: Vec<String> = new.map(|(name, count)| format!("{name} {count}")).collect();
        eprintln!("{}; nodes {}; {}", String::from_utf8_lossy(&word), mirror.nodes(), new.join(", "));
        before = now;
    }
    mirror.stop();
    end(&init)
}

/// Ends with the code of the command.
fn end(init: &ns::Init) -> Result<()> {
    let status = process::wait_end(init.pid)?;
    std::process::exit(status.shell_code())
}

/// A server on fds 3 and 4, until somebody kills it.
fn serve(maps: &[String]) -> Result<()> {
    let extents = |text: &String| -> Result<Vec<Extent>> {
        let numbers = text.split(' ').map(str::parse).collect::<std::result::Result<Vec<u32>, _>>()?;
        Ok(numbers.chunks_exact(3).map(|n| Extent { inside: n[0], outside: n[1], count: n[2] }).collect())
    };
    let ids = Ids::new(extents(&maps[0])?, extents(&maps[1])?)?;
    let _mirror = Mirror::start(
        process::inherited(3)?,
        process::inherited(4)?,
        Options { ids, hidden: Vec::new(), part: Part::Whole, near: None, content: Vec::new() },
    )?;
    loop {
        std::thread::park();
    }
}

fn serve_and_kill(
    wish: &Wish,
    channel: &OwnedFd,
    device: &OwnedFd,
    nodes: &OwnedFd,
    maps: &[Vec<Extent>; 2],
) -> Result<()> {
    let text = |extents: &Vec<Extent>| {
        extents.iter().map(|e| format!("{} {} {}", e.inside, e.outside, e.count)).collect::<Vec<_>>().join(" ")
    };
    let argv: Vec<OsString> = [std::env::current_exe()?.into(), "serve".into()]
        .into_iter()
        .chain(maps.iter().map(|map| text(map).into()))
        .collect();
    let start = || -> Result<i32> {
        let stdio = [process::duplicate(0)?, process::duplicate(1)?, process::duplicate(2)?];
        let launch = Launch::new(&argv, &[], stdio)?.fd(device.try_clone()?, 3).fd(nodes.try_clone()?, 4);
        Ok(launch.dies_with_parent().start()?)
    };
    let (mut server, mut killed, mut word) = (start()?, 0, Vec::with_capacity(64));
    loop {
        let wait = (killed < wish.kills).then(|| Instant::now() + Duration::from_millis(20));
        if process::poll(&[(channel.as_fd(), Until::Readable)], wait)? == [true] {
            if seqpacket::receive(channel.as_fd(), &mut word).is_err() || word.is_empty() {
                break;
            }
            eprintln!("{}", String::from_utf8_lossy(&word));
        } else {
            process::kill(server, numbers::SIGKILL)?;
            process::wait_end(server)?;
            killed += 1;
            server = start()?;
        }
    }
    eprintln!("killed {killed} times");
    process::kill(server, numbers::SIGKILL)?;
    Ok(())
}

fn wish() -> Result<Wish> {
    let mut wish = Wish {
        same: false,
        range: false,
        bare: false,
        runs: 1,
        kills: 0,
        swaps: 0,
        hide: Vec::new(),
        upper: None,
        command: Vec::new(),
    };
    let mut words = std::env::args().skip(1).peekable();
    while words.peek().is_some_and(|word| word.starts_with("--")) {
        match words.next().unwrap_or_default().as_str() {
            "--same" => wish.same = true,
            "--bare" => wish.bare = true,
            "--range" => wish.range = true,
            "--runs" => wish.runs = words.next().unwrap_or_default().parse()?,
            "--kills" => wish.kills = words.next().unwrap_or_default().parse()?,
            "--swaps" => wish.swaps = words.next().unwrap_or_default().parse()?,
            "--hide" => wish.hide.extend(words.next().map(PathBuf::from)),
            "--upper" => wish.upper = words.next().map(PathBuf::from),
            other => return Err(format!("{other}?").into()),
        }
    }
    wish.command = words.collect();
    if wish.command.is_empty() {
        return Err("no command".into());
    }
    Ok(wish)
}

fn map(wish: &Wish, pid: i32) -> Result<(Vec<Extent>, Vec<Extent>)> {
    let (uid, gid) = process::effective_ids();
    let extents = |id| {
        let own = Extent { inside: if wish.same { id } else { 0 }, outside: id, count: 1 };
        let more = wish.range.then_some(Extent { inside: 1, outside: 100_000, count: 65536 });
        [own].into_iter().chain(more).collect::<Vec<_>>()
    };
    let (users, groups) = (extents(uid), extents(gid));
    for (which, name, extents) in [(ns::Ids::Users, "newuidmap", &users), (ns::Ids::Groups, "newgidmap", &groups)] {
        if wish.range {
            let numbers = extents.iter().flat_map(|e| [e.inside, e.outside, e.count]).map(|n| n.to_string());
            if !Command::new(name).arg(pid.to_string()).args(numbers).status()?.success() {
                return Err(format!("{name} failed").into());
            }
        } else {
            if which == ns::Ids::Groups {
                ns::deny_setgroups(Some(pid))?;
            }
            ns::write_map(Some(pid), which, extents)?;
        }
    }
    Ok((users, groups))
}

fn inside(wish: &Wish, channel: &OwnedFd) -> Result<i32> {
    let mut word = Vec::with_capacity(64);
    seqpacket::receive(channel.as_fd(), &mut word)?;
    ns::die_with_parent()?;
    let began = Instant::now();
    let (device, lower) = fuse::create("mirror")?;
    seqpacket::send(channel.as_fd(), b"d", &[device.as_fd()], true)?;
    drop(device);
    let place = Path::new("/mnt");
    rustix::mount::mount("tmpfs", place, "tmpfs", MountFlags::empty(), Some(c"mode=755"))?;
    let (below, root) = (place.join("lower"), place.join("root"));
    let layer = wish.upper.clone().unwrap_or_else(|| place.join("layer"));
    for dir in [&below, &root, &layer.join("upper"), &layer.join("work")] {
        std::fs::create_dir_all(dir)?;
    }
    move_mount(&lower, "", rustix::fs::CWD, &below, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let options = format!(
        "lowerdir={},upperdir={}/upper,workdir={}/work,userxattr",
        below.display(),
        layer.display(),
        layer.display()
    );
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("overlay", &root, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    if !wish.bare {
        mount::instance("proc", &root.join("proc"), "")?;
        for shared in ["dev", "sys"] {
            mount::bind(&Path::new("/").join(shared), &root.join(shared))?;
        }
    }
    mount::pivot(&root)?;
    let say = |text: String| seqpacket::send(channel.as_fd(), text.as_bytes(), &[], true);
    say(format!("stands after {:.1} ms", began.elapsed().as_secs_f64() * 1e3))?;
    let mut code = 0;
    for run in 1..=wish.runs {
        let began = Instant::now();
        let status = Command::new(&wish.command[0]).args(&wish.command[1..]).status()?;
        say(format!("run {run}: {:.4} s", began.elapsed().as_secs_f64()))?;
        code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    }
    Ok(code)
}
