//! Reads the fields of one mapping, and tells of every one that is wrong.

use std::{path::PathBuf, str::FromStr as _, time::Duration};

use nix::sys::signal::Signal;

use super::Problem;
use crate::spec::{
    FileMode, values,
    yaml::{Kind, Node},
};

pub(super) fn problem(node: &Node, reason: String) -> Problem {
    Problem { line: Some(node.line), reason }
}

pub(super) fn unknown<'k>(key: &Node, known: impl IntoIterator<Item = &'k str>) -> Problem {
    let name = key.as_text().unwrap_or_default();
    let near = values::nearest(name, known);
    let hint = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
    problem(key, format!("unknown key {}{hint}", values::quote(name)))
}

pub(super) struct Fields<'a> {
    node: &'a Node,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Fields<'a> {
    /// A problem for each key that is not in `known`.
    pub(super) fn new(node: &'a Node, known: &[&str], problems: &'a mut Vec<Problem>) -> Self {
        match &node.kind {
            Kind::Map(entries) => {
                for (key, _) in entries {
                    if !key.as_text().is_some_and(|name| known.contains(&name)) {
                        let found = unknown(key, known.iter().copied());
                        if !problems.contains(&found) {
                            problems.push(found);
                        }
                    }
                }
            }
            _ => problems.push(problem(node, format!("here is {}, expected a mapping", node.describe()))),
        }
        Self { node, problems }
    }

    /// A field that is there and not empty.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let value = self.node.get(name)?;
        match value.as_text() {
            Some("") => None,
            Some(text) => Some(text.to_owned()),
            None => {
                let reason = format!("{name} is {}, expected text", value.describe());
                self.problems.push(problem(value, reason));
                None
            }
        }
    }

    fn read<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(name)?;
        let line = self.node.get(name).map(|value| value.line);
        match read(&text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.problems.push(Problem { line, reason: format!("{name}: {reason}") });
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, name: &str) -> Option<bool> {
        self.read(name, values::boolean)
    }

    pub(super) fn duration(&mut self, name: &str) -> Option<Duration> {
        self.read(name, values::duration)
    }

    pub(super) fn mode(&mut self, name: &str) -> Option<FileMode> {
        self.read(name, |text| values::mode(text).map(|(mode, _)| mode)).flatten()
    }

    pub(super) fn signal(&mut self, name: &str) -> Option<Signal> {
        self.read(name, |text| {
            let name = text.to_ascii_uppercase();
            let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
            Signal::from_str(&name)
                .map_err(|_| format!("{} is no signal, write one like SIGHUP", values::quote(text)))
        })
    }

    /// Absolute and without `..`: paths are compared as text.
    pub(super) fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.read(name, |text| {
            let path = PathBuf::from(text);
            let parent = path.components().any(|part| part == std::path::Component::ParentDir);
            if path.is_absolute() && !parent {
                Ok(path.components().collect())
            } else {
                Err(format!("{} must be an absolute path without ..", values::quote(text)))
            }
        })
    }

    /// A list of texts.
    pub(super) fn list(&mut self, name: &str) -> Option<Vec<String>> {
        let value = self.node.get(name)?;
        let items = match &value.kind {
            Kind::List(items) => items.iter().map(|item| item.as_text().map(str::to_owned)).collect(),
            _ => None,
        };
        if items.is_none() {
            let reason = format!("{name} is {}, expected a list of texts", value.describe());
            self.problems.push(problem(value, reason));
        }
        items
    }
}
