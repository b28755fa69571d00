//! Every metric family of the instance. Names are the ones alerts already use; labels come from the
//! closed sets below and never from input.

use prometheus_client::{
    encoding::{EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Why a credential was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthFailure {
    /// Nothing was presented.
    Missing,
    /// Not the shape of a token.
    Malformed,
    /// Genuine once, too old now.
    Expired,
    /// Neither signed by us nor in the store.
    Unknown,
    /// A single-use token presented again.
    Used,
    /// A principal token that no principal has.
    Principal,
}

/// Why a new stream was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The instance carries its maximum of streams.
    Instance,
    /// The principal carries its maximum of streams.
    Principal,
    /// The client address carries its maximum of streams.
    Address,
    /// The instance is draining.
    Draining,
}

/// What a command to Redis came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RedisFailure {
    /// No answer before the deadline.
    Deadline,
    /// The connection broke or was refused.
    Connection,
    /// Redis answered with an error (out of memory, loading, read-only, ...).
    Answer,
}

/// Writes a closed set of label values.
macro_rules! labels {
    ($kind:ty: $($variant:ident = $text:literal),+ $(,)?) => {
        impl $kind {
            const ALL: &[Self] = &[$(Self::$variant),+];
        }

        impl EncodeLabelValue for $kind {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
                EncodeLabelValue::encode(&match self { $(Self::$variant => $text),+ }, encoder)
            }
        }
    };
}

labels!(AuthFailure: Missing = "missing", Malformed = "malformed", Expired = "expired", Unknown = "unknown",
    Used = "used", Principal = "principal");
labels!(Refusal: Instance = "instance", Principal = "principal", Address = "address", Draining = "draining");
labels!(RedisFailure: Deadline = "deadline", Connection = "connection", Answer = "answer");

/// Status classes of error answers; anything else is counted as `other`.
const CODES: [u16; 12] = [400, 401, 403, 404, 405, 408, 413, 422, 429, 500, 503, 504];

/// One label; the name is a constant, the value from a closed set.
type Label<V> = [(&'static str, V); 1];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct CodeLabel(u16);

impl EncodeLabelValue for CodeLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        match self.0 {
            0 => EncodeLabelValue::encode(&"other", encoder),
            code => EncodeLabelValue::encode(&u64::from(code), encoder),
        }
    }
}

type Reasons<R> = Family<Label<R>, Counter>;

/// The families, ready to be counted into from anywhere. Cheap to share by `Arc`; one per process.
pub struct Metrics {
    registry: Registry,
    /// Ephemeral tokens handed out, in any mode.
    pub tokens_issued: Counter,
    /// Of those, tokens that Redis does not hold because it was away.
    pub tokens_issued_unstored: Counter,
    /// Authorised requests for a token that got none.
    pub token_issue_errors: Counter,
    /// Time from an authorised request to its token, milliseconds.
    pub token_issue_latency: Histogram,
    /// Live ephemeral tokens that this instance issued.
    pub token_cache_entries: Gauge,
    /// Estimate of the memory they take in the store, bytes.
    pub token_cache_bytes: Gauge,
    /// Credentials accepted, of either kind.
    pub auth_success: Counter,
    auth_failures: Reasons<AuthFailure>,
    errors_by_code: Family<Label<CodeLabel>, Counter>,
    /// Principal tokens that no principal has.
    pub principal_invalid: Counter,
    /// Store entries that contradict the signature of their token.
    pub integrity_failures: Counter,
    /// Requests answered with 429.
    pub rate_limited: Counter,
    /// 1 while Redis answers, 0 while it does not; absent in memory mode is 0 too.
    pub redis_up: Gauge,
    /// Times that Redis was given up.
    pub redis_outages: Counter,
    redis_failures: Reasons<RedisFailure>,
    /// 1 while draining.
    pub draining: Gauge,
    /// Streams that are open now.
    pub streams_open: Gauge,
    /// Streams opened since the start.
    pub streams_opened: Counter,
    /// Events accepted for publishing by this instance.
    pub events_published: Counter,
    /// Publish requests that failed.
    pub publish_errors: Counter,
    /// Events written to streams (events x streams).
    pub deliveries: Counter,
    /// From an event's publication to the first writes of it here, seconds.
    pub delivery_lag: Histogram,
    /// Gaps told to clients.
    pub gaps: Counter,
    /// Streams resumed after a cursor.
    pub resumes: Counter,
    /// Streams cut because their client did not read.
    pub slow_clients_cut: Counter,
    refusals: Reasons<Refusal>,
    /// Streams that the drain has closed.
    pub drain_closed: Counter,
}

