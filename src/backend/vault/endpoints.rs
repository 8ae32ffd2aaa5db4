//! What we ask of the server: one [`Call`] per operation, and its HTTP request.

use std::{collections::BTreeMap, fmt};

use reqwest::{
    Body, Request, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde_json::json;

use super::{client::Endpoint, transport::TransportError};
use crate::{
    backend::{Credential, Operation},
    secret::SecretString,
    spec::{ApiPath, LoginSpec, SecretRequest},
};

/// One request, before it is HTTP.
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    method: reqwest::Method,
    /// Path below `/v1/`.
    pub(super) path: String,
    /// What people know it by: the path, or the path that a lease was made at.
    pub(super) subject: String,
    /// The role of a login.
    pub(super) role: Option<&'a str>,
    query: Option<&'a BTreeMap<String, Vec<String>>>,
    body: Option<Vec<u8>>,
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation.as_str(), self.subject)
    }
}

impl<'a> Call<'a> {
    pub(super) fn login(login: &'a LoginSpec, credential: &Credential) -> Self {
        let body = match credential {
            Credential::Jwt(jwt) => json!({ "role": login.role, "jwt": jwt.expose() }),
            Credential::AppRole { role_id, secret_id: None } => json!({ "role_id": role_id.expose() }),
            Credential::AppRole { role_id, secret_id: Some(secret_id) } => {
                json!({ "role_id": role_id.expose(), "secret_id": secret_id.expose() })
            }
            Credential::Certificate if !login.role.is_empty() => json!({ "name": login.role }),
            // A token is adopted instead.
            Credential::Certificate | Credential::Token(_) => json!({}),
        };
        let path = format!("auth/{}/login", login.mount);
        let role = Some(login.role.as_str()).filter(|role| !role.is_empty());
        Self { role, ..Self::put(Operation::Login, path, Some(&body)) }
    }

    pub(super) fn fetch(request: &'a SecretRequest) -> Self {
        Self {
            operation: Operation::Fetch,
            method: reqwest::Method::from_bytes(request.method.as_str().as_bytes())
                .expect("GET, PUT and POST are methods"),
            path: request.path.to_string(),
            subject: request.path.to_string(),
            role: None,
            query: Some(&request.query),
            body: request.args.as_ref().map(|args| args.clone().into_bytes()),
        }
    }

    /// Writes `data` as the version of a KV v2 secret that follows `version`; 0 follows none.
    pub(super) fn generate(request: &SecretRequest, version: u64, data: &serde_json::Value) -> Self {
        let body = json!({ "options": { "cas": version }, "data": data });
        Self::put(Operation::Generate, request.path.to_string(), Some(&body))
    }

    pub(super) fn renew_session() -> Self {
        // No increment: one smaller than the TTL shortens it.
        Self::put(Operation::RenewSession, "auth/token/renew-self".to_owned(), Some(&json!({})))
    }

    pub(super) fn revoke_session() -> Self {
        Self::put(Operation::RevokeSession, "auth/token/revoke-self".to_owned(), None)
    }

    pub(super) fn lookup_session() -> Self {
        let call = Self::put(Operation::LookupSession, "auth/token/lookup-self".to_owned(), None);
        Self { method: reqwest::Method::GET, ..call }
    }

    /// The terms of a token that was made elsewhere: what a login would have answered.
    pub(super) fn adopt_session() -> Self {
        Self { operation: Operation::AdoptSession, ..Self::lookup_session() }
    }

    /// The server's health, which needs no token.
    pub(super) fn health() -> Self {
        Self { method: reqwest::Method::GET, ..Self::put(Operation::Look, "sys/health".to_owned(), None) }
    }

    /// A login that lacks everything: the mount says so, if it is there.
    pub(super) fn empty_login(mount: &ApiPath) -> Self {
        let path = format!("auth/{}/login", mount.as_str());
        Self { method: reqwest::Method::POST, ..Self::put(Operation::Look, path, Some(&json!({}))) }
    }

    pub(super) fn renew_lease(lease: &str) -> Self {
        Self::lease(Operation::RenewLease, "sys/leases/renew", lease)
    }

    pub(super) fn revoke_lease(lease: &str) -> Self {
        Self::lease(Operation::RevokeLease, "sys/leases/revoke", lease)
    }

