//! Values read again, once for all mounts of an identity.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Check, Lifecycle, Op,
    attempts::Aim,
    backoff::Pace,
    key::VolumeKey,
    message::{Action, Fetched, Lane, Note, OpId, PlanId, Request},
    session::{Session, SessionId},
    upkeep::{BUSY, kept_true},
    volume::{Dependency, Installed, Need, Reason},
};
use crate::{
    backend::{BackendError, FailureClass},
    clock::BootTime,
    spec::DependencyId,
};

/// What was not confirmed for so long is read again after a restart.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);

/// A session older than this that is refused a read may miss a policy that its role has got since.
const OLD_SESSION: Duration = Duration::from_secs(600);

impl Lifecycle {
    /// Reads a value again, once for all mounts of the identity that hold it.
    pub(super) fn check(&mut self, key: &VolumeKey, id: DependencyId, lane: Lane, now: BootTime) {
        let Some(volume) = self.volumes.get(key) else { return };
        let Some(installed) = &volume.installed else { return };
        let serial = volume.serial;
        let session = installed.session;
        let Some(dependency) = installed.dependencies.get(&id) else { return };
        let request = dependency.request.clone();
        let Some(record) = self.sessions.get(&session) else { return };
        let address = record.identity.connection.address.clone();
        let limited = record.terms.is_some_and(|terms| terms.num_uses > 0);
        if limited {
            // Each request uses the token up; it is read again when the session is handed over.
            self.delay_dependency(key, id, now + Duration::from_secs(3600));
            return;
        }
        if !record.can_ask(now) {
            self.delay_behind_work(key, id, &address, now);
            return;
        }
        if lane == Lane::Background
            && let Err(until) = self.admit(&address, None, now)
        {
            self.delay_dependency(key, id, until);
            return;
        }
        let peers = self.peers(key, id);
        let check = Check { asker: key.clone(), serial, id, session, peers: peers.clone() };
        let op = self.perform(Op::Check(check), lane, Request::Fetch { session, request }, &address, now);
        for peer in &peers {
            if let Some(known) = self.installed_dependency(peer, id) {
                known.op = Some(op);
            }
        }
    }

    /// Live volumes, `key` among them, whose value for `id` the same identity may read, in whichever session, and
    /// does not read now: one answer is everybody's, where the auth method vouches for the ServiceAccount.
    fn peers(&self, key: &VolumeKey, id: DependencyId) -> Vec<VolumeKey> {
        let record = self
            .volumes
            .get(key)
            .and_then(|volume| volume.installed.as_ref())
            .and_then(|installed| self.sessions.get(&installed.session));
        let shareable = |record: &Session| record.terms.is_some_and(|terms| terms.shareable);
        let Some(record) = record.filter(|record| shareable(record)) else { return vec![key.clone()] };
        self.sessions
            .values()
            .filter(|other| shareable(other) && other.identity == record.identity)
            .flat_map(|other| &other.users)
            .filter(|peer| {
                self.volumes.get(*peer).is_some_and(|volume| {
                    let installed = volume.installed.as_ref().filter(|_| kept_true(volume));
                    let known = installed.and_then(|installed| installed.dependencies.get(&id));
                    let free = |known: &Dependency| known.op.is_none() && !known.has_side_effect();
                    known.is_some_and(|known| *peer == key || free(known))
                })
            })
            .cloned()
            .collect::<BTreeSet<VolumeKey>>()
            .into_iter()
            .collect()
    }

    /// Whose value a check in flight is read for.
    pub(super) fn checked_for(&self, session: SessionId, id: DependencyId) -> Option<Vec<VolumeKey>> {
        self.ops.values().find_map(|op| match op {
            Op::Check(check) if check.id == id && check.session == session => Some(check.peers.clone()),
            _ => None,
        })
    }

    pub(super) fn check_answered(
        &mut self,
        op: OpId,
        check: Check,
        result: Result<Fetched, BackendError>,
        now: BootTime,
    ) {
        let Check { asker, serial, id, session, mut peers } = check;
        let sent = result.as_ref().map(|fetched| Some(fetched.since));
        self.observe(session, op, sent, now);
        // Who unmounted, or replaced the value meanwhile, does not wait for it any more.
        peers.retain(|peer| {
            let Some(volume) = self.volumes.get_mut(peer) else { return false };
            let kept = kept_true(volume);
            let known = volume.installed.as_mut().and_then(|installed| installed.dependencies.get_mut(&id));
            let known = known.filter(|known| known.op == Some(op));
            known.map(|known| known.op = None).is_some() && kept
        });
        match result {
            Ok(fetched) => {
                if let Some(lease) = &fetched.lease {
                    // It never had one: what it answers now is minted, and read again in an own session.
                    self.owe_lease(session, lease.id.clone(), fetched.since + lease.ttl, now, now);
                }
                let mut confirmed = BTreeSet::new();
                for peer in &peers {
                    confirmed.extend(self.compare(op, peer, id, &fetched, *peer == asker, now));
                    self.retime_volume(peer, now);
                }
                for session in confirmed {
                    self.confirm(session, id, &fetched, now);
                }
            }
            Err(error) => {
                let waits = peers.contains(&asker);
                if waits && error.class == FailureClass::LeaseGone {
                    self.session_lost(session, now);
                } else if waits && error.class == FailureClass::Denied {
                    self.refused_read(session, now);
                }
                let successor = self.volumes.get(&asker).is_some_and(|volume| volume.serial == serial);
                if !waits && successor {
                    // That the server failed is news for what replaced the value too.
                    self.check_failed(&asker, id, &error, false, now);
                    self.retime_volume(&asker, now);
                }
                // What the session did wrong another one of the identity may not.
                let users =
                    self.sessions.get(&session).map(|record| record.users.clone()).unwrap_or_default();
                for peer in &peers {
                    if *peer == asker || users.contains(peer) {
                        self.check_failed(peer, id, &error, *peer == asker, now);
                    }
                    self.retime_volume(peer, now);
                }
            }
        }
    }

