//! SecretStore, ClusterSecretStore, and the server that a VaultDynamicSecret names.

use super::{Source, section};
use crate::convert::{
    emit::Map,
    notes::{Notes, plain},
    rule::Rule,
    workload::{at, items, text},
};
use crate::spec::yaml::Node;

/// Where the chart mounts the ConfigMaps of `allow.tlsConfigMaps`.
const TLS: &str = "/etc/leasehold/tls";

/// Where secrets are, and as whom they are read.
#[derive(Clone, Debug)]
pub(super) struct Store {
    /// Of a SecretProviderClass.
    pub(super) parameters: Map,
    /// The mount that every key is below.
    pub(super) path: Option<String>,
    pub(super) versioned: bool,
    pub(super) rule: Rule,
    /// A ConfigMap with authorities, by name.
    pub(super) bundle: Option<(String, String)>,
}

/// Reads `spec.provider.vault` of a store, or `spec.provider` of a generator.
pub(super) fn read(source: &Source<'_>, vault: &Node, notes: &mut Notes) -> Store {
    section(vault, "vault", notes);
    let mut parameters = Map::default();
    let mut rule = Rule { name: source.to_string(), ..Rule::default() };
    let mut bundle = None;
    let get = |path: &[&str]| text(vault, path).map(str::to_owned);
    if let Some(auth) = vault.get("auth") {
        login(source, auth, &mut parameters, &mut rule, notes);
    } else {
        notes.refused(vault.line, format!("{source}: has no auth"));
    }
    parameters.put_some("vaultAddress", get(&["server"]));
    rule.addresses.extend(get(&["server"]));
    let (namespace, login_namespace) = (get(&["namespace"]), get(&["auth", "namespace"]));
    if login_namespace.is_some() && namespace != login_namespace {
        let line = at(vault, &["auth", "namespace"]).map_or(vault.line, |node| node.line);
        notes.changed(line, "auth.namespace: is another than namespace; leasehold logs in where it reads");
    }
    let namespace = namespace.or(login_namespace);
    rule.vault_namespace = namespace.as_deref().unwrap_or_default().trim_matches('/').to_owned();
    parameters.put_some("vaultNamespace", namespace);

    let mut file = |folder: &str, key: &str| {
        rule.tls_dirs.push(format!("{TLS}/{folder}"));
        format!("{TLS}/{folder}/{key}")
    };
    if let Some(encoded) = get(&["caBundle"]) {
        let pem = data_encoding::BASE64
            .decode(encoded.trim().as_bytes())
            .ok()
            .and_then(|pem| String::from_utf8(pem).ok());
        match pem {
            Some(pem) => {
                let name = format!("{}-ca", source.name);
                parameters.put("vaultCACertPath", file(&name, "ca.crt"));
                bundle = Some((name, pem));
            }
            None => notes.refused(vault.line, format!("{source}: caBundle is not the base64 of PEM")),
        }
    } else if let Some(name) = get(&["caProvider", "name"]) {
        let key = get(&["caProvider", "key"]).unwrap_or_else(|| "ca.crt".into());
        parameters.put("vaultCACertPath", file(&name, &key));
    }
    for (reference, parameter, usual) in [
        ("certSecretRef", "vaultTLSClientCertPath", "tls.crt"),
        ("keySecretRef", "vaultTLSClientKeyPath", "tls.key"),
    ] {
        if let Some(name) = get(&["tls", reference, "name"]) {
            let key = get(&["tls", reference, "key"]).unwrap_or_else(|| usual.into());
            parameters.put(parameter, file(&name, &key));
        }
    }
    rule.tls_dirs.dedup();
    let path = get(&["path"]).map(|path| path.trim_matches('/').to_owned()).filter(|path| !path.is_empty());
    let versioned = match get(&["version"]).as_deref() {
        None | Some("v2") => true,
        Some("v1") => false,
        Some(other) => {
            notes.refused(vault.line, format!("{source}: version {} is neither v1 nor v2", plain(other)));
            true
        }
    };
    if let (Some(path), false) = (&path, source.kind == "VaultDynamicSecret") {
        let path = crate::check::literal(path);
        rule.paths.push(if versioned { format!("{path}/data/**") } else { format!("{path}/**") });
    }
    Store { parameters, path, versioned, rule, bundle }
}

