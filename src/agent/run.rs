//! The agent from its start to its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::{
    signal::unix::{Signal as Stream, SignalKind, signal},
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tracing::{error, info, warn};

use super::{
    actions,
    children::Children,
    exec::Supervisor,
    mounter::{self, Mounter, Plan, Target},
    notify::Notifier,
    reach,
    settings::{Loaded, Settings},
    watch::InputWatch,
};
use crate::{
    admin::{self, Admin},
    backend::vault::{Limits, VaultBackend},
    clock::wall_now,
    control::Control,
    sandbox::{Confinement, seccomp::Profile},
    spec::agent::AgentFile,
    startup::Reporting,
    volume::{
        Change, Journal, MountFailure, Settings as Engine, Targets, VolumeKey, VolumeManager, VolumeReport,
    },
};

/// How long revoking may take at the end: a pod has 30 s until SIGKILL, unless it says otherwise.
const RELEASE: Duration = Duration::from_secs(20);
/// Waits between tries of a first render, doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Runs until told to stop, or until the first render with `--once`, or until the supervised process ends.
pub(super) async fn run(settings: Settings, confinement: &Confinement) -> anyhow::Result<ExitCode> {
    info!(version = env!("CARGO_PKG_VERSION"), "leasehold agent starts");
    settings.file.warnings.iter().for_each(|warning| warn!("{warning}"));
    for action in actions(&settings.file) {
        if let Err(reason) = Notifier::check(action, settings.allow_commands) {
            bail!("{reason}");
        }
    }
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let reporting = Reporting::default();
    reporting.readiness.block("folders", "not rendered yet");
    // Beside what it starts, it does without some of it by its nature.
    if let Some(shortfall) = confinement.shortfall().filter(|_| reach::profile(&settings) == Profile::Agent) {
        reporting.readiness.degrade("sandbox", shortfall);
    }
    let admin = match &settings.health_addr {
        None => None,
        Some(address) => {
            let listener = admin::bind(address)
                .await
                .with_context(|| format!("cannot listen on the health address {address}"))?;
            let (metrics, readiness) = (Arc::clone(&reporting.metrics), Arc::clone(&reporting.readiness));
            Some(tokio::spawn(Admin { metrics, readiness, liveness: Arc::default() }.serve(listener)))
        }
    };
    let (mut agent, control) = Agent::start(settings, &reporting)?;
    let ended = agent.live(&mut signals).await;
    if let Some(admin) = admin {
        admin.abort();
    }
    drop(control);
    ended
}

/// Signals as they concern us, or the process that we supervise.
struct Signals {
    terminate: Stream,
    interrupt: Stream,
    quit: Stream,
    hang_up: Stream,
    user1: Stream,
    user2: Stream,
    window: Stream,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.quit.recv() => Signal::SIGQUIT,
            _ = self.hang_up.recv() => Signal::SIGHUP,
            _ = self.user1.recv() => Signal::SIGUSR1,
            _ = self.user2.recv() => Signal::SIGUSR2,
            _ = self.window.recv() => Signal::SIGWINCH,
        }
    }
}

const fn ends(signal: Signal) -> bool {
    matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT)
}

/// What stands behind a refusal that is not of the files' own rights.
const CONFINED: &str = "; the agent is confined to the folders, and to the folders of the files, that it was started with: \
                        start it anew, or with --no-landlock";

struct Agent {
    settings: Settings,
    plan: Arc<Plan>,
    mounter: Arc<Mounter>,
    reporting: Reporting,
    children: Children,
    changes: mpsc::UnboundedReceiver<Change>,
    /// Object versions that the application knows of.
    known: BTreeMap<VolumeKey, BTreeMap<String, String>>,
    notifier: Notifier,
    supervisor: Option<Supervisor>,
    watch: InputWatch,
    /// Folders that may be on a disk.
    disk_backed: Arc<RwLock<BTreeSet<PathBuf>>>,
    /// What is wrong with the TLS files.
    tls_reason: Option<String>,
    /// Of the inputs as last read.
    fingerprint: [u8; 32],
}

