//! Whole node-days of the core in virtual time: the real [`Lifecycle`] between a model of the server, of the
//! shell and of the kubelet with its driver. Everything follows from a seed.
//!
//! The invariants of the design are checked all the time (`audit`); the first that breaks ends the run with
//! its trace. `LEASEHOLD_SEED=n cargo test --lib simulator_replay -- --nocapture` replays one, and with
//! `LEASEHOLD_TRACE=n` shows its last n lines.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use audit::Audit;
use node::{Disk, Node};
use server::{AccountToken, Call, Endpoint, Engine, Outcome, Role, Server};

use super::{
    Op,
    backoff::Jitter,
    message::{CallId, Fetched, Lane, Mount, OpId},
    session::SessionId,
    volume::Mode,
};
use crate::{
    clock::BootTime,
    lifecycle::{
        Event,
        failure::{FailureKind, MountFailure},
        key::VolumeKey,
    },
    spec::{
        ApiPath, Connection, FileMode, LoginSpec, Object, ObjectPath, PodIdentity, ProviderName,
        SecretRequest, TlsSpec, VolumeSpec,
        object::{Method, Output, Part, Source, TemplateCall, TemplateSource},
        origin::Origin,
    },
};

pub(crate) mod audit;
pub(crate) mod fleet;
pub(crate) mod node;
pub(crate) mod plan;
pub(crate) mod server;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// When a simulated day begins: not at zero, where differences saturate.
pub(crate) const DAWN: BootTime = BootTime::from_millis(1_000_000_000);

pub(crate) fn at(after: Duration) -> BootTime {
    DAWN + after
}

/// A fault, set or cleared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    Down(bool),
    BlackHole(bool),
    AnswersLost(bool),
    Sealed(bool),
    Throttled(Option<Duration>),
    Garbled(bool),
    BadRenewals(bool),
    DatabaseDown(bool),
    ReviewBroken(bool),
    Lag(Duration),
    Slow(Duration),
    Deleted(String, bool),
    Denied(String, bool),
    /// A role's maximum TTL is cut for tokens to come.
    AccountDeleted(usize),
    LoseToken(u64),
    LoseLease(u64),
    LostStorage,
    Snapshot(Duration),
    Write(String),
    /// kill -9 after so many steps; the process is back after so long.
    Kill(u32, Duration),
    /// The machine starts anew and is back after so long.
    Reboot(Duration),
    Suspend(Duration),
    Full(bool),
    /// The driver passes no ServiceAccount token.
    TokenMissing(bool),
    /// The driver calls no more, or again.
    Republish(bool),
    Edit(usize, Edit),
    Refresh,
    /// The pod ends, or starts.
    Stop(usize),
    Remount(usize),
}

/// What becomes of a SecretProviderClass.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Edit {
    Paths(Vec<String>),
    Invalid,
    /// Another audience, and so another identity.
    Audience(&'static str),
    /// Policy refuses the plan that runs.
    Refuse,
    Allow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodState {
    Waiting,
    Mounting,
    Running,
    Gone,
}

/// A pod with one volume, as the kubelet and the driver treat it.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) key: VolumeKey,
    pub(crate) identity: PodIdentity,
    pub(crate) account: usize,
    pub(crate) spec: Arc<VolumeSpec>,
    digest: [u8; 32],
    pub(crate) invalid: bool,
    pub(crate) refused: bool,
    pub(crate) mode: Mode,
    pub(crate) state: PodState,
    token: Option<AccountToken>,
    token_life: Duration,
    /// Between republishes; `None` when the driver's rotation is off.
    interval: Option<Duration>,
    failures: u32,
    /// How often a caller goes away before the answer, thousandths.
    impatient: u64,
    twice: bool,
    /// Stale kubelet timers are ignored.
    turn: u64,
    pub(crate) mounted_at: Option<BootTime>,
    calls: u32,
}

