//! Telling the application: a signal, a request to the pod itself, a file to touch, a command.
//!
//! Each distinct way has a task of its own: a burst of changes is told once, a failure is tried again, and
//! one that is slow holds up no other.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Bytes, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::timeout,
};
use tracing::{error, info, warn};

use super::{children::Children, process};
use crate::spec::agent::{Http, OnChange, SignalTo};

/// Changes within this time are told of once. Folders of one agent often change together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Waits between tries.
const TRIES: [Duration; 5] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
];
/// For one request, and for one command.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells of changes.
#[derive(Debug)]
pub(super) struct Notifier {
    children: Children,
    tasks: BTreeMap<OnChange, UnboundedSender<()>>,
}

impl Notifier {
    /// Tells nobody yet.
    pub(super) const fn new(children: Children) -> Self {
        Self { children, tasks: BTreeMap::new() }
    }

    /// Why `action` could never work here.
    ///
    /// # Errors
    /// For people.
    pub(super) fn check(action: &OnChange, allow_commands: bool) -> Result<(), String> {
        if let Some(target) = &action.signal {
            process::check(&target.process).map_err(|error| error.to_string())?;
        }
        if action.command.is_some() && !allow_commands {
            return Err(
                "onChange.command runs only with --allow-commands: a file that others may write must not \
                        make the agent run programs"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Tells of a change, soon.
    pub(super) fn tell(&mut self, action: &OnChange) {
        if action.is_empty() {
            return;
        }
        let sender = self.tasks.entry(action.clone()).or_insert_with(|| {
            let (sender, receiver) = unbounded_channel();
            tokio::spawn(serve(action.clone(), self.children.clone(), receiver));
            sender
        });
        // The task lives as long as the sender.
        let _ = sender.send(());
    }
}

async fn serve(action: OnChange, children: Children, mut changes: UnboundedReceiver<()>) {
    let OnChange { signal, http, touch, command } = action;
    let ways: Vec<Way> =
        [signal.map(Way::Signal), http.map(Way::Http), touch.map(Way::Touch), command.map(Way::Command)]
            .into_iter()
            .flatten()
            .collect();
    while changes.recv().await.is_some() {
        tokio::time::sleep(DEBOUNCE).await;
        while changes.try_recv().is_ok() {}
        // One that fails for long holds up no other.
        join_all(ways.iter().map(|way| way.insist(&children))).await;
    }
}

/// One way to tell.
#[derive(Debug)]
enum Way {
    Signal(SignalTo),
    Http(Http),
    Touch(PathBuf),
    Command(Vec<String>),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(target) => write!(f, "{} to {}", target.signal, target.process),
            Self::Http(http) => write!(f, "{} {}", http.method, http.url),
            Self::Touch(path) => write!(f, "touch {}", path.display()),
            Self::Command(command) => write!(f, "command {}", command.first().map_or("", String::as_str)),
        }
    }
}

impl Way {
    async fn insist(&self, children: &Children) {
        for wait in TRIES.map(Some).into_iter().chain([None]) {
            match (self.go(children).await, wait) {
                (Ok(()), _) => {
                    info!(by = %self, "told of the change");
                    return;
                }
                (Err(reason), Some(wait)) => {
                    warn!(by = %self, reason, next = ?wait, "could not tell of the change, and tries again");
                    tokio::time::sleep(wait).await;
                }
                (Err(reason), None) => {
                    error!(by = %self, reason, "could not tell of the change, and gave up until the next");
                }
            }
        }
    }

    async fn go(&self, children: &Children) -> Result<(), String> {
        match self {
            Self::Signal(target) => {
                process::send(&target.process, target.signal).map(drop).map_err(|error| error.to_string())
            }
            Self::Http(http) => request(http).await,
            Self::Touch(path) => touch(path).map_err(|error| error.to_string()),
            Self::Command(command) => run(command, children).await,
        }
    }
}

/// The address was checked to be a loopback one when the file was read; a name is not asked of a resolver.
async fn request(http: &Http) -> Result<(), String> {
    let url = reqwest::Url::parse(&http.url).map_err(|error| error.to_string())?;
    let port = url.port_or_known_default().unwrap_or(80);
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let exchange = async {
        let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        tokio::spawn(async move {
            // What ends the connection ends the request, which says so.
            let _ = connection.await;
        });
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let request = Request::builder()
            .method(http.method.as_str())
            .uri(path)
            .header(HOST, format!("{}:{port}", url.host_str().unwrap_or_default()))
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        // The connection is not used again; whatever else comes is not read.
        let _ = timeout(Duration::from_secs(1), response.into_body().frame()).await;
        if status.is_success() { Ok(()) } else { Err(format!("answered {status}")) }
    };
    timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("no answer within 30 s".to_owned()))
}

fn touch(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o644)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits() | nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let now = crate::clock::wall_now();
    file.set_times(std::fs::FileTimes::new().set_modified(now).set_accessed(now))
}

async fn run(command: &[String], children: &Children) -> Result<(), String> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let child = children
        .spawn(Command::new(program).args(arguments))
        .map_err(|error| format!("cannot start it: {error}"))?;
    let mut child = child;
    match timeout(PATIENCE, &mut child.ended).await {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(code)) => Err(format!("it ended with status {code}")),
        Ok(Err(_)) => Err("it was lost".to_owned()),
        Err(_) => {
            child.signal(nix::sys::signal::Signal::SIGKILL);
            Err("it did not end within 30 s".to_owned())
        }
    }
}
