//! The Secrets Store CSI Driver 1.6.0, rebuilt after its source: order of events, attributes to the byte,
//! the mtime gate, masked errors, who unmounts what. Its traps are here on purpose.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    atomic_writer,
    cluster::Pod,
    node::Node,
    proto,
    provider_client::{Dial, ProviderClient},
};

/// The attribute (and, since Kubernetes 1.35, the secret) that carries the pod's tokens.
pub const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// A SecretProviderClass in the pod's namespace.
#[derive(Clone, Debug)]
pub struct SecretProviderClass {
    /// `metadata.name`.
    pub name: String,
    /// `spec.provider`: `vault`, `openbao` or `leasehold`.
    pub provider: String,
    /// `spec.parameters`.
    pub parameters: BTreeMap<String, String>,
}

impl SecretProviderClass {
    /// A class with the two parameters that every one has.
    pub fn new(provider: &str, role: &str, objects: &str) -> Self {
        let parameters = [("roleName", role), ("objects", objects)];
        Self { name: "app-secrets".into(), provider: provider.into(), parameters: own(parameters) }
    }

    /// The same class with one parameter more, or another value of it.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.parameters.insert(name.into(), value.into());
        self
    }

    /// The same class without a parameter.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.parameters.remove(name);
        self
    }
}

/// What the kubelet sends in NodePublishVolume.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// The pod.
    pub pod: Pod,
    /// Name of the volume in the pod.
    pub volume: String,
    /// The pod's `volumeAttributes`, without `secretProviderClass`.
    pub attributes: BTreeMap<String, String>,
    /// The kubelet's tokens JSON, if CSIDriver has tokenRequests.
    pub tokens: Option<String>,
    /// Whether the tokens come in `secrets` (`serviceAccountTokenInSecrets`).
    pub tokens_in_secrets: bool,
    /// Data of `nodePublishSecretRef`.
    pub secrets: BTreeMap<String, String>,
    /// `volumes[].csi.readOnly`.
    pub read_only: bool,
}

/// Settings of the driver.
#[derive(Clone, Debug)]
pub struct DriverOptions {
    /// `rotation-poll-interval`; `None` is `enable-secret-rotation=false`.
    pub rotation: Option<Duration>,
    /// How it dials.
    pub dial: Dial,
    /// Folders searched for `<provider>.sock`, in order.
    pub providers: Vec<PathBuf>,
}

/// A SecretProviderClassPodStatus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    /// `status.targetPath`.
    pub target: PathBuf,
    /// `status.objects`, by id.
    pub objects: BTreeMap<String, String>,
}

/// Counts of what the driver did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Publishes that the mtime gate answered.
    pub gated: usize,
    /// Mount calls that went out to a provider, attempts of the retry policy counted singly.
    pub provider_calls: usize,
    /// Errors of a provider on a republish, which the driver answers with OK.
    pub masked: usize,
}

/// The driver of one node.
pub struct Driver {
    node: Arc<Node>,
    options: DriverOptions,
    clients: Mutex<BTreeMap<String, ProviderClient>>,
    statuses: Mutex<BTreeMap<String, PodStatus>>,
    counts: Mutex<Counts>,
    masked: Mutex<Vec<Status>>,
    last_request: Mutex<Option<proto::MountRequest>>,
    last_response: Mutex<Option<proto::MountResponse>>,
    last_took: Mutex<Duration>,
}

impl Driver {
    /// A driver without providers in its cache.
    pub fn new(node: Arc<Node>, options: DriverOptions) -> Self {
        Self {
            node,
            options,
            clients: Mutex::default(),
            statuses: Mutex::default(),
            counts: Mutex::default(),
            masked: Mutex::default(),
            last_request: Mutex::default(),
            last_response: Mutex::default(),
            last_took: Mutex::default(),
        }
    }

    /// Where a pod's volume lies on the host.
    pub fn target(&self, pod: &Pod, volume: &str) -> PathBuf {
        let pods = self.node.kubelet_root().join("pods");
        pods.join(&pod.uid).join("volumes/kubernetes.io~csi").join(volume).join("mount")
    }

