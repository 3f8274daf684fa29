//! What an environment holds while nothing is under way: it must come back to that, however much happened meanwhile.

use std::fmt;

use crate::process;
use crate::shell::Result;

/// How much memory a core, and its servers together, may gain, in KiB. What a run of any length stays below is no leak.
const GAIN: [i64; 2] = [1024, 2048];

/// Counts that have to come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Count {
    /// Processes outside: the core, init, servers and what they run apart.
    pub(crate) processes: usize,
    pub(crate) core_fds: usize,
    pub(crate) core_threads: usize,
    /// Those that pid 1 sees.
    pub(crate) mounts: usize,
    /// On the host: abstract sockets, mounts and transient files of this user.
    pub(crate) sockets: usize,
    pub(crate) host_mounts: usize,
    pub(crate) files: usize,
}

impl Count {
    /// True if nothing is more than it was.
    pub(crate) fn is_back(&self, base: &Count) -> bool {
        let pairs = self.all().into_iter().zip(base.all());
        pairs.into_iter().all(|(now, then)| now <= then)
    }

    fn all(&self) -> [usize; 7] {
        let Self { processes, core_fds, core_threads, mounts, sockets, host_mounts, files } = *self;
        [processes, core_fds, core_threads, mounts, sockets, host_mounts, files]
    }
}

/// Memory over time, in KiB: PSS of the core, and of its servers together, without pages of files, which others share now and then.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory(Vec<(f64, [u64; 2])>);

impl Memory {
    /// One more look, so many minutes after the start.
    pub(crate) fn note(&mut self, minutes: f64, core: i32, servers: &[i32]) -> Result {
        let servers: Result<Vec<u64>> = servers.iter().map(|pid| process::own_memory(*pid)).collect();
        self.0.push((minutes, [process::own_memory(core)?, servers?.iter().sum()]));
        Ok(())
    }

    /// Fails if it grew beyond the bound.
    pub(crate) fn check(&self) -> Result {
        let (Some((_, first)), Some((_, last))) = (self.0.first(), self.0.last()) else { return Ok(()) };
        for (which, limit) in GAIN.into_iter().enumerate() {
            if last[which] as i64 - first[which] as i64 > limit {
                let of = ["the core", "its servers"][which];
                return Err(format!("memory of {of} grew by more than {limit} KiB: {self}").into());
            }
        }
        Ok(())
    }

    /// Least squares: KiB per hour.
    fn slope(&self, which: usize) -> f64 {
        let points: Vec<(f64, f64)> = self.0.iter().map(|(at, all)| (*at, all[which] as f64)).collect();
        let count = points.len().max(1) as f64;
        let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
        let across: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
        let over: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
        if over > 0.0 { across / over * 60.0 } else { 0.0 }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some((_, first)), Some((_, last))) = (self.0.first(), self.0.last()) else { return write!(f, "-") };
        let of = |which: usize| format!("{} → {} KiB ({:+.0} KiB/h)", first[which], last[which], self.slope(which));
        write!(f, "core {}, servers {}", of(0), of(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_seen() {
        let steady = Memory((0..10).map(|n| (f64::from(n), [2000 + n as u64 % 3, 4000])).collect());
        steady.check().expect("it does not grow");
        assert!(steady.slope(0).abs() < 60.0 && steady.slope(1) == 0.0);
        let growing = Memory((0..10).map(|n| (f64::from(n), [2000 + 200 * n as u64, 4000])).collect());
        assert!(growing.check().is_err());
        assert!((growing.slope(0) - 12_000.0).abs() < 1.0);
    }
}
