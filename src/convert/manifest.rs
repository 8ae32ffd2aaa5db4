//! Manifests in, documents out.

use std::collections::BTreeMap;

use super::{
    Note, Severity,
    emit::{Doc, Map, comment, document},
    eso, injector,
    notes::Notes,
    rule::Rule,
    workload::{Workload, csi_volume, text},
};
use crate::{
    check::Judge,
    spec::{
        FileMode, ProviderName, VolumeSpec, parameters,
        yaml::{self, Kind, Node},
    },
};

/// API version of what is made.
const CLASS: &str = "secrets-store.csi.x-k8s.io/v1";

/// What a document is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// SecretProviderClasses, and what they need beside them.
    Class,
    /// Rules for the node's policy file.
    Policy,
    /// Patches of workloads.
    Patch,
}

/// One document of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What it is for.
    pub part: Part,
    /// YAML with its comments, without a separator.
    pub text: String,
}

/// What became of manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// In order of the input, the policy last.
    pub documents: Vec<Document>,
    /// What changed its meaning or could not be carried, each with its file.
    pub notes: Vec<(String, Note)>,
    /// Documents that are of no concern.
    pub skipped: usize,
}

impl Converted {
    /// Whether something cannot be carried: the caller's exit status.
    pub fn is_incomplete(&self) -> bool {
        self.notes.iter().any(|(_, note)| note.severity == Severity::Refused)
    }
}

/// Converts manifests, each under its file's name; `namespace` is of those that name none.
pub fn convert(texts: &[(String, String)], namespace: &str) -> Converted {
    let mut out = Output { namespace, converted: Converted::default(), rules: Vec::new() };
    let mut nodes = Vec::new();
    for (file, text) in texts {
        for document in yaml::documents(text) {
            match document {
                Ok(Node { kind: Kind::Null, .. }) => {}
                Ok(node) => flatten(file, node, &mut nodes),
                Err(error) => {
                    let note = Note { line: error.line, severity: Severity::Refused, message: error.message };
                    out.converted.notes.push((file.clone(), note));
                }
            }
        }
    }
    for (file, node) in &nodes {
        match Workload::of(node) {
            Some(workload) if workload.annotations().iter().any(|(name, ..)| name == "agent-inject") => {
                out.injected(file, &workload);
            }
            _ if eso::is_resource(node) => {}
            _ => out.converted.skipped += 1,
        }
    }
    eso::convert(&nodes, &mut out);
    out.finish()
}

fn flatten(file: &str, node: Node, into: &mut Vec<(String, Node)>) {
    if text(&node, &["kind"]).is_some_and(|kind| kind.ends_with("List"))
        && let Kind::Map(entries) = &node.kind
        && let Some((_, Node { kind: Kind::List(items), .. })) =
            entries.iter().find(|(key, _)| key.as_text() == Some("items"))
    {
        items.iter().for_each(|item| flatten(file, item.clone(), into));
        return;
    }
    into.push((file.to_owned(), node));
}

/// Documents so far.
pub(super) struct Output<'a> {
    pub(super) namespace: &'a str,
    pub(super) converted: Converted,
    pub(super) rules: Vec<Rule>,
}

