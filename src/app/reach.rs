//! What the provider has to reach once it is confined: nothing else of the file system.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    config::Config,
    kubernetes,
    sandbox::{Grant, Rights, Settings, seccomp::Profile},
    spec::TlsSpec,
};

/// The provider's confinement: the kubelet's pods, its state, the folders of its sockets, and what it or a
/// SecretProviderClass may name for TLS.
pub(super) fn settings(config: &Config) -> Settings {
    let mut grants = vec![
        Grant { path: config.kubelet_root.join("pods"), rights: Rights::Write },
        Grant { path: config.state_dir.clone(), rights: Rights::Write },
        // The control socket.
        Grant { path: config.state_dir.clone(), rights: Rights::Sockets },
    ];
    let sockets: BTreeSet<_> =
        config.endpoints.iter().filter_map(|endpoint| endpoint.path.parent()).collect();
    grants.extend(sockets.into_iter().map(|path| Grant { path: path.to_owned(), rights: Rights::Sockets }));
    let mut trusted: BTreeSet<PathBuf> = config.policy.tls_dirs().map(Path::to_owned).collect();
    config.baseline.own_tls.iter().for_each(|tls| trusted.extend(own(tls)));
    grants.extend(trusted.into_iter().map(|path| Grant { path, rights: Rights::Read }));
    if config.kubernetes.any() {
        grants.push(Grant { path: PathBuf::from(kubernetes::SERVICE_ACCOUNT_DIR), rights: Rights::Read });
    }
    let port = config.health_addr.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let switches = config.sandbox;
    Settings {
        core_dumps: switches.core_dumps,
        landlock: switches.landlock,
        seccomp: switches.seccomp,
        profile: Profile::Provider,
        grants,
        listens: port.into_iter().collect(),
    }
}

/// A file of a ConfigMap or Secret is replaced by a new one behind a link, so its folder is granted.
fn own(tls: &TlsSpec) -> impl Iterator<Item = PathBuf> {
    let files = [&tls.ca_cert, &tls.client_cert, &tls.client_key].into_iter().flatten();
    let folders = files.map(PathBuf::from).flat_map(|file| {
        let linked = fs::canonicalize(&file).ok();
        [Some(file), linked].into_iter().flatten().map(|file| match file.parent() {
            Some(parent) if parent.parent().is_some() => parent.to_owned(),
            // In the root folder: that file only.
            _ => file,
        })
    });
    folders.chain(tls.ca_directory.as_ref().map(PathBuf::from))
}
