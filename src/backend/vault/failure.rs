//! The only place that reads status codes.
//!
//! The server's texts choose between sentences of ours and are never passed on: an error ends up in a pod's
//! events. Class first by status and shape, by text last: texts differ between Vault and OpenBao.

use std::time::{Duration, SystemTime};

use super::{
    endpoints::Call,
    kv::{self, State},
    probe::ServerState,
    response::{AnswerError, parse},
    transport::{Answer, Handshake, TransportError},
};
use crate::backend::{BackendError, FailureClass, Operation};

/// Longest wait a server may ask for; the caller has smaller bounds of its own.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Largest error body looked at, bytes.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// Where a call went, for people.
pub(super) struct Target<'a> {
    /// Canonical; an address that was refused may hold a password and is not repeated.
    pub(super) address: String,
    pub(super) namespace: &'a str,
}

/// What a status means before anything else is asked of the server.
pub(super) enum Verdict {
    /// The error to give back, and what it says beside its class.
    Failed(BackendError, Says),
    /// Revoked before: what was wanted is so.
    AlreadyGone,
    /// A 403 that a dead token and a missing right both give: lookup-self tells.
    TokenOrRights(BackendError),
    /// A standby that has not come as far as the index we sent.
    Lagging(BackendError),
}

/// What some answers say that their class does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// Nothing of the kind.
    NoMore,
    /// Nothing was ever written at the path, as far as this server knows.
    Absent,
    /// The path lacks the `data/` of its KV version 2 mount.
    LacksData,
    /// A newer version is there than the one a write was to follow.
    Outdated,
}

/// A failed exchange.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: BackendError,
    pub(super) says: Says,
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self { error, says: Says::NoMore }
    }
}

impl From<Failure> for BackendError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// What an answer with a status other than 2xx means.
pub(super) fn of_answer(call: &Call<'_>, target: &Target<'_>, answer: &Answer, sent_index: bool) -> Verdict {
    let texts = Texts::of(answer);
    let fail = |problem: Problem| problem.error(call, target, answer);
    match (call.operation, answer.status) {
        (Operation::RevokeSession | Operation::RevokeLease, 400) if texts.says_unknown_lease() => {
            Verdict::AlreadyGone
        }
        (Operation::RevokeSession, 403) if !texts.is_acl_denial() && texts.json => Verdict::AlreadyGone,
        (Operation::RenewSession | Operation::LookupSession, 403) if texts.json && !texts.is_acl_denial() => {
            Verdict::Failed(fail(session_gone()), Says::NoMore)
        }
        (Operation::Fetch | Operation::Generate | Operation::RenewLease | Operation::RevokeLease, 403)
            if !texts.is_acl_denial() && texts.json =>
        {
            Verdict::TokenOrRights(fail(denied(call)))
        }
        (_, 429) if sent_index && texts.json && texts.all.is_empty() => Verdict::Lagging(fail(lagging())),
        (_, 412) => Verdict::Lagging(fail(lagging())),
        _ => {
            let problem = problem(call, target, answer, &texts);
            let says = problem.says;
            Verdict::Failed(fail(problem), says)
        }
    }
}

/// The session was looked up after a 403 and is unknown.
pub(super) fn dead_session(call: &Call<'_>, target: &Target<'_>) -> BackendError {
    session_gone().at(call, target)
}

/// No answer.
pub(super) fn of_transport(call: &Call<'_>, target: &Target<'_>, error: &TransportError) -> BackendError {
    let (class, advice) = match error {
        TransportError::Address(_) => (FailureClass::Invalid, "correct vaultAddress"),
        TransportError::Tls(_) => (FailureClass::Invalid, "correct the TLS parameter or the file it names"),
        TransportError::Unsendable(_) => (FailureClass::Invalid, "correct it"),
        TransportError::ForbiddenAddress { .. } => (
            FailureClass::Invalid,
            "no secret store lives there; name the server by localhost or by its IP address if this is meant",
        ),
        TransportError::TooLarge(_) => (FailureClass::Invalid, "the path is not one of a secret"),
        TransportError::UnknownHost => (FailureClass::Transient, "check vaultAddress and the node's DNS"),
        TransportError::Refused => (FailureClass::Transient, "check that the server runs and listens there"),
        TransportError::ConnectTimeout => {
            (FailureClass::Transient, "check the network path and network policies from this node")
        }
        TransportError::FirstByteTimeout | TransportError::Timeout => {
            (FailureClass::Transient, "the server is overloaded, or waits for a backend of its own")
        }
        TransportError::Broken(_) => (FailureClass::Transient, "it will be tried again"),
        TransportError::NotHttp => {
            (FailureClass::Transient, "check that vaultAddress is a Vault or OpenBao API")
        }
        TransportError::Handshake(kind) => (FailureClass::Transient, handshake_advice(*kind)),
    };
    Problem::new(class, &error.to_string(), advice).at(call, target)
}