    /// What the driver did so far.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap()
    }

    /// Errors that a republish hid.
    pub fn masked(&self) -> Vec<Status> {
        self.masked.lock().unwrap().clone()
    }

    /// The SecretProviderClassPodStatus objects by name.
    pub fn statuses(&self) -> BTreeMap<String, PodStatus> {
        self.statuses.lock().unwrap().clone()
    }

    /// The last Mount as it was sent, for byte comparisons.
    pub fn last_request(&self) -> Option<proto::MountRequest> {
        self.last_request.lock().unwrap().clone()
    }

    /// The last answer to a Mount.
    pub fn last_response(&self) -> Option<proto::MountResponse> {
        self.last_response.lock().unwrap().clone()
    }

    /// How long the provider took for the last Mount that it answered OK.
    pub fn last_took(&self) -> Duration {
        *self.last_took.lock().unwrap()
    }

    /// NodePublishVolume.
    pub async fn node_publish(
        &self,
        request: &PublishRequest,
        class: Option<&SecretProviderClass>,
        deadline: Instant,
    ) -> Result<(), Status> {
        let target = self.target(&request.pod, &request.volume);
        if self.recently_changed(&target) {
            self.counts.lock().unwrap().gated += 1;
            return Ok(());
        }
        let mounted = self.ensure_mount_point(&target)?;
        if mounted && self.options.rotation.is_none() {
            return Ok(());
        }
        let Some(class) = class else {
            let Pod { namespace, .. } = &request.pod;
            return Err(Status::unknown(format!(
                "failed to get secretproviderclass {namespace}/app-secrets"
            )));
        };
        if class.provider.is_empty() || class.parameters.is_empty() {
            return Err(Status::unknown("provider or parameters are not set in SecretProviderClass"));
        }
        if !request.read_only {
            return Err(Status::invalid_argument("readOnly is not set to true in the volume"));
        }
        if !mounted {
            self.node
                .mount_tmpfs(&target)
                .map_err(|error| Status::internal(format!("mount tmpfs: {error}")))?;
        }
        let outcome = self.fill(request, class, &target, deadline).await;
        match outcome {
            Ok(()) => Ok(()),
            Err(status) if mounted => {
                self.counts.lock().unwrap().masked += 1;
                self.masked.lock().unwrap().push(status);
                Ok(())
            }
            Err(status) => {
                // Only logged when it fails: an empty mount stays behind then.
                let _ = self.node.unmount(&target);
                let Pod { namespace, name, .. } = &request.pod;
                Err(Status::new(
                    status.code(),
                    format!(
                        "failed to mount secrets store objects for pod {namespace}/{name}, err: {}",
                        status.message()
                    ),
                ))
            }
        }
    }

    /// NodeUnpublishVolume. The provider is never told.
    pub fn node_unpublish(&self, pod: &Pod, volume: &str) -> Result<(), Status> {
        let target = self.target(pod, volume);
        let internal = |what: &str, error: std::io::Error| Status::internal(format!("{what}: {error}"));
        let names = match self.node.list(&target) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| internal("list", error))?,
        };
        let folder = target.clone();
        self.node
            .run(move || {
                names.into_iter().map(|name| folder.join(name)).try_for_each(|path| remove_all(&path))
            })
            .map_err(|error| internal("remove files", error))?;
        if self.node.is_mount_point(&target).map_err(|error| internal("stat", error))? {
            self.node.unmount(&target).map_err(|error| internal("unmount failed", error))?;
        }
        let folder = target.clone();
        self.node.run(move || fs::remove_dir(folder)).map_err(|error| internal("rmdir", error))?;
        self.statuses.lock().unwrap().retain(|_, status| status.target != target);
        Ok(())
    }

    /// The gate, which looks at the clock of the target before it knows whether anything is mounted there.
    fn recently_changed(&self, target: &Path) -> bool {
        let Some(interval) = self.options.rotation else { return false };
        let target = target.to_owned();
        let modified = self.node.run(move || fs::metadata(target).and_then(|found| found.modified()));
        modified.is_ok_and(|modified| modified + interval > SystemTime::now())
    }

    fn ensure_mount_point(&self, target: &Path) -> Result<bool, Status> {
        match self.node.is_mount_point(target) {
            Ok(mounted) => Ok(mounted),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.node
                    .create_dir(target)
                    .map_err(|error| Status::internal(format!("create {}: {error}", target.display())))?;
                Ok(false)
            }
            Err(error) => Err(Status::internal(format!("stat {}: {error}", target.display()))),
        }
    }

    async fn fill(
        &self,
        request: &PublishRequest,
        class: &SecretProviderClass,
        target: &Path,
        deadline: Instant,
    ) -> Result<(), Status> {
        let client = self.client(&class.provider)?;
        let mount = mount_request(request, class, target);
        *self.last_request.lock().unwrap() = Some(mount.clone());
        let called = std::time::Instant::now();
        let response =
            client.mount(&mount, deadline, || self.counts.lock().unwrap().provider_calls += 1).await?;
        *self.last_took.lock().unwrap() = called.elapsed();
        *self.last_response.lock().unwrap() = Some(response.clone());
        if let Some(error) = response.error.filter(|error| !error.code.is_empty()) {
            let message = format!("mount request failed with provider error code {}", error.code);
            return Err(Status::unknown(message));
        }
        if response.object_version.is_empty() {
            return Err(Status::unknown("missing object versions"));
        }
        if !response.files.is_empty() {
            atomic_writer::validate(&response.files).map_err(Status::unknown)?;
            let (target, files) = (target.to_owned(), response.files);
            self.node
                .run(move || atomic_writer::write(&target, &files))
                .map_err(|error| Status::unknown(format!("failed to write file: {error}")))?;
        }
        let objects = response.object_version.into_iter().map(|object| (object.id, object.version)).collect();
        let Pod { namespace, name, .. } = &request.pod;
        let status = PodStatus { target: target.to_owned(), objects };
        self.statuses.lock().unwrap().insert(format!("{name}-{namespace}-{}", class.name), status);
        Ok(())
    }

    /// The provider's client, made at its first use and kept for ever: also for a stale path.
    fn client(&self, provider: &str) -> Result<ProviderClient, Status> {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if provider.len() > 30 || !provider.chars().all(legal) {
            return Err(Status::unknown(format!("provider name {provider:?} is invalid")));
        }
        let mut clients = self.clients.lock().unwrap();
        if let Some(client) = clients.get(provider) {
            return Ok(client.clone());
        }
        let sockets = self.options.providers.iter().map(|dir| dir.join(format!("{provider}.sock")));
        let Some(socket) = sockets.into_iter().find(|socket| socket.exists()) else {
            return Err(Status::unknown(format!("provider not found: provider {provider:?}")));
        };
        let client = ProviderClient::new(&socket, self.options.dial);
        clients.insert(provider.into(), client.clone());
        Ok(client)
    }
}

