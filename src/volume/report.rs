//! What `leasehold ls` shows: every volume of the node, its objects, lives and next actions; never a value.

use std::{collections::BTreeSet, path::Path};

use serde::{Deserialize, Serialize};

use super::VolumeKey;
use crate::{
    backend::DataLifetime,
    clock::BootTime,
    lifecycle::{Lifecycle, volume::Mode},
    projection::{mounts::MountTable, writer},
    spec::PodIdentity,
};

/// One volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Where.
    pub target: String,
    /// For whom; absent for a volume that nobody manages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodIdentity>,
    /// Name of the SecretProviderClass.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub class: String,
    /// Who writes: `provider-written`, `driver-written`, `unmanaged`.
    pub mode: String,
    /// `live`, `mounting`, `retrying`, `refused`, `silent`, `expired`, `unmanaged`.
    pub state: String,
    /// Object names and versions.
    pub objects: Vec<(String, String)>,
    /// What it depends on.
    pub dependencies: Vec<DependencyReport>,
    /// What is due next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<NextReport>,
    /// The last thing that failed and has not succeeded since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Seconds until the ServiceAccount token held can no longer log in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_seconds: Option<u64>,
    /// Seconds its session lives on unless renewed; absent without one, or for one that lives for ever.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub session_seconds: Option<u64>,
}

/// One request of a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DependencyReport {
    /// Method and path.
    pub request: String,
    /// Seconds its credential lives on; absent without a lifetime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Of so many granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granted_seconds: Option<u64>,
    /// KV v2 version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Seconds since it was read or found unchanged.
    pub age_seconds: u64,
}

/// What is due.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NextReport {
    /// In so many seconds.
    pub seconds: u64,
    /// What, and why.
    pub what: String,
}

pub(super) fn report<'a>(
    core: &Lifecycle,
    unmanaged: impl Iterator<Item = &'a VolumeKey>,
    now: BootTime,
) -> Vec<VolumeReport> {
    let mut reports: Vec<VolumeReport> =
        core.volumes().iter().map(|(key, volume)| managed(core, key, volume, now)).collect();
    reports.extend(unmanaged.map(|key| VolumeReport {
        target: key.to_string(),
        mode: "unmanaged".into(),
        state: "unmanaged".into(),
        ..VolumeReport::default()
    }));
    reports
}

/// Volumes with a content as ours that no record tells of: left alone until their next Mount. Each is opened, and may
/// be another provider's, so this is for the start alone.
pub(super) fn unmanaged(core: &Lifecycle, table: &MountTable, kubelet_root: &Path) -> BTreeSet<VolumeKey> {
    table
        .kubelet_volumes(kubelet_root)
        .map(|entry| VolumeKey::new(entry.mount_point.clone()))
        .filter(|key| !core.volumes().contains_key(key))
        .filter(|key| writer::inspect(key.path()).is_ok_and(|found| found.data.is_some()))
        .collect()
}

/// In which state a volume is, as `ls` and the metrics name it.
pub(super) fn state(volume: &crate::lifecycle::volume::Volume, now: BootTime) -> &'static str {
    let installed = volume.installed.as_ref();
    let mut known = installed.iter().flat_map(|installed| installed.dependencies.values());
    let expired = known.any(|dependency| dependency.dies().is_some_and(|at| at <= now));
    let failing = volume.attempt.as_ref().is_some_and(|attempt| attempt.failure.is_some());
    match (installed, &volume.refused) {
        (_, Some(_)) => "refused",
        (None, None) if failing => "retrying",
        (None, None) => "mounting",
        (Some(_), None) if volume.silent => "silent",
        (Some(_), None) if expired => "expired",
        (Some(_), None) => "live",
    }
}

fn managed(
    core: &Lifecycle,
    key: &VolumeKey,
    volume: &crate::lifecycle::volume::Volume,
    now: BootTime,
) -> VolumeReport {
    let installed = volume.installed.as_ref();
    let dependencies: Vec<DependencyReport> = installed
        .iter()
        .flat_map(|installed| installed.dependencies.values())
        .map(|dependency| {
            let granted = match (&dependency.lease, dependency.lifetime) {
                (Some((_, term)), _) => Some(term.ttl.as_secs()),
                (None, Some(DataLifetime::Expires { ttl })) => Some(ttl.as_secs()),
                (None, _) => None,
            };
            DependencyReport {
                request: format!("{} {}", dependency.request.method.as_str(), dependency.request.path),
                ttl_seconds: dependency.ends().map(|ends| now.until(ends).as_secs()),
                granted_seconds: granted,
                version: dependency.kv_version,
                age_seconds: now.since(dependency.since).as_secs(),
            }
        })
        .collect();
    let failing = volume.attempt.as_ref().and_then(|attempt| attempt.failure.as_ref());
    let state = state(volume, now);
    let session = installed.and_then(|installed| core.sessions().get(&installed.session));
    let error = volume
        .refused
        .clone()
        .or_else(|| volume.rejected.as_ref().map(|why| format!("edit rejected: {why}")))
        .or_else(|| failing.map(|failure| failure.message.clone()))
        .or_else(|| installed?.dependencies.values().find_map(|dependency| dependency.last_error.clone()))
        .or_else(|| session.and_then(|session| session.last_error.clone()));
    VolumeReport {
        target: key.to_string(),
        pod: Some(volume.pod.clone()),
        class: volume.class.clone(),
        mode: match volume.mode {
            Mode::ProviderWritten => "provider-written".into(),
            Mode::DriverWritten => "driver-written".into(),
        },
        state: state.into(),
        objects: installed.map(|installed| installed.versions.clone()).unwrap_or_default(),
        dependencies,
        next: core.next_action(key).map(|(at, what)| NextReport { seconds: now.until(at).as_secs(), what }),
        error,
        session_seconds: session
            .and_then(|session| session.term)
            .filter(|term| !term.ttl.is_zero())
            .map(|term| now.until(term.ends()).as_secs()),
        login_seconds: volume.token.and_then(|token| token.expires).map(|at| now.until(at).as_secs()),
    }
}
