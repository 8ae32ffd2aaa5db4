//! `--exec`: a process whose environment comes from the store, started anew or told when it changes.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    pin::Pin,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::{error, info, warn};

use super::children::{Child, Children};
use crate::spec::agent::{Exec, Restart, is_variable};

/// A variable and its value; a value is as secret as a file's content.
type Variables = BTreeMap<String, OsString>;

/// What the supervisor is told.
#[derive(Debug)]
enum Order {
    Changed,
    Pass(Signal),
    Stop(Signal),
}

/// Handle to the task that supervises.
#[derive(Debug)]
pub(super) struct Supervisor {
    orders: mpsc::UnboundedSender<Order>,
    ended: oneshot::Receiver<u8>,
}

impl Supervisor {
    /// Starts the process with what is in `folder` for its environment.
    ///
    /// # Errors
    /// When it cannot be started, or a variable cannot be read.
    pub(super) fn start(
        exec: Exec,
        command: Vec<OsString>,
        folder: Option<PathBuf>,
        children: Children,
    ) -> anyhow::Result<Self> {
        let mut task = Task { exec, command, folder, children };
        let child = task.spawn()?;
        let (orders, receiver) = mpsc::unbounded_channel();
        let (sender, ended) = oneshot::channel();
        tokio::spawn(async move {
            let code = task.supervise(child, receiver).await;
            let _ = sender.send(code);
        });
        Ok(Self { orders, ended })
    }

    /// The environment has changed.
    pub(super) fn changed(&self) {
        let _ = self.orders.send(Order::Changed);
    }

    /// Passes a signal on.
    pub(super) fn pass(&self, signal: Signal) {
        let _ = self.orders.send(Order::Pass(signal));
    }

    /// Asks the process to end.
    pub(super) fn stop(&self, signal: Signal) {
        let _ = self.orders.send(Order::Stop(signal));
    }

    /// Waits for the end of it: its exit code, or 128 and its signal.
    pub(super) async fn ended(&mut self) -> u8 {
        (&mut self.ended).await.unwrap_or(u8::MAX)
    }
}

/// What follows once the process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Exit,
    Restart,
}

struct Task {
    exec: Exec,
    command: Vec<OsString>,
    folder: Option<PathBuf>,
    children: Children,
}

impl Task {
    async fn supervise(&mut self, mut child: Child, mut orders: mpsc::UnboundedReceiver<Order>) -> u8 {
        let mut then = Then::Exit;
        let mut kill_at: Option<Instant> = None;
        loop {
            let killing: Pin<Box<dyn Future<Output = ()> + Send>> = match kill_at {
                Some(at) => Box::pin(tokio::time::sleep_until(at)),
                None => Box::pin(std::future::pending()),
            };
            tokio::select! {
                code = &mut child.ended => {
                    let code = code.unwrap_or(u8::MAX);
                    if then == Then::Exit {
                        return code;
                    }
                    match self.spawn() {
                        Ok(next) => (child, then, kill_at) = (next, Then::Exit, None),
                        Err(failure) => {
                            error!(error = format!("{failure:#}"), "the process could not be started anew");
                            return u8::MAX;
                        }
                    }
                }
                order = orders.recv() => match order {
                    Some(Order::Changed) if self.exec.restart == Restart::Always => {
                        if then == Then::Exit && kill_at.is_none() {
                            info!(pid = child.id(), signal = %self.exec.restart_signal, "the environment changed: starting the process anew");
                            then = Then::Restart;
                            kill_at = Some(Instant::now() + self.exec.stop_timeout);
                            child.signal(self.exec.restart_signal);
                        }
                    }
                    Some(Order::Changed) => {
                        warn!("the environment changed, and restartOnChange is never: the process keeps the old one");
                    }
                    Some(Order::Pass(signal)) => child.signal(signal),
                    Some(Order::Stop(signal)) => {
                        then = Then::Exit;
                        kill_at.get_or_insert(Instant::now() + self.exec.stop_timeout);
                        child.signal(signal);
                    }
                    None => {
                        child.signal(Signal::SIGKILL);
                        kill_at = Some(Instant::now() + Duration::from_secs(3600));
                    }
                },
                () = killing => {
                    warn!(pid = child.id(), "the process did not end in time: SIGKILL");
                    child.signal(Signal::SIGKILL);
                    kill_at = None;
                }
            }
        }
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let variables = self.variables()?;
        let Some((program, arguments)) = self.command.split_first() else { bail!("there is no command") };
        let mut command = Command::new(program);
        command.args(arguments);
        for (name, value) in &variables {
            command.env(name, value);
        }
        let child = self
            .children
            .spawn(&mut command)
            .with_context(|| format!("cannot start {}", program.to_string_lossy()))?;
        info!(pid = child.id(), variables = variables.len(), "started {}", program.to_string_lossy());
        Ok(child)
    }

    fn variables(&self) -> anyhow::Result<Variables> {
        let mut variables = Variables::new();
        let (Some(folder), Some(spec)) = (&self.folder, &self.exec.environment) else { return Ok(variables) };
        for object in spec.objects.iter().filter(|object| object.file().is_some()) {
            let name = object.name();
            let content = match fs::read(folder.join(name)) {
                Ok(content) => content,
                // Optional, and not there.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot read the variable {name}")),
            };
            if self.exec.maps.contains(name) {
                let map: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&content)
                    .map_err(|_| anyhow::anyhow!("exec.env: {name} is no map of variables"))?;
                for (key, value) in map {
                    if !is_variable(&key) {
                        bail!("exec.env: {name} has the key {key:?}, which cannot be a variable's name");
                    }
                    let text = match value {
                        serde_json::Value::String(text) => text,
                        other => other.to_string(),
                    };
                    insert(&mut variables, key, text.as_bytes())?;
                }
            } else {
                insert(&mut variables, name.to_owned(), &content)?;
            }
        }
        Ok(variables)
    }
}

fn insert(variables: &mut Variables, name: String, value: &[u8]) -> anyhow::Result<()> {
    if value.contains(&0) {
        bail!("exec.env: the value of {name} has a zero byte, which no variable can hold");
    }
    variables.insert(name, OsStr::from_bytes(value).to_owned());
    Ok(())
}
