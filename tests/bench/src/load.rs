//! The load generators, each in a process of its own so that it can be pinned and its descriptors are its own, and the
//! way to talk to them.

mod latency;
pub mod requests;
mod stalls;
pub mod subscribers;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

pub use latency::Latency;

/// A generator of subscribers in a process of its own.
pub struct Subscribers {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Subscribers {
    /// Starts one on this processor.
    pub fn start(cpu: &str, options: &[String]) -> Self {
        let mut process = pinned(cpu, "subscribers", options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("taskset, from util-linux");
        let input = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { process, input, output }
    }

    /// Sends a command without waiting for what comes of it.
    pub fn send(&mut self, command: &subscribers::Command) {
        let line = serde_json::to_string(command).expect("JSON");
        writeln!(self.input, "{line}").expect("a generator that runs");
    }

    /// What came of the command before.
    pub fn report(&mut self) -> subscribers::Report {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a generator that runs");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("a generator said {line:?}: {error}"))
    }

    /// Does a command.
    pub fn run(&mut self, command: &subscribers::Command) -> subscribers::Report {
        self.send(command);
        self.report()
    }
}

impl Drop for Subscribers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends requests from a process of its own on this processor.
pub fn requests(cpu: &str, options: &[String]) -> requests::Report {
    let output = pinned(cpu, "requests", options).stderr(Stdio::inherit()).output().expect("taskset");
    serde_json::from_slice(&output.stdout).expect("a report")
}

fn pinned(cpu: &str, generator: &str, options: &[String]) -> Command {
    let mut command = Command::new("taskset");
    let program = std::env::current_exe().expect("the path of this program");
    command.args(["-c", cpu]).arg(program).arg(generator).args(options);
    command
}
