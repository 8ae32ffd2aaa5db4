//! Vault Agent's configuration (HCL or JSON) as the in-pod agent's file.

use super::{
    ConvertError, Translation,
    agent_file::{self, Rendered, check_template, put_template},
    emit::{Doc, Map},
    hcl,
    notes::{Notes, plain},
    write_to_file,
};
use crate::spec::{
    values,
    yaml::{Kind, Node},
};

mod auth;
mod fields;
#[cfg(test)]
pub(super) mod tests;

pub use fields::FIELDS;

/// Mode of a file where the stanza says nothing (consul-template).
const MODE: &str = "0644";

/// Translates a configuration of Vault Agent, HCL or JSON, into the in-pod agent's file.
///
/// # Errors
/// When the text is neither HCL nor JSON, with the line. What is understood and cannot be carried is a note with
/// [`super::Severity::Refused`]: call [`Translation::complete`] before running the result.
pub fn translate(text: &str) -> Result<Translation, ConvertError> {
    let root = hcl::parse(text)?;
    let mut translator = Translator::default();
    translator.file(&root);
    let Translator { top, notes, .. } = translator;
    Ok(Translation { yaml: agent_file::text(top), notes: notes.into_sorted() })
}

/// One configuration on its way.
#[derive(Default)]
pub(super) struct Translator {
    /// Folders that are mounted for it, where somebody does that.
    pub(super) bases: Vec<String>,
    /// The in-pod agent's file so far.
    pub(super) top: Map,
    /// What has been said.
    pub(super) notes: Notes,
    interval: Option<String>,
    lax_line: Option<u64>,
}

/// A value, and all values of a list.
fn each(node: &Node) -> &[Node] {
    match &node.kind {
        Kind::List(items) => items,
        Kind::Null => &[],
        _ => std::slice::from_ref(node),
    }
}

/// `{label: {…}}`, as a block with a label reads; or the mapping itself with its field `type`.
fn labelled(node: &Node) -> Option<(&str, &Node)> {
    let Kind::Map(entries) = &node.kind else { return None };
    if let Some(kind) = node.get("type").and_then(Node::as_text) {
        return Some((kind, node));
    }
    match entries.as_slice() {
        [(label, value)] => each(value).first().map(|value| (label.as_text().unwrap_or_default(), value)),
        _ => None,
    }
}

impl Translator {
    /// Translates a whole configuration.
    pub(super) fn file(&mut self, root: &Node) {
        self.section(root, "");
        let sections = |name: &str| root.get(name).map(each).unwrap_or_default();
        let vault = sections("vault").first();
        if let Some(vault) = vault {
            self.section(vault, "vault.");
            for (field, name) in [
                ("address", "vaultAddress"),
                ("ca_cert", "vaultCACertPath"),
                ("ca_path", "vaultCADirectory"),
                ("tls_server_name", "vaultTLSServerName"),
                ("tls_skip_verify", "vaultSkipTLSVerify"),
            ] {
                if let Some((value, line)) = self.text(vault, field) {
                    let doc =
                        if field == "tls_skip_verify" { self.boolean(&value, line) } else { value.into() };
                    self.top.put(name, doc);
                }
            }
        }
        self.auth(sections("auto_auth").first(), vault);
        for config in sections("template_config") {
            self.section(config, "template_config.");
            if let Some((value, line)) = self.text(config, "static_secret_render_interval") {
                self.interval = self.duration(&value, line);
            }
        }
        if let Some((value, line)) = self.text(root, "exit_after_auth") {
            let value = self.boolean(&value, line);
            self.top.put("exitAfterRender", value);
        }
        self.templates(sections("template"));
        self.exec(sections("exec").first(), sections("env_template"));
        if self.top.get("folders").is_none() && self.top.get("exec").is_none() {
            self.notes.refused(root.line, "template: there is none, so there is nothing to render");
        }
        if let Some(line) = self.lax_line {
            self.notes.changed(
                line,
                "error_on_missing_key: without it Vault Agent writes \"<no value>\" for a key that is not there; here that \
                 is always an error, and the old file stays: use dig or hasKey where a key may be absent",
            );
        }
    }