#[derive(Debug)]
enum Happening {
    Arrive { epoch: u32, op: OpId, session: Option<SessionId>, lane: Lane, call: Call, sent: BootTime },
    Answer { epoch: u32, op: OpId, session: Option<SessionId>, call: Call, outcome: Outcome },
    Kubelet(usize, u64),
    Leave(CallId),
    Overdue(u32, CallId),
    Look(VolumeKey, u64),
    PodFolderGone(VolumeKey),
    Detached(VolumeKey, u64),
    Fault(Fault),
    Restart,
    Tick,
}

/// One node with its server.
pub(crate) struct World {
    pub(crate) now: BootTime,
    pub(crate) server: Server,
    pub(crate) node: Node,
    pub(crate) pods: Vec<Pod>,
    pub(crate) audit: Audit,
    pub(crate) random: Jitter,
    queue: BTreeMap<(BootTime, u64), Happening>,
    sequence: u64,
    waiting: BTreeMap<CallId, (usize, bool)>,
    republish: bool,
    token_missing: bool,
    mounts: u64,
    digests: u64,
    trace: Option<VecDeque<String>>,
    /// The newest so many lines of it are kept.
    trace_lines: usize,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Wishes of a pod.
#[derive(Clone, Debug)]
pub(crate) struct PodSpec<'a> {
    pub(crate) account: usize,
    pub(crate) paths: Vec<&'a str>,
    pub(crate) mode: Mode,
    pub(crate) interval: Option<Duration>,
    pub(crate) token_life: Duration,
    pub(crate) start: Duration,
}

impl Default for PodSpec<'_> {
    fn default() -> Self {
        Self {
            account: 0,
            paths: vec!["secret/data/a"],
            mode: Mode::ProviderWritten,
            interval: Some(Duration::from_secs(75)),
            token_life: HOUR,
            start: Duration::ZERO,
        }
    }
}

impl World {
    /// A node with a fault-free server and no pods. `journalled`: kills are part of the day.
    pub(crate) fn new(seed: u64, journalled: bool) -> Self {
        let mut random = Jitter::new(seed);
        let node = Node::new(random.next_u64(), journalled);
        let mut world = Self {
            now: DAWN,
            server: Server::default(),
            node,
            pods: Vec::new(),
            audit: Audit::default(),
            random,
            queue: BTreeMap::new(),
            sequence: 0,
            waiting: BTreeMap::new(),
            republish: true,
            token_missing: false,
            mounts: 0,
            digests: 0,
            trace: None,
            trace_lines: 600,
        };
        world.schedule(DAWN + MINUTE, Happening::Tick);
        world
    }

    pub(crate) const fn journalled(&self) -> bool {
        self.node.journalled()
    }

    pub(crate) fn traced(&mut self) {
        let lines = std::env::var("LEASEHOLD_TRACE").ok().and_then(|text| text.parse().ok());
        self.trace_lines = lines.unwrap_or(self.trace_lines);
        self.trace = Some(VecDeque::new());
    }

    pub(crate) fn role(&mut self, role: Role) -> usize {
        self.server.roles.push(role);
        self.server.accounts.push(true);
        self.server.roles.len() - 1
    }

    pub(crate) fn serve(&mut self, path: &str, engine: Engine) {
        self.server
            .endpoints
            .insert(path.to_owned(), Endpoint { engine, deleted: false, denied: false, owner: None });
    }

    pub(crate) fn kv(&mut self, path: &str) {
        self.serve(path, Engine::Kv { versioned: path.contains("/data/"), writes: vec![DAWN] });
    }

    pub(crate) fn database(&mut self, path: &str, ttl: u64, max: u64) {
        let engine = Engine::Database { ttl: Duration::from_secs(ttl), max: Duration::from_secs(max) };
        self.serve(path, engine);
    }

    pub(crate) fn pod(&mut self, wishes: &PodSpec<'_>) -> usize {
        let index = self.pods.len();
        let uid = format!("00000000-0000-0000-0000-{index:012}");
        let path = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~csi/s/mount");
        self.digests += 1;
        self.pods.push(Pod {
            key: VolumeKey::new(path.into()),
            identity: PodIdentity {
                namespace: "team".into(),
                name: format!("pod-{index}"),
                uid,
                service_account: format!("sa{}", wishes.account),
            },
            account: wishes.account,
            spec: spec(wishes.account, &wishes.paths),
            digest: digest(self.digests),
            invalid: false,
            refused: false,
            mode: wishes.mode,
            state: PodState::Waiting,
            token: None,
            token_life: wishes.token_life,
            interval: wishes.interval,
            failures: 0,
            impatient: 0,
            twice: false,
            turn: 0,
            mounted_at: None,
            calls: 0,
        });
        self.schedule(at(wishes.start), Happening::Kubelet(index, 0));
        index
    }

