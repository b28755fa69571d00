//! The scaling in virtual time: the same `decide` as in the controller, against loads and faults that would
//! take days, thousands of times. `vx11-controller simulate` runs it; docs/scaling.md shows its pictures.
#![allow(
    clippy::indexing_slicing,
    reason = "indices come from the simulation itself, never from input; a wrong one must stop it loudly"
)]

pub mod picture;
pub mod random;
pub mod run;
pub mod trace;
pub mod world;

use std::{fs, io, path::Path};

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

/// Runs seeds `first` to `first + seeds - 1`, the traces in turn.
#[must_use]
pub fn simulate(first: u64, seeds: u64) -> Summary {
    let mut summary = Summary::default();
    for (seed, trace) in (first..first.saturating_add(seeds)).zip(Trace::ALL.into_iter().cycle()) {
        let run = run::run(trace, seed);
        summary.runs += 1;
        summary.decisions += run.decisions;
        summary.removed += run.removed;
        summary.cancelled += run.cancelled;
        summary.violations.extend(
            run.violations.iter().map(|violation| format!("trace {} seed {seed}: {violation}", trace.name())),
        );
    }
    summary
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
