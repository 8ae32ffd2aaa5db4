//! Timers of what is installed: renew, check, replace.

use std::time::Duration;

use super::{
    Lifecycle, Op, SILENCE, TimerKey,
    attempts::Aim,
    backoff::Pace,
    key::VolumeKey,
    message::{Lane, Note, OpId, Request},
    renewal::{Decision, Step, replace_by},
    session::{Session, SessionId},
    volume::{Mode, Need, Phase, Reason, Volume},
};
use crate::{
    backend::{BackendError, FailureClass, Renewed},
    clock::BootTime,
    spec::DependencyId,
};

/// How long upkeep waits for other work on the same volume or session.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// After a jump of time, what is overdue comes back spread over this long.
const JUMP_SPREAD: Duration = Duration::from_secs(5);

impl Lifecycle {
    /// Does what is due for a volume, and sets its timer anew.
    pub(super) fn volume_due(&mut self, key: &VolumeKey, now: BootTime) {
        self.answer_overdue(key, now);
        let Some(volume) = self.volumes.get_mut(key) else {
            self.set_timer(TimerKey::Volume(key.clone()), None);
            return;
        };
        if !volume.is_live() && volume.grace_until.is_some_and(|until| until <= now) {
            self.forget_volume(key, now);
            return;
        }
        volume.hold_until = volume.hold_until.filter(|until| now < *until);
        let due = volume
            .attempt
            .as_ref()
            .is_some_and(|attempt| matches!(attempt.phase, Phase::Waiting(Some(until)) if until <= now));
        if due {
            self.resume(key, now);
        }
        self.notice_silence(key, now);
        self.notice_expiry(key, now);
        for id in self.due_dependencies(key, now) {
            self.dependency_due(key, id, now);
        }
        self.retime_volume(key, now);
    }

    /// A driver-written volume shows no unmount: when Mounts stop coming it is let expire.
    fn notice_silence(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let Some(limit) = silence_limit(volume) else { return };
        if volume.last_mount + limit > now {
            return;
        }
        volume.silent = true;
        let session = volume.installed.as_ref().map(|installed| installed.session);
        self.abandon(key, "Mounts stopped coming", now);
        let volume = &self.volumes[key];
        let dies = self.installed_ends(volume).map(|at| now.until(at));
        self.note(Some(key), Note::Silent { after: limit, dies });
        self.dirty_volumes.insert(key.clone());
        if let Some(session) = session {
            self.retime_session(session, now);
        }
    }

    fn notice_expiry(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(installed) = self.volumes.get_mut(key).and_then(|volume| volume.installed.as_mut()) else {
            return;
        };
        let mut dead = Vec::new();
        for dependency in installed.dependencies.values_mut() {
            if !dependency.expiry_noted && dependency.dies().is_some_and(|ends| ends <= now) {
                dependency.expiry_noted = true;
                dead.push(dependency.request.path.to_string());
            }
        }
        for path in dead {
            self.note(Some(key), Note::Expired(path));
        }
    }

    fn due_dependencies(&self, key: &VolumeKey, now: BootTime) -> Vec<DependencyId> {
        let Some(installed) = self
            .volumes
            .get(key)
            .filter(|volume| kept_true(volume))
            .and_then(|volume| volume.installed.as_ref())
        else {
            return Vec::new();
        };
        installed
            .dependencies
            .iter()
            .filter(|(_, dependency)| {
                dependency.op.is_none() && dependency.decide().is_some_and(|decision| decision.at <= now)
            })
            .map(|(id, _)| *id)
            .collect()
    }

    fn dependency_due(&mut self, key: &VolumeKey, id: DependencyId, now: BootTime) {
        let Some(volume) = self.volumes.get(key) else { return };
        let Some(installed) = &volume.installed else { return };
        let Some(dependency) = installed.dependencies.get(&id) else { return };
        let Some(decision) = dependency.decide() else { return };
        let address = installed.spec.connection.address.clone();
        let session = installed.session;
        let working = volume.attempt.as_ref().is_some_and(|attempt| !attempt.is_parked());
        if !self.sessions.contains_key(&session) {
            // Policy had refused it and allows it again, and the attempt that followed came to nothing.
            self.delay_dependency(key, id, now + 6 * BUSY);
            self.hand_over_volume(key, "its session is gone", now);
            return;
        }
        let overdue = decision.step == Step::Renew
            && dependency.backoff.failures() > 0
            && self.servers.get(&address).is_none_or(|server| !server.is_out())
            && dependency
                .lease
                .as_ref()
                .is_some_and(|(_, term)| now >= replace_by(*term, dependency.overlap));
        match decision.step {
            // An attempt that fails for long, such as an edit that names nothing, must not let a lease die.
            Step::Renew if !overdue => self.renew_lease(key, id, session, &address, now),
            _ if working => self.delay_behind_work(key, id, &address, now),
            Step::Renew => self.replace(key, id, "renewing it kept failing", now),
            Step::Replace => self.replace(key, id, decision.why, now),
            Step::Check => self.check(key, id, Lane::Background, now),
        }
    }

