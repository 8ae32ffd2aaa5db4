//! Logins and their sharing.

use std::time::Duration;

use super::{
    LONG_TTL, Lifecycle, Op,
    backoff::Pace,
    key::VolumeKey,
    message::{Lane, Note, OpId, Request, TokenTimes},
    renewal::Term,
    session::{Session, SessionId, SessionState},
};
use crate::{
    backend::{BackendError, FailureClass, SessionTerms},
    clock::BootTime,
    spec::DEFAULT_OVERLAP,
};

impl Lifecycle {
    /// Starts a login with the freshest token of the session's users.
    pub(super) fn login(&mut self, id: SessionId, lane: Lane, now: BootTime) {
        let Some(record) = self.sessions.get(&id) else { return };
        let (connection, login) = (record.identity.connection.clone(), record.identity.login.clone());
        let Some((token_of, _)) = self.login_token(record, now) else {
            let error = BackendError {
                class: FailureClass::Denied,
                message: "no usable ServiceAccount token is held; the next Mount brings one".into(),
                retry_after: None,
                worth_retrying: false,
            };
            self.login_failed(id, &error, now);
            return;
        };
        let address = connection.address.clone();
        let request = Request::Login { session: id, connection, login, token_of };
        let op = self.perform(Op::Login(id), lane, request, &address, now);
        if let Some(record) = self.sessions.get_mut(&id) {
            record.state = SessionState::New(Some(op));
        }
    }

    /// A Mount came after a silence, or brought a newer ServiceAccount token (`fresh`): a login that waits for
    /// another try is made at once where it is made with that token, and what was planned by the end of the
    /// former is planned anew.
    pub(super) fn token_came(&mut self, key: &VolumeKey, fresh: bool, now: BootTime) {
        let mut ids: Vec<SessionId> = Vec::new();
        for (id, record) in &self.sessions {
            let waits = record.state == SessionState::New(None) && record.succeeds.is_some();
            let former = record.succeeds.and_then(|former| self.sessions.get(&former));
            if record.users.contains(key)
                || (waits && former.is_some_and(|former| former.users.contains(key)))
            {
                ids.push(*id);
            }
        }
        for id in ids {
            let waits = self.sessions.get(&id).filter(|record| record.state == SessionState::New(None));
            // With any other token it would be the request that failed.
            let helps = fresh
                && waits
                    .and_then(|record| self.login_token(record, now))
                    .is_some_and(|(token_of, _)| token_of == *key);
            if let Some(record) = self.sessions.get_mut(&id).filter(|_| helps) {
                record.wait_until = None;
            }
            self.retime_session(id, now);
        }
    }

    /// The ServiceAccount token that a login of `record` is made with: the freshest of its users', and of those of
    /// the session it succeeds.
    fn login_token(&self, record: &Session, now: BootTime) -> Option<(VolumeKey, TokenTimes)> {
        let former = record.succeeds.and_then(|former| self.sessions.get(&former));
        std::iter::once(record)
            .chain(former)
            .filter_map(|source| self.freshest_token(source, now))
            .max_by_key(|(_, token)| token.issued)
    }

    // By its end, not its age: so the choice changes with the tokens held only, never with time alone.
    pub(super) fn freshest_token(&self, session: &Session, now: BootTime) -> Option<(VolumeKey, TokenTimes)> {
        session
            .users
            .iter()
            .filter_map(|key| Some((key.clone(), self.volumes.get(key)?.token?)))
            .filter(|(_, token)| token.usable(now))
            .max_by_key(|(_, token)| token.expires.unwrap_or(BootTime::from_millis(u64::MAX)))
    }

    pub(super) fn logged_in(
        &mut self,
        op: OpId,
        result: Result<(SessionTerms, BootTime), BackendError>,
        now: BootTime,
    ) {
        let Some(Op::Login(id)) = self.ops.remove(&op) else { return };
        let sent = result.as_ref().map(|(_, since)| Some(*since));
        self.observe(id, op, sent, now);
        let jitter = self.jitter.thousandths();
        let Some(record) = self.sessions.get_mut(&id) else { return };
        self.dirty_sessions.insert(id);
        match result {
            Ok((terms, since)) => {
                record.state = SessionState::Live;
                record.term = Some(Term::new(since, terms.ttl, terms.renewable, jitter));
                record.terms = Some(terms);
                record.backoff.reset();
                record.wait_until = None;
                record.last_error = None;
                let succeeds = record.succeeds.take();
                let (own, first) = (!record.users.is_empty(), record.users.first().cloned());
                let wanted = own || succeeds.is_some_and(|former| self.has_users(former));
                if terms.ttl > LONG_TTL || terms.ttl.is_zero() {
                    self.note(first.as_ref(), Note::LongTtl(terms.ttl));
                }
                let delivered = first
                    .as_ref()
                    .and_then(|key| self.volumes.get(key))
                    .is_some_and(|volume| volume.is_live());
                if !terms.revocable && !delivered {
                    self.note(first.as_ref(), Note::Unrevocable);
                }
                // It got leases while the login waited: they do not come over to a session that did not make them.
                let leased = succeeds
                    .filter(|former| self.leased_user(*former).is_some() || self.is_delivering(*former));
                if !wanted || (leased.is_some() && !own) {
                    self.retire_session(id, now, None);
                    if let Some(former) = leased {
                        self.hand_over(former, "its successor came too late", now);
                    }
                    return;
                }
                if let Some(former) = succeeds.filter(|_| leased.is_none()) {
                    self.succeed(former, id, now);
                }
                if !terms.shareable || terms.num_uses > 0 || !terms.revocable {
                    self.unshare(id, now);
                }
                self.login_ended(id, Ok(()), now);
            }
            Err(error) => self.login_failed(id, &error, now),
        }
        self.retime_session(id, now);
    }