impl Agent {
    fn start(settings: Settings, reporting: &Reporting) -> anyhow::Result<(Self, Control)> {
        let state = mounter::state(&settings.state_dir);
        let journal = Journal::open(&state)?;
        let digest_key = journal.digest_key(rand::random())?;
        let plan = Plan::new(&settings.file, &settings.pod, &state)?;
        let disk_backed = Arc::new(RwLock::new(on_disk(&plan, &settings.file, settings.disk_backed)));
        let (sender, changes) = mpsc::unbounded_channel();
        let engine = Engine {
            targets: Targets::Folders { disk_backed: Arc::clone(&disk_backed) },
            digest_key,
            seed: rand::random(),
            changes: Some(sender),
            observer: None,
        };
        let backend = Arc::new(VaultBackend::new(Limits::default()));
        let metrics = Arc::clone(&reporting.metrics);
        let manager = VolumeManager::start(engine, Arc::clone(&backend), journal, metrics);
        let control = Control::start(&state, manager.clone(), Arc::clone(&reporting.readiness))?;
        let children = Children::new().context("cannot listen for the ends of children")?;
        let readiness = Arc::clone(&reporting.readiness);
        let agent = Self {
            fingerprint: fingerprint(&settings),
            plan: Arc::new(plan),
            mounter: Arc::new(Mounter { manager, backend, readiness, keeper: Mutex::default() }),
            reporting: reporting.clone(),
            notifier: Notifier::new(children.clone()),
            children,
            changes,
            known: BTreeMap::new(),
            supervisor: None,
            watch: InputWatch::new(),
            disk_backed,
            tls_reason: None,
            settings,
        };
        Ok((agent, control))
    }

    async fn live(&mut self, signals: &mut Signals) -> anyhow::Result<ExitCode> {
        // What a former process left: the application knows it.
        for report in self.reports().await {
            self.knows(VolumeKey::new(report.target.into()), report.objects);
        }
        match self.first_render(signals).await {
            Ok(true) => {}
            Ok(false) => {
                self.release().await;
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => {
                self.release().await;
                return Err(error);
            }
        }
        if self.settings.once {
            crate::command::print(&self.farewell().await)?;
            return Ok(ExitCode::SUCCESS);
        }
        self.take_changes();
        if let Some(command) = self.settings.command.clone() {
            let exec = self.settings.file.exec.clone().unwrap_or_else(crate::spec::agent::Exec::plain);
            let folder = self.plan.variables.as_ref().map(|key| key.path().to_owned());
            match Supervisor::start(exec, command, folder, self.children.clone()) {
                Ok(supervisor) => self.supervisor = Some(supervisor),
                Err(error) => {
                    self.release().await;
                    return Err(error);
                }
            }
        }
        self.reporting.readiness.clear("folders");
        info!(folders = self.plan.targets.len(), "ready");
        let code = self.keep_true(signals).await;
        self.reporting.readiness.block("folders", "shutting down");
        self.release().await;
        info!("stopped");
        Ok(ExitCode::from(code))
    }

    /// Whether everything is in place; `false` when told to stop before.
    async fn first_render(&mut self, signals: &mut Signals) -> anyhow::Result<bool> {
        let mut wait = FIRST_WAIT;
        self.watch_inputs();
        loop {
            let (mounter, plan) = (Arc::clone(&self.mounter), Arc::clone(&self.plan));
            let mut mounting = std::pin::pin!(async move { mounter.mount(&plan).await });
            let failures = loop {
                tokio::select! {
                    failures = &mut mounting => break Some(failures),
                    // What is mended meanwhile is not waited for.
                    () = self.watch.changed() => if self.look().await { break None },
                    () = told_to_end(signals) => return Ok(false),
                }
            };
            let Some(failures) = failures else { continue };
            let Some((key, failure)) = failures.first() else { return Ok(true) };
            self.reporting.readiness.block("folders", format!("{key}: {failure}"));
            // The kubelet starts an init container again, with a back-off of its own and an event that shows.
            if self.settings.once || !failures.iter().all(|(_, failure)| mounter::may_pass(failure)) {
                bail!("{}", list(&failures));
            }
            error!(next = ?wait, "not rendered yet: {}", list(&failures));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.watch.changed() => {}
                () = told_to_end(signals) => return Ok(false),
            }
            wait = (wait * 2).min(LONGEST_WAIT);
            self.look().await;
        }
    }

