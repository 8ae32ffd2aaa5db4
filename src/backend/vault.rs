//! Vault and OpenBao over HTTP.
//!
//! `endpoints` says what is asked, `client` and `transport` carry it, `response`, `auth` and `kv` read what
//! comes back, and `failure` says what it means when it is not what was asked for. Everything that came from
//! the other side is bounded in size, depth and time; redirects are not followed.

use std::{sync::Arc, time::Duration};

pub use address::{AddressError, Host, VaultAddress, canonical_address};
use audit::AuditLine;
use client::ClientPool;
use endpoints::Call;
use failure::{Failure, Says, Target, Verdict};
use index::Indexes;
pub use probe::{Certificate, Probe, ServerState};
use reqwest::header::HeaderValue;
use response::{AnswerError, Granted};
use transport::{Answer, TransportError};

use super::{
    BackendError, ClientToken, Credential, FailureClass, Grant, Renewed, RequestContext, Secret,
    SecretBackend, SecretBody,
};
use crate::{
    clock::wall_now,
    secret::{SecretBytes, SecretString},
    spec::{Connection, LoginSpec, SecretRequest},
};

mod address;
mod audit;
mod auth;
mod client;
mod endpoints;
mod failure;
mod files;
mod generate;
mod index;
mod kv;
mod probe;
mod resolve;
mod response;
mod tls;
mod transport;

/// Bounds on one exchange, beside the total time that each [`RequestContext`] brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until TCP and TLS are up. Default 5 s: a healthy server in the same region takes milliseconds.
    pub connect: Duration,
    /// From the request until the answer's headers are complete. Default 60 s: a database or cloud backend
    /// behind the server takes its time; the server itself gives up after 90 s.
    pub first_byte: Duration,
    /// Longest body accepted, bytes. Default 16 MiB: a raft entry is 1 MiB at most unless the operator
    /// raised it, and JSON escapes make six of each byte.
    pub body: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), first_byte: Duration::from_secs(60), body: 16 * 1024 * 1024 }
    }
}

/// Media types of endpoints that answer a file instead of an envelope (PKI's certificates and CRLs).
const RAW_TYPES: [&str; 6] = [
    "application/pem-certificate-chain",
    "application/pkix-cert",
    "application/pkix-crl",
    "application/x-pem-file",
    "application/x-x509-ca-cert",
    "application/octet-stream",
];

/// The client of every server this process talks to.
pub struct VaultBackend {
    clients: ClientPool,
    indexes: Indexes,
    limits: Limits,
}

impl std::fmt::Debug for VaultBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VaultBackend").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Default for VaultBackend {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

/// How an exchange ended well.
enum Outcome {
    Answered(Answer),
    AlreadyGone,
}

impl VaultBackend {
    /// A client within `limits`; connects to nobody yet.
    pub fn new(limits: Limits) -> Self {
        Self { clients: ClientPool::new(limits.connect), indexes: Indexes::default(), limits }
    }

    /// Looks at the files that TLS with `connection`'s server takes, and connects with what they hold from here
    /// on. Requests look by themselves too, but not each one, and none tells who asked. Whether they changed.
    ///
    /// # Errors
    /// What is wrong with them, for people: connections keep the previous ones, if there are any.
    pub async fn reload_tls(&self, connection: &Connection) -> Result<bool, String> {
        self.clients.reload(connection).await.map_err(|error| crate::telemetry::chain(&error))
    }

    /// Performs `call` within the context's time and gives back an answer with a 2xx status.
    async fn perform(
        &self,
        context: &RequestContext,
        call: &Call<'_>,
        token: Option<&SecretString>,
    ) -> Result<Outcome, Failure> {
        let target = target(context);
        let work = self.exchange(context, call, token);
        match tokio::time::timeout(context.timeout, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(failure::of_transport(call, &target, &TransportError::Timeout).into()),
        }
    }

    async fn exchange(
        &self,
        context: &RequestContext,
        call: &Call<'_>,
        token: Option<&SecretString>,
    ) -> Result<Outcome, Failure> {
        let target = target(context);
        let index = if call.is_read() { self.indexes.get(&target.address, target.namespace) } else { None };
        let mut answer = self.send(context, call, token, index.as_ref(), false).await?;
        if (200..300).contains(&answer.status) {
            return Ok(Outcome::Answered(answer));
        }
        let mut verdict = failure::of_answer(call, &target, &answer, index.is_some());
        if let Verdict::Lagging(_) = verdict {
            // The standby refused before it did anything: the leader may answer in its place.
            answer = self.send(context, call, token, index.as_ref(), true).await?;
            if (200..300).contains(&answer.status) {
                return Ok(Outcome::Answered(answer));
            }
            verdict = failure::of_answer(call, &target, &answer, index.is_some());
        }
        match verdict {
            Verdict::AlreadyGone => Ok(Outcome::AlreadyGone),
            Verdict::Failed(error, says) => Err(Failure { error, says }),
            Verdict::Lagging(error) => Err(error.into()),
            Verdict::TokenOrRights(error) => Err(self.settle(context, call, token, error).await.into()),
        }
    }

