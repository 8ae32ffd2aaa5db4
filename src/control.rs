//! The control socket: what a person on the node asks the agent, and the client that asks it.
//!
//! `<state-dir>/control.sock`, mode 0600, for root and the agent's own user. One request as a line of JSON
//! per connection, one answer as a line. Nothing it answers holds a secret value or a token.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::Semaphore,
    task::JoinHandle,
};
use tracing::{debug, info, warn};

use crate::{
    admin::Readiness,
    provider::{
        ListenError,
        listener::{Socket, is_trusted},
        sightings::Driver,
    },
    spec::Connection,
    volume::{Selector, VolumeManager, VolumeReport},
};

/// File name within the state folder.
pub const SOCKET: &str = "control.sock";

/// Longest request, bytes: a selector with two names of Kubernetes objects.
const MAX_REQUEST: usize = 4096;
/// Longest answer that a client takes, bytes: some 10,000 volumes of ten objects.
const MAX_ANSWER: u64 = 64 << 20;
/// Connections at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 8;
/// Longest life of a connection, and a client's patience.
const MAX_LIFE: Duration = Duration::from_secs(10);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Every volume of the node.
    List,
    /// Check values now.
    Refresh(Selector),
    /// Whether everything is in place.
    Ready,
    /// What the agent is and where it is well.
    Status,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Request::List`].
    Volumes(Vec<VolumeReport>),
    /// To [`Request::Refresh`]: how many volumes are checked.
    Refreshed(usize),
    /// To [`Request::Ready`].
    Ready {
        /// Whether nothing blocks.
        ready: bool,
        /// A line for each part that is not well.
        report: String,
    },
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// The request cannot be answered.
    Error(String),
}

/// A server that SecretProviderClasses use unless they name another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Of which provider names.
    pub providers: Vec<String>,
    /// Where.
    pub connection: Connection,
    /// Path of the auth mount.
    pub auth_mount: String,
}

/// What an agent was started with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct About {
    /// Its version.
    pub version: String,
    /// The sockets it serves.
    pub sockets: Vec<PathBuf>,
    /// The kubelet's root folder.
    pub kubelet_root: PathBuf,
    /// Default servers.
    pub servers: Vec<Server>,
    /// Whether swap is taken as it is.
    pub allow_swap: bool,
}

/// What an agent says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// What it was started with.
    pub about: About,
    /// Whether a Mount could be served.
    pub ready: bool,
    /// Each part that is not well: its name, whether it blocks, and why.
    pub findings: Vec<(String, bool, String)>,
    /// Volumes that it holds.
    pub volumes: usize,
    /// What its calls show of the driver.
    pub driver: Driver,
    /// How long the driver has not called for the volume that it neglects longest; `None` without a volume.
    pub longest_silence_seconds: Option<u64>,
    /// The longest life that a login was granted, seconds.
    pub longest_session_seconds: Option<u64>,
}

/// Makes [`Status`] when it is asked for.
pub type Teller = Arc<dyn Fn() -> Status + Send + Sync>;

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody serves the socket.
    #[error(
        "no agent answers at {}: is leasehold running on this node, and is --state-dir its own?",
        path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket is not for us.
    #[error("may not ask the agent at {}: be root, or the agent's own user", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The exchange broke off.
    #[error("the agent at {} did not answer", path.display())]
    Exchange {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer is none.
    #[error("the agent at {} answered what this version does not understand", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
}

/// The socket, being served until dropped.
#[derive(Debug)]
pub struct Control {
    socket: Arc<Socket>,
    task: JoinHandle<()>,
}

impl Control {
    /// Binds the socket in the state folder, whose lock the caller holds. Must be called within a runtime.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn start(
        state_dir: &Path,
        manager: VolumeManager,
        readiness: Arc<Readiness>,
    ) -> Result<Self, ListenError> {
        Self::start_telling(state_dir, manager, readiness, None)
    }

    /// The same, with an answer to [`Request::Status`].
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn start_telling(
        state_dir: &Path,
        manager: VolumeManager,
        readiness: Arc<Readiness>,
        teller: Option<Teller>,
    ) -> Result<Self, ListenError> {
        let socket = Arc::new(Socket::bind(&state_dir.join(SOCKET))?);
        info!(path = %socket.path().display(), "control socket");
        let task = tokio::spawn(serve(Arc::clone(&socket), manager, readiness, teller));
        Ok(Self { socket, task })
    }

    /// Answers nobody any more, and removes the socket.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        self.socket.unlink();
    }
}

async fn serve(
    socket: Arc<Socket>,
    manager: VolumeManager,
    readiness: Arc<Readiness>,
    teller: Option<Teller>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let stream = match socket.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "accept failed at the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if !is_trusted(&stream, socket.path()) {
            continue;
        }
        let (manager, readiness, teller) = (manager.clone(), Arc::clone(&readiness), teller.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(MAX_LIFE, answer(stream, &manager, &readiness, teller.as_ref())).await
            {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "an exchange on the control socket failed"),
                Err(_) => debug!("an exchange on the control socket took too long"),
            }
            drop(place);
        });
    }
}

async fn answer(
    mut stream: UnixStream,
    manager: &VolumeManager,
    readiness: &Readiness,
    teller: Option<&Teller>,
) -> io::Result<()> {
    let answer = match read(&mut stream).await? {
        Ok(Request::List) => manager.list().await.map(Answer::Volumes),
        Ok(Request::Refresh(selector)) => manager.refresh(selector).await.map(Answer::Refreshed),
        Ok(Request::Ready) => {
            let (ready, report) = readiness.report();
            Some(Answer::Ready { ready, report })
        }
        Ok(Request::Status) => Some(match teller {
            Some(teller) => Answer::Status(Box::new(teller())),
            None => Answer::Error("this agent has no status".into()),
        }),
        Err(message) => Some(Answer::Error(message)),
    };
    let answer = answer.unwrap_or_else(|| Answer::Error("leasehold is stopping".into()));
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.shutdown().await
}

/// One line, or all there is.
async fn read(stream: &mut UnixStream) -> io::Result<Result<Request, String>> {
    let mut line = Vec::new();
    let mut chunk = [0; 512];
    while !line.contains(&b'\n') {
        if line.len() > MAX_REQUEST {
            return Ok(Err(format!("the request has more than {MAX_REQUEST} bytes")));
        }
        match stream.read(&mut chunk).await? {
            0 => break,
            count => line.extend_from_slice(&chunk[..count]),
        }
    }
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(serde_json::from_slice(line).map_err(|error| {
        format!("no request of this version (column {}): \"list\" or {{\"refresh\": …}}", error.column())
    }))
}

/// Asks the agent whose state folder this is.
///
/// # Errors
/// When there is none, or it does not answer within 10 s.
pub fn ask(state_dir: &Path, request: &Request) -> Result<Answer, ControlError> {
    let path = state_dir.join(SOCKET);
    let mut stream = StdStream::connect(&path).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ControlError::Forbidden { path: path.clone() },
        _ => ControlError::NotRunning { path: path.clone(), source },
    })?;
    let exchanged = (|| {
        stream.set_read_timeout(Some(MAX_LIFE))?;
        stream.set_write_timeout(Some(MAX_LIFE))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = Vec::new();
        BufReader::new(&stream).take(MAX_ANSWER).read_until(b'\n', &mut answer)?;
        Ok(answer)
    })();
    let answer = match exchanged {
        // It hangs up on whom it does not trust.
        Ok(answer) if answer.is_empty() => return Err(ControlError::Forbidden { path }),
        Err(error) if is_hang_up(&error) => return Err(ControlError::Forbidden { path }),
        Ok(answer) => answer,
        Err(source) => return Err(ControlError::Exchange { path, source }),
    };
    serde_json::from_slice(&answer).map_err(|source| ControlError::Answer { path, source })
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
