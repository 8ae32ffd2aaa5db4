//! What the answers to an attempt's logins and reads come to.

use std::{sync::Arc, time::Duration};

use super::{
    Lifecycle,
    attempts::ABSENT_TRIES,
    backoff::Backoff,
    budget::MintBudget,
    key::VolumeKey,
    kv_mount,
    message::{Action, Fetched, OpId, PlanId},
    passes,
    renewal::Term,
    session::SessionId,
    volume::{Dependency, Installed, Need, Phase, Volume},
};
use crate::{
    backend::{BackendError, FailureClass},
    clock::BootTime,
    spec::DependencyId,
};

/// A lower KV version seen this often in a row is a restore from a snapshot, not a standby that lags: the
/// longest lag measured was 2.2 s.
const REGRESSIONS_BELIEVED: u32 = 4;

impl Lifecycle {
    /// An answer came that plans asked for: `plan`, and those of the same session that joined it.
    pub(super) fn answer_came(
        &mut self,
        op: OpId,
        plan: PlanId,
        id: DependencyId,
        session: SessionId,
        result: Result<Fetched, BackendError>,
        now: BootTime,
    ) {
        let users = self.sessions.get(&session).filter(|record| record.shared).map(|record| &record.users);
        let others: Vec<PlanId> = users
            .into_iter()
            .flatten()
            .filter(|key| **key != plan.key)
            .filter_map(|key| {
                let volume = self.volumes.get(key)?;
                let attempt = volume.attempt.as_ref()?;
                let joined = matches!(attempt.needs.get(&id), Some(Need::InFlight(asked)) if *asked == op);
                joined.then(|| PlanId { key: key.clone(), serial: volume.serial, plan: attempt.plan })
            })
            .collect();
        for plan in std::iter::once(plan).chain(others) {
            self.need_answered(op, plan, id, session, result.clone(), now);
        }
    }

    /// A login of a session that attempts wait for has ended.
    pub(super) fn login_ended(
        &mut self,
        session: SessionId,
        result: Result<(), &BackendError>,
        now: BootTime,
    ) {
        let users: Vec<VolumeKey> = self
            .sessions
            .get(&session)
            .map(|record| record.users.iter().cloned().collect())
            .unwrap_or_default();
        for key in users {
            let Some(attempt) = self.volumes.get_mut(&key).and_then(|volume| volume.attempt.as_mut()) else {
                continue;
            };
            if attempt.session != session || attempt.phase != Phase::Gathering {
                continue;
            }
            match result {
                Ok(()) => {
                    attempt.relogged = true;
                    self.advance(&key, now);
                }
                Err(error) => self.fail(&key, error.clone(), None, now),
            }
            self.retime_volume(&key, now);
        }
    }

    fn need_answered(
        &mut self,
        op: OpId,
        plan: PlanId,
        id: DependencyId,
        session: SessionId,
        result: Result<Fetched, BackendError>,
        now: BootTime,
    ) {
        let key = plan.key.clone();
        let waiting =
            self.volumes.get(&key).filter(|volume| volume.serial == plan.serial).and_then(|volume| {
                let attempt = volume.attempt.as_ref()?;
                let mine = attempt.plan == plan.plan
                    && attempt.session == session
                    && matches!(attempt.needs.get(&id), Some(Need::InFlight(flying)) if *flying == op);
                mine.then_some(attempt)
            });
        let Some(attempt) = waiting else {
            // Nobody waits any more: what was minted is given back, not rendered.
            if let Ok(Fetched { lease: Some(lease), since, .. }) = result {
                self.owe_lease(session, lease.id, since + lease.ttl, now, now);
            }
            return;
        };
        let request = attempt.spec.requests().get(&id).map(|request| Arc::new((*request).clone()));
        let Some(request) = request else { return };
        match result {
            Ok(fetched) => {
                let is_kv = fetched.kv_version.is_some() && kv_mount(&request).is_some();
                self.learn(session, &request, fetched.lease.is_some(), is_kv);
                let shared = self.sessions.get(&session).is_some_and(|record| record.shared);
                if let (Some(lease), true) = (&fetched.lease, shared) {
                    self.owe_lease(session, lease.id.clone(), fetched.since + lease.ttl, now, now);
                    let identity = self.sessions[&session].identity.clone();
                    self.set_need(&key, id, Need::Wanted);
                    let own = self.new_session(&key, identity, false);
                    self.move_attempt(&key, own, now);
                    return;
                }
                if self.regressed(&key, id, fetched.kv_version) {
                    self.set_need(&key, id, Need::Wanted);
                    let error = BackendError {
                        class: FailureClass::Transient,
                        message: format!(
                            "read {}: a standby answered an older version than was delivered",
                            request.path
                        ),
                        retry_after: None,
                        worth_retrying: true,
                    };
                    self.fail(&key, error, Some(id), now);
                    return;
                }
                let dependency = self.dependency(&key, id, request, fetched, now);
                self.set_need(&key, id, Need::Got(Box::new(dependency)));
                self.actions.push_back(Action::Supply(op, plan, id));
                self.dirty_volumes.insert(key.clone());
                self.advance(&key, now);
            }
            Err(error) => {
                self.set_need(&key, id, Need::Wanted);
                let relogged = self.volumes[&key].attempt.as_ref().is_none_or(|attempt| attempt.relogged);
                match error.class {
                    FailureClass::LeaseGone | FailureClass::Denied if !relogged => {
                        self.log_in_anew(&key, session, error.class, now);
                    }
                    _ if self.leave_out(&key, id, &error, now) => self.advance(&key, now),
                    _ => self.fail(&key, error, Some(id), now),
                }
            }
        }
        self.retime_volume(&key, now);
    }

