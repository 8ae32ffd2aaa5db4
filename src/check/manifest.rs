//! Finds SecretProviderClasses in files of manifests, and keeps the lines of their parameters.

use std::collections::BTreeMap;

use super::{Report, Severity};
use crate::{
    spec::{
        ProviderName,
        origin::Origin,
        yaml::{self, Kind, Node},
    },
    template::Position,
};

/// API group of SecretProviderClasses; versions v1 and v1alpha1 have the same fields.
const API_VERSIONS: [&str; 2] = ["secrets-store.csi.x-k8s.io/v1", "secrets-store.csi.x-k8s.io/v1alpha1"];

/// A SecretProviderClass for one of our providers.
pub(super) struct Class {
    pub(super) file: String,
    /// `metadata.name`; empty when the manifest names none.
    pub(super) name: String,
    /// `metadata.namespace`, when the manifest names one.
    pub(super) namespace: Option<String>,
    pub(super) provider: ProviderName,
    pub(super) parameters: BTreeMap<String, String>,
    /// Line of the resource, or just above the parameters where there are any.
    pub(super) line: u64,
    places: BTreeMap<String, Place>,
}

/// Where a parameter is.
struct Place {
    /// Line of its name.
    key: u64,
    /// Of its text.
    origin: Origin,
}

impl Class {
    /// Line and column in the file of those within the text of `parameter`; as much as is known of them.
    pub(super) fn place_of(
        &self,
        parameter: Option<&str>,
        line: Option<u64>,
        column: Option<u64>,
    ) -> (u64, Option<u64>) {
        let Some((name, place)) = parameter.and_then(|name| self.places.get_key_value(name)) else {
            return (self.line, None);
        };
        let text = self.parameters.get(name).map_or("", String::as_str);
        let within = |line: u64| {
            let at = Position { line: line.try_into().ok()?, column: column.unwrap_or(1).try_into().ok()? };
            place.origin.locate(text, at)
        };
        match line.and_then(within) {
            Some(found) => (found.line as u64, column.map(|_| found.column as u64)),
            None => (place.key, None),
        }
    }
}

/// The classes of one file. What is no YAML is a finding, what is of another kind is counted.
pub(super) fn classes(file: &str, text: &str, report: &mut Report) -> Vec<Class> {
    let mut found = Vec::new();
    for document in yaml::documents(text) {
        match document {
            Ok(Node { kind: Kind::Null, .. }) => {}
            Ok(node) => resource(file, &node, report, &mut found),
            Err(error) => report.add(file, error.line.unwrap_or(1), Severity::Error, error),
        }
    }
    found
}

fn resource(file: &str, node: &Node, report: &mut Report, found: &mut Vec<Class>) {
    let text = |name| node.get(name).and_then(Node::as_text).unwrap_or_default();
    // What `kubectl get -o yaml` prints of several.
    if let (true, Some(Kind::List(items))) =
        (text("kind").ends_with("List"), node.get("items").map(|n| &n.kind))
    {
        items.iter().for_each(|item| resource(file, item, report, found));
        return;
    }
    if text("kind") != "SecretProviderClass" || !API_VERSIONS.contains(&text("apiVersion")) {
        report.skipped += 1;
        return;
    }
    match class(file, node, report) {
        Some(class) => found.push(class),
        None => report.skipped += 1,
    }
}

fn class(file: &str, node: &Node, report: &mut Report) -> Option<Class> {
    let spec = node.get("spec");
    let field = |name| spec.and_then(|spec| spec.get(name));
    let provider = match field("provider").and_then(Node::as_text).unwrap_or_default() {
        "vault" => ProviderName::Vault,
        "openbao" => ProviderName::Openbao,
        "leasehold" => ProviderName::Leasehold,
        "" => {
            let line = spec.map_or(node.line, |spec| spec.line);
            report.add(file, line, Severity::Error, "spec.provider is missing: vault, openbao or leasehold");
            return None;
        }
        _ => return None,
    };
    let metadata = |name| node.get("metadata").and_then(|metadata| metadata.get(name));
    let namespace = metadata("namespace").filter(|namespace| is_label(namespace));
    if let Some(bad) = metadata("namespace").filter(|_| namespace.is_none()) {
        report.add(file, bad.line, Severity::Error, "metadata.namespace is not the name of a namespace");
    }
    let mut class = Class {
        file: file.to_owned(),
        name: metadata("name").and_then(Node::as_text).unwrap_or_default().to_owned(),
        namespace: namespace.and_then(Node::as_text).map(str::to_owned),
        provider,
        parameters: BTreeMap::new(),
        line: node.line,
        places: BTreeMap::new(),
    };
    if let Some(Node { kind: Kind::Map(entries), line }) = field("parameters") {
        // A block mapping starts at its first entry; what is missing from it is missing above.
        class.line = line.saturating_sub(1).max(node.line);
        for (key, value) in entries {
            let name = key.as_text().unwrap_or_default().to_owned();
            if !matches!(value.kind, Kind::Text(..)) {
                let what = value.describe();
                let message =
                    format!("parameter {name} is {what}, and the API server takes text only: quote it");
                report.add(file, value.line, Severity::Error, message);
            }
            // Examined as if it were quoted, so that one mistake is one finding.
            if let Some(text) = value.as_text() {
                class.parameters.insert(name.clone(), text.to_owned());
            }
            class.places.insert(name, Place { key: key.line, origin: value.origin().clone() });
        }
    }
    Some(class)
}

fn is_label(node: &Node) -> bool {
    node.as_text().is_some_and(|name| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !name.is_empty() && name.len() <= 63 && name.bytes().all(plain)
    })
}
