//! What is measured, and what it has to come to. A row is one declaration here.

use std::path::Path;

use super::{many, mortal, nested, traps, workload};
use crate::shell::Result;

/// A way to run the workload.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    /// On Linux as it is.
    Native,
    /// In `hurdle run` with these options.
    Hurdle(&'static [&'static str]),
    /// In bubblewrap with these options.
    Bwrap(&'static [&'static str]),
    /// On an overlay of the kernel's, whose layer is in memory or on disk.
    Overlay { disk: bool },
    /// The same over all files, which only root can mount.
    RootOverlay,
    /// On fuse-overlayfs.
    FuseOverlayfs { disk: bool },
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Side::Native => "native",
            Side::Hurdle(_) => "hurdle",
            Side::Bwrap(_) => "bwrap",
            Side::Overlay { .. } | Side::RootOverlay => "overlay",
            Side::FuseOverlayfs { .. } => "fuse-overlayfs",
        }
    }
}

/// What was measured of each side.
pub(crate) type Found = Vec<(String, Vec<f64>)>;

/// How a row is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Measure {
    /// Wall time of one launch of `true`, in ms.
    Launch,
    /// Launches of `true` per second, as many at once as there are CPUs.
    Rate,
    /// The figure that a function of `workload` returns, after another one has made its files.
    Inside { work: fn(&Path) -> Result<f64>, prepare: fn(&Path) -> Result, rounds: usize },
    /// The same, each time in a fresh environment after the kernel has dropped its caches.
    Cold { work: fn(&Path) -> Result<f64>, prepare: fn(&Path) -> Result, rounds: usize },
    /// The figures of its own sides, which a function makes with the files of `stage`; `work` is what it runs inside.
    Own { measure: fn(&Path, bool) -> Result<Found>, work: fn(&Path) -> Result<f64> },
    /// PSS of all processes of an idle environment but its program, in MiB.
    Memory,
    /// What the wire crate's own benchmark prints, in µs.
    Rpc,
}

/// What a row has to come to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    /// hurdle's figure is at most so many times that of the side named.
    AtMost(f64, &'static str),
    /// The same, with another number for root than for a user.
    AtMostFor { root: f64, user: f64, against: &'static str },
    /// hurdle's figure is at least so many times that of the side named.
    AtLeast(f64, &'static str),
    /// hurdle's figure is at most this.
    Below(f64),
    /// hurdle's figure is at least this.
    Above(f64),
}

/// Where the processes of a row run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Anywhere,
    /// All on one CPU.
    OneCpu,
    /// All on one CPU and in the root of the memory cgroups, where the kernel counts nobody's memory.
    OneCpuUncharged,
}

#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) place: Place,
    pub(crate) measure: Measure,
    pub(crate) sides: &'static [Side],
    pub(crate) bound: Bound,
}

