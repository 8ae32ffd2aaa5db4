//! Asks for the volumes, as the driver does on a node: at the start, when something changed, and now and then.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::future::join_all;
use tokio::sync::Mutex;
use tracing::warn;

use super::{STATE, credential::Keeper};
use crate::{
    admin::Readiness,
    backend::vault::VaultBackend,
    spec::{
        Connection, PodIdentity, ProviderName, VolumeSpec,
        agent::{AgentFile, Auth, OnChange},
    },
    volume::{FailureKind, MountCommand, MountFailure, VolumeKey, VolumeManager},
};

/// As long as a pod on a node would wait.
const PATIENCE: Duration = Duration::from_secs(90);
/// For logs and `ls`, in place of a SecretProviderClass's name.
const CLASS: &str = "agent";
/// Folder within the state folder for what becomes variables.
const VARIABLES: &str = "env";

/// One folder with what is asked for in it.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) key: VolumeKey,
    pub(super) spec: Arc<VolumeSpec>,
    digest: [u8; 32],
    pub(super) on_change: OnChange,
    pub(super) objects_on_change: std::collections::BTreeMap<String, OnChange>,
}

/// Everything that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pod: PodIdentity,
    auth: Auth,
    pub(super) targets: Vec<Target>,
    /// The target whose files are variables.
    pub(super) variables: Option<VolumeKey>,
}

impl Plan {
    /// What a file asks for. Makes folders that are not there.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub(super) fn new(file: &AgentFile, pod: &PodIdentity, state: &Path) -> anyhow::Result<Self> {
        let mut targets = Vec::new();
        for folder in &file.folders {
            targets.push(Target {
                key: VolumeKey::new(resolved(&folder.path)?),
                digest: digest(&folder.spec),
                spec: Arc::new(folder.spec.clone()),
                on_change: folder.on_change.clone(),
                objects_on_change: folder.objects_on_change.clone(),
            });
        }
        let mut variables = None;
        if let Some(spec) = file.exec.as_ref().and_then(|exec| exec.environment.as_ref()) {
            let key = VolumeKey::new(resolved(&state.join(VARIABLES))?);
            variables = Some(key.clone());
            targets.push(Target {
                key,
                digest: digest(spec),
                spec: Arc::new(spec.clone()),
                on_change: OnChange::default(),
                objects_on_change: std::collections::BTreeMap::new(),
            });
        }
        Ok(Self { pod: pod.clone(), auth: file.auth.clone(), targets, variables })
    }

    /// The target of a volume.
    pub(super) fn target(&self, key: &VolumeKey) -> Option<&Target> {
        self.targets.iter().find(|target| target.key == *key)
    }

    /// Files that a login reads.
    pub(super) fn credentials(&self) -> Vec<PathBuf> {
        self.auth.files().map(Path::to_owned).collect()
    }

    /// The server, and how it is known; every folder has the same.
    pub(super) fn connection(&self) -> Option<&Connection> {
        self.targets.first().map(|target| &target.spec.connection)
    }

    /// Files and folders that TLS reads.
    pub(super) fn tls(&self) -> Vec<PathBuf> {
        let Some(Connection { tls, .. }) = self.connection() else { return Vec::new() };
        tls.files().map(Path::to_owned).chain(tls.ca_directory.as_ref().map(PathBuf::from)).collect()
    }
}

/// The folder, made if it is not there, with every link of the way to it resolved: what the mount is at, and
/// not what another container of the pod may make of the way later.
pub(super) fn resolved(path: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(path).with_context(|| format!("cannot make the folder {}", path.display()))?;
    let folder =
        path.canonicalize().with_context(|| format!("cannot resolve the folder {}", path.display()))?;
    std::fs::read_dir(&folder).with_context(|| format!("cannot list the folder {}", folder.display()))?;
    Ok(folder)
}

fn digest(spec: &VolumeSpec) -> [u8; 32] {
    let text = serde_json::to_vec(spec).expect("a spec is made of strings and numbers");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// Where the agent's state is, below the folder of the flag.
pub(super) fn state(folder: &Path) -> PathBuf {
    folder.join(STATE)
}

/// Asks.
#[derive(Debug)]
pub(super) struct Mounter {
    pub(super) manager: VolumeManager,
    pub(super) backend: Arc<VaultBackend>,
    pub(super) readiness: Arc<Readiness>,
    /// With what was wrong with the credential last.
    pub(super) keeper: Mutex<(Keeper, Option<String>)>,
}

impl Mounter {
    /// Asks for every target of the plan; what failed.
    pub(super) async fn mount(&self, plan: &Plan) -> Vec<(VolumeKey, MountFailure)> {
        let Some(first) = plan.targets.first() else { return Vec::new() };
        let credential = {
            let mut keeper = self.keeper.lock().await;
            let connection = Arc::new(first.spec.connection.clone());
            let read = keeper.0.read(&plan.auth, &connection, &*self.backend).await;
            let reason = read.as_ref().err().map(|error| crate::telemetry::chain(error));
            match &reason {
                Some(reason) if keeper.1.as_ref() != Some(reason) => {
                    warn!(reason, "nothing to log in with; what lives goes on");
                    self.readiness.degrade("login", reason.clone());
                }
                Some(_) => {}
                None => self.readiness.clear("login"),
            }
            keeper.1 = reason;
            read
        };
        let asked = plan.targets.iter().map(|target| {
            let command = MountCommand {
                key: target.key.clone(),
                pod: plan.pod.clone(),
                provider: ProviderName::Leasehold,
                class: CLASS.to_owned(),
                plan: Ok(Arc::clone(&target.spec)),
                attributes_digest: of(target.digest, &credential),
                token: credential.as_ref().map(Clone::clone).map_err(MountFailure::from),
                deadline: Instant::now() + PATIENCE,
            };
            let manager = self.manager.clone();
            async move { (target.key.clone(), manager.mount(command).await) }
        });
        let answers = join_all(asked).await;
        answers.into_iter().filter_map(|(key, answer)| Some((key, answer.err()?))).collect()
    }
}

/// A Vault token that follows another is an edit: what was made with the former ends with it.
fn of(
    digest: [u8; 32],
    credential: &Result<crate::volume::LoginCredential, super::credential::CredentialError>,
) -> [u8; 32] {
    let mut digest = digest;
    if let Ok(held) = credential
        && let crate::backend::Credential::Token(_) = held.credential
    {
        for (byte, more) in digest.iter_mut().zip(held.service_account_uid.bytes()) {
            *byte ^= more;
        }
    }
    digest
}

/// Whether trying again may help.
pub(super) const fn may_pass(failure: &MountFailure) -> bool {
    !matches!(failure.kind, FailureKind::InvalidArgument)
}
