//! Where a reference of External Secrets Operator points to.

use super::store::Store;

/// The path that the operator would ask for: mount, `data` for version 2, key (its `buildPath`).
pub(super) fn path(store: &Store, key: &str, kind: &str) -> String {
    let Some(mount) = &store.path else {
        return match key.split_once('/') {
            Some((mount, rest)) if store.versioned && !key.contains("/data/") => {
                format!("{mount}/{kind}/{rest}")
            }
            _ if kind != "data" => key.replacen("/data/", &format!("/{kind}/"), 1),
            _ => key.to_owned(),
        };
    };
    let mut rest = key;
    if let Some(below) = key.strip_prefix(mount.as_str()).and_then(|below| below.strip_prefix('/')) {
        rest = below;
        if store.versioned {
            rest = rest.strip_prefix("data/").unwrap_or(rest);
        }
    }
    if store.versioned { format!("{mount}/{kind}/{rest}") } else { format!("{mount}/{rest}") }
}

/// What of a secret a property names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Property {
    /// A key.
    Key(String),
    /// A nested value, RFC 6901.
    Pointer(String),
}

/// A property in gjson's syntax; `None` when it is a query.
pub(super) fn property(text: &str) -> Option<Property> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let begins = parts.last().is_some_and(String::is_empty);
        let part = parts.last_mut()?;
        match letter {
            '\\' => part.push(letters.next()?),
            '.' => parts.push(String::new()),
            '*' | '?' | '#' | '|' => return None,
            '@' | '!' | '{' | '[' if begins => return None,
            other => part.push(other),
        }
    }
    if parts.iter().any(String::is_empty) {
        return None;
    }
    match parts.as_slice() {
        [key] => Some(Property::Key(key.clone())),
        _ => Some(Property::Pointer(pointer(&parts))),
    }
}

/// A JSON pointer of names.
pub(super) fn pointer(parts: &[String]) -> String {
    parts.iter().map(|part| format!("/{}", part.replace('~', "~0").replace('/', "~1"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::{emit::Map, rule::Rule};

    #[test]
    fn paths_are_those_that_the_operator_asks_for() {
        for (mount, versioned, key, expected) in [
            (Some("secret"), true, "app/db", "secret/data/app/db"),
            (Some("secret"), true, "secret/app/db", "secret/data/app/db"),
            (Some("secret"), true, "secret/data/app/db", "secret/data/app/db"),
            (Some("team/kv"), true, "app", "team/kv/data/app"),
            (Some("kv"), false, "app/db", "kv/app/db"),
            (Some("kv"), false, "kv/app/db", "kv/app/db"),
            (None, true, "secret/app/db", "secret/data/app/db"),
            (None, true, "secret/data/app/db", "secret/data/app/db"),
            (None, false, "kv/app/db", "kv/app/db"),
        ] {
            let path_of_store = mount.map(str::to_owned);
            let (parameters, rule) = (Map::default(), Rule::default());
            let store = Store { parameters, path: path_of_store, versioned, rule, bundle: None };
            assert_eq!(path(&store, key, "data"), expected);
        }
    }

    #[test]
    fn a_property_is_a_key_a_path_or_a_query() {
        let key = |text: &str| Some(Property::Key(text.to_owned()));
        let nested = |text: &str| Some(Property::Pointer(text.to_owned()));
        for (text, expected) in [
            ("password", key("password")),
            ("tls\\.crt", key("tls.crt")),
            ("user@host", key("user@host")),
            ("a.b.0", nested("/a/b/0")),
            ("a/b.c~d", nested("/a~1b/c~0d")),
            ("a.#", None),
            ("a.*", None),
            ("@this", None),
            ("a.{b,c}", None),
            ("a..b", None),
            ("a|b", None),
            ("", None),
        ] {
            assert_eq!(property(text), expected, "{text}");
        }
    }
}
