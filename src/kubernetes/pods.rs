//! What `fileOwner: pod` stands for: the user and group that the pod's securityContext names.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::{Api, Client};

use super::{ApiError, ask};
use crate::{
    spec::{FileOwner, PodIdentity},
    volume::{FailureKind, MountFailure},
};

/// Owners kept: a node has some 250 pods, each with a volume or two. A securityContext cannot be edited.
const MAX_KEPT: usize = 1024;

/// Why a pod gives no owner.
#[derive(Debug, thiserror::Error)]
pub enum PodOwnerError {
    /// The pod cannot be read.
    #[error("fileOwner: pod: the pod cannot be read: {error}{}", remedy(.error))]
    Api {
        /// Why.
        error: ApiError,
    },
    /// A pod of the same name took its place.
    #[error("fileOwner: pod: the API server knows another pod of this name; the kubelet will call again")]
    Replaced,
    /// It says nothing of users.
    #[error(
        "fileOwner: pod: the pod's securityContext has no runAsUser and no fsGroup (what the image's own user is, \
         nobody can see): set one, or write numbers in fileOwner"
    )]
    Unset,
    /// The containers that mount the volume differ.
    #[error(
        "fileOwner: pod: the containers that mount the volume run as different users ({}): set fsGroup in the pod's \
         securityContext, or write numbers in fileOwner", users.join(", ")
    )]
    Different {
        /// `name: uid` of each.
        users: Vec<String>,
    },
}

// Display shows what the API server said, so it is no `source`: both would show it.
fn remedy(error: &ApiError) -> &'static str {
    match error {
        ApiError::Forbidden { .. } => {
            "; grant it (readPods.enabled in the chart), or write numbers in fileOwner, or set fileOwner in the pod's \
             own volumeAttributes"
        }
        _ => "; the kubelet will call again",
    }
}

impl From<PodOwnerError> for MountFailure {
    fn from(error: PodOwnerError) -> Self {
        let kind = match error {
            PodOwnerError::Api { error: ApiError::Forbidden { .. } } => FailureKind::FailedPrecondition,
            PodOwnerError::Api { .. } | PodOwnerError::Replaced => FailureKind::Internal,
            PodOwnerError::Unset | PodOwnerError::Different { .. } => FailureKind::InvalidArgument,
        };
        Self::new(kind, error.to_string())
    }
}

/// Pod uid and name of the volume.
type Key = (String, String);

/// Reads pods, each once.
pub struct PodReader {
    client: Client,
    kept: Mutex<BTreeMap<Key, FileOwner>>,
}

impl std::fmt::Debug for PodReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodReader").finish_non_exhaustive()
    }
}

impl PodReader {
    /// Reads through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, kept: Mutex::default() }
    }

    /// Who owns the files of `volume`, as `pod`'s securityContext says.
    ///
    /// # Errors
    /// When the pod cannot be read, or names nobody, or names several.
    pub async fn owner(&self, pod: &PodIdentity, volume: &str) -> Result<FileOwner, PodOwnerError> {
        let key = (pod.uid.clone(), volume.to_owned());
        if let Some(owner) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(*owner);
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let read =
            ask("get pods", pods.get(&pod.name)).await.map_err(|error| PodOwnerError::Api { error })?;
        if read.metadata.uid.as_deref() != Some(pod.uid.as_str()) {
            return Err(PodOwnerError::Replaced);
        }
        let owner = owner(&read.spec.unwrap_or_default(), volume)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(key, owner);
        Ok(owner)
    }
}