/// An answer with a good status that cannot be used.
pub(super) fn of_content(call: &Call<'_>, target: &Target<'_>, error: AnswerError) -> BackendError {
    let advice = match (call.operation, error) {
        (_, AnswerError::Page | AnswerError::NotJson | AnswerError::NotObject) => {
            "check that vaultAddress is a Vault or OpenBao API"
        }
        (Operation::Login, AnswerError::Mfa) => "use a role without MFA",
        (Operation::Login, _) => "check vaultAddress and vaultAuthMountPath",
        (Operation::Fetch, AnswerError::Empty | AnswerError::NoData) => {
            "the path answers no secret: check secretPath and method"
        }
        _ => "check what answers at this address",
    };
    Problem::new(FailureClass::Invalid, &error.to_string(), advice).at(call, target)
}

/// A KV v2 version that an answer with a good status shows as gone.
pub(super) fn of_version(call: &Call<'_>, target: &Target<'_>, version: &kv::Version) -> BackendError {
    gone(version).at(call, target)
}

/// What an answer of sys/health says of the server.
pub(super) fn server_state(answer: &Answer) -> ServerState {
    match answer.status {
        200 => ServerState::Active,
        // Standby, and those of other clusters.
        429 | 472 | 473 => ServerState::Standby,
        501 => ServerState::Uninitialised,
        503 => ServerState::Sealed,
        status => ServerState::Unclear(status),
    }
}

/// Whether an empty login was answered by an auth mount: that misses the role; without a mount it is forbidden.
pub(super) fn has_mount(answer: &Answer) -> Option<bool> {
    match answer.status {
        400 => Some(true),
        403 | 404 => Some(false),
        _ => None,
    }
}

/// Seconds or an HTTP date (RFC 9110); zero is real (OpenBao's rate limits send it).
pub(super) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => MAX_RETRY_AFTER,
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

struct Problem {
    class: FailureClass,
    text: String,
    advice: String,
    worth_retrying: bool,
    says: Says,
}

impl Problem {
    fn new(class: FailureClass, text: &str, advice: &str) -> Self {
        let (text, advice) = (text.to_owned(), advice.to_owned());
        Self { class, text, advice, worth_retrying: false, says: Says::NoMore }
    }

    fn saying(self, says: Says) -> Self {
        Self { says, ..self }
    }

    fn retry(self) -> Self {
        Self { worth_retrying: true, ..self }
    }

    fn at(self, call: &Call<'_>, target: &Target<'_>) -> BackendError {
        let message = format!("{}: {}; {}", describe(call, target), self.text, self.advice);
        BackendError { class: self.class, message, retry_after: None, worth_retrying: self.worth_retrying }
    }

    fn error(self, call: &Call<'_>, target: &Target<'_>, answer: &Answer) -> BackendError {
        let wait = answer.header("retry-after").and_then(|text| retry_after(text, crate::clock::wall_now()));
        BackendError { retry_after: wait, ..self.at(call, target) }
    }
}

fn describe(call: &Call<'_>, target: &Target<'_>) -> String {
    let subject = &call.subject;
    let what = match call.operation {
        Operation::Login => {
            let mount = subject.strip_suffix("/login").unwrap_or(subject);
            match call.role {
                Some(role) => format!("login at {mount} as role {role:?}"),
                None => format!("login at {mount}"),
            }
        }
        Operation::Fetch => format!("read of {subject}"),
        Operation::Generate => format!("write of generated values to {subject}"),
        Operation::RenewLease => format!("renewal of the lease of {subject}"),
        Operation::RevokeLease => format!("revocation of the lease of {subject}"),
        Operation::RenewSession => "renewal of the session".to_owned(),
        Operation::RevokeSession => "revocation of the session".to_owned(),
        Operation::AdoptSession => "look-up of the token from the token file".to_owned(),
        Operation::LookupSession => "lookup of the session".to_owned(),
        Operation::Look => format!("look at {subject}"),
    };
    match target.namespace {
        "" => format!("{what} on {}", target.address),
        namespace => format!("{what} on {}, namespace {namespace:?}", target.address),
    }
}