    /// Asks whether the session lives, after a 403 that may mean either.
    async fn settle(
        &self,
        context: &RequestContext,
        call: &Call<'_>,
        token: Option<&SecretString>,
        denied: BackendError,
    ) -> BackendError {
        let lookup = Call::lookup_session();
        match self.send(context, &lookup, token, None, false).await {
            Ok(answer) if answer.status == 403 => {
                match failure::of_answer(&lookup, &target(context), &answer, false) {
                    // A policy that forbids lookup-self answers to a token that lives.
                    Verdict::Failed(error, _) if error.class == FailureClass::LeaseGone => {
                        failure::dead_session(call, &target(context))
                    }
                    _ => denied,
                }
            }
            Ok(answer) if (200..300).contains(&answer.status) => denied,
            // Not settled: neither give up a session that may live, nor blame its policies.
            Ok(_) | Err(_) => BackendError { class: FailureClass::Transient, worth_retrying: true, ..denied },
        }
    }

    async fn send(
        &self,
        context: &RequestContext,
        call: &Call<'_>,
        token: Option<&SecretString>,
        index: Option<&HeaderValue>,
        forward: bool,
    ) -> Result<Answer, BackendError> {
        let target = target(context);
        let mut audit = AuditLine::new(context, call, &target);
        let attempt = async {
            let endpoint = self.clients.endpoint(&context.connection).await?;
            let mut request = call.to_request(&endpoint, target.namespace, token)?;
            if let Some(index) = index {
                request.headers_mut().insert("x-vault-index", index.clone());
            }
            if forward {
                let value = HeaderValue::from_static("forward-active-node");
                request.headers_mut().insert("x-vault-inconsistent", value);
            }
            transport::send(&endpoint, request, self.limits.first_byte, self.limits.body).await
        };
        let result = attempt.await;
        audit.close(&result);
        match result {
            Ok(answer) => {
                if let Some(index) = answer.headers.get("x-vault-index") {
                    self.indexes.put(&target.address, target.namespace, index);
                }
                Ok(answer)
            }
            Err(error) => Err(failure::of_transport(call, &target, &error)),
        }
    }

    /// Makes a request as it is written, or once more with the `data/` it lacks.
    async fn read(
        &self,
        context: &RequestContext,
        token: &ClientToken,
        request: &SecretRequest,
    ) -> Result<Secret, Failure> {
        let call = Call::fetch(request);
        let outcome = match (self.perform(context, &call, Some(token)).await, &request.versioned) {
            // What consul-template does for `secret "kv/app"`. The server says what the path lacks to those who
            // may read it; to those who may read the path with `data/` alone it says 403.
            (Err(failure), Some(path))
                if failure.says == Says::LacksData || failure.error.class == FailureClass::Denied =>
            {
                let versioned = SecretRequest { path: path.clone(), versioned: None, ..request.clone() };
                let second = Call::fetch(&versioned);
                match self.perform(context, &second, Some(token)).await {
                    Err(_) if failure.error.class == FailureClass::Denied => Err(failure),
                    outcome => outcome,
                }
            }
            (outcome, _) => outcome,
        };
        let secret = match outcome? {
            Outcome::Answered(answer) => Self::secret(&call, &target(context), answer),
            Outcome::AlreadyGone => Err(failure::of_content(&call, &target(context), AnswerError::Empty)),
        };
        Ok(secret?)
    }

