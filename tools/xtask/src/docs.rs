//! Pages that are printed from the program's own tables: docs/compatibility.md from the syscall table, docs/performance.md
//! from what was measured last.

use std::path::Path;
use std::process::Command;

use crate::bench;
use crate::shell::{Result, output, root};
use crate::test::release_directory;

/// The chore; it expects a release build of `hurdle`.
pub(crate) fn run(check: bool) -> Result {
    let hurdle = release_directory()?.join("hurdle");
    let compatibility = output(Command::new(&hurdle).args(["docs", "compatibility"]))?;
    page("docs/compatibility.md", &compatibility, check)?;
    if let Some(performance) = bench::page()? {
        page("docs/performance.md", &performance, check)?;
    }
    Ok(())
}

fn page(name: &str, text: &str, check: bool) -> Result {
    let path = root().join(Path::new(name));
    if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if check {
        return Err(format!("{name} is out of date: cargo xtask docs").into());
    }
    std::fs::create_dir_all(root().join("docs"))?;
    std::fs::write(path, text)?;
    eprintln!("wrote {name}");
    Ok(())
}
