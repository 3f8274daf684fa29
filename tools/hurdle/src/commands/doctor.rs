//! `hurdle doctor`: tries each kernel facility that hurdle needs, end to end and as the calling user, and says what to do about
//! what is missing.
//!
//! Versions and configuration files promise; only the attempt tells. Each check of [`checks`] runs in a process of its own,
//! all at once and with a deadline, so none can hang or harm the doctor. `mend` explains failures by what `host` knows of
//! the machine; `world`, `traps` and `files` hold the attempts themselves.

mod checks;
mod files;
mod host;
mod mend;
mod traps;
mod trouble;
mod world;

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hurdle_sys::probe::Trial;
use serde::Serialize;

use crate::failure::Failure;
use crate::output;
use checks::{CHECKS, Check};
use host::Host;
use mend::Diagnosis;
use trouble::{Outcome, Report, Step, Trouble};

/// How long a check may take.
const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// It works.
    Ok,
    /// It doesn't, and something of hurdle fails without it.
    Missing,
    /// It doesn't, and hurdle gets along.
    Optional,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Missing => "missing",
            Status::Optional => "optional",
        }
    }
}

/// One check, as it is printed.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    status: Status,
    needed_by: &'static str,
    /// Why it fails.
    why: Option<String>,
    /// The command that mends it.
    mend: Option<String>,
}

pub(crate) fn doctor(json: bool) -> Result<ExitCode, Failure> {
    let outcomes = run_all();
    let findings = findings(&outcomes, &Host::read());
    let missing = findings.iter().any(|finding| finding.status == Status::Missing);
    if json {
        output::json(&findings)?;
    } else {
        let mut text = Vec::new();
        print(&findings, &mut text)?;
        output::print(String::from_utf8_lossy(&text))?;
    }
    Ok(ExitCode::from(u8::from(missing)))
}

/// Runs all checks side by side.
fn run_all() -> Vec<Outcome> {
    let deadline = Instant::now() + DEADLINE;
    let start = |check: &Check| {
        Trial::start(|pipe| {
            let report = Report::new(pipe);
            report.end(&(check.run)(&report));
            0
        })
    };
    let trials: Vec<io::Result<Trial>> = CHECKS.iter().map(start).collect();
    let finish = |trial: io::Result<Trial>| match trial.and_then(|trial| trial.finish(deadline)) {
        Ok((said, ending)) => trouble::read(&said, ending),
        Err(error) => Err(Trouble::new(Step::Prepare, &error)),
    };
    trials.into_iter().map(finish).collect()
}

/// What to tell of each check. What fails for want of a user namespace is explained once.
fn findings(outcomes: &[Outcome], host: &Host) -> Vec<Finding> {
    let no_namespace = outcomes.first().is_some_and(Result::is_err);
    let finding = |(n, (check, outcome)): (usize, (&Check, &Outcome))| {
        let diagnosis = outcome.as_ref().err().map(|trouble| {
            let of_namespace = matches!(trouble.step, Step::Namespaces | Step::Map);
            let Diagnosis { why, mend } = mend::diagnose(trouble, host);
            let why = if n > 0 && no_namespace && of_namespace {
                format!("it needs {}, see there", CHECKS[0].name)
            } else {
                why
            };
            Diagnosis { why, mend }
        });
        let status = match (&diagnosis, check.required) {
            (None, _) => Status::Ok,
            (Some(_), true) => Status::Missing,
            (Some(_), false) => Status::Optional,
        };
        let (why, mend) = diagnosis.map_or((None, None), |d| (Some(d.why), d.mend));
        Finding { name: check.name, status, needed_by: check.needed_by, why, mend }
    };
    CHECKS.iter().zip(outcomes).enumerate().map(finding).collect()
}

fn print(findings: &[Finding], out: &mut impl io::Write) -> io::Result<()> {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    // One cause fails many checks, and one command mends them all: each is told once.
    let mut told: Vec<&str> = Vec::new();
    for finding in findings {
        writeln!(out, "{:8}  {:width$}  {}", finding.status.word(), finding.name, finding.needed_by)?;
        for (what, text) in [("why: ", &finding.why), ("mend:", &finding.mend)] {
            if let Some(text) = text.as_deref().filter(|text| !told.contains(text)) {
                writeln!(out, "          {what} {text}")?;
                told.push(text);
            }
        }
    }
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    match (count(Status::Missing), count(Status::Optional)) {
        (0, 0) => writeln!(out, "All that hurdle needs is here."),
        (0, optional) => writeln!(out, "All that hurdle needs is here; {optional} optional thing(s) are not."),
        (missing, _) => writeln!(out, "{missing} of {} are missing, and what needs them fails here.", findings.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(fail: impl Fn(&str) -> Option<Step>) -> Vec<Outcome> {
        let outcome = |check: &Check| match fail(check.name) {
            None => Ok(()),
            Some(step) => Err(Trouble { step, errno: 1, said: "Operation not permitted".into() }),
        };
        CHECKS.iter().map(outcome).collect()
    }

    fn printed(findings: &[Finding]) -> String {
        let mut text = Vec::new();
        print(findings, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn one_cause_is_mended_once() {
        let host = Host { uid: 1000, user_namespaces: true, userns_clone: Some(0), ..Host::default() };
        let needs =
            ["user-namespace", "fresh-proc", "network", "own-root", "trap-inside", "id-ranges", "fuse", "overlay"];
        let all = findings(&outcomes(|name| needs.contains(&name).then_some(Step::Namespaces)), &host);
        let text = printed(&all);
        assert_eq!(text.matches("sysctl -w kernel.unprivileged_userns_clone=1").count(), 1);
        assert!(text.contains("it needs user-namespace"));
        assert!(text.ends_with("5 of 15 are missing, and what needs them fails here.\n"), "{text}");
        // A program gets the command with each.
        assert!(all.iter().all(|f| f.mend.is_some() == needs.contains(&f.name)));
    }

    #[test]
    fn what_is_optional_fails_nothing() {
        let host = Host { uid: 1000, user_namespaces: true, ..Host::default() };
        let all = findings(&outcomes(|name| (name == "fuse").then_some(Step::FuseDevice)), &host);
        assert!(all.iter().all(|f| f.status != Status::Missing));
        assert!(printed(&all).ends_with("All that hurdle needs is here; 1 optional thing(s) are not.\n"));
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(json[0]["status"], "ok");
        assert_eq!(json[0]["why"], serde_json::Value::Null);
        assert_eq!(json[12]["status"], "optional");
    }
}
