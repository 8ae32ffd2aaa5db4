//! What nobody uses any more, until it is given back: sessions, and leases one by one.

use super::{
    Lifecycle, Op, TimerKey,
    backoff::Pace,
    key::VolumeKey,
    message::{Action, Lane, Note, Request},
    session::{Owed, SessionId, SessionState},
};
use crate::{
    backend::{BackendError, FailureClass},
    clock::BootTime,
};

/// Until a Mount says otherwise.
pub(super) const KEPT: BootTime = BootTime::from_millis(u64::MAX);

impl Lifecycle {
    /// `key` uses the session no more. An own session goes at `at`; a shared one some time after its last
    /// user.
    pub(super) fn leave_session(&mut self, id: SessionId, key: &VolumeKey, at: BootTime, now: BootTime) {
        let Some(volume) = self.volumes.get(key).map(|volume| {
            let installed = volume.installed.as_ref().is_some_and(|installed| installed.session == id);
            let attempt = volume.attempt.as_ref().is_some_and(|attempt| attempt.session == id);
            (installed && volume.refused.is_none()) || attempt
        }) else {
            self.drop_user(id, key, at, now);
            return;
        };
        if !volume {
            self.drop_user(id, key, at, now);
        }
    }

    fn drop_user(&mut self, id: SessionId, key: &VolumeKey, at: BootTime, now: BootTime) {
        let Some(record) = self.sessions.get_mut(&id) else { return };
        record.users.remove(key);
        self.dirty_sessions.insert(id);
        if !record.users.is_empty() {
            self.retime_session(id, now);
            return;
        }
        if record.shared && record.is_live() {
            record.idle_since = Some(now);
            self.retime_session(id, now);
        } else {
            self.retire_session(id, at, Some(key.clone()));
        }
    }

    /// Revokes the session at `at`.
    pub(super) fn retire_session(&mut self, id: SessionId, at: BootTime, from: Option<VolumeKey>) {
        let Some(record) = self.sessions.get_mut(&id) else { return };
        self.dirty_sessions.insert(id);
        match record.state {
            // A login in flight is given back when it ends.
            SessionState::New(Some(_)) => {
                record.users.clear();
                record.succeeds = None;
            }
            SessionState::New(None) => self.forget_session(id),
            SessionState::Live => {
                record.state = SessionState::Retiring(at);
                record.retired_from = from;
                // A renewal in flight may be granted although nobody waits for it any more: only the server
                // knows when such a session ends.
                if record.op.take().is_some() {
                    record.term = None;
                }
                record.wait_until = None;
                record.backoff.reset();
                if self.shared.get(&record.identity) == Some(&id) {
                    let identity = record.identity.clone();
                    self.shared.remove(&identity);
                }
                // A session that is dead by then is not kept for its overlap.
                let due = self.next_of_session(id, at);
                self.set_timer(TimerKey::Session(id), due);
            }
            SessionState::Retiring(former) => {
                record.state = SessionState::Retiring(former.min(at));
                let due = self.next_of_session(id, at);
                self.set_timer(TimerKey::Session(id), due);
            }
        }
    }

