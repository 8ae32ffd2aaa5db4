//! Several files of one folder that are one together.

use std::collections::BTreeMap;

use super::Problem;
use crate::spec::{
    values,
    yaml::{Kind, Node},
};

/// The files' keys together, and which file each came from where there are several.
#[derive(Default)]
pub(super) struct Merged {
    entries: Vec<(Node, Node)>,
    /// Of the top's keys.
    keys: BTreeMap<String, String>,
    /// Of the folders, in order.
    pub(super) folders: Vec<String>,
}

impl Merged {
    /// Reads `texts`, each with its name.
    ///
    /// # Errors
    /// Files that are no mappings, and keys other than `folders` that are in two.
    pub(super) fn read(texts: &[(String, String)]) -> Result<(Node, Self), Vec<Problem>> {
        let mut merged = Self::default();
        let mut problems = Vec::new();
        let several = texts.len() > 1;
        for (name, text) in texts {
            let prefix = |reason: String| if several { format!("{name}: {reason}") } else { reason };
            match Node::parse(text) {
                Err(error) => problems.push(Problem { line: error.line, reason: prefix(error.message) }),
                Ok(Node { kind: Kind::Map(entries), .. }) => {
                    for (key, value) in entries {
                        if let Err(problem) = merged.add(key, value, several.then_some(name)) {
                            problems.push(Problem { reason: prefix(problem.reason), ..problem });
                        }
                    }
                }
                Ok(Node { kind: Kind::Null, .. }) if several => {}
                Ok(other) => {
                    let reason = prefix(format!("is {}, expected a mapping", other.describe()));
                    problems.push(Problem { line: Some(other.line), reason });
                }
            }
        }
        if problems.is_empty() {
            let entries = std::mem::take(&mut merged.entries);
            Ok((Node { line: 1, kind: Kind::Map(entries) }, merged))
        } else {
            Err(problems)
        }
    }

    fn add(&mut self, key: Node, value: Node, file: Option<&String>) -> Result<(), Problem> {
        let name = key.as_text().unwrap_or_default().to_owned();
        let known = self.entries.iter_mut().find(|(other, _)| other.as_text() == key.as_text());
        if let (Some(file), "folders", Kind::List(folders)) = (file, name.as_str(), &value.kind) {
            self.folders.extend(folders.iter().map(|_| file.clone()));
        }
        match (known, value.kind) {
            (None, kind) => {
                self.keys.extend(file.map(|file| (name, file.clone())));
                self.entries.push((key, Node { line: value.line, kind }));
                Ok(())
            }
            (Some((_, Node { kind: Kind::List(all), .. })), Kind::List(more)) if name == "folders" => {
                all.extend(more);
                Ok(())
            }
            (Some(_), _) => {
                let reason = format!("{} is in another file of the folder too", values::quote(&name));
                Err(Problem { line: Some(key.line), reason })
            }
        }
    }

    /// The file that says `key`, if there are several.
    pub(super) fn file_of(&self, key: &str) -> Option<&String> {
        self.keys.get(key)
    }
}
