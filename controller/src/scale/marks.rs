//! How drain marks and removals are written into annotations. Times are in UTC to the millisecond, so that
//! a person who describes a pod can read them. Pure.

use jiff::Timestamp;

use super::observation::{Mark, Moment, Removal};

/// `since/deadline`.
#[must_use]
pub fn write(mark: Mark) -> String {
    format!("{}/{}", write_moment(mark.since), write_moment(mark.deadline))
}

/// A mark, or `None` when a person has written something else there.
#[must_use]
pub fn read(text: &str) -> Option<Mark> {
    let (since, deadline) = text.split_once('/')?;
    Some(Mark { since: read_moment(since)?, deadline: read_moment(deadline)? })
}

/// `pod@since`, separated by blanks.
#[must_use]
pub fn write_removals(removals: &[Removal]) -> String {
    let each: Vec<String> =
        removals.iter().map(|removal| format!("{}@{}", removal.name, write_moment(removal.since))).collect();
    each.join(" ")
}

/// The removals in a text; what does not parse is left out.
#[must_use]
pub fn read_removals(text: &str) -> Vec<Removal> {
    text.split_whitespace()
        .filter_map(|each| {
            let (name, since) = each.split_once('@')?;
            Some(Removal { name: name.to_owned(), since: read_moment(since)? })
        })
        .collect()
}

fn write_moment(moment: Moment) -> String {
    i64::try_from(moment.0)
        .ok()
        .and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok())
        .map_or_else(|| moment.0.to_string(), |timestamp| timestamp.to_string())
}

fn read_moment(text: &str) -> Option<Moment> {
    let timestamp: Timestamp = text.parse().ok()?;
    u64::try_from(timestamp.as_millisecond()).ok().map(Moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINCE: Moment = Moment(1_764_000_000_123);

    #[test]
    fn a_mark_survives_the_way_over_an_annotation() {
        let mark = Mark { since: SINCE, deadline: SINCE.plus_seconds(30) };
        assert_eq!(write(mark), "2025-11-24T16:00:00.123Z/2025-11-24T16:00:30.123Z");
        assert_eq!(read(&write(mark)), Some(mark));
    }

    #[test]
    fn removals_survive_too_and_nonsense_is_left_out() {
        let removals = ["a", "b"].map(|name| Removal { name: name.into(), since: SINCE });
        let text = write_removals(&removals);
        assert_eq!(read_removals(&text), removals);
        assert_eq!(
            read_removals("a b@c d@2025-11-24T16:00:00.123Z"),
            [Removal { name: "d".into(), since: SINCE }]
        );
        assert_eq!(read_removals(""), []);
        for nonsense in ["", "/", "yes", "2025/2026", "1969-01-01T00:00:00Z/1969-01-01T00:00:00Z"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
