//! A process to supervise, and the variables of its environment.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Auth, Reader,
    fields::{Fields, problem},
};
use crate::spec::{
    FileMode, VolumeSpec, values,
    yaml::{Kind, Node},
};

const EXEC: [&str; 6] = ["command", "env", "envTemplates", "restartOnChange", "restartSignal", "stopTimeout"];
const TEMPLATE: [&str; 3] = ["name", "template", "templateFile"];

/// How long a child may take to end after the restart signal: Vault Agent's own default.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// What happens to the supervised process when its environment changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It is stopped and started anew.
    Always,
    /// It keeps the environment that it was started with.
    Never,
}

/// A process to supervise.
#[derive(Clone, Debug)]
pub struct Exec {
    /// Program and arguments; empty where the command line gives them.
    pub command: Vec<String>,
    /// Variables: an object each, or the keys of an object in the form `env`.
    pub environment: Option<VolumeSpec>,
    /// Objects whose content is a map of variables.
    pub maps: BTreeSet<String>,
    /// On a change of the environment.
    pub restart: Restart,
    /// By which it is asked to end then, or told of the change.
    pub restart_signal: nix::sys::signal::Signal,
    /// Until SIGKILL.
    pub stop_timeout: Duration,
}

impl Exec {
    /// A process whose environment is not ours to make.
    pub fn plain() -> Self {
        Self {
            command: Vec::new(),
            environment: None,
            maps: BTreeSet::new(),
            restart: Restart::Always,
            restart_signal: nix::sys::signal::Signal::SIGTERM,
            stop_timeout: STOP_TIMEOUT,
        }
    }
}

impl Reader<'_> {
    pub(super) fn exec(&mut self, node: &Node, auth: &Auth) -> Option<Exec> {
        let mut fields = Fields::new(node, &EXEC, &mut self.problems);
        let command = fields.list("command").unwrap_or_default();
        let restart = match fields.text("restartOnChange").as_deref() {
            None | Some("always") => Restart::Always,
            Some("never") => Restart::Never,
            Some(other) => {
                let reason = format!("restartOnChange is {}, expected always or never", values::quote(other));
                self.problems.push(problem(node, reason));
                Restart::Always
            }
        };
        let mut fields = Fields::new(node, &EXEC, &mut self.problems);
        let restart_signal = fields.signal("restartSignal").unwrap_or(nix::sys::signal::Signal::SIGTERM);
        let stop_timeout = fields.duration("stopTimeout").unwrap_or(STOP_TIMEOUT);
        let mut maps = BTreeSet::new();
        let mut all = Vec::new();
        if node.get("env").is_some() {
            let (objects, _) = self.objects(node, "env")?;
            if let Kind::List(items) = objects.kind {
                all.extend(items.into_iter().map(|item| as_map(item, &mut maps)));
            }
        }
        match node.get("envTemplates") {
            None => {}
            Some(Node { kind: Kind::List(items), .. }) => {
                all.extend(items.iter().filter_map(|item| self.env_template(item)));
            }
            Some(other) => {
                let reason = format!("envTemplates is {}, expected a list", other.describe());
                self.problems.push(problem(other, reason));
            }
        }
        let environment = if all.is_empty() {
            None
        } else {
            let objects = Node { line: node.line, kind: Kind::List(all) };
            Some(self.spec(&objects, FileMode::PRIVATE, auth)?)
        };
        if let Some(spec) = &environment {
            for object in spec.objects.iter().filter(|object| object.file().is_some()) {
                let name = object.name();
                if !maps.contains(name) && !is_variable(name) {
                    let reason = format!(
                        "exec.env: {} cannot be a variable's name: letters, digits and _, not first a digit",
                        values::quote(name)
                    );
                    self.problems.push(problem(node, reason));
                }
            }
        }
        Some(Exec { command, environment, maps, restart, restart_signal, stop_timeout })
    }

    fn env_template(&mut self, item: &Node) -> Option<Node> {
        let mut fields = Fields::new(item, &TEMPLATE, &mut self.problems);
        let name = fields.text("name");
        let text = |text: &str| Node { line: item.line, kind: Kind::text(text) };
        let template = match (item.get("template"), item.get("templateFile")) {
            (Some(template), None) => template.clone(),
            (None, Some(file)) => self.template_file(file)?,
            _ => {
                let reason =
                    "an entry of envTemplates needs either \"template\" or \"templateFile\"".to_owned();
                self.problems.push(problem(item, reason));
                return None;
            }
        };
        let Some(name) = name else {
            self.problems.push(problem(item, "an entry of envTemplates needs a \"name\"".to_owned()));
            return None;
        };
        let entries = vec![(text("objectName"), text(&name)), (text("template"), template)];
        Some(Node { line: item.line, kind: Kind::Map(entries) })
    }
}

/// An object in the form `env` is rendered as a JSON map: nothing is quoted that would have to be read back.
fn as_map(item: Node, maps: &mut BTreeSet<String>) -> Node {
    if item.get("format").and_then(Node::as_text) != Some("env") {
        return item;
    }
    maps.extend(item.get("objectName").and_then(Node::as_text).map(str::to_owned));
    let Kind::Map(entries) = item.kind else { return item };
    let json = |value: Node| Node { line: value.line, kind: Kind::text("json") };
    let entries = entries
        .into_iter()
        .map(|(key, value)| if key.as_text() == Some("format") { (key, json(value)) } else { (key, value) });
    Node { line: item.line, kind: Kind::Map(entries.collect()) }
}

/// Whether a shell could say the name.
pub fn is_variable(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}
