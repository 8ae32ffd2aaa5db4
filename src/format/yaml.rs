//! YAML as Kubernetes' tools write it: block style, keys sorted, lists not indented below their key, and
//! every string quoted that a YAML 1.1 or 1.2 reader would take for something else.

use serde_json::Value as Json;

use super::quote;

/// Writes a document, with its line end.
pub fn to_text(value: &Json) -> String {
    let mut out = String::new();
    match value {
        Json::Object(map) if !map.is_empty() => write(&mut out, value, 0),
        Json::Array(items) if !items.is_empty() => write(&mut out, value, 0),
        other => {
            scalar(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

/// Reads one document into JSON: YAML 1.2 with the octal numbers of 1.1, duplicate keys refused, aliases,
/// depth and size bounded.
///
/// # Errors
/// It is not YAML, or not one document. The parser's own text is dropped: it quotes its input.
pub fn from_text(text: &str) -> Result<Json, NotYaml> {
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|_| NotYaml)
}

/// The text is no YAML document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read YAML: not one valid document")]
pub struct NotYaml;

fn block(value: &Json) -> bool {
    match value {
        Json::Object(map) => !map.is_empty(),
        Json::Array(items) => !items.is_empty(),
        _ => false,
    }
}

/// A map or list that is not empty, each entry on a line of its own; the first line is already indented.
fn write(out: &mut String, value: &Json, indent: usize) {
    match value {
        Json::Object(map) => {
            for (index, (key, value)) in map.iter().enumerate() {
                if index > 0 {
                    pad(out, indent);
                }
                string(out, key, indent, false);
                out.push(':');
                if block(value) {
                    out.push('\n');
                    let inner = if value.is_array() { indent } else { indent + 2 };
                    pad(out, inner);
                    write(out, value, inner);
                } else {
                    out.push(' ');
                    scalar(out, value, indent + 2);
                    out.push('\n');
                }
            }
        }
        Json::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    pad(out, indent);
                }
                out.push_str("- ");
                if block(item) {
                    write(out, item, indent + 2);
                } else {
                    scalar(out, item, indent + 2);
                    out.push('\n');
                }
            }
        }
        _ => {}
    }
}

fn pad(out: &mut String, indent: usize) {
    out.push_str(&" ".repeat(indent));
}

fn scalar(out: &mut String, value: &Json, indent: usize) {
    match value {
        Json::Null => out.push_str("null"),
        Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Json::Number(value) => out.push_str(&value.to_string()),
        Json::String(text) => string(out, text, indent, true),
        Json::Array(_) => out.push_str("[]"),
        Json::Object(_) => out.push_str("{}"),
    }
}

fn string(out: &mut String, text: &str, indent: usize, lines: bool) {
    if lines && text.contains('\n') && literal_fits(text) {
        out.push_str(if text.ends_with('\n') { "|" } else { "|-" });
        let body = text.strip_suffix('\n').unwrap_or(text);
        for line in body.split('\n') {
            out.push('\n');
            if !line.is_empty() {
                pad(out, indent);
                out.push_str(line);
            }
        }
        return;
    }
    let simple = text.chars().all(|c| printable(c) && c != '\n');
    if !simple || resolves(text) {
        double_quoted(out, text);
    } else if plain(text) {
        out.push_str(text);
    } else {
        out.push('\'');
        out.push_str(&text.replace('\'', "''"));
        out.push('\'');
    }
}

fn printable(character: char) -> bool {
    matches!(character, ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}'
        | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
}

/// Whether `|` carries it: nothing to escape, no leading space that would set the indentation, no line end
/// beyond one, and no space before one, which tools that trim text would take away.
fn literal_fits(text: &str) -> bool {
    text.chars().all(|c| printable(c) || c == '\n')
        && !text.starts_with([' ', '\n'])
        && !text.ends_with("\n\n")
        && !text.split('\n').any(|line| !line.is_empty() && line.ends_with(' '))
}

fn plain(text: &str) -> bool {
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return false };
    let second = characters.next();
    let starts = match first {
        '-' | '?' | ':' => second.is_some_and(|c| c != ' '),
        c => !",[]{}#&*!|>'\"%@` ".contains(c),
    };
    starts
        && !text.starts_with("---")
        && !text.starts_with("...")
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
}

/// Whether a reader would take it for null, a boolean, a number, a date or a merge key.
fn resolves(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let word = matches!(
        lower.as_str(),
        "" | "~" | "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n" | "<<" | "="
    );
    let unsigned = lower.trim_start_matches(['+', '-']);
    let infinite = matches!(unsigned, ".inf" | ".nan");
    let body: String = unsigned.chars().filter(|c| *c != '_').collect();
    let radix = ["0x", "0o", "0b"].iter().any(|prefix| {
        body.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    let starts = body.starts_with(|c: char| c.is_ascii_digit())
        || body.strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    // Floats, integers, sexagesimals (1:30) and dates begin with a digit and hold nothing but these.
    let numeric = starts && body.bytes().all(|b| b.is_ascii_digit() || b"+-.:etz ".contains(&b));
    word || infinite || radix || numeric && number_like(&body)
}

fn number_like(body: &str) -> bool {
    let float = body.parse::<f64>().is_ok();
    let sexagesimal =
        body.contains(':') && body.bytes().all(|b| b.is_ascii_digit() || b == b':' || b == b'.');
    let date = body.len() >= 8 && body.as_bytes().get(4) == Some(&b'-');
    float || sexagesimal || date
}

fn double_quoted(out: &mut String, text: &str) {
    quote::quote(out, text, |character| {
        let short = match character {
            '\0' => '0',
            '\u{7}' => 'a',
            '\u{b}' => 'v',
            '\u{1b}' => 'e',
            '\u{85}' => 'N',
            '\u{2028}' => 'L',
            '\u{2029}' => 'P',
            c if printable(c) => return None,
            c if u32::from(c) < 0x100 => return Some(format!("\\x{:02X}", u32::from(c))),
            c => return Some(format!("\\u{:04X}", u32::from(c))),
        };
        Some(format!("\\{short}"))
    });
}
