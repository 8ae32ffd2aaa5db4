//! The one production trait: a source of secrets.
//!
//! `vault` is the first implementation and serves Vault and OpenBao alike. Implementations classify every
//! failure ([`FailureClass`]); nothing above this module reads a status code.

use std::{collections::BTreeMap, fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    clock::BootTime,
    secret::{SecretJson, SecretString},
    spec::{Connection, LoginSpec, SecretRequest},
};

pub(crate) mod generator;
pub mod vault;

/// A session token of the store.
pub type ClientToken = SecretString;

/// What a login is made with; the kind of it is the [`LoginSpec`]'s method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A ServiceAccount token.
    Jwt(SecretString),
    /// A role id, and a secret id unless the role wants none.
    AppRole {
        /// `role_id`.
        role_id: SecretString,
        /// `secret_id`.
        secret_id: Option<SecretString>,
    },
    /// The connection's own client certificate.
    Certificate,
    /// The session's token itself.
    Token(ClientToken),
}

/// What a failure means for what to do next. The only vocabulary above the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureClass {
    /// Not reached, time-out, 5xx, a standby that lags: keep everything, try later.
    Transient,
    /// 429 and kin: try later, when told.
    Throttled,
    /// Sealed or uninitialised: keep everything, try later.
    Sealed,
    /// 403 with a live session, or a login refused with a reason: not this identity.
    Denied,
    /// The lease or the session is unknown to the server: mint anew.
    LeaseGone,
    /// Nothing at this path, or a deleted or destroyed version.
    NotFound,
    /// The request or the answer makes no sense: retrying the same will not help.
    Invalid,
}

impl FailureClass {
    /// As logs, metrics and errors name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Throttled => "throttled",
            Self::Sealed => "sealed",
            Self::Denied => "denied",
            Self::LeaseGone => "lease-gone",
            Self::NotFound => "not-found",
            Self::Invalid => "invalid",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a request is for: what an error means depends on it, and so do its time and its name in metrics and in
/// the audit line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Login with a credential.
    Login,
    /// Read of an object, or a write that answers.
    Fetch,
    /// The write of values that nobody had written.
    Generate,
    /// Renewal of a session.
    RenewSession,
    /// Renewal of a lease.
    RenewLease,
    /// Revocation of a session.
    RevokeSession,
    /// Revocation of a lease.
    RevokeLease,
    /// In place of a login, with a token that was made elsewhere.
    AdoptSession,
    /// To tell a dead token from a missing right.
    LookupSession,
    /// A look without a token.
    Look,
}

impl Operation {
    /// As the audit line and metrics name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Fetch => "fetch",
            Self::Generate => "generate",
            Self::RenewSession => "renew-session",
            Self::RenewLease => "renew-lease",
            Self::RevokeSession => "revoke-session",
            Self::RevokeLease => "revoke-lease",
            Self::AdoptSession => "adopt-session",
            Self::LookupSession => "lookup-session",
            Self::Look => "look",
        }
    }
}

/// A failed request, fit to be shown to a pod's author: never a body, never a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{message}")]
pub struct BackendError {
    /// What to do about it.
    pub class: FailureClass,
    /// What we asked, what the server answered in class, what to do next; one line.
    pub message: String,
    /// How long the server asked us to wait, floored and bounded by the caller.
    pub retry_after: Option<Duration>,
    /// Whether the same request may succeed soon although the class is final: a bare 403 at a login
    /// (five TokenReview failures look like it), a 404 from a standby that lags.
    pub worth_retrying: bool,
}

/// How a session's token behaves (`auth` of a login answer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SessionTerms {
    /// Time to live granted; zero lives for ever.
    pub ttl: Duration,
    /// Whether renew-self prolongs it. False for batch tokens.
    pub renewable: bool,
    /// Whether it can be revoked and carries an accessor: false for batch tokens.
    pub revocable: bool,
    /// Uses left that the server grants, zero for no limit. A limited token is never shared nor polled with.
    pub num_uses: u64,
    /// Whether the auth method checked the pod with the API server (kubernetes) and so the identity is the
    /// ServiceAccount's: such sessions may be shared by mounts of the identity.
    pub shareable: bool,
}

/// A session as a login grants it.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The token.
    pub token: ClientToken,
    /// Names the token in the server's audit log; not a credential.
    pub accessor: String,
    /// Its terms.
    pub terms: SessionTerms,
    /// When the login was *sent*: its life counts from here.
    pub since: BootTime,
}

/// A lease as an answer grants it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeaseTerms {
    /// `lease_id`.
    pub id: String,
    /// `lease_duration`.
    pub ttl: Duration,
    /// Whether sys/leases/renew prolongs it.
    pub renewable: bool,
}

