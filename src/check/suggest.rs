//! The smallest policy under which given SecretProviderClasses work.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use super::{Class, Judge, Report, UNKNOWN_ADDRESS, examine, manifest, read};
use crate::{
    policy::address_key,
    spec::{Object, TlsSpec, VolumeSpec, parameters::Defaults},
};

/// What the classes of one namespace ask for at one address.
#[derive(Default)]
struct Needs {
    /// Whether a manifest named no namespace.
    guessed: bool,
    vault_namespaces: BTreeSet<String>,
    auth_mounts: BTreeSet<String>,
    roles: BTreeSet<String>,
    paths: BTreeSet<String>,
    audiences: BTreeSet<String>,
    /// Whether an audience is not its provider's default.
    other_audience: bool,
    tls_dirs: BTreeSet<String>,
    skip_verify: bool,
    writes: bool,
}

/// Writes a policy file that allows the SecretProviderClasses in `paths` and nothing else, as far as can be
/// told offline: which ServiceAccounts use them cannot. `judge` has the agent's own defaults, as far as known.
/// What cannot be read or parsed is left out and is in the report that is given back.
///
/// # Errors
/// Those of `out`.
pub fn suggest_policy(paths: &[PathBuf], judge: &Judge, out: &mut dyn io::Write) -> io::Result<Report> {
    let mut report = Report::default();
    let mut judge = Judge { policy: None, ..judge.clone() };
    for defaults in judge.defaults.values_mut() {
        defaults.address.get_or_insert_with(|| UNKNOWN_ADDRESS.into());
    }
    let own: BTreeSet<_> = judge.defaults.values().filter_map(|own| own.address.as_deref()).collect();
    let own: BTreeSet<_> = own.into_iter().filter_map(|own| address_key(own).ok()).collect();
    let mut rules: BTreeMap<(String, Option<String>), Needs> = BTreeMap::new();
    for (file, text) in read(paths, &mut report) {
        for class in manifest::classes(&file, &text, &mut report) {
            let Some(spec) = examine(&class, &judge, &mut report) else { continue };
            let Some(defaults) = judge.defaults.get(&class.provider) else { continue };
            let namespace = class.namespace.clone().unwrap_or_else(|| judge.namespace.clone());
            let address = &spec.connection.address;
            // The agent's own addresses are allowed to those who name none.
            let is_own = address_key(address).is_ok_and(|key| own.contains(&key));
            let address = (!is_own).then(|| address.clone());
            rules.entry((namespace, address)).or_default().add(&class, &spec, defaults);
        }
    }
    writeln!(out, "# The smallest policy for {} SecretProviderClass(es).", report.classes)?;
    if report.has_errors() {
        writeln!(out, "# Some have errors and are left out, see: leasehold check")?;
    }
    writeln!(out, "rules:{}", if rules.is_empty() { " []" } else { "" })?;
    for ((namespace, address), needs) in &rules {
        needs.write(namespace, address.as_deref(), out)?;
    }
    Ok(report)
}

impl Needs {
    fn add(&mut self, class: &Class, spec: &VolumeSpec, defaults: &Defaults) {
        let connection = &spec.connection;
        self.guessed |= class.namespace.is_none();
        let root = connection.namespace.is_empty();
        self.vault_namespaces.insert(if root { "root".into() } else { connection.namespace.clone() });
        self.auth_mounts.insert(spec.login.mount.to_string());
        self.roles.insert(spec.login.role.clone());
        self.audiences.insert(spec.login.audience.clone());
        self.other_audience |= spec.login.audience != class.provider.default_audience();
        self.skip_verify |= connection.tls.skip_verify && !defaults.tls.skip_verify;
        self.add_tls(&connection.tls, &defaults.tls);
        for request in spec.objects.iter().flat_map(Object::requests) {
            let path = &request.path;
            self.paths.insert(if root {
                path.to_string()
            } else {
                format!("{}/{path}", connection.namespace)
            });
            self.writes |= request.may_write();
        }
    }

    fn add_tls(&mut self, tls: &TlsSpec, own: &TlsSpec) {
        let files = [
            (&tls.ca_cert, &own.ca_cert),
            (&tls.client_cert, &own.client_cert),
            (&tls.client_key, &own.client_key),
        ];
        for (file, own) in files {
            if let Some(dir) = file.as_ref().filter(|_| file != own).and_then(|file| Path::new(file).parent())
            {
                self.tls_dirs.insert(dir.display().to_string());
            }
        }
        self.tls_dirs.extend(tls.ca_directory.clone().filter(|_| tls.ca_directory != own.ca_directory));
    }

    fn write(&self, namespace: &str, address: Option<&str>, out: &mut dyn io::Write) -> io::Result<()> {
        let name = address.map_or(namespace.to_owned(), |address| format!("{namespace} at {address}"));
        writeln!(out, "  - name: {}", quoted(&name))?;
        let guess =
            if self.guessed { " # a manifest names no namespace: put the right one here" } else { "" };
        writeln!(out, "    namespaces: [{}]{guess}", quoted(namespace))?;
        writeln!(out, "    serviceAccounts: [\"*\"] # not known offline: name those that use them")?;
        if let Some(address) = address {
            writeln!(out, "    addresses: [{}]", quoted(address))?;
        }
        list("vaultNamespaces", &self.vault_namespaces, out)?;
        list("authMounts", &self.auth_mounts, out)?;
        list("roles", &self.roles, out)?;
        writeln!(out, "    paths:")?;
        for path in &self.paths {
            writeln!(out, "      - {}", quoted(&literal(path)))?;
        }
        if self.other_audience {
            list("audiences", &self.audiences, out)?;
        }
        if !self.tls_dirs.is_empty() {
            list("tlsDirs", &self.tls_dirs, out)?;
        }
        if self.writes {
            writeln!(out, "    writes: allow")?;
        }
        if self.skip_verify {
            writeln!(out, "    skipTLSVerify: allow # anyone on the network can read these secrets")?;
        }
        Ok(())
    }
}

fn list(field: &str, values: &BTreeSet<String>, out: &mut dyn io::Write) -> io::Result<()> {
    let values: Vec<String> = values.iter().map(|value| quoted(&literal(value))).collect();
    writeln!(out, "    {field}: [{}]", values.join(", "))
}

// JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}

// Patterns have no escapes. The rare text with a star or a variable in it gets one star in place of each.
pub(crate) fn literal(text: &str) -> String {
    let mut text = text.replace("${", "*{");
    while text.contains("**") {
        text = text.replace("**", "*");
    }
    text
}
