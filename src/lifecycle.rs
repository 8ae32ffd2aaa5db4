//! The core, sans-IO: what every volume, session and lease of a node needs next.
//!
//! A pure state machine. [`Lifecycle::handle`] takes an event and the time, [`Lifecycle::handle_timeout`] the
//! time alone; both leave actions for [`Lifecycle::poll_action`], and [`Lifecycle::poll_timeout`] says when to
//! come back. Spurious calls are safe. It reads no clock, makes no request and holds no secret byte, so that
//! one test runs a node's day in milliseconds.
//!
//! - `mounting`: Mount calls. `attempts`, `answers`, `installing`: from the first need to the swap.
//! - `upkeep`, `checks`: timers of what is installed: renew, replace; read again.
//! - `sessions`, `session_upkeep`, `revoking`: logins and their sharing; hand-over; what is given back.
//! - `restoring`: what a former process recorded.
//! - `renewal`, `backoff`, `budget`: the rules, each a small pure thing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use backoff::Jitter;
pub use message::{Action, Event};
use message::{Lane, Note, OpId, PlanId, Request};
use server::Server;
use session::{Identity, Session, SessionId};
use volume::Volume;

use crate::{
    backend::{BackendError, FailureClass},
    clock::BootTime,
    lifecycle::key::VolumeKey,
    spec::{DependencyId, SecretRequest, VolumeSpec},
};

mod answers;
mod attempts;
pub mod backoff;
pub mod budget;
mod carry;
mod checks;
pub mod failure;
mod installing;
pub mod key;
pub mod message;
mod mounting;
pub mod renewal;
mod restoring;
mod revoking;
mod server;
pub mod session;
mod session_upkeep;
mod sessions;
#[cfg(test)]
mod simulator;
#[cfg(test)]
mod tests;
mod upkeep;
pub mod volume;

/// A shared session is kept this long after its last mount went: a rolling update reuses it.
pub const SHARED_GRACE: Duration = Duration::from_secs(60);
/// A volume that never answered keeps its session and answers this long for the kubelet's retry, whose own
/// back-off reaches two minutes.
pub const RETRY_GRACE: Duration = Duration::from_secs(150);
/// A passing failure is retried this long within a first Mount; then the pod's events must say something.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// A volume that lost its `..data` is not written for this long, unless the mount table decides before.
pub const UNPUBLISH_HOLD: Duration = Duration::from_secs(60);
/// A driver-written volume without a Mount for this long, or three of its intervals, is taken for gone.
pub const SILENCE: Duration = Duration::from_secs(600);
/// A granted TTL beyond this is worth a warning: a reboot of the node orphans its leases for as long.
const LONG_TTL: Duration = Duration::from_secs(24 * 3600);
/// A replaced lease that cannot be revoked and lives longer than this is worth a session hand-over.
const LEFTOVER_LIFE: Duration = Duration::from_secs(600);
/// So many of them are, whatever they live.
const LEFTOVER_COUNT: usize = 3;
/// Facts about paths remembered; beyond, they are learnt again.
const FACTS: usize = 10_000;

/// What a request in flight is for.
#[derive(Clone, Debug)]
enum Op {
    Login(SessionId),
    /// For a plan.
    Need(PlanId, DependencyId, SessionId),
    Check(Check),
    RenewSession(SessionId),
    RenewLease(VolumeKey, u64, DependencyId, String),
    RevokeSession(SessionId),
    RevokeLease(SessionId, String, BootTime),
}

