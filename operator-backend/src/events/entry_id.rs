//! The id of an event in the log: milliseconds and a sequence number, as Redis Streams write it.

use std::{fmt, str::FromStr};

/// Id of an event; ordered by time of publication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// Milliseconds since the Unix epoch.
    pub milliseconds: u64,
    /// Number within the millisecond.
    pub sequence: u64,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

/// A text that is no entry id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an entry id")]
pub struct NotAnEntryId;

impl FromStr for EntryId {
    type Err = NotAnEntryId;

    /// Accepts what [`fmt::Display`] writes and nothing else, so that an id has one text.
    fn from_str(text: &str) -> Result<Self, NotAnEntryId> {
        let number = |part: &str| {
            let canonical = !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_digit())
                && (part.len() == 1 || !part.starts_with('0'));
            canonical.then(|| part.parse().ok()).flatten().ok_or(NotAnEntryId)
        };
        let (milliseconds, sequence) = text.split_once('-').ok_or(NotAnEntryId)?;
        Ok(Self { milliseconds: number(milliseconds)?, sequence: number(sequence)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_has_exactly_one_text(milliseconds: u64, sequence: u64, rubbish in "[0-9+-]{0,12}") {
            let id = EntryId { milliseconds, sequence };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            if let Ok(id) = rubbish.parse::<EntryId>() {
                prop_assert_eq!(id.to_string(), rubbish);
            }
        }
    }
}
