//! What the kernel says about a process: processor time and memory, children included.

use std::{fs, time::Duration};

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