fn problem(call: &Call<'_>, target: &Target<'_>, answer: &Answer, texts: &Texts) -> Problem {
    use FailureClass::{Denied, Invalid, Sealed, Throttled, Transient};
    let code = answer.status;
    match code {
        // Reached with a status that promises content and was not meant for us.
        100..=299 => {
            Problem::new(Invalid, "the server answered out of turn", "check what answers at this address")
        }
        300..=399 => redirect(target, answer),
        400 => bad_request(call, texts),
        401 => Problem::new(
            Denied,
            "the server, or a proxy before it, wants another kind of login (401)",
            "check vaultAddress",
        ),
        403 if call.operation == Operation::Login => login_denied(texts),
        403 if call.operation == Operation::AdoptSession && texts.json => Problem::new(
            Denied,
            "the token is unknown to the server (403): expired, revoked, or of another server",
            "put a token that lives into the file",
        ),
        403 if !texts.json => Problem::new(
            Denied,
            "refused (403) by something in front of the server",
            "check proxies and network rules",
        ),
        403 => denied(call),
        404 => not_found(call, answer, texts),
        405 => Problem::new(
            Invalid,
            "the path does not support this method (405)",
            "check method and secretPath",
        ),
        408 | 425 => Problem::new(Transient, "the server gave up waiting", "it will be tried again"),
        413 => Problem::new(Invalid, "the request is too large for the server (413)", "shorten secretArgs"),
        429 => Problem::new(
            Throttled,
            "the server limits the rate of requests (429)",
            "it will be tried again when told",
        ),
        472 | 473 => Problem::new(
            Transient,
            "a standby answered that does not serve requests",
            "it will be tried again",
        ),
        501 => {
            Problem::new(Sealed, "the server is not initialized (501)", "initialize it; nothing is lost here")
        }
        503 if texts.mention("sealed") => Problem::new(
            Sealed,
            "the server is sealed (503)",
            "unseal it; what is delivered stays and is renewed after",
        ),
        500 if texts.mention("could not load backend configuration") => Problem::new(
            Transient,
            "the auth mount is not configured",
            "write its config (kubernetes_host, kubernetes_ca_cert)",
        ),
        500 if call.operation == Operation::Fetch => Problem::new(
            Transient,
            "the server failed (500), as it does when a database or other backend of its own is down",
            "it will be tried again",
        ),
        code if code < 500 => Problem::new(
            Invalid,
            &format!("the server refused the request ({code})"),
            "check secretPath and secretArgs",
        ),
        _ => Problem::new(Transient, &format!("the server failed ({code})"), "it will be tried again"),
    }
}

fn redirect(target: &Target<'_>, answer: &Answer) -> Problem {
    // Never followed: the token would go along, and the target is mostly a leader that died.
    let to_tls = answer.header("location").is_some_and(|to| to.starts_with("https://"));
    if to_tls && target.address.starts_with("http://") {
        return Problem::new(
            FailureClass::Transient,
            "the server redirects to https",
            "use https:// in vaultAddress",
        );
    }
    Problem::new(
        FailureClass::Transient,
        "redirected, as a standby does while no leader is elected",
        "it will be tried again; redirects are not followed",
    )
}

fn lagging() -> Problem {
    Problem::new(FailureClass::Transient, "a standby has not caught up yet", "it will be tried again").retry()
}

fn session_gone() -> Problem {
    Problem::new(
        FailureClass::LeaseGone,
        "the session is unknown to the server: expired, revoked, or its storage is lost",
        "a new login follows",
    )
}

fn denied(call: &Call<'_>) -> Problem {
    let advice = match call.operation {
        Operation::Fetch => format!("add it to a policy of the role (path {:?})", call.subject),
        Operation::Generate => format!(
            "generate needs two permissions: capabilities create and update for {:?} in a policy of the role, and \
             \"writes: allow\" in the node's policy, which has it",
            call.subject
        ),
        // OpenBao renews no session of the kubernetes method whose ServiceAccount is gone, and says no more.
        Operation::RenewSession => format!(
            "add {:?} with capability update to a policy of the role, if the pod and its ServiceAccount are still there",
            call.path
        ),
        _ => format!("add {:?} with capability update to a policy of the role", call.path),
    };
    Problem::new(
        FailureClass::Denied,
        &format!("the session's policies do not allow {} (403)", call.path),
        &advice,
    )
}

