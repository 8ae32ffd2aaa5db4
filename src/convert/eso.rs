//! External Secrets Operator, v1: stores, ExternalSecrets and the workloads that take their Secrets.

use std::{collections::BTreeMap, fmt};

use super::{
    emit::{Doc, Map, document},
    manifest::{Output, Part, class_of},
    notes::Notes,
    workload::{Workload, at, text},
};
use crate::{
    check::literal,
    spec::yaml::{Kind, Node},
};

mod consumer;
mod fields;
mod reference;
mod secret;
mod store;
#[cfg(test)]
mod tests;

pub use fields::FIELDS;
use store::Store;

/// A resource, for messages and names.
#[derive(Clone, Debug)]
struct Source<'a> {
    file: &'a str,
    kind: &'a str,
    name: &'a str,
    namespace: &'a str,
    line: u64,
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            "ClusterSecretStore" => write!(f, "{} {}", self.kind, self.name),
            _ => write!(f, "{} {}/{}", self.kind, self.namespace, self.name),
        }
    }
}

/// What ExternalSecrets refer to.
#[derive(Debug, Default)]
struct Resources<'a> {
    /// By kind, namespace (none for a ClusterSecretStore) and name.
    stores: BTreeMap<(String, String, String), Store>,
    generators: BTreeMap<(String, String), (Store, &'a Node)>,
    config_maps: BTreeMap<(String, String), &'a Node>,
}

impl<'a> Resources<'a> {
    fn store(&self, kind: &str, name: &str, namespace: &str) -> Option<&Store> {
        let namespace = if kind == "ClusterSecretStore" { "" } else { namespace };
        self.stores.get(&(kind.to_owned(), namespace.to_owned(), name.to_owned()))
    }

    fn generator(&self, name: &str, namespace: &str) -> Option<(&Store, &'a Node)> {
        self.generators.get(&(namespace.to_owned(), name.to_owned())).map(|(store, spec)| (store, *spec))
    }

    fn config_map(&self, name: &str, namespace: &str) -> Option<&'a Node> {
        self.config_maps.get(&(namespace.to_owned(), name.to_owned())).copied()
    }
}

/// Whether it is one of the operator's resources, of a version that is known.
pub(super) fn is_resource(node: &Node) -> bool {
    let group = text(node, &["apiVersion"]).unwrap_or_default();
    group.starts_with("external-secrets.io/") || group.starts_with("generators.external-secrets.io/")
}

/// Says what becomes of each field of a mapping.
fn section(node: &Node, name: &str, notes: &mut Notes) {
    let Kind::Map(entries) = &node.kind else {
        notes.refused(node.line, format!("{name}: is {}, expected a mapping", node.describe()));
        return;
    };
    for (key, _) in entries {
        let field = format!("{name}.{}", key.as_text().unwrap_or_default());
        notes.field(FIELDS, &field, &field, key.line);
    }
}

/// Converts all of the operator's resources, and patches the workloads.
pub(super) fn convert<'a>(nodes: &'a [(String, Node)], out: &mut Output<'a>) {
    let mut resources = Resources::default();
    let mut secrets = Vec::new();
    let mut workloads = Vec::new();
    for (file, node) in nodes {
        let source = Source {
            file,
            kind: text(node, &["kind"]).unwrap_or_default(),
            name: text(node, &["metadata", "name"]).unwrap_or("unnamed"),
            namespace: text(node, &["metadata", "namespace"]).unwrap_or(out.namespace),
            line: node.line,
        };
        if source.kind == "ConfigMap"
            && let Some(data) = node.get("data")
        {
            resources.config_maps.insert((source.namespace.to_owned(), source.name.to_owned()), data);
        }
        if let Some(workload) = Workload::of(node) {
            workloads.push((source, workload));
        } else if is_resource(node) {
            match source.kind {
                "SecretStore" | "ClusterSecretStore" => add_store(source, node, &mut resources, out),
                "VaultDynamicSecret" => add_generator(source, node, &mut resources, out),
                "ExternalSecret" => secrets.push((source, node)),
                kind => {
                    let message = format!(
                        "{kind} {}: is not carried{}",
                        source.name,
                        match kind {
                            "ClusterExternalSecret" =>
                                ": give the ExternalSecret that it makes, for each namespace",
                            "PushSecret" =>
                                ": leasehold writes nothing back; generate makes a password in the store once",
                            "Password" =>
                                ": generate in an object makes a password in the store once, see docs/objects.md",
                            _ => "",
                        }
                    );
                    let mut notes = Notes::default();
                    notes.refused(node.line, message);
                    out.tell(file, &notes.into_sorted());
                }
            }
        }
    }
    let mut paths = Vec::new();
    for (source, node) in &secrets {
        paths.extend(external_secret(source, node, &resources, &workloads, out));
    }
    let stores = resources.stores.into_values();
    for mut store in stores.chain(resources.generators.into_values().map(|(store, _)| store)) {
        let read = paths.iter().filter(|(name, _)| *name == store.rule.name);
        store.rule.paths.extend(read.map(|(_, path)| literal(path)));
        store.rule.paths.sort();
        store.rule.paths.dedup();
        out.rules.push(store.rule);
    }
}

