//! The Vault Agent injector's annotations: as SecretProviderClasses with a pod patch, and as the in-pod agent's
//! file.
//!
//! The injector turns annotations into a configuration of Vault Agent. So does this, as a tree; the rest is the
//! one translation of such configurations. A SecretProviderClass is made of the same words.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ConvertError, Translation, agent_file,
    emit::{Doc, Map},
    notes::{Notes, plain},
    vault_agent::Translator,
    workload::Workload,
};
use crate::spec::{
    values,
    yaml::{self, Kind, Node},
};

mod fields;
#[cfg(test)]
pub(super) mod tests;

pub use fields::{ANNOTATIONS, Annotation};

/// What the injector's annotations begin with.
pub(crate) const PREFIX: &str = "vault.hashicorp.com/";

/// Where files are that say nothing else.
const VOLUME_PATH: &str = "/vault/secrets";

/// Templates of secrets that have none (the injector's own).
const MAP_TEMPLATE: (&str, &str) =
    ("{{ with secret \"", "\" }}{{ range $k, $v := .Data }}{{ $k }}: {{ $v }}\n{{ end }}{{ end }}");
const JSON_TEMPLATE: (&str, &str) = ("{{ with secret \"", "\" }}{{ .Data | toJSON }}\n{{ end }}");

/// Which way annotations go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// SecretProviderClasses.
    Class,
    /// The in-pod agent's file.
    Agent,
}

/// An annotation of a pod: name without the prefix, value, line.
pub(crate) type Given = (String, String, u64);

/// Translates a pod's annotations, as the kubelet writes them into a downward API volume (a line for each:
/// `name="escaped value"`), into the in-pod agent's file.
///
/// # Errors
/// When a line is no annotation, with its number. What is understood and cannot be carried is a note with
/// [`super::Severity::Refused`]: call [`Translation::complete`] before running the result.
pub fn translate(text: &str) -> Result<Translation, ConvertError> {
    let annotations = downward(text)?;
    let mut notes = Notes::default();
    let top = read(&annotations, Target::Agent, &mut notes);
    Ok(Translation { yaml: agent_file::text(top), notes: notes.into_sorted() })
}

/// The first workload with the injector's annotations in a text, if it is manifests.
pub(super) fn of_manifest(text: &str) -> Option<Translation> {
    let documents = yaml::documents(text);
    let nodes: Vec<Node> = documents.into_iter().filter_map(Result::ok).collect();
    let annotations = nodes.iter().filter_map(Workload::of).map(|workload| workload.annotations());
    let annotations =
        annotations.into_iter().find(|given| given.iter().any(|(name, ..)| name == "agent-inject"))?;
    let mut notes = Notes::default();
    let top = read(&annotations, Target::Agent, &mut notes);
    Some(Translation { yaml: agent_file::text(top), notes: notes.into_sorted() })
}

/// The annotations of a downward API file.
fn downward(text: &str) -> Result<Vec<Given>, ConvertError> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = index as u64 + 1;
        let refuse = || ConvertError::Syntax {
            line: Some(number),
            message:
                "is not name=\"value\", as the kubelet writes annotations (fieldPath: metadata.annotations)"
                    .into(),
        };
        let (name, value) = line.split_once('=').ok_or_else(refuse)?;
        let value = unquote(value).ok_or_else(refuse)?;
        if let Some(name) = name.strip_prefix(PREFIX) {
            found.push((name.to_owned(), value, number));
        }
    }
    Ok(found)
}

/// Go's `%q` undone.
fn unquote(text: &str) -> Option<String> {
    let mut rest = text.strip_prefix('"')?.strip_suffix('"')?.chars();
    let mut bytes = Vec::new();
    while let Some(letter) = rest.next() {
        let letter = match letter {
            '"' => return None,
            '\\' => match rest.next()? {
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                'x' => {
                    bytes.push(u8::try_from(hex_code(&mut rest, 2)?).ok()?);
                    continue;
                }
                'u' => char::from_u32(hex_code(&mut rest, 4)?)?,
                'U' => char::from_u32(hex_code(&mut rest, 8)?)?,
                same @ ('\\' | '"' | '\'') => same,
                _ => return None,
            },
            other => other,
        };
        bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
    }
    String::from_utf8(bytes).ok()
}

fn hex_code(rest: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    let hex: String = rest.by_ref().take(digits).collect();
    u32::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == digits)
}