/// The request that driver 1.6.0 sends, byte for byte.
pub fn mount_request(
    request: &PublishRequest,
    class: &SecretProviderClass,
    target: &Path,
) -> proto::MountRequest {
    let Pod { namespace, name, uid, service_account } = &request.pod;
    let mut attributes = class.parameters.clone();
    // maps.Copy: what the pod says wins over the class, and what the kubelet says over the pod.
    attributes.extend(request.attributes.clone());
    attributes.extend(own([
        ("secretProviderClass", class.name.as_str()),
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", name),
        ("csi.storage.k8s.io/pod.namespace", namespace),
        ("csi.storage.k8s.io/pod.uid", uid),
        ("csi.storage.k8s.io/serviceAccount.name", service_account),
    ]));
    let mut secrets = request.secrets.clone();
    if let Some(tokens) = &request.tokens {
        attributes.insert(TOKENS.into(), tokens.clone());
        if request.tokens_in_secrets {
            secrets.insert(TOKENS.into(), tokens.clone());
        }
    }
    proto::MountRequest {
        attributes: go_json(&attributes),
        secrets: if secrets.is_empty() { "null".into() } else { go_json(&secrets) },
        target_path: target.to_string_lossy().into_owned(),
        permission: "420".into(),
        current_object_version: Vec::new(),
    }
}

/// Go's `json.Marshal` of a `map[string]string`: sorted keys, HTML-safe strings.
pub fn go_json(map: &BTreeMap<String, String>) -> String {
    let plain = serde_json::to_string(map).expect("a map of strings");
    // These characters occur in strings only, so that they can be replaced in the whole text.
    let escapes = [('<', "003c"), ('>', "003e"), ('&', "0026"), ('\u{2028}', "2028"), ('\u{2029}', "2029")];
    escapes.into_iter().fold(plain, |text, (from, to)| text.replace(from, &format!("\\u{to}")))
}

/// Whether the kubelet takes a code for the last word (`isFinalError`).
pub fn is_final(code: Code) -> bool {
    use Code::{Aborted, Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable};
    !matches!(code, Cancelled | DeadlineExceeded | Unavailable | ResourceExhausted | Aborted)
}

fn own<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// Go's os.RemoveAll: what somebody else removed meanwhile is removed.
fn remove_all(path: &Path) -> std::io::Result<()> {
    let removed = fs::symlink_metadata(path)
        .and_then(|found| if found.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) });
    removed.or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
