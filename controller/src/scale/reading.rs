//! From an instance's answer on `/load` to a reading: what it says is checked, rates come from counters, and
//! whatever cannot be used is missing with its reason. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::observation::{Moment, Observed, Reading};

/// Largest answer that is read; a genuine one has some 120 bytes.
pub const MAX_ANSWER_BYTES: usize = 4096;
/// What one process can hold where its pod sets no limit: each stream is a socket, and Linux gives a process no more
/// than these (`fs.nr_open`).
const MOST_STREAMS: u64 = 1 << 20;
/// More than one process can issue, and the largest value of `issuancesPerSecondPerInstance`: a counter that moves
/// faster has lost its value.
const MOST_ISSUANCES_PER_SECOND: u64 = 1_000_000;
/// A rate is taken over at least this long, so that two looks in a row do not make it jump.
const RATE_WINDOW_MS: u64 = 4000;
/// How long the last reading still hints at the load of an instance that stopped answering.
const STALE_MS: u64 = 60_000;

/// What an instance answers on `/load`. Fields that it may grow are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Answer {
    streams: u64,
    issued_total: u64,
    draining: bool,
}

impl Answer {
    /// Reads the body of an answer. `max_streams` is the limit that the pod was made with (0 is none), not what the
    /// answer says of itself.
    ///
    /// # Errors
    /// Why it cannot be believed, for status.
    pub fn parse(body: &[u8], max_streams: u64) -> Result<Self, String> {
        let answer: Self =
            serde_json::from_slice(body).map_err(|error| format!("malformed answer: {error}"))?;
        let limit = if max_streams == 0 { MOST_STREAMS } else { max_streams.min(MOST_STREAMS) };
        if answer.streams > limit {
            return Err(format!("claims {} streams, of which it can hold {limit}", answer.streams));
        }
        Ok(answer)
    }
}

/// One process of an instance: a container that was restarted counts its tokens from 0 again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Uid of the pod.
    pub uid: String,
    /// How often its container was restarted.
    pub restarts: i32,
}

/// What is remembered of each instance between looks.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    instances: BTreeMap<String, Counter>,
}

#[derive(Clone, Debug)]
struct Counter {
    restarts: i32,
    /// Where the present rate window began.
    issued_total: u64,
    since: Moment,
    last: Reading,
    at: Moment,
}

impl Counters {
    /// Takes in an answer that arrived at `now` and turns it into a reading. One whose counter moved further than a
    /// process can make it is as good as none, and nothing of it is remembered.
    pub fn known(&mut self, process: &Process, answer: &Answer, now: Moment) -> Observed<Reading> {
        let mut reading =
            Reading { streams: answer.streams, issuances_per_second: None, draining: answer.draining };
        let counter = self.instances.entry(process.uid.clone()).or_insert(Counter {
            restarts: process.restarts,
            issued_total: answer.issued_total,
            since: now,
            last: reading,
            at: now,
        });
        // A new process has issued what it counts, at the latest since the window began.
        let is_new = counter.restarts != process.restarts || answer.issued_total < counter.issued_total;
        let before = if is_new { 0 } else { counter.issued_total };
        let elapsed = now.since(counter.since);
        let issued = answer.issued_total.saturating_sub(before);
        if per_second(issued, elapsed.max(RATE_WINDOW_MS)) > MOST_ISSUANCES_PER_SECOND {
            let reason =
                format!("claims {issued} tokens issued in {elapsed} ms, more than any process can issue");
            return self.unknown(process, reason, now);
        }
        counter.restarts = process.restarts;
        counter.issued_total = before;
        reading.issuances_per_second = if elapsed >= RATE_WINDOW_MS {
            let rate = per_second(issued, elapsed);
            counter.issued_total = answer.issued_total;
            counter.since = now;
            Some(rate)
        } else {
            counter.last.issuances_per_second
        };
        counter.last = reading;
        counter.at = now;
        Observed::Known { value: reading }
    }

    /// Whether the process has answered before. One that has may hold streams for as long as it runs.
    #[must_use]
    pub fn knows(&self, process: &Process) -> bool {
        self.instances.get(&process.uid).is_some_and(|counter| counter.restarts == process.restarts)
    }

    /// What is left to say of an instance that did not answer.
    #[must_use]
    pub fn unknown(&self, process: &Process, reason: String, now: Moment) -> Observed<Reading> {
        match self.instances.get(&process.uid) {
            Some(counter) if now.since(counter.at) <= STALE_MS => {
                Observed::Stale { value: counter.last, age_ms: now.since(counter.at), reason }
            }
            _ => Observed::Missing { reason },
        }
    }

    /// Forgets instances that are gone.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.instances.retain(|uid, _| exists(uid));
    }
}

