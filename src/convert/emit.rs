//! YAML for people: block style, comments above what they are about, templates as they were written.

/// A value to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doc {
    /// Written as it is: a number, a mode, a boolean, null.
    Plain(String),
    /// Text, quoted where it must be.
    Text(String),
    /// A list.
    List(Vec<Doc>),
    /// A mapping in this order.
    Map(Map),
}

/// A mapping that is being built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Map {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    comments: Vec<String>,
    key: String,
    value: Doc,
}

impl From<&str> for Doc {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Doc {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Doc {
    fn from(value: bool) -> Self {
        Self::Plain(value.to_string())
    }
}

impl From<Map> for Doc {
    fn from(map: Map) -> Self {
        Self::Map(map)
    }
}

impl<T: Into<Self>> From<Vec<T>> for Doc {
    fn from(items: Vec<T>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }
}

impl From<&serde_json::Value> for Doc {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::from).collect()),
            Value::Object(map) => {
                let entries = map.iter().map(|(key, value)| Entry {
                    comments: Vec::new(),
                    key: key.clone(),
                    value: value.into(),
                });
                Self::Map(Map { entries: entries.collect() })
            }
            scalar => Self::Plain(scalar.to_string()),
        }
    }
}

impl Doc {
    /// Null: in a patch, what removes.
    pub(crate) fn null() -> Self {
        Self::Plain("null".to_owned())
    }
}

impl Map {
    /// Appends an entry.
    pub(crate) fn put(&mut self, key: &str, value: impl Into<Doc>) -> &mut Self {
        self.entries.push(Entry { comments: Vec::new(), key: key.to_owned(), value: value.into() });
        self
    }

    /// Appends an entry if there is a value.
    pub(crate) fn put_some(&mut self, key: &str, value: Option<impl Into<Doc>>) -> &mut Self {
        if let Some(value) = value {
            self.put(key, value);
        }
        self
    }

    /// The same with the entry, for chains.
    pub(crate) fn with(mut self, key: &str, value: impl Into<Doc>) -> Self {
        self.put(key, value);
        self
    }

    /// A comment above the last entry.
    pub(crate) fn comment(&mut self, text: impl Into<String>) -> &mut Self {
        if let Some(last) = self.entries.last_mut() {
            last.comments.push(text.into());
        }
        self
    }

    /// The entries of another behind its own.
    pub(crate) fn append(&mut self, other: Self) -> &mut Self {
        self.entries.extend(other.entries);
        self
    }

    /// The entries that are text.
    pub(crate) fn texts(&self) -> std::collections::BTreeMap<String, String> {
        let text = |entry: &Entry| match &entry.value {
            Doc::Text(text) => Some((entry.key.clone(), text.clone())),
            _ => None,
        };
        self.entries.iter().filter_map(text).collect()
    }

