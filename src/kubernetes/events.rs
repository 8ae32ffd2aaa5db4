//! Events on pods: what an application's own people should see of their credentials without asking the
//! operator. Only what a pod's start would not show anyway, and only the first of a streak.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{debug, warn};

use super::{ApiError, ask};
use crate::{
    clock::{BootTime, boot_now, wall_now},
    lifecycle::message::Note,
    metrics::{EventOutcome, Metrics},
    spec::PodIdentity,
    volume::{Transition, VolumeKey},
};

/// Events that wait for the API server; further ones are dropped and counted.
const WAITING: usize = 256;
/// A repetition within this time of the last one belongs to its streak. Longer than any wait between two tries.
const STREAK: Duration = Duration::from_secs(600);
/// Streaks remembered: five kinds for each of some 1,000 volumes.
const MAX_STREAKS: usize = 5_000;
/// Who we are, in events.
const CONTROLLER: &str = "leasehold";
/// Longest note, bytes: the API's own limit is 1 KiB.
const MAX_NOTE: usize = 1000;
/// Longest `reportingInstance`, the API's limit.
const MAX_INSTANCE: usize = 128;

/// What an event tells, in the words of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    kind: &'static str,
    reason: &'static str,
    action: &'static str,
}

const NORMAL: &str = "Normal";
const WARNING: &str = "Warning";

/// The event for a transition, unless it concerns nobody.
fn kind_of(note: &Note) -> Option<Kind> {
    let (kind, reason, action) = match note {
        Note::Rewritten { changed: true, .. } => (NORMAL, "SecretsRotated", "Rotate"),
        Note::Failing { .. } => (WARNING, "SecretsRotationFailing", "Rotate"),
        Note::Expired(_) => (WARNING, "CredentialExpired", "Renew"),
        Note::Refused(_) => (WARNING, "PolicyRefused", "CheckPolicy"),
        Note::EditRejected(_) => (WARNING, "EditRejected", "ApplyEdit"),
        Note::Mounted { .. }
        | Note::Rewritten { .. }
        | Note::Renewed { .. }
        | Note::Revoked(_)
        | Note::LeftToExpire { .. }
        | Note::Unmounted
        | Note::Silent { .. }
        | Note::LongTtl(_)
        | Note::Unrevocable => return None,
    };
    Some(Kind { kind, reason, action })
}

struct Told {
    key: VolumeKey,
    pod: PodIdentity,
    kind: Kind,
    note: String,
    at: Timestamp,
}

/// Takes transitions, never waits, and has the API server told by a task of its own.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Told>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Starts the task, which ends with the last clone of the recorder. `instance` is the node, or this pod.
    /// Must be called within a runtime.
    pub fn start(client: Client, instance: &str, metrics: Arc<Metrics>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        let instance = instance.chars().take(MAX_INSTANCE).collect();
        tokio::spawn(tell(client, instance, waiting, Arc::clone(&metrics)));
        Self { queue, metrics }
    }

    /// Has `transition` told, if it concerns the pod's people.
    pub fn observe(&self, transition: &Transition<'_>) {
        let Some(kind) = kind_of(transition.note) else { return };
        let at = Timestamp::try_from(wall_now()).unwrap_or(Timestamp::UNIX_EPOCH);
        let told = Told {
            key: transition.key.clone(),
            pod: transition.pod.clone(),
            kind,
            note: note(transition, at),
            at,
        };
        match self.queue.try_send(told) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {
                self.metrics.event(EventOutcome::Dropped);
            }
        }
    }
}

