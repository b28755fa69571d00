//! The last decisions of a cluster with everything that went into them, so that a person can ask why and
//! anyone can replay them number by number.

use std::{collections::VecDeque, fmt::Write};

use serde::{Deserialize, Serialize};

use super::{
    decide::decide,
    decision::{Decision, Reason},
    history::History,
    observation::{Moment, Observation},
    policy::Policy,
};

/// Key of the ConfigMap `NAME-scaling` that holds the journal.
pub const JOURNAL_KEY: &str = "journal.json";
/// Decisions kept.
pub const LENGTH: usize = 50;
/// Bytes of JSON kept: it lies in a ConfigMap, which takes 1 MiB. Large clusters keep fewer decisions.
pub const MAX_BYTES: usize = 512 * 1024;

/// A decision and its whole input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// What was asked.
    pub policy: Policy,
    /// What was seen.
    pub observed: Observation,
    /// What was remembered.
    pub history: History,
    /// What came of it.
    pub decision: Decision,
}

impl Entry {
    /// Whether it belongs into the journal: everything does but that nothing is to be done about a count that a
    /// person sets.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.decision.reason != Reason::Fixed || !self.decision.actions.is_empty()
    }
}

/// A ring of decisions, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Journal {
    entries: VecDeque<Entry>,
}

/// An entry that does not come out as it stands in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Position in the journal, from 0.
    pub index: usize,
    /// Each field that differs: name, recorded value, replayed value.
    pub fields: Vec<(String, String, String)>,
}

impl Journal {
    /// Reads a journal.
    ///
    /// # Errors
    /// Where the text is not one, with line and column.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// The entries, oldest first.
    #[must_use]
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The newest decision.
    #[must_use]
    pub fn last(&self) -> Option<&Decision> {
        self.entries.back().map(|entry| &entry.decision)
    }

    /// Adds an entry; the oldest make room.
    pub fn record(&mut self, entry: Entry) {
        self.entries.push_back(entry);
        while self.entries.len() > LENGTH {
            self.entries.pop_front();
        }
    }

    /// The journal as JSON of at most [`MAX_BYTES`]: as many of the newest entries as fit.
    ///
    /// # Errors
    /// None in practice: the types have no key that JSON cannot hold.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut kept = Vec::new();
        let mut bytes = 2;
        for entry in self.entries.iter().rev() {
            let json = serde_json::to_string(entry)?;
            bytes += json.len() + 1;
            if bytes > MAX_BYTES {
                break;
            }
            kept.push(json);
        }
        kept.reverse();
        Ok(format!("[{}]", kept.join(",")))
    }

    /// Decides every entry again; the result is empty when each comes out number by number.
    ///
    /// # Errors
    /// None in practice, see [`Journal::to_json`].
    pub fn replay(&self) -> Result<Vec<Mismatch>, serde_json::Error> {
        let mut mismatches = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let again = decide(&entry.policy, &entry.observed, &entry.history, entry.decision.at);
            if again == entry.decision {
                continue;
            }
            let recorded = serde_json::to_value(&entry.decision)?;
            let replayed = serde_json::to_value(&again)?;
            let fields = recorded
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(name, value)| {
                    let other = replayed.get(name).unwrap_or(&serde_json::Value::Null);
                    (value != other).then(|| (name.clone(), value.to_string(), other.to_string()))
                })
                .collect();
            mismatches.push(Mismatch { index, fields });
        }
        Ok(mismatches)
    }

    /// The journal as a person reads it, oldest first: one line a decision, its steps and blockers below.
    #[must_use]
    pub fn tell(&self) -> String {
        let mut text = String::new();
        for Entry { observed, decision, .. } in &self.entries {
            let _ = write!(
                text,
                "{}  {} -> {}  {}\n    {}\n",
                time(decision.at),
                observed.replicas,
                decision.desired,
                decision.reason.as_str(),
                decision.message
            );
            for step in &decision.steps {
                let _ = writeln!(
                    text,
                    "    {:<14}{:>4}  {}",
                    format!("{:?}", step.step),
                    step.instances,
                    step.note
                );
            }
            for blocker in &decision.blocked_by {
                let _ = writeln!(text, "    blocked by    {blocker}");
            }
        }
        text
    }
}

/// The moment in UTC to the second, as `kubectl` writes times.
fn time(moment: Moment) -> String {
    i64::try_from(moment.0 / 1000)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| moment.0.to_string(), |timestamp| timestamp.to_string())
}

#[cfg(test)]
mod tests {
    use super::{super::observation::Instance, *};

    fn entry(streams: u64, at: u64) -> Entry {
        let observed = Observation {
            replicas: 1,
            instances: vec![Instance::serving("simple-backend-a", streams, 3)],
            ..Observation::default()
        };
        let (policy, history) = (Policy::default(), History::default());
        let decision = decide(&policy, &observed, &history, Moment(at));
        Entry { policy, observed, history, decision }
    }

    #[test]
    fn it_keeps_the_last_fifty() {
        let mut journal = Journal::default();
        for streams in 0..60 {
            journal.record(entry(streams * 100, streams));
        }
        assert_eq!(journal.entries().count(), 50);
        assert_eq!(journal.entries().next().unwrap().decision.at, Moment(10));
    }

    #[test]
    fn it_survives_the_round_trip_and_replays_number_by_number() {
        let mut journal = Journal::default();
        for streams in [100, 501, 1426, 1_000_000] {
            journal.record(entry(streams, streams));
        }
        let mut read = Journal::parse(&journal.to_json().unwrap()).unwrap();
        assert_eq!(read, journal);
        assert_eq!(read.replay().unwrap(), []);
        read.entries[1].decision.desired = 7;
        let mismatches = read.replay().unwrap();
        assert_eq!(mismatches[0].index, 1);
        assert_eq!(mismatches[0].fields, [("desired".to_owned(), "7".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn a_large_cluster_keeps_fewer_entries_within_the_size_of_a_configmap() {
        let mut large = entry(100, 0);
        let instance = large.observed.instances[0].clone();
        large.observed.instances = (0..1000).map(|_| instance.clone()).collect();
        let mut journal = Journal::default();
        (0..50).for_each(|_| journal.record(large.clone()));
        let json = journal.to_json().unwrap();
        assert!(json.len() <= MAX_BYTES);
        assert!(Journal::parse(&json).unwrap().entries().count() >= 2);
    }

    #[test]
    fn only_another_story_is_news() {
        let first = entry(100, 0).decision;
        assert!(!entry(101, 5000).decision.differs_from(&first), "one client more changes nothing");
        assert!(entry(501, 5000).decision.differs_from(&first));
    }

    #[test]
    fn it_reads_as_a_story() {
        let mut journal = Journal::default();
        journal.record(entry(501, 1_764_000_000_000));
        let text = journal.tell();
        assert!(
            text.starts_with(
                "2025-11-24T16:00:00Z  1 -> 2  ScaleOut\n    501 clients need 2 instances (475 each)"
            ),
            "{text}"
        );
    }
}