    /// Says what becomes of each field of a section.
    fn section(&mut self, node: &Node, prefix: &str) {
        let Kind::Map(entries) = &node.kind else {
            let shown = if prefix.is_empty() { "the configuration" } else { prefix.trim_end_matches('.') };
            self.notes.refused(node.line, format!("{shown}: is {}, expected a block", node.describe()));
            return;
        };
        for (key, value) in entries {
            let name = format!("{prefix}{}", key.as_text().unwrap_or_default());
            self.notes.field(
                FIELDS,
                &name,
                &name,
                each(value).first().map_or(key.line, |first| first.line.min(key.line)),
            );
        }
    }

    /// A field that is there and not empty, with its line. Nothing is evaluated in it.
    fn text(&mut self, node: &Node, field: &str) -> Option<(String, u64)> {
        let value = self.raw(node, field)?;
        if value.0.contains("${") {
            self.notes.refused(
                value.1,
                format!("{field}: holds ${{…}}, which Vault Agent takes as it stands; write the value"),
            );
        }
        Some(value)
    }

    fn raw(&mut self, node: &Node, field: &str) -> Option<(String, u64)> {
        let value = node.get(field)?;
        match value.as_text() {
            Some("") => None,
            Some(text) => Some((text.to_owned(), value.line)),
            None => {
                self.notes.refused(value.line, format!("{field}: is {}, expected text", value.describe()));
                None
            }
        }
    }

    fn boolean(&mut self, value: &str, line: u64) -> Doc {
        values::boolean(value)
            .unwrap_or_else(|reason| {
                self.notes.refused(line, reason);
                false
            })
            .into()
    }

    /// Go's durations, and seconds as a plain number.
    fn duration(&mut self, value: &str, line: u64) -> Option<String> {
        let text = if value.bytes().all(|byte| byte.is_ascii_digit()) {
            format!("{value}s")
        } else {
            value.to_owned()
        };
        if let Err(reason) = values::duration(&text) {
            self.notes.refused(line, reason);
            return None;
        }
        Some(text)
    }

    fn templates(&mut self, stanzas: &[Node]) {
        let mut files = Vec::new();
        let expanded: Vec<Node> = stanzas.iter().flat_map(|stanza| self.expand(stanza)).collect();
        for stanza in &expanded {
            self.section(stanza, "template.");
            let Some((path, _)) = self.text(stanza, "destination") else {
                self.notes.refused(stanza.line, "template: has no destination");
                continue;
            };
            let mut object = Map::default();
            let what = format!("template for {}", plain(&path));
            if !self.template(stanza, &what, &mut object) {
                continue;
            }
            self.permissions(stanza, &mut object);
            object.put_some("refreshInterval", self.interval.clone());
            if let Some(on_change) = self.on_change(stanza) {
                object.put("onChange", on_change);
            }
            files.push(Rendered { path, line: stanza.line, object });
        }
        let folders = agent_file::folders(files, &self.bases, MODE, &mut self.notes);
        // Where the folders are mounted for it, nothing of the pod's is in them.
        for folder in folders.iter().filter(|_| self.bases.is_empty()) {
            if let Doc::Map(map) = folder
                && let Some(Doc::Text(path)) = map.get("path")
            {
                self.notes.changed(
                    stanzas.first().map_or(0, |first| first.line),
                    format!(
                        "destination: the folder {} becomes leasehold's own, and its files change together; mount an \
                         emptyDir with medium: Memory there",
                        plain(path)
                    ),
                );
            }
        }
        if !folders.is_empty() {
            self.top.put("folders", Doc::List(folders));
        }
    }

