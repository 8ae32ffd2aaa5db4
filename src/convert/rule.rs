//! Rules of the node's policy.

use super::emit::{Doc, Map};
use crate::{
    check::{UNKNOWN_ADDRESS, literal},
    spec::{Object, VolumeSpec},
};

/// What one rule allows. Empty lists are left out.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    pub(super) name: String,
    pub(super) namespaces: Vec<String>,
    pub(super) service_accounts: Vec<String>,
    pub(super) addresses: Vec<String>,
    pub(super) vault_namespace: String,
    pub(super) auth_mounts: Vec<String>,
    pub(super) roles: Vec<String>,
    /// Without the Vault namespace.
    pub(super) paths: Vec<String>,
    pub(super) audiences: Vec<String>,
    pub(super) tls_dirs: Vec<String>,
    pub(super) writes: bool,
    pub(super) skip_verify: bool,
    /// What a person should know of it.
    pub(super) comments: Vec<String>,
}

impl Rule {
    /// What a class asks for, and nothing else.
    pub(super) fn of(name: &str, namespace: &str, service_account: &str, spec: &VolumeSpec) -> Self {
        let mut rule = Self {
            name: name.to_owned(),
            namespaces: vec![namespace.to_owned()],
            service_accounts: vec![service_account.to_owned()],
            vault_namespace: spec.connection.namespace.clone(),
            auth_mounts: vec![literal(spec.login.mount.as_str())],
            roles: vec![literal(&spec.login.role)],
            skip_verify: spec.connection.tls.skip_verify,
            ..Self::default()
        };
        if spec.connection.address != UNKNOWN_ADDRESS {
            rule.addresses.push(spec.connection.address.clone());
        }
        for request in spec.objects.iter().flat_map(Object::requests) {
            rule.paths.push(literal(request.path.as_str()));
            rule.writes |= request.is_write();
        }
        for file in [&spec.connection.tls.ca_cert, &spec.connection.tls.client_cert].into_iter().flatten() {
            rule.tls_dirs.extend(file.rsplit_once('/').map(|(folder, _)| folder.to_owned()));
        }
        rule.paths.sort();
        rule.paths.dedup();
        rule.tls_dirs.sort();
        rule.tls_dirs.dedup();
        rule
    }

    pub(super) fn to_doc(&self) -> Doc {
        let mut rule = Map::default().with("name", self.name.as_str());
        self.comments.iter().for_each(|text| {
            rule.comment(text.as_str());
        });
        rule.put("namespaces", self.namespaces.clone());
        let mut list = |name: &str, values: &[String]| {
            if !values.is_empty() {
                rule.put(name, values.to_vec());
            }
        };
        list("serviceAccounts", &self.service_accounts);
        list("addresses", &self.addresses);
        let prefix = match self.vault_namespace.as_str() {
            "" => {
                list("vaultNamespaces", &["root".to_owned()]);
                String::new()
            }
            namespace => {
                list("vaultNamespaces", &[literal(namespace)]);
                format!("{}/", literal(namespace))
            }
        };
        list("authMounts", &self.auth_mounts);
        list("roles", &self.roles);
        // From the root namespace a path reaches every other: then there must be some.
        let paths = match self.paths.as_slice() {
            [] => vec![format!("{prefix}**")],
            paths => paths.iter().map(|path| format!("{prefix}{path}")).collect(),
        };
        list("paths", &paths);
        list("audiences", &self.audiences);
        list("tlsDirs", &self.tls_dirs);
        if self.writes {
            rule.put("writes", "allow");
        }
        if self.skip_verify {
            rule.put("skipTLSVerify", "allow");
        }
        rule.into()
    }
}
