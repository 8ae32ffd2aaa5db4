//! What the provider has to reach once it is confined: nothing else of the file system.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::{
    config::Config,
    kubernetes,
    sandbox::{self, Grant, Rights, Settings, seccomp::Profile},
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

fn own(tls: &TlsSpec) -> impl Iterator<Item = PathBuf> {
    tls.files().flat_map(sandbox::around).chain(tls.ca_directory.as_ref().map(PathBuf::from))
}