fn note(transition: &Transition<'_>, at: Timestamp) -> String {
    let class = transition.class;
    let text = match transition.note {
        Note::Failing { what, error, .. } => format!(
            "{class}: rotation failing since {at:.0} ({}): {what}: {error}; the files stay as they are",
            error.class
        ),
        other => format!("{class}: {other}"),
    };
    let end = (0..=text.len().min(MAX_NOTE)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    text[..end].to_owned()
}

/// Which streaks are on: when each was last seen.
#[derive(Debug, Default)]
struct Streaks(BTreeMap<(VolumeKey, Kind), BootTime>);

impl Streaks {
    /// Whether this is the first of one.
    fn begins(&mut self, key: &VolumeKey, kind: Kind, now: BootTime) -> bool {
        if self.0.len() >= MAX_STREAKS {
            self.0.retain(|_, seen| now.since(*seen) < STREAK);
        }
        if self.0.len() >= MAX_STREAKS {
            self.0.clear();
        }
        self.0.insert((key.clone(), kind), now).is_none_or(|seen| now.since(seen) >= STREAK)
    }
}

async fn tell(client: Client, instance: String, mut waiting: mpsc::Receiver<Told>, metrics: Arc<Metrics>) {
    let mut streaks = Streaks::default();
    let mut failing = false;
    while let Some(told) = waiting.recv().await {
        if !streaks.begins(&told.key, told.kind, boot_now()) {
            continue;
        }
        let api: Api<Event> = Api::namespaced(client.clone(), &told.pod.namespace);
        let event = event(&told, &instance);
        let outcome = ask("create events", api.create(&PostParams::default(), &event)).await;
        match outcome {
            // A conflict is one that is there already.
            Ok(_) | Err(ApiError::Conflict) => {
                metrics.event(EventOutcome::Sent);
                failing = false;
            }
            Err(error) => {
                metrics.event(EventOutcome::Failed);
                let text = crate::telemetry::chain(&error);
                if failing {
                    debug!(error = text, reason = told.kind.reason, "an event was not written");
                } else {
                    warn!(
                        error = text,
                        reason = told.kind.reason,
                        "events on pods cannot be written: they are dropped and counted until they can"
                    );
                }
                failing = true;
            }
        }
    }
}

fn event(told: &Told, instance: &str) -> Event {
    let pod = &told.pod;
    // The name of an event is at most that of an object, 253; a pod's may be as long.
    let prefix: String = pod.name.chars().take(230).collect();
    let prefix = prefix.trim_end_matches(['.', '-']);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{prefix}.{:016x}", rand::random::<u64>())),
            namespace: Some(pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        action: Some(told.kind.action.to_owned()),
        event_time: Some(MicroTime(told.at)),
        note: Some(told.note.clone()),
        reason: Some(told.kind.reason.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        type_: Some(told.kind.kind.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streak_is_told_once_and_ends_with_a_pause() {
        let mut streaks = Streaks::default();
        let key = VolumeKey::new("/k/pods/u/volumes/kubernetes.io~csi/v/mount".into());
        let kind = |reason| Kind { kind: WARNING, reason, action: "Rotate" };
        let at = |seconds: u64| BootTime::from_millis(1000 * seconds);
        assert!(streaks.begins(&key, kind("A"), at(0)));
        assert!(streaks.begins(&key, kind("B"), at(1)), "another kind");
        for seconds in (60..6000).step_by(300) {
            assert!(!streaks.begins(&key, kind("A"), at(seconds)), "after {seconds} s");
        }
        assert!(streaks.begins(&key, kind("A"), at(6000 + 600)));
        let other = VolumeKey::new("/k/pods/w/volumes/kubernetes.io~csi/v/mount".into());
        assert!(streaks.begins(&other, kind("A"), at(6601)));
    }

    #[test]
    fn streaks_are_bounded() {
        let mut streaks = Streaks::default();
        let kind = Kind { kind: WARNING, reason: "A", action: "Rotate" };
        for number in 0..2 * MAX_STREAKS {
            let key = VolumeKey::new(format!("/{number}").into());
            assert!(streaks.begins(&key, kind, BootTime::from_millis(0)));
        }
        assert!(streaks.0.len() <= MAX_STREAKS);
    }
}
