//! A volume: what is on disk ([`Installed`]) and what is in work to take its place ([`Attempt`]).
//!
//! Every change, the first mount as much as a renewal's replacement, is an attempt: it needs some answers in
//! some session, is rendered, swapped in, and then becomes what is installed. There is at most one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    backoff::Backoff,
    budget::MintBudget,
    message::{CallId, Digest, OpId, TokenTimes},
    renewal::{Decision, Step, Term, decide, decide_data},
    session::SessionId,
};
use crate::{
    backend::{BackendError, DataLifetime, Served},
    clock::BootTime,
    spec::{
        DEFAULT_OVERLAP, DEFAULT_REFRESH, DependencyId, PodIdentity, ProviderName, RefreshPolicy,
        SecretRequest, VolumeSpec,
    },
};

/// Who writes a volume's files; fixed for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// We do, into the tmpfs.
    ProviderWritten,
    /// The driver does, from our answers: no mount propagation here. Unmounts cannot be seen.
    DriverWritten,
}

/// One distinct request of a volume and the state of its answer.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Dependency {
    /// What was asked.
    pub request: Arc<SecretRequest>,
    /// Id and life of its lease.
    pub lease: Option<(String, Term)>,
    /// A lifetime in its data.
    pub lifetime: Option<DataLifetime>,
    /// When the answer was asked for, or last found unchanged.
    pub since: BootTime,
    /// When its content last changed under us.
    pub changed: Option<BootTime>,
    /// Of its data.
    pub digest: Digest,
    /// KV v2 version; never goes backwards because a standby lagged.
    pub kv_version: Option<u64>,
    /// Times in a row that an older version was seen, and when first.
    #[serde(skip)]
    pub regressions: u32,
    /// Whether the shell holds its value (`carry` says whose is); after a restart none is.
    #[serde(skip)]
    pub held: bool,
    /// Drawn at the grant.
    pub jitter: u32,
    /// How long it overlaps its successor.
    pub overlap: Duration,
    /// Configured interval; `None` for the default.
    pub refresh_interval: Option<Duration>,
    /// Configured policy.
    pub refresh_policy: RefreshPolicy,
    /// Renewal or check in flight.
    #[serde(skip)]
    pub op: Option<OpId>,
    /// Not before: after a failure.
    pub wait_until: Option<BootTime>,
    /// Failures of upkeep in a row.
    pub backoff: Backoff,
    /// The last failure of its upkeep.
    pub last_error: Option<String>,
    /// The server does not know it any more, or refuses it: replace, do not renew.
    pub lost: bool,
    /// Whether a file that shows it was carried over although something else in it changed: once it can be
    /// read again, that file is made anew.
    #[serde(default)]
    pub stale: bool,
    /// Whether its end was reported.
    #[serde(skip)]
    pub expiry_noted: bool,
    /// Mints of late.
    pub budget: MintBudget,
}

/// A path that changed of late is likely to change again soon.
const RECENTLY: Duration = Duration::from_secs(3600);
/// How often such a path is checked.
const RECENT_REFRESH: Duration = Duration::from_secs(60);
/// No value is polled faster, whatever is asked: a fleet would.
pub const REFRESH_FLOOR: Duration = Duration::from_secs(5);

impl Dependency {
    /// Whether making the request again does something: a lease, or a write.
    pub fn has_side_effect(&self) -> bool {
        self.lease.is_some() || self.request.is_write()
    }

    /// What is due next for it, if anything.
    pub fn decide(&self) -> Option<Decision> {
        let decision = match (&self.lease, self.lifetime) {
            (Some((_, term)), _) => decide(*term, self.overlap)?,
            (None, Some(lifetime)) => {
                let mut decision = decide_data(lifetime, self.since, self.overlap, self.jitter);
                if matches!(lifetime, DataLifetime::Rotates { .. }) {
                    // A rotation is announced, but an operator may rotate by hand: the poll goes on.
                    if let Some(at) = self.next_check() {
                        decision.at = decision.at.min(at);
                    }
                }
                decision
            }
            (None, None) if self.request.is_write() => return None,
            (None, None) => Decision { step: Step::Check, at: self.next_check()?, why: "refresh interval" },
        };
        let lost = Decision { step: Step::Replace, at: self.since, why: "the server does not know it" };
        let decision = if self.lost { lost } else { decision };
        Some(Decision { at: self.wait_until.map_or(decision.at, |until| decision.at.max(until)), ..decision })
    }

    fn next_check(&self) -> Option<BootTime> {
        let interval = match (self.refresh_policy, self.refresh_interval) {
            (RefreshPolicy::CreatedOnce | RefreshPolicy::OnChange, _) => return None,
            (RefreshPolicy::Periodic, Some(interval)) if interval.is_zero() => return None,
            (RefreshPolicy::Periodic, Some(interval)) => interval.max(REFRESH_FLOOR),
            (RefreshPolicy::Periodic, None)
                if self.changed.is_some_and(|changed| self.since.since(changed) < RECENTLY) =>
            {
                RECENT_REFRESH
            }
            (RefreshPolicy::Periodic, None) => DEFAULT_REFRESH,
        };
        // A twentieth early at most: drawn anew at each check, it spreads a fleet all the same.
        let early = super::backoff::permille(interval, self.jitter / 20);
        Some(self.since + interval.saturating_sub(early))
    }

