//! The one task that owns every volume of the node: it feeds events to the core, performs its actions in
//! order, and keeps the record one step ahead of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use deliver::RenderOutcome;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tracing::{debug, error, info, warn};

use super::{
    Change, Command, FailureKind, MountAnswer, MountCommand, MountFailure, Observer, Targets, Transition,
    VolumeKey, VolumeManager,
    execute::{self, Job, Outcome},
    gauges,
    holdings::{HeldSession, Holdings},
    journal::{Journal, Restored},
    queue::{FairQueue, Place},
    report,
    specs::Specs,
};
use crate::{
    backend::{Operation, Secret, SecretBackend},
    clock::{boot_now, wall_now},
    lifecycle::{
        Event, Lifecycle,
        message::{
            Action, CallId, Digest, Fetched, Lane, Mount, Note, OpId, PlanId, SwapOutcome, TokenTimes,
        },
        volume::Mode,
    },
    metrics::Metrics,
    projection::{
        mounts::{MountTable, MountWatch},
        target::{self, MountIdentity},
    },
    render::DigestKey,
};

mod deliver;
mod look;

/// The worker looks around at least this often, whatever is due.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// So much more time than slept means a suspend or a stall.
const JUMP: Duration = Duration::from_secs(5);
/// A burst of mount table changes is one look: a node that starts fifty pods changes it hundreds of times.
const SETTLE: Duration = Duration::from_millis(100);
/// An unmount is acted on within two seconds, whatever else changes the table.
const LONGEST_SETTLE: Duration = Duration::from_secs(1);
/// EX_SOFTWARE of sysexits.h.
const EXIT_DEFECT: i32 = 70;
/// The gauges are brought level with a change within this time: a burst of changes is counted once.
const GAUGES: Duration = Duration::from_secs(1);

/// What the worker is started with.
pub struct Settings {
    /// Where the volumes are.
    pub targets: Targets,
    /// The node's digest key.
    pub digest_key: [u8; 32],
    /// Seed of the jitter.
    pub seed: u64,
    /// Told of every change of content.
    pub changes: Option<mpsc::UnboundedSender<Change>>,
    /// Who else is told of transitions.
    pub observer: Option<Observer>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("targets", &self.targets).finish_non_exhaustive()
    }
}

/// The worker's state.
pub(super) struct Worker<B> {
    core: Lifecycle,
    backend: Arc<B>,
    journal: Journal,
    holdings: Holdings,
    specs: Specs,
    digest_key: DigestKey,
    targets: Targets,
    changes: Option<mpsc::UnboundedSender<Change>>,
    /// Who waits until everything is given back.
    releasing: Option<oneshot::Sender<()>>,
    metrics: Arc<Metrics>,
    observer: Option<Observer>,
    identities: BTreeMap<VolumeKey, MountIdentity>,
    calls: BTreeMap<CallId, oneshot::Sender<Result<MountAnswer, MountFailure>>>,
    commands: mpsc::Receiver<Command>,
    mounts: Option<MountWatch>,
    queue: FairQueue<(OpId, Job, Operation)>,
    in_flight: JoinSet<(OpId, Place, Operation, Instant, Outcome)>,
    /// Templates and keystores in work, beside the worker's thread.
    rendering: JoinSet<(PlanId, RenderOutcome)>,
    last_call: u64,
    /// When the mount table is looked at next, whatever wakes us.
    look_at: Instant,
    /// How long the last look took.
    look_cost: Duration,
    /// Found at the start, or given up since; some may be managed by now.
    unmanaged: BTreeSet<VolumeKey>,
    /// When the gauges are due.
    gauges_at: Option<Instant>,
}