/// The class of an ExternalSecret and the patches of who takes its Secret; paths that its store does not name.
fn external_secret<'a>(
    source: &Source<'a>,
    node: &'a Node,
    resources: &Resources<'a>,
    workloads: &[(Source<'a>, Workload<'a>)],
    out: &mut Output<'a>,
) -> Vec<(String, String)> {
    let mut notes = Notes::default();
    let Some(spec) = node.get("spec") else {
        notes.refused(node.line, format!("{source}: has no spec"));
        out.tell(source.file, &notes.into_sorted());
        return Vec::new();
    };
    let made = secret::Reader::read(resources, source, spec, &mut notes);
    notes.changed(
        source.line,
        format!(
            "{source}: the identity becomes that of each pod that mounts the class, and there is no Secret any more: variables \
             and other users of the Secret are refused by name where their manifests are in the input"
        ),
    );
    let notes = notes.into_sorted();
    out.tell(source.file, &notes);
    let Some(mut parameters) = made.parameters.filter(|_| !made.objects.is_empty()) else {
        return Vec::new();
    };
    parameters.put("objects", document(&Doc::List(made.objects)));
    let about = format!("From {source} ({}).", source.file);
    out.add(Part::Class, &about, &notes, &class_of(source.name, Some(source.namespace), parameters));
    let target = text(spec, &["target", "name"]).unwrap_or(source.name);
    consumer::patch(source, target, workloads, out);
    made.paths
}

fn add_store<'a>(source: Source<'a>, node: &'a Node, resources: &mut Resources<'a>, out: &mut Output<'a>) {
    let mut notes = Notes::default();
    if let Some(spec) = node.get("spec") {
        section(spec, "store", &mut notes);
    }
    let provider = at(node, &["spec", "provider"]);
    match provider.and_then(|provider| provider.get("vault")) {
        Some(vault) => {
            let mut store = store::read(&source, vault, &mut notes);
            if source.kind == "ClusterSecretStore" {
                store::namespaces(node, &mut store.rule, &mut notes);
            } else {
                store.rule.namespaces.push(source.namespace.to_owned());
            }
            if let Some((name, pem)) = &store.bundle {
                let mut map = Map::default().with("apiVersion", "v1").with("kind", "ConfigMap");
                map.put("metadata", Map::default().with("name", name.as_str()));
                map.put("data", Map::default().with("ca.crt", pem.as_str()));
                let about = format!(
                    "The caBundle of {source}: apply it in leasehold's own namespace, and name it in allow.tlsConfigMaps."
                );
                out.add(Part::Class, &about, &[], &map.into());
            }
            let namespace = if source.kind == "ClusterSecretStore" { "" } else { source.namespace };
            let key = (source.kind.to_owned(), namespace.to_owned(), source.name.to_owned());
            resources.stores.insert(key, store);
        }
        None => {
            let message =
                format!("{source}: its provider is not vault, and leasehold reads Vault and OpenBao");
            notes.refused(provider.map_or(node.line, |provider| provider.line), message);
        }
    }
    out.tell(source.file, &notes.into_sorted());
}

fn add_generator<'a>(
    source: Source<'a>,
    node: &'a Node,
    resources: &mut Resources<'a>,
    out: &mut Output<'a>,
) {
    let mut notes = Notes::default();
    match (node.get("spec"), at(node, &["spec", "provider"])) {
        (Some(spec), Some(provider)) => {
            section(spec, "generator", &mut notes);
            let mut store = store::read(&source, provider, &mut notes);
            store.rule.namespaces.push(source.namespace.to_owned());
            store.rule.paths =
                text(spec, &["path"]).map(|path| literal(path.trim_matches('/'))).into_iter().collect();
            store.rule.writes =
                text(spec, &["method"]).is_some_and(|method| !method.eq_ignore_ascii_case("GET"));
            let key = (source.namespace.to_owned(), source.name.to_owned());
            resources.generators.insert(key, (store, spec));
        }
        _ => notes.refused(node.line, format!("{source}: has no spec.provider")),
    }
    out.tell(source.file, &notes.into_sorted());
}
