//! Attempts: what is asked for, and in which session, until everything is here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Lifecycle, Op,
    backoff::Pace,
    carry,
    failure::{FailureKind, MountFailure},
    key::VolumeKey,
    message::{Action, CallId, Lane, Note, OpId, PlanId, Request},
    mounting::failure_of,
    on_behalf_of, passes,
    session::{Identity, Session, SessionId, SessionState},
    volume::{Attempt, Call, Dependency, Installed, Mode, Need, Phase, Reason, Volume},
};
use crate::{
    backend::{BackendError, FailureClass},
    clock::BootTime,
    spec::{DependencyId, VolumeSpec},
};

/// An absent path is asked for this often before the pod's author is told: a standby lags by 76 ms mostly,
/// and by 2.2 s at most as measured.
pub(super) const ABSENT_TRIES: u32 = 4;

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
    pub(super) const fn new(reason: Reason, spec: Arc<VolumeSpec>, digest: [u8; 32]) -> Self {
        Self { reason, spec, digest, anew: None }
    }

    /// The same plan as the installed one, `anew` asked for again.
    pub(super) fn keep(reason: Reason, installed: &Installed, anew: Option<DependencyId>) -> Self {
        Self { anew, ..Self::new(reason, Arc::clone(&installed.spec), installed.digest) }
    }

    /// What must be asked for, in the installed session or in another one.
    fn wanted(
        &self,
        volume: &Volume,
        sessions: &BTreeMap<SessionId, Session>,
        same_session: bool,
        now: BootTime,
    ) -> BTreeSet<DependencyId> {
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
            let session = sessions.get(&installed.session);
            let is_dead = |id: &DependencyId| {
                installed.dependencies.get(id).is_some_and(|known| dead(known, session, now))
            };
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
        let lives_in = installed.and_then(|installed| self.sessions.get(&installed.session));
        let other_files = matches!(attempt.reason, Reason::Edit | Reason::Repair);
        let mut owed = Vec::new();
        for (id, need) in &mut attempt.needs {
            let died = match need {
                Need::Got(dependency) => ends_in(dependency, session).is_some_and(|ends| ends <= now + BRIEF),
                Need::Reuse if other_files => installed
                    .and_then(|installed| installed.dependencies.get(id))
                    .is_some_and(|known| dead(known, lives_in, now)),
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

    /// Starts work on what is to be installed next. What keeps the installed plan true does not advance yet:
    /// the caller may have an answer for it already.
    pub(super) fn start(&mut self, key: &VolumeKey, aim: Aim, calls: Vec<Call>, now: BootTime) {
        let wanted = aim.wanted(&self.volumes[key], &self.sessions, true, now);
        let session = self.choose_session(key, &aim, &wanted);
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let installed = volume.installed.as_ref();
        let same_session = installed.is_some_and(|installed| installed.session == session);
        let wanted = if same_session { wanted } else { aim.wanted(volume, &self.sessions, false, now) };
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
        let ends = self.installed_ends(volume);
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
                    let op = Op::Need(plan.clone(), id, session);
                    let op = self.perform(op, lane, request, &address, now);
                    self.set_need(key, id, Need::InFlight(op));
                }
            }
        }
    }

    /// When the first of a volume's credentials ends.
    pub(super) fn installed_ends(&self, volume: &Volume) -> Option<BootTime> {
        let installed = volume.installed.as_ref()?;
        let session = self.sessions.get(&installed.session);
        installed.dependencies.values().filter_map(|known| ends_in(known, session)).min()
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
}

/// Whether what is in the files lives no more.
fn dead(known: &Dependency, session: Option<&Session>, now: BootTime) -> bool {
    known.lost || ends_in(known, session).is_some_and(|ends| ends <= now)
}

/// When what was got in `session` ends: a lease ends with it at the latest.
pub(super) fn ends_in(dependency: &Dependency, session: Option<&Session>) -> Option<BootTime> {
    let session = session.filter(|_| dependency.lease.is_some()).and_then(Session::ends);
    dependency.ends().into_iter().chain(session).min()
}

fn identity_of(volume: &Volume, spec: &VolumeSpec) -> Identity {
    Identity {
        connection: Arc::new(spec.connection.clone()),
        login: Arc::new(spec.login.clone()),
        namespace: volume.pod.namespace.clone(),
        service_account: volume.pod.service_account.clone(),
        service_account_uid: volume.service_account_uid.clone(),
    }
}

/// A failure of ours, not of the store: retrying the same does not help.
pub(super) fn local_failure(message: String) -> BackendError {
    BackendError { class: FailureClass::Invalid, message, retry_after: None, worth_retrying: false }
}