/// `count` in `elapsed_ms`, per second, rounded to the nearest.
fn per_second(count: u64, elapsed_ms: u64) -> u64 {
    let elapsed = u128::from(elapsed_ms.max(1));
    u64::try_from((u128::from(count) * 1000 + elapsed / 2) / elapsed).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn answer(streams: u64, issued_total: u64) -> Answer {
        Answer { streams, issued_total, draining: false }
    }

    fn process(restarts: i32) -> Process {
        Process { uid: "u1".into(), restarts }
    }

    fn rate(observed: &Observed<Reading>) -> Option<u64> {
        observed.known().unwrap().issuances_per_second
    }

    #[test]
    fn a_genuine_answer_is_read_and_new_fields_are_ignored() {
        let body = br#"{"instance_id":"a","streams":12,"issued_total":34,"draining":true,"max_streams":1000,"new":{}}"#;
        let read = Answer::parse(body, 1000).unwrap();
        assert_eq!(read, Answer { draining: true, ..answer(12, 34) });
    }

    #[rstest]
    #[case::empty("", "malformed")]
    #[case::no_json("<html>", "malformed")]
    #[case::negative(r#"{"streams":-1,"issued_total":0,"draining":false}"#, "malformed")]
    #[case::fraction(r#"{"streams":1.5,"issued_total":0,"draining":false}"#, "malformed")]
    #[case::enormous(r#"{"streams":18446744073709551616,"issued_total":0,"draining":false}"#, "malformed")]
    #[case::text(r#"{"streams":"7","issued_total":0,"draining":false}"#, "malformed")]
    #[case::field_missing(r#"{"streams":7,"draining":false}"#, "malformed")]
    #[case::more_than_its_pod_allows(
        r#"{"streams":1001,"issued_total":0,"draining":false,"max_streams":5000}"#,
        "claims 1001 streams, of which it can hold 1000"
    )]
    fn a_bad_answer_is_refused_with_its_reason(#[case] body: &str, #[case] reason: &str) {
        let error = Answer::parse(body.as_bytes(), 1000).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn without_a_limit_an_instance_holds_what_a_process_can() {
        let body = |streams: u64| {
            format!(r#"{{"streams":{streams},"issued_total":0,"draining":false,"max_streams":0}}"#)
                .into_bytes()
        };
        assert!(Answer::parse(&body(MOST_STREAMS), 0).is_ok());
        for limit in [0, u64::MAX] {
            let error = Answer::parse(&body(MOST_STREAMS + 1), limit).unwrap_err();
            assert!(error.contains("claims 1048577 streams, of which it can hold 1048576"), "{error}");
        }
    }

    #[test]
    fn a_counter_that_no_process_can_make_is_no_rate_and_leaves_no_trace() {
        let mut counters = Counters::default();
        counters.known(&process(0), &answer(7, 100), Moment(0));
        for (at, restarts) in [(1000, 0), (5000, 0), (5001, 1)] {
            let observed = counters.known(&process(restarts), &answer(9, u64::MAX), Moment(at));
            assert!(observed.known().is_none(), "{observed:?}");
            assert_eq!(observed.latest().unwrap().streams, 7);
            assert!(observed.reason().unwrap().contains("more than any process can issue"), "{observed:?}");
        }
        let back = counters.known(&process(0), &answer(9, 1100), Moment(10_000));
        assert_eq!(rate(&back), Some(100), "over the whole time since the last good answer");
        let first =
            counters.known(&Process { uid: "u2".into(), restarts: 0 }, &answer(1, u64::MAX), Moment(0));
        assert_eq!(rate(&first), None, "a first answer says nothing of a rate");
    }

    #[test]
    fn rates_come_from_counter_differences() {
        let mut counters = Counters::default();
        assert_eq!(
            rate(&counters.known(&process(0), &answer(1, 500), Moment(0))),
            None,
            "one look is no rate"
        );
        assert_eq!(rate(&counters.known(&process(0), &answer(1, 600), Moment(1000))), None, "too soon");
        assert_eq!(rate(&counters.known(&process(0), &answer(1, 5500), Moment(5000))), Some(1000));
        assert_eq!(
            rate(&counters.known(&process(0), &answer(1, 9999), Moment(6000))),
            Some(1000),
            "too soon"
        );
        assert_eq!(rate(&counters.known(&process(0), &answer(1, 10_503), Moment(10_000))), Some(1001));
    }

    #[test]
    fn rates_survive_a_restart_of_the_instance() {
        let mut counters = Counters::default();
        counters.known(&process(0), &answer(1, 90_000), Moment(0));
        counters.known(&process(0), &answer(1, 95_000), Moment(5000));
        assert_eq!(rate(&counters.known(&process(1), &answer(1, 2000), Moment(10_000))), Some(400));
        // Even one that nobody reported, and one that has already counted past the old total.
        assert_eq!(rate(&counters.known(&process(1), &answer(1, 500), Moment(15_000))), Some(100));
        assert_eq!(rate(&counters.known(&process(2), &answer(1, 1000), Moment(20_000))), Some(200));
    }

    #[test]
    fn silence_is_stale_for_a_minute_and_then_missing() {
        let mut counters = Counters::default();
        let reason = || "no answer within 1 s".to_owned();
        assert_eq!(
            counters.unknown(&process(0), reason(), Moment(0)),
            Observed::Missing { reason: reason() }
        );
        counters.known(&process(0), &answer(7, 0), Moment(1000));
        let stale = counters.unknown(&process(0), reason(), Moment(31_000));
        assert_eq!(stale.latest().unwrap().streams, 7);
        assert!(stale.known().is_none());
        assert!(matches!(stale, Observed::Stale { age_ms: 30_000, .. }));
        assert!(counters.unknown(&process(0), reason(), Moment(61_001)).latest().is_none());
        assert!(counters.knows(&process(0)), "it runs and may still hold its streams");
        assert!(!counters.knows(&process(1)), "they went with the process");
        counters.retain(|uid| uid != "u1");
        assert!(counters.unknown(&process(0), reason(), Moment(1001)).latest().is_none());
    }
}
