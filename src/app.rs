//! The composition root: builds everything, binds last, runs, drains.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use tracing::{error, info, warn};

use crate::{
    admin::{self, Admin, Liveness},
    agent,
    backend::vault::{Limits, VaultBackend},
    cli::{Cli, Command},
    clock::boot_now,
    command,
    config::Config,
    control::{self, About, Control, Status, Teller},
    kubernetes::{self, Cluster, PodReader, Recorder, TokenRequests},
    provider::{
        Edge, Mounter, Node,
        sightings::{self, Sightings},
    },
    sandbox,
    spec::Connection,
    startup::{Reporting, Signals, missing_propagation, ownership, swap},
    telemetry,
    volume::{Journal, JournalError, Observer, Settings, Targets, Transition, VolumeManager},
};

mod reach;

/// How long calls in flight may go on after SIGTERM: a pod has 30 s until SIGKILL.
const DRAIN: Duration = Duration::from_secs(20);

/// How often it is looked whether the driver calls again.
const ROTATION_LOOK: Duration = Duration::from_secs(5);

/// How long threads may finish what they do, after all else has ended.
const LINGER: Duration = Duration::from_secs(1);

/// Does what the command line says.
///
/// # Errors
/// What kept the process from it.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Agent(arguments) => agent::run(*arguments),
        Command::Version(arguments) => command::version::run(&arguments),
        Command::Check(arguments) => command::check::run(*arguments),
        Command::Convert(arguments) => command::convert::run(&arguments),
        Command::Render(arguments) => command::render::run(*arguments),
        Command::Ls(arguments) => command::ls::run(&arguments),
        Command::Refresh(arguments) => command::refresh::run(arguments),
        Command::Doctor(arguments) => command::doctor::run(&arguments),
        Command::Provider(arguments) => {
            let print = arguments.print_config;
            let config = match Config::resolve(*arguments, |name| std::env::var(name).ok()) {
                Ok(config) => config,
                Err(error) => return command::bad_config(&error),
            };
            if print {
                command::print(&config.describe())?;
                return Ok(ExitCode::SUCCESS);
            }
            telemetry::init(config.log);
            info!(version = env!("CARGO_PKG_VERSION"), "leasehold starts");
            let reporting = Reporting::default();
            match swap::exposure() {
                Some(exposure) if config.allow_swap => info!("{exposure}: taken so by --allow-swap"),
                Some(exposure) => {
                    let reason = exposure.advice();
                    warn!("{reason}");
                    reporting.readiness.degrade("swap", reason);
                }
                None => {}
            }
            // Where it cannot be read, the write itself tells.
            let may_chown = ownership::may_chown().unwrap_or(true);
            Journal::create_folder(&config.state_dir)?;
            // Before there is a second thread, and any input of somebody else's.
            let confinement = sandbox::confine(&reach::settings(&config));
            if let Some(shortfall) = confinement.shortfall() {
                reporting.readiness.degrade("sandbox", shortfall);
            }
            let runtime = tokio::runtime::Builder::new_multi_thread()
                // Requests wait for the network; one thread more than the worker's is plenty.
                .worker_threads(2)
                .enable_all()
                .build()
                .context("cannot start the runtime")?;
            let ended = runtime.block_on(provider(config, reporting, may_chown));
            // A thread may wait for the state folder's lock without end, and is not waited for.
            runtime.shutdown_timeout(LINGER);
            ended
        }
    }
}