    /// A stanza, and one for each file that its template writes beside its own.
    fn expand(&mut self, stanza: &Node) -> Vec<Node> {
        let text = |field: &str| stanza.get(field).and_then(Node::as_text);
        let Some(contents) = text("contents") else { return vec![stanza.clone()] };
        let delimiter = |field, default| text(field).filter(|text| !text.is_empty()).unwrap_or(default);
        let (left, right) = (delimiter("left_delimiter", "{{"), delimiter("right_delimiter", "}}"));
        let parts = match write_to_file::split(contents, left, right) {
            Ok(None) => return vec![stanza.clone()],
            Ok(Some(parts)) => parts,
            Err(reason) => {
                self.notes.refused(stanza.line, reason);
                return vec![stanza.clone()];
            }
        };
        self.notes.changed(
            stanza.line,
            "writeToFile: each file becomes an object of its own, of the agent's user and the folder's group, and they \
             change together",
        );
        let own = with(stanza, &[("contents", &parts.own)]);
        let others = parts.others.iter().map(|other| {
            let fields = [
                ("contents", other.template.as_str()),
                ("destination", other.path.as_str()),
                ("perms", other.perms.as_str()),
                // Once for all of them.
                ("command", ""),
                ("exec", ""),
            ];
            with(stanza, &fields)
        });
        std::iter::once(own).chain(others).collect()
    }

    /// The template of a stanza, into an object or variable.
    fn template(&mut self, stanza: &Node, what: &str, object: &mut Map) -> bool {
        let strict = self.text(stanza, "error_on_missing_key").is_some_and(|(value, _)| value == "true");
        if !strict {
            self.lax_line.get_or_insert(stanza.line);
        }
        let left = self.raw(stanza, "left_delimiter").map(|(text, _)| text);
        let right = self.raw(stanza, "right_delimiter").map(|(text, _)| text);
        match (self.raw(stanza, "contents"), self.text(stanza, "source")) {
            (Some((contents, line)), None) => {
                check_template(&contents, left.as_deref(), right.as_deref(), line, what, &mut self.notes);
                put_template(object, &contents, left.as_deref(), right.as_deref());
                true
            }
            (None, Some((source, _))) => {
                object.put("templateFile", source);
                object.put_some("leftDelimiter", left).put_some("rightDelimiter", right);
                true
            }
            _ => {
                self.notes.refused(stanza.line, format!("{what}: has not one of contents and source"));
                false
            }
        }
    }

    fn permissions(&mut self, stanza: &Node, object: &mut Map) {
        if let Some((perms, line)) = self.text(stanza, "perms") {
            match u32::from_str_radix(perms.trim_start_matches("0o"), 8) {
                Ok(mode) if mode <= 0o777 => {
                    object.put("filePermission", Doc::Plain(format!("0{mode:03o}")));
                }
                _ => self
                    .notes
                    .refused(line, format!("perms: {} is no octal mode within 0777", values::quote(&perms))),
            }
        }
        let mut id = |field: &str| {
            let (value, line) = self.text(stanza, field)?;
            if value.bytes().all(|byte| byte.is_ascii_digit()) {
                return Some(value);
            }
            if value != "-1" {
                let message = format!(
                    "{field}: {} is a name, and the container knows none: write the number",
                    values::quote(&value)
                );
                self.notes.refused(line, message);
            }
            None
        };
        match (id("user"), id("group")) {
            (None, None) => {}
            (None, Some(group)) => {
                object.put("fileGroup", group);
            }
            (Some(user), group) => {
                let group = group.map(|group| format!(":{group}")).unwrap_or_default();
                object.put("fileOwner", format!("{user}{group}"));
            }
        }
    }

    /// What a stanza runs after a change.
    fn on_change(&mut self, stanza: &Node) -> Option<Map> {
        let exec = stanza.get("exec").map(each).and_then(<[Node]>::first);
        let nested = exec.filter(|exec| matches!(exec.kind, Kind::Map(_)));
        if let Some(exec) = nested {
            self.section(exec, "template.exec.");
        }
        let holder = nested.unwrap_or(stanza);
        let node = match nested {
            Some(exec) => exec.get("command"),
            None => stanza.get("command").or_else(|| stanza.get("exec")),
        }?;
        let command = self.command(node, holder.line)?;
        self.notes.changed(
            node.line,
            "template.command: it runs only with --allow-commands, and the image has no shell; onChange takes a signal, an \
             HTTP request or a file to touch instead",
        );
        Some(Map::default().with("command", command))
    }

