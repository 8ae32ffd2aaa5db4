//! Shape 2, the in-pod edge: the same engine beside an application, as an init container, a native sidecar
//! or its supervisor.
//!
//! It is to the volumes what the driver is on a node: it asks for them by Mount commands made of its file,
//! once at the start and again whenever the file or the login's token changes. A volume is a plain folder
//! here, nobody unmounts it, and it is given back when the pod ends.

use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::{
    cli::AgentArgs,
    config,
    control::{self, Answer, Request},
    sandbox,
    spec::agent::{AgentFile, OnChange},
    startup::BAD_CONFIG,
    telemetry,
    volume::Journal,
};

mod children;
mod credential;
mod exec;
mod mounter;
mod notify;
mod process;
mod reach;
mod run;
mod settings;
mod watch;

use settings::{Settings, Source};

/// Folder within the state folder: the root of an emptyDir is the kubelet's and keeps its mode.
const STATE: &str = "agent";

/// Runs the agent, or asks the one that runs.
///
/// # Errors
/// What kept it from its work.
pub fn run(arguments: AgentArgs) -> anyhow::Result<ExitCode> {
    if arguments.check {
        return check(&arguments);
    }
    if arguments.print_config
        && let Some(translation) = Source::of(&arguments)?.translated()?
    {
        use std::io::Write as _;
        for note in &translation.notes {
            let line = note.line.map(|line| format!("line {line}: ")).unwrap_or_default();
            writeln!(std::io::stderr(), "{line}{note}")?;
        }
        crate::command::print(&translation.yaml)?;
        let whole = translation.complete().is_ok();
        return Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let log = config::log(arguments.log_level, arguments.log_format);
    // Before the configuration is read: what is lost in a translation is told in the log.
    telemetry::init(log);
    let settings = match Settings::resolve(arguments, |name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(error) => {
            use std::io::Write as _;
            writeln!(std::io::stderr(), "leasehold: {error:#}")?;
            return Ok(ExitCode::from(BAD_CONFIG));
        }
    };
    if settings.print_config {
        for (_, text) in &settings.texts {
            crate::command::print(text)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    Journal::create_folder(&mounter::state(&settings.state_dir))?;
    // Before there is a second thread, and any input of the network.
    let confinement = sandbox::confine(&reach::settings(&settings));
    // One thread: a pod's few files are no work, and every thread costs memory in each pod.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        // Look-ups of names and renderings are seldom; a thread that waits for the next is memory.
        .thread_keep_alive(std::time::Duration::from_secs(1))
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(run::run(settings, &confinement));
    runtime.shutdown_background();
    ended
}

/// Everything that is done after some change.
fn actions(file: &AgentFile) -> impl Iterator<Item = &OnChange> {
    file.folders
        .iter()
        .flat_map(|folder| std::iter::once(&folder.on_change).chain(folder.objects_on_change.values()))
}

/// For probes: the image has no shell, so the binary itself asks.
fn check(arguments: &AgentArgs) -> anyhow::Result<ExitCode> {
    let folder = arguments.state_dir.clone().unwrap_or_else(|| config::STATE_DIR.into()).join(STATE);
    match control::ask(&folder, &Request::Ready)? {
        Answer::Ready { ready, report } => {
            crate::command::print(&report)?;
            Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Answer::Error(message) => bail!("{message}"),
        Answer::Volumes(_) | Answer::Refreshed(_) | Answer::Status(_) => {
            bail!("the agent answered something else: is it of this version?")
        }
    }
}