    /// When what is in a file is dead as far as is known: at once when the server does not know it.
    pub fn dies(&self) -> Option<BootTime> {
        if self.lost { Some(self.since) } else { self.ends() }
    }

    /// When its credential ends, if it does.
    pub fn ends(&self) -> Option<BootTime> {
        match (&self.lease, self.lifetime) {
            (Some((_, term)), _) if !term.ttl.is_zero() => Some(term.ends()),
            (None, Some(DataLifetime::Expires { ttl })) => Some(self.since + ttl),
            _ => None,
        }
    }
}

/// What is on disk, and what keeps it true.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Installed {
    /// Number of the plan it came from.
    pub plan: u64,
    /// What was asked for.
    pub spec: Arc<VolumeSpec>,
    /// Digest of the attributes that asked for it.
    pub digest: [u8; 32],
    /// The session it lives in.
    pub session: SessionId,
    /// Its answers. Boxed: a map's leaf has room for eleven, and a volume has two.
    pub dependencies: BTreeMap<DependencyId, Box<Dependency>>,
    /// Object versions, as answered.
    pub versions: Vec<(String, String)>,
    /// The version folder we last wrote.
    pub version_dir: Option<String>,
    /// When it was put there.
    pub at: BootTime,
}

impl Installed {
    /// Whether a lease is among its answers, which ends with its session.
    pub fn has_lease(&self) -> bool {
        self.dependencies.values().any(|dependency| dependency.lease.is_some())
    }
}

/// Why an attempt was started.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Reason {
    /// The first mount.
    Mount,
    /// The attributes changed.
    Edit,
    /// The content on disk is not what we left.
    Repair,
    /// A value changed in the store.
    Changed,
    /// A credential is replaced before it dies.
    Replace(String),
    /// The session is replaced before it dies, with all that was made in it.
    HandOver(String),
}

impl Reason {
    /// For the log and `ls`.
    pub fn text(&self) -> String {
        match self {
            Self::Mount => "first mount".into(),
            Self::Edit => "the SecretProviderClass or the pod's attributes changed".into(),
            Self::Repair => "the files were not as written".into(),
            Self::Changed => "a value changed in the store".into(),
            Self::Replace(why) => format!("credential replaced: {why}"),
            Self::HandOver(why) => format!("session handed over: {why}"),
        }
    }
}

/// Where one answer of an attempt stands.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub enum Need {
    /// Not asked for yet.
    Wanted,
    /// Asked for.
    InFlight(OpId),
    /// Here.
    Got(Box<Dependency>),
    /// The installed one serves.
    Reuse,
    /// Not asked for and not held: the files that show it are carried over.
    Carried,
}

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Phase {
    /// Logging in and reading.
    Gathering,
    /// After a failure; tried again at this time, or at the next Mount when there is none.
    Waiting(Option<BootTime>),
    /// Everything is here; being rendered.
    Rendering,
    /// Rendered; being swapped in.
    Swapping,
    /// Swapped in, or ready to be delivered; the caller is being answered, or did not wait for the answer.
    Unanswered,
    /// Rendered in driver-written mode; waits for a Mount to carry it.
    Ready,
}

/// A call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who.
    pub id: CallId,
    /// A passing failure is retried until then, a final one is not.
    pub patience: BootTime,
    /// The answer is due by then, whatever it is.
    pub deadline: BootTime,
}

/// Work on what is to be installed.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Attempt {
    /// Number of the plan.
    pub plan: u64,
    /// Why.
    pub reason: Reason,
    /// What is asked for.
    pub spec: Arc<VolumeSpec>,
    /// Digest of the attributes that ask for it.
    pub digest: [u8; 32],
    /// The session it works in.
    pub session: SessionId,
    /// Its answers.
    pub needs: BTreeMap<DependencyId, Need>,
    /// Where it stands.
    pub phase: Phase,
    /// Who waits for it.
    #[serde(skip)]
    pub calls: Vec<Call>,
    /// Failures in a row.
    pub backoff: Backoff,
    /// The last failure.
    #[serde(skip)]
    pub failure: Option<BackendError>,
    /// Whether it logged in anew after a refusal: once is enough.
    pub relogged: bool,
    /// Rendered versions.
    pub versions: Vec<(String, String)>,
    /// The version folder it was swapped in as.
    pub version_dir: Option<String>,
}

/// Something that was replaced and is to be given back.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Retired {
    /// A whole session.
    Session(SessionId),
    /// One lease of a session that lives on.
    Lease(SessionId, String, BootTime),
}

