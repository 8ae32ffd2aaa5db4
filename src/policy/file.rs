//! Reads a policy file. Strict: a field that is misspelt would leave open what it was meant to close.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Limits, Pattern, PolicyError, Rule, address_key};
use crate::spec::{
    object::Generator,
    values,
    yaml::{Kind, Node},
};

const FIELDS: [&str; 12] = [
    "name",
    "namespaces",
    "serviceAccounts",
    "addresses",
    "vaultNamespaces",
    "authMounts",
    "roles",
    "paths",
    "writes",
    "audiences",
    "tlsDirs",
    "skipTLSVerify",
];

/// The rules, and the generators by name.
type Contents = (Vec<Rule>, BTreeMap<String, Generator>);

pub(super) fn read(text: &str) -> Result<Contents, PolicyError> {
    let root = Node::parse(text).map_err(|error| PolicyError { line: error.line, reason: error.message })?;
    known_fields(&root, &["rules", "generators"])?;
    let Some(rules) = root.get("rules") else {
        return Err(at(&root, "it has no field \"rules\""));
    };
    let Kind::List(items) = &rules.kind else {
        return Err(at(rules, format!("rules is {}, expected a list", rules.describe())));
    };
    let rules = items.iter().enumerate().map(|(index, item)| rule(item, index)).collect::<Result<_, _>>()?;
    Ok((rules, root.get("generators").map(generators).transpose()?.unwrap_or_default()))
}

fn generators(node: &Node) -> Result<BTreeMap<String, Generator>, PolicyError> {
    let Kind::Map(entries) = &node.kind else {
        return Err(at(node, format!("generators is {}, expected a mapping of names", node.describe())));
    };
    let mut generators = BTreeMap::new();
    for (key, value) in entries {
        let name = key.as_text().unwrap_or_default();
        if name.is_empty() || Generator::KINDS.iter().any(|kind| kind.eq_ignore_ascii_case(name)) {
            return Err(at(key, format!("generator {name:?} has no name of its own")));
        }
        let generator = Generator::read(value).map_err(|(line, reason)| PolicyError {
            line: Some(line),
            reason: format!("generator {name:?} {reason}"),
        })?;
        if let Generator::Named(other) = generator {
            return Err(at(
                value,
                format!("generator {name:?} names {other:?}, expected a mapping of a kind"),
            ));
        }
        generators.insert(name.to_owned(), generator);
    }
    Ok(generators)
}

fn at(node: &Node, reason: impl Into<String>) -> PolicyError {
    PolicyError { line: Some(node.line), reason: reason.into() }
}

fn known_fields(node: &Node, known: &[&'static str]) -> Result<(), PolicyError> {
    let Kind::Map(entries) = &node.kind else {
        return Err(at(node, format!("here is {}, expected a mapping", node.describe())));
    };
    for (key, _) in entries {
        let name = key.as_text().unwrap_or_default();
        if !known.contains(&name) {
            let near = values::nearest(name, known.iter().copied());
            let hint = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
            return Err(at(key, format!("unknown field {name:?}{hint}")));
        }
    }
    Ok(())
}

fn rule(node: &Node, index: usize) -> Result<Rule, PolicyError> {
    known_fields(node, &FIELDS)?;
    let name = match node.get("name").map(|value| (value, value.as_text())) {
        Some((_, Some(name))) if !name.is_empty() => format!("{name:?}"),
        Some((value, _)) => return Err(at(value, "name is no text")),
        None => format!("{}", index + 1),
    };
    let fields = Fields { node };
    let Some(namespaces) = fields.patterns("namespaces", false)? else {
        return Err(at(node, "a rule needs the field \"namespaces\"; write [\"*\"] for all"));
    };
    let limits = Limits {
        addresses: fields
            .list("addresses", |value| address_key(value).map_err(|why| format!("{value:?}: {why}")))?,
        vault_namespaces: fields.list("vaultNamespaces", vault_namespace)?,
        auth_mounts: fields.list("authMounts", path)?,
        roles: fields.patterns("roles", true)?,
        paths: fields.list("paths", path)?,
        audiences: fields.patterns("audiences", true)?,
        tls_dirs: fields.list("tlsDirs", tls_dir)?,
        writes: fields.verdict("writes")?,
        skip_tls_verify: fields.verdict("skipTLSVerify")?,
    };
    let names_root = |patterns: &Vec<Pattern>| patterns.iter().any(|pattern| pattern.as_str().is_empty());
    if limits.vault_namespaces.as_ref().is_some_and(names_root) && limits.paths.is_none() {
        let reason = "vaultNamespaces has the root namespace, from where a path reaches every other one: \
                      narrow with \"paths\", or write paths: [\"**\"] if that is meant";
        return Err(at(node, reason));
    }
    let service_accounts = fields.patterns("serviceAccounts", false)?;
    Ok(Rule { name, namespaces, service_accounts, limits })
}

fn vault_namespace(text: &str) -> Result<Pattern, String> {
    match text.trim_matches('/') {
        "root" => Pattern::parse("", true),
        text => Pattern::parse(text, true),
    }
}

// Paths are compared in canonical form: a pattern that is not could never match.
fn path(text: &str) -> Result<Pattern, String> {
    let rest = text.strip_prefix("v1/").unwrap_or(text);
    if rest.len() < text.len() || rest.split('/').any(str::is_empty) {
        return Err(format!(
            "pattern {text:?}: write it without v1/, empty segments and slashes at the ends"
        ));
    }
    Pattern::parse(text, true)
}

fn tls_dir(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let parent = path.components().any(|part| part == std::path::Component::ParentDir);
    if path.is_absolute() && !parent { Ok(path) } else { Err(format!("{text:?} is not an absolute path")) }
}

struct Fields<'a> {
    node: &'a Node,
}

impl Fields<'_> {
    fn list<T>(
        &self,
        field: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<Vec<T>>, PolicyError> {
        let Some(value) = self.node.get(field) else { return Ok(None) };
        let Kind::List(items) = &value.kind else {
            return Err(at(value, format!("{field} is {}, expected a list", value.describe())));
        };
        let item = |item: &Node| match (item.as_text(), &item.kind) {
            // Nothing between two dashes is a mistake, not the empty text.
            (None, _) | (_, Kind::Null) => {
                Err(at(item, format!("{field} has {}, expected text", item.describe())))
            }
            (Some(text), _) => read(text).map_err(|reason| at(item, format!("{field}: {reason}"))),
        };
        items.iter().map(item).collect::<Result<_, _>>().map(Some)
    }

    fn patterns(&self, field: &str, variables: bool) -> Result<Option<Vec<Pattern>>, PolicyError> {
        self.list(field, |text| match text {
            "" => Err("a pattern is empty".into()),
            _ => Pattern::parse(text, variables),
        })
    }

    fn verdict(&self, field: &str) -> Result<bool, PolicyError> {
        match self.node.get(field).map(|value| (value, value.as_text())) {
            None | Some((_, Some("deny"))) => Ok(false),
            Some((_, Some("allow"))) => Ok(true),
            Some((value, _)) => Err(at(value, format!("{field} is \"allow\" or \"deny\""))),
        }
    }
}
