//! Who takes the Secret that an ExternalSecret made.

use super::Source;
use crate::{
    convert::{
        emit::{Doc, Map},
        manifest::{Output, Part},
        notes::{Notes, plain},
        workload::{Workload, at, csi_volume, items, text},
    },
    spec::yaml::Node,
};

/// Patches of the workloads of the namespace that mount the Secret `target`; what takes it otherwise is refused.
pub(super) fn patch<'a>(
    source: &Source<'a>,
    target: &str,
    workloads: &[(Source<'a>, Workload<'a>)],
    out: &mut Output<'a>,
) {
    let mut found = false;
    for (of, workload) in workloads.iter().filter(|(of, _)| of.namespace == source.namespace) {
        let mut notes = Notes::default();
        let mut volumes = Vec::new();
        for volume in workload.volumes() {
            let Some(name) = text(volume, &["name"]) else { continue };
            if text(volume, &["secret", "secretName"]) == Some(target) {
                tell_of_volume(volume, name, &mut notes);
                let mut replaced = Map::default().with("name", name);
                replaced.put("secret", Doc::null()).append(csi_volume(name, source.name).without("name"));
                volumes.push(replaced);
            }
            let projected = items(volume, &["projected", "sources"]);
            if projected.iter().any(|it| text(it, &["secret", "name"]) == Some(target)) {
                notes.refused(
                    volume.line,
                    format!(
                        "volume {}: a projected volume cannot hold the files: mount a volume of their own",
                        plain(name)
                    ),
                );
            }
        }
        for field in ["initContainers", "containers"] {
            for (name, container) in workload.containers(field) {
                tell_of_variables(name, container, target, &mut notes);
                for mount in items(container, &["volumeMounts"]) {
                    let ours = volumes
                        .iter()
                        .any(|it| it.get("name") == text(mount, &["name"]).map(Doc::from).as_ref());
                    if ours && at(mount, &["subPath"]).is_some() {
                        notes.changed(
                            mount.line,
                            format!(
                                "container {}: a mount with subPath does not follow changes",
                                plain(name)
                            ),
                        );
                    }
                }
            }
        }
        let mut notes = notes.into_sorted();
        for note in &mut notes {
            note.message =
                format!("{} {} takes Secret {}: {}", of.kind, of.name, plain(target), note.message);
        }
        out.tell(of.file, &notes);
        found |= !notes.is_empty();
        if volumes.is_empty() {
            continue;
        }
        found = true;
        let about = format!(
            "A strategic merge patch of {} {} ({}): the CSI volume in place of Secret {target}.",
            of.kind, of.name, of.file
        );
        let patch = workload.patch(Map::default(), Map::default().with("volumes", volumes));
        out.add(Part::Patch, &about, &notes, &patch);
    }
    if !found {
        nobody(source, target, out);
    }
}

/// A patch for whoever is not in the input.
fn nobody(source: &Source<'_>, target: &str, out: &mut Output<'_>) {
    let mount = Map::default()
        .with("name", source.name)
        .with("mountPath", format!("/etc/secrets/{target}"))
        .with("readOnly", true);
    let container = Map::default().with("name", "app").with("volumeMounts", vec![mount]);
    let spec = Map::default()
        .with("volumes", vec![csi_volume(source.name, source.name)])
        .with("containers", vec![container]);
    let template = Map::default().with("template", Map::default().with("spec", spec));
    let metadata = Map::default().with("name", "app").with("namespace", source.namespace);
    let mut patch = Map::default().with("apiVersion", "apps/v1").with("kind", "Deployment");
    patch.put("metadata", metadata).put("spec", template);
    let about = format!(
        "A strategic merge patch for each workload that takes Secret {target}, of which none is in the input: put its kind and \
         its names in place of Deployment and app."
    );
    out.add(Part::Patch, &about, &[], &patch.into());
}

fn tell_of_volume(volume: &Node, name: &str, notes: &mut Notes) {
    let name = plain(name);
    let chosen = items(volume, &["secret", "items"]);
    if chosen.iter().any(|item| text(item, &["key"]) != text(item, &["path"])) {
        notes.refused(
            volume.line,
            format!("volume {name}: gives files other names than their keys (items): rename each objectName, or mount with subPath"),
        );
    } else if !chosen.is_empty() {
        notes.changed(volume.line, format!("volume {name}: all keys are files, not only those of items"));
    }
    if let Some(mode) = text(volume, &["secret", "defaultMode"]) {
        notes.changed(
            volume.line,
            format!("volume {name}: defaultMode {} is the driver's 0644 now: filePermission says it for each object", plain(mode)),
        );
    }
    if text(volume, &["secret", "optional"]) == Some("true") {
        notes.changed(
            volume.line,
            format!("volume {name}: the pod does not start without it: optional is per object"),
        );
    }
}

fn tell_of_variables(name: &str, container: &Node, target: &str, notes: &mut Notes) {
    let advice =
        "a CSI volume sets no variables: read the file, or supervise the process with leasehold agent --exec";
    for variable in items(container, &["env"]) {
        if text(variable, &["valueFrom", "secretKeyRef", "name"]) == Some(target) {
            let of = plain(text(variable, &["name"]).unwrap_or_default());
            notes.refused(
                variable.line,
                format!("variable {of} of container {} (secretKeyRef): {advice}", plain(name)),
            );
        }
    }
    for source in items(container, &["envFrom"]) {
        if text(source, &["secretRef", "name"]) == Some(target) {
            notes.refused(
                source.line,
                format!("all variables of container {} (envFrom): {advice}", plain(name)),
            );
        }
    }
}