fn login(source: &Source<'_>, auth: &Node, parameters: &mut Map, rule: &mut Rule, notes: &mut Notes) {
    section(auth, "auth", notes);
    let (method, mount_field, usual, reference) = if let Some(kubernetes) = auth.get("kubernetes") {
        section(kubernetes, "kubernetes", notes);
        (kubernetes, "mountPath", "kubernetes", at(kubernetes, &["serviceAccountRef"]))
    } else if let Some(jwt) = auth.get("jwt") {
        section(jwt, "jwt", notes);
        (jwt, "path", "jwt", at(jwt, &["kubernetesServiceAccountToken"]))
    } else {
        // Which it is has been refused by name. The class needs a role all the same.
        parameters.put("roleName", "role-of-the-pods-service-account");
        rule.roles.push("role-of-the-pods-service-account".into());
        return;
    };
    match text(method, &["role"]) {
        Some(role) => {
            parameters.put("roleName", role);
            rule.roles.push(crate::check::literal(role));
        }
        None => notes.refused(method.line, format!("{source}: names no role to log in as")),
    }
    let mount = text(method, &[mount_field]).unwrap_or(usual).trim_matches('/');
    parameters.put("vaultAuthMountPath", mount);
    rule.auth_mounts.push(crate::check::literal(mount));
    let Some(reference) = reference else {
        notes.changed(
            method.line,
            format!(
                "{source}: the identity becomes that of each pod that mounts the volume: let the role bind the pods' \
                 ServiceAccounts"
            ),
        );
        return;
    };
    let audiences: Vec<&str> = items(reference, &["audiences"])
        .iter()
        .chain(items(reference, &["serviceAccountRef", "audiences"]))
        .filter_map(Node::as_text)
        .collect();
    if let Some(audience) = audiences.first().filter(|audience| **audience != "vault") {
        parameters.put("audience", *audience);
        rule.audiences.push(crate::check::literal(audience));
        notes.changed(
            reference.line,
            format!("audience {}: add it to the tokenRequests of the CSIDriver", plain(audience)),
        );
    }
}

/// The namespaces that a ClusterSecretStore serves.
pub(super) fn namespaces(store: &Node, rule: &mut Rule, notes: &mut Notes) {
    let conditions = items(store, &["spec", "conditions"]);
    if conditions.is_empty() {
        rule.namespaces.push("*".into());
        rule.comments.push("the store served every namespace".into());
        return;
    }
    for condition in conditions {
        section(condition, "conditions", notes);
        rule.namespaces
            .extend(items(condition, &["namespaces"]).iter().filter_map(Node::as_text).map(str::to_owned));
        for pattern in items(condition, &["namespaceRegexes"]) {
            let regex = pattern.as_text().unwrap_or_default();
            match glob(regex) {
                Some(glob) => rule.namespaces.push(glob),
                None => notes.refused(
                    pattern.line,
                    format!(
                        "conditions.namespaceRegexes: no pattern says the same as {:?}: name the namespaces",
                        plain(regex)
                    ),
                ),
            }
        }
    }
    if rule.namespaces.is_empty() {
        rule.namespaces.push("no-namespace-was-named".into());
        rule.comments.push("name the namespaces here".into());
    }
}

/// A pattern that says the same as a regular expression of letters and `.*`.
fn glob(regex: &str) -> Option<String> {
    let inner = regex.strip_prefix('^')?.strip_suffix('$')?;
    let mut glob = String::new();
    let mut rest = inner;
    while let Some(letter) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix(".*") {
            glob.push('*');
            rest = after;
        } else if letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-' {
            glob.push(letter);
            rest = &rest[1..];
        } else {
            return None;
        }
    }
    (!glob.is_empty() && !glob.contains("**")).then_some(glob)
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn a_regular_expression_becomes_a_pattern_only_if_it_says_the_same() {
        for (regex, expected) in [
            ("^team-.*$", Some("team-*")),
            ("^a$", Some("a")),
            ("^.*-prod$", Some("*-prod")),
            ("team-.*", None),
            ("^team-[ab]$", None),
            ("^team-.+$", None),
            ("^(a|b)$", None),
            ("^$", None),
        ] {
            assert_eq!(glob(regex).as_deref(), expected, "{regex}");
        }
    }
}
