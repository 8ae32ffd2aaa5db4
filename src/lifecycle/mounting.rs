//! Mount calls, and attempts from the first need to what is installed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Lifecycle, Op, PATIENCE, RETRY_GRACE, UNPUBLISH_HOLD,
    backoff::{Backoff, Pace},
    budget::MintBudget,
    carry, kv_mount,
    message::{Action, CallId, Fetched, Lane, Mount, Note, OpId, PlanId, Request, SwapOutcome},
    on_behalf_of, passes,
    renewal::Term,
    session::{Identity, Session, SessionId, SessionState},
    volume::{Attempt, Call, Dependency, Installed, Mode, Need, Phase, Reason, Retired, Volume},
};
use crate::{
    backend::{BackendError, FailureClass},
    clock::BootTime,
    spec::{DependencyId, VolumeSpec},
    volume::{FailureKind, MountFailure, VolumeKey},
};

#[cfg(test)]
mod tests;

/// A lower KV version seen this often in a row is a restore from a snapshot, not a standby that lags: the
/// longest lag measured was 2.2 s.
pub(super) const REGRESSIONS_BELIEVED: u32 = 4;

/// An absent path is asked for this often before the pod's author is told: a standby lags by 76 ms mostly,
/// and by 2.2 s at most as measured.
const ABSENT_TRIES: u32 = 4;

/// What a process had in flight when it was killed may still be at work in the server: a lease made after the
/// session was revoked would outlive it. The slowest measured, a database user, takes half a second.
const LATE_ANSWER: Duration = Duration::from_secs(10);

/// A credential with less life than this left is not worth writing.
const BRIEF: Duration = Duration::from_secs(5);

/// What an attempt is to bring about.
#[derive(Debug)]
pub(super) struct Aim {
    reason: Reason,
    spec: Arc<VolumeSpec>,
    digest: [u8; 32],
    /// What upkeep asks for anew.
    anew: Option<DependencyId>,
}

impl Aim {
    const fn new(reason: Reason, spec: Arc<VolumeSpec>, digest: [u8; 32]) -> Self {
        Self { reason, spec, digest, anew: None }
    }

    /// The same plan as the installed one, `anew` asked for again.
    pub(super) fn keep(reason: Reason, installed: &Installed, anew: Option<DependencyId>) -> Self {
        Self { anew, ..Self::new(reason, Arc::clone(&installed.spec), installed.digest) }
    }

    /// What must be asked for, in the installed session or in another one.
    fn wanted(&self, volume: &Volume, same_session: bool, now: BootTime) -> BTreeSet<DependencyId> {
        let requests = || self.spec.requests().into_keys();
        let Some(installed) = &volume.installed else { return requests().collect() };
        // A lease dies with the session that made it; a value without one is as good in any.
        let is_held = |id: &DependencyId| {
            let known = installed.dependencies.get(id);
            known.is_some_and(|known| known.held && (same_session || known.lease.is_none()))
        };
        let keeps_plan = matches!(self.reason, Reason::Changed | Reason::Replace(_) | Reason::HandOver(_));
        let mut anew: BTreeSet<DependencyId> = self.anew.into_iter().collect();
        if !(keeps_plan && volume.mode == Mode::ProviderWritten) {
            // Files that are made for the first time never show what is dead already.
            let is_dead =
                |id: &DependencyId| installed.dependencies.get(id).is_some_and(|known| dead(known, now));
            anew.extend(requests().filter(|id| !is_held(id) || is_dead(id)));
            return anew;
        }
        if !same_session {
            let leased = installed.dependencies.iter().filter(|(_, known)| known.lease.is_some());
            anew.extend(leased.map(|(id, _)| *id));
        }
        carry::needed(&self.spec, anew, is_held)
    }
}

impl Lifecycle {
    pub(super) fn mount(&mut self, mount: Mount, now: BootTime) {
        let key = mount.key.clone();
        if !self.volumes.contains_key(&key) {
            let refusal = mount.plan.as_ref().err().or(mount.token.as_ref().err());
            if let Some(failure) = refusal {
                self.answer(vec![mount.call], Err(failure.clone()), None, None, None);
                return;
            }
            let serial = self.fresh_id();
            let volume = Volume {
                serial,
                pod: mount.pod.clone(),
                provider: mount.provider,
                class: mount.class.clone(),
                mode: mount.mode,
                mounted: true,
                installed: None,
                attempt: None,
                token: None,
                service_account_uid: String::new(),
                retired: Vec::new(),
                rejected: None,
                refused: None,
                grace_until: None,
                hold_until: None,
                last_mount: now,
                mount_interval: Duration::ZERO,
                silent: false,
                handed_over_with: None,
                plans: 0,
            };
            self.volumes.insert(key.clone(), volume);
        }
        let volume = self.volumes.get_mut(&key).expect("inserted above when absent");
        volume.mounted = true;
        volume.grace_until = None;
        volume.hold_until = None;
        let mut fresh = false;
        if let Ok((times, uid)) = &mount.token {
            // The kubelet repeats a token until it is due for a new one; an older one never replaces a newer.
            fresh = volume.token.is_none_or(|held| times.issued > held.issued);
            if fresh || volume.token.is_some_and(|held| times.issued == held.issued) {
                volume.token = Some(*times);
            }
            volume.service_account_uid.clone_from(uid);
        }
        let was_silent = std::mem::take(&mut volume.silent);
        if volume.is_live() {
            volume.mount_interval = volume.mount_interval.max(now.since(volume.last_mount));
        }
        volume.last_mount = now;
        self.dirty_volumes.insert(key.clone());
        if fresh || was_silent {
            self.token_came(&key, fresh, now);
        }
        self.give_back_at_mount(&key, now);
        if self.volumes.get(&key).is_some_and(Volume::is_live) {
            self.mount_live(&key, mount, was_silent, now);
        } else {
            self.mount_new(&key, mount, now);
        }
        self.retime_volume(&key, now);
    }

    /// In driver-written mode a replaced credential is given up at the Mount after the one that delivered
    /// its successor: only then is it sure that the driver wrote it.
    fn give_back_at_mount(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        for retired in std::mem::take(&mut volume.retired) {
            match retired {
                Retired::Session(id) => self.retire_session(id, now, None),
                Retired::Lease(id, lease, ends) => self.owe_lease(id, lease, ends, now, now),
            }
        }
    }