    /// A value was found unchanged. That is on the session's record, once, rather than on the record of every
    /// volume that shows it.
    fn confirm(&mut self, session: SessionId, id: DependencyId, fetched: &Fetched, now: BootTime) {
        let Some(record) = self.sessions.get_mut(&session) else { return };
        record.confirmed.retain(|_, (since, _)| now.since(*since) < FORGOTTEN);
        record.confirmed.insert(id, (fetched.since, fetched.digest));
        self.dirty_sessions.insert(session);
    }

    /// Takes the answer of a check for one of the volumes it was made for. The session to note it with, where it
    /// changes nothing.
    fn compare(
        &mut self,
        op: OpId,
        key: &VolumeKey,
        id: DependencyId,
        fetched: &Fetched,
        asker: bool,
        now: BootTime,
    ) -> Option<SessionId> {
        if self.regressed(key, id, fetched.kv_version) {
            self.delay_dependency(key, id, now + BUSY);
            return None;
        }
        let jitter = if asker { self.jitter.thousandths() } else { 0 };
        let installed = self.volumes.get_mut(key)?.installed.as_mut()?;
        let session = installed.session;
        let dependency = installed.dependencies.get_mut(&id)?;
        dependency.backoff.reset();
        dependency.last_error = None;
        dependency.wait_until = None;
        if dependency.digest == fetched.digest && fetched.lease.is_none() && !dependency.stale {
            dependency.since = fetched.since;
            let lifetimes = (dependency.lifetime, fetched.lifetime);
            if lifetimes == (None, None) && dependency.kv_version == fetched.kv_version {
                // Who asked asks first the next time: with one of each volume the earliest would always win.
                dependency.jitter = jitter;
                return Some(session);
            }
            dependency.lifetime = fetched.lifetime;
            dependency.kv_version = fetched.kv_version;
            self.dirty_volumes.insert(key.clone());
            return None;
        }
        let request = dependency.request.clone();
        self.dirty_volumes.insert(key.clone());
        let joins = self.parked_upkeep(key).is_some();
        // Until the attempt in work has come to its end.
        self.delay_dependency(key, id, now + BUSY);
        if !joins && !self.make_room(key, false, now) {
            return None;
        }
        let installed = self.volumes.get(key)?.installed.as_ref()?;
        if !joins {
            let aim = Aim::keep(Reason::Changed, installed, Some(id));
            self.start(key, aim, Vec::new(), now);
        }
        let plan = self.volumes.get(key).and_then(|volume| {
            volume.attempt.as_ref().map(|attempt| PlanId {
                key: key.clone(),
                serial: volume.serial,
                plan: attempt.plan,
            })
        });
        let mut need = Need::Wanted;
        if let Some(plan) = plan.filter(|_| fetched.lease.is_none()) {
            need = Need::Got(Box::new(self.dependency(key, id, request, fetched.clone(), now)));
            self.actions.push_back(Action::Supply(op, plan, id));
        }
        self.add_need(key, id, need, now);
        self.advance(key, now);
        None
    }

    pub(super) fn check_failed(
        &mut self,
        key: &VolumeKey,
        id: DependencyId,
        error: &BackendError,
        asker: bool,
        now: BootTime,
    ) {
        let mut jitter = self.jitter.clone();
        let Some(dependency) = self.installed_dependency(key, id) else { return };
        let pace = if super::passes(error) { Pace::BACKGROUND } else { Pace::REFUSED };
        let first = dependency.backoff.failures() == 0;
        let wait = dependency.backoff.next(pace, error.retry_after, &mut jitter);
        dependency.wait_until = Some(now + wait);
        dependency.last_error = Some(error.message.clone());
        let what = format!("check {}", dependency.request.path);
        self.jitter = jitter;
        if first && asker {
            self.note(Some(key), Note::Failing { what, error: error.clone(), wait });
        }
    }

    /// A read is refused that was allowed: a role's policies are fixed at login, so an old lease-free session
    /// is replaced once.
    fn refused_read(&mut self, session: SessionId, now: BootTime) {
        let Some(record) = self.sessions.get(&session) else { return };
        let old = record.term.is_some_and(|term| term.since + OLD_SESSION < now);
        let waits = record.wait_until.is_some_and(|until| now < until);
        let leased = record.users.iter().any(|key| {
            self.volumes
                .get(key)
                .and_then(|volume| volume.installed.as_ref())
                .is_some_and(Installed::has_lease)
        });
        if old && !waits && !leased && record.is_live() && !record.lost {
            self.hand_over(session, "a read was refused", now);
        }
    }

    pub(super) fn refresh(&mut self, key: Option<&VolumeKey>, now: BootTime) {
        let keys: Vec<VolumeKey> = match key {
            Some(key) => vec![key.clone()],
            None => self.volumes.keys().cloned().collect(),
        };
        for key in keys {
            let Some(volume) = self.volumes.get(&key).filter(|volume| kept_true(volume)) else { continue };
            let Some(installed) = &volume.installed else { continue };
            let ids: Vec<DependencyId> = installed
                .dependencies
                .iter()
                .filter(|(_, dependency)| !dependency.has_side_effect() && dependency.op.is_none())
                .map(|(id, _)| *id)
                .collect();
            for id in ids {
                self.check(&key, id, Lane::Foreground, now);
            }
            self.retime_volume(&key, now);
        }
    }
}