    pub(crate) fn fault(&mut self, after: Duration, fault: Fault) {
        self.schedule(at(after), Happening::Fault(fault));
    }

    fn schedule(&mut self, at: BootTime, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), happening);
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() >= self.trace_lines {
                trace.pop_front();
            }
            let line = format!("{:>10.3} {}", self.now.since(DAWN).as_millis() as f64 / 1000.0, text());
            trace.push_back(line);
        }
    }

    pub(crate) fn trace(&self) -> String {
        self.trace.iter().flatten().map(|line| format!("{line}\n")).collect()
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound.max(1)
    }

    /// Runs until `after` the day began, or until an invariant breaks.
    pub(crate) fn run(&mut self, after: Duration) -> Result<(), String> {
        let end = at(after);
        loop {
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            let due = if self.node.dead { None } else { self.node.core.poll_timeout() };
            let Some(soonest) = next.into_iter().chain(due).min().filter(|at| *at <= end) else { break };
            if soonest > self.now {
                self.audit.idle_spins = 0;
            }
            self.now = self.now.max(soonest);
            self.audit.idle_spins += 1;
            if self.audit.idle_spins > 10_000 {
                return Err("I8: time stands still, a hot loop".into());
            }
            if due.is_some_and(|due| due <= self.now) && next.is_none_or(|next| next >= soonest) {
                self.node.timeout(self.now);
            } else if let Some((_, happening)) = self.queue.pop_first() {
                self.happen(happening);
            }
            self.collect();
            if let Some(broken) = self.audit.broken.take() {
                return Err(broken);
            }
        }
        self.now = self.now.max(end);
        Ok(())
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive { epoch, op, session, lane, call, sent } => {
                self.arrive(epoch, op, session, lane, &call, sent);
            }
            Happening::Answer { epoch, op, session, call, outcome } => {
                if epoch != self.node.epoch || self.node.dead {
                    self.server.orphan(Some(&call), &outcome);
                    return;
                }
                self.say(|| format!("answer {op:?} {}", brief(&outcome)));
                // A check whose value was replaced meanwhile is answered to nobody: no retry follows from it.
                let heard = match self.node.core.ops.get(&op) {
                    Some(Op::Check(check)) => {
                        let volume = self.node.core.volumes.get(&check.asker);
                        volume.and_then(|volume| volume.installed.as_ref()).is_some_and(|installed| {
                            installed.dependencies.get(&check.id).is_some_and(|known| known.op == Some(op))
                        })
                    }
                    _ => true,
                };
                self.audit.ended(op, heard && outcome.error().is_some(), self.now);
                let granted = outcome.clone();
                self.node.ended(op, session, outcome, self.now);
                // Killed between the answer and the record of it: for each kill one lease-free token cannot be given
                // back by anybody, or one lease before its session is.
                match granted {
                    Outcome::LoggedIn(Ok((_, _, token))) if self.node.dead && !self.node.recorded(token) => {
                        self.server.forsake(token);
                    }
                    Outcome::Fetched(Ok((Fetched { lease: Some(lease), .. }, _)))
                        if self.node.dead && !self.node.recorded_lease(&lease.id) =>
                    {
                        self.server.forsake_lease(&lease.id);
                    }
                    _ => {}
                }
            }
            Happening::Kubelet(pod, turn) => {
                if self.pods[pod].turn == turn {
                    self.kubelet(pod);
                }
            }
            Happening::Leave(call) => {
                self.node.calls.remove(&call);
            }
            Happening::Overdue(epoch, call) => {
                if epoch == self.node.epoch && self.node.calls.contains(&call) {
                    self.audit.broke(|| format!("I8: {call:?} was not answered by its deadline"));
                }
            }
            Happening::Look(key, mount) => {
                let gone = self.node.disks.get(&key).is_none_or(|disk| disk.mount != mount);
                let ours = self.node.core.volumes().get(&key);
                let ours = ours.is_some_and(|volume| volume.mounted && volume.mode == Mode::ProviderWritten);
                // The mount table shows a path, not which mount it is.
                if gone && ours && !self.node.disks.contains_key(&key) && !self.node.dead {
                    self.say(|| format!("unmounted {key}"));
                    self.node.feed(Event::Unmounted(key), self.now);
                }
            }
            Happening::PodFolderGone(key) => {
                if !self.node.dead {
                    self.node.feed(Event::PodGone(key), self.now);
                }
            }
            Happening::Detached(key, mount) => {
                if self.node.disks.get(&key).is_some_and(|disk| disk.mount == mount) {
                    self.node.disks.remove(&key);
                }
                let seen = self.now + Duration::from_millis(100 + self.below(200));
                self.schedule(seen, Happening::Look(key, mount));
            }
            Happening::Fault(fault) => self.strike(fault),
            Happening::Restart if !self.node.dead => {}
            Happening::Restart => {
                let seed = self.random.next_u64();
                self.say(|| "restart".into());
                self.node.restart(seed, self.now);
                self.audit.restarted(&self.node, self.now);
                // What was unmounted meanwhile is seen by the first look.
                let gone: Vec<_> = self
                    .node
                    .core
                    .volumes()
                    .iter()
                    .filter(|(key, volume)| {
                        volume.mode == Mode::ProviderWritten && !self.node.disks.contains_key(*key)
                    })
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in gone {
                    self.schedule(self.now + SECOND, Happening::Look(key, 0));
                }
            }
            Happening::Tick => {
                audit::walk(self);
                let next = self.now + MINUTE * 7 + Duration::from_millis(self.random.next_u64() % 360_000);
                self.schedule(next, Happening::Tick);
            }
        }
    }

    /// A request reaches the server.
    fn arrive(
        &mut self,
        epoch: u32,
        op: OpId,
        session: Option<SessionId>,
        lane: Lane,
        call: &Call,
        sent: BootTime,
    ) {
        let timeout = if lane == Lane::Foreground { Duration::from_secs(40) } else { MINUTE };
        audit::arriving(self, call);
        let hole = self.server.weather.black_hole;
        let outcome = self.server.serve(call, sent, self.now);
        audit::served(self, call, &outcome);
        let lost = self.server.weather.answers_lost && self.below(2) == 0;
        let slow = u64::try_from(self.server.weather.slow.as_millis()).unwrap_or(0);
        let wait = Duration::from_millis(1 + self.below(20) + self.below(slow + 1));
        let at = if hole || lost { sent + timeout } else { (self.now + wait).min(sent + timeout) };
        let outcome = if hole || lost || self.now + wait > sent + timeout {
            self.server.orphan(Some(call), &outcome);
            call.failed(server::error(crate::backend::FailureClass::Transient))
        } else {
            outcome
        };
        self.schedule(
            at.max(self.now),
            Happening::Answer { epoch, op, session, call: call.clone(), outcome },
        );
    }

    /// Moves what the node has to say into the world.
    fn collect(&mut self) {
        if let Some(defect) = self.node.defect.take() {
            self.audit.broke(|| defect);
        }
        loop {
            for (key, note) in std::mem::take(&mut self.node.notes) {
                self.say(|| format!("note {} {note}", key.map(|key| short(&key)).unwrap_or_default()));
                self.audit.noted(&note);
            }
            for swap in std::mem::take(&mut self.node.swaps) {
                self.say(|| {
                    format!(
                        "swap {} {:?}",
                        short(&swap.key),
                        swap.new.values().map(|v| &v.content).collect::<Vec<_>>()
                    )
                });
                audit::swapped(self, swap);
            }
            for (op, lane, call) in std::mem::take(&mut self.node.out) {
                let session = match self.node.core.ops.get(&op) {
                    Some(Op::Login(id)) => Some(*id),
                    _ => None,
                };
                self.say(|| format!("{lane:?} {op:?} {call:?}"));
                audit::asked(self, op, lane, &call);
                let delay = Duration::from_millis(1 + self.below(10));
                let (epoch, sent) = (self.node.epoch, self.now);
                self.schedule(self.now + delay, Happening::Arrive { epoch, op, session, lane, call, sent });
            }
            for (call, answer) in std::mem::take(&mut self.node.answered) {
                self.answered(call, answer);
            }
            let impossible = std::mem::take(&mut self.node.impossible);
            if impossible.is_empty() {
                break;
            }
            for (op, outcome) in impossible {
                self.node.ended(op, None, outcome, self.now);
            }
        }
        if self.node.dead && !self.audit.down {
            self.audit.down = true;
            self.waiting.clear();
            self.say(|| "killed".into());
            // The driver's calls fail with Unavailable: the mount stays, the kubelet tries again.
            for pod in 0..self.pods.len() {
                if self.pods[pod].state == PodState::Mounting {
                    self.retry(pod);
                }
            }
        }
    }

    fn answered(&mut self, call: CallId, answer: Result<(), MountFailure>) {
        let Some((pod, first)) = self.waiting.remove(&call) else { return };
        self.say(|| format!("answered pod {pod} {answer:?}"));
        let key = self.pods[pod].key.clone();
        match answer {
            Ok(()) => {
                let disk = self.node.disks.get(&key);
                if self.pods[pod].state != PodState::Gone && disk.is_none_or(|disk| disk.content.is_none()) {
                    self.audit.broke(|| format!("a Mount of {key} was answered OK without files"));
                }
                if first && self.pods[pod].state == PodState::Mounting {
                    self.pods[pod].state = PodState::Running;
                    self.pods[pod].failures = 0;
                    self.pods[pod].mounted_at = Some(self.now);
                    if let Some(interval) = self.pods[pod].interval {
                        let jitter = self.random.scale(interval, 900, 1100);
                        self.again(pod, jitter);
                    }
                }
            }
            // I11
            Err(failure) if !first && self.pods[pod].state == PodState::Running => {
                if disk_valid(self.node.disks.get(&key)) {
                    self.audit.broke(|| format!("I11: a republish of {key} failed: {failure}"));
                }
            }
            Err(_) => {
                if self.pods[pod].state == PodState::Mounting {
                    // The driver unmounts what it had mounted.
                    if self.pods[pod].mode == Mode::ProviderWritten {
                        self.detach(pod, false);
                    }
                    self.retry(pod);
                }
            }
        }
    }

    fn retry(&mut self, pod: usize) {
        let wait = Duration::from_millis(500) * 2_u32.pow(self.pods[pod].failures.min(8));
        self.pods[pod].failures += 1;
        self.again(pod, wait.min(Duration::from_secs(122)));
    }

    fn again(&mut self, pod: usize, wait: Duration) {
        self.pods[pod].turn += 1;
        let turn = self.pods[pod].turn;
        self.schedule(self.now + wait, Happening::Kubelet(pod, turn));
    }

    fn detach(&mut self, pod: usize, slowly: bool) {
        let key = self.pods[pod].key.clone();
        let Some(disk) = self.node.disks.get_mut(&key) else { return };
        let mount = disk.mount;
        if slowly {
            disk.unpublishing = true;
            disk.version_dir = None;
            let end = self.now + Duration::from_millis(200);
            self.schedule(end, Happening::Detached(key, mount));
        } else {
            self.happen(Happening::Detached(key, mount));
        }
    }

    /// The kubelet's turn with a pod: mount it, or publish again.
    fn kubelet(&mut self, pod: usize) {
        if self.pods[pod].state == PodState::Gone {
            return;
        }
        if self.pods[pod].state == PodState::Waiting {
            self.pods[pod].state = PodState::Mounting;
        }
        let first = self.pods[pod].state == PodState::Mounting;
        if !first && !self.republish {
            self.again(pod, MINUTE);
            return;
        }
        let key = self.pods[pod].key.clone();
        if !self.node.disks.contains_key(&key) {
            self.mounts += 1;
            self.node.disks.insert(key.clone(), Disk { mount: self.mounts, ..Disk::default() });
        }
        if self.node.dead {
            self.again(pod, 5 * SECOND);
            return;
        }
        if !self.server.accounts[self.pods[pod].account] && self.token_old(pod) {
            // No token can be requested for a ServiceAccount that is gone: the kubelet does not call.
            self.again(pod, MINUTE);
            return;
        }
        self.call(pod, first);
        // A process that the first call saw die takes no second one.
        if self.pods[pod].twice && self.below(4) == 0 && !self.node.dead {
            self.call(pod, first);
        }
        if !first {
            let interval = self.pods[pod].interval.unwrap_or(MINUTE);
            let wait = self.random.scale(interval, 900, 1100);
            self.again(pod, wait);
        }
    }

    fn token_old(&self, pod: usize) -> bool {
        let pod = &self.pods[pod];
        pod.token.is_none_or(|token| self.now.since(token.issued) >= pod.token_life * 4 / 5)
    }

    fn call(&mut self, index: usize, first: bool) {
        if self.token_old(index) {
            let pod = &mut self.pods[index];
            let expires = Some(self.now + pod.token_life);
            pod.token = Some(AccountToken { account: pod.account, issued: self.now, expires });
        }
        let pod = &mut self.pods[index];
        pod.calls += 1;
        let plan = if pod.refused {
            Err(MountFailure::new(FailureKind::PermissionDenied, "policy refuses it"))
        } else if pod.invalid {
            Err(MountFailure::new(FailureKind::InvalidArgument, "objects cannot be read"))
        } else {
            Ok(Arc::clone(&pod.spec))
        };
        let deadline = self.now + Duration::from_secs(90);
        let mount = Mount {
            call: CallId(0),
            key: pod.key.clone(),
            pod: pod.identity.clone(),
            provider: ProviderName::Leasehold,
            class: "class".into(),
            mode: pod.mode,
            plan,
            digest: pod.digest,
            token: Err(MountFailure::new(FailureKind::FailedPrecondition, "no token")),
            intact: true,
            deadline,
        };
        let mut mount = mount;
        let token = pod.token.filter(|_| !self.token_missing);
        if let Some(token) = token {
            let times = super::message::TokenTimes { issued: token.issued, expires: token.expires };
            mount.token = Ok((times, format!("uid-{}", pod.account)));
        }
        let impatient = pod.impatient;
        let quiet = audit::republish_is_free(&self.node, &mount);
        self.say(|| format!("Mount pod {index} first={first}"));
        let before = self.node.out.len();
        let call = self.node.mount(mount, token, self.now);
        if quiet && !self.node.dead && self.node.out.len() > before {
            self.audit.broke(|| format!("a republish of unchanged pod {index} made a request"));
        }
        self.waiting.insert(call, (index, first));
        // An answer may be here already, or never come.
        self.schedule(deadline + SECOND, Happening::Overdue(self.node.epoch, call));
        if self.below(1000) < impatient {
            let leaves = self.now + Duration::from_millis(self.below(20_000));
            self.schedule(leaves, Happening::Leave(call));
            self.again(index, leaves.since(self.now) + 2 * SECOND);
        }
    }

    /// What was given out is known to nobody any more; the kubelet starts its pods again.
    fn reboot(&mut self, back: Duration) {
        self.node.reboot();
        for token in self.server.tokens.values_mut() {
            token.orphan = true;
        }
        self.schedule(self.now + back, Happening::Restart);
        for pod in 0..self.pods.len() {
            if matches!(self.pods[pod].state, PodState::Running | PodState::Mounting) {
                self.pods[pod].state = PodState::Mounting;
                let wait = back + Duration::from_millis(self.below(30_000));
                self.again(pod, wait);
            }
        }
    }

    pub(crate) fn stop(&mut self, pod: usize) {
        if self.pods[pod].state == PodState::Gone {
            return;
        }
        let slowly = self.below(3) == 0;
        self.pods[pod].state = PodState::Gone;
        self.say(|| format!("pod {pod} ends"));
        self.detach(pod, slowly);
        let key = self.pods[pod].key.clone();
        self.schedule(self.now + 3 * SECOND, Happening::PodFolderGone(key));
    }

    fn strike(&mut self, fault: Fault) {
        self.say(|| format!("FAULT {fault:?}"));
        self.audit.fault(&fault, self.now);
        let weather = &mut self.server.weather;
        match fault {
            Fault::Down(on) => weather.down = on,
            Fault::BlackHole(on) => weather.black_hole = on,
            Fault::AnswersLost(on) => weather.answers_lost = on,
            Fault::Sealed(on) => weather.sealed = on,
            Fault::Throttled(after) => weather.throttled = after,
            Fault::Garbled(on) => weather.garbled = on,
            Fault::BadRenewals(on) => weather.bad_renewals = on,
            Fault::DatabaseDown(on) => weather.database_down = on,
            Fault::ReviewBroken(on) => weather.review_broken = on,
            Fault::Lag(lag) => weather.lag = lag,
            Fault::Slow(slow) => weather.slow = slow,
            Fault::Deleted(path, on) => {
                if let Some(endpoint) = self.server.endpoints.get_mut(&path) {
                    endpoint.deleted = on;
                }
            }
            Fault::Denied(path, on) => {
                if let Some(endpoint) = self.server.endpoints.get_mut(&path) {
                    endpoint.denied = on;
                }
            }
            Fault::AccountDeleted(account) => self.server.accounts[account] = false,
            Fault::LoseToken(nth) => {
                let live: Vec<u64> = self.server.live_tokens(self.now).map(|(id, _)| *id).collect();
                if !live.is_empty() {
                    let chosen = live[usize::try_from(nth).unwrap_or(0) % live.len()];
                    self.server.lose_tokens(self.now, |id, _| id == chosen);
                }
            }
            Fault::LoseLease(nth) => self.server.lose_lease(nth, self.now),
            Fault::LostStorage => self.server.lose_tokens(self.now, |_, _| true),
            Fault::Snapshot(age) => {
                let age = u64::try_from(age.as_millis()).unwrap_or(0);
                let then = BootTime::from_millis(self.now.as_millis() - age);
                self.server.restore_snapshot(then, self.now);
            }
            Fault::Write(path) => self.server.write(&path, self.now),
            Fault::Kill(steps, back) if steps < u32::MAX => {
                self.node.kill_after = Some(steps);
                self.schedule(self.now + back, Happening::Fault(Fault::Kill(u32::MAX, back)));
            }
            // Not enough steps came by: it dies here. Then it comes back.
            Fault::Kill(..) => {
                if !self.node.dead {
                    self.node.kill();
                }
                self.schedule(self.now + SECOND, Happening::Restart);
            }
            Fault::Suspend(long) => {
                self.now = self.now + long;
                self.shift(long);
                if !self.node.dead {
                    self.node.feed(Event::TimeJumped, self.now);
                }
            }
            Fault::Full(on) => {
                for disk in self.node.disks.values_mut() {
                    disk.full = on;
                }
            }
            Fault::Reboot(back) => self.reboot(back),
            Fault::TokenMissing(on) => self.token_missing = on,
            Fault::Republish(on) => self.republish = on,
            Fault::Refresh => {
                if !self.node.dead {
                    self.node.feed(Event::Refresh(None), self.now);
                }
            }
            Fault::Edit(pod, edit) => self.edit(pod, edit),
            Fault::Stop(pod) => self.stop(pod),
            Fault::Remount(pod) => {
                if self.pods[pod].state == PodState::Running {
                    self.pods[pod].state = PodState::Mounting;
                    self.detach(pod, false);
                    // Before the mount table was looked at, or after.
                    let wait = Duration::from_millis(20 + self.below(600));
                    self.again(pod, wait);
                }
            }
        }
    }

    /// What the server and the kubelet have under way waits for the node while it sleeps; other faults' times
    /// stand.
    fn shift(&mut self, long: Duration) {
        let old = std::mem::take(&mut self.queue);
        for ((at, sequence), happening) in old {
            let at = match &happening {
                Happening::Fault(_) | Happening::Tick => at,
                _ => at + long,
            };
            self.queue.insert((at, sequence), happening);
        }
    }

    fn edit(&mut self, pod: usize, edit: Edit) {
        self.digests += 1;
        let fresh = digest(self.digests);
        let account = self.pods[pod].account;
        let pod = &mut self.pods[pod];
        match edit {
            Edit::Paths(paths) => {
                pod.spec = spec(account, &paths.iter().map(String::as_str).collect::<Vec<_>>());
                pod.digest = fresh;
                pod.invalid = false;
            }
            Edit::Invalid => {
                pod.invalid = true;
                pod.digest = fresh;
            }
            Edit::Audience(audience) => {
                let mut spec = VolumeSpec::clone(&pod.spec);
                spec.login.audience = audience.into();
                pod.spec = Arc::new(spec);
                pod.digest = fresh;
            }
            Edit::Refuse => pod.refused = true,
            Edit::Allow => pod.refused = false,
        }
    }
}

