//! What the demo's peers measure, as it crosses the pipe to the demo, and how it is printed.

use serde::{Deserialize, Serialize};

use crate::output::Table;

/// What one client and one server on 127.0.0.1 reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Speed {
    /// Median of a 1-byte round trip, in microseconds.
    pub(crate) latency_us: f64,
    /// One way, in Gbit/s.
    pub(crate) gbit_per_s: f64,
    /// Connect, one byte there and back, close: how often in a second.
    pub(crate) connections_per_s: f64,
}

/// Both ways in which the two are placed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bench {
    /// Where the scheduler puts them.
    pub(crate) free: Speed,
    /// Both on one CPU: the cost of the mechanism alone.
    pub(crate) one_cpu: Speed,
}

/// What went on since the last time it was asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    /// On the connection that stays.
    pub(crate) round_trips: u64,
    /// The longest of them, in microseconds.
    pub(crate) worst_round_trip_us: u64,
    /// Made anew, used and closed.
    pub(crate) connections: u64,
    /// How often the server had to listen anew, since its listener was in another network.
    pub(crate) listened_anew: u64,
    /// The longest connection, from connect to close, in microseconds.
    pub(crate) worst_connection_us: u64,
    /// Operations of either kind that failed.
    pub(crate) failed: u64,
    /// What the first failure was.
    pub(crate) failure: Option<String>,
}

impl Traffic {
    /// Both together.
    pub(crate) fn add(&mut self, other: &Traffic) {
        self.round_trips += other.round_trips;
        self.worst_round_trip_us = self.worst_round_trip_us.max(other.worst_round_trip_us);
        self.connections += other.connections;
        self.listened_anew += other.listened_anew;
        self.worst_connection_us = self.worst_connection_us.max(other.worst_connection_us);
        self.failed += other.failed;
        if self.failure.is_none() {
            self.failure.clone_from(&other.failure);
        }
    }
}

/// One swap, and what the programs saw of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Swap {
    pub(crate) from: String,
    pub(crate) to: String,
    /// How long the core held traps and messages back, in microseconds.
    pub(crate) pause_us: u64,
    pub(crate) traffic: Traffic,
}

/// The whole demo.
#[derive(Debug, Serialize)]
pub(crate) struct Demo {
    pub(crate) share: Bench,
    pub(crate) local: Bench,
    pub(crate) swaps: Vec<Swap>,
    /// Swaps that were refused, and why.
    pub(crate) refused: Vec<String>,
    /// All that went on in the environment that was swapped.
    pub(crate) traffic: Traffic,
    pub(crate) seconds: f64,
}

impl Demo {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("A client and a server on 127.0.0.1, two processes:\n\n");
        let mut table = Table::new(&["", "--net share", "--net local", "local against share"]);
        for (place, share, local) in
            [("", self.share.free, self.local.free), (", one CPU", self.share.one_cpu, self.local.one_cpu)]
        {
            let mut row = |what: &str, unit: &str, share: f64, local: f64, ratio: f64| {
                table.row(vec![
                    format!("{what}{place}"),
                    number(share, unit),
                    number(local, unit),
                    format!("{ratio:.2} ×"),
                ]);
            };
            // Less time is more speed.
            row("round trip", "µs", share.latency_us, local.latency_us, share.latency_us / local.latency_us);
            row("throughput", "Gbit/s", share.gbit_per_s, local.gbit_per_s, local.gbit_per_s / share.gbit_per_s);
            let (a, b) = (share.connections_per_s, local.connections_per_s);
            row("connections", "/s", a, b, b / a);
        }
        text.push_str(&table.to_string());
        text.push_str(
            "\nA server is swapped while one connection is busy all the time and a new one is made every 10 ms:\n\n",
        );
        let mut table = Table::new(&["SWAP", "TRAFFIC WAITED", "LONGEST ROUND TRIP", "LONGEST CONNECTION", "FAILED"]);
        for swap in &self.swaps {
            table.row(vec![
                format!("net={} to net={}", swap.from, swap.to),
                crate::output::micros(swap.pause_us),
                crate::output::micros(swap.traffic.worst_round_trip_us),
                crate::output::micros(swap.traffic.worst_connection_us),
                swap.traffic.failed.to_string(),
            ]);
        }
        text.push_str(&table.to_string());
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        for why in &self.refused {
            line(format!("refused: {why}"));
        }
        let t = &self.traffic;
        line(format!(
            "\n{} swaps, {} round trips, {} connections, {} failed. {:.1} s in all.",
            self.swaps.len(),
            t.round_trips,
            t.connections,
            t.failed,
            self.seconds
        ));
        if t.listened_anew > 0 {
            line(format!(
                "A listener stays in the network it was made in: the server listened anew {} times.",
                t.listened_anew
            ));
        }
        if let Some(failure) = &t.failure {
            line(format!("the first failure: {failure}"));
        }
        text
    }
}

/// Three digits are enough for a number from a machine that others use too.
fn number(value: f64, unit: &str) -> String {
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// The middle of what was measured; 0 of nothing.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_keep_the_worst_and_the_first_failure() {
        let part = |trips, worst, failure: Option<&str>| Traffic {
            round_trips: trips,
            worst_round_trip_us: worst,
            connections: 1,
            listened_anew: 1,
            worst_connection_us: 2 * worst,
            failed: u64::from(failure.is_some()),
            failure: failure.map(str::to_string),
        };
        let mut all = Traffic::default();
        for next in [part(5, 10, None), part(7, 30, Some("first")), part(1, 20, Some("second"))] {
            all.add(&next);
        }
        assert_eq!(
            all,
            Traffic { round_trips: 13, connections: 3, listened_anew: 3, failed: 2, ..part(0, 30, Some("first")) }
        );
    }

    #[test]
    fn a_median_is_of_what_was_measured() {
        assert_eq!(median(&mut [3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(&mut []), 0.0);
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(number(5.678, "µs"), "5.68 µs");
        assert_eq!(number(56.78, "µs"), "56.8 µs");
        assert_eq!(number(5678.9, "/s"), "5679 /s");
    }
}
