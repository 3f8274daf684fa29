//! `hurdle demo`: what hurdle does, in a few seconds, with nothing but this binary.
//!
//! It launches three environments by running itself. In two of them a client and a server measure the network, under `share`
//! and under `local`. In the third they keep talking while the demo swaps the net server under them. `peer` holds the programs
//! that run inside, `part` a `hurdle` that the demo runs, `report` the numbers.

mod part;
mod peer;
mod report;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hurdle_proto::spec::Spec;
use hurdle_wire::CallError;

use crate::commands::look;
use crate::failure::Failure;
use crate::output;
use crate::progress;
use part::Part;
use report::{Bench, Demo, Swap, Traffic};

/// This program, seen from any root.
const SELF: &str = "/proc/self/exe";
/// There and back, twice.
const SWAPS: [&str; 4] = ["share", "local", "share", "local"];
/// How much traffic is seen after each swap.
const AFTER: Duration = Duration::from_millis(150);

pub(crate) fn demo(json: bool) -> Result<ExitCode, Failure> {
    let start = Instant::now();
    let say = |what: &str| {
        if std::io::stderr().is_terminal() {
            progress::line(what);
        }
    };
    say("1 of 3: a client and a server under --net share …");
    let share = bench("share")?;
    say("2 of 3: the same under --net local …");
    let local = bench("local")?;
    say("3 of 3: a live swap …");
    let result = swaps();
    say("");
    let (swaps, refused, traffic) = result?;
    let demo = Demo { share, local, swaps, refused, traffic, seconds: start.elapsed().as_secs_f64() };
    let well = demo.traffic.failed == 0 && !demo.swaps.is_empty();
    if json {
        output::json(&demo)?;
    } else {
        output::print(demo.text())?;
    }
    Ok(ExitCode::from(u8::from(!well)))
}

/// One of the programs that run inside.
pub(crate) fn peer(arguments: &[String]) -> Result<ExitCode, Failure> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    peer::run(&arguments).map_err(|e| Failure::new(format!("demo-peer {}", arguments.join(" ")), e))?;
    Ok(ExitCode::SUCCESS)
}

fn bench(net: &str) -> Result<Bench, Failure> {
    Part::start(&["run", "--net", net, "--", SELF, "demo-peer", "bench"])?.next()
}

/// Swaps the net server of an environment whose programs keep talking. What can't be swapped to by this kernel or this
/// release is told, and the server is then replaced by another of its kind.
fn swaps() -> Result<(Vec<Swap>, Vec<String>, Traffic), Failure> {
    let name = format!("demo-{}", std::process::id());
    let mut part =
        Part::start(&["run", "--net", "local", "--swappable", "--name", &name, "--", SELF, "demo-peer", "live"])?;
    let _: Traffic = part.next()?;
    let core = look::find(&name)?;
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    let mut all = Traffic::default();
    for target in SWAPS {
        // What came before is not of this swap.
        part.ask()?;
        all.add(&part.next()?);
        let swap = |to: &str| core.swap("net".to_string(), Spec::plain(to)).wait();
        let swapped = match swap(target) {
            Err(CallError::Refused(why)) if target != "local" => {
                if !refused.contains(&why.reason) {
                    refused.push(why.reason);
                }
                swap("local")
            }
            other => other,
        };
        let swapped = swapped.map_err(|e| Failure::call(&name, &e))?;
        std::thread::sleep(AFTER);
        part.ask()?;
        let traffic: Traffic = part.next()?;
        all.add(&traffic);
        let (from, to) = (swapped.from.to_string(), swapped.to.to_string());
        done.push(Swap { from, to, pause_us: swapped.pause_us, traffic });
    }
    all.add(&part.last()?);
    Ok((done, refused, all))
}