fn login_denied(texts: &Texts) -> Problem {
    let reasons = [
        (
            "audience",
            "the token's audience is not the one the role expects",
            "set audience to the role's, or correct the role",
        ),
        ("token is expired", "the pod's ServiceAccount token has expired", "the kubelet brings a new one"),
        (
            "service account name not authorized",
            "the role does not admit this ServiceAccount",
            "add it to bound_service_account_names",
        ),
        (
            "namespace not authorized",
            "the role does not admit this Kubernetes namespace",
            "add it to bound_service_account_namespaces",
        ),
    ];
    if let Some((_, text, advice)) = reasons.iter().find(|(needle, ..)| texts.mention(needle)) {
        return Problem::new(FailureClass::Denied, text, advice);
    }
    // Five failures of Vault's own TokenReview give exactly this, and so does a mount that is not there.
    Problem::new(
        FailureClass::Denied,
        "permission denied (403), without a reason",
        "check the role, the audience and vaultAuthMountPath, that the pod still exists, \
         and that Vault itself may and can create TokenReviews",
    )
    .retry()
}

fn bad_request(call: &Call<'_>, texts: &Texts) -> Problem {
    use FailureClass::{Denied, Invalid, LeaseGone};
    if texts.plain.contains("http request to an https server") {
        return Problem::new(Invalid, "the server speaks TLS on this port", "use https:// in vaultAddress");
    }
    match call.operation {
        Operation::Login => {
            let reasons = [
                (
                    Denied,
                    "token is expired",
                    "the pod's ServiceAccount token has expired",
                    "the kubelet brings a new one",
                ),
                (
                    Denied,
                    "audience",
                    "the token's audience is not the one the role expects",
                    "set audience to the role's, or correct the role",
                ),
                (
                    Denied,
                    "invalid subject",
                    "the role does not admit this ServiceAccount",
                    "correct bound_subject",
                ),
                (
                    Denied,
                    "claim",
                    "a claim of the token is not the one the role expects",
                    "correct bound_claims",
                ),
                (
                    Denied,
                    "signature",
                    "the auth mount does not trust who signed the token",
                    "correct its issuer or keys",
                ),
                (
                    Denied,
                    "role or secret id",
                    "the server does not accept the role id or the secret id (used up, expired, or wrong)",
                    "bring a new secret id",
                ),
                (
                    Denied,
                    "invalid secret id",
                    "the server does not accept the secret id (used up, expired, or wrong)",
                    "bring a new secret id",
                ),
                (Denied, "invalid role id", "the server does not know the role id", "correct the role id"),
                (
                    Denied,
                    "client certificate must be supplied",
                    "the connection had no client certificate",
                    "set vaultTLSClientCertPath and vaultTLSClientKeyPath",
                ),
                (
                    Denied,
                    "no chain matching all constraints",
                    "no role of the auth mount accepts the client certificate",
                    "correct the certificate or the role",
                ),
                (
                    Denied,
                    "invalid certificate",
                    "no role of the auth mount accepts the client certificate",
                    "correct the certificate or the role",
                ),
                (Invalid, "role name", "the role does not exist", "correct roleName"),
                (Invalid, "could not be found", "the role does not exist", "correct roleName"),
                (Invalid, "missing role", "the auth mount wants a role", "set roleName"),
            ];
            let found = reasons.iter().find(|(_, needle, ..)| texts.mention(needle));
            let (class, _, text, advice) = found.copied().unwrap_or((
                Invalid,
                "",
                "the auth mount refused the request (400)",
                "check roleName and the mount's config",
            ));
            Problem::new(class, text, advice)
        }
        Operation::Generate if texts.mention("check-and-set") => Problem::new(
            FailureClass::Transient,
            "somebody else wrote the secret first",
            "their version is read",
        )
        .saying(Says::Outdated),
        Operation::RenewLease if texts.says_unknown_lease() => Problem::new(
            LeaseGone,
            "the lease is unknown to the server: expired or revoked",
            "a new credential follows",
        ),
        Operation::RenewLease | Operation::RenewSession => {
            Problem::new(Invalid, "it cannot be renewed (400)", "it is replaced before it ends")
        }
        Operation::RevokeSession => Problem::new(Invalid, "it cannot be revoked (400)", "it ends by its TTL"),
        _ if texts.mention("not allowed by this role") => Problem::new(
            Invalid,
            "the role does not allow what secretArgs ask for",
            "correct secretArgs or the role",
        ),
        _ => Problem::new(
            Invalid,
            "the server refuses the request's arguments (400)",
            "check secretPath and secretArgs",
        ),
    }
}

