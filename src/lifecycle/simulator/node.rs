//! A model of the shell: it follows `volume/worker.rs` in order and in what a crash loses, with values in
//! place of secret bytes and a map in place of the tmpfs.

use std::collections::{BTreeMap, BTreeSet};

use super::server::{AccountToken, Call, Outcome, Value, error};
use crate::{
    backend::FailureClass,
    clock::BootTime,
    lifecycle::{
        Event, Lifecycle,
        message::{Action, CallId, Lane, Mount, Note, OpId, PlanId, Request, SwapOutcome, TokenTimes},
        session::{Session, SessionId},
        volume::{Mode, Need, Volume},
    },
    lifecycle::{failure::MountFailure, key::VolumeKey},
    spec::{DependencyId, Object, VolumeSpec},
};

type Answers = BTreeMap<DependencyId, Value>;

/// What files show: by the object and the answer.
pub(crate) type Values = BTreeMap<(String, DependencyId), Value>;

/// A mounted tmpfs, or what the driver wrote.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    /// Its mount identity.
    pub(crate) mount: u64,
    pub(crate) unpublishing: bool,
    pub(crate) full: bool,
    pub(crate) content: Option<Values>,
    pub(crate) version_dir: Option<String>,
}

#[derive(Debug, Default)]
struct Plan {
    values: Answers,
    rendered: Option<Values>,
}

/// What a crash leaves: records as text, disks.
#[derive(Debug, Default)]
struct Journal {
    volumes: BTreeMap<VolumeKey, (Volume, Option<u64>, Option<AccountToken>)>,
    sessions: BTreeMap<SessionId, (Session, u64)>,
}

/// Files that were replaced, for the auditor.
#[derive(Debug)]
pub(crate) struct Swap {
    pub(crate) key: VolumeKey,
    pub(crate) old: Option<Values>,
    pub(crate) new: Values,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) core: Lifecycle,
    /// Of the process: answers to a former one are lost.
    pub(crate) epoch: u32,
    pub(crate) sessions: BTreeMap<SessionId, u64>,
    pub(crate) tokens: BTreeMap<VolumeKey, AccountToken>,
    identities: BTreeMap<VolumeKey, u64>,
    values: BTreeMap<VolumeKey, Answers>,
    plans: BTreeMap<PlanId, Plan>,
    answer: Option<(OpId, Value)>,
    /// Callers still there.
    pub(crate) calls: BTreeSet<CallId>,
    last_call: u64,
    pub(crate) disks: BTreeMap<VolumeKey, Disk>,
    versions: u64,
    journal: Option<Journal>,
    /// Requests to send.
    pub(crate) out: Vec<(OpId, Lane, Call)>,
    /// Answers whose requests could not be made.
    pub(crate) impossible: Vec<(OpId, Outcome)>,
    pub(crate) answered: Vec<(CallId, Result<(), MountFailure>)>,
    pub(crate) notes: Vec<(Option<VolumeKey>, Note)>,
    pub(crate) swaps: Vec<Swap>,
    /// kill -9 after so many steps.
    pub(crate) kill_after: Option<u32>,
    pub(crate) dead: bool,
    /// A defect that the shell itself saw.
    pub(crate) defect: Option<String>,
}

impl Node {
    pub(crate) fn new(seed: u64, journalled: bool) -> Self {
        Self {
            core: Lifecycle::new(seed),
            epoch: 0,
            sessions: BTreeMap::new(),
            tokens: BTreeMap::new(),
            identities: BTreeMap::new(),
            values: BTreeMap::new(),
            plans: BTreeMap::new(),
            answer: None,
            calls: BTreeSet::new(),
            last_call: 0,
            disks: BTreeMap::new(),
            versions: 0,
            journal: journalled.then(Journal::default),
            out: Vec::new(),
            impossible: Vec::new(),
            answered: Vec::new(),
            notes: Vec::new(),
            swaps: Vec::new(),
            kill_after: None,
            dead: false,
            defect: None,
        }
    }

    pub(crate) const fn journalled(&self) -> bool {
        self.journal.is_some()
    }

    /// Whether a new process would find this token.
    pub(crate) fn recorded(&self, token: u64) -> bool {
        self.journal.iter().flat_map(|journal| journal.sessions.values()).any(|(_, held)| *held == token)
    }

    /// Whether a new process would find this lease.
    pub(crate) fn recorded_lease(&self, lease: &str) -> bool {
        let volumes = self.journal.iter().flat_map(|journal| journal.volumes.values());
        volumes.map(|(volume, ..)| volume).any(|volume| {
            let got = volume.attempt.iter().flat_map(|attempt| attempt.needs.values());
            let got = got.filter_map(|need| if let Need::Got(known) = need { Some(known) } else { None });
            let installed = volume.installed.iter().flat_map(|installed| installed.dependencies.values());
            got.chain(installed).any(|known| known.lease.as_ref().is_some_and(|(known, _)| known == lease))
        })
    }

