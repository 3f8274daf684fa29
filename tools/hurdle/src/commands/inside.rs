//! The layer of a user without privileges may hold files of ids that are his only inside an environment, which he can neither
//! read nor remove from outside. A command that meets such a layer runs itself again, inside an environment with the same ids and
//! shared files, where root can. There it can't tell who owns most of the host's files, and asks the process outside.
//!
//! What the one inside needs to know stands in `HURDLE_INSIDE`; the layer and the socket to ask on are fds.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use hurdle_layer::{Ask, Extent, Ids, Layer, Owners};
use hurdle_sys::process;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, OWN};

const VARIABLE: &str = "HURDLE_INSIDE";

/// What the process inside is told.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    /// The fd of the layer's directory, and where that is outside.
    layer: Option<(RawFd, String)>,
    /// The fd to ask on.
    ask: RawFd,
    /// The one outside has the layer's lock.
    held: bool,
    /// The host's groups that the user is a member of.
    member: Vec<u32>,
    /// Whose user namespace it came from: an environment that the user's own programs start passes variables on.
    outside: String,
}

/// What this process was told, if it is one inside.
fn told() -> Option<Told> {
    let told: Told = serde_json::from_str(&std::env::var(VARIABLE).ok()?).ok()?;
    (told.outside != namespace()).then_some(told)
}

fn namespace() -> String {
    let link = std::fs::read_link("/proc/self/ns/user").unwrap_or_default();
    link.to_string_lossy().into_owned()
}

/// Whether this is a process inside.
pub(crate) fn here() -> bool {
    told().is_some()
}

/// Whether the one outside has the layer's lock.
pub(crate) fn held() -> bool {
    told().is_some_and(|told| told.held)
}

/// The layer that this process inside was started for.
pub(crate) fn layer() -> Result<Option<Layer>, Failure> {
    let Some((fd, path)) = told().and_then(|told| told.layer) else { return Ok(None) };
    let path = hurdle_layer::text::unescape(&path).map(|bytes| PathBuf::from(OsString::from_vec(bytes)));
    let path = path.ok_or_else(|| Failure::new(VARIABLE, "the layer's path can't be read"))?;
    let fd = process::duplicate(fd)?;
    // By its path, where it can be had by that: then files can move from it to the host's, which are on the same mount.
    let number = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let same = path.metadata().ok().map(number) == std::fs::File::from(fd.try_clone()?).metadata().ok().map(number);
    Ok(Some(if same { Layer::open(&path)? } else { Layer::open_at(fd, &path)? }))
}

/// From where this process looks at owners.
pub(crate) fn owners() -> Result<Owners, Failure> {
    let Some(told) = told() else { return Ok(Owners::outside()) };
    let map = |file: &str| -> Result<Vec<Extent>, Failure> {
        let text = std::fs::read_to_string(file)?;
        let extent = |line: &str| {
            let mut words = line.split_whitespace().map(|word| word.parse::<u32>().ok());
            Some(Extent { inside: words.next()??, outside: words.next()??, count: words.next()?? })
        };
        let all: Option<Vec<Extent>> = text.lines().map(extent).collect();
        all.ok_or_else(|| Failure::new(file, "it can't be read"))
    };
    let own = Ids { users: map("/proc/self/uid_map")?, groups: map("/proc/self/gid_map")?, mirrored: true };
    let ask = UnixStream::from(process::duplicate(told.ask)?);
    Ok(Owners::inside(own, told.member, Some(Box::new(Asking(ask)))))
}

/// Whether only a process inside can work on a layer.
pub(crate) fn needed(layer: &Layer) -> Result<bool, Failure> {
    if here() || process::effective_ids().0 == 0 {
        return Ok(false);
    }
    let foreign = |layer: &Layer| layer.foreign().map_err(Failure::from);
    Ok(foreign(layer)? || layer.bases()?.iter().try_fold(false, |any, base| Ok::<_, Failure>(any || foreign(base)?))?)
}

/// Runs this very command inside, if only a process inside can do what it is to do.
pub(crate) fn instead(layer: &Layer) -> Result<Option<ExitCode>, Failure> {
    if needed(layer)? { again(Some(layer), std::env::args_os().skip(1), false).map(Some) } else { Ok(None) }
}

