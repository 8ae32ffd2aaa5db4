//! What a render shows: a table of the files, their values when asked for, and the files themselves when told
//! to write them.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context, bail};

use crate::{
    backend::Secret,
    cli::RenderArgs,
    clock,
    projection::{FileProjection, Payload},
    render::{DigestKey, render},
    spec::{
        DependencyId, Object, SecretRequest, VolumeSpec,
        object::{Part, Source},
    },
    telemetry,
};

/// What is shown, and how.
pub(super) struct Preview<'a> {
    pub(super) arguments: &'a RenderArgs,
    pub(super) spec: VolumeSpec,
}

impl Preview<'_> {
    /// Renders what was read, shows it, and writes it when told to. `failed` is whether something had failed
    /// before; `left_out` says why a request has no answer.
    pub(super) fn finish(
        &self,
        secrets: &BTreeMap<DependencyId, Secret>,
        left_out: &BTreeMap<DependencyId, &str>,
        mut failed: bool,
    ) -> anyhow::Result<ExitCode> {
        let (text, payload, missing) = self.render(secrets, left_out);
        super::super::print(&text)?;
        // A skipped request is what was asked for; an object that cannot be rendered is a failure.
        failed |= missing > left_out_objects(&self.spec, left_out);
        let written = match (self.arguments.write, missing) {
            (false, _) => "nothing was written: --write writes the files\n".to_owned(),
            (true, 0) => {
                write_files(&self.arguments.target, &payload)?;
                format!("written  {} files to {}\n", payload.files.len(), self.arguments.target.display())
            }
            (true, missing) => {
                failed = true;
                format!("nothing was written: {missing} objects are missing\n")
            }
        };
        super::super::print(&written)?;
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// The table of files, what they are made of, and how many objects are missing from it. Objects are
    /// rendered one by one: each that fails is shown.
    fn render(
        &self,
        secrets: &BTreeMap<DependencyId, Secret>,
        left_out: &BTreeMap<DependencyId, &str>,
    ) -> (String, Payload, usize) {
        let key = DigestKey::new(&rand::random());
        let mut payload = Payload::default();
        let header = ["FILE", "MODE", "BYTES", "VERSION", "FROM"].map(str::to_owned);
        let mut rows = vec![header.to_vec()];
        let mut missing = Vec::new();
        for object in self.spec.objects.iter().filter(|object| !object.is_input()) {
            if let Some(why) = needs(&self.spec, object).find_map(|it| left_out.get(&it.id())) {
                missing.push(format!("missing  {}: {why}\n", object.name()));
                continue;
            }
            let inputs = inputs_of(&self.spec, object);
            let objects = inputs.chain([object]).cloned().collect();
            let alone = VolumeSpec { objects, ..self.spec.clone() };
            let files = match render(&alone, secrets, &key, clock::wall_now()) {
                Ok(rendered) => rendered.payload.files,
                Err(error) => {
                    missing.push(format!("failed   {}\n", telemetry::chain(&error)));
                    continue;
                }
            };
            let (version, from) = match &object.source {
                Source::Template(_) => (None, "template".to_owned()),
                Source::Secret { request, part } => {
                    let key = match part {
                        Part::Key(key) => format!(" key {key}"),
                        _ => String::new(),
                    };
                    let version = secrets.get(&request.id()).and_then(|secret| secret.kv_version);
                    (version, format!("{} {}{key}", request.method.as_str(), request.path))
                }
            };
            for (path, file) in files {
                rows.push(vec![
                    self.arguments.target.join(path.as_str()).display().to_string(),
                    format!("{:04o}", file.mode.bits()),
                    file.contents.len().to_string(),
                    version.map_or_else(|| "-".to_owned(), |version| version.to_string()),
                    from.clone(),
                ]);
                payload.files.insert(path, file);
            }
        }
        // What objects do to each other, such as two that come to one file, shows in all of them.
        if missing.is_empty()
            && let Err(error) = render(&self.spec, secrets, &key, clock::wall_now())
        {
            missing.push(format!("failed   {}\n", telemetry::chain(&error)));
        }
        let mut text = String::new();
        if rows.len() > 1 {
            text.push('\n');
            text.push_str(&super::super::table(&rows));
            text.push_str(&self.values(&payload));
            text.push('\n');
        }
        missing.iter().for_each(|line| text.push_str(line));
        (text, payload, missing.len())
    }

    fn values(&self, payload: &Payload) -> String {
        if !self.arguments.show_values {
            return "the values are not shown: --show-values shows them\n".to_owned();
        }
        payload
            .files
            .iter()
            .map(|(path, file)| {
                let path = self.arguments.target.join(path.as_str());
                format!("--- {}\n{}\n", path.display(), readable(file))
            })
            .collect()
    }
}

/// Objects that are missing because their request was not made or not answered.
fn left_out_objects(spec: &VolumeSpec, left_out: &BTreeMap<DependencyId, &str>) -> usize {
    let files = spec.objects.iter().filter(|object| !object.is_input());
    files.filter(|object| needs(spec, object).any(|it| left_out.contains_key(&it.id()))).count()
}

/// The entries with `as` that an object may use.
fn inputs_of<'a>(spec: &'a VolumeSpec, object: &'a Object) -> impl Iterator<Item = &'a Object> {
    let uses = match &object.source {
        Source::Template(_) => true,
        Source::Secret { part, .. } => matches!(part, Part::Keystore { .. }),
    };
    spec.objects.iter().filter(move |it| uses && it.is_input())
}

/// The requests without which an object cannot be rendered.
fn needs<'a>(spec: &'a VolumeSpec, object: &'a Object) -> impl Iterator<Item = &'a SecretRequest> {
    inputs_of(spec, object).chain([object]).flat_map(Object::requests)
}

/// Text as it is, everything else as base64: it must not steer a terminal.
fn readable(file: &FileProjection) -> String {
    let bytes = file.contents.expose();
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') => {
            text.trim_end_matches('\n').to_owned()
        }
        _ => format!("base64: {}", data_encoding::BASE64.encode(bytes)),
    }
}

/// Plain files for looking at, without the modes and the swap that a volume has.
fn write_files(target: &Path, payload: &Payload) -> anyhow::Result<()> {
    for (path, file) in &payload.files {
        let path = target.join(path.as_str());
        let written = (|| {
            if let Some(parent) = path.parent() {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            }
            let mut created = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            created.write_all(file.contents.expose())
        })();
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A folder that is there and empty: nothing of the user's is overwritten.
pub(super) fn prepare(target: &Path) -> anyhow::Result<()> {
    let shown = target.display();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(target)
        .with_context(|| format!("cannot make the folder {shown}"))?;
    let mut entries = fs::read_dir(target).with_context(|| format!("cannot read the folder {shown}"))?;
    if entries.next().is_some() {
        bail!("{shown} is not empty: --write wants a folder of its own");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::FileMode;

    #[test]
    fn a_value_cannot_steer_a_terminal() {
        for (bytes, expected) in [
            (&b"a\tb\nc\n"[..], "a\tb\nc"),
            (b"\x1b[2J", "base64: G1sySg=="),
            (b"\xff", "base64: /w=="),
            ("\u{9b}2J".as_bytes(), "base64: wpsySg=="),
        ] {
            let file =
                FileProjection { contents: bytes.to_vec().into(), mode: FileMode::DEFAULT, owner: None };
            assert_eq!(readable(&file), expected);
        }
    }
}