/// A value is read again: once for all mounts of the identity that hold it.
#[derive(Clone, Debug)]
struct Check {
    /// The volume it was due for, and its incarnation.
    asker: VolumeKey,
    serial: u64,
    id: DependencyId,
    /// Asked in this one: by the time it is answered the volume may live in another.
    session: SessionId,
    /// Whose values wait for the answer, the asker's among them.
    peers: Vec<VolumeKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TimerKey {
    Session(SessionId),
    Volume(VolumeKey),
}

/// What answers taught about requests, for choosing a session before asking.
#[derive(Debug, Default)]
struct Facts {
    /// (address, namespace, method and path) that answered without a lease.
    lease_free: BTreeSet<(String, String, String)>,
    /// The same of those that answered with one.
    leased: BTreeSet<(String, String, String)>,
    /// Identities whose logins serve one mount only.
    unshareable: BTreeSet<Identity>,
    /// (address, namespace, mount) that answered as KV v2.
    kv_mounts: BTreeSet<(String, String, String)>,
    /// Identities whose policy has no sys/leases/revoke.
    revoke_denied: BTreeSet<Identity>,
}

/// Every volume and session of a node.
#[derive(Debug)]
pub struct Lifecycle {
    jitter: Jitter,
    volumes: BTreeMap<VolumeKey, Volume>,
    sessions: BTreeMap<SessionId, Session>,
    shared: BTreeMap<Identity, SessionId>,
    servers: BTreeMap<String, Server>,
    facts: Facts,
    ops: BTreeMap<OpId, Op>,
    due: BTreeSet<(BootTime, TimerKey)>,
    timers: BTreeMap<TimerKey, BootTime>,
    actions: VecDeque<Action>,
    dirty_volumes: BTreeSet<VolumeKey>,
    dirty_sessions: BTreeSet<SessionId>,
    last_id: u64,
}

/// What changed since the last look and must be on record before any action is performed.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Volumes to record, or to erase when they are no more.
    pub volumes: BTreeSet<VolumeKey>,
    /// Sessions, the same.
    pub sessions: BTreeSet<SessionId>,
}

impl Lifecycle {
    /// An empty node. `seed` seeds the jitter.
    pub fn new(seed: u64) -> Self {
        Self {
            jitter: Jitter::new(seed),
            volumes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            shared: BTreeMap::new(),
            servers: BTreeMap::new(),
            facts: Facts::default(),
            ops: BTreeMap::new(),
            due: BTreeSet::new(),
            timers: BTreeMap::new(),
            actions: VecDeque::new(),
            dirty_volumes: BTreeSet::new(),
            dirty_sessions: BTreeSet::new(),
            last_id: 0,
        }
    }

    /// Takes an event. Actions and the next deadline may change.
    pub fn handle(&mut self, event: Event, now: BootTime) {
        match event {
            Event::Mount(mount) => self.mount(*mount, now),
            Event::LoggedIn(op, result) => self.logged_in(op, result, now),
            Event::Fetched(op, result) => match self.ops.remove(&op) {
                Some(Op::Need(plan, dependency, session)) => {
                    let sent = result.as_ref().map(|fetched| Some(fetched.since));
                    self.observe(session, op, sent, now);
                    self.answer_came(op, plan, dependency, session, result, now);
                }
                Some(Op::Check(check)) => self.check_answered(op, check, result, now),
                _ => {}
            },
            Event::Renewed(op, result) => match self.ops.remove(&op) {
                Some(Op::RenewSession(session)) => {
                    let sent = result.as_ref().map(|renewed| Some(renewed.since));
                    self.observe(session, op, sent, now);
                    self.session_renewed(session, result, now);
                }
                Some(Op::RenewLease(key, serial, dependency, lease)) => {
                    self.lease_renewed(op, (key, serial), dependency, &lease, result, now);
                }
                _ => {}
            },
            Event::Revoked(op, result) => match self.ops.remove(&op) {
                Some(Op::RevokeSession(session)) => {
                    self.observe(session, op, result.as_ref().map(|()| None), now);
                    self.session_revoked(session, result, now);
                }
                Some(Op::RevokeLease(session, lease, ends)) => {
                    self.observe(session, op, result.as_ref().map(|()| None), now);
                    self.lease_revoked(session, lease, ends, result, now);
                }
                _ => {}
            },
            Event::Rendered(plan, result) => self.rendered(&plan, result, now),
            Event::Swapped(plan, outcome) => self.swapped(&plan, outcome, now),
            Event::Answered(plan, delivered) => self.answered(&plan, delivered, now),
            Event::Unmounted(key) => self.unmounted(&key, now),
            Event::PodGone(key) => {
                if self.volumes.get(&key).is_some_and(|volume| !volume.mounted && !volume.is_live()) {
                    self.forget_volume(&key, now);
                }
            }
            Event::Refresh(key) => self.refresh(key.as_ref(), now),
            Event::TimeJumped => self.time_jumped(now),
        }
    }

