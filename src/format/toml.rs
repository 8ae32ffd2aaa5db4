//! TOML, for consul-template's `toTOML`.

use serde_json::{Map, Value as Json};

use super::quote;

/// Writes a map; `None` when it is none, or holds a null, which TOML has not.
pub fn to_text(value: &Json) -> Option<String> {
    let mut out = String::new();
    table(&mut out, value.as_object()?, &mut Vec::new())?;
    Some(out)
}

fn table<'a>(out: &mut String, map: &'a Map<String, Json>, path: &mut Vec<&'a str>) -> Option<()> {
    for (name, value) in map.iter().filter(|(_, value)| !value.is_object()) {
        out.push_str(&format!("{} = ", key(name)));
        inline(out, value)?;
        out.push('\n');
    }
    for (name, value) in map {
        let Json::Object(inner) = value else { continue };
        path.push(name);
        let names: Vec<String> = path.iter().map(|name| key(name)).collect();
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("[{}]\n", names.join(".")));
        table(out, inner, path)?;
        path.pop();
    }
    Some(())
}

fn inline(out: &mut String, value: &Json) -> Option<()> {
    match value {
        Json::Null => return None,
        Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Json::Number(value) => out.push_str(&value.to_string()),
        Json::String(text) => quote(out, text),
        Json::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                inline(out, item)?;
            }
            out.push(']');
        }
        Json::Object(map) => {
            out.push('{');
            for (index, (name, value)) in map.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                out.push_str(&format!("{} = ", key(name)));
                inline(out, value)?;
            }
            out.push('}');
        }
    }
    Some(())
}

fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare {
        return name.to_owned();
    }
    let mut out = String::new();
    quote(&mut out, name);
    out
}

fn quote(out: &mut String, text: &str) {
    quote::quote(out, text, |character| {
        (character < ' ' || character == '\u{7f}').then(|| format!("\\u{:04X}", u32::from(character)))
    });
}