const ALL: Side = Side::Bwrap(&["--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]);
const NET: Side = Side::Bwrap(&["--unshare-pid", "--unshare-net", "--dev-bind", "/", "/", "--proc", "/proc"]);
const FILES: Side = Side::Bwrap(&["--unshare-pid", "--dev-bind", "/", "/", "--proc", "/proc"]);
const LAUNCH: &[Side] = &[Side::Native, Side::Hurdle(&[]), ALL];
const LAUNCH_LOCAL: &[Side] = &[Side::Native, Side::Hurdle(&["--net", "local", "--auth", "root"]), ALL];
const LOCAL: &[Side] = &[Side::Native, Side::Hurdle(&["--net", "local"]), NET];
/// A trapped call costs what it costs wherever it is native: bubblewrap has nothing to show here.
const TRAPPED: &[Side] = &[Side::Native, Side::Hurdle(&["--net", "local"])];
const SHARE: &[Side] = &[Side::Native, Side::Hurdle(&["--fs", "share"]), FILES];

fn nothing(_: &Path) -> Result {
    Ok(())
}

const fn inside(work: fn(&Path) -> Result<f64>) -> Measure {
    Measure::Inside { work, prepare: nothing, rounds: 9 }
}

/// Servers that run a while for each figure.
const fn served(work: fn(&Path) -> Result<f64>) -> Measure {
    Measure::Inside { work, prepare: nothing, rounds: 7 }
}

const fn on_files(work: fn(&Path) -> Result<f64>, prepare: fn(&Path) -> Result, rounds: usize) -> Measure {
    Measure::Inside { work, prepare, rounds }
}

const fn local(name: &'static str, what: &'static str, unit: &'static str, measure: Measure, at_least: f64) -> Row {
    Row { name, what, unit, place: Place::Anywhere, measure, sides: LOCAL, bound: Bound::AtLeast(at_least, "native") }
}

const fn share(name: &'static str, what: &'static str, measure: Measure) -> Row {
    Row { name, what, unit: "ms", place: Place::Anywhere, measure, sides: SHARE, bound: Bound::AtMost(1.02, "native") }
}

const fn pinned(row: Row) -> Row {
    Row { place: Place::OneCpu, ..row }
}

const fn launch(name: &'static str, what: &'static str, sides: &'static [Side], at_most: f64) -> Row {
    Row {
        name,
        what,
        unit: "ms",
        place: Place::Anywhere,
        measure: Measure::Launch,
        sides,
        bound: Bound::AtMost(at_most, "bwrap"),
    }
}

const fn alone(name: &'static str, what: &'static str, unit: &'static str, measure: Measure, bound: Bound) -> Row {
    Row { name, what, unit, place: Place::Anywhere, measure, sides: &[Side::Hurdle(&["--net", "local"])], bound }
}

const fn trap(name: &'static str, what: &'static str, work: fn(&Path) -> Result<f64>) -> Row {
    let (measure, bound) = (inside(work), Bound::Below(12.0));
    Row { name, what, unit: "µs", place: Place::OneCpu, measure, sides: TRAPPED, bound }
}

/// What makes the figures of a row.
type Finding = fn(&Path, bool) -> Result<Found>;
/// What it runs inside.
type Work = fn(&Path) -> Result<f64>;

/// What a function finds out, with `work` inside.
const fn own(
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    (measure, work): (Finding, Work),
    bound: Bound,
) -> Row {
    Row { name, what, unit, place: Place::Anywhere, measure: Measure::Own { measure, work }, sides: &[], bound }
}

/// All rows, in the order of docs/performance.md.
pub(crate) fn all() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().chain(super::cow::ROWS)
}

const ROWS: &[Row] = &[
    launch("launch", "`hurdle run -- true`", LAUNCH, 1.2),
    pinned(launch("launch-pinned", "the same on one CPU", LAUNCH, 1.2)),
    launch("launch-local", "`hurdle run --net local --auth root -- true`", LAUNCH_LOCAL, 1.5),
    pinned(launch("launch-local-pinned", "the same on one CPU", LAUNCH_LOCAL, 1.5)),
    pinned(Row {
        name: "rpc",
        what: "null RPC, 64 bytes, both ends on one CPU, against a raw SEQPACKET ping-pong",
        unit: "µs",
        place: Place::OneCpu,
        measure: Measure::Rpc,
        sides: &[],
        bound: Bound::AtMost(1.5, "native"),
    }),
    local("redis-c50", "redis-benchmark GET, 50 clients", "/s", served(workload::redis_50), 1.2),
    local("redis-c1", "redis-benchmark GET, 1 client", "/s", served(workload::redis_1), 1.1),
    pinned(local("redis-c50-pinned", "50 clients, one CPU", "/s", served(workload::redis_50), 1.2)),
    pinned(local("redis-c1-pinned", "1 client, one CPU", "/s", served(workload::redis_1), 1.2)),
    local("nginx", "nginx keep-alive, wrk", "/s", inside(workload::nginx_keep_alive), 1.15),
    local("pgbench", "pgbench -S -c4", "/s", on_files(workload::pgbench, workload::database, 7), 1.1),
    local("iperf3", "iperf3", "Gbit/s", inside(workload::iperf3), 1.4),
    pinned(local("iperf3-pinned", "iperf3, one CPU", "Gbit/s", inside(workload::iperf3), 3.0)),
    Row {
        place: Place::OneCpuUncharged,
        ..local(
            "iperf3-pinned-uncharged",
            "the same outside of memory cgroups, which count AF_UNIX by the page",
            "Gbit/s",
            inside(workload::iperf3),
            3.0,
        )
    },
    local("nginx-close", "a connection per request, wrk", "/s", inside(workload::nginx_close), 0.3),
    pinned(local("nginx-close-pinned", "a connection per request, one CPU", "/s", inside(workload::nginx_close), 0.6)),
    share("find", "find over 8,000 files, warm", on_files(workload::find, workload::tree, 41)),
    share("tar", "tar of 8,000 files", on_files(workload::tar, workload::tree, 41)),
    share("git-status", "git status, 8,000 files", on_files(workload::git_status, workload::repository, 41)),
    share("c-build", "a C build, make -j2", on_files(workload::c_build, workload::c_project, 9)),
    alone("memory", "an idle environment after its first connection: PSS", "MiB", Measure::Memory, Bound::Below(3.0)),
    Row {
        name: "rate",
        what: "environments created per second",
        unit: "/s",
        place: Place::Anywhere,
        measure: Measure::Rate,
        sides: LAUNCH,
        bound: Bound::Above(150.0),
    },
    trap("trap-getsockname", "getsockname, answered by a server process, one CPU", traps::name),
    trap("trap-socket", "socket and close, one CPU", traps::socket),
    trap("trap-accept", "accept with an address, one CPU", traps::accept),
    own(
        "death",
        "a net server is killed: the longest call of a program that makes one after the other",
        "ms",
        (mortal::death, mortal::probe),
        Bound::Below(5.0),
    ),
    own(
        "swap",
        "`hurdle swap ENV net=delay,ms=1+local` and back: the same",
        "ms",
        (mortal::swap, mortal::probe),
        Bound::Below(10.0),
    ),
    pinned(own(
        "depth-trap",
        "getsockname at depth 16, against depth 1, one CPU",
        "µs",
        (nested::trap, traps::name),
        Bound::AtMost(1.3, "depth 1"),
    )),
    own(
        "depth-launch",
        "`hurdle run --net local -- true` at depth 16, against depth 1",
        "ms",
        (nested::launch, nested::launches),
        Bound::AtMost(1.5, "depth 1"),
    ),
    own(
        "many-rate",
        "1,000 environments with `--net local` and a listener each, alive at once: created per second",
        "/s",
        (many::rate, many::listen),
        Bound::Above(0.0),
    ),
    own("many-memory", "the same: PSS of each", "MiB", (many::memory, many::listen), Bound::Below(3.0)),
    own("many-ls", "the same: `hurdle ls`", "ms", (many::ls, many::listen), Bound::Below(1000.0)),
];

/// The row called `name`.
pub(crate) fn named(name: &str) -> Result<&'static Row> {
    all().find(|row| row.name == name).ok_or_else(|| format!("no row {name}").into())
}