    /// Does what is due. Safe to call at any time.
    pub fn handle_timeout(&mut self, now: BootTime) {
        // Each pass moves the deadline it serves to the future, or removes it.
        while let Some((at, timer)) = self.due.first().cloned()
            && at <= now
        {
            match timer {
                TimerKey::Volume(key) => self.volume_due(&key, now),
                TimerKey::Session(id) => self.session_due(id, now),
            }
        }
    }

    /// When [`Self::handle_timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The next action. [`Self::take_dirty`] must be on record before it is performed.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What must be recorded before the actions at hand are performed.
    pub fn take_dirty(&mut self) -> Dirty {
        Dirty {
            volumes: std::mem::take(&mut self.dirty_volumes),
            sessions: std::mem::take(&mut self.dirty_sessions),
        }
    }

    /// Every volume.
    pub const fn volumes(&self) -> &BTreeMap<VolumeKey, Volume> {
        &self.volumes
    }

    /// Every session.
    pub const fn sessions(&self) -> &BTreeMap<SessionId, Session> {
        &self.sessions
    }

    /// The volumes that a check of a value in a session is made for, in other sessions of the identity too;
    /// `None` where none is in flight.
    pub fn readers(&self, session: SessionId, id: DependencyId) -> Option<Vec<VolumeKey>> {
        self.checked_for(session, id)
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// When something is due for a volume, and what: for `ls`.
    pub fn next_action(&self, key: &VolumeKey) -> Option<(BootTime, String)> {
        self.describe_next(key)
    }

    /// Removes a volume whose handling panicked, and nothing else: its files stay, its session is given up.
    pub fn quarantine(&mut self, key: &VolumeKey, now: BootTime) {
        self.forget_volume(key, now);
    }

    /// Gives everything back at once: the process ends, and what it served with it. Done when no session is left.
    pub fn release(&mut self, now: BootTime) {
        let keys: Vec<_> = self.volumes.keys().cloned().collect();
        for key in keys {
            self.forget_volume(&key, now);
        }
        let ids: Vec<_> = self.sessions.keys().copied().collect();
        for id in ids {
            self.retire_session(id, now, None);
        }
    }

    /// The volume that an event is about, where it is about one.
    pub fn volume_of(&self, event: &Event) -> Option<VolumeKey> {
        let op = match event {
            Event::Mount(mount) => return Some(mount.key.clone()),
            Event::Rendered(plan, _) | Event::Swapped(plan, _) | Event::Answered(plan, _) => {
                return Some(plan.key.clone());
            }
            Event::Unmounted(key) | Event::PodGone(key) => return Some(key.clone()),
            Event::Refresh(key) => return key.clone(),
            Event::LoggedIn(op, _)
            | Event::Fetched(op, _)
            | Event::Renewed(op, _)
            | Event::Revoked(op, _) => op,
            Event::TimeJumped => return None,
        };
        match self.ops.get(op)? {
            Op::Need(plan, ..) => Some(plan.key.clone()),
            Op::Check(Check { asker: key, .. }) | Op::RenewLease(key, ..) => Some(key.clone()),
            Op::Login(session)
            | Op::RenewSession(session)
            | Op::RevokeSession(session)
            | Op::RevokeLease(session, ..) => self.sessions.get(session)?.users.first().cloned(),
        }
    }

    /// Brings back what a former process recorded in this boot. Volumes whose mount is gone are reported by
    /// [`Event::Unmounted`] afterwards. `on_disk`: the version folder that `..data` links to now.
    pub fn restore(
        &mut self,
        volumes: Vec<(VolumeKey, Volume, Option<String>)>,
        sessions: Vec<(SessionId, Session)>,
        now: BootTime,
    ) {
        self.restore_sessions(sessions);
        for (key, volume, on_disk) in volumes {
            self.restore_volume(key, volume, on_disk.as_deref(), now);
        }
        self.settle_sessions(now);
        let keys: Vec<_> = self.volumes.keys().cloned().collect();
        for key in keys {
            self.retime_volume(&key, now);
        }
        let ids: Vec<_> = self.sessions.keys().copied().collect();
        for id in ids {
            self.retime_session(id, now);
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// `address`: of the server that is asked.
    fn perform(&mut self, op: Op, lane: Lane, request: Request, address: &str, now: BootTime) -> OpId {
        let id = OpId(self.fresh_id());
        self.ops.insert(id, op);
        self.actions.push_back(Action::Perform(id, lane, request));
        if lane == Lane::Background {
            self.sent(address, id, now);
        }
        id
    }

    fn note(&mut self, key: Option<&VolumeKey>, note: Note) {
        self.actions.push_back(Action::Note(key.cloned(), note));
    }

    fn set_timer(&mut self, timer: TimerKey, at: Option<BootTime>) {
        if let Some(old) = self.timers.get(&timer).copied() {
            if Some(old) == at {
                return;
            }
            self.due.remove(&(old, timer.clone()));
        }
        match at {
            Some(at) => {
                self.due.insert((at, timer.clone()));
                self.timers.insert(timer, at);
            }
            None => {
                self.timers.remove(&timer);
            }
        }
    }

    /// Whether a request can be made in a shared session: the same was answered without a lease before, or
    /// it is shaped as a read of a KV v2 mount that answered as one.
    fn known_lease_free(&self, identity: &Identity, request: &SecretRequest) -> bool {
        let address = &identity.connection.address;
        let namespace = &identity.connection.namespace;
        let route = (address.clone(), namespace.clone(), route(request));
        if self.facts.lease_free.contains(&route) {
            return true;
        }
        kv_mount(request).is_some_and(|mount| {
            self.facts.kv_mounts.contains(&(address.clone(), namespace.clone(), mount.to_owned()))
        })
    }

    /// Whether the first mounts of an identity may share a login before anything was answered: all is shaped as
    /// KV. A lease that comes all the same moves the mount to a login of its own.
    fn presumed_lease_free(&self, identity: &Identity, spec: &VolumeSpec) -> bool {
        let address = &identity.connection.address;
        let namespace = &identity.connection.namespace;
        !self.facts.unshareable.contains(identity)
            && spec.requests().values().all(|request| {
                kv_mount(request).is_some()
                    && !self.facts.leased.contains(&(address.clone(), namespace.clone(), route(request)))
            })
    }

    fn learn(&mut self, session: SessionId, request: &SecretRequest, leased: bool, kv: bool) {
        let Some(session) = self.sessions.get(&session) else { return };
        let address = session.identity.connection.address.clone();
        let namespace = session.identity.connection.namespace.clone();
        if self.facts.lease_free.len() >= FACTS {
            self.facts.lease_free.clear();
        }
        if self.facts.leased.len() >= FACTS {
            self.facts.leased.clear();
        }
        if self.facts.kv_mounts.len() >= FACTS {
            self.facts.kv_mounts.clear();
        }
        let fact = (address.clone(), namespace.clone(), route(request));
        if leased {
            self.facts.lease_free.remove(&fact);
            self.facts.leased.insert(fact);
        } else {
            self.facts.leased.remove(&fact);
            self.facts.lease_free.insert(fact);
        }
        if kv && let Some(mount) = kv_mount(request) {
            self.facts.kv_mounts.insert((address, namespace, mount.to_owned()));
        }
    }
}

fn route(request: &SecretRequest) -> String {
    format!("{} {}", request.method.as_str(), request.path)
}

/// The mount of a request shaped as a KV v2 read.
fn kv_mount(request: &SecretRequest) -> Option<&str> {
    if request.is_write() {
        return None;
    }
    request.path.as_str().split_once("/data/").map(|(mount, _)| mount)
}

/// Whether trying the same again soon may help.
fn passes(error: &BackendError) -> bool {
    error.worth_retrying
        || matches!(error.class, FailureClass::Transient | FailureClass::Throttled | FailureClass::Sealed)
}

fn on_behalf_of(namespace: &str, name: &str) -> Arc<str> {
    format!("{namespace}/{name}").into()
}