    /// What cannot be had now stays as it is on disk, where something else can be brought up to date without
    /// it. It is asked for again in its own time.
    fn leave_out(&mut self, key: &VolumeKey, id: DependencyId, error: &BackendError, now: BootTime) -> bool {
        let Some(volume) = self.volumes.get_mut(key) else { return false };
        let Some(need) = volume.without(id) else { return false };
        let (Some(installed), Some(attempt)) = (&mut volume.installed, &mut volume.attempt) else {
            return false;
        };
        let lasts = !passes(error) || attempt.backoff.failures() >= ABSENT_TRIES;
        let goes_on = attempt
            .needs
            .iter()
            .any(|(other, need)| *other != id && matches!(need, Need::Got(_) | Need::InFlight(_)));
        if !lasts || !goes_on {
            return false;
        }
        attempt.needs.insert(id, need);
        if let Some(known) = installed.dependencies.get_mut(&id) {
            known.stale = true;
        }
        self.check_failed(key, id, error, true, now);
        true
    }

    /// A refusal in a session from before this attempt may be the session's fault: once, log in anew.
    fn log_in_anew(&mut self, key: &VolumeKey, session: SessionId, class: FailureClass, now: BootTime) {
        let Some(record) = self.sessions.get(&session) else { return };
        let (identity, shared) = (record.identity.clone(), record.shared);
        if let Some(attempt) = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut()) {
            attempt.relogged = true;
        }
        if shared && let Some(other) = self.shared.get(&identity).copied().filter(|other| *other != session) {
            self.move_attempt(key, other, now);
            return;
        }
        if shared {
            self.shared.remove(&identity);
        }
        let fresh = self.new_session(key, identity.clone(), shared);
        if shared {
            self.shared.insert(identity, fresh);
        }
        let installed = self.volumes.get(key).and_then(|volume| volume.installed.as_ref());
        let leased = installed.is_some_and(Installed::has_lease);
        if class == FailureClass::LeaseGone
            && !leased
            && let Some(record) = self.sessions.get_mut(&fresh)
        {
            // One login serves all who used the lost one.
            record.succeeds = Some(session);
        }
        self.move_attempt(key, fresh, now);
        if class == FailureClass::LeaseGone {
            self.session_lost(session, now);
        }
    }

    /// Whether `version` is older than the one delivered, and not yet believed.
    pub(super) fn regressed(&mut self, key: &VolumeKey, id: DependencyId, version: Option<u64>) -> bool {
        let known = self
            .volumes
            .get_mut(key)
            .and_then(|volume| volume.installed.as_mut())
            .and_then(|installed| installed.dependencies.get_mut(&id));
        let Some(known) = known else { return false };
        if version.zip(known.kv_version).is_some_and(|(new, old)| new < old) {
            known.regressions += 1;
            return known.regressions < REGRESSIONS_BELIEVED;
        }
        known.regressions = 0;
        false
    }

    pub(super) fn dependency(
        &mut self,
        key: &VolumeKey,
        id: DependencyId,
        request: Arc<crate::spec::SecretRequest>,
        fetched: Fetched,
        now: BootTime,
    ) -> Dependency {
        let jitter = self.jitter.thousandths();
        let volume = &self.volumes[key];
        let spec = volume
            .attempt
            .as_ref()
            .map(|attempt| &attempt.spec)
            .or(volume.installed.as_ref().map(|installed| &installed.spec));
        let (overlap, refresh_interval, refresh_policy) =
            spec.map_or((Duration::ZERO, None, Default::default()), |spec| Volume::wishes(spec, id));
        let known = volume.installed.as_ref().and_then(|installed| installed.dependencies.get(&id));
        let mut budget: MintBudget = known.map(|known| known.budget.clone()).unwrap_or_default();
        if fetched.lease.is_some() || request.is_write() {
            budget.spend(now);
        }
        let changed = match known {
            Some(known) if known.digest != fetched.digest => Some(now),
            Some(known) => known.changed,
            None => None,
        };
        Dependency {
            request,
            lease: fetched
                .lease
                .map(|lease| (lease.id, Term::new(fetched.since, lease.ttl, lease.renewable, jitter))),
            lifetime: fetched.lifetime,
            since: fetched.since,
            changed,
            digest: fetched.digest,
            kv_version: fetched.kv_version,
            regressions: 0,
            held: true,
            jitter,
            overlap,
            refresh_interval,
            refresh_policy,
            op: None,
            wait_until: None,
            backoff: Backoff::default(),
            last_error: None,
            lost: false,
            stale: false,
            expiry_noted: false,
            budget,
        }
    }
}
