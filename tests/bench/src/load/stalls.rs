//! When the machine itself stood still. Beside the load a thread on each processor, which nothing on this machine keeps
//! waiting, wakes again and again; where it is late, a hypervisor had the processor. What was under way then says nothing
//! of a server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_setaffinity};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// That of the servers and that of the load.
const PROCESSORS: [usize; 2] = [0, 1];
/// Between two looks. One costs some microseconds.
const PERIOD: Duration = Duration::from_micros(250);
/// Above what the kernel needs to wake a thread.
const LATE: Duration = Duration::from_micros(200);

/// A span of time in which a processor stood still, and as much again, in which what had piled up was worked off.
type Stall = (Instant, Instant);

/// Watches both processors.
pub struct Watch {
    over: Arc<AtomicBool>,
    watchers: Vec<JoinHandle<Vec<Stall>>>,
}

impl Watch {
    /// Begins.
    pub fn begin() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let watchers = PROCESSORS
            .into_iter()
            .map(|processor| {
                let over = Arc::clone(&over);
                thread::spawn(move || watch(processor, &over))
            })
            .collect();
        Self { over, watchers }
    }

    /// The stalls since it began.
    pub fn end(self) -> Stalls {
        self.over.store(true, Ordering::Relaxed);
        let watched = self.watchers.into_iter();
        Stalls::of(
            watched.flat_map(|watcher| watcher.join().expect("a watcher that did not panic")).collect(),
        )
    }
}

/// Those of a measurement, in order and apart from each other.
#[derive(Default)]
pub struct Stalls(Vec<Stall>);

impl Stalls {
    fn of(mut all: Vec<Stall>) -> Self {
        all.sort_unstable();
        let mut apart: Vec<Stall> = Vec::new();
        for (begun, ended) in all {
            match apart.last_mut() {
                Some((_, end)) if begun <= *end => *end = ended.max(*end),
                _ => apart.push((begun, ended)),
            }
        }
        Self(apart)
    }

    /// Whether a processor stood still at some time between these.
    pub fn touch(&self, from: Instant, until: Instant) -> bool {
        let later = self.0.partition_point(|(_, ended)| *ended < from);
        self.0.get(later).is_some_and(|(begun, _)| *begun <= until)
    }
}

fn watch(processor: usize, over: &AtomicBool) -> Vec<Stall> {
    let mut only = CpuSet::new();
    only.set(processor);
    let before_all_else = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    if sched_setaffinity(None, &only).is_err()
        || set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, before_all_else).is_err()
    {
        // It could not tell the machine's pauses from the load's.
        eprintln!("no real-time priority (CAP_SYS_NICE): what the machine's pauses delay counts as well");
        return Vec::new();
    }
    let mut stalls = Vec::new();
    let mut awake = Instant::now();
    while !over.load(Ordering::Relaxed) {
        thread::sleep(PERIOD);
        let now = Instant::now();
        let slept = now - awake;
        if slept > PERIOD + LATE {
            stalls.push((awake, now + slept));
        }
        awake = now;
    }
    stalls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stall_touches_is_told_from_what_it_does_not() {
        let begun = Instant::now();
        let at = |millisecond: u64| begun + Duration::from_millis(millisecond);
        // One within another, two that overlap, one alone.
        let stalls = Stalls::of(vec![(at(50), at(60)), (at(10), at(40)), (at(15), at(20)), (at(35), at(45))]);
        for (from, until, touched) in [
            (0, 9, false),
            (0, 10, true),
            (21, 22, true),
            (41, 44, true),
            (46, 49, false),
            (46, 70, true),
            (61, 70, false),
        ] {
            assert_eq!(stalls.touch(at(from), at(until)), touched, "from {from} to {until}");
        }
        assert!(!Stalls::default().touch(at(0), at(100)));
    }
}
