//! Requests as the core words them, performed against the backend.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;

use super::holdings::{HeldSession, Holdings};
use crate::{
    backend::{
        BackendError, Credential, FailureClass, Grant, Renewed, RequestContext, Secret, SecretBackend,
    },
    clock::{BootTime, boot_now},
    lifecycle::{
        Lifecycle,
        message::{Lane, OpId, Request},
        session::SessionId,
    },
    spec::{Connection, LoginSpec, SecretRequest},
};

/// For one request of upkeep: nobody waits.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(60);
/// For one request that a pod waits for: two fit into a call's 90 s.
const FOREGROUND_TIMEOUT: Duration = Duration::from_secs(40);

/// How a request ended.
#[derive(Debug)]
pub(super) enum Outcome {
    LoggedIn(SessionId, Result<Grant, BackendError>),
    Fetched(Result<Secret, BackendError>),
    Renewed(Result<Renewed, BackendError>),
    Revoked(Result<(), BackendError>),
}

/// A request with everything it needs.
#[derive(Debug)]
pub(super) enum Job {
    Login(SessionId, RequestContext, Arc<LoginSpec>, Credential),
    Fetch(RequestContext, HeldSession, Arc<SecretRequest>),
    RenewSession(RequestContext, HeldSession),
    RenewLease(RequestContext, HeldSession, String),
    RevokeSession(RequestContext, HeldSession),
    RevokeLease(RequestContext, HeldSession, String),
    /// What it needs is not held any more.
    Impossible(Outcome),
}

impl Job {
    /// Namespace of the pod or ServiceAccount it is made for.
    pub(super) fn namespace(&self) -> &str {
        match self {
            Self::Login(_, context, ..)
            | Self::Fetch(context, ..)
            | Self::RenewSession(context, _)
            | Self::RenewLease(context, ..)
            | Self::RevokeSession(context, _)
            | Self::RevokeLease(context, ..) => {
                context.on_behalf_of.split_once('/').map_or("", |(namespace, _)| namespace)
            }
            Self::Impossible(_) => "",
        }
    }
}

/// Brings a request together with the tokens it needs.
pub(super) fn prepare(core: &Lifecycle, holdings: &Holdings, lane: Lane, request: Request) -> Job {
    let timeout = match lane {
        Lane::Foreground => FOREGROUND_TIMEOUT,
        Lane::Background => BACKGROUND_TIMEOUT,
    };
    let context = |connection: Arc<Connection>, on_behalf_of, accessor| RequestContext {
        connection,
        timeout,
        on_behalf_of,
        accessor,
    };
    let session = |id: &SessionId| {
        let record = core.sessions().get(id)?;
        let held = holdings.sessions.get(id)?.clone();
        let accessor = Some(Arc::clone(&held.accessor)).filter(|accessor| !accessor.is_empty());
        let connection = Arc::clone(&record.identity.connection);
        Some((context(connection, Arc::clone(&record.on_behalf_of), accessor), held))
    };
    let gone = || BackendError {
        class: FailureClass::LeaseGone,
        message: "the session's token is not held any more".into(),
        retry_after: None,
        worth_retrying: false,
    };
    match request {
        Request::Login { session: id, connection, login, token_of } => {
            let Some(token) = holdings.tokens.get(&token_of) else {
                let error = BackendError {
                    class: FailureClass::Denied,
                    message: "no ServiceAccount token is held; the next Mount brings one".into(),
                    retry_after: None,
                    worth_retrying: false,
                };
                return Job::Impossible(Outcome::LoggedIn(id, Err(error)));
            };
            let whom = core.sessions().get(&id).map(|record| Arc::clone(&record.on_behalf_of));
            let context = context(connection, whom.unwrap_or_default(), None);
            Job::Login(id, context, login, token.credential.clone())
        }
        Request::Fetch { session: id, request } => match session(&id) {
            Some((context, held)) => Job::Fetch(context, held, request),
            None => Job::Impossible(Outcome::Fetched(Err(gone()))),
        },
        Request::RenewSession(id) => match session(&id) {
            Some((context, held)) => Job::RenewSession(context, held),
            None => Job::Impossible(Outcome::Renewed(Err(gone()))),
        },
        Request::RenewLease(id, lease) => match session(&id) {
            Some((context, held)) => Job::RenewLease(context, held, lease),
            None => Job::Impossible(Outcome::Renewed(Err(gone()))),
        },
        // Without its token it cannot be revoked; it ends by its TTL.
        Request::RevokeSession(id) => match session(&id) {
            Some((context, held)) => Job::RevokeSession(context, held),
            None => Job::Impossible(Outcome::Revoked(Ok(()))),
        },
        Request::RevokeLease(id, lease) => match session(&id) {
            Some((context, held)) => Job::RevokeLease(context, held, lease),
            None => Job::Impossible(Outcome::Revoked(Ok(()))),
        },
    }
}

/// Performs a job. A panic in the backend is that request's failure and nobody else's.
pub(super) async fn run<B: SecretBackend>(backend: Arc<B>, op: OpId, job: Job) -> (OpId, Outcome) {
    let outcome = match job {
        Job::Login(id, context, login, credential) => {
            Outcome::LoggedIn(id, guarded(backend.login(context, &login, &credential)).await)
        }
        Job::Fetch(context, held, request) => {
            let sent = boot_now();
            let answer = guarded(backend.fetch(context, &held.token, &request)).await;
            Outcome::Fetched(match answer {
                // That there is nothing is an answer to those who asked whether there is something.
                Err(error) if request.optional && error.class == FailureClass::NotFound => {
                    Ok(Secret::absent(sent))
                }
                answer => answer,
            })
        }
        Job::RenewSession(context, held) => {
            Outcome::Renewed(guarded(backend.renew_session(context, &held.token)).await)
        }
        Job::RenewLease(context, held, lease) => {
            Outcome::Renewed(guarded(backend.renew_lease(context, &held.token, &lease)).await)
        }
        Job::RevokeSession(context, held) => {
            Outcome::Revoked(guarded(backend.revoke_session(context, &held.token)).await)
        }
        Job::RevokeLease(context, held, lease) => {
            Outcome::Revoked(guarded(backend.revoke_lease(context, &held.token, &lease)).await)
        }
        Job::Impossible(outcome) => outcome,
    };
    (op, outcome)
}

async fn guarded<T>(work: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        Err(BackendError {
            class: FailureClass::Invalid,
            message: "a defect in leasehold stopped this request; the log has its place".into(),
            retry_after: None,
            worth_retrying: false,
        })
    })
}

/// A wall-clock time in seconds, on the boot clock.
pub(super) fn on_boot_clock(wall_seconds: u64, wall_now: std::time::SystemTime, now: BootTime) -> BootTime {
    let wall_now = wall_now
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let wall = wall_seconds.saturating_mul(1000);
    BootTime::from_millis(if wall >= wall_now {
        now.as_millis().saturating_add(wall - wall_now)
    } else {
        now.as_millis().saturating_sub(wall_now - wall)
    })
}
