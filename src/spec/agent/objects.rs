//! What is written: lists of objects, as in a SecretProviderClass.

use std::collections::BTreeMap;

use super::{
    Auth, AuthMethod, OnChange, Problem, Reader,
    fields::{self, problem},
    notify,
};
use crate::spec::{
    ApiPath, FileMode, LoginMethod, LoginSpec, ProviderName, VolumeSpec,
    object::reader::KNOWN as OBJECT_FIELDS,
    origin::Origin,
    parameters::{self, Defaults},
    values,
    yaml::{Kind, Node},
};

impl Reader<'_> {
    /// The list at `field`, template files read and what is ours taken out.
    pub(super) fn objects(&mut self, node: &Node, field: &str) -> Option<(Node, BTreeMap<String, OnChange>)> {
        let value = match node.get(field) {
            None => {
                let reason = format!("the field {field:?} is missing: what to write");
                self.problems.push(problem(node, reason));
                return None;
            }
            Some(node @ Node { kind: Kind::Text(text, _), .. }) => self.parsed(text, node)?,
            Some(other) => other.clone(),
        };
        let Kind::List(items) = value.kind else {
            let reason = format!("{field} is {}, expected a list of objects", value.describe());
            self.problems.push(Problem { line: Some(value.line), reason });
            return None;
        };
        let mut told = BTreeMap::new();
        let items = items.into_iter().map(|item| self.object(item, &mut told)).collect();
        Some((Node { line: value.line, kind: Kind::List(items) }, told))
    }

    /// The text of `around`, which stands in the file.
    fn parsed(&mut self, text: &str, around: &Node) -> Option<Node> {
        match Node::parse(text) {
            Ok(mut node) => {
                node.embed(around);
                Some(node)
            }
            Err(error) => {
                let line = error.line.and_then(|line| around.origin().line(line)).or(Some(around.line));
                self.problems.push(Problem { line, reason: error.message });
                None
            }
        }
    }

    fn object(&mut self, item: Node, told: &mut BTreeMap<String, OnChange>) -> Node {
        let Kind::Map(entries) = item.kind else { return item };
        let name = entries.iter().find(|(key, _)| key.as_text() == Some("objectName"));
        let name = name.and_then(|(_, value)| value.as_text()).unwrap_or_default().to_owned();
        let mut kept = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            match key.as_text() {
                Some("onChange") => {
                    told.insert(name.clone(), notify::read(Some(&value), &mut self.problems));
                }
                Some("templateFile") => {
                    if let Some(template) = self.template_file(&value) {
                        kept.push((Node { line: key.line, kind: Kind::text("template") }, template));
                    }
                }
                Some(field) if !OBJECT_FIELDS.contains(&field) => {
                    let ours = OBJECT_FIELDS.iter().copied().chain(["onChange", "templateFile"]);
                    self.problems.push(fields::unknown(&key, ours));
                }
                _ => kept.push((key, value)),
            }
        }
        Node { line: item.line, kind: Kind::Map(kept) }
    }

    pub(super) fn template_file(&mut self, value: &Node) -> Option<Node> {
        let path = value.as_text().unwrap_or_default();
        match (self.around.read)(path) {
            Ok(text) => {
                let origin = Origin::File(path.to_owned());
                Some(Node { line: value.line, kind: Kind::Text(text, origin) })
            }
            Err(reason) => {
                let reason = format!("templateFile {}: {reason}", values::quote(path));
                self.problems.push(problem(value, reason));
                None
            }
        }
    }

    pub(super) fn spec(&mut self, objects: &Node, mode: FileMode, auth: &Auth) -> Option<VolumeSpec> {
        let mut attributes = self.attributes.clone();
        let role = attributes.get("roleName").cloned().unwrap_or_default();
        if auth.method.login() != LoginMethod::ServiceAccount && role.is_empty() {
            // Its absence is an error of the two other methods only.
            attributes.insert("roleName".to_owned(), "-".to_owned());
        }
        let defaults =
            Defaults { auth_mount: auth.method.as_str().to_owned(), ..self.around.defaults.clone() };
        let collected =
            parameters::collect_around(ProviderName::Leasehold, &attributes, objects, mode, &defaults);
        // The object's own message has its line.
        let file = self.file.as_deref();
        let located = |line: Option<u64>, text: String| match file {
            Some(file) if line.is_some() => format!("{file}: {text}"),
            _ => text,
        };
        self.warnings.extend(collected.warnings.iter().map(|it| located(it.line, it.to_string())));
        for error in collected.errors {
            let reason = located(error.line(), in_our_words(&error.to_string()));
            let found = Problem { line: None, reason };
            if !self.problems.contains(&found) {
                self.problems.push(found);
            }
        }
        let mut spec = collected.spec?;
        spec.login = LoginSpec { method: auth.method.login(), role, ..spec.login };
        if let Some(Ok(stripped)) = spec.login.mount.as_str().strip_prefix("auth/").map(ApiPath::parse_mount)
        {
            spec.login.mount = stripped;
        }
        if auth.method == AuthMethod::Cert && spec.connection.tls.client_cert.is_none() {
            let reason = "auth.method cert needs vaultTLSClientCertPath and vaultTLSClientKeyPath".to_owned();
            self.problems.push(Problem { line: None, reason });
        }
        Some(spec)
    }
}

fn in_our_words(text: &str) -> String {
    text.replace(" in SecretProviderClass definition", ", the role of the auth mount to log in as")
        .replace("in the SecretProviderClass, or the agent's own address", "or the variable VAULT_ADDR")
        .replace("no secrets configured - the provider will not read any secret material", "objects is empty")
        .replace("within a SecretProviderClass", "within a folder")
}
