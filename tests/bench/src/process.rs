//! What the kernel says about a process: processor time and memory, children included; and about the machine.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

/// Hundredths of a second that a hypervisor has kept the processors from this machine, all of them together.
fn stolen() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let mut fields = text.lines().next().unwrap_or_default().split_whitespace();
    fields.nth(8).and_then(|field| field.parse().ok()).unwrap_or_default()
}

/// Waits until some seconds pass in which a hypervisor takes nothing, at most half a minute: a virtual machine that was busy
/// may have used up what it is entitled to.
pub fn rest() {
    let begun = Instant::now();
    loop {
        let before = stolen();
        sleep(Duration::from_secs(5));
        if stolen() == before || begun.elapsed() > Duration::from_secs(30) {
            return;
        }
    }
}

/// Keeps idle processors of a virtual machine awake for a moment before they are given back to the hypervisor, as hosts that
/// are tuned for latency do: to wake one takes longer than what a request asks of it. Undone when it is dropped. Not for a
/// measurement of processor time: what an idle processor does may slow the other, and a server that is awake takes
/// fewer requests at once.
pub struct Awake {
    before: String,
}

const POLLED_FOR: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";

impl Awake {
    /// None where the kernel does not poll for its guest, as on a machine that is not virtual, or where this user may
    /// not ask for it.
    pub fn keep() -> Option<Self> {
        let before = fs::read_to_string(POLLED_FOR).ok()?;
        fs::write(POLLED_FOR, "200000").ok()?;
        Some(Self { before })
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        let _ = fs::write(POLLED_FOR, &self.before);
    }
}

/// Processor time of a process and its children, as exact as the scheduler counts it.
pub fn cpu(process: u32) -> Duration {
    family(process).into_iter().map(cpu_of).sum()
}

/// Processor time of a process without its children.
pub fn cpu_of(process: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// Memory that is a process's own, with its share of what it shares, children included; bytes.
pub fn memory(process: u32) -> u64 {
    let pss = |process| {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or_default()
            * 1024
    };
    family(process).into_iter().map(pss).sum()
}

fn family(process: u32) -> Vec<u32> {
    let mut all = vec![process];
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        all.extend(family(child));
    }
    all
}