fn disk_valid(disk: Option<&Disk>) -> bool {
    disk.is_some_and(|disk| disk.content.is_some() && !disk.unpublishing)
}

fn short(key: &VolumeKey) -> String {
    let path = key.path().display().to_string();
    path.split('/').nth(5).map(|uid| uid.trim_start_matches(['0', '-']).to_owned()).unwrap_or_default()
}

fn brief(outcome: &Outcome) -> String {
    match outcome {
        Outcome::LoggedIn(Ok((terms, _, token))) => format!("token {token} for {}s", terms.ttl.as_secs()),
        Outcome::Fetched(Ok((fetched, value))) => {
            format!("{:?} lease {:?}", value.content, fetched.lease.as_ref().map(|lease| &lease.id))
        }
        other => match other.error() {
            Some(error) => format!("{}", error.class),
            None => format!("{other:?}"),
        },
    }
}

pub(crate) fn digest(number: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn request(path: &str) -> SecretRequest {
    let issue = path.contains("/issue/");
    SecretRequest {
        method: if issue { Method::Put } else { Method::Get },
        args: issue.then(|| "{\"common_name\":\"a\"}".to_owned()),
        ..SecretRequest::read(ApiPath::parse(path).expect("the model's paths are canonical"))
    }
}

/// A volume that asks for every path; two keys of one credential are one request, and what `+` joins is shown
/// in one file.
pub(crate) fn spec(account: usize, paths: &[&str]) -> Arc<VolumeSpec> {
    let mut objects = Vec::new();
    for path in paths {
        let name = |key: &str| {
            ObjectPath::parse(&format!("{}-{key}", path.replace('/', "-")))
                .expect("the model's names are normal")
        };
        // One file of several answers.
        if path.contains('+') {
            let calls = path.split('+').map(|path| TemplateCall {
                path: path.to_owned(),
                args: BTreeMap::new(),
                request: request(path),
            });
            let template = TemplateSource {
                text: String::new(),
                delimiters: None,
                origin: Origin::Unknown,
                calls: calls.collect(),
            };
            objects.push(Object::new(Output::File(name("all")), Source::Template(template)));
            continue;
        }
        let request = request(path);
        let keys: &[&str] =
            if path.starts_with("database/creds") { &["username", "password"] } else { &["v"] };
        for key in keys {
            let part = Part::Key((*key).to_owned());
            objects.push(Object::new(
                Output::File(name(key)),
                Source::Secret { request: request.clone(), part },
            ));
        }
    }
    Arc::new(VolumeSpec {
        connection: Connection {
            address: "https://vault:8200".into(),
            namespace: String::new(),
            tls: TlsSpec::default(),
        },
        login: LoginSpec {
            method: Default::default(),
            mount: ApiPath::parse("kubernetes").expect("canonical"),
            role: format!("role{account}"),
            audience: "vault".into(),
        },
        objects,
        default_mode: FileMode::DEFAULT,
        pod: Default::default(),
    })
}
