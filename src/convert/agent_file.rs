//! The in-pod agent's file, as it is put together from files with absolute paths.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    emit::{Doc, Map, document},
    notes::Notes,
};
use crate::{spec::object::source::reason, template::Template};

/// A file that a template makes.
#[derive(Clone, Debug)]
pub(super) struct Rendered {
    /// Where, absolute.
    pub(super) path: String,
    /// Of the stanza or annotation.
    pub(super) line: u64,
    /// The object, but for its name.
    pub(super) object: Map,
}

/// Groups files into the fewest folders of which none is within another; `bases` are folders anyway.
pub(super) fn folders(
    files: Vec<Rendered>,
    bases: &[String],
    default_mode: &str,
    notes: &mut Notes,
) -> Vec<Doc> {
    let mut placed: Vec<(String, String, Rendered)> = Vec::new();
    for file in files {
        let split = file.path.rsplit_once('/').filter(|(folder, name)| {
            folder.starts_with('/') && !name.is_empty() && !file.path.split('/').any(|part| part == "..")
        });
        let Some((folder, name)) = split.map(|(folder, name)| (clean(folder), name.to_owned())) else {
            notes.refused(
                file.line,
                format!(
                    "destination {:?}: write the absolute path of a file that is not in / itself",
                    file.path
                ),
            );
            continue;
        };
        if placed.iter().any(|(other, known, _)| (other, known) == (&folder, &name)) {
            notes.refused(file.line, format!("destination {:?}: two templates write it", file.path));
            continue;
        }
        placed.push((folder, name, file));
    }
    let used = placed.iter().map(|(folder, ..)| folder.clone());
    let all: BTreeSet<String> = bases.iter().map(|base| clean(base)).chain(used).collect();
    let mut grouped: BTreeMap<String, Vec<Map>> = BTreeMap::new();
    for (folder, name, Rendered { object, .. }) in placed {
        let inside =
            |outer: &&String| folder.strip_prefix(outer.as_str()).is_some_and(|it| it.starts_with('/'));
        let outer = all.iter().find(inside).unwrap_or(&folder).clone();
        let below = folder[outer.len()..].trim_start_matches('/');
        let name = if below.is_empty() { name } else { format!("{below}/{name}") };
        let mut named = Map::default().with("objectName", name);
        named.append(object);
        grouped.entry(outer).or_default().push(named);
    }
    let folder = |(path, objects): (String, Vec<Map>)| {
        let mut folder = Map::default().with("path", path);
        folder.put("fileMode", Doc::Plain(default_mode.to_owned()));
        folder.put("objects", objects);
        folder.into()
    };
    grouped.into_iter().map(folder).collect()
}

fn clean(folder: &str) -> String {
    let parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    format!("/{}", parts.join("/"))
}

/// Tells of a template that could not be rendered.
pub(super) fn check_template(
    text: &str,
    left: Option<&str>,
    right: Option<&str>,
    line: u64,
    what: &str,
    notes: &mut Notes,
) {
    let delimiters =
        (left.is_some() || right.is_some()).then(|| (left.unwrap_or("{{"), right.unwrap_or("}}")));
    if let Err(error) = Template::parse(text, delimiters) {
        notes.refused(line, format!("{what}: the template, {} of it: {}", error.position(), reason(&error)));
    }
}

/// Puts a template into an object.
pub(super) fn put_template(object: &mut Map, text: &str, left: Option<&str>, right: Option<&str>) {
    object.put("template", text).put_some("leftDelimiter", left).put_some("rightDelimiter", right);
}

/// The file's text.
pub(super) fn text(top: Map) -> String {
    document(&top.into())
}
