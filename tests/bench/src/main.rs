//! Measures the backend beside its peers, all in one run, and prints the figures as ratios. `make bench-backend` runs
//! it; the load generators are this same program in processes of their own.

mod backend;
mod load;
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
    Backend(backend::Options),
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
        What::Subscribers(options) => load::subscribers::run(options),
        What::Requests(options) => load::requests::run(&options),
    }
}
