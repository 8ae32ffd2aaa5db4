//! A Mount as the driver sends it, read into types. Nothing of it is ever logged or put into an error but
//! names: attributes and secrets carry ServiceAccount tokens.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
};

use super::{
    proto::MountRequest,
    token::{TOKENS_KEY, TokenError, Tokens},
};
use crate::{
    secret::SecretString,
    spec::{FileMode, PodIdentity, ProviderName},
    volume::{FailureKind, MountFailure, VolumeKey},
};

const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
const SERVICE_ACCOUNT: &str = "csi.storage.k8s.io/serviceAccount.name";
const CLASS: &str = "secretProviderClass";

/// Longest name of a Kubernetes object (a DNS subdomain).
const MAX_NAME: usize = 253;

/// Why a Mount cannot be read. All but [`Self::Target`] are mistakes of whoever calls.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// `attributes` or `secrets` is not what the driver writes.
    #[error("the call's {what} is no JSON object of strings (line {line} column {column})")]
    Json {
        /// Which of the two.
        what: &'static str,
        /// Line of the mistake.
        line: usize,
        /// Column of the mistake.
        column: usize,
    },
    /// A key of the kubelet's is missing.
    #[error("the call's attributes have no {key}: the CSIDriver needs podInfoOnMount: true")]
    NoPodInfo {
        /// The missing key.
        key: &'static str,
    },
    /// A name that no Kubernetes object can have.
    #[error("the call's {key} is no name of a Kubernetes object")]
    Name {
        /// The attribute.
        key: &'static str,
    },
    /// `permission` is no mode.
    #[error("the call's permission is no decimal number of a mode within 0777")]
    Permission,
    /// The target path is not that of a volume of the pod.
    #[error(
        "the target path is not {root}/pods/{uid}/volumes/kubernetes.io~csi/<volume>/mount: if the kubelet's root \
         is elsewhere, say so with --kubelet-root"
    )]
    Target {
        /// The kubelet's root.
        root: String,
        /// The uid that the kubelet names.
        uid: String,
    },
}

impl From<RequestError> for MountFailure {
    fn from(error: RequestError) -> Self {
        let kind = match error {
            RequestError::Target { .. } => FailureKind::PermissionDenied,
            _ => FailureKind::InvalidArgument,
        };
        Self::new(kind, error.to_string())
    }
}

/// A Mount, read.
#[derive(Clone, Debug)]
pub struct Call {
    /// Where.
    pub key: VolumeKey,
    /// For whom.
    pub pod: PodIdentity,
    /// Name of the SecretProviderClass; `-` when the call names none.
    pub class: String,
    /// The merged attributes without tokens.
    pub attributes: BTreeMap<String, String>,
    /// Mode of files whose object names none.
    pub default_mode: FileMode,
    /// The pod's tokens. Bad ones fail a login, not a volume that lives.
    pub tokens: Result<Tokens, TokenError>,
    /// Digest of everything but the tokens.
    pub digest: [u8; 32],
}

impl Call {
    /// Reads `request`, which came in by `provider`'s socket.
    ///
    /// # Errors
    /// What is wrong with it, without a value of it.
    pub fn parse(
        provider: ProviderName,
        request: MountRequest,
        kubelet_root: &Path,
    ) -> Result<Self, RequestError> {
        let MountRequest { attributes, secrets, target_path, permission, .. } = request;
        let mut attributes = object("attributes", &attributes)?;
        let in_attributes = attributes.remove(TOKENS_KEY).map(SecretString::new);
        // Secrets first: with Kubernetes 1.35 that is where the kubelet puts them, and no pod's author can.
        let in_secrets = object("secrets", &secrets)?.remove(TOKENS_KEY).map(SecretString::new);
        let tokens = match in_secrets.or(in_attributes) {
            Some(json) if !json.expose().is_empty() => Tokens::parse(&json),
            _ => Ok(Tokens::default()),
        };

        let pod = PodIdentity {
            namespace: name(&attributes, POD_NAMESPACE)?,
            name: name(&attributes, POD_NAME)?,
            uid: name(&attributes, POD_UID)?,
            service_account: name(&attributes, SERVICE_ACCOUNT)?,
        };
        let class = match attributes.contains_key(CLASS) {
            true => name(&attributes, CLASS)?,
            false => "-".to_owned(),
        };
        let default_mode = mode(&permission)?;
        let digest = digest(provider, &attributes, default_mode);
        let key = target(&target_path, kubelet_root, &pod.uid)?;
        Ok(Self { key, pod, class, attributes, default_mode, tokens, digest })
    }
}

fn object(what: &'static str, json: &str) -> Result<BTreeMap<String, String>, RequestError> {
    if json.is_empty() {
        return Ok(BTreeMap::new());
    }
    // serde_json's own message quotes the value it stumbled over.
    serde_json::from_str::<Option<BTreeMap<String, String>>>(json)
        .map(Option::unwrap_or_default)
        .map_err(|error| RequestError::Json { what, line: error.line(), column: error.column() })
}

fn name(attributes: &BTreeMap<String, String>, key: &'static str) -> Result<String, RequestError> {
    let name = attributes.get(key).filter(|name| !name.is_empty()).ok_or(RequestError::NoPodInfo { key })?;
    // What the API server admits, so that a name can be logged, put into a header and used as a label.
    let valid = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    if name.len() > MAX_NAME || !valid { Err(RequestError::Name { key }) } else { Ok(name.clone()) }
}

fn mode(permission: &str) -> Result<FileMode, RequestError> {
    if permission.is_empty() {
        return Ok(FileMode::DEFAULT);
    }
    permission.parse().ok().and_then(FileMode::new).ok_or(RequestError::Permission)
}

/// A volume of `uid` below the kubelet's root. Whoever names another path has us write where it is not the
/// pod's to read.
fn target(target: &str, root: &Path, uid: &str) -> Result<VolumeKey, RequestError> {
    let refused = || RequestError::Target { root: root.display().to_string(), uid: uid.to_owned() };
    let path = Path::new(target);
    let below = path.strip_prefix(root).map_err(|_| refused())?;
    let mut parts = Vec::new();
    for component in below.components() {
        let Component::Normal(part) = component else { return Err(refused()) };
        parts.push(part.to_str().ok_or_else(refused)?);
    }
    let ["pods", pod, "volumes", "kubernetes.io~csi", volume, "mount"] = parts.as_slice() else {
        return Err(refused());
    };
    // Volume names are DNS labels; `components` forgives `//`, `/./` and a slash at the end, so rebuild.
    let plain = volume.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    let rebuilt = root.join(below);
    if *pod != uid || uid.starts_with('.') || !plain || rebuilt.as_os_str() != target || path.is_relative() {
        return Err(refused());
    }
    Ok(VolumeKey::new(rebuilt))
}

fn digest(provider: ProviderName, attributes: &BTreeMap<String, String>, mode: FileMode) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut field = |bytes: &[u8]| {
        // Lengths keep neighbouring fields apart.
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    field(provider.as_str().as_bytes());
    field(&mode.bits().to_be_bytes());
    for (key, value) in attributes {
        field(key.as_bytes());
        field(value.as_bytes());
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests;
