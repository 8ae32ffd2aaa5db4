//! What goes into the core and what comes out of it. No secret byte passes in either direction: the shell
//! keeps tokens by [`SessionId`] and answers by [`OpId`], and copies them where the core says.

use std::{fmt, sync::Arc, time::Duration};

use super::{failure::MountFailure, key::VolumeKey, session::SessionId, volume::Mode};
use crate::{
    backend::{BackendError, DataLifetime, LeaseTerms, Renewed, SessionTerms},
    clock::BootTime,
    spec::{
        Connection, DependencyId, LoginSpec, Object, PodIdentity, ProviderName, SecretRequest, VolumeSpec,
    },
};

/// Names one request in flight. On record it says only that there was one: none outlives its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct OpId(pub u64);

/// Names one caller that waits for a Mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Which incarnation of which volume, and which of its plans: an answer to an older one is never rendered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlanId {
    /// The volume.
    pub key: VolumeKey,
    /// Serial of its incarnation; a remount of the same path has another.
    pub serial: u64,
    /// Number of the plan within it.
    pub plan: u64,
}

/// A keyed digest of an answer's data: equal digests are equal data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Digest(pub [u8; 16]);

/// Life of a ServiceAccount token, on the boot clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TokenTimes {
    /// When it was issued.
    pub issued: BootTime,
    /// When it ends; `None` for a legacy token.
    pub expires: Option<BootTime>,
}

impl TokenTimes {
    /// Whether it can still log in: a token about to end loses the race with its own request.
    pub fn usable(self, now: BootTime) -> bool {
        self.expires.is_none_or(|expires| now + Duration::from_secs(5) < expires)
    }

    /// Whether over a fifth of its life is left: no fresh one is needed yet.
    pub fn fresh(self, now: BootTime) -> bool {
        self.expires.is_none_or(|expires| now.until(expires) > expires.since(self.issued) / 5)
    }
}

/// A Mount call.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Who waits.
    pub call: CallId,
    /// Where.
    pub key: VolumeKey,
    /// For whom.
    pub pod: PodIdentity,
    /// By which socket.
    pub provider: ProviderName,
    /// Name of the SecretProviderClass.
    pub class: String,
    /// Who writes the files.
    pub mode: Mode,
    /// What is asked for, or why it cannot be had.
    pub plan: Result<Arc<VolumeSpec>, MountFailure>,
    /// Equal digests ask for the same.
    pub digest: [u8; 32],
    /// The token that came with it, and the ServiceAccount's uid; or why there is none.
    pub token: Result<(TokenTimes, String), MountFailure>,
    /// Whether the volume's content is as we left it.
    pub intact: bool,
    /// The answer is due by then.
    pub deadline: BootTime,
}

/// What a read brought, without its secret bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Digest of its data.
    pub digest: Digest,
    /// Its lease.
    pub lease: Option<LeaseTerms>,
    /// A lifetime in its data.
    pub lifetime: Option<DataLifetime>,
    /// Its KV v2 version.
    pub kv_version: Option<u64>,
    /// When the request was sent.
    pub since: BootTime,
}

/// How a swap ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwapOutcome {
    /// The files are in place.
    Done {
        /// Name of the version folder that `..data` links to.
        version_dir: String,
        /// Whether anything was written.
        changed: bool,
    },
    /// The volume is being unpublished: write nothing until the mount table decides.
    Unpublishing,
    /// The mount is gone, or is another one now.
    Gone,
    /// Every caller went away before the write began.
    Unwanted,
    /// The write failed: no space, or the volume is not as it must be.
    Failed(String),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The driver asks for a volume.
    Mount(Box<Mount>),
    /// A login ended.
    LoggedIn(OpId, Result<(SessionTerms, BootTime), BackendError>),
    /// A read ended.
    Fetched(OpId, Result<Fetched, BackendError>),
    /// A renewal ended, of a session or of a lease.
    Renewed(OpId, Result<Renewed, BackendError>),
    /// A revocation ended, of a session or of a lease.
    Revoked(OpId, Result<(), BackendError>),
    /// A render ended: object versions, or why not.
    Rendered(PlanId, Result<Vec<(String, String)>, String>),
    /// A swap ended.
    Swapped(PlanId, SwapOutcome),
    /// A plan's calls were answered; whether any caller was still there.
    Answered(PlanId, bool),
    /// The mount of a volume is gone from the mount table.
    Unmounted(VolumeKey),
    /// The pod's folder is gone: nobody will retry.
    PodGone(VolumeKey),
    /// A person asks to check values now; `None` is every volume.
    Refresh(Option<VolumeKey>),
    /// More time passed than we slept: check, but declare nothing dead by the clock alone.
    TimeJumped,
}