    /// A list is a program with its arguments; one text is for a shell, as in consul-template.
    fn command(&mut self, node: &Node, line: u64) -> Option<Vec<String>> {
        let words: Option<Vec<String>> = match &node.kind {
            Kind::List(items) => items.iter().map(|item| item.as_text().map(str::to_owned)).collect(),
            _ => node.as_text().map(|text| vec![text.to_owned()]),
        };
        let Some(words) = words.filter(|words| words.iter().any(|word| !word.is_empty())) else {
            self.notes.refused(line, "command: expected a list of texts");
            return None;
        };
        match words.as_slice() {
            [one] if one.contains(char::is_whitespace) => Some(vec!["sh".into(), "-c".into(), one.clone()]),
            _ => Some(words),
        }
    }

    fn exec(&mut self, exec: Option<&Node>, templates: &[Node]) {
        let mut variables = Vec::new();
        let mut objects = Vec::new();
        for (name, stanza) in templates.iter().flat_map(named) {
            self.section(stanza, "template.");
            let mut object = Map::default();
            if !self.template(stanza, &format!("env_template {}", plain(name)), &mut object) {
                continue;
            }
            if object.get("leftDelimiter").or_else(|| object.get("rightDelimiter")).is_some() {
                let mut named = Map::default().with("objectName", name);
                objects.push(std::mem::take(named.append(object)));
            } else {
                let mut named = Map::default().with("name", name);
                variables.push(std::mem::take(named.append(object)));
            }
        }
        let mut out = Map::default();
        if let Some(exec) = exec {
            self.section(exec, "exec.");
            if let Some(command) = exec.get("command").and_then(|node| self.command(node, exec.line)) {
                out.put("command", command);
            }
            if let Some((value, line)) = self.text(exec, "restart_on_secret_changes") {
                if !matches!(value.as_str(), "always" | "never") {
                    self.notes.refused(line, "exec.restart_on_secret_changes: is neither always nor never");
                }
                out.put("restartOnChange", value);
            }
            if let Some((value, _)) = self.text(exec, "restart_stop_signal") {
                out.put("restartSignal", value);
            }
        } else if let Some(first) = templates.first() {
            self.notes
                .refused(first.line, "env_template: needs an exec block that says whose environment it is");
        }
        if !objects.is_empty() {
            out.put("env", objects);
        }
        if !variables.is_empty() {
            out.put("envTemplates", variables);
        }
        if !out.is_empty() {
            self.top.put("exec", out);
        }
    }
}

/// A stanza with other fields; what is empty is left out.
fn with(stanza: &Node, fields: &[(&str, &str)]) -> Node {
    let Kind::Map(entries) = &stanza.kind else { return stanza.clone() };
    let replaced = |key: &Node| fields.iter().any(|(field, _)| key.as_text() == Some(field));
    let mut entries: Vec<_> = entries.iter().filter(|(key, _)| !replaced(key)).cloned().collect();
    for (field, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        let text = |text: &str| Node { line: stanza.line, kind: Kind::text(text) };
        entries.push((text(field), text(value)));
    }
    Node { line: stanza.line, kind: Kind::Map(entries) }
}

/// The stanzas of `env_template "NAME" { … }`, in every shape that HCL and JSON give them.
fn named(node: &Node) -> Vec<(&str, &Node)> {
    let Kind::Map(entries) = &node.kind else { return Vec::new() };
    let named = |(key, value)| {
        let (key, value): (&Node, &Node) = (key, value);
        each(value).iter().map(|stanza| (key.as_text().unwrap_or_default(), stanza)).collect::<Vec<_>>()
    };
    entries.iter().map(|(key, value)| (key, value)).flat_map(named).collect()
}