/// A lifetime that an answer without a lease carries in its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DataLifetime {
    /// A database static role: the server rotates in `ttl`; may be 0 with the old value still served.
    Rotates {
        /// Until the next rotation.
        ttl: Duration,
    },
    /// A certificate or other value that ends: issue anew before.
    Expires {
        /// Until notAfter, by the wall clock at the time of the answer.
        ttl: Duration,
    },
}

/// One answer of the store.
#[derive(Clone, Debug)]
pub struct Secret {
    /// The answer's data and envelope.
    pub body: SecretBody,
    /// The lease that came with it.
    pub lease: Option<LeaseTerms>,
    /// A lifetime without a lease.
    pub lifetime: Option<DataLifetime>,
    /// KV v2 version, for the guard against a standby that lags.
    pub kv_version: Option<u64>,
    /// Warnings of the server, by content free of secrets (they are the server's own texts about the request).
    pub warnings: Vec<String>,
    /// When the request was *sent*: a lease starts here.
    pub since: BootTime,
}

impl Secret {
    /// That there is none, to a request sent at `since`.
    pub const fn absent(since: BootTime) -> Self {
        let body = SecretBody::Absent;
        Self { body, lease: None, lifetime: None, kv_version: None, warnings: Vec::new(), since }
    }
}

/// What an answer holds.
#[derive(Clone, Debug)]
pub enum SecretBody {
    /// A JSON envelope.
    Json(Arc<Envelope>),
    /// A raw endpoint (PEM, DER): the body as it came.
    Raw(Arc<crate::secret::SecretBytes>),
    /// There is no such secret, and nobody minds ([`SecretRequest::optional`]).
    Absent,
}

/// The envelope of a JSON answer, kept as it came so that a whole-response object can show it.
#[derive(Clone, Debug, Default)]
pub struct Envelope {
    /// `request_id`.
    pub request_id: String,
    /// `lease_id`.
    pub lease_id: String,
    /// `lease_duration`, seconds.
    pub lease_duration: u64,
    /// `renewable`.
    pub renewable: bool,
    /// `data` as it came; null when absent.
    pub data: SecretJson,
    /// `warnings`.
    pub warnings: Vec<String>,
    /// `auth`, `wrap_info`, `mount_type` and whatever else a whole-response object shows, when present.
    pub rest: BTreeMap<String, SecretJson>,
}

/// What a renewal granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Time to live from `since`.
    pub ttl: Duration,
    /// Whether it may be renewed again.
    pub renewable: bool,
    /// When the renewal was *sent*.
    pub since: BootTime,
}

/// A volume that a request is made for: what an auditor asks about a request that was made with a session
/// many pods share.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Served {
    /// `namespace/name` of the pod.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// Name of the SecretProviderClass.
    pub class: String,
}

/// What every request carries besides its content.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Where to.
    pub connection: Arc<Connection>,
    /// Bound for the whole request; the implementation has shorter ones per phase.
    pub timeout: Duration,
    /// For the audit line: `namespace/pod` the request is made for, or the identity of a shared session.
    pub on_behalf_of: Arc<str>,
    /// For the audit line: the volumes that are served by it.
    pub serves: Arc<[Served]>,
    /// For the audit line: accessor of the session the request is made with, once it is known.
    pub accessor: Option<Arc<str>>,
}

/// A source of secrets with sessions and leases. All futures are cancel-safe in that dropping one leaks at
/// most what the server already did; the worker never drops a login or a mint (they run in their own task).
pub trait SecretBackend: Send + Sync + 'static {
    /// Logs in. With [`Credential::Token`] it asks for that token's terms: such a session is never ours to
    /// revoke.
    fn login(
        &self,
        context: RequestContext,
        login: &LoginSpec,
        credential: &Credential,
    ) -> impl Future<Output = Result<Grant, BackendError>> + Send;

    /// Reads, or writes what answers.
    fn fetch(
        &self,
        context: RequestContext,
        token: &ClientToken,
        request: &SecretRequest,
    ) -> impl Future<Output = Result<Secret, BackendError>> + Send;

    /// Prolongs the session by its own TTL (never a smaller increment: that shrinks it).
    fn renew_session(
        &self,
        context: RequestContext,
        token: &ClientToken,
    ) -> impl Future<Output = Result<Renewed, BackendError>> + Send;

    /// Prolongs a lease by its own TTL.
    fn renew_lease(
        &self,
        context: RequestContext,
        token: &ClientToken,
        lease_id: &str,
    ) -> impl Future<Output = Result<Renewed, BackendError>> + Send;

    /// Revokes the session and every lease made in it. Succeeds when it was gone already.
    fn revoke_session(
        &self,
        context: RequestContext,
        token: &ClientToken,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// Revokes one lease. Succeeds when it was gone already; [`FailureClass::Denied`] where the policy has
    /// no sys/leases/revoke.
    fn revoke_lease(
        &self,
        context: RequestContext,
        token: &ClientToken,
        lease_id: &str,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;
}
