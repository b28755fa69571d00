//! Who gets a stream: limits, credentials, cursor; and how the others are refused.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    body::Body,
    extract::ConnectInfo,
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};

use super::{
    cursor::{self, Presented},
    feed::Feed,
    filter::Filter,
    group::{Group, Groups},
    quota::{Permit, Quota},
    wire,
};
use crate::{
    answer::ErrorAnswer,
    auth::{Authenticator, Denied, StreamCredentials},
    client_address::TrustedProxies,
    identity::Principal,
    limits::address_key,
    metrics::{Metrics, Refusal},
    token::Checked,
};

/// Decides about every request for a stream.
pub(super) struct Door {
    pub(super) authenticator: Authenticator,
    pub(super) quota: Arc<Quota>,
    pub(super) groups: Groups,
    pub(super) proxies: TrustedProxies,
    pub(super) metrics: Arc<Metrics>,
    pub(super) retry: u32,
    pub(super) draining: AtomicBool,
}

/// A stream that may begin.
pub(super) struct Admitted {
    pub(super) group: Arc<Group>,
    pub(super) permit: Permit,
    /// Where to read on; `None` for a stream that begins now.
    pub(super) resume: Option<Feed>,
}

/// What opens a stream.
enum Credential {
    /// A cursor in force, its principal's own for this filter.
    Cursor(Principal),
    /// A token of either kind.
    Token(Checked),
}

impl Credential {
    fn principal(&self) -> &Principal {
        match self {
            Self::Cursor(principal) => principal,
            Self::Token(checked) => &checked.principal,
        }
    }
}

impl Door {
    /// Lets the request in, or gives the answer that refuses it.
    pub(super) async fn admit(&self, parts: &Parts) -> Result<Admitted, Response> {
        // At once, without a look at any credential: what a reconnect storm meets.
        if self.draining.load(Ordering::SeqCst) {
            return Err(self.refuse(parts, Refusal::Draining));
        }
        if self.quota.is_full() {
            return Err(self.refuse(parts, Refusal::Instance));
        }
        let (filter, in_query) = Filter::of(&parts.uri).map_err(|error| {
            ErrorAnswer::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()).into_response()
        })?;
        let in_header = parts.headers.get("last-event-id").map(HeaderValue::as_bytes);
        let text = in_header.or(in_query.as_deref().map(str::as_bytes)).filter(|text| !text.is_empty());
        let presented = text.and_then(|text| Presented::parse(std::str::from_utf8(text).ok()?));

        let denied = |denied| ErrorAnswer::from(denied).into_response();
        let credential = self.authorise(parts, &filter, presented.as_ref()).await.map_err(denied)?;
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let peer = peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0.ip());
        let address = address_key(self.proxies.client(peer, &parts.headers));
        // The room comes before the redemption: a stream that is refused uses up no single-use token.
        let permit = self
            .quota
            .take(credential.principal(), address)
            .map_err(|refusal| self.refuse(parts, refusal))?;
        let (principal, resumes) = match credential {
            Credential::Cursor(principal) => {
                self.metrics.auth_success.inc();
                (principal, true)
            }
            Credential::Token(checked) => {
                let principal = self.authenticator.redeem(checked).await.map_err(denied)?;
                let keys = self.authenticator.identities().keys().load();
                let is_own = |cursor: &Presented| cursor.verify(&keys, &principal, &filter.canonical());
                let resumes = presented.as_ref().is_some_and(is_own);
                (principal, resumes)
            }
        };
        let resume = text.map(|_| match &presented {
            Some(cursor) if resumes => Feed::After(cursor.place),
            _ => Feed::Unknown,
        });
        self.metrics.streams_opened.inc();
        Ok(Admitted { group: self.groups.join(principal, filter), permit, resume })
    }

    /// What opens the stream. A cursor that is in force opens it again by itself, since a browser comes back with the
    /// query's token long expired; it is looked at first, so that a reconnect storm costs no look-up and no
    /// refused token is counted.
    async fn authorise(
        &self,
        parts: &Parts,
        filter: &Filter,
        presented: Option<&Presented>,
    ) -> Result<Credential, Denied> {
        let credentials = StreamCredentials::of(&parts.uri, &parts.headers);
        let identities = self.authenticator.identities();
        if let Some(cursor) = presented
            && credentials.header_token.is_none()
            && cursor.is_in_force(cursor::now())
        {
            let (keys, canonical) = (identities.keys().load(), filter.canonical());
            let principals = identities.principals();
            let owner = principals
                .iter()
                .filter(|principal| cursor.hints_at(principal))
                .find(|principal| cursor.verify(&keys, principal, &canonical));
            if let Some(owner) = owner {
                return Ok(Credential::Cursor(owner.clone()));
            }
        }
        self.authenticator.authorise_stream(&credentials).await.map(Credential::Token)
    }

    /// The refusal of a stream, which each kind of client understands as "later".
    fn refuse(&self, parts: &Parts, refusal: Refusal) -> Response {
        self.metrics.stream_refused(refusal);
        let reason = match refusal {
            Refusal::Instance => "instance_full",
            Refusal::Principal => "principal_full",
            Refusal::Address => "address_full",
            Refusal::Draining => "draining",
        };
        // Later than usual and spread out: the others are refused at the same time.
        let retry = wire::jittered(self.retry, 1.0, 3.0);
        if is_event_source(&parts.headers) {
            let mut response = Response::new(Body::from(wire::overloaded(retry, reason)));
            stream_headers(response.headers_mut());
            return response;
        }
        let seconds = u64::from(retry).div_ceil(1000);
        ErrorAnswer::new(StatusCode::SERVICE_UNAVAILABLE, reason).retry_after(seconds).into_response()
    }
}

/// Whether the client handles the stream as `EventSource` does, which gives up for good on any status but
/// 200. It asks for `text/event-stream` and nothing else, never from a cache, and in browsers with
/// `Sec-Fetch-Mode`. Scripts that only set `Accept` get the status that they look at.
pub(super) fn is_event_source(headers: &HeaderMap) -> bool {
    let is = |name: header::HeaderName, expected: &str| {
        headers.get(name).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(expected.as_bytes()))
    };
    is(header::ACCEPT, "text/event-stream")
        && (headers.contains_key("sec-fetch-mode")
            || headers.contains_key("last-event-id")
            || is(header::CACHE_CONTROL, "no-cache")
            || is(header::CACHE_CONTROL, "no-store"))
}

/// The headers of every stream.
pub(super) fn stream_headers(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::chromium(&[("accept", "text/event-stream"), ("cache-control", "no-cache"), ("sec-fetch-mode", "cors")], true)]
    #[case::plain_http_page(&[("accept", "text/event-stream"), ("cache-control", "no-cache")], true)]
    #[case::reconnect(&[("accept", "text/event-stream"), ("last-event-id", "1.x")], true)]
    #[case::curl(&[("accept", "*/*")], false)]
    #[case::script(&[("accept", "text/event-stream")], false)]
    #[case::page_fetch(&[("accept", "*/*"), ("sec-fetch-mode", "cors")], false)]
    fn event_source_is_told_from_the_others(
        #[case] list: &[(&'static str, &'static str)],
        #[case] soft: bool,
    ) {
        let headers: HeaderMap = list
            .iter()
            .map(|(name, value)| (name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        assert_eq!(is_event_source(&headers), soft);
    }
}