    async fn keep_true(&mut self, signals: &mut Signals) -> u8 {
        let mut asking: JoinSet<Vec<(VolumeKey, MountFailure)>> = JoinSet::new();
        self.watch_inputs();
        loop {
            let supervised = async {
                match &mut self.supervisor {
                    Some(supervisor) => supervisor.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                code = supervised => return code,
                signal = signals.next() => match &mut self.supervisor {
                    Some(supervisor) if ends(signal) => {
                        supervisor.stop(signal);
                        return supervisor.ended().await;
                    }
                    Some(supervisor) => supervisor.pass(signal),
                    None if ends(signal) => {
                        info!(%signal, "told to stop");
                        return 0;
                    }
                    None if signal == Signal::SIGHUP => {
                        self.look().await;
                        self.ask(&mut asking);
                    }
                    None => {}
                },
                Some(change) = self.changes.recv() => self.changed(change),
                () = self.watch.changed() => {
                    self.look().await;
                    self.ask(&mut asking);
                }
                Some(answered) = asking.join_next() => match answered {
                    Ok(failures) if failures.is_empty() => self.reporting.readiness.clear("volumes"),
                    Ok(failures) => self.reporting.readiness.degrade("volumes", list(&failures)),
                    Err(error) => error!(%error, "asking for the volumes was lost"),
                },
            }
        }
    }

    /// A fresh token, an edit, files that somebody removed: whatever it is, asking brings it.
    fn ask(&self, asking: &mut JoinSet<Vec<(VolumeKey, MountFailure)>>) {
        let (mounter, plan) = (Arc::clone(&self.mounter), Arc::clone(&self.plan));
        asking.spawn(async move { mounter.mount(&plan).await });
    }

    /// Takes up what changed in the pod's files for us. Whether anything did.
    async fn look(&mut self) -> bool {
        let reloaded = self.reload().await;
        self.reload_tls().await || reloaded
    }

    async fn reload_tls(&mut self) -> bool {
        let Some(connection) = self.plan.connection() else { return false };
        let outcome = self.mounter.backend.reload_tls(connection).await;
        let reason = outcome.as_ref().err().cloned();
        match &outcome {
            Ok(true) => info!("the TLS files changed: connections use them from now on"),
            Ok(false) => {}
            Err(reason) if self.tls_reason.as_ref() != Some(reason) => {
                error!(reason, "the TLS files changed and cannot be used: connections keep the old ones");
                self.reporting.readiness.degrade("tls", reason.clone());
            }
            Err(_) => {}
        }
        if reason.is_none() {
            self.reporting.readiness.clear("tls");
        }
        self.tls_reason = reason;
        outcome == Ok(true)
    }

    /// Takes up what changed in our own files; what cannot be used changes nothing. Whether anything was taken up.
    async fn reload(&mut self) -> bool {
        let fingerprint = fingerprint(&self.settings);
        if fingerprint == self.fingerprint {
            return false;
        }
        self.fingerprint = fingerprint;
        let Settings { source, defaults, environment, .. } = &self.settings;
        let state = mounter::state(&self.settings.state_dir);
        let loaded = source.load(defaults, environment).and_then(|loaded| {
            for action in actions(&loaded.file) {
                Notifier::check(action, self.settings.allow_commands).map_err(anyhow::Error::msg)?;
            }
            let plan = Plan::new(&loaded.file, &loaded.pod, &state)?;
            Ok((loaded, plan))
        });
        let usable = loaded.is_ok();
        match loaded {
            Ok((Loaded { file, pod, texts, inputs }, plan)) => {
                info!("the configuration changed: taken up");
                self.reporting.readiness.clear("configuration");
                file.warnings.iter().for_each(|warning| warn!("{warning}"));
                for gone in self.plan.targets.iter().filter(|old| plan.target(&old.key).is_none()) {
                    info!(folder = %gone.key, "no longer configured: given up, its files stay");
                    self.mounter.manager.forget(gone.key.clone()).await;
                }
                *self.disk_backed.write().unwrap_or_else(PoisonError::into_inner) =
                    on_disk(&plan, &file, self.settings.disk_backed);
                self.settings.file = file;
                self.settings.pod = pod;
                self.settings.texts = texts;
                self.settings.inputs = inputs;
                self.plan = Arc::new(plan);
                self.watch_inputs();
            }
            Err(error) => {
                let mut reason = format!("{error:#}").replace('\n', "; ");
                let refused = |cause: &(dyn std::error::Error + 'static)| {
                    let cause = cause.downcast_ref::<std::io::Error>();
                    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
                };
                if error.chain().any(refused) {
                    reason.push_str(CONFINED);
                }
                error!(reason, "the configuration changed and cannot be used: the old one goes on");
                self.reporting.readiness.degrade("configuration", reason);
            }
        }
        // A file that the new text names may be another one.
        self.fingerprint = self::fingerprint(&self.settings);
        usable
    }

    fn watch_inputs(&mut self) {
        let files =
            self.settings.inputs.iter().cloned().chain(self.plan.credentials()).chain(self.plan.tls());
        self.watch.set(files.collect::<Vec<_>>());
    }

    fn take_changes(&mut self) {
        while let Ok(change) = self.changes.try_recv() {
            self.changed(change);
        }
    }

    fn knows(&mut self, key: VolumeKey, versions: Vec<(String, String)>) {
        self.known.insert(key, versions.into_iter().collect());
    }

    /// Tells of a change, unless it is the first content: the application has not seen any other.
    fn changed(&mut self, change: Change) {
        let Change { key, versions } = change;
        let before = self.known.get(&key).filter(|known| !known.is_empty()).cloned();
        self.knows(key.clone(), versions);
        let (Some(before), Some(target)) = (before, self.plan.target(&key)) else { return };
        if self.plan.variables.as_ref() == Some(&key) {
            if let Some(supervisor) = &self.supervisor {
                supervisor.changed();
            }
            return;
        }
        let now = self.known.get(&key).cloned().unwrap_or_default();
        let Target { on_change, objects_on_change, .. } = target;
        self.notifier.tell(on_change);
        for (object, action) in objects_on_change {
            if before.get(object) != now.get(object) {
                self.notifier.tell(action);
            }
        }
    }

    async fn reports(&self) -> Vec<VolumeReport> {
        self.mounter.manager.list().await.unwrap_or_default()
    }

    /// Until when what was rendered is good, now that nobody renews it.
    async fn farewell(&self) -> String {
        let mut text = String::new();
        for report in self.reports().await {
            let VolumeReport { target, objects, dependencies, session_seconds, .. } = report;
            // A lease dies with its session; what has no lease does not.
            let leased = dependencies.iter().any(|dependency| dependency.ttl_seconds.is_some());
            let lives = dependencies.iter().filter_map(|dependency| dependency.ttl_seconds);
            let until = lives.chain(session_seconds.filter(|_| leased)).min().map(|seconds| {
                let now = wall_now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
                let at = crate::template::rfc3339(i128::from(now + seconds) * 1_000_000_000);
                format!("its credentials live until {at} ({seconds} s), and nobody renews them")
            });
            let until = until.unwrap_or_else(|| "nothing in it ends".to_owned());
            text.push_str(&format!("{target}: {} objects rendered; {until}\n", objects.len()));
        }
        text
    }

    async fn release(&self) {
        if !self.settings.revoke {
            return;
        }
        tokio::time::sleep(self.settings.file.revoke_grace).await;
        if tokio::time::timeout(RELEASE, self.mounter.manager.release()).await.is_err() {
            warn!("not everything could be revoked in time: it ends by its TTL, or with the next start");
        }
    }
}

/// The folders of the plan that may be on a disk; its last target may be that of the variables.
fn on_disk(plan: &Plan, file: &AgentFile, all: bool) -> BTreeSet<PathBuf> {
    let allowed = file.folders.iter().map(|folder| folder.disk_backed).chain([false]);
    let targets = plan.targets.iter().zip(allowed).filter(|(_, allowed)| *allowed || all);
    targets.map(|(target, _)| target.key.path().to_owned()).collect()
}

async fn told_to_end(signals: &mut Signals) {
    while !ends(signals.next().await) {}
}

fn list(failures: &[(VolumeKey, MountFailure)]) -> String {
    let texts: Vec<String> = failures.iter().map(|(key, failure)| format!("{key}: {failure}")).collect();
    texts.join("; ")
}

fn fingerprint(settings: &Settings) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for path in &settings.inputs {
        // One that is gone is another content too.
        let content = std::fs::read(path).unwrap_or_default();
        context.update(&(content.len() as u64).to_le_bytes());
        context.update(&content);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}
