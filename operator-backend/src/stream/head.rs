//! The head of the first request of a connection: parsed here, so that a stream never meets the HTTP server.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request::Parts};

/// Largest request head, bytes.
pub const LARGEST: usize = 16 * 1024;
const MOST_HEADERS: usize = 100;
/// How a connection over HTTP/2 begins.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes of a connection are.
#[derive(Debug)]
pub enum Head {
    /// Not enough yet to tell.
    Partial,
    /// An HTTP/1 request without a body, and the length of its head.
    Request(Box<Parts>, usize),
    /// Whatever else: the HTTP server's business, errors included.
    Other,
}

/// Parses the head of a request.
#[must_use]
pub fn parse(bytes: &[u8]) -> Head {
    if PREFACE.starts_with(bytes) {
        return if bytes.len() == PREFACE.len() { Head::Other } else { Head::Partial };
    }
    if bytes.starts_with(PREFACE) {
        return Head::Other;
    }
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => Head::Partial,
        Ok(httparse::Status::Complete(length)) => match parts(&request) {
            Some(parts) => Head::Request(Box::new(parts), length),
            None => Head::Other,
        },
        Err(_) => Head::Other,
    }
}

/// The parsed head in the types of the HTTP server; `None` if that must look at it itself.
fn parts(request: &httparse::Request<'_, '_>) -> Option<Parts> {
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for header in &*request.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(header.value).ok()?);
    }
    let has_body = headers.contains_key("transfer-encoding")
        || headers.get_all("content-length").iter().any(|length| length.as_bytes() != b"0");
    if has_body || headers.contains_key("upgrade") || headers.contains_key("expect") {
        return None;
    }
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(request.method?.as_bytes()).ok()?;
    parts.uri = request.path?.parse::<Uri>().ok()?;
    parts.version = if request.version? == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    // HTTP/1.1 wants exactly one Host, whoever serves it.
    if parts.version == Version::HTTP_11 && headers.get_all("host").iter().count() != 1 {
        return None;
    }
    parts.headers = headers;
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const STREAM: &[u8] = b"GET /s?token=t HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n\r\n";

    #[test]
    fn a_whole_head_is_parsed_and_every_part_of_it_is_partial() {
        for length in 0..STREAM.len() {
            assert!(matches!(parse(&STREAM[..length]), Head::Partial), "{length}");
        }
        let Head::Request(parts, length) = parse(STREAM) else { panic!("parsed") };
        assert_eq!((length, parts.uri.query(), parts.headers.len()), (STREAM.len(), Some("token=t"), 2));
    }

    #[rstest]
    #[case::h2c(PREFACE)]
    #[case::body(b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")]
    #[case::chunked(b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")]
    #[case::upgrade(b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\n\r\n")]
    #[case::no_host(b"GET / HTTP/1.1\r\n\r\n")]
    #[case::two_hosts(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")]
    #[case::tls(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")]
    fn what_is_not_simple_goes_to_the_server(#[case] bytes: &[u8]) {
        assert!(matches!(parse(bytes), Head::Other));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_damaged_head_is_parsed_or_refused(at in 0_usize..64, to: u8) {
            let mut bytes = STREAM.to_vec();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Head::Request(_, length) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
