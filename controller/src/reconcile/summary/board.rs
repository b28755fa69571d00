//! Conditions as they are being written, and which of their changes are worth an event. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{Findings, Transition};

/// Whether a change of a condition is told by an event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Telling {
    Quiet,
    News,
    Warning,
}

/// The conditions as they are being written, against the ones before.
pub(super) struct Board<'a> {
    previous: &'a [Condition],
    generation: Option<i64>,
    now: Timestamp,
    pub(super) conditions: Vec<Condition>,
    pub(super) transitions: Vec<Transition>,
}

impl<'a> Board<'a> {
    pub(super) fn new(findings: &Findings<'a>) -> Self {
        Self {
            previous: &findings.previous.conditions,
            generation: findings.cluster.metadata.generation,
            now: findings.now,
            conditions: Vec::new(),
            transitions: Vec::new(),
        }
    }

    pub(super) fn was(&self, type_: &str, status: &str) -> bool {
        self.previous.iter().any(|condition| condition.type_ == type_ && condition.status == status)
    }

    pub(super) fn set(
        &mut self,
        type_: &'static str,
        (holds, reason, message): (bool, &str, &str),
        telling: Telling,
    ) {
        self.set_status(type_, (Some(holds), reason, message), telling);
    }

    pub(super) fn set_status(
        &mut self,
        type_: &'static str,
        (holds, reason, message): (Option<bool>, &str, &str),
        telling: Telling,
    ) {
        let status = match holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let before = self.previous.iter().find(|condition| condition.type_ == type_);
        let since = before
            .filter(|condition| condition.status == status)
            .map_or_else(|| Time(self.now), |condition| condition.last_transition_time.clone());
        let changed = before.is_none_or(|before| before.status != status || before.reason != reason);
        if changed && telling != Telling::Quiet {
            self.transitions.push(Transition {
                about: type_,
                warning: telling == Telling::Warning,
                reason: reason.to_owned(),
                message: message.to_owned(),
            });
        }
        self.conditions.push(Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: self.generation,
            last_transition_time: since,
        });
    }
}