    pub(super) fn renew_lease(
        &mut self,
        key: &VolumeKey,
        id: DependencyId,
        session: SessionId,
        address: &str,
        now: BootTime,
    ) {
        if !self.sessions.get(&session).is_some_and(|record| record.can_ask(now)) {
            self.delay_behind_work(key, id, address, now);
            return;
        }
        let Some(volume) = self.volumes.get(key) else { return };
        let serial = volume.serial;
        let lease = volume
            .installed
            .as_ref()
            .and_then(|installed| installed.dependencies.get(&id))
            .and_then(|dependency| dependency.lease.clone());
        let Some((lease, term)) = lease else { return };
        if let Err(until) = self.admit(address, Some(term.ends()), now) {
            self.delay_dependency(key, id, until);
            return;
        }
        let request = Request::RenewLease(session, lease.clone());
        let op = Op::RenewLease(key.clone(), serial, id, lease);
        let op = self.perform(op, Lane::Background, request, address, now);
        if let Some(dependency) = self.installed_dependency(key, id) {
            dependency.op = Some(op);
        }
    }

    pub(super) fn lease_renewed(
        &mut self,
        op: OpId,
        (key, serial): (VolumeKey, u64),
        id: DependencyId,
        lease: &str,
        result: Result<Renewed, BackendError>,
        now: BootTime,
    ) {
        let jitter = self.jitter.thousandths();
        let Some(volume) = self.volumes.get(&key).filter(|volume| volume.serial == serial) else { return };
        let Some(installed) = &volume.installed else { return };
        let address = installed.spec.connection.address.clone();
        let sent = result.as_ref().map(|renewed| Some(renewed.since));
        let session = self.sessions.get(&installed.session);
        let ended = session.and_then(Session::ends).is_some_and(|ends| ends <= now);
        self.observe_server(&address, op, sent, now);
        let mut jitter_source = self.jitter.clone();
        let Some(dependency) = self.installed_dependency(&key, id) else { return };
        if dependency.op != Some(op) || dependency.lease.as_ref().is_none_or(|(known, _)| known != lease) {
            return;
        }
        dependency.op = None;
        let what = format!("lease of {}", dependency.request.path);
        let note = match result {
            Ok(Renewed { ttl, renewable, since }) => {
                if let Some((_, term)) = &mut dependency.lease {
                    *term = term.renewed(since, ttl, renewable, jitter);
                }
                dependency.backoff.reset();
                dependency.wait_until = None;
                dependency.last_error = None;
                // It died with its session meanwhile, whatever was granted.
                dependency.expiry_noted &= ended;
                Note::Renewed { what, ttl }
            }
            Err(error) => {
                dependency.last_error = Some(error.message.clone());
                let wait = match error.class {
                    FailureClass::LeaseGone => {
                        dependency.lost = true;
                        dependency.wait_until = None;
                        Duration::ZERO
                    }
                    FailureClass::Denied | FailureClass::Invalid | FailureClass::NotFound => {
                        // It lives on to its end; the rule for leases that cannot be renewed replaces it.
                        if let Some((_, term)) = &mut dependency.lease {
                            term.renewable = false;
                        }
                        Duration::ZERO
                    }
                    FailureClass::Transient | FailureClass::Throttled | FailureClass::Sealed => {
                        let wait =
                            dependency.backoff.next(Pace::BACKGROUND, error.retry_after, &mut jitter_source);
                        dependency.wait_until = Some(now + wait);
                        wait
                    }
                };
                Note::Failing { what: format!("renew {what}"), error, wait }
            }
        };
        self.jitter = jitter_source;
        self.note(Some(&key), note);
        self.dirty_volumes.insert(key.clone());
        self.retime_volume(&key, now);
    }

    /// Mints anew in place of a credential that dies, if the budget allows.
    fn replace(&mut self, key: &VolumeKey, id: DependencyId, why: &str, now: BootTime) {
        let Some(volume) = self.volumes.get(key) else { return };
        let Some(installed) = &volume.installed else { return };
        let Some(dependency) = installed.dependencies.get(&id) else { return };
        let life = dependency.lease.as_ref().map_or(Duration::ZERO, |(_, term)| term.full);
        let allowed = dependency.budget.next(life);
        if allowed > now {
            self.delay_dependency(key, id, allowed);
            return;
        }
        let why = format!("{} ({why})", dependency.request.path);
        let address = installed.spec.connection.address.clone();
        let parked = self.parked_upkeep(key);
        let joins = parked.is_some();
        // The attempt may be about it.
        let waits = parked.is_some_and(|attempt| {
            !matches!(attempt.needs.get(&id), Some(Need::Reuse | Need::Carried) | None)
        });
        if waits || (!joins && !self.make_room(key, true, now)) {
            self.delay_behind_work(key, id, &address, now);
            return;
        }
        let Some(volume) = self.volumes.get(key) else { return };
        let Some(installed) = &volume.installed else { return };
        let Some(dependency) = installed.dependencies.get(&id) else { return };
        let left = dependency
            .lease
            .as_ref()
            .filter(|_| !dependency.lost)
            .map_or(Duration::ZERO, |(_, term)| now.until(term.ends()));
        let denied = self
            .sessions
            .get(&installed.session)
            .is_some_and(|record| self.facts.revoke_denied.contains(&record.identity));
        if denied && left > super::LEFTOVER_LIFE {
            self.delay_dependency(key, id, now + BUSY);
            self.hand_over_volume(key, &why, now);
            return;
        }
        if joins {
            self.add_need(key, id, Need::Wanted, now);
            return;
        }
        let aim = Aim::keep(Reason::Replace(why), installed, Some(id));
        self.start(key, aim, Vec::new(), now);
        self.advance(key, now);
    }