impl Output<'_> {
    /// A document, under what it is from and what is to be known.
    pub(super) fn add(&mut self, part: Part, about: &str, notes: &[Note], body: &Doc) {
        let mut text = comment(about, 0);
        notes.iter().for_each(|note| text.push_str(&comment(&note.to_string(), 0)));
        text.push_str(&document(body));
        self.converted.documents.push(Document { part, text });
    }

    pub(super) fn tell(&mut self, file: &str, notes: &[Note]) {
        self.converted.notes.extend(notes.iter().map(|note| (file.to_owned(), note.clone())));
    }

    /// A workload with the injector's annotations.
    fn injected(&mut self, file: &str, workload: &Workload<'_>) {
        let Workload { kind, name, .. } = *workload;
        let namespace = workload.namespace.unwrap_or(self.namespace);
        let annotations = workload.annotations();
        let mut notes = Notes::default();
        if !annotations.iter().any(|(name, value, _)| name == "agent-inject" && value == "true") {
            self.converted.skipped += 1;
            return;
        }
        let classes = injector::classes(&annotations, &mut notes);
        notes.changed(
            workload.line,
            "the token that logs in is made for the audience \"vault\" (the CSIDriver's tokenRequests) and is the pod's as \
             before: a role of the auth mount that demands another audience must take this one",
        );
        let mut notes = notes.into_sorted();
        notes.iter_mut().for_each(|note| note.line = note.line.or(Some(workload.line)));
        self.tell(file, &notes);

        let about = format!("From {kind} {name} ({file}).");
        let mut volumes = Vec::new();
        let mut mounts = Vec::new();
        for (index, (parameters, path)) in classes.iter().enumerate() {
            let number = if index == 0 { String::new() } else { format!("-{}", index + 1) };
            let class = format!("{name}-secrets{number}");
            let volume = format!("vault-secrets{number}");
            let body = class_of(&class, Some(namespace), parameters.clone());
            self.add(Part::Class, &about, if index == 0 { &notes } else { &[] }, &body);
            volumes.push(csi_volume(&volume, &class));
            mounts.push(
                Map::default().with("name", volume).with("mountPath", path.as_str()).with("readOnly", true),
            );
            if let Some(spec) = spec_of(parameters) {
                let rule = Rule::of(
                    &format!("{kind} {namespace}/{name}{number}"),
                    namespace,
                    workload.service_account(),
                    &spec,
                );
                self.rules.push(rule);
            }
        }
        if classes.is_empty() {
            return;
        }
        let chosen = annotations
            .iter()
            .find(|(name, ..)| name == "agent-inject-containers")
            .map(|(_, value, _)| value);
        let takes =
            |container: &str| chosen.is_none_or(|list| list.split(',').any(|one| one.trim() == container));
        let with_mounts =
            |(name, _): (&str, &Node)| Map::default().with("name", name).with("volumeMounts", mounts.clone());
        let containers: Vec<Map> = workload
            .containers("containers")
            .into_iter()
            .filter(|(name, _)| takes(name))
            .map(with_mounts)
            .collect();
        let mut spec = Map::default().with("volumes", volumes).with("containers", containers);
        // The injector gives its folder to the pod's own init containers too.
        let before: Vec<Map> = workload
            .containers("initContainers")
            .into_iter()
            .filter(|(name, _)| takes(name))
            .map(with_mounts)
            .collect();
        if !before.is_empty() {
            spec.put("initContainers", before);
        }
        let mut gone = Map::default();
        for (name, ..) in &annotations {
            gone.put(&format!("{}{name}", injector::PREFIX), Doc::null());
        }
        let about = format!(
            "A strategic merge patch of {kind} {name} ({file}): the CSI volume in place of the injector's container."
        );
        self.add(Part::Patch, &about, &[], &workload.patch(gone, spec));
    }

    fn finish(mut self) -> Converted {
        if !self.rules.is_empty() {
            let rules: Vec<Doc> = self.rules.iter().map(Rule::to_doc).collect();
            let body = Map::default().with("rules", Doc::List(rules)).into();
            let about = "The node's policy (policy.rules in the chart's values): every namespace that no rule names is refused.";
            self.add(Part::Policy, about, &[], &body);
        }
        self.converted
    }
}

/// A SecretProviderClass.
pub(super) fn class_of(name: &str, namespace: Option<&str>, parameters: Map) -> Doc {
    let mut metadata = Map::default().with("name", name);
    metadata.put_some("namespace", namespace);
    let spec = Map::default().with("provider", "leasehold").with("parameters", parameters);
    let mut class = Map::default().with("apiVersion", CLASS);
    class.put("kind", "SecretProviderClass").put("metadata", metadata).put("spec", spec);
    class.into()
}

/// What parameters ask for, where they are right: what is wrong in them is told by the check of the result.
pub(super) fn spec_of(parameters: &Map) -> Option<VolumeSpec> {
    let judge = Judge::default();
    let defaults = judge.defaults.get(&ProviderName::Leasehold)?;
    let attributes: BTreeMap<String, String> = parameters.texts();
    parameters::collect(ProviderName::Leasehold, &attributes, FileMode::DEFAULT, defaults).spec
}