    fn mount_live(&mut self, key: &VolumeKey, mount: Mount, was_silent: bool, now: BootTime) {
        let call = call_of(&mount, now);
        let volume = &self.volumes[key];
        let installed = volume.installed.as_ref().expect("the caller checked that the volume is live");
        let installed_digest = installed.digest;
        let same = installed_digest == mount.digest;
        let spec = match mount.plan {
            // What runs was agreed to. Only policy takes it back: an API server that is down does not, nor does
            // a successor of ours that reads the class more strictly.
            Err(failure) => {
                if same && failure.kind == FailureKind::PermissionDenied {
                    self.refuse(key, failure.message, now);
                } else if !same {
                    self.reject_edit(key, failure.message);
                }
                // A replacement of what runs has no other way to the driver than this Mount.
                let volume = &self.volumes[key];
                let keeps = |attempt: &Attempt| attempt.digest == installed_digest;
                if volume.mode == Mode::DriverWritten
                    && volume.refused.is_none()
                    && volume.attempt.as_ref().is_none_or(keeps)
                {
                    self.mount_driver_written(key, call, was_silent, now);
                } else {
                    self.answer_installed(key, vec![call.id], now);
                }
                return;
            }
            Ok(spec) => spec,
        };
        if !same {
            let joins = volume.attempt.as_ref().is_some_and(|attempt| attempt.digest == mount.digest);
            if joins {
                self.join(key, call, now);
            } else if let Err(failure) = mount.token {
                self.reject_edit(key, failure.message);
                self.answer_installed(key, vec![call.id], now);
            } else {
                self.abandon(key, "the SecretProviderClass changed again", now);
                self.start(key, Aim::new(Reason::Edit, spec, mount.digest), vec![call], now);
            }
            return;
        }
        let edit_in_work = volume.attempt.as_ref().is_some_and(|attempt| attempt.digest != mount.digest);
        if edit_in_work {
            self.abandon(key, "the edit was taken back", now);
        }
        let volume = self.volumes.get_mut(key).expect("looked up above");
        volume.rejected = None;
        if volume.refused.take().is_some() {
            self.abandon(key, "policy allows it again", now);
            self.start(key, Aim::new(Reason::Edit, spec, mount.digest), vec![call], now);
        } else if volume.mode == Mode::DriverWritten {
            self.mount_driver_written(key, call, was_silent, now);
        } else if !mount.intact {
            self.abandon(key, "the files are gone", now);
            self.start(key, Aim::new(Reason::Repair, spec, mount.digest), vec![call], now);
        } else {
            self.answer_installed(key, vec![call.id], now);
        }
    }

    fn mount_driver_written(&mut self, key: &VolumeKey, call: Call, was_silent: bool, now: BootTime) {
        let volume = self.volumes.get_mut(key).expect("the caller looked it up");
        let sessions = &self.sessions;
        let died = |attempt: &Attempt| {
            let session = sessions.get(&attempt.session);
            let ends = |need: &Need| match need {
                Need::Got(dependency) => ends_in(dependency, session),
                Need::Wanted | Need::InFlight(_) | Need::Reuse | Need::Carried => None,
            };
            attempt.needs.values().filter_map(ends).any(|ends| ends <= now)
        };
        if let Some(attempt) = volume.attempt.as_ref()
            && attempt.phase == Phase::Ready
            && died(attempt)
        {
            let (spec, digest) = (Arc::clone(&attempt.spec), attempt.digest);
            self.abandon(key, "the replacement died before a Mount came for it", now);
            let reason = Reason::HandOver("the replacement died before a Mount came for it".into());
            self.start(key, Aim::new(reason, spec, digest), vec![call], now);
        } else if let Some(attempt) = &mut volume.attempt
            && attempt.phase == Phase::Ready
        {
            attempt.calls.push(call);
            self.deliver(key);
        } else if was_silent
            && volume.attempt.is_none()
            && let Some(installed) = &volume.installed
        {
            let (spec, digest) = (Arc::clone(&installed.spec), installed.digest);
            let reason = Reason::HandOver("Mounts had stopped, and came back".into());
            self.start(key, Aim::new(reason, spec, digest), vec![call], now);
        } else {
            self.answer_installed(key, vec![call.id], now);
        }
    }

    fn mount_new(&mut self, key: &VolumeKey, mount: Mount, now: BootTime) {
        let call = call_of(&mount, now);
        let volume = &self.volumes[key];
        let spec = match (mount.plan, mount.token) {
            (Ok(spec), Ok(_)) => spec,
            (Err(failure), _) | (_, Err(failure)) => {
                self.answer(vec![call.id], Err(failure), None, None, None);
                if volume_is_idle(&self.volumes[key]) {
                    self.forget_volume(key, now);
                } else {
                    self.grace(key, now);
                }
                return;
            }
        };
        if volume.attempt.as_ref().is_some_and(|attempt| attempt.digest == mount.digest) {
            self.join(key, call, now);
        } else {
            self.abandon(key, "another Mount of the volume asks for something else", now);
            let volume = self.volumes.get_mut(key).expect("looked up above");
            volume.mode = mount.mode;
            volume.class = mount.class;
            self.start(key, Aim::new(Reason::Mount, spec, mount.digest), vec![call], now);
        }
    }