    /// The process dies; what it held in memory is gone.
    pub(crate) fn kill(&mut self) {
        self.dead = true;
        self.kill_after = None;
        self.epoch += 1;
        self.sessions.clear();
        self.tokens.clear();
        self.identities.clear();
        self.values.clear();
        self.plans.clear();
        self.answer = None;
        self.calls.clear();
        self.out.clear();
        self.impossible.clear();
        self.answered.clear();
    }

    /// The machine starts anew: records and volumes were in memory.
    pub(crate) fn reboot(&mut self) {
        self.kill();
        self.journal = Some(Journal::default());
        self.disks.clear();
    }

    /// A new process takes up the records.
    pub(crate) fn restart(&mut self, seed: u64, now: BootTime) {
        self.dead = false;
        self.core = Lifecycle::new(seed);
        let journal = self.journal.take().expect("only a node with a journal is killed");
        let mut restored = Vec::new();
        let mut gone = Vec::new();
        for (key, (volume, identity, token)) in &journal.volumes {
            let volume: Volume = round_trip(volume);
            let disk = self.disks.get(key).filter(|_| volume.mode == Mode::ProviderWritten);
            if volume.mode == Mode::ProviderWritten
                && (identity.is_none() || disk.map(|disk| disk.mount) != *identity)
            {
                gone.push(key.clone());
            }
            if let Some(identity) = identity {
                self.identities.insert(key.clone(), *identity);
            }
            if let Some(token) = token {
                self.tokens.insert(key.clone(), *token);
            }
            restored.push((key.clone(), volume, disk.and_then(|disk| disk.version_dir.clone())));
        }
        let mut records = Vec::new();
        for (id, (session, token)) in &journal.sessions {
            self.sessions.insert(*id, *token);
            records.push((*id, round_trip(session)));
        }
        self.journal = Some(journal);
        self.core.restore(restored, records, now);
        for key in gone {
            self.core.handle(Event::Unmounted(key), now);
        }
        self.settle(now);
    }

    pub(crate) fn feed(&mut self, event: Event, now: BootTime) {
        self.core.handle(event, now);
        self.settle(now);
    }

    pub(crate) fn timeout(&mut self, now: BootTime) {
        self.core.handle_timeout(now);
        self.settle(now);
    }

    /// A Mount as the worker takes it; the caller's number.
    pub(crate) fn mount(&mut self, mut mount: Mount, token: Option<AccountToken>, now: BootTime) -> CallId {
        let key = mount.key.clone();
        self.last_call += 1;
        let call = CallId(self.last_call);
        mount.call = call;
        let known = self.core.volumes().get(&key);
        if known.is_some_and(|volume| volume.mode == Mode::DriverWritten) {
            mount.mode = Mode::DriverWritten;
        }
        mount.intact = true;
        if mount.mode == Mode::ProviderWritten {
            let (identity, data) =
                self.disks.get(&key).map_or((0, None), |disk| (disk.mount, disk.version_dir.clone()));
            if self.identities.get(&key).is_some_and(|recorded| *recorded != identity) {
                self.feed(Event::Unmounted(key.clone()), now);
                if self.dead {
                    return call;
                }
            }
            self.identities.insert(key.clone(), identity);
            let left = self
                .core
                .volumes()
                .get(&key)
                .and_then(|volume| volume.installed.as_ref())
                .and_then(|installed| installed.version_dir.clone());
            mount.intact = left.is_none() || left == data;
        }
        if let Some(token) = token {
            if self.tokens.get(&key).is_none_or(|held| held.issued <= token.issued) {
                self.tokens.insert(key.clone(), token);
            }
            let times = TokenTimes { issued: token.issued, expires: token.expires };
            let uid = mount.token.as_ref().map(|(_, uid)| uid.clone()).unwrap_or_default();
            mount.token = Ok((times, uid));
        }
        self.calls.insert(call);
        self.core.handle(Event::Mount(Box::new(mount)), now);
        if !self.core.volumes().contains_key(&key) {
            self.forget(&key);
        }
        self.settle(now);
        call
    }