/// Which lane a request travels in: a pod that waits to start overtakes upkeep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// A caller waits.
    Foreground,
    /// Nobody waits.
    Background,
}

/// A request for the shell to perform.
#[derive(Clone, Debug)]
pub enum Request {
    /// Log in with the token that the shell holds for `token_of`.
    Login {
        /// Session to be.
        session: SessionId,
        /// Where to.
        connection: Arc<Connection>,
        /// As whom.
        login: Arc<LoginSpec>,
        /// Whose ServiceAccount token.
        token_of: VolumeKey,
    },
    /// Read, or write what answers.
    Fetch {
        /// In which session.
        session: SessionId,
        /// What.
        request: Arc<SecretRequest>,
    },
    /// Prolong a session.
    RenewSession(SessionId),
    /// Prolong a lease.
    RenewLease(SessionId, String),
    /// Revoke a session with all that was made in it.
    RevokeSession(SessionId),
    /// Revoke one lease.
    RevokeLease(SessionId, String),
}

/// What to do. The shell performs actions in order; before it performs any, it journals what the core marked
/// dirty, so that no request outruns the record of why it was made.
#[derive(Clone, Debug)]
pub enum Action {
    /// Perform a request and report its end under this id.
    Perform(OpId, Lane, Request),
    /// Copy the answer of a read to a plan's values; valid only while its event is handled.
    Supply(OpId, PlanId, DependencyId),
    /// Render a plan from the values held for the volume and, over them, those supplied to the plan for these
    /// dependencies. What else was supplied was given up since: it is neither rendered nor kept.
    Render(PlanId, Arc<VolumeSpec>, Vec<DependencyId>),
    /// Write what was rendered.
    Swap {
        /// Which plan.
        plan: PlanId,
        /// The version folder we last wrote there.
        previous: Option<String>,
        /// Whether the versions, and so the contents, equal those on disk.
        unchanged: bool,
        /// Who waits: nothing is written for callers who all went away.
        callers: Vec<CallId>,
        /// Objects that were not rendered: their files are taken from `previous` as they are.
        carried: Vec<Object>,
    },
    /// Answer calls: with a plan's versions, and its rendered files where the driver writes.
    Answer {
        /// Who.
        calls: Vec<CallId>,
        /// With what.
        answer: Result<Vec<(String, String)>, MountFailure>,
        /// Hand the rendered files of this plan to the driver.
        deliver: Option<PlanId>,
        /// Tell the core by [`Event::Answered`] whether a caller was still there.
        report: Option<PlanId>,
        /// What the driver's rotation clock must show afterwards: `true` for now, `false` for the epoch, so
        /// that the next republish reaches us.
        clock: Option<(VolumeKey, bool)>,
    },
    /// A plan is what the volume is now: its values become the volume's, and only `hold` are kept.
    Keep(PlanId, Vec<DependencyId>),
    /// A plan is given up: drop its values.
    Discard(PlanId),
    /// A volume is no more: drop its token, values and record.
    Forget(VolumeKey),
    /// A session is no more: drop its token and record.
    ForgetSession(SessionId),
    /// For the log and the metrics.
    Note(Option<VolumeKey>, Note),
}

