//! Timers of sessions: renew, hand over, revoke.

use std::time::Duration;

use super::{
    LEFTOVER_COUNT, LEFTOVER_LIFE, Lifecycle, Op, SHARED_GRACE, TimerKey,
    attempts::Aim,
    backoff::Pace,
    key::VolumeKey,
    message::{Lane, Note, Request},
    renewal::{Step, Term, decide, replace_by},
    server::Server,
    session::{Session, SessionId, SessionState},
    volume::{Phase, Reason},
};
use crate::{
    backend::{BackendError, FailureClass, Renewed},
    clock::BootTime,
    spec::DEFAULT_OVERLAP,
};

/// How long before a ServiceAccount token ends it is used a last time, if no fresh one came: the kubelet
/// replaces it at four fifths of its life, so by then none will.
const LAST_LOGIN: Duration = Duration::from_secs(30);

/// How often it is looked whether the last request of a session that is given up has ended; each does, by its
/// own time-out.
const MINTING: Duration = Duration::from_millis(100);

impl Lifecycle {
    pub(super) fn session_renewed(
        &mut self,
        id: SessionId,
        result: Result<Renewed, BackendError>,
        now: BootTime,
    ) {
        let jitter = self.jitter.thousandths();
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
    pub(super) fn leased_user(&self, id: SessionId) -> Option<VolumeKey> {
        let mut users = self.sessions.get(&id)?.users.iter();
        let leased = users.find(|key| {
            self.volumes
                .get(*key)
                .and_then(|volume| volume.installed.as_ref())
                .is_some_and(|installed| installed.session == id && installed.has_lease())
        });
        leased.cloned()
    }

    /// Whether leases made in it are on their way to a volume: they cannot be asked for again in another session
    /// any more, and are not installed yet.
    pub(super) fn is_delivering(&self, id: SessionId) -> bool {
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
                            let request = Request::RevokeSession(id);
                            let op = Op::RevokeSession(id);
                            let op = self.perform(op, Lane::Background, request, &address, now);
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
                    let request = Request::RenewSession(id);
                    let op = self.perform(Op::RenewSession(id), Lane::Background, request, address, now);
                    if let Some(record) = self.sessions.get_mut(&id) {
                        record.op = Some(op);
                    }
                }
                Err(until) => self.delay_session(id, until),
            },
            Step::Replace | Step::Check => self.hand_over(id, why, now),
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
}