    /// The end of a request.
    pub(crate) fn ended(&mut self, op: OpId, session: Option<SessionId>, outcome: Outcome, now: BootTime) {
        let event = match outcome {
            Outcome::LoggedIn(result) => Event::LoggedIn(
                op,
                result.map(|(terms, since, token)| {
                    if let Some(session) = session {
                        self.sessions.insert(session, token);
                    }
                    (terms, since)
                }),
            ),
            Outcome::Fetched(result) => Event::Fetched(
                op,
                result.map(|(fetched, value)| {
                    self.answer = Some((op, value));
                    fetched
                }),
            ),
            Outcome::Renewed(result) => Event::Renewed(op, result),
            Outcome::Revoked(result) => Event::Revoked(op, result),
        };
        self.feed(event, now);
        self.answer = None;
    }

    fn forget(&mut self, key: &VolumeKey) {
        self.tokens.remove(key);
        self.values.remove(key);
        self.plans.retain(|plan, _| plan.key != *key);
    }

    fn struck(&mut self) -> bool {
        match &mut self.kill_after {
            Some(0) => {
                self.kill();
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// Records what is dirty, then performs one action, until there is none.
    fn settle(&mut self, now: BootTime) {
        while !self.dead {
            let action = self.core.poll_action();
            if self.struck() {
                return;
            }
            self.record();
            let Some(action) = action else { return };
            if self.struck() {
                return;
            }
            self.act(action, now);
        }
    }

    fn record(&mut self) {
        let dirty = self.core.take_dirty();
        let Some(journal) = &mut self.journal else { return };
        for id in dirty.sessions {
            match self.core.sessions().get(&id).zip(self.sessions.get(&id)) {
                Some((session, token)) => {
                    journal.sessions.insert(id, (session.clone(), *token));
                }
                None => {
                    journal.sessions.remove(&id);
                }
            }
        }
        for key in dirty.volumes {
            match self.core.volumes().get(&key) {
                Some(volume) => {
                    let record =
                        (volume.clone(), self.identities.get(&key).copied(), self.tokens.get(&key).copied());
                    journal.volumes.insert(key, record);
                }
                None => {
                    journal.volumes.remove(&key);
                }
            }
        }
    }

    fn act(&mut self, action: Action, now: BootTime) {
        match action {
            Action::Perform(op, lane, request) => self.perform(op, lane, request),
            Action::Supply(op, plan, id) => {
                if let Some((answered, value)) = &self.answer
                    && *answered == op
                {
                    self.plans.entry(plan).or_default().values.insert(id, value.clone());
                }
            }
            Action::Render(plan, spec, got) => {
                if let Some(held) = self.plans.get_mut(&plan) {
                    held.values.retain(|id, _| got.contains(id));
                }
                let result = self.render(&plan, &spec);
                self.feed(Event::Rendered(plan, result), now);
            }
            Action::Swap { plan, callers, carried, .. } => {
                self.carry(&plan, &carried);
                let outcome = self.swap(&plan, &callers);
                self.feed(Event::Swapped(plan, outcome), now);
            }
            Action::Answer { calls, answer, deliver, report, .. } => {
                let files = deliver
                    .as_ref()
                    .and_then(|plan| self.plans.get(plan))
                    .and_then(|held| held.rendered.clone());
                let mut delivered = false;
                for call in calls {
                    if self.calls.remove(&call) {
                        delivered = true;
                        self.answered.push((call, answer.clone().map(drop)));
                    }
                }
                if delivered && let (Some(files), Some(plan)) = (files, deliver) {
                    self.put(&plan.key, files);
                }
                if let Some(plan) = report {
                    self.feed(Event::Answered(plan, delivered), now);
                }
            }
            Action::Keep(plan, hold) => {
                let mut values = self.values.remove(&plan.key).unwrap_or_default();
                if let Some(held) = self.plans.remove(&plan) {
                    values.extend(held.values);
                }
                values.retain(|id, _| hold.contains(id));
                if !values.is_empty() {
                    self.values.insert(plan.key, values);
                }
            }
            Action::Discard(plan) => {
                self.plans.remove(&plan);
            }
            Action::Forget(key) => {
                self.forget(&key);
                self.identities.remove(&key);
            }
            Action::ForgetSession(id) => {
                self.sessions.remove(&id);
                if let Some(journal) = &mut self.journal {
                    journal.sessions.remove(&id);
                }
            }
            Action::Note(key, note) => self.notes.push((key, note)),
        }
    }

    fn perform(&mut self, op: OpId, lane: Lane, request: Request) {
        let held = |id: &SessionId| self.sessions.get(id).copied();
        let gone = || error(FailureClass::LeaseGone);
        let call = match request {
            Request::Login { token_of, .. } => {
                let token = self.tokens.get(&token_of).copied();
                token.map(Call::Login).ok_or_else(|| Outcome::LoggedIn(Err(error(FailureClass::Denied))))
            }
            Request::Fetch { session, request } => held(&session)
                .map(|token| Call::Fetch(token, request))
                .ok_or_else(|| Outcome::Fetched(Err(gone()))),
            Request::RenewSession(id) => {
                held(&id).map(Call::RenewSession).ok_or_else(|| Outcome::Renewed(Err(gone())))
            }
            Request::RenewLease(id, lease) => held(&id)
                .map(|token| Call::RenewLease(token, lease))
                .ok_or_else(|| Outcome::Renewed(Err(gone()))),
            Request::RevokeSession(id) => held(&id).map(Call::RevokeSession).ok_or(Outcome::Revoked(Ok(()))),
            Request::RevokeLease(id, lease) => {
                held(&id).map(|token| Call::RevokeLease(token, lease)).ok_or(Outcome::Revoked(Ok(())))
            }
        };
        match call {
            Ok(call) => self.out.push((op, lane, call)),
            Err(outcome) => {
                if outcome.error().is_some() {
                    self.defect = Some("a request in a session, or with a token, that is not held".into());
                }
                self.impossible.push((op, outcome));
            }
        }
    }

    fn render(&mut self, plan: &PlanId, spec: &VolumeSpec) -> Result<Vec<(String, String)>, String> {
        let mut values = self.values.get(&plan.key).cloned().unwrap_or_default();
        if let Some(held) = self.plans.get(plan) {
            values.extend(held.values.iter().map(|(id, value)| (*id, value.clone())));
        }
        let ids: BTreeSet<DependencyId> = spec.requests().into_keys().collect();
        if let Some(missing) = ids.iter().find(|id| !values.contains_key(id)) {
            self.defect =
                Some(format!("{}: value {missing:?} of a plan is not held at its render", plan.key));
            return Err("a value is missing".into());
        }
        let mut content = Values::new();
        let mut versions = Vec::new();
        for object in &spec.objects {
            let name = object.name().to_owned();
            let shown: Vec<_> = object.requests().map(|request| request.id()).collect();
            let text: Vec<String> = shown.iter().map(|id| format!("{:?}", values[id].content)).collect();
            content.extend(shown.into_iter().map(|id| ((name.clone(), id), values[&id].clone())));
            versions.push((name, text.join(" ")));
        }
        self.plans.entry(plan.clone()).or_default().rendered = Some(content);
        Ok(versions)
    }

    /// What is not rendered is taken from the disk.
    fn carry(&mut self, plan: &PlanId, carried: &[Object]) {
        let disk = self.disks.get(&plan.key).and_then(|disk| disk.content.as_ref());
        let Some(rendered) = self.plans.get_mut(plan).and_then(|held| held.rendered.as_mut()) else { return };
        for ((name, id), value) in disk.into_iter().flatten() {
            if carried.iter().any(|object| object.name() == name) {
                rendered.insert((name.clone(), *id), value.clone());
            }
        }
    }

    fn swap(&mut self, plan: &PlanId, callers: &[CallId]) -> SwapOutcome {
        if !callers.is_empty() && !callers.iter().any(|call| self.calls.contains(call)) {
            return SwapOutcome::Unwanted;
        }
        let Some(values) = self.plans.get(plan).and_then(|held| held.rendered.clone()) else {
            return SwapOutcome::Failed("what was rendered is not held any more".into());
        };
        let Some(identity) = self.identities.get(&plan.key).copied() else { return SwapOutcome::Gone };
        match self.disks.get(&plan.key) {
            Some(disk) if disk.mount != identity => return SwapOutcome::Gone,
            None => return SwapOutcome::Gone,
            Some(disk) if disk.unpublishing => return SwapOutcome::Unpublishing,
            Some(disk) if disk.full => return SwapOutcome::Failed("no space left on device".into()),
            Some(_) => {}
        }
        let changed = self.put(&plan.key, values);
        let version_dir = self.disks[&plan.key].version_dir.clone().unwrap_or_default();
        SwapOutcome::Done { version_dir, changed }
    }

    fn put(&mut self, key: &VolumeKey, values: Values) -> bool {
        let disk = self.disks.entry(key.clone()).or_default();
        if disk.content.as_ref() == Some(&values) {
            return false;
        }
        self.versions += 1;
        disk.version_dir = Some(format!("..v{}", self.versions));
        let old = disk.content.replace(values.clone());
        self.swaps.push(Swap { key: key.clone(), old, new: values });
        true
    }
}

fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned>(record: &T) -> T {
    let text = serde_json::to_string(record).expect("a record is JSON");
    serde_json::from_str(&text).expect("a record reads back as it was written")
}