/// A transition, as the log and the metrics tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The first answer of a volume.
    Mounted {
        /// Objects in it.
        objects: usize,
    },
    /// Files were replaced, or would have been were they not the same.
    Rewritten {
        /// Why.
        why: String,
        /// Whether anything was written.
        changed: bool,
    },
    /// A lease or a session was prolonged.
    Renewed {
        /// What.
        what: String,
        /// Granted.
        ttl: Duration,
    },
    /// Something failed and will be tried again.
    Failing {
        /// What.
        what: String,
        /// In class, and what to do.
        error: BackendError,
        /// Until the next try.
        wait: Duration,
    },
    /// An edit of the SecretProviderClass is not followed.
    EditRejected(String),
    /// Policy refuses what runs.
    Refused(String),
    /// A session or lease was given back.
    Revoked(String),
    /// A lease could not be given back and is left to its TTL.
    LeftToExpire {
        /// The lease's path.
        what: String,
        /// Until it ends.
        ttl: Duration,
    },
    /// A credential in a file is dead.
    Expired(String),
    /// The volume is gone.
    Unmounted,
    /// No Mount came for long: a driver-written volume is let expire.
    Silent {
        /// How long none came.
        after: Duration,
        /// Until the first of its credentials dies, if any does.
        dies: Option<Duration>,
    },
    /// A granted TTL is so long that a node's reboot leaves orphans for as long.
    LongTtl(Duration),
    /// The role grants tokens that nobody can revoke.
    Unrevocable,
}

impl Note {
    /// Name of the transition, a metric label.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Mounted { .. } => "mounted",
            Self::Rewritten { .. } => "rewritten",
            Self::Renewed { .. } => "renewed",
            Self::Failing { .. } => "failing",
            Self::EditRejected(_) => "edit-rejected",
            Self::Refused(_) => "refused",
            Self::Revoked(_) => "revoked",
            Self::LeftToExpire { .. } => "left-to-expire",
            Self::Expired(_) => "expired",
            Self::Unmounted => "unmounted",
            Self::Silent { .. } => "silent",
            Self::LongTtl(_) => "long-ttl",
            Self::Unrevocable => "unrevocable",
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { objects } => write!(f, "mounted {objects} objects"),
            Self::Rewritten { why, changed: true } => write!(f, "files replaced: {why}"),
            Self::Rewritten { why, changed: false } => write!(f, "content unchanged: {why}"),
            Self::Renewed { what, ttl } => write!(f, "renewed {what} for {}s", ttl.as_secs()),
            Self::Failing { what, error, wait } => {
                write!(f, "{what} failing ({}): {error}; next try in {} ms", error.class, wait.as_millis())
            }
            Self::EditRejected(why) => write!(f, "edit rejected: {why}"),
            Self::Refused(why) => write!(f, "refused by policy: {why}"),
            Self::Revoked(what) => write!(f, "revoked {what}"),
            Self::LeftToExpire { what, ttl } => {
                write!(
                    f,
                    "left to expire: a lease of {what}, within {}s; `path \"sys/leases/revoke\" {{ capabilities = \
                     [\"update\"] }}` in the pod's Vault policy lets it be revoked",
                    ttl.as_secs()
                )
            }
            Self::Expired(what) => write!(f, "expired: {what}"),
            Self::Unmounted => f.write_str("unmounted"),
            Self::Silent { after, dies } => {
                write!(
                    f,
                    "no Mount for {}s: a driver-written volume shows no unmount, so its session is no longer \
                     renewed (is enableSecretRotation on in the driver?)",
                    after.as_secs()
                )?;
                match dies {
                    Some(dies) => write!(f, "; its credentials die in {}s", dies.as_secs()),
                    None => Ok(()),
                }
            }
            Self::Unrevocable => f.write_str(
                "the session cannot be given back (a batch token, or a token made elsewhere): what is made in it lives \
                 to its TTL; set token_type to service on the role, or keep token_ttl short",
            ),
            Self::LongTtl(ttl) => write!(
                f,
                "a login was granted {}s: a reboot of the node leaves its leases alive for as long; set token_ttl \
                 and token_max_ttl on the role",
                ttl.as_secs()
            ),
        }
    }
}