/// The in-pod agent's file as a tree, for either target: a SecretProviderClass has the same words.
pub(super) fn read(annotations: &[Given], target: Target, notes: &mut Notes) -> Map {
    let mut given: BTreeMap<&'static str, BTreeMap<&str, (&str, u64)>> = BTreeMap::new();
    for (name, value, line) in annotations {
        let shown = plain(name);
        let Some((row, rest)) = fields::find(name) else {
            let near = values::nearest(name, ANNOTATIONS.iter().map(|row| row.name));
            let hint = near.map(|near| format!(", did you mean {PREFIX}{near}?")).unwrap_or_default();
            notes.refused(*line, format!("{PREFIX}{shown}: no such annotation is known here{hint}"));
            continue;
        };
        let field = if target == Target::Class { row.class } else { row.agent };
        if let Some(severity) = field.fate
            && !is_off(row.name, value)
        {
            notes.add(*line, severity, format!("{PREFIX}{shown}: {}", field.text));
        }
        // Its own note says it all.
        if (target, row.name) != (Target::Class, "agent-inject-command-<n>") {
            given.entry(row.name).or_default().insert(rest, (value, *line));
        }
    }
    let given = Annotations { given };
    let (root, bases) = given.agent_config(notes);
    let mut translator = Translator::default();
    (translator.bases, translator.notes) = (bases, std::mem::take(notes));
    translator.file(&root);
    *notes = translator.notes;
    let mut top = translator.top;
    if let Some((value, _)) = given.one("agent-revoke-on-shutdown") {
        top.put("revokeOnShutdown", value == "true");
    }
    if let Some((value, line)) = given.one("agent-revoke-grace") {
        match value.parse::<u32>() {
            Ok(seconds) => {
                top.put("revokeGrace", format!("{seconds}s"));
            }
            Err(_) => notes.refused(line, format!("{PREFIX}agent-revoke-grace: is no number of seconds")),
        }
    }
    top
}

/// Whether what would be lost is switched off anyway.
fn is_off(name: &str, value: &str) -> bool {
    value == "false" && matches!(name, "agent-inject-token" | "agent-pre-populate-only" | "tls-skip-verify")
}

struct Annotations<'a> {
    given: BTreeMap<&'static str, BTreeMap<&'a str, (&'a str, u64)>>,
}

fn text(value: impl Into<String>, line: u64) -> Node {
    Node { line, kind: Kind::text(value) }
}

fn map(entries: Vec<(&str, Node)>, line: u64) -> Node {
    let entries = entries.into_iter().map(|(key, value)| (text(key, value.line), value)).collect();
    Node { line, kind: Kind::Map(entries) }
}

impl<'a> Annotations<'a> {
    fn one(&self, name: &str) -> Option<(&'a str, u64)> {
        self.named(name, "")
    }

    fn named(&self, name: &str, of: &str) -> Option<(&'a str, u64)> {
        self.given.get(name)?.get(of).copied().filter(|(value, _)| !value.is_empty())
    }

    /// What the injector would configure Vault Agent with, and the folders that it would mount.
    fn agent_config(&self, notes: &mut Notes) -> (Node, Vec<String>) {
        let mut root = Vec::new();
        let take = |fields: &[(&'static str, &'static str)]| -> Vec<(&'static str, Node)> {
            let found = fields.iter().filter_map(|(name, field)| {
                let (value, line) = self.one(name)?;
                Some((*field, text(value, line)))
            });
            found.collect()
        };
        let vault = take(&[
            ("service", "address"),
            ("namespace", "namespace"),
            ("ca-cert", "ca_cert"),
            ("client-cert", "client_cert"),
            ("client-key", "client_key"),
            ("tls-server-name", "tls_server_name"),
            ("tls-skip-verify", "tls_skip_verify"),
        ]);
        root.push(("vault", map(vault, 0)));

        let kind = self.one("auth-type").map_or("kubernetes", |(kind, _)| kind);
        let mut method = vec![("type", text(kind, self.one("auth-type").map_or(0, |(_, line)| line)))];
        method.extend(take(&[("auth-path", "mount_path")]));
        let mut config: Vec<(String, Node)> = Vec::new();
        for (name, (value, line)) in self.given.get("auth-config-<k>").into_iter().flatten() {
            config.push((name.replace('-', "_"), text(*value, *line)));
        }
        let has_role = config.iter().any(|(name, _)| matches!(name.as_str(), "role" | "name"));
        match self.one("role") {
            Some((role, line)) if !has_role && matches!(kind, "kubernetes" | "jwt" | "cert") => {
                let field = if kind == "cert" { "name" } else { "role" };
                config.push((field.to_owned(), text(role, line)));
            }
            None if !has_role && matches!(kind, "kubernetes" | "jwt") => {
                notes
                    .refused(0, format!("{PREFIX}role: is missing, the role of the auth mount to log in as"));
            }
            _ => {}
        }
        let config = config.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        method.push(("config", map(config, 0)));
        root.push(("auto_auth", map(vec![("method", map(method, 0))], 0)));

        let interval = take(&[("template-static-secret-render-interval", "static_secret_render_interval")]);
        if !interval.is_empty() {
            root.push(("template_config", map(interval, 0)));
        }
        if let Some(("true", line)) = self.one("agent-pre-populate-only") {
            root.push(("exit_after_auth", Node { line, kind: Kind::Bool(true, "true".into()) }));
        }
        let mut bases = Vec::new();
        let templates = self.names().into_iter().map(|name| self.template(name, &mut bases)).collect();
        root.push(("template", Node { line: 0, kind: Kind::List(templates) }));
        (map(root, 0), bases)
    }