fn not_found(call: &Call<'_>, answer: &Answer, texts: &Texts) -> Problem {
    use FailureClass::NotFound;
    if texts.mention("namespace not found") {
        return Problem::new(NotFound, "the Vault namespace does not exist", "correct vaultNamespace");
    }
    if texts.mention("no handler for route") || texts.mention("unsupported path") {
        return Problem::new(NotFound, "nothing is mounted at this path", "check the first part of the path");
    }
    if !texts.json {
        return Problem::new(
            NotFound,
            "no such page (404)",
            "check that vaultAddress is a Vault or OpenBao API",
        );
    }
    if texts.warning.contains("versioned k/v") {
        let advice = "write <mount>/data/<name> in secretPath";
        return Problem::new(NotFound, "the mount is KV version 2", advice).saying(Says::LacksData);
    }
    let data = parse(answer.body.expose()).ok().and_then(|map| map.get("data").and_then(kv::version));
    match data {
        Some(version) => gone(&version),
        // A standby says so too, until it has caught up.
        None if call.operation == Operation::Fetch => Problem::new(
            NotFound,
            "there is nothing at this path",
            "check secretPath, and the version if one is given",
        )
        .saying(Says::Absent)
        .retry(),
        None => Problem::new(
            NotFound,
            "the server does not know the path",
            "check vaultAddress and vaultNamespace",
        ),
    }
}

fn gone(version: &kv::Version) -> Problem {
    let number = version.number;
    let (text, advice) = match &version.state {
        State::Destroyed => (format!("version {number} is destroyed"), "write a new version"),
        State::Deleted { at } if at.is_empty() => {
            (format!("version {number} is deleted"), "undelete it, or write a new one")
        }
        State::Deleted { at } => {
            (format!("version {number} is deleted at {at}"), "undelete it, or write a new one")
        }
        State::Alive => (format!("version {number} was answered as not found"), "it will be tried again"),
    };
    Problem::new(FailureClass::NotFound, &text, advice)
}

const fn handshake_advice(kind: Handshake) -> &'static str {
    match kind {
        Handshake::Expired => "renew the certificate on the server",
        Handshake::NotYetValid => "check the clocks of server and node",
        Handshake::UnknownIssuer => "set vaultCACertPath to the authority that signed it",
        Handshake::WrongName => {
            "set vaultTLSServerName to a name in the certificate, or correct vaultAddress"
        }
        Handshake::BadCertificate => "replace the certificate on the server",
        Handshake::ClientCertificateRequired => "set vaultTLSClientCertPath and vaultTLSClientKeyPath",
        Handshake::ClientCertificateRefused => "renew the certificate of vaultTLSClientCertPath",
        Handshake::Incompatible => "enable TLS 1.2 or 1.3 on the server",
        Handshake::NotTls => "use http:// in vaultAddress if this is meant",
        Handshake::Other => "check what listens there",
    }
}

/// The texts of an error answer, in lower case. Never leaves this module.
#[derive(Default)]
struct Texts {
    /// Whether the body is a JSON object.
    json: bool,
    /// `errors`.
    all: Vec<String>,
    /// `warnings`, joined.
    warning: String,
    /// The body, when it is not JSON.
    plain: String,
}

impl Texts {
    fn of(answer: &Answer) -> Self {
        let body = answer.body.expose();
        if body.len() > MAX_ERROR_BODY {
            return Self::default();
        }
        let Ok(map) = parse(body) else {
            return Self { plain: String::from_utf8_lossy(body).to_lowercase(), ..Self::default() };
        };
        let list = |key: &str| -> Vec<String> {
            let items = map.get(key).and_then(serde_json::Value::as_array).into_iter().flatten();
            items.filter_map(serde_json::Value::as_str).map(str::to_lowercase).collect()
        };
        Self { json: true, all: list("errors"), warning: list("warnings").join("\n"), plain: String::new() }
    }

    fn mention(&self, needle: &str) -> bool {
        self.all.iter().any(|text| text.contains(needle))
    }

    /// A policy said no to a token that lives. A dead token's 403 has the bare text, or says `invalid token`.
    fn is_acl_denial(&self) -> bool {
        (self.mention("1 error occurred") && self.mention("permission denied"))
            || self.mention("preflight capability")
    }

    fn says_unknown_lease(&self) -> bool {
        self.mention("lease not found") || self.mention("invalid lease")
    }
}

#[cfg(test)]
mod tests;
