//! Requests as the core words them, performed against the backend.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tracing::error;

use super::holdings::{HeldSession, Holdings};
use crate::{
    backend::{
        BackendError, Credential, FailureClass, Grant, Operation, Renewed, RequestContext, Secret,
        SecretBackend, Served,
    },
    clock::{BootTime, boot_now},
    lifecycle::{
        Lifecycle,
        message::{Lane, OpId, Request},
        session::SessionId,
        volume::Volume,
    },
    spec::{Connection, DependencyId, LoginSpec, SecretRequest, VolumeSpec},
};

/// For one request of upkeep: nobody waits.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(60);
/// For one request that a pod waits for: two fit into a call's 90 s.
const FOREGROUND_TIMEOUT: Duration = Duration::from_secs(40);

/// The backend ends every request within its time-out; one that is not back so much later never comes.
const STALLED: Duration = Duration::from_secs(15);

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
    let context = |connection: Arc<Connection>, on_behalf_of, serves: Arc<[Served]>, accessor| {
        RequestContext { connection, timeout, on_behalf_of, serves, accessor }
    };
    let session_for = |id: &SessionId, wanted: Option<DependencyId>| {
        let record = core.sessions().get(id)?;
        let held = holdings.sessions.get(id)?.clone();
        let accessor = Some(Arc::clone(&held.accessor)).filter(|accessor| !accessor.is_empty());
        let connection = Arc::clone(&record.identity.connection);
        let serves = served(core, id, wanted);
        Some((context(connection, Arc::clone(&record.on_behalf_of), serves, accessor), held))
    };
    let session = |id: &SessionId| session_for(id, None);
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
            let context = context(connection, whom.unwrap_or_default(), served(core, &id, None), None);
            Job::Login(id, context, login, token.credential.clone())
        }
        Request::Fetch { session: id, request } => match session_for(&id, Some(request.id())) {
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

/// The volumes that use a session, of them those that ask for `wanted`; the one it was made for when there
/// are none any more.
fn served(core: &Lifecycle, id: &SessionId, wanted: Option<DependencyId>) -> Arc<[Served]> {
    let Some(session) = core.sessions().get(id) else { return Arc::default() };
    // Hundreds of replicas may share a session, and they share a spec too.
    let mut known: BTreeMap<*const VolumeSpec, bool> = BTreeMap::new();
    let mut asks = |spec: &Arc<VolumeSpec>, wanted| {
        *known.entry(Arc::as_ptr(spec)).or_insert_with(|| spec.user_of(wanted).is_some())
    };
    let wants = |volume: &&Volume| {
        let plans = [
            volume.installed.as_ref().map(|installed| &installed.spec),
            volume.attempt.as_ref().map(|attempt| &attempt.spec),
        ];
        wanted.is_none_or(|wanted| plans.into_iter().flatten().any(|spec| asks(spec, wanted)))
    };
    let readers = wanted.and_then(|wanted| core.readers(*id, wanted));
    let users = readers.unwrap_or_else(|| session.users.iter().cloned().collect());
    let users = users.iter().filter_map(|key| core.volumes().get(key));
    let serves: Vec<_> = users.filter(wants).map(Volume::served).collect();
    if serves.is_empty() { session.made_for.iter().cloned().collect() } else { serves.into() }
}

/// What the metrics call it.
pub(super) const fn operation(request: &Request) -> Operation {
    match request {
        Request::Login { .. } => Operation::Login,
        Request::Fetch { .. } => Operation::Fetch,
        Request::RenewSession(_) => Operation::RenewSession,
        Request::RenewLease(..) => Operation::RenewLease,
        Request::RevokeSession(_) => Operation::RevokeSession,
        Request::RevokeLease(..) => Operation::RevokeLease,
    }
}

/// Performs a job. A panic in the backend is that request's failure and nobody else's.
pub(super) async fn run<B: SecretBackend>(backend: Arc<B>, op: OpId, job: Job) -> (OpId, Outcome) {
    let outcome = match job {
        Job::Login(id, context, login, credential) => {
            Outcome::LoggedIn(id, guarded(context.timeout, backend.login(context, &login, &credential)).await)
        }
        Job::Fetch(context, held, request) => {
            let sent = boot_now();
            let answer = guarded(context.timeout, backend.fetch(context, &held.token, &request)).await;
            Outcome::Fetched(match answer {
                // That there is nothing is an answer to those who asked whether there is something.
                Err(error) if request.optional && error.class == FailureClass::NotFound => {
                    Ok(Secret::absent(sent))
                }
                answer => answer,
            })
        }
        Job::RenewSession(context, held) => {
            Outcome::Renewed(guarded(context.timeout, backend.renew_session(context, &held.token)).await)
        }
        Job::RenewLease(context, held, lease) => Outcome::Renewed(
            guarded(context.timeout, backend.renew_lease(context, &held.token, &lease)).await,
        ),
        Job::RevokeSession(context, held) => {
            Outcome::Revoked(guarded(context.timeout, backend.revoke_session(context, &held.token)).await)
        }
        Job::RevokeLease(context, held, lease) => Outcome::Revoked(
            guarded(context.timeout, backend.revoke_lease(context, &held.token, &lease)).await,
        ),
        Job::Impossible(outcome) => outcome,
    };
    (op, outcome)
}

/// Neither a panic nor a future that never ends is left for the core to wait for: every request has an end.
async fn guarded<T>(
    bound: Duration,
    work: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    let defect = |class, message: &str| {
        Err(BackendError { class, message: message.into(), retry_after: None, worth_retrying: false })
    };
    match tokio::time::timeout(bound + STALLED, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            defect(FailureClass::Invalid, "a defect in leasehold stopped this request; the log has its place")
        }
        Err(_) => {
            let seconds = (bound + STALLED).as_secs();
            error!(seconds, "a defect in leasehold: a request never ended and is given up");
            defect(FailureClass::Transient, "a defect in leasehold kept this request from ending")
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::ClientToken,
        secret::SecretString,
        spec::{ApiPath, TlsSpec},
    };

    /// Never answers, as a client whose own time-out does not work.
    struct Wedged;

    impl SecretBackend for Wedged {
        async fn login(
            &self,
            _: RequestContext,
            _: &LoginSpec,
            _: &Credential,
        ) -> Result<Grant, BackendError> {
            std::future::pending().await
        }

        async fn fetch(
            &self,
            _: RequestContext,
            _: &ClientToken,
            _: &SecretRequest,
        ) -> Result<Secret, BackendError> {
            std::future::pending().await
        }

        async fn renew_session(&self, _: RequestContext, _: &ClientToken) -> Result<Renewed, BackendError> {
            std::future::pending().await
        }

        async fn renew_lease(
            &self,
            _: RequestContext,
            _: &ClientToken,
            _: &str,
        ) -> Result<Renewed, BackendError> {
            panic!("as a defect would")
        }

        async fn revoke_session(&self, _: RequestContext, _: &ClientToken) -> Result<(), BackendError> {
            std::future::pending().await
        }

        async fn revoke_lease(
            &self,
            _: RequestContext,
            _: &ClientToken,
            _: &str,
        ) -> Result<(), BackendError> {
            std::future::pending().await
        }
    }

    fn context() -> RequestContext {
        let tls = TlsSpec::default();
        let connection = Connection { address: "https://vault:8200".into(), namespace: String::new(), tls };
        RequestContext {
            connection: Arc::new(connection),
            timeout: BACKGROUND_TIMEOUT,
            on_behalf_of: "prod/app-0".into(),
            serves: Arc::default(),
            accessor: None,
        }
    }

    fn held() -> HeldSession {
        HeldSession { token: SecretString::new("token".into()), accessor: "accessor".into() }
    }

    /// ESO#6053: what never ends is noticed and tried again, or its volume would be silent for ever.
    #[tokio::test(start_paused = true)]
    async fn watchdog_detects_stall() {
        const A_DAY: Duration = Duration::from_secs(86_400);
        let held_by_nobody = held();
        let unguarded = Wedged.renew_session(context(), &held_by_nobody.token);
        assert!(tokio::time::timeout(A_DAY, unguarded).await.is_err(), "it stalls");
        let request = Arc::new(SecretRequest::read(ApiPath::parse("secret/data/app").expect("a path")));
        for job in [
            Job::Fetch(context(), held(), request),
            Job::RenewSession(context(), held()),
            Job::RevokeSession(context(), held()),
        ] {
            let outcome = tokio::time::timeout(BACKGROUND_TIMEOUT * 2, run(Arc::new(Wedged), OpId(7), job));
            let (op, outcome) = outcome.await.expect("every request ends");
            assert_eq!(op, OpId(7));
            let (Outcome::Fetched(Err(error)) | Outcome::Renewed(Err(error)) | Outcome::Revoked(Err(error))) =
                outcome
            else {
                panic!("{outcome:?}");
            };
            assert_eq!(error.class, FailureClass::Transient, "it is tried again");
        }
    }

    #[tokio::test]
    async fn a_panic_is_one_requests_failure() {
        let job = Job::RenewLease(context(), held(), "lease".into());
        let (_, outcome) = run(Arc::new(Wedged), OpId(1), job).await;
        let Outcome::Renewed(Err(error)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(error.class, FailureClass::Invalid);
    }
}