impl<B: SecretBackend> Worker<B> {
    pub(super) fn start(
        settings: Settings,
        backend: Arc<B>,
        journal: Journal,
        metrics: Arc<Metrics>,
    ) -> VolumeManager {
        let (sender, commands) = mpsc::channel(1024);
        let mounts = settings.targets.kubelet_root().and_then(|_| {
            MountWatch::open()
                .inspect_err(|error| {
                    error!(%error, "cannot watch the mount table: unmounts are seen within 30 s only");
                })
                .ok()
        });
        let mut worker = Self {
            core: Lifecycle::new(settings.seed),
            backend,
            journal,
            holdings: Holdings::default(),
            specs: Specs::default(),
            digest_key: DigestKey::new(&settings.digest_key),
            targets: settings.targets,
            changes: settings.changes,
            releasing: None,
            metrics,
            observer: settings.observer,
            identities: BTreeMap::new(),
            calls: BTreeMap::new(),
            commands,
            mounts,
            queue: FairQueue::new(),
            in_flight: JoinSet::new(),
            rendering: JoinSet::new(),
            last_call: 0,
            // What was mounted before us is found by the first look.
            look_at: Instant::now(),
            look_cost: Duration::ZERO,
            unmanaged: BTreeSet::new(),
            gauges_at: Some(Instant::now()),
        };
        worker.restore();
        let task = tokio::spawn(worker.run());
        tokio::spawn(async move {
            if let Err(failure) = task.await
                && failure.is_panic()
            {
                // A process without its worker would refuse every pod for ever; a new one takes everything up
                // from the journal.
                error!("a defect in leasehold ended the worker: exiting to be started anew");
                std::process::exit(EXIT_DEFECT);
            }
        });
        VolumeManager { commands: sender }
    }

    /// Brings back what a former process of this boot left: no login, no request, no rewrite.
    fn restore(&mut self) {
        let Restored { volumes, sessions } = self.journal.restore();
        let count = (volumes.len(), sessions.len());
        let mut restored = Vec::new();
        let mut gone = Vec::new();
        for (key, mut volume, identity, token) in volumes {
            self.specs.share_all(&mut volume);
            let inspection = match volume.mode {
                Mode::ProviderWritten => self
                    .targets
                    .kubelet_root()
                    .map_or(Ok(()), |root| target::validate_target_path(root, key.path()).map(drop))
                    .and_then(|()| self.targets.inspect(key.path()))
                    .inspect_err(|error| {
                        info!(volume = %key, error = crate::telemetry::chain(error), "a volume on record is gone");
                    })
                    .ok(),
                Mode::DriverWritten => None,
            };
            let same_mount = inspection.as_ref().map(|found| found.identity) == identity;
            if volume.mode == Mode::ProviderWritten && (identity.is_none() || !same_mount) {
                gone.push(key.clone());
            }
            if let Some(identity) = identity {
                self.identities.insert(key.clone(), identity);
            }
            if let Some(token) = token {
                self.holdings.tokens.insert(key.clone(), token);
            }
            restored.push((key, volume, inspection.and_then(|found| found.data)));
        }
        let mut records = Vec::new();
        for (id, session, held) in sessions {
            self.holdings.sessions.insert(id, held.0);
            records.push((id, session));
        }
        let now = boot_now();
        self.core.restore(restored, records, now);
        for key in gone {
            self.feed(Event::Unmounted(key));
        }
        self.settle();
        if let Some((root, table)) = self.targets.kubelet_root().zip(MountTable::read().ok()) {
            self.unmanaged = report::unmanaged(&self.core, &table, root);
        }
        if count != (0, 0) {
            info!(volumes = count.0, sessions = count.1, "taken up from the journal");
        }
    }