/// Runs `hurdle ARGUMENTS` inside, on a layer; how it ended.
pub(crate) fn again(
    layer: Option<&Layer>,
    arguments: impl IntoIterator<Item = OsString>,
    held: bool,
) -> Result<ExitCode, Failure> {
    let (mine, theirs) = UnixStream::pair()?;
    let dir: Option<OwnedFd> = layer.map(|layer| layer.as_fd().try_clone_to_owned()).transpose()?;
    let path = layer.map(|layer| hurdle_layer::text::path(layer.path())).unwrap_or_default();
    let told = Told {
        layer: dir.as_ref().map(|dir| (dir.as_raw_fd(), path)),
        ask: theirs.as_raw_fd(),
        held,
        member: process::groups()?,
        outside: namespace(),
    };
    let text = serde_json::to_string(&told).map_err(|e| Failure::new(VARIABLE, e))?;
    // All ids that the user has, where the layer has more than his own.
    let many = layer.is_none_or(|layer| layer.meta().ids.users.len() > 1);
    let auth = if many { "root,ids=range" } else { "root,ids=one" };
    let mut command = Command::new("/proc/self/exe");
    command.args(["run", "--fs", "share", "--net", "share", "--auth", auth]);
    for fd in [Some(told.ask), dir.as_ref().map(|dir| dir.as_raw_fd())].into_iter().flatten() {
        command.args(["--fd", &fd.to_string()]);
    }
    command.args(["--", "/proc/self/exe"]).args(arguments).env(VARIABLE, text);
    process::inheritable(theirs.as_fd())?;
    if let Some(dir) = &dir {
        process::inheritable(dir.as_fd())?;
    }
    let mut child = command.spawn().map_err(|e| Failure::new("/proc/self/exe", e))?;
    drop((theirs, dir));
    // Until the one inside has ended, or asks no more.
    answer(mine);
    let status = child.wait()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(OWN)))
}

/// Requests are a count and so many paths, each with its length before it; the answers are one byte (whether the owner is known)
/// and two ids each. All numbers are 32 bits, little-endian.
fn answer(mut stream: UnixStream) {
    let mut serve = || -> std::io::Result<()> {
        loop {
            let count = number(&mut stream)?;
            let mut answers = Vec::new();
            for _ in 0..count {
                let mut path = vec![0; usize::try_from(number(&mut stream)?).unwrap_or(0).min(1 << 20)];
                stream.read_exact(&mut path)?;
                let owner = Path::new(&OsString::from_vec(path)).symlink_metadata();
                let (known, uid, gid) = owner.map_or((0, 0, 0), |meta| (1, meta.uid(), meta.gid()));
                answers.push(known);
                answers.extend([uid.to_le_bytes(), gid.to_le_bytes()].concat());
            }
            stream.write_all(&answers)?;
        }
    };
    // It ends with the one who asks.
    let _ = serve();
}

fn number(stream: &mut UnixStream) -> std::io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

struct Asking(UnixStream);

impl Ask for Asking {
    fn owners(&mut self, paths: &[PathBuf]) -> Vec<Option<(u32, u32)>> {
        // So many at a time that neither side waits for the other to read.
        paths.chunks(64).flat_map(|part| self.ask(part).unwrap_or_else(|_| vec![None; part.len()])).collect()
    }
}

impl Asking {
    fn ask(&mut self, paths: &[PathBuf]) -> std::io::Result<Vec<Option<(u32, u32)>>> {
        let mut request = u32::try_from(paths.len()).unwrap_or(0).to_le_bytes().to_vec();
        for path in paths {
            let bytes = path.as_os_str().as_bytes();
            request.extend(u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
            request.extend(bytes);
        }
        self.0.write_all(&request)?;
        let mut answers = vec![0; paths.len() * 9];
        self.0.read_exact(&mut answers)?;
        let id = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(answers.chunks_exact(9).map(|one| (one[0] == 1).then(|| (id(&one[1..5]), id(&one[5..9])))).collect())
    }
}
