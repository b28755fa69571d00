//! The scaling in virtual time: the same `decide` as in the controller, against loads and faults that would
//! take days, thousands of times. `vx11-controller simulate` runs it; docs/scaling.md shows its pictures.
#![allow(
    clippy::indexing_slicing,
    reason = "indices come from the simulation itself, never from input; a wrong one must stop it loudly"
)]

mod judge;
pub mod picture;
pub mod random;
pub mod run;
mod setting;
pub mod trace;
pub mod world;

use std::{
    fs, io,
    num::NonZeroUsize,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use self::trace::Trace;

/// What a number of runs came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Runs done.
    pub runs: u64,
    /// Decisions made in them.
    pub decisions: u64,
    /// Instances drained and removed.
    pub removed: u64,
    /// Drains taken back.
    pub cancelled: u64,
    /// Broken promises, with trace and seed to run them again.
    pub violations: Vec<String>,
}

/// Runs seeds `first` to `first + seeds - 1` on every core; a seed is always the same run.
#[must_use]
pub fn simulate(first: u64, seeds: u64) -> Summary {
    let (next, last) = (AtomicU64::new(first), first.saturating_add(seeds));
    let work = || {
        let mut part = Summary::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= last {
                return part;
            }
            part.add(seed, &run::run(trace_of(seed), seed));
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut summary = Summary::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(part) => summary.merge(part),
                // A panic in a run is a broken promise of the worst kind: it must not end as a good result.
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    summary.violations.sort();
    summary
}

/// The trace of a seed: each in turn.
fn trace_of(seed: u64) -> Trace {
    let index = usize::try_from(seed % (Trace::ALL.len() as u64)).unwrap_or(0);
    Trace::ALL[index]
}

impl Summary {
    fn add(&mut self, seed: u64, run: &run::Run) {
        self.runs += 1;
        self.decisions += run.decisions;
        self.removed += run.removed;
        self.cancelled += run.cancelled;
        let trace = trace_of(seed).name();
        let told = run.violations.iter().map(|violation| format!("seed {seed:>6} ({trace}) {violation}"));
        self.violations.extend(told);
    }

    fn merge(&mut self, part: Self) {
        self.runs += part.runs;
        self.decisions += part.decisions;
        self.removed += part.removed;
        self.cancelled += part.cancelled;
        self.violations.extend(part.violations);
    }
}

/// Writes the picture of every trace into `folder`.
///
/// # Errors
/// When the folder or a file cannot be written.
pub fn write_pictures(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for trace in Trace::ALL {
        let picture = picture::svg(trace, &run::portrait(trace).samples);
        fs::write(folder.join(format!("scaling-{}.svg", trace.name())), picture)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_promise_holds_in_every_trace() {
        // `make simulate` runs 10,000.
        let summary = simulate(0, 135);
        assert_eq!(summary.violations, Vec::<String>::new());
        assert!(summary.removed > 0 && summary.cancelled > 0, "nothing happened: {summary:?}");
    }

    #[test]
    fn a_seed_is_one_run_for_ever() {
        let [a, b] = [0, 1].map(|_| format!("{:?}", run::run(Trace::Spike, 42)));
        assert_eq!(a, b);
    }

    #[test]
    fn a_run_without_faults_keeps_its_promises_too() {
        for trace in Trace::ALL {
            assert_eq!(run::portrait(trace).violations, Vec::<String>::new(), "{trace:?}");
        }
    }
}
