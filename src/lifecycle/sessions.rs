//! Logins, their sharing, hand-over and revocation.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    LEFTOVER_COUNT, LEFTOVER_LIFE, LONG_TTL, Lifecycle, Op, RETRY_GRACE, SHARED_GRACE, TimerKey,
    backoff::Pace,
    message::{Action, Lane, Note, OpId, Request, TokenTimes},
    mounting::Aim,
    renewal::{Step, Term, decide, replace_by},
    server::Server,
    session::{Owed, Session, SessionId, SessionState},
    volume::{Phase, Reason, Retired},
};
use crate::{
    backend::{BackendError, FailureClass, Renewed, SessionTerms},
    clock::BootTime,
    spec::DEFAULT_OVERLAP,
    volume::VolumeKey,
};

/// How long before a ServiceAccount token ends it is used a last time, if no fresh one came: the kubelet
/// replaces it at four fifths of its life, so by then none will.
const LAST_LOGIN: Duration = Duration::from_secs(30);

/// How often it is looked whether the last request of a session that is given up has ended; each does, by its
/// own time-out.
const MINTING: Duration = Duration::from_millis(100);

/// Until a Mount says otherwise.
const KEPT: BootTime = BootTime::from_millis(u64::MAX);

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
        let op =
            self.perform(Op::Login(id), lane, Request::Login { session: id, connection, login, token_of });
        if lane == Lane::Background {
            self.sent(&address, op, now);
        }
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
    fn freshest_token(&self, session: &Session, now: BootTime) -> Option<(VolumeKey, TokenTimes)> {
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
        let jitter = u32::try_from(self.jitter.next_u64() % 1001).unwrap_or(0);
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

    fn has_users(&self, id: SessionId) -> bool {
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

    pub(super) fn session_renewed(
        &mut self,
        id: SessionId,
        result: Result<Renewed, BackendError>,
        now: BootTime,
    ) {
        let jitter = u32::try_from(self.jitter.next_u64() % 1001).unwrap_or(0);
        let Some(record) = self.sessions.get_mut(&id) else { return };
        if !record.is_live() {
            return;
        }
        record.op = None;
        let first = record.users.first().cloned();
        let what = format!("session of {}", record.on_behalf_of);
        match result {
            Ok(Renewed { ttl, renewable, since }) => {
                record.term = record.term.map(|term| term.renewed(since, ttl, renewable, jitter));
                record.expiry_noted = false;
                record.backoff.reset();
                record.wait_until = None;
                record.last_error = None;
                self.dirty_sessions.insert(id);
                self.note(first.as_ref(), Note::Renewed { what, ttl });
            }
            Err(error) => {
                record.last_error = Some(error.message.clone());
                if error.class == FailureClass::LeaseGone {
                    let wait = Duration::ZERO;
                    self.note(first.as_ref(), Note::Failing { what, error, wait });
                    self.session_lost(id, now);
                    return;
                }
                if !super::passes(&error) {
                    record.renewal_refused = true;
                }
                let wait = record.backoff.next(Pace::BACKGROUND, error.retry_after, &mut self.jitter);
                record.wait_until = Some(now + wait);
                self.dirty_sessions.insert(id);
                self.note(first.as_ref(), Note::Failing { what, error, wait });
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

    /// The server does not know the session: its leases are gone with it.
    pub(super) fn session_lost(&mut self, id: SessionId, now: BootTime) {
        let Some(record) = self.sessions.get_mut(&id) else { return };
        record.op = None;
        if !record.is_live() {
            self.forget_session(id);
            return;
        }
        record.lost = true;
        record.wait_until = None;
        self.dirty_sessions.insert(id);
        if self.shared.get(&record.identity) == Some(&id) {
            let identity = record.identity.clone();
            self.shared.remove(&identity);
        }
        let users: Vec<VolumeKey> = record.users.iter().cloned().collect();
        for key in &users {
            let installed = self.volumes.get_mut(key).and_then(|volume| volume.installed.as_mut());
            if let Some(installed) = installed.filter(|installed| installed.session == id) {
                for dependency in installed.dependencies.values_mut() {
                    dependency.lost |= dependency.lease.is_some();
                }
            }
        }
        self.hand_over(id, "the server does not know the session", now);
        // What is lost is due at once, whether or not the hand-over could begin.
        for key in &users {
            self.retime_volume(key, now);
        }
        self.retime_session(id, now);
    }

    /// The first of its users that holds leases made in it.
    fn leased_user(&self, id: SessionId) -> Option<VolumeKey> {
        let mut users = self.sessions.get(&id)?.users.iter();
        let leased = users.find(|key| {
            self.volumes.get(*key).and_then(|volume| volume.installed.as_ref()).is_some_and(|installed| {
                installed.session == id
                    && installed.dependencies.values().any(|dependency| dependency.lease.is_some())
            })
        });
        leased.cloned()
    }

    /// Whether leases made in it are on their way to a volume: they cannot be asked for again in another session
    /// any more, and are not installed yet.
    fn is_delivering(&self, id: SessionId) -> bool {
        let users = self.sessions.get(&id).into_iter().flat_map(|record| &record.users);
        users.filter_map(|key| self.volumes.get(key)?.attempt.as_ref()).any(|attempt| {
            let asks = matches!(attempt.phase, Phase::Gathering | Phase::Waiting(_));
            attempt.session == id && !asks && attempt.has_minted()
        })
    }

    /// Replaces a session before it dies, or because it died.
    pub(super) fn hand_over(&mut self, id: SessionId, why: &str, now: BootTime) {
        let Some(record) = self.sessions.get_mut(&id) else { return };
        // Whatever becomes of it, not again at once.
        record.wait_until = Some(now + Duration::from_secs(30));
        let identity = record.identity.clone();
        let users: Vec<VolumeKey> = record.users.iter().cloned().collect();
        if let Some(key) = self.leased_user(id) {
            self.hand_over_volume(&key, why, now);
            return;
        }
        // Once they are delivered they are what is handed over.
        if self.is_delivering(id) || self.sessions.values().any(|other| other.succeeds == Some(id)) {
            return;
        }
        let Some(first) = users.first() else { return };
        let successor = self.new_session(first, identity, false);
        if let Some(record) = self.sessions.get_mut(&successor) {
            record.succeeds = Some(id);
        }
        self.dirty_sessions.insert(successor);
        self.session_due(successor, now);
    }

    pub(super) fn hand_over_volume(&mut self, key: &VolumeKey, why: &str, now: BootTime) {
        let Some(volume) = self.volumes.get(key) else { return };
        let Some(installed) = &volume.installed else { return };
        let aim = Aim::keep(Reason::HandOver(why.to_owned()), installed, None);
        match &volume.attempt {
            Some(attempt) if matches!(attempt.reason, Reason::HandOver(_)) => return,
            Some(attempt) if attempt.is_parked() => {}
            // Somebody waits for it, or it makes everything again in another session already.
            Some(attempt)
                if !attempt.calls.is_empty()
                    || attempt.session != installed.session
                    || attempt.reason == Reason::Edit =>
            {
                return;
            }
            Some(_) | None => {}
        }
        self.abandon(key, "the session must be handed over first", now);
        self.start(key, aim, Vec::new(), now);
        self.retime_volume(key, now);
    }

    /// Does what is due for a session, and sets its timer anew.
    pub(super) fn session_due(&mut self, id: SessionId, now: BootTime) {
        self.set_timer(TimerKey::Session(id), None);
        let Some(record) = self.sessions.get(&id) else { return };
        let address = record.identity.connection.address.clone();
        // A successor is urgent as long as the one it succeeds lives.
        let dying = record.succeeds.and_then(|former| self.sessions.get(&former)).unwrap_or(record);
        let ends = dying.term.filter(|term| !term.ttl.is_zero()).map(Term::ends);
        let blocked = record.op.is_some() || record.wait_until.is_some_and(|until| now < until);
        match record.state {
            SessionState::New(Some(_)) => {}
            // Whom it was to succeed has gone, and so have the pods: nobody waits for the login.
            SessionState::New(None)
                if record.users.is_empty()
                    && record.succeeds.is_some_and(|former| !self.has_users(former)) =>
            {
                self.forget_session(id);
                return;
            }
            SessionState::New(None) if record.succeeds.is_some() && !blocked => {
                match self.admit(&address, ends, now) {
                    Ok(()) => self.login(id, Lane::Background, now),
                    Err(until) => self.delay_session(id, until),
                }
            }
            SessionState::New(None) => {}
            SessionState::Retiring(at) => {
                let dead = record.lost
                    || record.term.is_some_and(|term| !term.ttl.is_zero() && term.ends() <= now)
                    || record.terms.is_some_and(|terms| !terms.revocable);
                if dead {
                    self.forget_session(id);
                    return;
                }
                // A lease that is being made while its session is revoked may outlive both.
                let minting = self.ops.values().any(|op| matches!(op, Op::Need(_, _, of) if *of == id));
                if at <= now && !blocked && minting {
                    self.delay_session(id, now + MINTING);
                } else if at <= now && !blocked {
                    match self.admit(&address, None, now) {
                        Ok(()) => {
                            let op = self.perform(
                                Op::RevokeSession(id),
                                Lane::Background,
                                Request::RevokeSession(id),
                            );
                            self.sent(&address, op, now);
                            if let Some(record) = self.sessions.get_mut(&id) {
                                record.op = Some(op);
                            }
                        }
                        Err(until) => self.delay_session(id, until),
                    }
                }
            }
            SessionState::Live => self.live_session_due(id, (&address, ends), blocked, now),
        }
        self.retime_session(id, now);
    }

    fn live_session_due(
        &mut self,
        id: SessionId,
        (address, ends): (&str, Option<BootTime>),
        blocked: bool,
        now: BootTime,
    ) {
        let Some(record) = self.sessions.get_mut(&id) else { return };
        record.leftover.retain(|(_, ends)| *ends > now);
        if record.users.is_empty() && record.idle_since.is_none_or(|since| since + SHARED_GRACE <= now) {
            self.retire_session(id, now, None);
            return;
        }
        if record.users.is_empty() && record.lost {
            self.forget_session(id);
            return;
        }
        self.revoke_owed(id, address, now);
        self.notice_session_end(id, now);
        if blocked {
            return;
        }
        let Some((step, why)) = self.session_step(id, now) else { return };
        match step {
            Step::Renew => match self.admit(address, ends, now) {
                Ok(()) => {
                    let op = self.perform(Op::RenewSession(id), Lane::Background, Request::RenewSession(id));
                    self.sent(address, op, now);
                    if let Some(record) = self.sessions.get_mut(&id) {
                        record.op = Some(op);
                    }
                }
                Err(until) => self.delay_session(id, until),
            },
            Step::Replace | Step::Check => self.hand_over(id, why, now),
        }
    }

    /// Revokes the leases that are due to be given back one by one.
    fn revoke_owed(&mut self, id: SessionId, address: &str, now: BootTime) {
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
                let op = self.perform(Op::RevokeLease(id, lease.clone(), ends), Lane::Background, request);
                self.sent(address, op, now);
                op
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

    /// A session that ends takes its leases with it, whatever their own TTL says: what is in a file is dead.
    fn notice_session_end(&mut self, id: SessionId, now: BootTime) {
        let Some(record) = self.sessions.get_mut(&id) else { return };
        if record.expiry_noted || record.ends().is_none_or(|ends| now < ends) {
            return;
        }
        record.expiry_noted = true;
        let users: Vec<VolumeKey> = record.users.iter().cloned().collect();
        for key in users {
            let installed = self.volumes.get_mut(&key).and_then(|volume| volume.installed.as_mut());
            let Some(installed) = installed.filter(|installed| installed.session == id) else { continue };
            let mut dead = Vec::new();
            for dependency in installed.dependencies.values_mut() {
                if dependency.lease.is_some() && !dependency.expiry_noted {
                    dependency.expiry_noted = true;
                    dead.push(dependency.request.path.to_string());
                }
            }
            for path in dead {
                self.note(Some(&key), Note::Expired(path));
            }
        }
    }

    /// What is due for a live session now, if anything.
    fn session_step(&mut self, id: SessionId, now: BootTime) -> Option<(Step, &'static str)> {
        let record = self.sessions.get(&id)?;
        if self.all_silent(record) {
            return None;
        }
        if record.lost {
            return Some((Step::Replace, "the server does not know the session"));
        }
        if self.leftover_due(record, now).is_some_and(|due| due <= now) {
            return Some((Step::Replace, "replaced leases could not be revoked one by one"));
        }
        if let Some(due) = self.last_login(record, now)
            && due <= now
        {
            let users: Vec<VolumeKey> = record.users.iter().cloned().collect();
            for key in users {
                if let Some(volume) = self.volumes.get_mut(&key) {
                    volume.handed_over_with = volume.token.map(|token| token.issued);
                }
            }
            return Some((Step::Replace, "the ServiceAccount token ends and no fresh one came"));
        }
        let record = self.sessions.get(&id)?;
        let term = record.effective_term()?;
        let decision = decide(term, DEFAULT_OVERLAP)?;
        if decision.at > now {
            return None;
        }
        // Renewals that fail one by one must not carry the session over its end. While the whole server is
        // out, a renewal finds its return as well as a login would, and costs nothing.
        let server = self.servers.get(&record.identity.connection.address);
        let out = server.is_some_and(Server::is_out);
        if decision.step == Step::Renew
            && record.backoff.failures() > 0
            && !out
            && now >= replace_by(term, DEFAULT_OVERLAP)
        {
            return Some((Step::Replace, "renewing it kept failing"));
        }
        // A fleet that comes back does not ask 5,000 times after what ended in the outage.
        if server.is_some() && term.ends() <= now {
            return Some((Step::Replace, "it ended while the server did not answer"));
        }
        Some((decision.step, decision.why))
    }

    /// When the session should be made anew because replaced leases could not be revoked one by one, if they
    /// are worth that. Not sooner than each lease of its mounts may be minted again.
    fn leftover_due(&self, record: &Session, now: BootTime) -> Option<BootTime> {
        let worth = record.leftover.len() >= LEFTOVER_COUNT
            || record.leftover.iter().any(|(_, ends)| now.until(*ends) > LEFTOVER_LIFE);
        let installed = record
            .users
            .iter()
            .filter_map(|key| self.volumes.get(key).and_then(|volume| volume.installed.as_ref()));
        let budgets = installed
            .flat_map(|installed| installed.dependencies.values())
            .filter_map(|known| known.lease.as_ref().map(|(_, term)| known.budget.next(term.full)));
        worth.then(|| budgets.max().unwrap_or(now).max(now))
    }

    /// When the session should be made anew because the last ServiceAccount token held for it ends.
    fn last_login(&self, record: &Session, now: BootTime) -> Option<BootTime> {
        let (key, token) = self.freshest_token(record, now)?;
        let volume = self.volumes.get(&key)?;
        // A session that a newer login than this token's could not outlive gains nothing.
        if volume.handed_over_with == Some(token.issued) {
            return None;
        }
        let expires = token.expires?;
        let life = expires.since(token.issued);
        let margin = (life / 20).max(LAST_LOGIN).min(life / 2);
        let due = token.issued + life.saturating_sub(margin);
        record.term.filter(|term| term.since < due).map(|_| due)
    }

    fn all_silent(&self, record: &Session) -> bool {
        !record.users.is_empty()
            && record.users.iter().all(|key| self.volumes.get(key).is_some_and(|volume| volume.silent))
    }

    fn delay_session(&mut self, id: SessionId, until: BootTime) {
        if let Some(record) = self.sessions.get_mut(&id) {
            record.wait_until = Some(until);
        }
    }

    pub(super) fn retime_session(&mut self, id: SessionId, now: BootTime) {
        let at = self.next_of_session(id, now);
        self.set_timer(TimerKey::Session(id), at);
    }

    pub(super) fn next_of_session(&self, id: SessionId, now: BootTime) -> Option<BootTime> {
        let record = self.sessions.get(&id)?;
        let wait = |at: BootTime| record.wait_until.map_or(at, |until| until.max(at));
        match record.state {
            SessionState::New(Some(_)) => None,
            SessionState::New(None) => record.succeeds.map(|_| wait(now)),
            SessionState::Retiring(at) => {
                let revoke = record.op.is_none().then(|| wait(at));
                let ends = record.term.filter(|term| !term.ttl.is_zero()).map(Term::ends);
                revoke.into_iter().chain(ends).min()
            }
            SessionState::Live => {
                let unanswered = record.owed.iter().filter(|owed| owed.op.is_none());
                let owed = unanswered.map(|owed| owed.at).min();
                let ends = record.ends().filter(|_| !record.expiry_noted && !record.users.is_empty());
                let idle = record.idle_since.filter(|_| record.users.is_empty());
                let idle = idle.map(|since| since + SHARED_GRACE);
                let upkeep = if record.op.is_some() || record.users.is_empty() || self.all_silent(record) {
                    None
                } else if record.lost {
                    Some(wait(now))
                } else {
                    let decision = record.effective_term().and_then(|term| decide(term, DEFAULT_OVERLAP));
                    decision
                        .map(|decision| decision.at)
                        .into_iter()
                        .chain(self.last_login(record, now))
                        .chain(self.leftover_due(record, now))
                        .min()
                        .map(wait)
                };
                [owed, idle, upkeep, ends].into_iter().flatten().min()
            }
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

/// The path of a lease, without its id: fit for logs.
pub(super) fn lease_path(lease: &str) -> String {
    lease.rsplit_once('/').map_or(lease, |(path, _)| path).to_owned()
}
