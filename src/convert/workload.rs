//! Pods and what makes them, and patches of them.

use super::{
    emit::{Doc, Map},
    injector::{Given, PREFIX},
};
use crate::spec::yaml::{Kind, Node};

/// A manifest with a pod, or a template of pods.
#[derive(Clone, Debug)]
pub(super) struct Workload<'a> {
    pub(super) api_version: &'a str,
    pub(super) kind: &'a str,
    pub(super) name: &'a str,
    pub(super) namespace: Option<&'a str>,
    pub(super) line: u64,
    /// The pod: `metadata` and `spec`.
    pod: &'a Node,
    /// Where it is in the manifest.
    path: &'static [&'static str],
}

/// Text at a path of a node.
pub(super) fn at<'a>(node: &'a Node, path: &[&str]) -> Option<&'a Node> {
    path.iter().try_fold(node, |node, name| node.get(name))
}

pub(super) fn text<'a>(node: &'a Node, path: &[&str]) -> Option<&'a str> {
    at(node, path).and_then(Node::as_text).filter(|text| !text.is_empty())
}

pub(super) fn items<'a>(node: &'a Node, path: &[&str]) -> &'a [Node] {
    match at(node, path).map(|node| &node.kind) {
        Some(Kind::List(items)) => items,
        _ => &[],
    }
}

impl<'a> Workload<'a> {
    pub(super) fn of(node: &'a Node) -> Option<Self> {
        const PATHS: [&[&str]; 3] =
            [&["spec", "jobTemplate", "spec", "template"], &["spec", "template"], &[]];
        let kind = text(node, &["kind"])?;
        let path = PATHS.into_iter().find(|path| {
            let pod = at(node, path);
            let has_containers = pod.is_some_and(|pod| at(pod, &["spec", "containers"]).is_some());
            has_containers && (!path.is_empty() || kind == "Pod")
        })?;
        Some(Self {
            api_version: text(node, &["apiVersion"]).unwrap_or("v1"),
            kind,
            name: text(node, &["metadata", "name"])
                .or_else(|| text(node, &["metadata", "generateName"]))
                .unwrap_or("app"),
            namespace: text(node, &["metadata", "namespace"]),
            line: node.line,
            pod: at(node, path)?,
            path,
        })
    }

    /// The injector's annotations of its pods, without their prefix.
    pub(super) fn annotations(&self) -> Vec<Given> {
        let Some(Node { kind: Kind::Map(entries), .. }) = at(self.pod, &["metadata", "annotations"]) else {
            return Vec::new();
        };
        let given = entries.iter().filter_map(|(key, value)| {
            let name = key.as_text()?.strip_prefix(PREFIX)?;
            // A block's text begins a line below its name, which is where one looks.
            Some((name.to_owned(), value.as_text()?.to_owned(), key.line))
        });
        given.collect()
    }

    pub(super) fn service_account(&self) -> &'a str {
        text(self.pod, &["spec", "serviceAccountName"])
            .or_else(|| text(self.pod, &["spec", "serviceAccount"]))
            .unwrap_or("default")
    }

    /// Containers of a field of the pod, by name.
    pub(super) fn containers(&self, field: &str) -> Vec<(&'a str, &'a Node)> {
        items(self.pod, &["spec", field])
            .iter()
            .filter_map(|container| Some((text(container, &["name"])?, container)))
            .collect()
    }

    pub(super) fn volumes(&self) -> &'a [Node] {
        items(self.pod, &["spec", "volumes"])
    }

    /// A strategic merge patch of it.
    pub(super) fn patch(&self, annotations: Map, spec: Map) -> Doc {
        let mut pod = Map::default();
        if !annotations.is_empty() {
            pod.put("metadata", Map::default().with("annotations", annotations));
        }
        pod.put("spec", spec);
        let mut wrapped = pod;
        for name in self.path.iter().rev() {
            wrapped = Map::default().with(name, wrapped);
        }
        let mut metadata = Map::default().with("name", self.name);
        metadata.put_some("namespace", self.namespace);
        let mut patch = Map::default().with("apiVersion", self.api_version);
        patch.put("kind", self.kind).put("metadata", metadata);
        if self.path.is_empty() {
            // Its own metadata has a name already.
            let annotations = match wrapped.get("metadata") {
                Some(Doc::Map(metadata)) => metadata.get("annotations").cloned(),
                _ => None,
            };
            let metadata = match patch.get("metadata") {
                Some(Doc::Map(metadata)) => metadata.clone(),
                _ => Map::default(),
            };
            let mut merged = metadata;
            merged.put_some("annotations", annotations);
            patch = patch.without("metadata");
            patch.put("metadata", merged);
            wrapped = wrapped.without("metadata");
        }
        patch.append(wrapped);
        patch.into()
    }
}

/// A CSI volume with a class.
pub(super) fn csi_volume(name: &str, class: &str) -> Map {
    let attributes = Map::default().with("secretProviderClass", class);
    let csi = Map::default()
        .with("driver", "secrets-store.csi.k8s.io")
        .with("readOnly", true)
        .with("volumeAttributes", attributes);
    Map::default().with("name", name).with("csi", csi)
}