    /// After a suspend or a stall everything is overdue at once: it comes back spread, and a lease is
    /// renewed before it is believed dead.
    pub(super) fn time_jumped(&mut self, now: BootTime) {
        let keys: Vec<VolumeKey> = self.volumes.keys().cloned().collect();
        for key in keys {
            for id in self.due_dependencies(&key, now) {
                let until = now + self.jitter.between(Duration::ZERO, JUMP_SPREAD);
                self.delay_dependency(&key, id, until);
            }
            self.retime_volume(&key, now);
        }
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            let due = self.timers.get(&TimerKey::Session(id)).is_some_and(|at| *at <= now);
            let live = self.sessions.get(&id).is_some_and(|record| record.is_live());
            if due && live {
                let until = now + self.jitter.between(Duration::ZERO, JUMP_SPREAD);
                if let Some(record) = self.sessions.get_mut(&id) {
                    record.wait_until = Some(until);
                }
                self.retime_session(id, now);
            }
        }
    }

    pub(super) fn installed_dependency(
        &mut self,
        key: &VolumeKey,
        id: DependencyId,
    ) -> Option<&mut super::volume::Dependency> {
        self.volumes.get_mut(key)?.installed.as_mut()?.dependencies.get_mut(&id).map(|known| &mut **known)
    }

    pub(super) fn delay_dependency(&mut self, key: &VolumeKey, id: DependencyId, until: BootTime) {
        if let Some(dependency) = self.installed_dependency(key, id) {
            dependency.wait_until = Some(until);
        }
    }

    pub(super) fn retime_volume(&mut self, key: &VolumeKey, now: BootTime) {
        let at = self.volumes.get(key).and_then(|volume| next_of_volume(volume, now));
        self.set_timer(TimerKey::Volume(key.clone()), at);
    }

    pub(super) fn describe_next(&self, key: &VolumeKey) -> Option<(BootTime, String)> {
        let volume = self.volumes.get(key)?;
        if let Some(attempt) = &volume.attempt {
            let at = match attempt.phase {
                Phase::Waiting(Some(until)) => until,
                _ => BootTime::default(),
            };
            return Some((at, attempt.reason.text()));
        }
        let installed = volume.installed.as_ref().filter(|_| kept_true(volume))?;
        let dependencies = installed.dependencies.values().filter_map(|dependency| {
            let Decision { step, at, why } = dependency.decide()?;
            let verb = match step {
                Step::Renew => "renew the lease of",
                Step::Replace => "replace",
                Step::Check => "check",
            };
            Some((at, format!("{verb} {} ({why})", dependency.request.path)))
        });
        let session = self.timers.get(&TimerKey::Session(installed.session));
        let session = session.map(|at| (*at, "renew or hand over the session".to_owned()));
        dependencies.chain(session).min()
    }
}

/// Whether upkeep is due for a volume at all.
pub(super) const fn kept_true(volume: &Volume) -> bool {
    volume.installed.is_some() && volume.refused.is_none() && !volume.silent
}

fn silence_limit(volume: &Volume) -> Option<Duration> {
    let watched = volume.mode == Mode::DriverWritten && volume.is_live() && !volume.silent;
    watched.then(|| SILENCE.max(volume.mount_interval.saturating_mul(3)))
}

pub(super) fn next_of_volume(volume: &Volume, now: BootTime) -> Option<BootTime> {
    let mut next: Option<BootTime> = None;
    let mut consider = |at: BootTime| next = Some(next.map_or(at, |next: BootTime| next.min(at)));
    if let Some(attempt) = &volume.attempt {
        let waiting = matches!(attempt.phase, Phase::Waiting(_));
        if let Phase::Waiting(Some(until)) = attempt.phase {
            consider(until);
        }
        for call in &attempt.calls {
            consider(call.deadline);
            if waiting {
                consider(call.patience);
            }
        }
    }
    if !volume.is_live()
        && let Some(until) = volume.grace_until
    {
        consider(until);
    }
    if let Some(limit) = silence_limit(volume) {
        consider(volume.last_mount + limit);
    }
    let kept_true = kept_true(volume);
    let installed = volume.installed.as_ref();
    for dependency in installed.iter().flat_map(|installed| installed.dependencies.values()) {
        if kept_true
            && dependency.op.is_none()
            && let Some(decision) = dependency.decide()
        {
            consider(decision.at);
        }
        if !dependency.expiry_noted
            && let Some(ends) = dependency.dies()
        {
            consider(ends.max(now));
        }
    }
    next
}
