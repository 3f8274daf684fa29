//! `layer.json`: what a layer is.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::Ids;

/// The latest version of a layer that this crate knows, and the one that it makes.
pub const VERSION: u32 = 1;

/// What stands in a layer's `layer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The version of all that lies in the directory.
    pub version: u32,
    /// When it was made, in nanoseconds since 1970.
    pub created: u64,
    /// The ids of the environment.
    pub ids: Ids,
    /// The layer below it, above the host: a name beside this one, or an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// It is a copy of another layer, so that the times at which its files came to be say nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copied: bool,
    /// What it overlays; `/` first.
    #[serde(default)]
    pub mounts: Vec<Mount>,
}

/// One file system that a layer overlays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is on the host.
    #[serde(with = "crate::text")]
    pub path: PathBuf,
    /// The directory of the layer that holds its `upper` and `work`.
    pub dir: String,
}

impl Meta {
    /// A layer made now.
    pub fn new(ids: Ids) -> Meta {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Meta { version: VERSION, created, ids, base: None, copied: false, mounts: Vec::new() }
    }

    /// The text of a `layer.json`.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Reads `text`, which stands in `path`. The version is looked at before all else, since a later one may mean the rest
    /// otherwise.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Meta> {
        let bad = |e: serde_json::Error| Error::damaged(path, format!("layer.json can't be read: {e}"));
        let value: serde_json::Value = serde_json::from_slice(text).map_err(bad)?;
        let found = value.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if found > u64::from(VERSION) {
            return Err(Error::Newer { path: path.into(), found, known: VERSION });
        }
        let meta: Meta = serde_json::from_value(value).map_err(bad)?;
        for mount in &meta.mounts {
            // A name, so that nothing in the file leads out of the layer.
            if mount.dir.is_empty()
                || mount.dir.starts_with('.')
                || mount.dir.contains('/')
                || !mount.path.is_absolute()
            {
                return Err(Error::damaged(path, format!("layer.json names a bad mount: {mount:?}")));
            }
        }
        Ok(meta)
    }
}
