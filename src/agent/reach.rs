//! What the agent has to reach once it is confined: what its file names, and nothing else of the container's.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    mounter,
    settings::{Settings, Source},
};
use crate::{
    projection::mounts::MountTable,
    sandbox::{self, Grant, Rights, seccomp::Profile},
    spec::agent::AgentFile,
};

/// What the process is for. What it starts inherits its confinement, so that must fit there.
pub(super) fn profile(settings: &Settings) -> Profile {
    if settings.command.is_some() || settings.allow_commands { Profile::Supervisor } else { Profile::Agent }
}

/// The agent's confinement: its folders and state to write; its configuration, credentials and TLS files to
/// read; /proc, where the processes of the pod are found by name. Makes folders that are not there.
pub(super) fn settings(settings: &Settings) -> sandbox::Settings {
    let Settings { source, file, inputs, state_dir, health_addr, sandbox, .. } = settings;
    let mut grants = vec![
        Grant { path: state_dir.clone(), rights: Rights::Write },
        // The control socket.
        Grant { path: state_dir.clone(), rights: Rights::Sockets },
        Grant { path: "/proc".into(), rights: Rights::Read },
    ];
    let (Source::Own(named) | Source::VaultAgent(named) | Source::Annotations(named)) = source;
    let read = inputs.iter().chain([named]).map(PathBuf::as_path).chain(file.auth.files());
    let read: BTreeSet<PathBuf> = read.flat_map(sandbox::around).chain(tls(file)).collect();
    grants.extend(read.into_iter().map(|path| Grant { path, rights: Rights::Read }));
    grants.extend(written(file).into_iter().map(|path| Grant { path, rights: Rights::Write }));
    let port = health_addr.as_ref().and_then(|address| address.rsplit_once(':')?.1.parse().ok());
    sandbox::Settings {
        core_dumps: sandbox.core_dumps,
        landlock: sandbox.landlock,
        seccomp: sandbox.seccomp,
        profile: profile(settings),
        grants,
        listens: port.into_iter().collect(),
    }
}

/// Every folder of the file has the same connection.
fn tls(file: &AgentFile) -> Vec<PathBuf> {
    let Some(spec) = file.folders.first().map(|folder| &folder.spec) else { return Vec::new() };
    let tls = &spec.connection.tls;
    tls.files().flat_map(sandbox::around).chain(tls.ca_directory.as_ref().map(PathBuf::from)).collect()
}

/// Where it writes beside its state.
fn written(file: &AgentFile) -> BTreeSet<PathBuf> {
    let mounts = MountTable::read().ok();
    // The whole mount, which is the agent's own: a folder in it may be made anew.
    let room = |folder: PathBuf| {
        let mount = mounts.as_ref().and_then(|mounts| mounts.covering(&folder));
        let point = mount.map(|mount| mount.mount_point.clone());
        point.filter(|point| point.parent().is_some()).unwrap_or(folder)
    };
    // What cannot be made is told of when it is asked for.
    let folders = file.folders.iter().filter_map(|folder| mounter::resolved(&folder.path).ok()).map(room);
    let touched =
        super::actions(file).filter_map(|action| action.touch.as_deref()?.parent()).map(Path::to_owned);
    let removed =
        file.auth.secret_id.as_deref().filter(|_| file.auth.remove_secret_id).and_then(Path::parent);
    folders.chain(touched).chain(removed.map(Path::to_owned)).collect()
}