    /// A second Mount that asks for the same joins the work in flight, or takes it up where it stopped.
    fn join(&mut self, key: &VolumeKey, call: Call, now: BootTime) {
        let Some(attempt) = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut()) else {
            return;
        };
        attempt.calls.push(call);
        match attempt.phase {
            Phase::Waiting(_) | Phase::Unanswered | Phase::Ready => self.resume(key, now),
            Phase::Gathering | Phase::Rendering | Phase::Swapping => {}
        }
    }

    /// Takes up an attempt that stopped: what was minted is used, what can be read again is.
    pub(super) fn resume(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let installed = volume.installed.as_ref();
        let Some(attempt) = &mut volume.attempt else { return };
        let content_failed =
            attempt.failure.as_ref().is_some_and(|failure| failure.class == FailureClass::Invalid);
        if content_failed {
            for (id, need) in &mut attempt.needs {
                let again = match need {
                    Need::Got(dependency) => !dependency.has_side_effect(),
                    // A file that cannot be carried over is made anew.
                    Need::Carried => installed
                        .and_then(|installed| installed.dependencies.get(id))
                        .is_none_or(|known| known.lease.is_none()),
                    Need::Wanted | Need::InFlight(_) | Need::Reuse => false,
                };
                if again {
                    *need = Need::Wanted;
                }
            }
        }
        // What was minted and then had to wait, for space or for a Mount, may have died meanwhile.
        let session = self.sessions.get(&attempt.session);
        let other_files = matches!(attempt.reason, Reason::Edit | Reason::Repair);
        let mut owed = Vec::new();
        for (id, need) in &mut attempt.needs {
            let died = match need {
                Need::Got(dependency) => ends_in(dependency, session).is_some_and(|ends| ends <= now + BRIEF),
                Need::Reuse if other_files => installed
                    .and_then(|installed| installed.dependencies.get(id))
                    .is_some_and(|known| dead(known, now)),
                Need::Reuse | Need::Wanted | Need::InFlight(_) | Need::Carried => false,
            };
            if died {
                // A session that is renewed in its last seconds keeps what was made in it alive.
                if let Need::Got(dependency) = std::mem::replace(need, Need::Wanted) {
                    owed.extend(dependency.lease.map(|(lease, term)| (lease, term.ends())));
                }
            }
        }
        attempt.phase = Phase::Gathering;
        let session = attempt.session;
        for (lease, ends) in owed {
            self.owe_lease(session, lease, ends, now, now);
        }
        self.advance(key, now);
    }

    /// Whether upkeep of what is installed may go ahead of the attempt in work, which then makes room: it only
    /// waits for another try. An edit comes back with the next Mount. `dies`: whether what is due would die
    /// waiting; otherwise nothing is given up that would have to be minted again.
    pub(super) fn make_room(&mut self, key: &VolumeKey, dies: bool, now: BootTime) -> bool {
        let Some(attempt) = self.volumes.get(key).and_then(|volume| volume.attempt.as_ref()) else {
            return true;
        };
        let yields = attempt.is_parked() && attempt.reason == Reason::Edit && (!attempt.has_minted() || dies);
        if !yields {
            return false;
        }
        self.abandon(key, "what is installed comes first", now);
        true
    }

    /// The attempt in work, if it is upkeep that waits for another try: what else is due joins it.
    pub(super) fn parked_upkeep(&self, key: &VolumeKey) -> Option<&Attempt> {
        let attempt = self.volumes.get(key).and_then(|volume| volume.attempt.as_ref());
        attempt.filter(|attempt| attempt.is_parked() && attempt.is_upkeep())
    }

    fn reject_edit(&mut self, key: &VolumeKey, why: String) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        if volume.rejected.as_ref() != Some(&why) {
            volume.rejected = Some(why.clone());
            self.note(Some(key), Note::EditRejected(why));
        }
    }

    /// Policy refuses the plan that runs: nothing more is asked of Vault for it, its session goes after the
    /// overlap, the files stay.
    fn refuse(&mut self, key: &VolumeKey, why: String, now: BootTime) {
        self.abandon(key, "policy refuses the volume", now);
        let Some(volume) = self.volumes.get_mut(key) else { return };
        if volume.refused.is_some() {
            return;
        }
        volume.refused = Some(why.clone());
        let session = volume.installed.as_ref().map(|installed| installed.session);
        if let Some(session) = session {
            self.end_with_session(key, session);
            let overlap = self.overlap(key);
            self.leave_session(session, key, now + overlap, now);
        }
        self.note(Some(key), Note::Refused(why));
    }

    /// The session is kept up no more, and may not be there any more to tell of its end: its leases die by then.
    fn end_with_session(&mut self, key: &VolumeKey, session: SessionId) {
        let Some(ends) = self.sessions.get(&session).and_then(Session::ends) else { return };
        let installed = self.volumes.get_mut(key).and_then(|volume| volume.installed.as_mut());
        let dependencies = installed.into_iter().flat_map(|installed| installed.dependencies.values_mut());
        for (_, term) in dependencies.filter_map(|known| known.lease.as_mut()) {
            if term.ttl.is_zero() || term.ends() > ends {
                // Zero would be for ever.
                term.ttl = ends.since(term.since).max(Duration::from_millis(1));
            }
        }
    }

    /// The longest overlap of a volume's credentials.
    pub(super) fn overlap(&self, key: &VolumeKey) -> Duration {
        let installed = self.volumes.get(key).and_then(|volume| volume.installed.as_ref());
        installed.map_or(Duration::ZERO, |installed| {
            installed.dependencies.values().map(|dependency| dependency.overlap).max().unwrap_or_default()
        })
    }

    /// Starts work on what is to be installed next. What keeps the installed plan true does not advance yet:
    /// the caller may have an answer for it already.
    pub(super) fn start(&mut self, key: &VolumeKey, aim: Aim, calls: Vec<Call>, now: BootTime) {
        let wanted = aim.wanted(&self.volumes[key], true, now);
        let session = self.choose_session(key, &aim, &wanted);
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let installed = volume.installed.as_ref();
        let same_session = installed.is_some_and(|installed| installed.session == session);
        let wanted = if same_session { wanted } else { aim.wanted(volume, false, now) };
        let need = |id: DependencyId| {
            let known = installed.and_then(|installed| installed.dependencies.get(&id));
            let need = match known {
                _ if wanted.contains(&id) => Need::Wanted,
                Some(known) if known.held => Need::Reuse,
                _ => Need::Carried,
            };
            (id, need)
        };
        let needs = aim.spec.requests().into_keys().map(need).collect();
        // A replacement that failed and was left out goes on at its pace.
        let failed = aim.anew.filter(|_| matches!(aim.reason, Reason::Replace(_)));
        let failed = failed.and_then(|id| installed?.dependencies.get(&id)).map(|known| known.backoff);
        let Aim { reason, spec, digest, .. } = aim;
        volume.plans += 1;
        volume.attempt = Some(Attempt {
            plan: volume.plans,
            reason,
            spec,
            digest,
            session,
            needs,
            phase: Phase::Gathering,
            calls,
            backoff: failed.unwrap_or_default(),
            failure: None,
            relogged: false,
            versions: Vec::new(),
            version_dir: None,
        });
        if let Some(session_record) = self.sessions.get_mut(&session) {
            session_record.users.insert(key.clone());
            session_record.idle_since = None;
        }
        self.retime_session(session, now);
        self.dirty_volumes.insert(key.clone());
        self.dirty_sessions.insert(session);
        if !self.volumes[key].attempt.as_ref().is_some_and(Attempt::is_upkeep) {
            self.advance(key, now);
        }
    }

    /// `wanted`: what would be asked for in the installed session.
    fn choose_session(&mut self, key: &VolumeKey, aim: &Aim, wanted: &BTreeSet<DependencyId>) -> SessionId {
        let Aim { reason, spec, anew, .. } = aim;
        let volume = &self.volumes[key];
        let identity = identity_of(volume, spec);
        if let Some(installed) = &volume.installed
            && let Some(session) = self.sessions.get(&installed.session)
            && session.is_live()
            && session.identity == identity
        {
            let requests = spec.requests();
            // What is made again goes with its session: whether a lease can be revoked alone is up to policy.
            let held = !wanted.iter().any(|id| {
                Some(*id) != *anew
                    && installed.dependencies.get(id).is_some_and(|known| known.lease.is_some())
            });
            let serves = match reason {
                Reason::Replace(_) => true,
                Reason::Changed | Reason::Repair => held,
                Reason::Mount | Reason::HandOver(_) => false,
                // A lease that the edit drops and that cannot be revoked alone goes with its session.
                Reason::Edit => {
                    let drops = installed
                        .dependencies
                        .iter()
                        .any(|(id, known)| known.lease.is_some() && !requests.contains_key(id));
                    held && !(drops && self.facts.revoke_denied.contains(&identity))
                }
            };
            let fits =
                !session.shared || requests.values().all(|request| self.known_lease_free(&identity, request));
            if serves && fits {
                return installed.session;
            }
        }
        let lease_free = spec.requests().values().all(|request| self.known_lease_free(&identity, request));
        // Whether the method vouches for the ServiceAccount is learnt from a login's answer: the first mount's
        // own session becomes the shared one. A burst of first mounts waits for one login.
        let presumed = *reason == Reason::Mount && self.presumed_lease_free(&identity, spec);
        if (lease_free || presumed)
            && !matches!(reason, Reason::HandOver(_))
            && let Some(shared) = self.shared.get(&identity)
        {
            return *shared;
        }
        let id = self.new_session(key, identity.clone(), presumed);
        if presumed {
            self.shared.insert(identity, id);
        }
        id
    }

    pub(super) fn new_session(&mut self, key: &VolumeKey, identity: Identity, shared: bool) -> SessionId {
        let volume = &self.volumes[key];
        let pod = &volume.pod;
        let whom = if shared { &identity.service_account } else { &pod.name };
        let mut session = Session::new(identity.clone(), on_behalf_of(&pod.namespace, whom), shared);
        session.made_for = Some(volume.served());
        let id = SessionId(self.fresh_id());
        self.sessions.insert(id, session);
        id
    }

    /// Asks for what an attempt still lacks. Safe to call at any time.
    pub(super) fn advance(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get(key) else { return };
        let Some(attempt) = &volume.attempt else { return };
        if attempt.phase != Phase::Gathering {
            return;
        }
        let lane = if attempt.calls.is_empty() { Lane::Background } else { Lane::Foreground };
        let session = attempt.session;
        let serial = volume.serial;
        let plan = PlanId { key: key.clone(), serial, plan: attempt.plan };
        let wanted: Vec<DependencyId> = attempt
            .needs
            .iter()
            .filter(|(_, need)| matches!(need, Need::Wanted))
            .map(|(id, _)| *id)
            .collect();
        let in_flight = attempt.needs.values().any(|need| matches!(need, Need::InFlight(_)));
        // Where nothing is asked for the session is still to be one that upkeep can go on in.
        let logged_in =
            self.sessions.get(&session).is_none_or(|record| !matches!(record.state, SessionState::New(_)));
        if wanted.is_empty() && logged_in {
            let record = self.sessions.get(&session);
            let got = attempt.needs.values().filter_map(|need| match need {
                Need::Got(dependency) => ends_in(dependency, record),
                Need::Wanted | Need::InFlight(_) | Need::Reuse | Need::Carried => None,
            });
            if !in_flight && got.min().is_some_and(|ends| ends <= now) {
                let error = BackendError {
                    class: FailureClass::Transient,
                    message: "a credential, or its session, ended before everything was there".into(),
                    retry_after: None,
                    worth_retrying: true,
                };
                self.fail(key, error, None, now);
            } else if !in_flight {
                self.render(key, plan);
            }
            return;
        }
        let ends = installed_ends(volume);
        let Some(record) = self.sessions.get(&session) else { return };
        let address = record.identity.connection.address.clone();
        match record.state {
            SessionState::New(Some(_)) => {}
            SessionState::New(None) => {
                // A pod that waits has its own pace.
                let waits = record.wait_until.filter(|until| lane == Lane::Background && now < *until);
                if let Some(until) = waits {
                    self.wait(key, until, now);
                    return;
                }
                if lane == Lane::Background
                    && let Err(until) = self.admit(&address, ends, now)
                {
                    self.wait(key, until, now);
                    return;
                }
                self.login(session, lane, now);
            }
            SessionState::Retiring(_) => {
                let identity = record.identity.clone();
                let fresh = self.new_session(key, identity, false);
                self.move_attempt(key, fresh, now);
            }
            SessionState::Live => {
                if lane == Lane::Background
                    && let Err(until) = self.admit(&address, ends, now)
                {
                    self.wait(key, until, now);
                    return;
                }
                let requests: BTreeMap<DependencyId, _> = {
                    let attempt = self.volumes[key].attempt.as_ref().expect("checked above");
                    attempt
                        .spec
                        .requests()
                        .into_iter()
                        .map(|(id, request)| (id, Arc::new(request.clone())))
                        .collect()
                };
                for id in wanted {
                    let Some(request) = requests.get(&id) else { continue };
                    if let Some(op) = self.asked_already(session, id, lane).filter(|_| !request.may_write()) {
                        self.set_need(key, id, Need::InFlight(op));
                        continue;
                    }
                    let request = Request::Fetch { session, request: Arc::clone(request) };
                    let op = self.perform(Op::Need(plan.clone(), id, session), lane, request);
                    if lane == Lane::Background {
                        self.sent(&address, op, now);
                    }
                    self.set_need(key, id, Need::InFlight(op));
                }
            }
        }
    }

    /// The request in flight for another mount of a shared session whose answer is as good for this one.
    fn asked_already(&self, session: SessionId, id: DependencyId, lane: Lane) -> Option<OpId> {
        let record = self.sessions.get(&session).filter(|record| record.shared)?;
        record.users.iter().find_map(|key| {
            let attempt = self.volumes.get(key)?.attempt.as_ref()?;
            let soon = lane == Lane::Background || !attempt.calls.is_empty();
            match attempt.needs.get(&id)? {
                Need::InFlight(op) if soon && attempt.session == session => Some(*op),
                _ => None,
            }
        })
    }

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
        self.need_answered(op, plan, id, session, result.clone(), now);
        for other in others {
            self.need_answered(op, other, id, session, result.clone(), now);
        }
    }

    /// Parks a background attempt until `until`.
    fn wait(&mut self, key: &VolumeKey, until: BootTime, now: BootTime) {
        if let Some(attempt) = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut()) {
            attempt.phase = Phase::Waiting(Some(until));
        }
        self.retime_volume(key, now);
    }

    /// Puts an attempt into another session. What was made in the former one is asked for again.
    pub(super) fn move_attempt(&mut self, key: &VolumeKey, session: SessionId, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let installed = volume.installed.as_ref();
        let installed_session = installed.map(|installed| installed.session);
        let Some(attempt) = &mut volume.attempt else { return };
        let former = std::mem::replace(&mut attempt.session, session);
        let mut owed = Vec::new();
        for (id, need) in &mut attempt.needs {
            let leased = match need {
                Need::Got(dependency) => {
                    owed.extend(dependency.lease.as_ref().map(|(lease, term)| (lease.clone(), term.ends())));
                    dependency.lease.is_some()
                }
                Need::Reuse | Need::Carried => installed
                    .and_then(|installed| installed.dependencies.get(id))
                    .is_some_and(|dependency| dependency.lease.is_some()),
                Need::InFlight(_) => true,
                Need::Wanted => false,
            };
            if leased {
                *need = Need::Wanted;
            }
        }
        carry::widen(&attempt.spec, &mut attempt.needs);
        if let Some(record) = self.sessions.get_mut(&session) {
            record.users.insert(key.clone());
            record.idle_since = None;
        }
        self.retime_session(session, now);
        self.dirty_sessions.insert(session);
        self.dirty_volumes.insert(key.clone());
        if former != session {
            // Made for this attempt alone, also where the session goes on to serve what is installed.
            for (lease, ends) in owed {
                self.owe_lease(former, lease, ends, now, now);
            }
        }
        if Some(former) != installed_session && former != session {
            self.leave_session(former, key, now, now);
        }
        self.advance(key, now);
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
        let leased =
            self.volumes.get(key).and_then(|volume| volume.installed.as_ref()).is_some_and(|installed| {
                installed.dependencies.values().any(|dependency| dependency.lease.is_some())
            });
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

    pub(super) fn set_need(&mut self, key: &VolumeKey, id: DependencyId, need: Need) {
        if let Some(attempt) = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut()) {
            attempt.needs.insert(id, need);
        }
    }

    /// The same, of what upkeep in work or parked was not about so far. What a parked one waits for is left out,
    /// and asked for in its own time, where the rest can go on without it.
    pub(super) fn add_need(&mut self, key: &VolumeKey, id: DependencyId, need: Need, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let Some(attempt) = &mut volume.attempt else { return };
        let failing =
            attempt.needs.iter().filter(|(other, need)| **other != id && matches!(need, Need::Wanted));
        let failing: Vec<DependencyId> = failing.map(|(other, _)| *other).collect();
        let former = attempt.needs.insert(id, need);
        // Before anything is left out: what is shown beside `id` would be asked for again at once otherwise.
        carry::widen(&attempt.spec, &mut attempt.needs);
        let Phase::Waiting(Some(until)) = attempt.phase else { return };
        let backoff = attempt.backoff;
        // Where nothing is missing it was rendering or writing that failed, and has its own time.
        let mut waits = failing.is_empty() && !matches!(former, Some(Need::Wanted));
        for other in failing {
            let without = volume.without(other);
            waits |= without.is_none();
            let (Some(installed), Some(attempt), Some(need)) =
                (&mut volume.installed, &mut volume.attempt, without)
            else {
                continue;
            };
            attempt.needs.insert(other, need);
            if let Some(known) = installed.dependencies.get_mut(&other) {
                known.stale = true;
                known.backoff = backoff;
                known.wait_until = Some(until);
            }
        }
        if !waits {
            // It was of what is left out, and says nothing of the rest.
            if let Some(attempt) = &mut volume.attempt {
                attempt.failure = None;
            }
            self.resume(key, now);
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
        let jitter = u32::try_from(self.jitter.next_u64() % 1001).unwrap_or(0);
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

    fn render(&mut self, key: &VolumeKey, plan: PlanId) {
        if let Some(attempt) = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut()) {
            attempt.phase = Phase::Rendering;
            let (spec, _) = carry::split(&attempt.spec, &attempt.needs);
            self.actions.push_back(Action::Render(plan, spec));
        }
    }

    /// The attempt of `plan`, if it is still the one in work and stands at `phase`.
    fn at_phase(&mut self, plan: &PlanId, phase: Phase) -> Option<&mut Volume> {
        self.volumes.get_mut(&plan.key).filter(|volume| {
            volume.serial == plan.serial
                && volume
                    .attempt
                    .as_ref()
                    .is_some_and(|attempt| attempt.plan == plan.plan && attempt.phase == phase)
        })
    }

    pub(super) fn rendered(
        &mut self,
        plan: &PlanId,
        result: Result<Vec<(String, String)>, String>,
        now: BootTime,
    ) {
        let Some(volume) = self.at_phase(plan, Phase::Rendering) else { return };
        let key = plan.key.clone();
        match result {
            Err(message) => self.fail(&key, local_failure(message), None, now),
            Ok(versions) => {
                let mode = volume.mode;
                let hold = volume.hold_until.filter(|until| now < *until);
                let mounted = volume.mounted;
                let live = volume.is_live();
                let installed = volume.installed.as_ref();
                let attempt = volume.attempt.as_mut().expect("at_phase checked it");
                let (_, carried) = carry::split(&attempt.spec, &attempt.needs);
                let versions = match installed {
                    Some(installed) if !carried.is_empty() => {
                        carry::versions(&attempt.spec, versions, &installed.versions)
                    }
                    _ => versions,
                };
                let unchanged = installed.is_some_and(|installed| installed.versions == versions);
                let previous = installed.and_then(|installed| installed.version_dir.clone());
                attempt.versions = versions;
                let previous = attempt.version_dir.clone().or(previous);
                let waits = !attempt.calls.is_empty();
                match mode {
                    Mode::ProviderWritten if !mounted => attempt.phase = Phase::Waiting(None),
                    Mode::ProviderWritten if hold.is_some() => attempt.phase = Phase::Waiting(hold),
                    // Nobody waits for a first mount any more: the driver is unmounting it.
                    Mode::ProviderWritten if !live && !waits => attempt.phase = Phase::Waiting(None),
                    Mode::ProviderWritten => {
                        attempt.phase = Phase::Swapping;
                        let callers = attempt.calls.iter().map(|call| call.id).collect();
                        self.dirty_volumes.insert(key.clone());
                        let plan = plan.clone();
                        self.actions.push_back(Action::Swap { plan, previous, unchanged, callers, carried });
                    }
                    Mode::DriverWritten if waits => self.deliver(&key),
                    Mode::DriverWritten if unchanged => self.commit(&key, now),
                    Mode::DriverWritten => {
                        attempt.phase = Phase::Ready;
                        self.dirty_volumes.insert(key.clone());
                    }
                }
            }
        }
        self.retime_volume(&key, now);
    }

    /// Hands rendered files to the driver with the answer.
    fn deliver(&mut self, key: &VolumeKey) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let installed = volume.installed.as_ref();
        let Some(attempt) = &mut volume.attempt else { return };
        attempt.phase = Phase::Unanswered;
        let plan = PlanId { key: key.clone(), serial: volume.serial, plan: attempt.plan };
        let calls = std::mem::take(&mut attempt.calls).into_iter().map(|call| call.id).collect();
        // Byte for byte what the driver wrote before: it leaves an empty answer alone.
        let unchanged = installed.is_some_and(|installed| installed.versions == attempt.versions);
        let answer = Ok(attempt.versions.clone());
        let deliver = (!unchanged).then(|| plan.clone());
        self.dirty_volumes.insert(key.clone());
        self.answer(calls, answer, deliver, Some(plan), None);
    }

    pub(super) fn swapped(&mut self, plan: &PlanId, outcome: SwapOutcome, now: BootTime) {
        let Some(volume) = self.at_phase(plan, Phase::Swapping) else { return };
        let key = plan.key.clone();
        let live = volume.is_live();
        let attempt = volume.attempt.as_mut().expect("at_phase checked it");
        match outcome {
            SwapOutcome::Done { version_dir, changed } => {
                attempt.version_dir = Some(version_dir);
                attempt.phase = Phase::Unanswered;
                let why = attempt.reason.text();
                let versions = attempt.versions.clone();
                let calls: Vec<CallId> =
                    std::mem::take(&mut attempt.calls).into_iter().map(|call| call.id).collect();
                let healthy = volume.token.is_none_or(|token| token.fresh(now));
                if live {
                    self.note(Some(&key), Note::Rewritten { why, changed });
                }
                self.dirty_volumes.insert(key.clone());
                if calls.is_empty() {
                    if live {
                        self.commit(&key, now);
                    } else {
                        self.grace(&key, now);
                    }
                } else {
                    let clock = Some((key.clone(), healthy));
                    self.answer(calls, Ok(versions), None, Some(plan.clone()), clock);
                }
            }
            SwapOutcome::Unpublishing => {
                let until = now + UNPUBLISH_HOLD;
                volume.hold_until = Some(until);
                attempt.phase = Phase::Waiting(Some(until));
                let failure = MountFailure::new(
                    FailureKind::Internal,
                    "the volume is being unpublished; the kubelet will ask again if it is not",
                );
                self.answer_all(&key, failure);
            }
            SwapOutcome::Gone if live => {
                self.unmounted(&key, now);
                return;
            }
            SwapOutcome::Gone => {
                volume.mounted = false;
                attempt.phase = Phase::Waiting(None);
                let failure = MountFailure::new(
                    FailureKind::Internal,
                    "the volume was unmounted while its files were being written",
                );
                self.answer_all(&key, failure);
                self.grace(&key, now);
            }
            SwapOutcome::Unwanted => {
                attempt.phase = Phase::Waiting(live.then(|| now + UNPUBLISH_HOLD));
                attempt.calls.clear();
                self.grace(&key, now);
            }
            SwapOutcome::Failed(message) => self.fail(&key, local_failure(message), None, now),
        }
        self.retime_volume(&key, now);
    }

    pub(super) fn answered(&mut self, plan: &PlanId, delivered: bool, now: BootTime) {
        let Some(volume) = self.at_phase(plan, Phase::Unanswered) else { return };
        let key = plan.key.clone();
        if delivered || volume.is_live() {
            if volume.mode == Mode::DriverWritten && !delivered {
                // The driver did not get the files: the next Mount must carry them.
                volume.attempt.as_mut().expect("at_phase checked it").phase = Phase::Ready;
            } else {
                self.commit(&key, now);
            }
        } else {
            self.grace(&key, now);
        }
        self.retime_volume(&key, now);
    }

    /// What an attempt made is what the volume is now; what it replaced goes after the overlap.
    fn commit(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let Some(attempt) = volume.attempt.take() else { return };
        let mut old = volume.installed.take();
        let mut dependencies = BTreeMap::new();
        for (id, need) in attempt.needs {
            let dependency = match need {
                Need::Got(dependency) => Some(dependency),
                Need::Reuse => old.as_mut().and_then(|old| old.dependencies.remove(&id)),
                Need::Carried => {
                    old.as_mut().and_then(|old| old.dependencies.remove(&id)).map(|mut known| {
                        known.held = false;
                        known
                    })
                }
                Need::Wanted | Need::InFlight(_) => None,
            };
            if let Some(mut dependency) = dependency {
                dependency.request = dependency.request.settled();
                dependencies.insert(id, dependency);
            }
        }
        let keep = carry::held(&attempt.spec, volume.mode, &dependencies);
        for (id, dependency) in &mut dependencies {
            dependency.held &= keep.contains(id);
        }
        let hold = dependencies.iter().filter(|(_, dependency)| dependency.held).map(|(id, _)| *id).collect();
        let plan = PlanId { key: key.clone(), serial: volume.serial, plan: attempt.plan };
        let leased = dependencies.values().any(|dependency| dependency.lease.is_some());
        let objects = attempt.versions.len();
        volume.installed = Some(Installed {
            plan: attempt.plan,
            spec: attempt.spec.settled(),
            digest: attempt.digest,
            session: attempt.session,
            dependencies,
            versions: attempt.versions,
            version_dir: attempt.version_dir,
            at: now,
        });
        volume.grace_until = None;
        volume.rejected = None;
        let driver_written = volume.mode == Mode::DriverWritten;
        let overlap = old.iter().flat_map(|old| old.dependencies.values()).map(|known| known.overlap).max();
        let overlap = overlap.unwrap_or_default();
        self.actions.push_back(Action::Keep(plan, hold));
        match old {
            None => self.note(Some(key), Note::Mounted { objects }),
            Some(old) => self.retire_replaced(key, old, attempt.session, driver_written, now),
        }
        self.dirty_volumes.insert(key.clone());
        self.dirty_sessions.insert(attempt.session);
        if !leased {
            self.share(key, attempt.session, overlap, now);
        }
        let session = self.volumes[key].installed.as_ref().map(|installed| installed.session);
        if let Some(session) = session {
            self.retime_session(session, now);
        }
    }

    /// Retires what `old` held and its successor does not: `old.dependencies` has only what was not reused.
    fn retire_replaced(
        &mut self,
        key: &VolumeKey,
        old: Installed,
        session: SessionId,
        driver_written: bool,
        now: BootTime,
    ) {
        if old.session != session {
            let longest = old.dependencies.values().map(|known| known.overlap).max().unwrap_or_default();
            let owned = self.sessions.get(&old.session).is_some_and(|record| !record.shared);
            if driver_written && owned {
                let volume = self.volumes.get_mut(key).expect("the caller looked it up");
                volume.retired.push(Retired::Session(old.session));
                self.keep_for_driver(old.session, key);
            } else {
                self.leave_session(old.session, key, now + longest, now);
            }
            return;
        }
        for dependency in old.dependencies.into_values() {
            let overlap = dependency.overlap;
            let Some((lease, term)) = dependency.lease else { continue };
            if dependency.lost || term.ends() <= now {
                continue;
            }
            if driver_written {
                let volume = self.volumes.get_mut(key).expect("the caller looked it up");
                volume.retired.push(Retired::Lease(session, lease, term.ends()));
            } else {
                self.owe_lease(session, lease, term.ends(), now + overlap, now);
            }
        }
    }

    /// Gives up the attempt in work: calls are answered, what it made is given back.
    pub(super) fn abandon(&mut self, key: &VolumeKey, why: &str, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let Some(attempt) = volume.attempt.take() else { return };
        let installed = volume.installed.as_ref().map(|installed| installed.session);
        let plan = PlanId { key: key.clone(), serial: volume.serial, plan: attempt.plan };
        let calls: Vec<CallId> = attempt.calls.iter().map(|call| call.id).collect();
        if !calls.is_empty() {
            let failure = MountFailure::new(FailureKind::Internal, format!("given up: {why}"));
            self.answer(calls, Err(failure), None, None, None);
        }
        self.actions.push_back(Action::Discard(plan));
        if installed == Some(attempt.session) {
            for need in attempt.needs.into_values() {
                if let Need::Got(dependency) = need
                    && let Some((lease, term)) = dependency.lease
                {
                    self.owe_lease(attempt.session, lease, term.ends(), now, now);
                }
            }
        } else {
            self.leave_session(attempt.session, key, now, now);
        }
        self.dirty_volumes.insert(key.clone());
    }

    /// Something an attempt needs failed. `id`: the answer it was about.
    pub(super) fn fail(
        &mut self,
        key: &VolumeKey,
        error: BackendError,
        id: Option<DependencyId>,
        now: BootTime,
    ) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let live = volume.is_live();
        let Some(attempt) = &mut volume.attempt else { return };
        let object = id.and_then(|id| attempt.spec.user_of(id)).map(|(object, _)| object.name());
        let error = match object {
            Some(name) => BackendError { message: format!("object \"{name}\": {error}"), ..error },
            None => error,
        };
        attempt.failure = Some(error.clone());
        let (patient, done): (Vec<Call>, Vec<Call>) =
            std::mem::take(&mut attempt.calls).into_iter().partition(|call| {
                let again = passes(&error)
                    && (error.class != FailureClass::NotFound || attempt.backoff.failures() < ABSENT_TRIES);
                again && now < call.patience
            });
        attempt.calls = patient;
        let pace = match (attempt.calls.is_empty(), passes(&error)) {
            (false, _) => Pace::FOREGROUND,
            (true, true) => Pace::BACKGROUND,
            (true, false) => Pace::REFUSED,
        };
        let first = attempt.backoff.failures() == 0;
        let wait = attempt.backoff.next(pace, error.retry_after, &mut self.jitter);
        attempt.phase = if attempt.calls.is_empty() && !live {
            Phase::Waiting(None)
        } else {
            Phase::Waiting(Some(now + wait))
        };
        let what = attempt.reason.text();
        let edit = attempt.reason == Reason::Edit;
        if first || attempt.calls.is_empty() {
            self.note(Some(key), Note::Failing { what, error: error.clone(), wait });
        }
        if !done.is_empty() {
            let calls: Vec<CallId> = done.into_iter().map(|call| call.id).collect();
            if live {
                if edit {
                    self.reject_edit(key, error.message);
                }
                self.answer_installed(key, calls, now);
            } else {
                self.answer(calls, Err(failure_of(&error)), None, None, None);
            }
        }
        if !live && self.volumes[key].attempt.as_ref().is_some_and(|attempt| attempt.calls.is_empty()) {
            self.grace(key, now);
        }
        self.dirty_volumes.insert(key.clone());
        self.retime_volume(key, now);
    }

    /// Answers with what is on disk.
    pub(super) fn answer_installed(&mut self, key: &VolumeKey, calls: Vec<CallId>, now: BootTime) {
        let Some(volume) = self.volumes.get(key) else { return };
        let Some(installed) = &volume.installed else { return };
        let healthy = volume.rejected.is_none()
            && volume.refused.is_none()
            && volume.token.is_some_and(|token| token.fresh(now));
        let clock = (volume.mode == Mode::ProviderWritten).then(|| (key.clone(), healthy));
        let versions = installed.versions.clone();
        self.answer(calls, Ok(versions), None, None, clock);
    }

    pub(super) fn answer(
        &mut self,
        calls: Vec<CallId>,
        answer: Result<Vec<(String, String)>, MountFailure>,
        deliver: Option<PlanId>,
        report: Option<PlanId>,
        clock: Option<(VolumeKey, bool)>,
    ) {
        self.actions.push_back(Action::Answer { calls, answer, deliver, report, clock });
    }

    /// Answers everyone who waits for the attempt with a failure.
    fn answer_all(&mut self, key: &VolumeKey, failure: MountFailure) {
        let Some(attempt) = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut()) else {
            return;
        };
        let calls: Vec<CallId> = std::mem::take(&mut attempt.calls).into_iter().map(|call| call.id).collect();
        if !calls.is_empty() {
            self.answer(calls, Err(failure), None, None, None);
        }
    }

    /// Calls whose time is over are answered with whatever there is to say.
    pub(super) fn answer_overdue(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let live = volume.is_live();
        let Some(attempt) = &mut volume.attempt else { return };
        let waiting = matches!(attempt.phase, Phase::Waiting(_));
        let (over, rest): (Vec<Call>, Vec<Call>) = std::mem::take(&mut attempt.calls)
            .into_iter()
            .partition(|call| call.deadline <= now || (waiting && call.patience <= now));
        attempt.calls = rest;
        if over.is_empty() {
            return;
        }
        let login = || format!("auth/{} as role \"{}\"", attempt.spec.login.mount, attempt.spec.login.role);
        let reading = attempt.needs.iter().find(|(_, need)| matches!(need, Need::InFlight(_)));
        let reading = reading.and_then(|(id, _)| attempt.spec.user_of(*id));
        let doing = match (attempt.phase, reading) {
            (Phase::Gathering, Some((object, request))) => {
                format!("reading {} for object \"{}\"", request.path, object.name())
            }
            (Phase::Gathering, None) => format!("logging in at {}", login()),
            (Phase::Waiting(_), _) => "waiting to try again".to_owned(),
            (Phase::Rendering | Phase::Swapping | Phase::Unanswered | Phase::Ready, _) => {
                "writing".to_owned()
            }
        };
        let address = &attempt.spec.connection.address;
        let failure = match &attempt.failure {
            Some(error) => failure_of(error),
            None => MountFailure::new(
                FailureKind::Internal,
                format!(
                    "not ready in time, still {doing} on {address}; the work goes on and the next Mount takes it up"
                ),
            ),
        };
        let calls: Vec<CallId> = over.into_iter().map(|call| call.id).collect();
        if live {
            self.answer_installed(key, calls, now);
            let attempt = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut());
            if let Some(attempt) = attempt
                && attempt.calls.is_empty()
                && let Phase::Waiting(Some(until)) = attempt.phase
            {
                // The wait was that of somebody who waits.
                let wait = { attempt.backoff }.next(Pace::BACKGROUND, None, &mut self.jitter);
                attempt.phase = Phase::Waiting(Some(until.max(now + wait)));
            }
        } else {
            self.answer(calls, Err(failure), None, None, None);
            let attempt = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut());
            if let Some(attempt) = attempt
                && attempt.calls.is_empty()
            {
                if matches!(attempt.phase, Phase::Waiting(_)) {
                    attempt.phase = Phase::Waiting(None);
                }
                self.grace(key, now);
            }
        }
    }

    fn grace(&mut self, key: &VolumeKey, now: BootTime) {
        if let Some(volume) = self.volumes.get_mut(key)
            && !volume.is_live()
        {
            volume.grace_until = Some(now + RETRY_GRACE);
            self.dirty_volumes.insert(key.clone());
        }
    }

    pub(super) fn unmounted(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        volume.mounted = false;
        if volume.is_live() || volume.attempt.is_none() {
            self.note(Some(key), Note::Unmounted);
            self.forget_volume(key, now);
            return;
        }
        // A first mount that failed: the driver unmounts, the kubelet will retry.
        if let Some(attempt) = &mut volume.attempt
            && !matches!(attempt.phase, Phase::Gathering | Phase::Rendering)
        {
            attempt.phase = Phase::Waiting(None);
            attempt.version_dir = None;
        }
        let failure =
            MountFailure::new(FailureKind::Internal, "the volume was unmounted while it was being mounted");
        self.answer_all(key, failure);
        self.grace(key, now);
        self.retime_volume(key, now);
    }

    /// Gives everything back that a volume holds, at once.
    pub(super) fn forget_volume(&mut self, key: &VolumeKey, now: BootTime) {
        self.abandon(key, "the volume is gone", now);
        let Some(volume) = self.volumes.remove(key) else { return };
        if let Some(installed) = &volume.installed {
            self.leave_session(installed.session, key, now, now);
        }
        for retired in volume.retired {
            if let Retired::Session(id) = retired {
                self.retire_session(id, now, None);
            }
        }
        self.hurry_retired(key, now);
        self.set_timer(super::TimerKey::Volume(key.clone()), None);
        self.dirty_volumes.insert(key.clone());
        self.actions.push_back(Action::Forget(key.clone()));
    }

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
}