    /// The secret in an answer.
    fn secret(call: &Call<'_>, target: &Target<'_>, answer: Answer) -> Result<Secret, BackendError> {
        let since = answer.since;
        let invalid = |error| failure::of_content(call, target, error);
        let media = answer.media_type();
        if answer.body.is_empty() {
            return Err(invalid(AnswerError::Empty));
        }
        if RAW_TYPES.contains(&media.as_str()) {
            return Ok(raw(answer.body, since));
        }
        if media.starts_with("text/") {
            return Err(invalid(AnswerError::Page));
        }
        let envelope = response::envelope(answer.body.expose()).map_err(invalid)?;
        let lease = response::lease(&envelope).map_err(invalid)?;
        let data = envelope.data.expose();
        if !data.is_object() && !data.is_null() {
            return Err(invalid(AnswerError::DataNotObject));
        }
        let holds = |key: &str| envelope.rest.contains_key(key);
        if data.is_null() && lease.is_none() && !holds("auth") && !holds("wrap_info") {
            return Err(invalid(AnswerError::NoData));
        }
        let version = kv::version(data);
        if let Some(version) = version.as_ref().filter(|version| version.state != kv::State::Alive) {
            return Err(failure::of_version(call, target, version));
        }
        let lifetime = if lease.is_none() { kv::data_lifetime(data, wall_now()) } else { None };
        Ok(Secret {
            lease,
            lifetime,
            kv_version: version.map(|version| version.number),
            warnings: envelope.warnings.clone(),
            body: SecretBody::Json(Arc::new(envelope)),
            since,
        })
    }

    /// A session of a token that was made elsewhere.
    async fn adopt(&self, context: &RequestContext, token: &ClientToken) -> Result<Grant, BackendError> {
        let call = Call::adopt_session();
        let Outcome::Answered(answer) = self.perform(context, &call, Some(token)).await? else {
            return Err(failure::of_content(&call, &target(context), AnswerError::Empty));
        };
        let grant = auth::adopted(answer.body.expose(), token, answer.since)
            .map_err(|error| failure::of_content(&call, &target(context), error))?;
        audit::session(context, &grant.accessor);
        Ok(grant)
    }

    async fn renew(
        &self,
        context: &RequestContext,
        call: &Call<'_>,
        token: &ClientToken,
        read: fn(&[u8]) -> Result<Granted, AnswerError>,
    ) -> Result<Renewed, BackendError> {
        let target = target(context);
        let Outcome::Answered(answer) = self.perform(context, call, Some(token)).await? else {
            return Err(failure::of_content(call, &target, AnswerError::Empty));
        };
        let Granted { ttl, renewable } =
            read(answer.body.expose()).map_err(|error| failure::of_content(call, &target, error))?;
        Ok(Renewed { ttl, renewable, since: answer.since })
    }
}

fn raw(body: SecretBytes, since: crate::clock::BootTime) -> Secret {
    let body = SecretBody::Raw(Arc::new(body));
    Secret { body, lease: None, lifetime: None, kv_version: None, warnings: Vec::new(), since }
}

fn target(context: &RequestContext) -> Target<'_> {
    let address = canonical_address(&context.connection.address);
    Target {
        address: address.unwrap_or_else(|_| "a refused address".to_owned()),
        namespace: &context.connection.namespace,
    }
}

impl SecretBackend for VaultBackend {
    async fn login(
        &self,
        context: RequestContext,
        login: &LoginSpec,
        credential: &Credential,
    ) -> Result<Grant, BackendError> {
        if let Credential::Token(token) = credential {
            return self.adopt(&context, token).await;
        }
        let call = Call::login(login, credential);
        let Outcome::Answered(answer) = self.perform(&context, &call, None).await? else {
            return Err(failure::of_content(&call, &target(&context), AnswerError::Empty));
        };
        let grant = auth::grant(answer.body.expose(), answer.since)
            .map_err(|error| failure::of_content(&call, &target(&context), error))?;
        audit::session(&context, &grant.accessor);
        Ok(grant)
    }

    async fn fetch(
        &self,
        context: RequestContext,
        token: &ClientToken,
        request: &SecretRequest,
    ) -> Result<Secret, BackendError> {
        if request.generate.is_empty() {
            Ok(self.read(&context, token, request).await?)
        } else {
            self.agree(&context, token, request).await
        }
    }

    async fn renew_session(
        &self,
        context: RequestContext,
        token: &ClientToken,
    ) -> Result<Renewed, BackendError> {
        self.renew(&context, &Call::renew_session(), token, response::renewed_session).await
    }

    async fn renew_lease(
        &self,
        context: RequestContext,
        token: &ClientToken,
        lease_id: &str,
    ) -> Result<Renewed, BackendError> {
        self.renew(&context, &Call::renew_lease(lease_id), token, response::renewed_lease).await
    }

    async fn revoke_session(&self, context: RequestContext, token: &ClientToken) -> Result<(), BackendError> {
        Ok(self.perform(&context, &Call::revoke_session(), Some(token)).await.map(drop)?)
    }

    async fn revoke_lease(
        &self,
        context: RequestContext,
        token: &ClientToken,
        lease_id: &str,
    ) -> Result<(), BackendError> {
        Ok(self.perform(&context, &Call::revoke_lease(lease_id), Some(token)).await.map(drop)?)
    }
}
