//! The id that ties a request, its answer and its log lines together.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use uuid::{Builder, Uuid};

/// Header of requests and answers.
pub const CORRELATION_HEADER: HeaderName = HeaderName::from_static("x-correlation-id");

/// Longest id of a client's own that is taken over, bytes.
const LONGEST: usize = 128;

/// The id of one request, as it goes into its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorrelationId(HeaderValue);

impl CorrelationId {
    /// The request's own id if it is 1 to 128 visible ASCII characters, else a new UUID.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        match headers.get(CORRELATION_HEADER) {
            Some(own)
                if (1..=LONGEST).contains(&own.len()) && own.as_bytes().iter().all(u8::is_ascii_graphic) =>
            {
                Self(own.clone())
            }
            _ => Self::new(),
        }
    }

    fn new() -> Self {
        let mut text = [0; 36];
        let uuid: Uuid = Builder::from_random_bytes(rand::random()).into_uuid();
        // The text of a UUID is always a valid header value.
        Self(
            HeaderValue::from_str(uuid.hyphenated().encode_lower(&mut text))
                .unwrap_or_else(|_| HeaderValue::from_static("-")),
        )
    }

    /// The id as a header value.
    #[must_use]
    pub fn header(&self) -> &HeaderValue {
        &self.0
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("abc-123", true)]
    #[case("with space", false)]
    #[case("", false)]
    fn a_clients_own_id_is_kept_when_it_is_one(#[case] own: &str, #[case] kept: bool) {
        let headers = HeaderMap::from_iter([(CORRELATION_HEADER, own.parse().unwrap())]);
        assert_eq!(CorrelationId::of(&headers).as_str() == own, kept);
    }

    #[test]
    fn a_long_id_is_replaced_by_a_uuid() {
        let headers = HeaderMap::from_iter([(CORRELATION_HEADER, "x".repeat(129).parse().unwrap())]);
        let id = CorrelationId::of(&headers);
        assert_eq!(Uuid::parse_str(id.as_str()).unwrap().get_version_num(), 4);
        assert_ne!(id, CorrelationId::of(&headers));
    }
}
