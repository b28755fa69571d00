//! Measures the backend and the operator beside their peers and floors, and prints the figures. `make bench` runs it; the load generators are this same program in processes of their own.

mod backend;
mod load;
mod operator;
mod options;
mod peers;
mod process;
mod report;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The backend: streams, tokens, memory, beside a floor, nchan, axum and FastAPI.
    Backend(options::Options<backend::Section>),
    /// The operator on the test cluster: what it costs, how soon it acts, what streams feel of it.
    Operator(options::Options<operator::Section>),
    /// Opens streams and checks what arrives; takes commands as JSON lines. Started by the others.
    #[command(hide = true)]
    Subscribers(load::subscribers::Options),
    /// Sends requests at a rate, or as fast as they are answered. Started by the others.
    #[command(hide = true)]
    Requests(load::requests::Options),
}

fn main() {
    match Arguments::parse().what {
        What::Backend(options) => backend::run(&options),
        What::Operator(options) => operator::run(&options),
        What::Subscribers(options) => load::subscribers::run(options),
        What::Requests(options) => load::requests::run(&options),
    }
}