    /// Of secrets and templates, as the annotations spell them.
    fn names(&self) -> BTreeSet<&'a str> {
        let of = ["agent-inject-secret-<n>", "agent-inject-template-<n>", "agent-inject-template-file-<n>"];
        of.iter().filter_map(|name| self.given.get(name)).flat_map(|named| named.keys().copied()).collect()
    }

    fn template(&self, name: &str, bases: &mut Vec<String>) -> Node {
        let line = ["agent-inject-secret-<n>", "agent-inject-template-<n>", "agent-inject-template-file-<n>"]
            .iter()
            .find_map(|row| self.named(row, name))
            .map_or(0, |(_, line)| line);
        let keeps_case =
            self.one("preserve-secret-case").or_else(|| self.named("preserve-secret-case-<n>", name));
        let file = match self.named("agent-inject-file-<n>", name) {
            Some((file, _)) => file.to_owned(),
            None if keeps_case.is_some_and(|(value, _)| value == "true") => name.to_owned(),
            None => name.to_lowercase(),
        };
        let volume = self.named("secret-volume-path-<n>", name).or_else(|| self.one("secret-volume-path"));
        let volume = volume.map_or(VOLUME_PATH, |(path, _)| path).trim_end_matches('/').to_owned();
        let mut stanza =
            vec![("destination", text(format!("{volume}/{}", file.trim_start_matches('/')), line))];
        bases.push(volume);
        let secret = self.named("agent-inject-secret-<n>", name);
        let inline = self.named("agent-inject-template-<n>", name);
        match (inline, self.named("agent-inject-template-file-<n>", name), secret) {
            (Some((template, line)), ..) => stanza.push(("contents", text(template, line))),
            (None, Some((source, line)), _) => stanza.push(("source", text(source, line))),
            (None, None, Some((path, line))) => {
                let json = self.one("agent-inject-default-template").is_some_and(|(kind, _)| kind == "json");
                let (before, after) = if json { JSON_TEMPLATE } else { MAP_TEMPLATE };
                stanza.push(("contents", text(format!("{before}{path}{after}"), line)));
            }
            (None, None, None) => {}
        }
        for (row, field) in [
            ("agent-inject-perms-<n>", "perms"),
            ("agent-inject-command-<n>", "command"),
            ("error-on-missing-key-<n>", "error_on_missing_key"),
            ("agent-template-left-delim-<n>", "left_delimiter"),
            ("agent-template-right-delim-<n>", "right_delimiter"),
        ] {
            if let Some((value, line)) = self.named(row, name) {
                stanza.push((field, text(value, line)));
            }
        }
        map(stanza, line)
    }
}

/// What a workload's annotations become for the CSI driver: classes, and where each is mounted.
pub(super) fn classes(annotations: &[Given], notes: &mut Notes) -> Vec<(Map, String)> {
    let top = read(annotations, Target::Class, notes);
    let mut parameters = Map::default();
    for name in [
        "roleName",
        "vaultAddress",
        "vaultNamespace",
        "vaultAuthMountPath",
        "vaultCACertPath",
        "vaultTLSServerName",
        "vaultTLSClientCertPath",
        "vaultTLSClientKeyPath",
        "vaultSkipTLSVerify",
    ] {
        match top.get(name) {
            // The API server takes text only.
            Some(Doc::Plain(value)) => {
                parameters.put(name, value.as_str());
            }
            Some(value) => {
                parameters.put(name, value.clone());
            }
            None => {}
        }
    }
    if let Some(Doc::Map(auth)) = top.get("auth")
        && let Some(Doc::Text(method)) = auth.get("method")
        && !matches!(method.as_str(), "kubernetes" | "jwt")
    {
        notes.refused(
            0,
            format!(
                "{PREFIX}auth-type: {method} needs a credential in the pod; with the CSI driver the pod logs in with its \
                 ServiceAccount token (kubernetes or jwt), or use the in-pod agent (--to agent)"
            ),
        );
    }
    if parameters.get("roleName").is_none()
        && let Some((_, role, _)) = annotations.iter().find(|(name, ..)| name == "role")
    {
        parameters.put("roleName", role.as_str());
    }
    let Some(Doc::List(folders)) = top.get("folders") else { return Vec::new() };
    let class = |folder: &Doc| {
        let Doc::Map(folder) = folder else { return None };
        let (Some(Doc::Text(path)), Some(Doc::List(objects))) = (folder.get("path"), folder.get("objects"))
        else {
            return None;
        };
        // What a node's agent cannot do has been refused by its annotation.
        let kept = objects.iter().filter_map(|object| match object {
            Doc::Map(object) if object.get("templateFile").is_none() => Some(Doc::Map(object.clone())),
            _ => None,
        });
        let kept: Vec<Doc> = kept.collect();
        if kept.is_empty() {
            return None;
        }
        let mut parameters = parameters.clone();
        parameters.put("objects", super::emit::document(&Doc::List(kept)));
        Some((parameters, path.clone()))
    };
    folders.iter().filter_map(class).collect()
}
