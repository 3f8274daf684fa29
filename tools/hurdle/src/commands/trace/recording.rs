//! A recording: a line of JSON that says what it is, and one for each event.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Line;
use crate::failure::Failure;

/// Of what is written here. Fields may be added to an event without a new one; a change of their meaning needs it.
const VERSION: u32 = 1;
/// No line that was recorded is longer.
const LONGEST: u64 = 64 << 10;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    hurdle_trace: u32,
    env: String,
    begun_us: u64,
}

/// What is being recorded.
pub(super) struct Recorder<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Recorder<'a> {
    pub(super) fn create(path: &'a Path, env: &str, begun_us: u64) -> Result<Recorder<'a>, Failure> {
        let file = File::create(path).map_err(|e| Failure::new(path.display(), e))?;
        let mut recorder = Recorder { path, file };
        recorder.put(&Head { hurdle_trace: VERSION, env: env.into(), begun_us })?;
        Ok(recorder)
    }

    pub(super) fn write(&mut self, line: &Line) -> Result<(), Failure> {
        self.put(line)
    }

    /// In one piece, so that who is killed leaves whole lines.
    fn put(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_vec(value).map_err(|e| Failure::new(self.path.display(), e))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(|e| Failure::new(self.path.display(), e))
    }
}

/// A recording that is read.
pub(super) struct Reader<'a> {
    path: &'a Path,
    lines: BufReader<File>,
    number: u64,
    pub(super) begun_us: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Reader<'a>, Failure> {
        let file = File::open(path).map_err(|e| Failure::new(path.display(), e))?;
        let mut reader = Reader { path, lines: BufReader::new(file), number: 0, begun_us: 0 };
        let first = reader.line()?.unwrap_or_default();
        let version = serde_json::from_slice::<serde_json::Value>(&first).ok();
        match version.as_ref().and_then(|head| head["hurdle_trace"].as_u64()) {
            Some(version) if version > u64::from(VERSION) => {
                let why =
                    format!("a newer hurdle recorded it (version {version}; this one reads {VERSION}): use that one");
                Err(Failure::new(path.display(), why))
            }
            Some(_) => {
                let head: Head = serde_json::from_slice(&first).map_err(|e| reader.broken(e))?;
                reader.begun_us = head.begun_us;
                Ok(reader)
            }
            None => Err(Failure::new(path.display(), "it is no recording of `hurdle trace --record`")),
        }
    }

    /// The next line; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line>, Failure> {
        let Some(text) = self.line()? else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(|e| self.broken(e))
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut text = Vec::new();
        let got = (&mut self.lines).take(LONGEST).read_until(b'\n', &mut text);
        got.map_err(|e| Failure::new(self.path.display(), e))?;
        self.number += 1;
        Ok((!text.is_empty()).then_some(text))
    }

    fn broken(&self, why: impl std::fmt::Display) -> Failure {
        let hint = "it was cut, or changed by somebody; what is above was whole";
        Failure::new(self.path.display(), format!("line {} can't be read ({why}): {hint}", self.number))
    }
}