    /// The pod is gone: nothing of it waits for an overlap any more.
    pub(super) fn hurry_retired(&mut self, key: &VolumeKey, now: BootTime) {
        let ids: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, record)| record.retired_from.as_ref() == Some(key))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.retire_session(id, now, Some(key.clone()));
        }
    }

    /// What was made in it may be in the files yet: it is kept, but no longer renewed, until the driver surely wrote
    /// its successor.
    pub(super) fn keep_for_driver(&mut self, id: SessionId, key: &VolumeKey) {
        if let Some(record) = self.sessions.get_mut(&id) {
            record.users.remove(key);
        }
        self.retire_session(id, KEPT, Some(key.clone()));
    }

    pub(super) fn forget_session(&mut self, id: SessionId) {
        if let Some(record) = self.sessions.remove(&id)
            && self.shared.get(&record.identity) == Some(&id)
        {
            self.shared.remove(&record.identity);
        }
        self.set_timer(TimerKey::Session(id), None);
        self.dirty_sessions.insert(id);
        self.actions.push_back(Action::ForgetSession(id));
    }

    /// One lease is to be given back at `at`, by itself: its session lives on.
    pub(super) fn owe_lease(
        &mut self,
        id: SessionId,
        lease: String,
        ends: BootTime,
        at: BootTime,
        now: BootTime,
    ) {
        let Some(record) = self.sessions.get_mut(&id) else { return };
        let known = record.owed.iter().any(|owed| owed.lease == lease);
        if !record.is_live() || ends <= at || known {
            return;
        }
        self.dirty_sessions.insert(id);
        if self.facts.revoke_denied.contains(&record.identity) {
            record.leftover.push((lease.clone(), ends));
            let first = record.users.first().cloned();
            let ttl = now.until(ends);
            self.note(first.as_ref(), Note::LeftToExpire { what: lease_path(&lease), ttl });
        } else {
            record.owed.push(Owed { lease, ends, at, op: None });
        }
        self.retime_session(id, now);
    }

    pub(super) fn lease_revoked(
        &mut self,
        id: SessionId,
        lease: String,
        ends: BootTime,
        result: Result<(), BackendError>,
        now: BootTime,
    ) {
        let Some(record) = self.sessions.get_mut(&id) else { return };
        self.dirty_sessions.insert(id);
        let first = record.users.first().cloned();
        record.owed.retain(|owed| owed.lease != lease);
        match result {
            Ok(()) => {
                record.backoff.reset();
                self.note(first.as_ref(), Note::Revoked(format!("a lease of {}", lease_path(&lease))));
            }
            Err(error) if super::passes(&error) => {
                let wait = record.backoff.next(Pace::REVOKE, error.retry_after, &mut self.jitter);
                record.owed.push(Owed { lease, ends, at: now + wait, op: None });
            }
            Err(error) => {
                if error.class == FailureClass::Denied {
                    self.facts.revoke_denied.insert(record.identity.clone());
                }
                record.leftover.push((lease.clone(), ends));
                let ttl = now.until(ends);
                self.note(first.as_ref(), Note::LeftToExpire { what: lease_path(&lease), ttl });
            }
        }
        self.retime_session(id, now);
    }

    pub(super) fn session_revoked(&mut self, id: SessionId, result: Result<(), BackendError>, now: BootTime) {
        let Some(record) = self.sessions.get_mut(&id) else { return };
        record.op = None;
        let what = format!("session of {}", record.on_behalf_of);
        let from = record.retired_from.clone();
        match result {
            Ok(()) => {
                self.note(from.as_ref(), Note::Revoked(what));
                self.forget_session(id);
            }
            // Unknown already.
            Err(error) if error.class == FailureClass::LeaseGone => self.forget_session(id),
            Err(error) => {
                let wait = record.backoff.next(Pace::REVOKE, error.retry_after, &mut self.jitter);
                record.wait_until = Some(now + wait);
                record.last_error = Some(error.message.clone());
                self.dirty_sessions.insert(id);
                self.note(from.as_ref(), Note::Failing { what: format!("revoke {what}"), error, wait });
                self.retime_session(id, now);
            }
        }
    }

    /// Revokes the leases that are due to be given back one by one.
    pub(super) fn revoke_owed(&mut self, id: SessionId, address: &str, now: BootTime) {
        let Some(record) = self.sessions.get(&id) else { return };
        let due: Vec<(String, BootTime)> = record
            .owed
            .iter()
            .filter(|owed| owed.op.is_none() && owed.at <= now)
            .map(|owed| (owed.lease.clone(), owed.ends))
            .collect();
        for (lease, ends) in due {
            let step = self.admit(address, None, now).map(|()| {
                let request = Request::RevokeLease(id, lease.clone());
                let op = Op::RevokeLease(id, lease.clone(), ends);
                self.perform(op, Lane::Background, request, address, now)
            });
            let record = self.sessions.get_mut(&id);
            let owed = record.and_then(|record| record.owed.iter_mut().find(|owed| owed.lease == lease));
            if let Some(owed) = owed {
                match step {
                    Ok(op) => owed.op = Some(op),
                    Err(until) => owed.at = until,
                }
            }
        }
    }
}

/// The path of a lease, without its id: fit for logs.
fn lease_path(lease: &str) -> String {
    lease.rsplit_once('/').map_or(lease, |(path, _)| path).to_owned()
}
