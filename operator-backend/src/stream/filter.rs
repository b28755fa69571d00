//! Which events a stream wants: `topic`, `severity` and `module` of its query.

use axum::{extract::Query, http::Uri};

use crate::events::{Event, is_name};

/// Values that one stream may name at most.
const MOST_VALUES: usize = 64;

/// The wanted values of each field; none = any. Two filters that want the same are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    topics: Vec<Box<str>>,
    severities: Vec<Box<str>>,
    modules: Vec<Box<str>>,
}

/// A query that names no possible filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFilter {
    /// The query is not form-encoded text.
    #[error("query: must be form-encoded UTF-8")]
    Query,
    /// No event can have this value.
    #[error("{0}: each value must be 1 to 128 characters of A-Z a-z 0-9 . _ : / -")]
    Value(&'static str),
    /// More values than one stream may have.
    #[error("query: at most {MOST_VALUES} values of topic, severity and module")]
    TooMany,
}

impl Filter {
    /// The filter and the `lastEventId` of a query. A field may come several times and hold several values
    /// separated by commas.
    ///
    /// # Errors
    /// [`InvalidFilter`], whose text begins with the field's name.
    pub fn of(uri: &Uri) -> Result<(Self, Option<String>), InvalidFilter> {
        let (mut filter, mut last_event_id) = (Self::default(), None);
        if uri.query().is_none() {
            return Ok((filter, last_event_id));
        }
        let Query(pairs) =
            Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|_| InvalidFilter::Query)?;
        for (name, value) in pairs {
            let (field, list) = match name.as_str() {
                "topic" => ("topic", &mut filter.topics),
                "severity" => ("severity", &mut filter.severities),
                "module" => ("module", &mut filter.modules),
                "lastEventId" => {
                    last_event_id = Some(value).filter(|value| !value.is_empty());
                    continue;
                }
                _ => continue,
            };
            for value in value.split(',').filter(|value| !value.is_empty()) {
                if !is_name(value) {
                    return Err(InvalidFilter::Value(field));
                }
                list.push(value.into());
            }
            if list.len() > MOST_VALUES {
                return Err(InvalidFilter::TooMany);
            }
        }
        for list in [&mut filter.topics, &mut filter.severities, &mut filter.modules] {
            list.sort_unstable();
            list.dedup();
        }
        Ok((filter, last_event_id))
    }

    /// Whether a stream with this filter gets the event.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        let wanted = |list: &[Box<str>], value: &Option<Box<str>>| {
            list.is_empty() || value.as_ref().is_some_and(|value| list.binary_search(value).is_ok())
        };
        wanted(&self.topics, &event.topic)
            && wanted(&self.severities, &event.severity)
            && wanted(&self.modules, &event.module)
    }

    /// One text for one filter: what a cursor is bound to.
    #[must_use]
    pub fn canonical(&self) -> String {
        [&self.topics, &self.severities, &self.modules].map(|list| list.join(",")).join(";")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{EntryId, Epoch, NewEvent};
    use rstest::rstest;

    fn filter(query: &str) -> Result<Filter, InvalidFilter> {
        Filter::of(&format!("/s?{query}").parse().unwrap()).map(|(filter, _)| filter)
    }

    #[rstest]
    #[case("", true)]
    #[case("token=x&follow=true", true)]
    #[case("topic=a", true)]
    #[case("topic=b,a", true)]
    #[case("topic=b&topic=a", true)]
    #[case("topic=b", false)]
    #[case("topic=a&severity=high", true)]
    #[case("topic=a&severity=low", false)]
    #[case("module=m", false)]
    fn only_what_is_wanted_comes_through(#[case] query: &str, #[case] wanted: bool) {
        let new = NewEvent::parse(br#"{"topic":"a","severity":"high","data":1}"#).unwrap();
        let event = Event::new(EntryId::default(), Epoch(1), 1, new);
        assert_eq!(filter(query).unwrap().wants(&event), wanted);
    }

    #[test]
    fn the_same_wish_has_the_same_text() {
        assert_eq!(filter("topic=b,a&topic=a").unwrap(), filter("topic=a&follow=1&topic=b").unwrap());
        assert_ne!(filter("topic=a").unwrap().canonical(), filter("module=a").unwrap().canonical());
    }

    #[rstest]
    #[case("topic=a%20b", InvalidFilter::Value("topic"))]
    #[case("severity=%FF", InvalidFilter::Value("severity"))]
    fn what_no_event_can_have_is_named(#[case] query: &str, #[case] error: InvalidFilter) {
        assert_eq!(filter(query), Err(error));
    }

    #[test]
    fn a_last_event_id_is_found() {
        let uri = "/s?lastEventId=1.a&topic=x".parse().unwrap();
        assert_eq!(Filter::of(&uri).unwrap().1.as_deref(), Some("1.a"));
    }
}
