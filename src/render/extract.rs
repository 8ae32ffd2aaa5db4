//! Every key of a secret a file.

use serde_json::{Map, Value};

use super::{
    RenderError,
    value::{decode, raw_bytes},
};
use crate::spec::{
    Object, ObjectPath,
    object::{Extract, source::compile},
};

/// The files below the object's name, or beside all others, in the order of the keys.
pub(super) fn files(
    object: &Object,
    folder: Option<&ObjectPath>,
    extract: &Extract,
    data: &Map<String, Value>,
) -> Result<Vec<(ObjectPath, Vec<u8>)>, RenderError> {
    let renames: Vec<_> = extract
        .rename
        .iter()
        // The spec has only those that compile.
        .filter_map(|rename| Some((compile(&rename.from).ok()?, rename.to.as_str())))
        .collect();
    let matches = |globs: &[String], key: &str| globs.iter().any(|glob| glob_matches(glob, key));
    let mut keys: Vec<&String> = data
        .keys()
        .filter(|key| extract.include.is_empty() || matches(&extract.include, key))
        .filter(|key| !matches(&extract.exclude, key))
        .collect();
    keys.sort_unstable();
    let mut files = Vec::with_capacity(keys.len());
    for key in keys {
        let mut name = key.clone();
        for (from, to) in &renames {
            name = from.replace_all(&name, *to).into_owned();
        }
        let name = folder.map_or_else(|| name.clone(), |folder| format!("{folder}/{name}"));
        let path = ObjectPath::parse(&name).map_err(|reason| RenderError::ExtractedName {
            object: object.name().to_owned(),
            key: key.clone(),
            name: name.clone(),
            reason,
        })?;
        files.push((path, decode(object, key, raw_bytes(&data[key]))?));
    }
    Ok(files)
}

/// Whether `text` is what `glob` says, in which `*` is any text and `?` any one character.
fn glob_matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // The last star, and how much of the text it has taken: one place to go back to is enough.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match glob.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(&it) if it == '?' || it == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((place, taken)) = star else { return false };
                star = Some((place, taken + 1));
                at = place + 1;
                seen = taken + 1;
            }
        }
    }
    glob[at..].iter().all(|&it| it == '*')
}

#[cfg(test)]
mod tests {
    use super::glob_matches;

    #[test]
    fn globs() {
        for (glob, text, expected) in [
            ("*", "", true),
            ("*", "any/thing", true),
            ("legacy_*", "legacy_x", true),
            ("legacy_*", "my_legacy_x", false),
            ("*_key", "a_key_b_key", true),
            ("*_key", "a_key_b", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "aXbYbZc", true),
            ("", "a", false),
            ("", "", true),
        ] {
            assert_eq!(glob_matches(glob, text), expected, "{glob} {text}");
        }
        // Linear in the product, not exponential.
        assert!(!glob_matches(&"a*".repeat(200), &("a".repeat(4000) + "b").replace('a', "b")));
    }
}
