//! The shell around the core: one worker task that owns every volume of the node, performs what the core
//! decides, keeps secret bytes only as long as needed, and journals.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

pub use crate::lifecycle::{
    failure::{FailureKind, MountFailure},
    key::VolumeKey,
};
pub use journal::{Journal, JournalError};
pub use report::{DependencyReport, NextReport, VolumeReport};
pub use worker::Settings;

use crate::{
    backend::{Credential, SecretBackend},
    metrics::Metrics,
    projection::{
        target::TargetError,
        writer::{self, Inspection},
    },
    secret::SecretString,
    spec::{PodIdentity, ProviderName, VolumeSpec},
};

mod execute;
mod gauges;
mod holdings;
mod journal;
mod queue;
mod report;
mod specs;
mod worker;

/// A pod's ServiceAccount token with what its own claims say.
#[derive(Clone, Debug)]
pub struct ServiceAccountToken {
    /// The JWT.
    pub jwt: SecretString,
    /// `kubernetes.io.serviceaccount.uid`; part of a shared session's key.
    pub service_account_uid: String,
    /// `exp`, wall time in seconds since the epoch; `None` for a legacy token without one.
    pub expires_at: Option<u64>,
    /// `iat` (or `nbf`), wall time in seconds.
    pub issued_at: Option<u64>,
}

/// What a volume logs in with, and how long that is good for.
#[derive(Clone, Debug)]
pub struct LoginCredential {
    /// The credential.
    pub credential: Credential,
    /// Uid of the ServiceAccount; with other methods, what tells one credential from its successor. Part of a
    /// shared session's key.
    pub service_account_uid: String,
    /// Wall time in seconds since the epoch; `None` where it does not end, or is not known to.
    pub expires_at: Option<u64>,
    /// Wall time in seconds; `None` counts as now.
    pub issued_at: Option<u64>,
}

impl From<ServiceAccountToken> for LoginCredential {
    fn from(token: ServiceAccountToken) -> Self {
        let ServiceAccountToken { jwt, service_account_uid, expires_at, issued_at } = token;
        Self { credential: Credential::Jwt(jwt), service_account_uid, expires_at, issued_at }
    }
}

/// A Mount, parsed and checked by the edge.
#[derive(Clone, Debug)]
pub struct MountCommand {
    /// Where.
    pub key: VolumeKey,
    /// For whom, as the kubelet names the pod.
    pub pod: PodIdentity,
    /// By which socket.
    pub provider: ProviderName,
    /// Name of the SecretProviderClass, for logs, `ls` and errors.
    pub class: String,
    /// What is asked for, already allowed by policy; or why it cannot be had. A live volume survives the latter.
    pub plan: Result<Arc<VolumeSpec>, MountFailure>,
    /// Digest of the merged attributes without tokens: equal digests ask for the same.
    pub attributes_digest: [u8; 32],
    /// The token for the plan's audience, or why there is none.
    pub token: Result<LoginCredential, MountFailure>,
    /// The answer is due by then: the earlier of 90 s and the call's own time-out less 8 s.
    pub deadline: Instant,
}

/// One file for the driver to write, in driver-written mode.
#[derive(Clone, Debug)]
pub struct DriverFile {
    /// Path within the volume.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Contents.
    pub contents: crate::secret::SecretBytes,
}

/// The answer to a Mount that succeeded.
#[derive(Clone, Debug, Default)]
pub struct MountAnswer {
    /// Object name and version, at least one.
    pub versions: Vec<(String, String)>,
    /// For the driver to write; empty when we wrote, or when nothing changed.
    pub files: Vec<DriverFile>,
}

/// Which volumes a person asks about.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// Every volume of the node.
    All,
    /// Those of one pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Selector {
    fn matches(&self, pod: &PodIdentity) -> bool {
        match self {
            Self::All => true,
            Self::Pod { namespace, name } => pod.namespace == *namespace && pod.name == *name,
        }
    }
}

/// Something happened to a volume, as the core tells it.
#[derive(Clone, Copy, Debug)]
pub struct Transition<'a> {
    /// To which.
    pub key: &'a VolumeKey,
    /// Whose.
    pub pod: &'a PodIdentity,
    /// Of which SecretProviderClass.
    pub class: &'a str,
    /// What.
    pub note: &'a crate::lifecycle::message::Note,
}

