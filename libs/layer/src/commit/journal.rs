//! The journal of a commit: what is planned, then how far it has come. It lies in the layer, and its presence says that the
//! commit has not ended.
//!
//! ```text
//! {"version":1,"id":"…","keep":false,"boot":"…"}    the head
//! {"Put":{…}}                                       each step a line
//! end
//! 2000                                              steps that are done, when so many were; written now and then
//! 4711 synced                                       … and all of them are on disk
//! ```

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::AsFd as _;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::step::Step;
use crate::error::{At as _, Error, Result};
use crate::layer::{JOURNAL, Layer, read_file};

const VERSION: u32 = 1;
const TEMPORARY: &str = ".commit.journal.new";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Head {
    version: u32,
    /// Part of the names of what the commit makes on the host for a while.
    pub(crate) id: String,
    /// The entries stay in the layer: an environment uses it.
    pub(crate) keep: bool,
    /// The boot of the machine: after another one, only what was synced is known to be done.
    boot: String,
}

/// A commit on its way.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) head: Head,
    pub(crate) steps: Vec<Step>,
    /// Steps before this one are done.
    pub(crate) done: usize,
    file: File,
}

fn boot() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_string()
}

impl Journal {
    /// Writes the plan down, and returns when it is on disk.
    pub(crate) fn begin(layer: &Layer, keep: bool, steps: Vec<Step>) -> Result<Journal> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let id = format!("{:08x}", (now.as_nanos() as u64 ^ (u64::from(std::process::id()) << 40)) & 0xffff_ffff);
        let head = Head { version: VERSION, id, keep, boot: boot() };
        let write = || -> std::io::Result<File> {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = File::from(rustix::fs::openat(layer, TEMPORARY, flags, Mode::from_raw_mode(0o600))?);
            let mut out = BufWriter::with_capacity(256 * 1024, &file);
            serde_json::to_writer(&mut out, &head)?;
            out.write_all(b"\n")?;
            for step in &steps {
                serde_json::to_writer(&mut out, step)?;
                out.write_all(b"\n")?;
            }
            out.write_all(b"end\n")?;
            out.flush()?;
            drop(out);
            file.sync_data()?;
            rustix::fs::renameat(layer, TEMPORARY, layer, JOURNAL)?;
            // The layer of an environment that forgets is an fd that stands for a place alone (O_PATH).
            let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::fsync(rustix::fs::openat(layer, c".", directory, Mode::empty())?)?;
            Ok(file)
        };
        let file = write().at(|| format!("the commit's journal in {}", crate::text::path(layer.path())))?;
        Ok(Journal { head, steps, done: 0, file })
    }

    /// Reads that of a commit that was interrupted.
    pub(crate) fn resume(layer: &Layer) -> Result<Option<Journal>> {
        let path = layer.path().join(JOURNAL);
        let text = match read_file(layer.as_fd(), JOURNAL) {
            Ok(text) => text,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e).at(|| path.display().to_string()),
        };
        let bad = |why: String| Error::damaged(&path, why);
        let text = String::from_utf8(text).map_err(|e| bad(e.to_string()))?;
        let mut lines = text.lines();
        let head: serde_json::Value =
            serde_json::from_str(lines.next().unwrap_or_default()).map_err(|e| bad(e.to_string()))?;
        let found = head.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if found > u64::from(VERSION) {
            return Err(Error::Newer { path, found, known: VERSION });
        }
        let head: Head = serde_json::from_value(head).map_err(|e| bad(e.to_string()))?;
        if head.id.is_empty() || !head.id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad("its id is none".into()));
        }
        let mut steps = Vec::new();
        loop {
            match lines.next() {
                Some("end") => break,
                Some(line) => steps.push(serde_json::from_str::<Step>(line).map_err(|e| bad(e.to_string()))?),
                None => return Err(bad("it ends in the middle".into())),
            }
        }
        let same_boot = head.boot == boot();
        let mut done = 0;
        for line in lines {
            let (number, synced) = match line.strip_suffix(" synced") {
                Some(number) => (number, true),
                None => (line, false),
            };
            // The last line may have been cut off.
            if let (Ok(number), true) = (number.parse::<usize>(), synced || same_boot) {
                done = number.min(steps.len());
            }
        }
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(layer, JOURNAL, flags, Mode::empty()).at(|| path.display().to_string())?;
        let file = File::from(file);
        // Ends a line that was cut off.
        (&file).write_all(b"\n").at(|| path.display().to_string())?;
        Ok(Some(Journal { head, steps, done, file }))
    }

    /// Notes that all steps before `number` are done.
    pub(crate) fn note(&mut self, number: usize, synced: bool) -> Result<()> {
        self.done = number;
        let line = format!("{number}{}\n", if synced { " synced" } else { "" });
        self.file.write_all(line.as_bytes()).at(|| "the commit's journal".into())
    }

    /// The commit has ended.
    pub(crate) fn end(self, layer: &Layer) -> Result<()> {
        match rustix::fs::unlinkat(layer, JOURNAL, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e).at(|| "the commit's journal".into()),
        }
    }
}
