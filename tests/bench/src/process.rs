//! What the kernel says about a process: processor time and memory, children included; and about the machine.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

/// Hundredths of a second that a hypervisor has kept the processors from this machine, all of them together.
pub fn stolen() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let mut fields = text.lines().next().unwrap_or_default().split_whitespace();
    fields.nth(8).and_then(|field| field.parse().ok()).unwrap_or_default()
}

/// Waits until a second passes in which a hypervisor takes nothing, at most two minutes: a virtual machine that was busy
/// may have used up what it is entitled to.
pub fn rest() {
    let begun = Instant::now();
    loop {
        let before = stolen();
        sleep(Duration::from_secs(1));
        if stolen() == before || begun.elapsed() > Duration::from_mins(2) {
            return;
        }
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
