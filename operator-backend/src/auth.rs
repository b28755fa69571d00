//! Who is asking: principal tokens, ephemeral tokens, and what each may do.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use axum::{
    extract::Query,
    http::{HeaderMap, StatusCode, Uri, header},
};

use crate::{
    identity::{Identities, Principal},
    metrics::{AuthFailure, Metrics},
    token::{Checked, Tokens},
};

/// Header that carries a principal token.
pub const TOKEN_HEADER: &str = "x-vx11-token";

/// Why a request may not go on. The client learns only which of the two it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// No credential at all.
    Missing,
    /// A credential that does not hold.
    Invalid(AuthFailure),
}

impl Denied {
    /// 401 or 403.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Missing => StatusCode::UNAUTHORIZED,
            Self::Invalid(_) => StatusCode::FORBIDDEN,
        }
    }

    /// The `detail` of the error answer.
    #[must_use]
    pub fn detail(self) -> &'static str {
        match self {
            Self::Missing => "auth_required",
            Self::Invalid(_) => "invalid_token",
        }
    }

    /// What the metric says.
    #[must_use]
    pub fn reason(self) -> AuthFailure {
        match self {
            Self::Missing => AuthFailure::Missing,
            Self::Invalid(reason) => reason,
        }
    }
}

/// What a stream request presents.
#[derive(Clone, Default)]
pub struct StreamCredentials<'a> {
    /// Value of `token=` in the query.
    pub query_token: Option<Cow<'a, str>>,
    /// Principal token of the headers.
    pub header_token: Option<&'a [u8]>,
}

impl<'a> StreamCredentials<'a> {
    /// The credentials of a request head.
    #[must_use]
    pub fn of(uri: &'a Uri, headers: &'a HeaderMap) -> Self {
        let raw = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .find_map(|pair| pair.strip_prefix("token="))
            .filter(|token| !token.is_empty());
        // An ephemeral token has nothing to decode, so this is for principal tokens only.
        let query_token = match raw {
            Some(raw) if raw.contains(['%', '+']) => Query::<HashMap<String, String>>::try_from_uri(uri)
                .ok()
                .and_then(|mut query| query.remove("token"))
                .map(Cow::Owned),
            raw => raw.map(Cow::Borrowed),
        };
        Self { query_token, header_token: header_token(headers) }
    }
}

/// The principal token of a request: `X-VX11-Token`, else `Authorization: Bearer`.
#[must_use]
pub fn header_token(headers: &HeaderMap) -> Option<&[u8]> {
    let direct = headers.get(TOKEN_HEADER).map(|value| value.as_bytes().trim_ascii());
    direct.filter(|token| !token.is_empty()).or_else(|| bearer_token(headers))
}

/// The token of `Authorization: Bearer`, the scheme in any case.
#[must_use]
pub fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// Decides about every credential, and counts what it decided. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    identities: Identities,
    tokens: Tokens,
    metrics: Arc<Metrics>,
    principal_in_query: bool,
}

impl Authenticator {
    /// An authenticator over these identities and tokens. `principal_in_query` lets a stream's `token=`
    /// be a principal token too.
    #[must_use]
    pub fn new(
        identities: Identities,
        tokens: Tokens,
        metrics: Arc<Metrics>,
        principal_in_query: bool,
    ) -> Self {
        Self { identities, tokens, metrics, principal_in_query }
    }

    /// The identities in force: principals, signing keys, control token.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.identities
    }

    /// The principal whose token the headers carry.
    ///
    /// # Errors
    /// [`Denied`] when there is none or it is wrong; counted.
    pub fn authorise_principal(&self, headers: &HeaderMap) -> Result<Principal, Denied> {
        let outcome = match header_token(headers) {
            None => Err(Denied::Missing),
            Some(token) => self.principal(token).ok_or(Denied::Invalid(AuthFailure::Principal)),
        };
        self.count(outcome)
    }

    /// Who may open this stream. A valid principal token in the header suffices; otherwise the query's token decides
    /// when there is one. Uses nothing up, and says nothing of a token that has been used: that is for
    /// [`Self::redeem`], once there is room for the stream.
    ///
    /// # Errors
    /// [`Denied`] when no credential is there or none holds; counted.
    pub async fn authorise_stream(&self, credentials: &StreamCredentials<'_>) -> Result<Checked, Denied> {
        let checked = self.check(credentials).await;
        if let Err(denied) = &checked {
            self.count_denied(*denied);
        }
        checked
    }

    /// The principal of a stream that has room. A single-use token is used up by this.
    ///
    /// # Errors
    /// [`Denied`] when the token has been used before; counted.
    pub async fn redeem(&self, checked: Checked) -> Result<Principal, Denied> {
        self.count(self.tokens.redeem(checked).await.map_err(Denied::Invalid))
    }

    async fn check(&self, credentials: &StreamCredentials<'_>) -> Result<Checked, Denied> {
        if let Some(principal) = credentials.header_token.and_then(|token| self.principal(token)) {
            return Ok(principal.into());
        }
        match (&credentials.query_token, credentials.header_token) {
            (None, None) => Err(Denied::Missing),
            (None, Some(_)) => Err(Denied::Invalid(AuthFailure::Principal)),
            (Some(token), _) => {
                if self.principal_in_query
                    && let Some(principal) = self.principal(token.as_bytes())
                {
                    return Ok(principal.into());
                }
                self.tokens.check(token).await.map_err(Denied::Invalid)
            }
        }
    }

    fn principal(&self, token: &[u8]) -> Option<Principal> {
        self.identities.principals().authenticate(token).cloned()
    }

    fn count(&self, outcome: Result<Principal, Denied>) -> Result<Principal, Denied> {
        match &outcome {
            Ok(_) => {
                self.metrics.auth_success.inc();
            }
            Err(denied) => self.count_denied(*denied),
        }
        outcome
    }

    fn count_denied(&self, denied: Denied) {
        self.metrics.auth_failed(denied.reason());
        if denied == Denied::Invalid(AuthFailure::Principal) {
            self.metrics.principal_invalid.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[rstest]
    #[case(&[("x-vx11-token", "a")], Some("a"))]
    #[case(&[("authorization", "Bearer b")], Some("b"))]
    #[case(&[("authorization", "bearer  b ")], Some("b"))]
    #[case(&[("x-vx11-token", "a"), ("authorization", "Bearer b")], Some("a"))]
    #[case(&[("x-vx11-token", " "), ("authorization", "Bearer b")], Some("b"))]
    #[case(&[("authorization", "Basic b")], None)]
    #[case(&[("authorization", "Bearer ")], None)]
    #[case(&[("authorization", "B")], None)]
    fn a_principal_token_comes_in_either_header(
        #[case] list: &[(&'static str, &str)],
        #[case] token: Option<&str>,
    ) {
        assert_eq!(header_token(&headers(list)), token.map(str::as_bytes));
    }

    #[rstest]
    #[case("/s?token=t", Some("t"))]
    #[case("/s?follow=true&token=t&topic=x", Some("t"))]
    #[case("/s?token=a%2Bb+c", Some("a+b c"))]
    #[case("/s?token=", None)]
    #[case("/s?mytoken=t", None)]
    #[case("/s", None)]
    fn a_stream_token_comes_in_the_query(#[case] uri: &str, #[case] token: Option<&str>) {
        let (uri, headers): (Uri, _) = (uri.parse().unwrap(), HeaderMap::new());
        assert_eq!(StreamCredentials::of(&uri, &headers).query_token.as_deref(), token);
    }
}
