//! What leasehold counts, in OpenMetrics. Labels are of closed sets only: no pod, no path, nothing that a
//! tenant names.

use std::{
    fmt::Write,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::{
    backend::{FailureClass, Operation},
    clock::BootTime,
    lifecycle::message::{Lane, Note},
    spec::ProviderName,
    volume::FailureKind,
};

/// How a Mount was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountResult {
    /// OK.
    Ok,
    /// With a failure of this kind.
    Failed(FailureKind),
}

impl MountResult {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed(FailureKind::InvalidArgument) => "invalid-argument",
            Self::Failed(FailureKind::PermissionDenied) => "permission-denied",
            Self::Failed(FailureKind::NotFound) => "not-found",
            Self::Failed(FailureKind::FailedPrecondition) => "failed-precondition",
            Self::Failed(FailureKind::Internal) => "internal",
        }
    }
}

/// What became of an Event on a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventOutcome {
    /// The API server has it.
    Sent,
    /// Not sent: others waited already.
    Dropped,
    /// The API server did not take it.
    Failed,
}

impl EventOutcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

/// The states of a volume, as `leasehold ls` shows them.
pub const VOLUME_STATES: [&str; 6] = ["live", "mounting", "retrying", "refused", "silent", "expired"];

/// The node as its worker sees it. Times are deadlines: how far they are is computed when somebody asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Volumes that leasehold writes.
    pub provider_written: usize,
    /// Volumes that the driver writes, because the pods folder is not there with propagation.
    pub driver_written: usize,
    /// Volumes found without a journal, left alone until their next Mount.
    pub unmanaged: usize,
    /// End of the credential that ends first.
    pub nearest_expiry: Option<BootTime>,
    /// When the first session has no ServiceAccount token left to log in again with.
    pub nearest_login_end: Option<BootTime>,
    /// Volumes by state, in the order of [`VOLUME_STATES`].
    pub states: [usize; VOLUME_STATES.len()],
    /// When the driver last called for the volume that it neglects longest, of those that are mounted.
    pub oldest_call: Option<BootTime>,
    /// The longest life that a login was granted, of the sessions that live.
    pub longest_session: Option<Duration>,
    /// Volumes whose files are older than what is due: something of theirs fails.
    pub stale: usize,
    /// Sessions given up and not revoked yet, those within their overlap too.
    pub sessions_owed: usize,
    /// Single leases, the same.
    pub leases_owed: usize,
}

/// A label value from a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Label(&'static str);

