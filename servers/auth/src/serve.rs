//! The auth server's process: it tells who is who.

use std::path::Path;
use std::process::ExitCode;

use hurdle_proto::auth::{Ids, MapLine, Maps, auth};
use hurdle_server::{Borrowed, ESRCH, OVERFLOW_ID, Reads, Target, confine_files, drop_capabilities, inside};
use hurdle_wire::{Context, Refused};

/// Serves until the right is given back.
pub fn serve() -> ExitCode {
    hurdle_server::run(|borrowed: &mut Borrowed| {
        drop_capabilities()?;
        confine_files(Reads::Below(&[Path::new("/proc")]), &[])?;
        Ok(auth::service(Identities { init: borrowed.target()? }))
    })
}

struct Identities {
    init: Target,
}

impl Identities {
    fn map(&self, file: &str) -> Result<Vec<MapLine>, Refused> {
        let line = |(inside, outside, count)| MapLine { inside, outside, count };
        Ok(self.init.map(file)?.into_iter().map(line).collect())
    }
}

impl auth::Server for Identities {
    async fn maps(&self, _: &Context) -> Result<Maps, Refused> {
        Ok(Maps { users: self.map("uid_map")?, groups: self.map("gid_map")? })
    }

    async fn ids(&self, _: &Context, pid: i32) -> Result<Ids, Refused> {
        let process = self.init.processes()?.into_iter().find(|process| process.pid == pid);
        let process = process.ok_or_else(|| Refused::new(ESRCH, format!("no process {pid} inside")))?;
        let numbers = |key: &str| -> Vec<u32> {
            process.field(key).split_whitespace().map_while(|word| word.parse().ok()).collect()
        };
        // The fields are: real, effective, saved, file system.
        let effective = |key: &str| numbers(key).get(1).copied().unwrap_or(OVERFLOW_ID);
        let outer_gid = effective("Gid");
        Ok(Ids {
            pid,
            uid: process.uid,
            gid: inside(&self.init.map("gid_map")?, outer_gid),
            outer_uid: effective("Uid"),
            outer_gid,
            outer_groups: numbers("Groups"),
        })
    }
}