    async fn run(mut self) {
        let mut last = boot_now();
        loop {
            self.settle();
            self.dispatch();
            self.publish();
            if self.core.sessions().is_empty()
                && let Some(released) = self.releasing.take()
            {
                let _ = released.send(());
            }
            let now = boot_now();
            let due = self.core.poll_timeout().map_or(LONGEST_SLEEP, |at| now.until(at)).min(LONGEST_SLEEP);
            let shell = self.gauges_at.map_or(self.look_at, |at| at.min(self.look_at));
            let due = due.min(shell.saturating_duration_since(Instant::now()));
            let changed = async {
                match &mut self.mounts {
                    // Its events are a hint; the look itself is taken once things settle.
                    Some(mounts) => mounts.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                Some(joined) = self.in_flight.join_next() => match joined {
                    Ok((op, place, operation, started, outcome)) => {
                        self.queue.give_back(&place);
                        self.ended(op, operation, started.elapsed(), outcome);
                    }
                    Err(error) => error!(%error, "a request's task was lost"),
                },
                Some(joined) = self.rendering.join_next() => match joined {
                    Ok((plan, outcome)) => self.rendered(plan, outcome),
                    Err(error) => error!(%error, "a rendering was lost"),
                },
                changed = changed => match changed {
                    Ok(()) => {
                        // A look at thousands of volumes may not fill the time between two looks.
                        let settle = SETTLE.max(self.look_cost * 10).min(LONGEST_SETTLE);
                        self.look_at = self.look_at.min(Instant::now() + settle);
                    }
                    Err(error) => {
                        error!(%error, "the watch of the mount table ended: unmounts are seen within 30 s only");
                        self.mounts = None;
                    }
                },
                () = tokio::time::sleep(due) => {}
            }
            let woke = boot_now();
            if woke.since(last) > LONGEST_SLEEP + JUMP {
                info!(seconds = woke.since(last).as_secs(), "time jumped: checking everything that came due");
                self.feed(Event::TimeJumped);
            }
            last = woke;
            if self.look_at <= Instant::now() {
                let began = Instant::now();
                self.look_at = began + LONGEST_SLEEP;
                self.look();
                self.look_cost = began.elapsed();
            }
            self.guard("timers", None, |worker| worker.core.handle_timeout(woke));
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Mount(mount, reply) => self.mount(*mount, reply),
            Command::Forget(key) => self.feed(Event::Unmounted(key)),
            Command::Release(reply) => {
                self.releasing = Some(reply);
                let now = boot_now();
                self.guard("the release", None, |worker| worker.core.release(now));
            }
            Command::List(reply) => {
                let _ = reply.send(report::report(&self.core, self.unmanaged(), boot_now()));
            }
            Command::Ping(reply) => {
                let _ = reply.send(());
            }
            Command::Refresh(selector, reply) => {
                let keys: Vec<VolumeKey> = self
                    .core
                    .volumes()
                    .iter()
                    .filter(|(_, volume)| selector.matches(&volume.pod))
                    .map(|(key, _)| key.clone())
                    .collect();
                let count = keys.len();
                for key in keys {
                    self.feed(Event::Refresh(Some(key)));
                }
                let _ = reply.send(count);
            }
        }
    }

    fn mount(&mut self, command: MountCommand, reply: oneshot::Sender<Result<MountAnswer, MountFailure>>) {
        let key = command.key.clone();
        let now = boot_now();
        let (mode, intact) = match self.look_at_target(&key) {
            Ok(seen) => seen,
            Err(failure) => {
                let _ = reply.send(Err(failure));
                return;
            }
        };
        let plan = command.plan.and_then(|spec| match mode {
            Mode::DriverWritten if spec.objects.iter().any(|object| object.owner.is_some()) => {
                Err(MountFailure::new(
                    FailureKind::FailedPrecondition,
                    "fileOwner and fileGroup need volumes that leasehold writes itself, and this node's are \
                     driver-written: mount the kubelet's pods folder with mountPropagation HostToContainer",
                ))
            }
            _ => Ok(spec),
        });
        let installed = self.core.volumes().get(&key).and_then(|volume| volume.installed.as_ref());
        // What a live volume asks for already is not kept.
        let asked = installed.is_some_and(|installed| installed.digest == command.attributes_digest);
        let plan = if asked { plan } else { plan.map(|spec| self.specs.share(spec)) };
        let token = match command.token {
            Ok(token) => {
                let wall = wall_now();
                let times = TokenTimes {
                    issued: token.issued_at.map_or(now, |at| execute::on_boot_clock(at, wall, now)),
                    expires: token.expires_at.map(|at| execute::on_boot_clock(at, wall, now)),
                };
                let uid = token.service_account_uid.clone();
                let older =
                    self.holdings.tokens.get(&key).is_some_and(|held| held.issued_at > token.issued_at);
                if !older {
                    self.holdings.tokens.insert(key.clone(), token);
                }
                Ok((times, uid))
            }
            Err(failure) => Err(failure),
        };
        self.last_call += 1;
        let call = CallId(self.last_call);
        self.calls.insert(call, reply);
        let deadline = now + command.deadline.saturating_duration_since(Instant::now());
        let mount = Mount {
            call,
            key: key.clone(),
            pod: command.pod,
            provider: command.provider,
            class: command.class,
            mode,
            plan,
            digest: command.attributes_digest,
            token,
            intact,
            deadline,
        };
        self.feed(Event::Mount(Box::new(mount)));
        if !self.core.volumes().contains_key(&key) {
            self.holdings.forget(&key);
        }
    }

    fn ended(&mut self, op: OpId, operation: Operation, took: Duration, outcome: Outcome) {
        let class = match &outcome {
            Outcome::LoggedIn(_, result) => result.as_ref().err().map(|error| error.class),
            Outcome::Fetched(result) => result.as_ref().err().map(|error| error.class),
            Outcome::Renewed(result) => result.as_ref().err().map(|error| error.class),
            Outcome::Revoked(result) => result.as_ref().err().map(|error| error.class),
        };
        self.metrics.requested(operation, class, took);
        let event = match outcome {
            Outcome::LoggedIn(id, result) => Event::LoggedIn(
                op,
                result.map(|grant| {
                    let held = HeldSession { token: grant.token, accessor: Arc::from(grant.accessor) };
                    self.holdings.sessions.insert(id, held);
                    (grant.terms, grant.since)
                }),
            ),
            Outcome::Fetched(result) => Event::Fetched(
                op,
                result.map(|secret| {
                    let fetched = self.fetched(&secret);
                    for warning in &secret.warnings {
                        debug!(%warning, "the server warns");
                    }
                    self.holdings.answer = Some((op, secret));
                    fetched
                }),
            ),
            Outcome::Renewed(result) => Event::Renewed(op, result),
            Outcome::Revoked(result) => Event::Revoked(op, result),
        };
        self.feed(event);
        self.settle();
        self.holdings.answer = None;
    }

    fn fetched(&self, secret: &Secret) -> Fetched {
        Fetched {
            digest: Digest(self.digest_key.digest(secret)),
            lease: secret.lease.clone(),
            lifetime: secret.lifetime,
            kv_version: secret.kv_version,
            since: secret.since,
        }
    }

    /// Hands an event to the core. A panic there costs the volume it was about, and no other.
    fn feed(&mut self, event: Event) {
        let key = self.core.volume_of(&event);
        let now = boot_now();
        self.guard("an event", key, |worker| worker.core.handle(event, now));
    }

    fn guard(&mut self, doing: &str, key: Option<VolumeKey>, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_ok() {
            return;
        }
        self.metrics.panicked();
        match key {
            Some(key) => {
                error!(volume = %key, doing, "a defect in leasehold: the volume is left as it is until its next Mount");
                let now = boot_now();
                if catch_unwind(AssertUnwindSafe(|| self.core.quarantine(&key, now))).is_err() {
                    error!(volume = %key, "a defect in leasehold: giving the volume up failed too");
                }
                self.unmanaged.insert(key);
            }
            None => error!(doing, "a defect in leasehold"),
        }
    }

    /// Performs what the core decided until it has nothing more to say.
    fn settle(&mut self) {
        loop {
            let Some(action) = self.core.poll_action() else {
                self.record();
                break;
            };
            if needs_record(&action) {
                self.record();
            }
            self.act(action);
        }
    }

    /// Brings the journal level with the core.
    fn record(&mut self) {
        let dirty = self.core.take_dirty();
        if !dirty.sessions.is_empty() || !dirty.volumes.is_empty() {
            self.gauges_at.get_or_insert_with(|| Instant::now() + GAUGES);
        }
        for id in dirty.sessions {
            let held = self.core.sessions().get(&id).zip(self.holdings.sessions.get(&id));
            self.journal.session(id, held);
        }
        for key in dirty.volumes {
            let volume =
                self.core.volumes().get(&key).map(|volume| {
                    (volume, self.identities.get(&key).copied(), self.holdings.tokens.get(&key))
                });
            self.journal.volume(&key, volume);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Perform(op, lane, request) => {
                let operation = execute::operation(&request);
                let job = execute::prepare(&self.core, &self.holdings, lane, request);
                let namespace = job.namespace().to_owned();
                self.queue.push(lane, &namespace, (op, job, operation));
            }
            Action::Supply(op, plan, dependency) => self.holdings.supply(op, plan, dependency),
            Action::Render(plan, spec, got) => self.render(plan, spec, &got),
            Action::Swap { plan, previous, unchanged, callers, carried } => {
                let outcome = self.swap(&plan, previous.as_deref(), unchanged, &callers, &carried);
                if let SwapOutcome::Done { changed: true, .. } = &outcome {
                    self.announce(&plan.key);
                }
                self.feed(Event::Swapped(plan, outcome));
            }
            Action::Answer { calls, answer, deliver, report, clock } => {
                self.answer(calls, answer, deliver, report, clock);
            }
            Action::Keep(plan, hold) => self.holdings.keep(&plan, &hold),
            Action::Discard(plan) => {
                self.holdings.plans.remove(&plan);
            }
            Action::Forget(key) => {
                self.holdings.forget(&key);
                self.identities.remove(&key);
            }
            Action::ForgetSession(id) => {
                self.holdings.sessions.remove(&id);
                self.journal.session(id, None);
            }
            Action::Note(key, note) => self.tell(key.as_ref(), &note),
        }
    }

    /// Volumes that nobody manages now.
    fn unmanaged(&self) -> impl Iterator<Item = &VolumeKey> {
        self.unmanaged.iter().filter(|key| !self.core.volumes().contains_key(key))
    }

    /// Brings the gauges level.
    fn publish(&mut self) {
        let (foreground, background) = self.queue.depth();
        self.metrics.queued(Lane::Foreground, foreground);
        self.metrics.queued(Lane::Background, background);
        if self.gauges_at.is_some_and(|at| at <= Instant::now()) {
            self.gauges_at = None;
            self.metrics.observed(gauges::snapshot(&self.core, self.unmanaged().count(), boot_now()));
        }
    }

    /// Starts what may start.
    fn dispatch(&mut self) {
        while let Some((place, (op, job, operation))) = self.queue.pop() {
            let backend = Arc::clone(&self.backend);
            self.in_flight.spawn(async move {
                let started = Instant::now();
                let (op, outcome) = execute::run(backend, op, job).await;
                (op, place, operation, started, outcome)
            });
        }
    }

    fn tell(&self, key: Option<&VolumeKey>, note: &Note) {
        let volume = key.and_then(|key| self.core.volumes().get(key));
        let pod = volume.map(|volume| format!("{}/{}", volume.pod.namespace, volume.pod.name));
        let (pod, class) = (pod.as_deref(), volume.map(|volume| volume.class.as_str()));
        let next = key
            .and_then(|key| self.core.next_action(key))
            .map(|(at, what)| format!("{what} in {} s", boot_now().until(at).as_secs()));
        self.metrics.noted(note);
        if let (Some(observer), Some((key, volume))) = (&self.observer, key.zip(volume)) {
            observer(&Transition { key, pod: &volume.pod, class: &volume.class, note });
        }
        match note {
            Note::Failing { .. }
            | Note::EditRejected(_)
            | Note::Refused(_)
            | Note::LeftToExpire { .. }
            | Note::Silent { .. }
            | Note::LongTtl(_)
            | Note::Unrevocable => warn!(pod, class, next, "{note}"),
            Note::Expired(_) => error!(pod, class, next, "{note}"),
            Note::Renewed { .. } => debug!(pod, class, next, "{note}"),
            Note::Mounted { .. } | Note::Rewritten { .. } | Note::Revoked(_) | Note::Unmounted => {
                info!(pod, class, next, "{note}");
            }
        }
    }
}

/// Whether what the core changed must be on record before it: what is done in memory alone dies with it.
const fn needs_record(action: &Action) -> bool {
    !matches!(
        action,
        Action::Supply(..) | Action::Render(..) | Action::Keep(..) | Action::Discard(_) | Action::Note(..)
    )
}