    fn login_failed(&mut self, id: SessionId, error: &BackendError, now: BootTime) {
        let Some(record) = self.sessions.get_mut(&id) else { return };
        record.state = SessionState::New(None);
        record.last_error = Some(error.message.clone());
        let succeeds = record.succeeds;
        let own = !record.users.is_empty();
        if !own && succeeds.is_none_or(|former| !self.has_users(former)) {
            self.forget_session(id);
            return;
        }
        let Some(record) = self.sessions.get_mut(&id) else { return };
        // For all whom it serves: each of them alone would keep its own time, and together they would ask for ever.
        let pace = if super::passes(error) { Pace::BACKGROUND } else { Pace::REFUSED };
        let wait = record.backoff.next(pace, error.retry_after, &mut self.jitter);
        record.wait_until = Some(now + wait);
        if let Some(former) = succeeds {
            let what = format!("login of {}", record.on_behalf_of);
            let first = self.sessions.get(&former).and_then(|former| former.users.first().cloned());
            self.note(first.as_ref(), Note::Failing { what, error: error.clone(), wait });
            self.retime_session(id, now);
        }
        self.login_ended(id, Err(error), now);
    }

    pub(super) fn has_users(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|record| !record.users.is_empty())
    }

    /// A lease-free session takes over the users of the one it succeeds: nothing is read, nothing written.
    fn succeed(&mut self, former: SessionId, id: SessionId, now: BootTime) {
        let Some(old) = self.sessions.get(&former) else { return };
        let (identity, shared) = (old.identity.clone(), old.shared);
        let users: Vec<VolumeKey> = old.users.iter().cloned().collect();
        if shared && self.shared.get(&identity) == Some(&former) {
            self.shared.insert(identity, id);
        }
        if let Some(record) = self.sessions.get_mut(&id) {
            record.shared = shared;
            record.idle_since = users.is_empty().then_some(now);
        }
        for key in users {
            let Some(volume) = self.volumes.get_mut(&key) else { continue };
            if let Some(installed) = &mut volume.installed
                && installed.session == former
            {
                installed.session = id;
            }
            let moves = volume.attempt.as_ref().is_some_and(|attempt| attempt.session == former);
            if let Some(record) = self.sessions.get_mut(&id) {
                record.users.insert(key.clone());
            }
            self.dirty_volumes.insert(key.clone());
            if moves {
                self.move_attempt(&key, id, now);
            }
            if let Some(old) = self.sessions.get_mut(&former) {
                old.users.remove(&key);
            }
        }
        self.retire_session(former, now + DEFAULT_OVERLAP, None);
    }

    /// The first mounts of an identity waited for one login, which turns out to serve one only.
    fn unshare(&mut self, id: SessionId, now: BootTime) {
        let Some(record) = self.sessions.get_mut(&id).filter(|record| record.shared) else { return };
        record.shared = false;
        let identity = record.identity.clone();
        let users: Vec<VolumeKey> = record.users.iter().cloned().collect();
        if self.shared.get(&identity) == Some(&id) {
            self.shared.remove(&identity);
        }
        if self.facts.unshareable.len() >= super::FACTS {
            self.facts.unshareable.clear();
        }
        self.facts.unshareable.insert(identity.clone());
        if let Some((record, volume)) =
            self.sessions.get_mut(&id).zip(users.first().and_then(|key| self.volumes.get(key)))
        {
            record.on_behalf_of = super::on_behalf_of(&volume.pod.namespace, &volume.pod.name);
        }
        for key in users.into_iter().skip(1) {
            let own = self.new_session(&key, identity.clone(), false);
            self.move_attempt(&key, own, now);
        }
    }

    /// A mount without leases lets its session serve the identity's others.
    /// `overlap`: how long what it made before may still be in use.
    pub(super) fn share(&mut self, key: &VolumeKey, id: SessionId, overlap: Duration, now: BootTime) {
        let Some(record) = self.sessions.get(&id) else { return };
        let shareable =
            record.terms.is_some_and(|terms| terms.shareable && terms.num_uses == 0 && terms.revocable);
        if record.shared || !record.is_live() || !shareable {
            return;
        }
        let identity = record.identity.clone();
        let other = self.shared.get(&identity).copied().filter(|other| {
            *other != id && self.sessions.get(other).is_some_and(|other| other.is_live() && !other.lost)
        });
        let Some(other) = other else {
            let whom = super::on_behalf_of(&identity.namespace, &identity.service_account);
            if let Some(record) = self.sessions.get_mut(&id) {
                record.shared = true;
                record.on_behalf_of = whom;
            }
            self.shared.insert(identity, id);
            self.dirty_sessions.insert(id);
            return;
        };
        if let Some(installed) = self.volumes.get_mut(key).and_then(|volume| volume.installed.as_mut()) {
            installed.session = other;
        }
        if let Some(record) = self.sessions.get_mut(&other) {
            record.users.insert(key.clone());
            record.idle_since = None;
        }
        self.dirty_sessions.insert(other);
        self.dirty_volumes.insert(key.clone());
        self.leave_session(id, key, now + overlap, now);
        self.retime_session(other, now);
    }
}
