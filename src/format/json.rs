//! JSON as Go's encoding/json writes it: keys sorted, numbers as they were received, and `<`, `>`, `&`,
//! U+2028 and U+2029 escaped.

use serde_json::Value as Json;

use super::quote;

/// `json.Marshal`.
pub fn to_text(value: &Json) -> String {
    let mut out = String::new();
    write(&mut out, value, None, true);
    out
}

/// `json.Encoder` with `SetEscapeHTML(false)`, without its line end.
pub fn to_raw_text(value: &Json) -> String {
    let mut out = String::new();
    write(&mut out, value, None, false);
    out
}

/// `json.MarshalIndent` with two spaces.
pub fn to_pretty_text(value: &Json) -> String {
    let mut out = String::new();
    write(&mut out, value, Some(0), true);
    out
}

// Values come from a parser that bounds their depth, so recursion is bounded too.
fn write(out: &mut String, value: &Json, indent: Option<usize>, html: bool) {
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Json::Number(value) => out.push_str(&value.to_string()),
        Json::String(text) => quote(out, text, html),
        Json::Array(items) => {
            sequence(out, '[', ']', indent, items.iter(), |out, item, indent| write(out, item, indent, html));
        }
        Json::Object(map) => sequence(out, '{', '}', indent, map.iter(), |out, (key, value), indent| {
            quote(out, key, html);
            out.push_str(if indent.is_some() { ": " } else { ":" });
            write(out, value, indent, html);
        }),
    }
}

fn sequence<T>(
    out: &mut String,
    open: char,
    close: char,
    indent: Option<usize>,
    items: impl ExactSizeIterator<Item = T>,
    mut each: impl FnMut(&mut String, T, Option<usize>),
) {
    out.push(open);
    let empty = items.len() == 0;
    let inner = indent.map(|indent| indent + 1);
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(',');
        }
        line(out, inner);
        each(out, item, inner);
    }
    if !empty {
        line(out, indent);
    }
    out.push(close);
}

fn line(out: &mut String, indent: Option<usize>) {
    if let Some(indent) = indent {
        out.push('\n');
        out.push_str(&"  ".repeat(indent));
    }
}

fn quote(out: &mut String, text: &str, html: bool) {
    quote::quote(out, text, |character| {
        let escaped = match character {
            '<' | '>' | '&' => html,
            '\u{2028}' | '\u{2029}' => true,
            other => other < ' ',
        };
        escaped.then(|| format!("\\u{:04x}", u32::from(character)))
    });
}
