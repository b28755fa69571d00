//! A network namespace with a server or clients in it, behind a line whose packets can be dropped for real: no close
//! and no refusal gets through, as when a node or a network vanishes.

use std::{
    net::Ipv4Addr,
    os::unix::fs::MetadataExt,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

pub(crate) struct Namespace {
    name: String,
    address: Ipv4Addr,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vx11-{}-{number}", std::process::id());
        let cable = format!("vx{}-{number}", std::process::id());
        // A network of four addresses for each, from a block that is for such tests (RFC 2544).
        let network = u32::from(Ipv4Addr::new(198, 18, 0, 0));
        let network = network + (std::process::id().wrapping_mul(7).wrapping_add(number) & 0x7fff) * 4;
        let (near, far) = (Ipv4Addr::from(network + 1), Ipv4Addr::from(network + 2));
        let namespace = Self { name, address: far };
        let name = namespace.name.as_str();
        run(&["ip", "netns", "add", name]);
        run(&["ip", "link", "add", &cable, "type", "veth", "peer", "name", "line", "netns", name]);
        run(&["ip", "address", "add", &format!("{near}/30"), "dev", &cable]);
        run(&["ip", "link", "set", &cable, "up"]);
        run(&["ip", "-n", name, "address", "add", &format!("{far}/30"), "dev", "line"]);
        run(&["ip", "-n", name, "link", "set", "line", "up"]);
        run(&["ip", "-n", name, "link", "set", "lo", "up"]);
        namespace
    }

    /// Where a server inside is reached.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where this side of the line is reached from inside.
    pub(crate) fn near_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.address) - 1)
    }

    /// A command that runs inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = privileged();
        command.args(["ip", "netns", "exec", &self.name, program]);
        command
    }

    /// From now on every packet is dropped, in both directions.
    pub(crate) fn drop_packets(&self) {
        let chain = |name: &str, hook: &str| {
            format!("add chain inet vx11 {name} {{ type filter hook {hook} priority 0; policy drop; }};")
        };
        let rules = format!("add table inet vx11; {}{}", chain("in", "input"), chain("out", "output"));
        run(&["ip", "netns", "exec", &self.name, "nft", &rules]);
    }

    /// From now on packets pass again.
    pub(crate) fn pass_packets(&self) {
        run(&["ip", "netns", "exec", &self.name, "nft", "delete table inet vx11"]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What runs inside as root outlives the death of the `sudo` that started it.
        if let Ok(inside) = privileged().args(["ip", "netns", "pids", &self.name]).output() {
            for process in String::from_utf8_lossy(&inside.stdout).split_whitespace() {
                let _ = privileged().args(["kill", "-KILL", process]).status();
            }
        }
        let _ = privileged().args(["ip", "netns", "delete", &self.name]).status();
    }
}

/// Runs the command that its arguments name, with the rights that a namespace needs.
fn privileged() -> Command {
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command = Command::new(if is_root { "env" } else { "sudo" });
    if !is_root {
        command.arg("-n");
    }
    command
}

fn run(arguments: &[&str]) {
    let line = arguments.join(" ");
    let remedy = "this test drops packets in a network namespace: run it as root or with a sudo that asks for \
                  no password, and apt-get install iproute2 nftables";
    let output = privileged().args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}; {remedy}"));
    assert!(output.status.success(), "{line}: {}; {remedy}", String::from_utf8_lossy(&output.stderr));
}