/// Whether what is in the files lives no more.
fn dead(known: &Dependency, now: BootTime) -> bool {
    known.dies().is_some_and(|ends| ends <= now)
}

/// When what was got in `session` ends: a lease ends with it at the latest.
fn ends_in(dependency: &Dependency, session: Option<&Session>) -> Option<BootTime> {
    let session = session.filter(|_| dependency.lease.is_some()).and_then(Session::ends);
    dependency.ends().into_iter().chain(session).min()
}

fn call_of(mount: &Mount, now: BootTime) -> Call {
    Call { id: mount.call, patience: (now + PATIENCE).min(mount.deadline), deadline: mount.deadline }
}

/// When the first of a volume's credentials ends.
fn installed_ends(volume: &Volume) -> Option<BootTime> {
    volume
        .installed
        .iter()
        .flat_map(|installed| installed.dependencies.values())
        .filter_map(|known| known.ends())
        .min()
}

const fn volume_is_idle(volume: &Volume) -> bool {
    volume.installed.is_none() && volume.attempt.is_none()
}

pub(super) fn identity_of(volume: &Volume, spec: &VolumeSpec) -> Identity {
    Identity {
        connection: Arc::new(spec.connection.clone()),
        login: Arc::new(spec.login.clone()),
        namespace: volume.pod.namespace.clone(),
        service_account: volume.pod.service_account.clone(),
        service_account_uid: volume.service_account_uid.clone(),
    }
}

/// A failure of ours, not of the store: retrying the same does not help.
fn local_failure(message: String) -> BackendError {
    BackendError { class: FailureClass::Invalid, message, retry_after: None, worth_retrying: false }
}

fn failure_of(error: &BackendError) -> MountFailure {
    let kind = match error.class {
        FailureClass::Transient
        | FailureClass::Throttled
        | FailureClass::Sealed
        | FailureClass::LeaseGone => FailureKind::Internal,
        FailureClass::Denied => FailureKind::PermissionDenied,
        FailureClass::NotFound => FailureKind::NotFound,
        FailureClass::Invalid => FailureKind::InvalidArgument,
    };
    MountFailure::new(kind, error.message.clone())
}
