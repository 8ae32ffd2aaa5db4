//! The kubelet's part: it asks for tokens, calls the driver, and decides after an error whether the folder
//! stays. That last rule and the driver's gate together start pods on empty folders.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tokio::time::Instant;
use tonic::Status;

use super::{
    cluster::{Cluster, Pod, rfc3339, unix_now},
    driver::{Driver, DriverOptions, PublishRequest, SecretProviderClass, is_final},
    node::Node,
    provider_client::Dial,
};

/// Settings of the node's CSI machinery.
#[derive(Clone, Debug)]
pub struct Options {
    /// The driver's rotation interval; `None` is rotation off. Zero opens the gate at once.
    pub rotation: Option<Duration>,
    /// How the driver dials.
    pub dial: Dial,
    /// `CSIDriver.spec.tokenRequests[].audience`, in order.
    pub audiences: Vec<String>,
    /// `expirationSeconds` of those tokens.
    pub token_lifetime: Duration,
    /// `serviceAccountTokenInSecrets`.
    pub tokens_in_secrets: bool,
    /// The kubelet's deadline for a call (`csiTimeout`).
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rotation: Some(Duration::ZERO),
            dial: Dial::Localhost,
            audiences: vec!["vault".into(), "openbao".into()],
            token_lifetime: Duration::from_secs(3600),
            tokens_in_secrets: false,
            deadline: Duration::from_secs(120),
        }
    }
}

/// One CSI volume of one pod.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The pod.
    pub pod: Pod,
    /// The volume's name.
    pub name: String,
    /// `volumeAttributes` beside `secretProviderClass`.
    pub attributes: BTreeMap<String, String>,
    /// `readOnly`.
    pub read_only: bool,
}

impl Volume {
    /// A read-only volume named `secrets`.
    pub fn new(pod: &Pod) -> Self {
        Self { pod: pod.clone(), name: "secrets".into(), attributes: BTreeMap::new(), read_only: true }
    }

    /// The same volume under another name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// The same volume with one more attribute of the pod's.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }
}

/// How the start of a pod went.
#[derive(Debug)]
pub struct Start {
    /// Errors of the attempts before the last one.
    pub errors: Vec<Status>,
    /// Whether the volume was reported as set up, so that the containers start.
    pub started: bool,
    /// Whether they then see a plain folder of the node's disk without any file.
    pub on_empty_dir: bool,
}

/// The kubelet of a node, with its driver.
pub struct Kubelet {
    /// The node.
    pub node: Arc<Node>,
    /// The driver.
    pub driver: Driver,
    cluster: Arc<Cluster>,
    options: Options,
    token: Mutex<Option<String>>,
}

impl Kubelet {
    /// A kubelet whose driver looks for sockets in the node's providers folder.
    pub fn new(node: Arc<Node>, cluster: Arc<Cluster>, options: Options) -> Self {
        let providers = vec![node.providers_dir()];
        let driver_options = DriverOptions { rotation: options.rotation, dial: options.dial, providers };
        let driver = Driver::new(Arc::clone(&node), driver_options);
        Self { node, driver, cluster, options, token: Mutex::default() }
    }

    /// Where the volume's files are, as the node and the pod see them.
    pub fn target(&self, volume: &Volume) -> PathBuf {
        self.driver.target(&volume.pod, &volume.name)
    }

    /// A file of the volume, as text.
    #[track_caller]
    pub fn file(&self, volume: &Volume, name: &str) -> String {
        self.node.read_text(&self.target(volume).join(name))
    }

    /// Puts this token into every call from now on, for every audience; `None` asks the cluster again.
    pub fn force_token(&self, token: Option<String>) {
        *self.token.lock().unwrap() = token;
    }

    /// SetUpAt, once: the first mount as well as every republish.
    pub async fn publish(&self, volume: &Volume, class: Option<&SecretProviderClass>) -> Result<(), Status> {
        let target = self.target(volume);
        let parent = target.parent().expect("a volume's folder has a parent").to_owned();
        let known = self.node.is_mount_point(&target).unwrap_or(false);
        self.node.create_dir(&parent).map_err(|error| Status::internal(error.to_string()))?;
        let data = json!({"driverName": "secrets-store.csi.k8s.io", "specVolID": volume.name});
        self.node
            .run(move || fs::write(parent.join("vol_data.json"), data.to_string()))
            .map_err(|error| Status::internal(error.to_string()))?;
        let request = PublishRequest {
            pod: volume.pod.clone(),
            volume: volume.name.clone(),
            attributes: volume.attributes.clone(),
            tokens: self.tokens(&volume.pod),
            tokens_in_secrets: self.options.tokens_in_secrets,
            secrets: BTreeMap::new(),
            read_only: volume.read_only,
        };
        let deadline = Instant::now() + self.options.deadline;
        let result = self.driver.node_publish(&request, class, deadline).await;
        if let Err(status) = &result
            && is_final(status.code())
            && !known
        {
            // removeMountDir: only an empty, unmounted folder can go.
            let target = target.clone();
            self.node.run(move || {
                let _ = fs::remove_dir(&target);
                let _ = fs::remove_file(target.with_file_name("vol_data.json"));
            });
        }
        result
    }

    /// Starts a pod with one volume: retries with the kubelet's back-off, `attempts` times at the most.
    pub async fn start(&self, volume: &Volume, class: &SecretProviderClass, attempts: usize) -> Start {
        let mut errors = Vec::new();
        let mut pause = Duration::from_millis(500);
        for attempt in 1..=attempts {
            match self.publish(volume, Some(class)).await {
                Ok(()) => {
                    let target = self.target(volume);
                    let mounted = self.node.is_mount_point(&target).unwrap_or(false);
                    let empty = self.node.list(&target).is_ok_and(|names| names.is_empty());
                    return Start { errors, started: true, on_empty_dir: !mounted && empty };
                }
                Err(status) => errors.push(status),
            }
            if attempt < attempts {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
        Start { errors, started: false, on_empty_dir: false }
    }

    /// TearDownAt: NodeUnpublishVolume, then the kubelet's own folder.
    pub fn unpublish(&self, volume: &Volume) -> Result<(), Status> {
        self.driver.node_unpublish(&volume.pod, &volume.name)?;
        let parent = self.target(volume).with_file_name("");
        self.node.run(move || {
            let _ = fs::remove_dir_all(parent);
        });
        Ok(())
    }

    fn tokens(&self, pod: &Pod) -> Option<String> {
        if self.options.audiences.is_empty() {
            return None;
        }
        let forced = self.token.lock().unwrap().clone();
        let lifetime = self.options.token_lifetime;
        let tokens: Vec<String> = self
            .options
            .audiences
            .iter()
            .map(|audience| {
                let token = forced.clone().unwrap_or_else(|| self.cluster.token(pod, &[audience], lifetime));
                let expiry = rfc3339(unix_now() + lifetime.as_secs());
                // Go's field order; neither value has a character that JSON escapes.
                format!("\"{audience}\":{{\"token\":\"{token}\",\"expirationTimestamp\":\"{expiry}\"}}")
            })
            .collect();
        Some(format!("{{{}}}", tokens.join(",")))
    }
}