    fn lease(operation: Operation, path: &str, lease: &str) -> Self {
        // A lease id is the path it was made at and a random name; people know the path.
        let subject = lease.rsplit_once('/').map_or(path, |(made_at, _)| made_at).to_owned();
        Self { subject, ..Self::put(operation, path.to_owned(), Some(&json!({ "lease_id": lease }))) }
    }

    fn put(operation: Operation, path: String, body: Option<&serde_json::Value>) -> Self {
        let method = if operation == Operation::Login { reqwest::Method::POST } else { reqwest::Method::PUT };
        let body = body.map(|body| body.to_string().into_bytes());
        Self { operation, method, subject: path.clone(), path, role: None, query: None, body }
    }

    /// Whether a standby may answer it from what it has.
    pub(super) fn is_read(&self) -> bool {
        self.method == reqwest::Method::GET && self.body.is_none()
    }

    /// The request as HTTP.
    pub(super) fn to_request(
        &self,
        endpoint: &Endpoint,
        namespace: &str,
        token: Option<&SecretString>,
    ) -> Result<Request, TransportError> {
        let mut request = Request::new(self.method.clone(), self.url(&endpoint.base)?);
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*"));
        // Vault's own proxies ask for it: a browser that was lured cannot set it.
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if !namespace.is_empty() {
            let value = HeaderValue::from_str(namespace)
                .map_err(|_| TransportError::Unsendable("Vault namespace"))?;
            headers.insert("x-vault-namespace", value);
        }
        if let Some(token) = token {
            insert_token(headers, token)?;
        }
        if let Some(body) = &self.body {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(Body::from(body.clone()));
        }
        Ok(request)
    }

    fn url(&self, base: &str) -> Result<Url, TransportError> {
        let unsendable = || TransportError::Unsendable("path");
        let mut url = Url::parse(base).map_err(|_| unsendable())?;
        let path = format!("{}/v1/{}", url.path().trim_end_matches('/'), encode(&self.path));
        url.set_path(&path);
        // A URL parser folds dots, drops tabs and turns backslashes: what policy saw must be what is sent.
        if url.path() != path || self.path.is_empty() {
            return Err(unsendable());
        }
        if let Some(query) = self.query.filter(|query| !query.is_empty()) {
            let mut pairs = url.query_pairs_mut();
            for (key, values) in query {
                pairs.extend_pairs(values.iter().map(|value| (key, value)));
            }
        }
        Ok(url)
    }
}

fn insert_token(headers: &mut HeaderMap, token: &SecretString) -> Result<(), TransportError> {
    let mut value =
        HeaderValue::from_str(token.expose()).map_err(|_| TransportError::Unsendable("session token"))?;
    value.set_sensitive(true);
    headers.insert("x-vault-token", value);
    Ok(())
}

/// Percent-encodes what a path of HTTP cannot carry as it is (RFC 3986, `pchar` and `/`).
fn encode(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push_str(&data_encoding::HEXUPPER.encode(&[byte]));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "literals in a table")]

    use super::*;

    fn url(path: &str) -> Result<String, TransportError> {
        let call = Call::put(Operation::Fetch, path.to_owned(), None);
        call.url("https://vault:8200").map(|url| url.to_string())
    }

    #[test]
    fn a_path_is_sent_as_policy_saw_it_or_not_at_all() {
        for (path, sent) in [
            ("secret/data/app", "secret/data/app"),
            ("secret/data/my app", "secret/data/my%20app"),
            ("secret/data/a@b:c,d=e+f", "secret/data/a@b:c,d=e+f"),
            ("secret/data/{a}|\"<x>`^", "secret/data/%7Ba%7D%7C%22%3Cx%3E%60%5E"),
            ("secret/data/a\\b", "secret/data/a%5Cb"),
            ("secret/data/a?b#c", "secret/data/a%3Fb%23c"),
            ("secret/data%2Fg", "secret/data%252Fg"),
            ("secret/a\tb\n", "secret/a%09b%0A"),
        ] {
            assert_eq!(url(path).unwrap(), format!("https://vault:8200/v1/{sent}"), "{path:?}");
        }
        for path in ["", "a/../b", "..", "./a", "a/."] {
            assert_eq!(url(path), Err(TransportError::Unsendable("path")), "{path:?}");
        }
    }

    #[test]
    fn a_lease_is_shown_by_the_path_it_was_made_at() {
        assert_eq!(Call::renew_lease("database/creds/app/QWYK").subject, "database/creds/app");
        assert_eq!(Call::revoke_lease("odd").subject, "sys/leases/revoke");
    }
}