/// Sees every transition of a volume that has a pod. Called by the worker: it must not wait.
pub type Observer = Arc<dyn Fn(&Transition<'_>) + Send + Sync>;

type Reply<T> = tokio::sync::oneshot::Sender<T>;

/// Where this process's volumes are.
#[derive(Clone, Debug)]
pub enum Targets {
    /// Mounts of the Secrets Store CSI driver, below the `pods` of the kubelet's root folder.
    Kubelet(PathBuf),
    /// Plain folders of the pod that this process is in. Nobody unmounts them: they go with the pod.
    Folders {
        /// Those that may be on a disk, which an edit may change.
        disk_backed: Arc<RwLock<BTreeSet<PathBuf>>>,
    },
}

impl Targets {
    /// The kubelet's root, where there is one.
    fn kubelet_root(&self) -> Option<&Path> {
        match self {
            Self::Kubelet(root) => Some(root),
            Self::Folders { .. } => None,
        }
    }

    /// Looks at a target without writing.
    fn inspect(&self, path: &Path) -> Result<Inspection, TargetError> {
        match self {
            Self::Kubelet(_) => writer::inspect(path),
            Self::Folders { disk_backed } => {
                let allowed = disk_backed.read().unwrap_or_else(PoisonError::into_inner).contains(path);
                writer::inspect_folder(path, allowed)
            }
        }
    }
}

/// New content is in place.
#[derive(Clone, Debug)]
pub struct Change {
    /// Of which volume.
    pub key: VolumeKey,
    /// Object names and versions, as they are now.
    pub versions: Vec<(String, String)>,
}

#[derive(Debug)]
enum Command {
    Forget(VolumeKey),
    Release(Reply<()>),
    Mount(Box<MountCommand>, Reply<Result<MountAnswer, MountFailure>>),
    List(Reply<Vec<VolumeReport>>),
    Refresh(Selector, Reply<usize>),
    Ping(Reply<()>),
}

/// Handle to the one worker; cheap to clone.
#[derive(Clone, Debug)]
pub struct VolumeManager {
    commands: tokio::sync::mpsc::Sender<Command>,
}

impl VolumeManager {
    /// Takes up what the journal holds and starts the worker; must be called within a runtime.
    pub fn start<B: SecretBackend>(
        settings: Settings,
        backend: Arc<B>,
        journal: Journal,
        metrics: Arc<Metrics>,
    ) -> Self {
        worker::Worker::start(settings, backend, journal, metrics)
    }

    /// Asks for a volume to be what the command says, and waits for the outcome. Dropping the future leaves
    /// the work in flight; a retry with the same attributes joins it.
    ///
    /// # Errors
    /// What the pod's events should say; never a reason to retry in this process.
    pub async fn mount(&self, command: MountCommand) -> Result<MountAnswer, MountFailure> {
        self.ask(|reply| Command::Mount(Box::new(command), reply))
            .await
            .unwrap_or_else(|| Err(MountFailure::new(FailureKind::Internal, STOPPED)))
    }

    /// Every volume of the node; `None` when the worker has stopped.
    pub async fn list(&self) -> Option<Vec<VolumeReport>> {
        self.ask(Command::List).await
    }

    /// Checks values now; how many volumes that concerns, `None` when the worker has stopped.
    pub async fn refresh(&self, selector: Selector) -> Option<usize> {
        self.ask(|reply| Command::Refresh(selector, reply)).await
    }

    /// Gives up one volume, as if it had been unmounted. Its files stay.
    pub async fn forget(&self, key: VolumeKey) {
        // A worker that has stopped has given up all of them.
        let _ = self.commands.send(Command::Forget(key)).await;
    }

    /// Gives up every volume and waits until what was made for them is revoked. The files stay. Bounded by the
    /// caller: what is not revoked by then is on record, for the next process.
    pub async fn release(&self) {
        self.ask(Command::Release).await;
    }

    /// Returns once the worker has turned; `None` when it has stopped.
    pub async fn ping(&self) -> Option<()> {
        self.ask(Command::Ping).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Option<T> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

const STOPPED: &str = "leasehold is stopping; the driver will call again";