/// A container's runAsUser wins over the pod's, and fsGroup over runAsGroup: as the kubelet does it for
/// processes, and for the files of every volume that it owns itself.
fn owner(spec: &PodSpec, volume: &str) -> Result<FileOwner, PodOwnerError> {
    let context = spec.security_context.clone().unwrap_or_default();
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mounts =
        |container: &&Container| container.volume_mounts.iter().flatten().any(|mount| mount.name == volume);
    let users: Vec<(&str, Option<i64>, Option<i64>)> = containers
        .filter(mounts)
        .map(|container| {
            let own = container.security_context.as_ref();
            let user = own.and_then(|own| own.run_as_user).or(context.run_as_user);
            let group = own.and_then(|own| own.run_as_group).or(context.run_as_group);
            (container.name.as_str(), user, group)
        })
        .collect();
    let distinct: BTreeSet<Option<i64>> = users.iter().map(|(_, user, _)| *user).collect();
    let groups: BTreeSet<Option<i64>> = users.iter().map(|(_, _, group)| *group).collect();
    let fs_group = context.fs_group.and_then(id);
    let user = match (distinct.len(), distinct.first()) {
        // No container mounts it: what the pod says is all there is.
        (0, _) => context.run_as_user,
        (1, Some(user)) => *user,
        // Root's, and the group lets all of them in.
        _ if fs_group.is_some() => None,
        _ => {
            let users = users.iter().map(|(name, user, _)| {
                format!("{name}: {}", user.map_or_else(|| "not set".to_owned(), |user| user.to_string()))
            });
            return Err(PodOwnerError::Different { users: users.collect() });
        }
    };
    let group = if groups.len() == 1 { groups.first().copied().flatten() } else { context.run_as_group };
    let uid = user.and_then(id);
    if uid.is_none() && fs_group.is_none() {
        return Err(PodOwnerError::Unset);
    }
    Ok(FileOwner { uid, gid: fs_group.or_else(|| group.and_then(id)) })
}

fn id(number: i64) -> Option<u32> {
    // The highest is chown's "leave as it is".
    u32::try_from(number).ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::{Value, json};

    use super::*;

    fn of(pod: Value, containers: Value) -> Result<(Option<u32>, Option<u32>), String> {
        let spec = json!({"securityContext": pod, "containers": containers});
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        owner(&spec, "secrets").map(|owner| (owner.uid, owner.gid)).map_err(|error| error.to_string())
    }

    fn container(name: &str, volume: &str, context: Value) -> Value {
        json!({"name": name, "securityContext": context, "volumeMounts": [{"name": volume, "mountPath": "/s"}]})
    }

    #[test]
    fn the_container_wins_for_the_user_and_fs_group_for_the_group() {
        let plain = container("app", "secrets", json!({}));
        let own = container("app", "secrets", json!({"runAsUser": 7, "runAsGroup": 8}));
        let other = container("side", "other", json!({"runAsUser": 9}));
        for (pod, containers, expected) in [
            (json!({"runAsUser": 1}), json!([plain]), (Some(1), None)),
            (json!({"runAsUser": 1, "runAsGroup": 2}), json!([plain]), (Some(1), Some(2))),
            (json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3}), json!([plain]), (Some(1), Some(3))),
            (json!({"runAsUser": 1, "runAsGroup": 2}), json!([own]), (Some(7), Some(8))),
            (json!({"runAsUser": 1, "fsGroup": 3}), json!([own, other]), (Some(7), Some(3))),
            (json!({"runAsUser": 1}), json!([other]), (Some(1), None)),
            (json!({"fsGroup": 3}), json!([plain]), (None, Some(3))),
            (json!({"runAsUser": 0}), json!([plain]), (Some(0), None)),
            (json!({"runAsUser": 1, "fsGroup": 3}), json!([own, plain]), (None, Some(3))),
        ] {
            assert_eq!(of(pod.clone(), containers.clone()), Ok(expected), "{pod} {containers}");
        }
    }

    #[test]
    fn what_names_nobody_or_several_is_an_error() {
        let plain = container("app", "secrets", json!({}));
        let own = container("side", "secrets", json!({"runAsUser": 7}));
        let error = of(json!({"runAsGroup": 5}), json!([plain])).unwrap_err();
        assert!(error.contains("no runAsUser and no fsGroup"), "{error}");
        let error = of(json!({}), json!([plain, own])).unwrap_err();
        assert!(error.contains("different users (app: not set, side: 7)"), "{error}");
        let error = of(json!({"runAsUser": -1}), json!([plain])).unwrap_err();
        assert!(error.contains("no runAsUser"), "{error}");
    }
}
