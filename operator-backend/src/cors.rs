//! Which web pages may use the API: answers preflights and marks answers, by the allowed origins.

use std::str::FromStr;

use axum::http::{HeaderMap, HeaderValue, header};

/// Origins of pages that may call this API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// No page of another origin.
    #[default]
    None,
    /// Any page.
    Any,
    /// Pages of these origins, compared exactly as browsers send them.
    List(Vec<String>),
}

/// A list of origins that does not parse.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an origin; write scheme://host[:port] without a path, separated by commas, or *")]
pub struct InvalidOrigin(String);

impl FromStr for AllowedOrigins {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Ok(Self::None);
        }
        if parts.contains(&"*") {
            return Ok(Self::Any);
        }
        parts.into_iter().map(origin).collect::<Result<_, _>>().map(Self::List)
    }
}

fn origin(text: &str) -> Result<String, InvalidOrigin> {
    let invalid = || InvalidOrigin(text.to_owned());
    let (scheme, host) = text.split_once("://").ok_or_else(invalid)?;
    let fine = |part: &str, more: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    if fine(scheme, "+-.") && fine(host, "-._:[]") {
        // Browsers send scheme and host in lower case.
        Ok(text.to_ascii_lowercase())
    } else {
        Err(invalid())
    }
}

impl AllowedOrigins {
    /// The value of `Access-Control-Allow-Origin` for a request, if its origin is allowed.
    #[must_use]
    pub fn allow(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let origin = request.get(header::ORIGIN)?;
        match self {
            Self::None => None,
            Self::Any => Some(HeaderValue::from_static("*")),
            Self::List(list) => {
                list.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
            }
        }
    }

    /// Whether answers differ by the request's origin, so that caches must know.
    #[must_use]
    pub fn varies(&self) -> bool {
        matches!(self, Self::List(_))
    }

    /// Adds what a cross-origin page needs to read the answer to this request.
    pub fn mark(&self, allow: Option<HeaderValue>, answer: &mut HeaderMap) {
        if self.varies() {
            answer.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(origin) = allow {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            answer.insert(
                header::ACCESS_CONTROL_EXPOSE_HEADERS,
                HeaderValue::from_static("X-Correlation-Id, Retry-After"),
            );
        }
    }

    /// Adds what answers a preflight of an allowed origin. Tokens travel in headers or the query,
    /// never in cookies, so credentials are not allowed.
    pub fn preflight(answer: &mut HeaderMap) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
        answer.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static(
                "X-VX11-Token, Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Correlation-Id, Cache-Control",
            ),
        );
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn request(origin: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ORIGIN, origin.parse().unwrap())])
    }

    #[rstest]
    #[case("", "https://a.example", None)]
    #[case("*", "https://a.example", Some("*"))]
    #[case(
        "https://a.example, http://localhost:3000",
        "http://localhost:3000",
        Some("http://localhost:3000")
    )]
    #[case("https://A.example", "https://a.example", Some("https://a.example"))]
    #[case("https://a.example", "https://a.example.evil.example", None)]
    #[case("https://a.example", "http://a.example", None)]
    fn only_allowed_origins_are_let_in(
        #[case] list: &str,
        #[case] from: &str,
        #[case] expected: Option<&str>,
    ) {
        let allowed: AllowedOrigins = list.parse().unwrap();
        let header = allowed.allow(&request(from));
        assert_eq!(header.as_ref().map(|value| value.to_str().unwrap()), expected);
    }

    #[rstest]
    #[case("a.example")]
    #[case("https://a.example/path")]
    #[case("https://")]
    fn what_is_no_origin_is_named(#[case] list: &str) {
        assert_eq!(list.parse::<AllowedOrigins>(), Err(InvalidOrigin(list.to_owned())));
    }
}