macro_rules! family {
    ($registry:ident, $kind:expr, $name:literal, $help:literal) => {{
        let metric = $kind;
        $registry.register($name, $help, metric.clone());
        metric
    }};
}

impl Metrics {
    /// Fresh families, all zero.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one line of help for each family, nothing else")]
    pub fn new() -> Self {
        let mut r = Registry::default();
        let milliseconds = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
        let seconds =
            [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let metrics = Self {
            tokens_issued: family!(
                r,
                Counter::default(),
                "vx11_sse_token_issued",
                "Ephemeral tokens handed out"
            ),
            tokens_issued_unstored: family!(
                r,
                Counter::default(),
                "vx11_sse_token_issued_unstored",
                "Ephemeral tokens handed out while Redis was away"
            ),
            token_issue_errors: family!(
                r,
                Counter::default(),
                "vx11_sse_token_issued_errors",
                "Authorised requests for a token that got none"
            ),
            token_issue_latency: family!(
                r,
                Histogram::new(milliseconds),
                "vx11_sse_token_issuance_latency_ms",
                "From an authorised request to its token, milliseconds"
            ),
            token_cache_entries: family!(
                r,
                Gauge::default(),
                "vx11_ephemeral_token_cache_size_entries",
                "Live ephemeral tokens issued by this instance"
            ),
            token_cache_bytes: family!(
                r,
                Gauge::default(),
                "vx11_ephemeral_token_cache_size_bytes",
                "Estimated memory of these tokens in the store"
            ),
            auth_success: family!(
                r,
                Counter::default(),
                "vx11_sse_auth_success",
                "Credentials accepted, of either kind"
            ),
            auth_failures: family!(
                r,
                Reasons::default(),
                "vx11_sse_auth_failures",
                "Credentials refused, by reason"
            ),
            errors_by_code: family!(
                r,
                Family::default(),
                "vx11_sse_errors_by_code",
                "Error answers, by HTTP status"
            ),
            principal_invalid: family!(
                r,
                Counter::default(),
                "vx11_principal_token_invalid",
                "Principal tokens that no principal has"
            ),
            integrity_failures: family!(
                r,
                Counter::default(),
                "vx11_cache_integrity_check_failed",
                "Store entries that contradict the signature of their token"
            ),
            rate_limited: family!(
                r,
                Counter::default(),
                "vx11_rate_limited",
                "Requests refused because their principal or address asks too often"
            ),
            redis_up: family!(r, Gauge::default(), "vx11_redis_up", "1 while Redis answers"),
            redis_outages: family!(
                r,
                Counter::default(),
                "vx11_redis_outages",
                "Times that Redis was given up"
            ),
            redis_failures: family!(
                r,
                Reasons::default(),
                "vx11_redis_failures",
                "Failed Redis commands, by reason"
            ),
            draining: family!(r, Gauge::default(), "vx11_draining", "1 while this instance drains"),
            streams_open: family!(r, Gauge::default(), "vx11_sse_streams_open", "Streams that are open now"),
            streams_opened: family!(
                r,
                Counter::default(),
                "vx11_sse_streams_opened",
                "Streams opened since the start"
            ),
            events_published: family!(
                r,
                Counter::default(),
                "vx11_events_published",
                "Events accepted for publishing"
            ),
            publish_errors: family!(
                r,
                Counter::default(),
                "vx11_events_publish_errors",
                "Publish requests that failed"
            ),
            deliveries: family!(r, Counter::default(), "vx11_sse_deliveries", "Events written to streams"),
            delivery_lag: family!(
                r,
                Histogram::new(seconds),
                "vx11_sse_publish_to_delivery_seconds",
                "From an event's publication to its delivery here, seconds"
            ),
            gaps: family!(r, Counter::default(), "vx11_sse_gaps", "Gaps told to clients"),
            resumes: family!(r, Counter::default(), "vx11_sse_resumes", "Streams resumed after a cursor"),
            slow_clients_cut: family!(
                r,
                Counter::default(),
                "vx11_sse_slow_clients_cut",
                "Streams cut because their client did not read"
            ),
            refusals: family!(
                r,
                Reasons::default(),
                "vx11_sse_refusals",
                "Streams refused by a limit or the drain"
            ),
            drain_closed: family!(
                r,
                Counter::default(),
                "vx11_sse_drain_closed",
                "Streams that the drain has closed"
            ),
            registry: r,
        };
        metrics.begin_at_zero();
        metrics
    }

    /// Makes every series exist from the start: a rate sees the first increment only of a series that was
    /// there before.
    fn begin_at_zero(&self) {
        for reason in AuthFailure::ALL {
            drop(self.auth_failures.get_or_create(&[("reason", *reason)]));
        }
        for reason in Refusal::ALL {
            drop(self.refusals.get_or_create(&[("reason", *reason)]));
        }
        for reason in RedisFailure::ALL {
            drop(self.redis_failures.get_or_create(&[("reason", *reason)]));
        }
        for code in CODES.into_iter().chain([0]) {
            drop(self.errors_by_code.get_or_create(&[("code", CodeLabel(code))]));
        }
    }

    /// Counts a refused credential.
    pub fn auth_failed(&self, reason: AuthFailure) {
        self.auth_failures.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts an error answer by its status code.
    pub fn error_answered(&self, status: u16) {
        let code = CodeLabel(if CODES.contains(&status) { status } else { 0 });
        self.errors_by_code.get_or_create(&[("code", code)]).inc();
    }

    /// Counts a refused stream.
    pub fn stream_refused(&self, reason: Refusal) {
        self.refusals.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts a failed Redis command.
    pub fn redis_failed(&self, reason: RedisFailure) {
        self.redis_failures.get_or_create(&[("reason", reason)]).inc();
    }

    /// All families in the `OpenMetrics` text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(8 * 1024);
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a String fails only if an encoder does; an empty scrape is visible as such.
            Err(_) => String::new(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_alerts_use_are_there() {
        let metrics = Metrics::new();
        metrics.auth_failed(AuthFailure::Expired);
        metrics.error_answered(403);
        metrics.error_answered(599);
        metrics.token_issue_latency.observe(1.0);
        let text = metrics.render();
        for line in [
            "vx11_sse_token_issued_total 0",
            "vx11_sse_token_issued_errors_total 0",
            "vx11_sse_token_issuance_latency_ms_bucket{le=\"200.0\"} 1",
            "vx11_ephemeral_token_cache_size_entries 0",
            "vx11_ephemeral_token_cache_size_bytes 0",
            "vx11_sse_auth_success_total 0",
            "vx11_sse_auth_failures_total{reason=\"expired\"} 1",
            "vx11_sse_errors_by_code_total{code=\"403\"} 1",
            "vx11_sse_errors_by_code_total{code=\"other\"} 1",
            "vx11_sse_errors_by_code_total{code=\"429\"} 0",
            "vx11_sse_auth_failures_total{reason=\"missing\"} 0",
            "vx11_sse_refusals_total{reason=\"draining\"} 0",
            "vx11_redis_failures_total{reason=\"deadline\"} 0",
            "vx11_principal_token_invalid_total 0",
            "vx11_cache_integrity_check_failed_total 0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
