//! Logs: one JSON object a line on standard output, filtered by `VX11_LOG`.

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, filter::filter_fn, fmt::time::FormatTime, layer::SubscriberExt, util::SubscriberInitExt,
};

/// A log filter that does not parse, or logging that was begun before.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter's syntax is wrong.
    #[error("VX11_LOG: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Another subscriber is in place.
    #[error("logging: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(writer, "{:.3}", jiff::Timestamp::now())
    }
}

/// Whether an event may be logged at all, whatever the filter says. Below `info` the libraries that this is built
/// on print what they handle: request lines with tokens in their queries, headers, commands to Redis.
#[must_use]
pub fn is_ours_or_no_detail(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || metadata.target().starts_with("operator_backend")
}

/// Begins to log. Details (`debug` and `trace`) come from this program alone.
///
/// # Errors
/// [`TelemetryError`]
pub fn start(filter: &str) -> Result<(), TelemetryError> {
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_timer(Utc)
        .with_current_span(false)
        .with_span_list(false);
    tracing_subscriber::registry()
        .with(EnvFilter::try_new(filter)?)
        .with(filter_fn(is_ours_or_no_detail))
        .with(lines)
        .try_init()?;
    Ok(())
}