    /// The same without an entry.
    pub(crate) fn without(&self, key: &str) -> Self {
        Self { entries: self.entries.iter().filter(|entry| entry.key != key).cloned().collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of an entry.
    pub(crate) fn get(&self, key: &str) -> Option<&Doc> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }
}

/// A document, with its line end.
pub(crate) fn document(value: &Doc) -> String {
    let mut out = String::new();
    match value {
        Doc::Map(map) if !map.is_empty() => write_map(&mut out, map, 0, false),
        Doc::List(items) if !flows(items) => write_list(&mut out, items, 0),
        other => {
            scalar(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

/// Lines of a comment, each with its mark.
pub(crate) fn comment(text: &str, indent: usize) -> String {
    let pad = " ".repeat(indent);
    text.lines().map(|line| format!("{pad}# {}\n", line.replace(char::is_control, " "))).collect()
}

fn write_map(out: &mut String, map: &Map, indent: usize, mut begun: bool) {
    for Entry { comments, key, value } in &map.entries {
        if !begun {
            comments.iter().for_each(|text| out.push_str(&comment(text, indent)));
            out.push_str(&" ".repeat(indent));
        }
        begun = false;
        text(out, key, false);
        out.push(':');
        match value {
            Doc::Map(inner) if !inner.is_empty() => {
                out.push('\n');
                write_map(out, inner, indent + 2, false);
            }
            Doc::List(items) if !flows(items) => {
                out.push('\n');
                write_list(out, items, indent + 2);
            }
            other => {
                out.push(' ');
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn write_list(out: &mut String, items: &[Doc], indent: usize) {
    for item in items {
        if let Doc::Map(map) = item {
            // A comment of the first entry stands above the item.
            if let Some(first) = map.entries.first() {
                first.comments.iter().for_each(|text| out.push_str(&comment(text, indent)));
            }
        }
        out.push_str(&" ".repeat(indent));
        out.push_str("- ");
        match item {
            Doc::Map(map) if !map.is_empty() => write_map(out, map, indent + 2, true),
            other => {
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

/// Whether a list stands on one line: nothing in it, or short scalars only.
fn flows(items: &[Doc]) -> bool {
    items.iter().all(|item| match item {
        Doc::Plain(_) => true,
        Doc::Text(text) => text.len() < 60 && !text.contains('\n'),
        Doc::List(_) | Doc::Map(_) => false,
    })
}

fn scalar(out: &mut String, value: &Doc, indent: usize) {
    match value {
        Doc::Plain(plain) => out.push_str(plain),
        Doc::Text(value) if is_literal(value) => literal(out, value, indent),
        Doc::Text(value) => text(out, value, true),
        Doc::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                match item {
                    Doc::Text(value) => text(out, value, false),
                    other => scalar(out, other, indent),
                }
            }
            out.push(']');
        }
        Doc::Map(_) => out.push_str("{}"),
    }
}

fn text(out: &mut String, value: &str, colons: bool) {
    if is_plain(value, colons) {
        out.push_str(value);
    } else {
        // JSON's strings are YAML's; what YAML takes for a line's end is escaped.
        let quoted = serde_json::Value::String(value.to_owned()).to_string();
        out.push_str(
            &quoted
                .replace('\u{7f}', "\\u007f")
                .replace('\u{85}', "\\u0085")
                .replace('\u{2028}', "\\u2028")
                .replace('\u{2029}', "\\u2029")
                .replace('\u{feff}', "\\ufeff"),
        );
    }
}

/// Whether every reader of YAML takes it for this text without quotes.
fn is_plain(value: &str, colons: bool) -> bool {
    const WORDS: [&str; 10] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan"];
    let first = value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let letters =
        value.chars().all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c) || (colons && c == ':'));
    first && letters && !value.ends_with(':') && !WORDS.contains(&value.to_ascii_lowercase().as_str())
}

fn is_literal(value: &str) -> bool {
    let clean =
        |c: char| c == '\n' || c == '\t' || (!c.is_control() && !"\u{2028}\u{2029}\u{feff}".contains(c));
    value.trim_end_matches('\n').contains('\n') | (value.ends_with('\n') && !value.starts_with('\n'))
        && !value.starts_with(char::is_whitespace)
        && value.chars().all(clean)
        // A tab in front of a line is indentation to some readers.
        && !value.lines().any(|line| line.starts_with('\t'))
}

fn literal(out: &mut String, value: &str, indent: usize) {
    let body = value.trim_end_matches('\n');
    out.push_str(match value.len() - body.len() {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    for line in value.strip_suffix('\n').unwrap_or(value).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            out.push_str(&" ".repeat(indent));
            out.push_str(line);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;
    use crate::spec::yaml::Node;

    #[test]
    fn documents_look_as_a_person_would_write_them() {
        let mut inner = Map::default().with("objectName", "a.env");
        inner
            .comment("why")
            .put("template", "A={{ .a }}\n\nB=1\n")
            .put("filePermission", Doc::Plain("0440".into()));
        let mut map = Map::default().with("kind", "X").with("address", "https://v:8200");
        map.put("list", vec!["a", "no", "b c"]).put("objects", Doc::List(vec![inner.into()]));
        map.comment("first\nsecond").put("none", Map::default()).put("mode", "0644").put("gone", Doc::null());
        let expected = "kind: X\naddress: https://v:8200\nlist: [a, \"no\", \"b c\"]\n# first\n# second\nobjects:\n  \
                        # why\n  - objectName: a.env\n    template: |\n      A={{ .a }}\n\n      B=1\n    \
                        filePermission: 0440\nnone: {}\nmode: \"0644\"\ngone: null\n";
        assert_eq!(document(&map.into()), expected);
    }

    proptest! {
        /// Whatever the text, it is read as what was written.
        #[test]
        fn texts_survive(texts in prop::collection::vec("(?s)[ -~\\n\\t\u{85}\u{2028}\u{e9}\u{7f}#:-]{0,24}", 1..5)) {
            let map = texts.iter().enumerate().fold(Map::default(), |map, (index, text)| {
                map.with(&format!("k{index}"), text.as_str())
            });
            let list = Doc::List(vec![map.into(), Doc::from(texts.clone())]);
            // As an object's list within a class: text within text.
            let outer = document(&Map::default().with("objects", document(&list)).into());
            let inner = Node::parse(&outer).unwrap();
            let inner = Node::parse(inner.get("objects").unwrap().as_text().unwrap()).unwrap().to_json();
            for (index, text) in texts.iter().enumerate() {
                prop_assert_eq!(inner[0][format!("k{index}")].as_str(), Some(text.as_str()), "{}", outer);
                prop_assert_eq!(inner[1][index].as_str(), Some(text.as_str()), "{}", outer);
            }
        }
    }
}
