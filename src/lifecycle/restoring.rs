//! What a former process of this boot recorded.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Lifecycle, RETRY_GRACE,
    message::Action,
    revoking::KEPT,
    session::{Session, SessionId, SessionState},
    volume::{Attempt, Need, Phase, Retired, Volume},
};
use crate::{clock::BootTime, volume::VolumeKey};

/// What a process had in flight when it was killed may still be at work in the server: a lease made after the
/// session was revoked would outlive it. The slowest measured, a database user, takes half a second.
const LATE_ANSWER: Duration = Duration::from_secs(10);

impl Lifecycle {
    pub(super) fn restore_volume(
        &mut self,
        key: VolumeKey,
        mut volume: Volume,
        on_disk: Option<&str>,
        now: BootTime,
    ) {
        self.last_id = self.last_id.max(volume.serial);
        // What the swap had put in place when the record of it was cut off is what is installed.
        let swapped = volume.attempt.as_ref().is_some_and(|attempt| attempt.phase == Phase::Swapping)
            && on_disk.is_some()
            && on_disk != volume.installed.as_ref().and_then(|installed| installed.version_dir.as_deref());
        let in_flight =
            |attempt: &&Attempt| attempt.needs.values().any(|need| matches!(need, Need::InFlight(_)));
        let unanswered = volume.attempt.as_ref().filter(in_flight).map(|attempt| attempt.session);
        self.volumes.insert(key.clone(), volume.clone());
        if volume.is_live() && swapped {
            let attempt = volume.attempt.as_mut().expect("swapped says there is one");
            attempt.version_dir = on_disk.map(str::to_owned);
            self.volumes.insert(key.clone(), volume);
            self.commit(&key, now);
        } else if volume.is_live() {
            self.abandon(&key, "the agent restarted", now);
        }
        if let Some(volume) = self.volumes.get_mut(&key) {
            if let Some(installed) = &mut volume.installed {
                let confirmed = self.sessions.get(&installed.session).map(|record| &record.confirmed);
                for (id, known) in &mut installed.dependencies {
                    // No value outlives the process that held it.
                    known.held = false;
                    let last = confirmed.and_then(|confirmed| confirmed.get(id));
                    if let Some((since, _)) = last.filter(|(_, digest)| *digest == known.digest) {
                        known.since = known.since.max(*since);
                    }
                }
            } else {
                // Never answered: the kubelet's retry starts anew, what was made is given back.
                self.forget_volume(&key, now);
            }
        }
        if let Some(record) = unanswered.and_then(|id| self.sessions.get_mut(&id))
            && let SessionState::Retiring(at) = record.state
        {
            record.state = SessionState::Retiring(at.max(now + LATE_ANSWER));
            // Nor does the pod's end hurry it.
            record.retired_from = None;
        }
    }

    pub(super) fn restore_sessions(&mut self, sessions: Vec<(SessionId, Session)>) {
        for (id, record) in sessions {
            self.last_id = self.last_id.max(id.0);
            // A login in flight died with the process, and its token with it.
            if matches!(record.state, SessionState::New(_)) {
                self.dirty_sessions.insert(id);
                self.actions.push_back(Action::ForgetSession(id));
                continue;
            }
            if record.shared && record.is_live() && !record.lost {
                self.shared.insert(record.identity.clone(), id);
            }
            self.sessions.insert(id, record);
        }
    }

    /// After the volumes are back: sessions that none of them uses are given up. One whose volume's record
    /// was lost may still be what a pod logs in with: it lives until a Mount has surely taken the volume
    /// over.
    pub(super) fn settle_sessions(&mut self, now: BootTime) {
        let mut orphans = BTreeMap::new();
        for (id, record) in &mut self.sessions {
            let users = std::mem::take(&mut record.users);
            orphans
                .extend(users.into_iter().find(|key| !self.volumes.contains_key(key)).map(|key| (*id, key)));
        }
        for (key, volume) in &self.volumes {
            let installed = volume.installed.as_ref().filter(|_| volume.refused.is_none());
            let record = installed.and_then(|installed| self.sessions.get_mut(&installed.session));
            if let Some(record) = record {
                record.users.insert(key.clone());
                record.idle_since = None;
            }
        }
        let kept =
            self.volumes.values().flat_map(|volume| &volume.retired).filter_map(|retired| match retired {
                Retired::Session(id) => Some(*id),
                Retired::Lease(..) => None,
            });
        let kept: BTreeSet<SessionId> = kept.collect();
        let is_idle = |(id, record): &(&SessionId, &Session)| {
            let forsaken = record.state == SessionState::Retiring(KEPT) && !kept.contains(id);
            forsaken || (record.is_live() && record.users.is_empty())
        };
        let idle: Vec<(SessionId, bool)> =
            self.sessions.iter().filter(is_idle).map(|(id, record)| (*id, record.shared)).collect();
        for (id, shared) in idle {
            if shared {
                if let Some(record) = self.sessions.get_mut(&id) {
                    record.idle_since = Some(record.idle_since.unwrap_or(now));
                }
            } else {
                let orphan = orphans.remove(&id);
                let at = if orphan.is_some() { now + RETRY_GRACE } else { now };
                self.retire_session(id, at, orphan);
            }
        }
    }
}