async fn provider(config: Config, reporting: Reporting, may_chown: bool) -> anyhow::Result<ExitCode> {
    config.warnings.iter().for_each(|warning| warn!("{warning}"));
    let mut signals = Signals::new().context("cannot listen for signals")?;

    reporting.readiness.block("sockets", "not bound yet");
    reporting.readiness.block("volumes", "starting");
    // First of all listeners: it tells why the others are not there yet.
    let health = admin::bind(&config.health_addr)
        .await
        .with_context(|| format!("cannot listen on the health address {}", config.health_addr))?;
    info!(address = %health.local_addr()?, "health and metrics");
    let liveness = Arc::new(Liveness::default());
    let admin = Admin {
        metrics: Arc::clone(&reporting.metrics),
        readiness: Arc::clone(&reporting.readiness),
        liveness: Arc::clone(&liveness),
    };
    let beside = admin::spawn(admin, health.into_std().context("cannot hand the health address over")?)
        .context("cannot start the thread of health and metrics")?;

    let (cluster, recorder) = kubernetes(&config, &reporting)?;

    // May wait long for the state folder's lock, until a predecessor has gone.
    let manager = tokio::select! {
        manager = start_volumes(&config, &reporting, recorder) => manager?,
        () = signals.terminated() => return Ok(ExitCode::SUCCESS),
    };
    reporting.readiness.clear("volumes");
    // The lock is ours now, and so is the name of the control socket.
    beside.spawn(Arc::clone(&liveness).watch(manager.clone()));
    beside.spawn(watch_rotation(reporting.clone(), config.expect_republish));
    let sightings = Arc::new(Sightings::new(Arc::clone(&reporting.readiness), may_chown));
    let teller = teller(&config, &reporting, Arc::clone(&liveness), Arc::clone(&sightings));
    let readiness = Arc::clone(&reporting.readiness);
    let control = Control::start_telling(&config.state_dir, manager.clone(), readiness, Some(teller))?;

    let node = Node {
        mounter: mounter(manager),
        policy: config.policy,
        defaults: config.defaults,
        kubelet_root: config.kubelet_root,
        cluster,
        sightings,
        metrics: Arc::clone(&reporting.metrics),
    };
    let edge = Edge::start(node, &config.endpoints, config.authority_shim)?;
    reporting.readiness.clear("sockets");
    info!("ready");

    signals.terminated().await;
    info!("told to stop: answering the calls in flight");
    reporting.readiness.block("sockets", "shutting down");
    edge.drain(DRAIN).await;
    control.stop();
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// What of the API server is used, as far as the options ask for it.
fn kubernetes(config: &Config, reporting: &Reporting) -> anyhow::Result<(Cluster, Option<Recorder>)> {
    let options = config.kubernetes;
    if !options.any() {
        return Ok((Cluster::default(), None));
    }
    let client = kubernetes::connect()?;
    info!(
        pod_events = options.pod_events,
        token_request = options.token_request,
        read_pods = options.read_pods,
        "the API server is used"
    );
    let cluster = Cluster {
        token_requests: options.token_request.then(|| TokenRequests::new(client.clone())),
        pods: options.read_pods.then(|| PodReader::new(client.clone())),
    };
    let recorder =
        options.pod_events.then(|| Recorder::start(client, &config.instance, Arc::clone(&reporting.metrics)));
    Ok((cluster, recorder))
}

/// Keeps the report level with whether the driver calls again.
async fn watch_rotation(reporting: Reporting, expected: Duration) {
    let mut told = false;
    loop {
        let since = reporting.metrics.snapshot().oldest_call.map(|at| at.until(boot_now()));
        Sightings::neglected(&reporting.readiness, since, expected);
        match since.filter(|since| *since > expected) {
            Some(since) if !told => {
                told = true;
                warn!("{}", sightings::no_rotation(since));
            }
            Some(_) => {}
            None => told = false,
        }
        tokio::time::sleep(ROTATION_LOOK).await;
    }
}

/// Says what this agent is, for `doctor`.
fn teller(
    config: &Config,
    reporting: &Reporting,
    liveness: Arc<Liveness>,
    sightings: Arc<Sightings>,
) -> Teller {
    let mut servers: Vec<control::Server> = Vec::new();
    for (provider, defaults) in &config.defaults {
        let Some(address) = defaults.address.clone() else { continue };
        let connection = Connection {
            address: address.trim().trim_end_matches('/').to_owned(),
            namespace: defaults.namespace.trim_matches('/').to_owned(),
            tls: defaults.tls.clone(),
        };
        let same = servers
            .iter_mut()
            .find(|server| server.connection == connection && server.auth_mount == defaults.auth_mount);
        match same {
            Some(server) => server.providers.push(provider.to_string()),
            None => servers.push(control::Server {
                providers: vec![provider.to_string()],
                connection,
                auth_mount: defaults.auth_mount.clone(),
            }),
        }
    }
    let about = About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sockets: config.endpoints.iter().map(|endpoint| endpoint.path.clone()).collect(),
        kubelet_root: config.kubelet_root.clone(),
        servers,
        allow_swap: config.allow_swap,
    };
    let reporting = reporting.clone();
    Arc::new(move || {
        let (mut ready, mut findings) = reporting.readiness.findings();
        if let Some(stall) = liveness.stalled(boot_now()) {
            ready = false;
            findings.push(("worker".to_owned(), true, admin::stalled(stall)));
        }
        let snapshot = reporting.metrics.snapshot();
        Status {
            about: about.clone(),
            ready,
            findings,
            volumes: snapshot.provider_written + snapshot.driver_written,
            driver: sightings.driver(),
            longest_silence_seconds: snapshot.oldest_call.map(|at| at.until(boot_now()).as_secs()),
            longest_session_seconds: snapshot.longest_session.map(|ttl| ttl.as_secs()),
        }
    })
}

/// Starts the worker that owns the node's volumes; returns when it can take a Mount.
async fn start_volumes(
    config: &Config,
    reporting: &Reporting,
    recorder: Option<Recorder>,
) -> anyhow::Result<VolumeManager> {
    let folder = config.state_dir.clone();
    // Waiting for the lock blocks a thread, not the runtime.
    let opened = tokio::task::spawn_blocking(move || {
        let journal = Journal::open(&folder)?;
        let digest_key = journal.digest_key(rand::random())?;
        Ok::<_, JournalError>((journal, digest_key))
    });
    let (journal, digest_key) = opened.await.context("the state folder could not be opened")??;
    if let Some(reason) = missing_propagation(&config.kubelet_root) {
        error!("{reason}");
        reporting.readiness.degrade("propagation", reason);
    }
    if let Some(shortcoming) = journal.shortcoming() {
        reporting.readiness.degrade("state", shortcoming);
    }
    let settings = Settings {
        targets: Targets::Kubelet(config.kubelet_root.clone()),
        digest_key,
        seed: rand::random(),
        changes: None,
        observer: recorder
            .map(|recorder| Arc::new(move |it: &Transition<'_>| recorder.observe(it)) as Observer),
    };
    let backend = Arc::new(VaultBackend::new(Limits::default()));
    Ok(VolumeManager::start(settings, backend, journal, Arc::clone(&reporting.metrics)))
}

fn mounter(manager: VolumeManager) -> Mounter {
    Arc::new(move |command| {
        let manager = manager.clone();
        Box::pin(async move { manager.mount(command).await })
    })
}