/// A volume.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Volume {
    /// Of this incarnation.
    pub serial: u64,
    /// For whom.
    pub pod: PodIdentity,
    /// By which socket.
    pub provider: ProviderName,
    /// Name of the SecretProviderClass.
    pub class: String,
    /// Who writes.
    pub mode: Mode,
    /// Whether a mount is there to be written to.
    pub mounted: bool,
    /// What is on disk and was answered.
    pub installed: Option<Installed>,
    /// What is in work.
    pub attempt: Option<Attempt>,
    /// Life of the ServiceAccount token held.
    pub token: Option<TokenTimes>,
    /// Its ServiceAccount's uid.
    pub service_account_uid: String,
    /// In driver-written mode: given back at the Mount after the one that delivers the successor.
    pub retired: Vec<Retired>,
    /// Why the last edit is not followed.
    pub rejected: Option<String>,
    /// Why policy refuses what runs.
    pub refused: Option<String>,
    /// A volume that never answered is forgotten then.
    pub grace_until: Option<BootTime>,
    /// Write nothing until then: it is being unpublished.
    #[serde(skip)]
    pub hold_until: Option<BootTime>,
    /// When the last Mount came.
    pub last_mount: BootTime,
    /// Longest time between Mounts seen, for driver-written volumes.
    pub mount_interval: Duration,
    /// Whether Mounts stopped coming in driver-written mode.
    pub silent: bool,
    /// Issue time of the token that the last hand-over for its end was made with.
    pub handed_over_with: Option<BootTime>,
    /// Plans so far.
    pub plans: u64,
}

impl Attempt {
    /// Whether it only waits for another try, and nobody for it.
    pub const fn is_parked(&self) -> bool {
        self.calls.is_empty() && matches!(self.phase, Phase::Waiting(Some(_)))
    }

    /// Whether it keeps the installed plan true, rather than bringing another one or another session.
    pub const fn is_upkeep(&self) -> bool {
        matches!(self.reason, Reason::Changed | Reason::Replace(_))
    }

    /// Whether it holds a lease of its own, which is given back when it is given up.
    pub fn has_minted(&self) -> bool {
        self.needs.values().any(|need| matches!(need, Need::Got(known) if known.lease.is_some()))
    }
}

impl Volume {
    /// As an audit line names it.
    pub fn served(&self) -> Served {
        let PodIdentity { namespace, name, uid, .. } = &self.pod;
        Served { pod: format!("{namespace}/{name}"), uid: uid.clone(), class: self.class.clone() }
    }

    /// What an attempt that keeps the installed plan true takes in place of an answer that it cannot have: the
    /// one held, or the files on disk. `None` where the attempt cannot do without it.
    pub(super) fn without(&self, id: DependencyId) -> Option<Need> {
        let (installed, attempt) = (self.installed.as_ref()?, self.attempt.as_ref()?);
        let known = installed.dependencies.get(&id)?;
        let keeps_plan = attempt.is_upkeep() || matches!(attempt.reason, Reason::HandOver(_));
        let dies = known.lease.is_some() && installed.session != attempt.session;
        if !keeps_plan || dies {
            return None;
        }
        if known.held {
            return Some(Need::Reuse);
        }
        let is_replaced = |other: &DependencyId| {
            let leased = installed.dependencies.get(other).is_some_and(|known| known.lease.is_some());
            let stays = matches!(attempt.needs.get(other), Some(Need::Reuse | Need::Carried));
            *other != id && leased && !stays
        };
        let stays =
            self.mode == Mode::ProviderWritten && super::carry::can_stay(&attempt.spec, id, is_replaced);
        stays.then_some(Need::Carried)
    }

    /// Whether a Mount was answered for it.
    pub const fn is_live(&self) -> bool {
        self.installed.is_some()
    }

    /// The overlap and refresh wishes of a request: the strictest of the objects that use it.
    pub(super) fn wishes(spec: &VolumeSpec, id: DependencyId) -> (Duration, Option<Duration>, RefreshPolicy) {
        let mut users = spec
            .objects
            .iter()
            .filter(|object| object.requests().any(|request| request.id() == id))
            .peekable();
        if users.peek().is_none() {
            return (DEFAULT_OVERLAP, None, RefreshPolicy::Periodic);
        }
        let mut overlap = Duration::ZERO;
        let mut interval: Option<Duration> = None;
        let mut policy = RefreshPolicy::CreatedOnce;
        for object in users {
            overlap = overlap.max(object.overlap);
            policy = match (policy, object.refresh_policy) {
                (_, RefreshPolicy::Periodic) | (RefreshPolicy::Periodic, _) => RefreshPolicy::Periodic,
                (_, RefreshPolicy::OnChange) | (RefreshPolicy::OnChange, _) => RefreshPolicy::OnChange,
                (RefreshPolicy::CreatedOnce, RefreshPolicy::CreatedOnce) => RefreshPolicy::CreatedOnce,
            };
            if object.refresh_policy == RefreshPolicy::Periodic
                && let Some(asked) = object.refresh_interval.filter(|asked| !asked.is_zero())
            {
                interval = Some(interval.map_or(asked, |least| least.min(asked)));
            }
            if object.refresh_interval.is_some_and(|asked| asked.is_zero()) && interval.is_none() {
                interval = Some(Duration::ZERO);
            }
        }
        (overlap, interval, policy)
    }
}
