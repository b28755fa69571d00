//! Subcommands around the scaling: `plan`, `why`, `replay`, `simulate`. They print and change nothing.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use thiserror::Error;
use vx11_crds::VX11Cluster;

use crate::{
    names,
    scale::{
        journal::{JOURNAL_KEY, Journal},
        plan::{parse_dollars, plan},
        spec::{self, PolicyError},
    },
    simulate,
};

/// Largest file that is read: twice what a journal may have, and far more than a manifest.
const MOST_BYTES: u64 = 2 << 20;

/// Why a subcommand came to nothing.
#[derive(Debug, Error)]
pub enum CommandError {
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is too large to be what it should be.
    #[error("{} is larger than {MOST_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// A file holds no VX11Cluster.
    #[error("{}: no VX11Cluster in it: {problem}", path.display())]
    NoCluster {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A field has a value that cannot be carried out.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A text is no journal.
    #[error("{name} is no journal of decisions: {error}")]
    NoJournal {
        /// Where it came from.
        name: String,
        /// Why.
        error: serde_json::Error,
    },
    /// No journal exists.
    #[error("{0} has no journal of decisions yet: it begins with the first decision of the controller")]
    NothingDecided(String),
    /// The argument does not name a cluster.
    #[error("`{0}` does not name a cluster; write NAMESPACE/NAME")]
    NoName(String),
    /// The API server cannot be reached or refused.
    #[error("{0}")]
    Api(#[from] Box<kube::Error>),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    /// The output cannot be put into JSON.
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Plan a cluster without one: instances, resources, Redis memory and cost for a load.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Manifest with the VX11Cluster; `-` reads standard input.
    #[arg(short = 'f', long = "file")]
    file: PathBuf,
    /// Clients to plan for. Default: `spec.autoscaling.expectedClients`.
    #[arg(long)]
    clients: Option<u64>,
    /// Issuances a second to plan for. Default: `spec.autoscaling.expectedIssuancesPerSecond`.
    #[arg(long)]
    issuance: Option<u64>,
    /// It must survive the loss of an instance.
    #[arg(long)]
    availability: bool,
    /// Dollars for one instance-hour.
    #[arg(long, default_value = "0.05", value_parser = dollars)]
    cost: u64,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Print the last decisions about a cluster's count, each with its steps.
#[derive(Args, Debug)]
pub struct WhyArgs {
    /// The cluster, as NAMESPACE/NAME.
    cluster: String,
    /// `json` prints what `replay` reads.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Decide the entries of a journal again and compare every number.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// A journal, as `why --output json` prints it; `-` reads standard input.
    file: PathBuf,
}

/// Run the scaling in virtual time and check its promises.
#[derive(Args, Debug)]
pub struct SimulateArgs {
    /// How many runs.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first seed; to see one run again: `--first SEED --seeds 1`.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Also write a picture of every trace into this folder.
    #[arg(long)]
    pictures: Option<PathBuf>,
}

fn dollars(text: &str) -> Result<u64, String> {
    parse_dollars(text).ok_or_else(|| "write dollars such as 0.05".to_owned())
}

/// `plan`.
pub fn run_plan(arguments: &PlanArgs) -> Result<ExitCode, CommandError> {
    let cluster = read_cluster(&arguments.file)?;
    let mut request = spec::plan_request(&cluster.spec, arguments.clients, arguments.issuance)?;
    request.availability |= arguments.availability;
    request.cost = arguments.cost;
    let plan = plan(&request);
    match arguments.output {
        Output::Table => print(&plan.table())?,
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&plan)?))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `why`.
pub async fn run_why(arguments: &WhyArgs) -> Result<ExitCode, CommandError> {
    let no_name = || CommandError::NoName(arguments.cluster.clone());
    let (namespace, name) = arguments.cluster.split_once('/').ok_or_else(no_name)?;
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(no_name());
    }
    let client = Client::try_default().await.map_err(Box::new)?;
    let api = Api::<ConfigMap>::namespaced(client, namespace);
    let map = api.get_opt(&names::scaling(name)).await.map_err(Box::new)?;
    let json = map
        .and_then(|map| map.data)
        .and_then(|mut data| data.remove(JOURNAL_KEY))
        .ok_or_else(|| CommandError::NothingDecided(arguments.cluster.clone()))?;
    let journal = parse_journal(&arguments.cluster, &json)?;
    match arguments.output {
        Output::Json => print(&format!("{json}\n"))?,
        Output::Table => print(&journal.tell())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `replay`.
pub fn run_replay(arguments: &ReplayArgs) -> Result<ExitCode, CommandError> {
    let journal = parse_journal(&arguments.file.display().to_string(), &read(&arguments.file)?)?;
    let mismatches = journal.replay()?;
    for mismatch in &mismatches {
        for (field, recorded, replayed) in &mismatch.fields {
            print(&format!("decision {}: {field} is {recorded}, replayed {replayed}\n", mismatch.index + 1))?;
        }
    }
    let all = journal.entries().count();
    print(&format!("{} of {all} decisions come out as recorded\n", all - mismatches.len()))?;
    Ok(if mismatches.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `simulate`.
pub fn run_simulate(arguments: &SimulateArgs) -> Result<ExitCode, CommandError> {
    let began = std::time::Instant::now();
    let summary = simulate::simulate(arguments.first, arguments.seeds);
    for violation in &summary.violations {
        print(&format!("{violation}\n"))?;
    }
    print(&format!(
        "{} runs, {} decisions, {} instances drained and removed, {} drains taken back: {} promises broken ({:.1} s)\n",
        summary.runs,
        summary.decisions,
        summary.removed,
        summary.cancelled,
        summary.violations.len(),
        began.elapsed().as_secs_f64()
    ))?;
    if let Some(folder) = &arguments.pictures {
        simulate::write_pictures(folder)
            .map_err(|error| CommandError::File { path: folder.clone(), error })?;
    }
    Ok(if summary.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_cluster(path: &Path) -> Result<VX11Cluster, CommandError> {
    let text = read(path)?;
    let no_cluster = |problem: String| CommandError::NoCluster { path: path.to_owned(), problem };
    let mut others = 0;
    for document in serde_yaml::Deserializer::from_str(&text) {
        let value = <serde_yaml::Value as serde::Deserialize>::deserialize(document)
            .map_err(|error| no_cluster(error.to_string()))?;
        if value.get("kind").and_then(serde_yaml::Value::as_str) == Some("VX11Cluster") {
            return serde_path_to_error::deserialize(value).map_err(|error| no_cluster(error.to_string()));
        }
        others += 1;
    }
    Err(no_cluster(format!("{others} documents of other kinds")))
}

fn parse_journal(name: &str, json: &str) -> Result<Journal, CommandError> {
    Journal::parse(json).map_err(|error| CommandError::NoJournal { name: name.to_owned(), error })
}

fn read(path: &Path) -> Result<String, CommandError> {
    let failed = |error| CommandError::File { path: path.to_owned(), error };
    let mut text = String::new();
    let bytes = if path == Path::new("-") {
        io::stdin().lock().take(MOST_BYTES + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).map_err(failed)?.take(MOST_BYTES + 1).read_to_string(&mut text)
    }
    .map_err(failed)?;
    if u64::try_from(bytes).unwrap_or(u64::MAX) > MOST_BYTES {
        return Err(CommandError::TooLarge(path.to_owned()));
    }
    Ok(text)
}

/// Prints, and is content when the reader has seen enough.
fn print(text: &str) -> Result<(), CommandError> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