impl EncodeLabelValue for Label {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MountLabels {
    provider: Label,
    result: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: Label,
    class: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    mode: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabels {
    part: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabels {
    lane: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SwapLabels {
    changed: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: Label,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransitionLabels {
    transition: Label,
}

/// A gauge that is absent while there is nothing to measure.
type Optional = Family<[(&'static str, &'static str); 0], Gauge<f64, AtomicU64>>;

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Every metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    mounts: Family<MountLabels, Counter>,
    mount_seconds: Histograms<ProviderLabels>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histograms<OperationLabels>,
    refusals: Family<ProviderLabels, Counter>,
    volumes: Family<ModeLabels, Gauge>,
    expiry: Optional,
    login: Optional,
    oldest_call: Optional,
    longest_session: Optional,
    states: Family<StateLabels, Gauge>,
    stale: Gauge,
    degraded: Family<PartLabels, Gauge>,
    /// Two scrapes at once would see each other's halves of `degraded`.
    rendering: Mutex<()>,
    watches: Counter<u64, AtomicU64>,
    owed: Family<KindLabels, Gauge>,
    queued: Family<LaneLabels, Gauge>,
    snapshot: Mutex<Snapshot>,
    swaps: Family<SwapLabels, Counter>,
    swap_bytes: Counter<u64, AtomicU64>,
    swap_seconds: Histogram,
    transitions: Family<TransitionLabels, Counter>,
    events: Family<OutcomeLabels, Counter>,
    panics: Counter<u64, AtomicU64>,
}

/// From 1 ms to 131 s by doubling: a republish takes 1 ms, a Mount may take 90 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("leasehold");
        let mounts = Family::default();
        let mount_seconds: Histograms<_> = Family::new_with_constructor(seconds);
        let requests = Family::default();
        let request_seconds: Histograms<_> = Family::new_with_constructor(seconds);
        let refusals = Family::default();
        let volumes = Family::default();
        let expiry = Optional::default();
        let login = Optional::default();
        let oldest_call = Optional::default();
        let longest_session = Optional::default();
        let states = Family::default();
        let stale = Gauge::default();
        let degraded = Family::default();
        let watches = Counter::default();
        let owed = Family::default();
        let queued = Family::default();
        let swaps = Family::default();
        let swap_bytes = Counter::default();
        // From 20 µs, one small file, by doubling.
        let swap_seconds = Histogram::new(exponential_buckets(0.000_02, 2.0, 14));
        let transitions = Family::default();
        let events = Family::default();
        let panics = Counter::default();
        registry.register("mounts", "Mount calls answered, by result", mounts.clone());
        registry.register_with_unit(
            "mount_duration",
            "Time from a Mount call to its answer",
            Unit::Seconds,
            mount_seconds.clone(),
        );
        registry.register("requests", "Requests to the secret store, by outcome", requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time from a request to its outcome",
            Unit::Seconds,
            request_seconds.clone(),
        );
        registry.register("policy_refusals", "Mount calls that the node's policy refused", refusals.clone());
        registry.register("volumes", "Volumes held, by who writes their files", volumes.clone());
        registry.register_with_unit(
            "nearest_expiry",
            "Time until the first credential in a volume ends; negative once it has, absent without one",
            Unit::Seconds,
            expiry.clone(),
        );
        registry.register_with_unit(
            "nearest_login_end",
            "Time until a session has no ServiceAccount token left to log in again with; the driver's next call \
             brings one",
            Unit::Seconds,
            login.clone(),
        );
        registry.register_with_unit(
            "oldest_call",
            "Time since the driver last called for the volume that it neglects longest; absent without a volume. Far above \
             its rotationPollInterval, enableSecretRotation is off",
            Unit::Seconds,
            oldest_call.clone(),
        );
        registry.register_with_unit(
            "longest_session",
            "The longest life that a session of this node was granted: for so long a reboot leaves leases behind. Bound it by \
             token_ttl and token_max_ttl of the role",
            Unit::Seconds,
            longest_session.clone(),
        );
        registry.register("volume_states", "Volumes by state, as leasehold ls shows them", states.clone());
        registry.register(
            "stale_volumes",
            "Volumes whose files may be behind the store: a read, a replacement or a renewal of theirs fails. leasehold ls \
             has the reason",
            stale.clone(),
        );
        registry.register(
            "degraded",
            "Parts of the process that are not well, each 1. /readyz has the reason, leasehold doctor what mends it",
            degraded.clone(),
        );
        registry.register(
            "watch_restarts",
            "Times that the watch of the mount table ended and was started anew; until then unmounts were seen within 30 s \
             only",
            watches.clone(),
        );
        registry.register(
            "revocations_owed",
            "Sessions and leases given up and not revoked yet, those within their overlap too",
            owed.clone(),
        );
        registry.register("queue_depth", "Requests to the secret store that wait, by lane", queued.clone());
        registry.register(
            "swaps",
            "Renders brought to a volume, by whether anything was written",
            swaps.clone(),
        );
        registry.register("swap_written_bytes", "Bytes of files written", swap_bytes.clone());
        registry.register_with_unit(
            "swap_duration",
            "Time a volume was open for one write",
            Unit::Seconds,
            swap_seconds.clone(),
        );
        registry.register(
            "transitions",
            "What happened to volumes, leases and sessions, as the log tells it",
            transitions.clone(),
        );
        registry.register(
            "pod_events",
            "Events on pods, by what became of them; dropped and failed ones are not tried again",
            events.clone(),
        );
        registry.register("panics", "Panics caught at the edge or in a volume's step", panics.clone());
        registry.register(
            "build",
            "The version that runs",
            Info::new(vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
        );
        Self {
            registry,
            mounts,
            mount_seconds,
            requests,
            request_seconds,
            refusals,
            volumes,
            expiry,
            login,
            oldest_call,
            longest_session,
            states,
            stale,
            degraded,
            rendering: Mutex::default(),
            watches,
            owed,
            queued,
            snapshot: Mutex::default(),
            swaps,
            swap_bytes,
            swap_seconds,
            transitions,
            events,
            panics,
        }
    }

    /// Counts an answered Mount that took `took`.
    pub fn mounted(&self, provider: ProviderName, result: MountResult, took: Duration) {
        let provider = Label(provider.as_str());
        self.mounts.get_or_create(&MountLabels { provider, result: Label(result.as_str()) }).inc();
        self.mount_seconds.get_or_create(&ProviderLabels { provider }).observe(took.as_secs_f64());
    }

    /// Counts a request to the secret store and its outcome; `None` is success.
    pub fn requested(&self, operation: Operation, failure: Option<FailureClass>, took: Duration) {
        let (operation, class) =
            (Label(operation.as_str()), Label(failure.map_or("ok", FailureClass::as_str)));
        self.requests.get_or_create(&RequestLabels { operation, class }).inc();
        self.request_seconds.get_or_create(&OperationLabels { operation }).observe(took.as_secs_f64());
    }

    /// Counts a Mount that the policy refused.
    pub fn refused(&self, provider: ProviderName) {
        self.refusals.get_or_create(&ProviderLabels { provider: Label(provider.as_str()) }).inc();
    }

    /// Counts a render that was brought to a volume.
    pub fn swapped(&self, changed: bool, bytes: usize, took: Duration) {
        let changed = Label(if changed { "true" } else { "false" });
        self.swaps.get_or_create(&SwapLabels { changed }).inc();
        self.swap_bytes.inc_by(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.swap_seconds.observe(took.as_secs_f64());
    }

    /// Counts a transition of the lifecycle.
    pub fn noted(&self, note: &Note) {
        self.transitions.get_or_create(&TransitionLabels { transition: Label(note.name()) }).inc();
    }

    /// Counts an Event on a pod.
    pub fn event(&self, outcome: EventOutcome) {
        self.events.get_or_create(&OutcomeLabels { outcome: Label(outcome.as_str()) }).inc();
    }

    /// Counts a caught panic.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// Sets how many requests wait in a lane.
    pub fn queued(&self, lane: Lane, count: usize) {
        let lane = Label(match lane {
            Lane::Foreground => "foreground",
            Lane::Background => "background",
        });
        self.queued.get_or_create(&LaneLabels { lane }).set(whole(count));
    }

    /// Counts a watch of the mount table that was started anew.
    pub fn watch_restarted(&self) {
        self.watches.inc();
    }

    /// Takes the node's state, until the next.
    pub fn observed(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// The node's state as last taken.
    pub fn snapshot(&self) -> Snapshot {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it as OpenMetrics text, as of `now`, with the parts that are not well.
    pub fn render(&self, now: BootTime, degraded: &[&'static str]) -> String {
        let _one_at_a_time = self.rendering.lock().unwrap_or_else(PoisonError::into_inner);
        self.degraded.clear();
        for part in degraded {
            self.degraded.get_or_create(&PartLabels { part: Label(part) }).set(1);
        }
        let snapshot = self.snapshot();
        for (mode, count) in [
            ("provider-written", snapshot.provider_written),
            ("driver-written", snapshot.driver_written),
            ("unmanaged", snapshot.unmanaged),
        ] {
            self.volumes.get_or_create(&ModeLabels { mode: Label(mode) }).set(whole(count));
        }
        for (state, count) in VOLUME_STATES.into_iter().zip(snapshot.states) {
            self.states.get_or_create(&StateLabels { state: Label(state) }).set(whole(count));
        }
        self.stale.set(whole(snapshot.stale));
        let age = snapshot.oldest_call.map(|at| at.until(now).as_secs_f64());
        let longest = snapshot.longest_session.map(|ttl| ttl.as_secs_f64());
        for (gauge, value) in [(&self.oldest_call, age), (&self.longest_session, longest)] {
            match value {
                Some(value) => {
                    gauge.get_or_create(&[]).set(value);
                }
                None => gauge.clear(),
            }
        }
        for (kind, count) in [("session", snapshot.sessions_owed), ("lease", snapshot.leases_owed)] {
            self.owed.get_or_create(&KindLabels { kind: Label(kind) }).set(whole(count));
        }
        for (gauge, at) in
            [(&self.expiry, snapshot.nearest_expiry), (&self.login, snapshot.nearest_login_end)]
        {
            match at {
                Some(at) => {
                    let left = now.until(at).as_secs_f64() - now.since(at).as_secs_f64();
                    gauge.get_or_create(&[]).set(left);
                }
                None => gauge.clear(),
            }
        }
        let mut text = String::new();
        // Writing into a String does not fail.
        let _infallible = encode(&mut text, &self.registry);
        // The encoder writes an empty label set where a family has none.
        text.replace("{} ", " ")
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_counted_is_shown() {
        let metrics = Metrics::new();
        metrics.mounted(ProviderName::Vault, MountResult::Ok, Duration::from_millis(3));
        metrics.mounted(
            ProviderName::Vault,
            MountResult::Failed(FailureKind::Internal),
            Duration::from_secs(90),
        );
        metrics.requested(Operation::Fetch, Some(FailureClass::Throttled), Duration::from_millis(1));
        metrics.refused(ProviderName::Openbao);
        metrics.panicked();
        metrics.queued(Lane::Background, 5);
        let now = BootTime::from_millis(100_000);
        let idle = metrics.render(now, &[]);
        assert!(!idle.contains("\nleasehold_degraded{"), "absent where all is well:\n{idle}");
        assert!(!idle.contains("\nleasehold_nearest_"), "absent without anything to measure:\n{idle}");
        metrics.observed(Snapshot {
            driver_written: 7,
            nearest_expiry: Some(BootTime::from_millis(160_500)),
            nearest_login_end: Some(BootTime::from_millis(90_000)),
            leases_owed: 2,
            states: [4, 0, 0, 1, 0, 2],
            oldest_call: Some(BootTime::from_millis(70_000)),
            longest_session: Some(Duration::from_secs(3600)),
            stale: 3,
            ..Snapshot::default()
        });
        let text = metrics.render(now, &["swap"]);
        for line in [
            "leasehold_mounts_total{provider=\"vault\",result=\"ok\"} 1",
            "leasehold_mounts_total{provider=\"vault\",result=\"internal\"} 1",
            "leasehold_mount_duration_seconds_count{provider=\"vault\"} 2",
            "leasehold_requests_total{operation=\"fetch\",class=\"throttled\"} 1",
            "leasehold_request_duration_seconds_count{operation=\"fetch\"} 1",
            "leasehold_policy_refusals_total{provider=\"openbao\"} 1",
            "leasehold_volumes{mode=\"driver-written\"} 7",
            "leasehold_volume_states{state=\"live\"} 4",
            "leasehold_volume_states{state=\"expired\"} 2",
            "leasehold_oldest_call_seconds 30.0",
            "leasehold_longest_session_seconds 3600.0",
            "leasehold_stale_volumes 3",
            "leasehold_degraded{part=\"swap\"} 1",
            "leasehold_volumes{mode=\"provider-written\"} 0",
            "leasehold_nearest_expiry_seconds 60.5",
            "leasehold_nearest_login_end_seconds -10.0",
            "leasehold_revocations_owed{kind=\"lease\"} 2",
            "leasehold_revocations_owed{kind=\"session\"} 0",
            "leasehold_queue_depth{lane=\"background\"} 5",
            "leasehold_panics_total 1",
            concat!("leasehold_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
