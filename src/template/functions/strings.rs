//! sprig's string functions, and consul-template's under their own names.

use super::{Args, Function, MANY, function, printed, strings_of, text};
use crate::template::{
    budget::Buffer,
    fault::Fault,
    printf,
    value::{Value, utf8},
};

pub(super) const TABLE: &[Function] = &[
    function("abbrev", 2, 2, |args| abbreviated(args.bytes(1)?, 0, args.int(0)?)),
    function("abbrevboth", 3, 3, |args| abbreviated(args.bytes(2)?, args.int(0)?, args.int(1)?)),
    function("trunc", 2, 2, trunc),
    function("trim", 1, 1, |args| text(args.bytes(0)?.trim_unicode())),
    function("trimSpace", 1, 1, |args| text(args.bytes(0)?.trim_unicode())),
    function("trimAll", 2, 2, |args| trimmed(args, true, true)),
    function("trimall", 2, 2, |args| trimmed(args, true, true)),
    function("trimLeft", 2, 2, |args| trimmed(args, true, false)),
    function("trimRight", 2, 2, |args| trimmed(args, false, true)),
    function("trimPrefix", 2, 2, |args| {
        text(args.bytes(1)?.strip_prefix(&**args.bytes(0)?).unwrap_or(args.bytes(1)?))
    }),
    function("trimSuffix", 2, 2, |args| {
        text(args.bytes(1)?.strip_suffix(&**args.bytes(0)?).unwrap_or(args.bytes(1)?))
    }),
    function("upper", 1, 1, |args| mapped(args, |text| text.chars().map(upper).collect())),
    function("toUpper", 1, 1, |args| mapped(args, |text| text.chars().map(upper).collect())),
    function("lower", 1, 1, |args| mapped(args, |text| text.chars().map(lower).collect())),
    function("toLower", 1, 1, |args| mapped(args, |text| text.chars().map(lower).collect())),
    function("title", 1, 1, |args| mapped(args, title)),
    function("toTitle", 1, 1, |args| mapped(args, title)),
    function("untitle", 1, 1, |args| mapped(args, untitle)),
    function("swapcase", 1, 1, |args| mapped(args, swapcase)),
    function("initials", 1, 1, |args| mapped(args, initials)),
    function("nospace", 1, 1, |args| {
        mapped(args, |text| text.chars().filter(|c| !c.is_whitespace()).collect())
    }),
    function("snakecase", 1, 1, |args| mapped(args, |text| separated(text, '_'))),
    function("kebabcase", 1, 1, |args| mapped(args, |text| separated(text, '-'))),
    function("camelcase", 1, 1, |args| mapped(args, camelcase)),
    function("substr", 3, 3, substr),
    function("repeat", 2, 2, repeat),
    function("wrap", 2, 2, |args| wrapped(args, args.text(1)?, b"\n", false)),
    function("wrapWith", 3, 3, |args| wrapped(args, args.text(2)?, args.bytes(1)?, true)),
    function("hasPrefix", 2, 2, |args| Ok(Value::Bool(args.bytes(1)?.starts_with(args.bytes(0)?)))),
    function("hasSuffix", 2, 2, |args| Ok(Value::Bool(args.bytes(1)?.ends_with(args.bytes(0)?)))),
    function("quote", 0, MANY, quote),
    function("squote", 0, MANY, squote),
    function("cat", 0, MANY, cat),
    function("indent", 2, 2, |args| indent(args, false)),
    function("nindent", 2, 2, |args| indent(args, true)),
    function("replace", 3, 3, replace),
    function("replaceAll", 3, 3, replace),
    function("plural", 3, 3, |args| text(if args.int(2)? == 1 { args.bytes(0)? } else { args.bytes(1)? })),
    function("toString", 1, 1, |args| text(args.printed(0)?)),
    function("toStrings", 1, 1, to_strings),
    function("join", 2, 2, join),
    function("split", 2, 2, |args| numbered(split_on(args.bytes(1)?, args.bytes(0)?, usize::MAX))),
    function("splitn", 3, 3, splitn),
    function("splitList", 2, 2, split_list),
    function("sortAlpha", 1, 1, sort_alpha),
    function("base", 1, 1, |args| text(base(args.text(0)?))),
    function("osBase", 1, 1, |args| text(base(args.text(0)?))),
    function("dir", 1, 1, |args| text(dir(args.text(0)?))),
    function("osDir", 1, 1, |args| text(dir(args.text(0)?))),
    function("clean", 1, 1, |args| text(clean(args.text(0)?))),
    function("osClean", 1, 1, |args| text(clean(args.text(0)?))),
    function("ext", 1, 1, |args| text(ext(args.text(0)?))),
    function("osExt", 1, 1, |args| text(ext(args.text(0)?))),
    function("isAbs", 1, 1, |args| Ok(Value::Bool(args.bytes(0)?.starts_with(b"/")))),
    function("osIsAbs", 1, 1, |args| Ok(Value::Bool(args.bytes(0)?.starts_with(b"/")))),
];

trait TrimUnicode {
    fn trim_unicode(&self) -> &[u8];
}

impl TrimUnicode for [u8] {
    /// strings.TrimSpace; binary text is trimmed of ASCII space only.
    fn trim_unicode(&self) -> &[u8] {
        match std::str::from_utf8(self) {
            Ok(text) => text.trim().as_bytes(),
            Err(_) => self.trim_ascii(),
        }
    }
}

fn mapped(args: &Args<'_>, map: fn(&str) -> String) -> Result<Value, Fault> {
    text(map(args.text(0)?))
}

/// unicode.ToUpper: one character for one, so that ß stays.
fn upper(character: char) -> char {
    let mut mapped = character.to_uppercase();
    match (mapped.next(), mapped.next()) {
        (Some(only), None) => only,
        _ => character,
    }
}

/// unicode.ToLower: one character for one, so that İ becomes i.
fn lower(character: char) -> char {
    character.to_lowercase().next().unwrap_or(character)
}

fn abbreviated(bytes: &[u8], left: i64, right: i64) -> Result<Value, Fault> {
    let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    let at = |index: i64| usize::try_from(index.clamp(0, length)).unwrap_or(0);
    if right < 4 || left > 0 && right < 7 || right >= length {
        return text(bytes);
    }
    let mut from = left.min(length);
    if length - from < right - 3 {
        from = length - (right - 3);
    }
    if from <= 4 {
        return text([&bytes[..at(right - 3)], b"..."].concat());
    }
    if from + right - 3 < length {
        return text([b"...", &bytes[at(from)..at(from + right - 6)], b"..."].concat());
    }
    text([b"...", &bytes[at(length - (right - 3))..]].concat())
}

fn trunc(args: &Args<'_>) -> Result<Value, Fault> {
    let (count, bytes) = (args.int(0)?, args.bytes(1)?);
    let size = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX).min(bytes.len());
    text(if count < 0 { &bytes[bytes.len() - size..] } else { &bytes[..size] })
}

fn trimmed(args: &Args<'_>, left: bool, right: bool) -> Result<Value, Fault> {
    let set: Vec<char> = args.text(0)?.chars().collect();
    let mut bytes = args.text(1)?;
    if left {
        bytes = bytes.trim_start_matches(|c| set.contains(&c));
    }
    if right {
        bytes = bytes.trim_end_matches(|c| set.contains(&c));
    }
    text(bytes)
}

/// strings.Title: a letter after anything that is no letter, digit or underscore.
fn title(input: &str) -> String {
    let mut previous = ' ';
    let mut out = String::with_capacity(input.len());
    for character in input.chars() {
        let starts = !(previous.is_alphanumeric() || previous == '_')
            && (previous.is_whitespace() || previous.is_ascii());
        if starts {
            out.push(upper(character));
        } else {
            out.push(character);
        }
        previous = character;
    }
    out
}

/// goutils.Uncapitalize: the first letter of every word.
fn untitle(input: &str) -> String {
    let mut at_start = true;
    let mut out = String::with_capacity(input.len());
    for character in input.chars() {
        if character.is_whitespace() {
            at_start = true;
            out.push(character);
        } else {
            if at_start {
                out.push(lower(character));
            } else {
                out.push(character);
            }
            at_start = false;
        }
    }
    out
}

/// goutils.SwapCase: upper to lower; lower to upper, or to title case after a space: the same here.
fn swapcase(input: &str) -> String {
    let mut out = String::with_capacity(input.len());
    for character in input.chars() {
        if character.is_uppercase() {
            out.push(lower(character));
        } else {
            out.push(upper(character));
        }
    }
    out
}

fn initials(input: &str) -> String {
    input.split_whitespace().filter_map(|word| word.chars().next()).collect()
}

fn connector(character: char) -> bool {
    character == '-' || character == '_' || character.is_whitespace()
}

/// xstrings' snake and kebab case: FirstName → first_name, HTTPServer → http_server, http2xx → http_2xx,
/// Bld4Floor → bld4_floor.
fn separated(input: &str, separator: char) -> String {
    let characters: Vec<char> = input.chars().collect();
    let mut out = String::with_capacity(input.len() + 8);
    // Inside "20x": letters that belong to a number.
    let mut numbered = false;
    for (index, character) in characters.iter().enumerate() {
        let previous = index.checked_sub(1).and_then(|before| characters.get(before)).copied();
        let following = characters.get(index + 1).copied();
        if connector(*character) {
            out.push(separator);
            numbered = false;
            continue;
        }
        if let Some(previous) = previous.filter(|previous| previous.is_alphanumeric()) {
            let boundary = if character.is_numeric() {
                // A number is a word of its own only when lower-case letters follow it.
                let end = characters[index..].iter().find(|c| !c.is_numeric());
                let own = !previous.is_numeric() && !numbered && end.is_some_and(|c| c.is_lowercase());
                numbered = numbered || own;
                own
            } else if character.is_uppercase() {
                let ends_run = previous.is_uppercase() && following.is_some_and(char::is_lowercase);
                !previous.is_uppercase() || ends_run
            } else {
                false
            };
            if character.is_uppercase() {
                numbered = false;
            }
            if boundary {
                out.push(separator);
            }
        } else if character.is_numeric() {
            numbered = true;
        }
        out.push(lower(*character));
    }
    out
}

/// xstrings.ToPascalCase.
fn camelcase(input: &str) -> String {
    let start = input.find(|c| !connector(c)).unwrap_or(input.len());
    let mut out = input[..start].to_owned();
    let characters: Vec<char> = input[start..].chars().collect();
    let mut first_upper = false;
    let mut previous_connector = true;
    for (index, character) in characters.iter().enumerate() {
        if connector(*character) {
            // A run of connectors keeps all but its last; a trailing one stays.
            let last = characters.get(index + 1).is_none_or(|next| connector(*next));
            if last {
                out.push(*character);
            }
            previous_connector = true;
            continue;
        }
        if previous_connector {
            first_upper = character.is_uppercase();
            out.push(upper(*character));
        } else if first_upper && character.is_uppercase() {
            out.push(lower(*character));
        } else {
            first_upper = false;
            out.push(*character);
        }
        previous_connector = false;
    }
    out
}

fn substr(args: &Args<'_>) -> Result<Value, Fault> {
    const RANGE: Fault = Fault::Why("the positions are outside of the string");
    let (start, end, bytes) = (args.int(0)?, args.int(1)?, args.bytes(2)?);
    let to = usize::try_from(end).ok().filter(|end| *end <= bytes.len());
    let found = match usize::try_from(start) {
        Err(_) => bytes.get(..to.ok_or(RANGE)?),
        Ok(start) => bytes.get(start..to.unwrap_or(bytes.len())),
    };
    text(found.ok_or(RANGE)?)
}

fn repeat(args: &Args<'_>) -> Result<Value, Fault> {
    let (count, bytes) = (args.count(0)?, args.bytes(1)?);
    args.env.budget.allows(bytes.len().saturating_mul(count))?;
    text(bytes.repeat(count))
}

/// goutils.WrapCustom, by characters.
fn wrapped(args: &Args<'_>, input: &str, newline: &[u8], long_words: bool) -> Result<Value, Fault> {
    let width = args.count(0)?.max(1);
    let characters: Vec<char> = input.chars().collect();
    let mut out = args.env.budget.buffer();
    let put = |out: &mut Buffer<'_>, from: usize, to: usize| {
        out.push(characters[from..to].iter().collect::<String>().as_bytes())
    };
    let mut at = 0;
    while characters.len() - at > width {
        if characters[at] == ' ' {
            at += 1;
            continue;
        }
        let space = characters[at..=at + width].iter().rposition(|c| *c == ' ').map(|index| index + at);
        match space {
            Some(space) => {
                put(&mut out, at, space)?;
                out.push(newline)?;
                at = space + 1;
            }
            None if long_words => {
                put(&mut out, at, at + width)?;
                out.push(newline)?;
                at += width;
            }
            None => match characters[at + width..].iter().position(|c| *c == ' ') {
                Some(index) => {
                    put(&mut out, at, at + width + index)?;
                    out.push(newline)?;
                    at += width + index + 1;
                }
                None => {
                    put(&mut out, at, characters.len())?;
                    at = characters.len();
                }
            },
        }
    }
    put(&mut out, at, characters.len())?;
    text(out.into_bytes())
}

fn quote(args: &Args<'_>) -> Result<Value, Fault> {
    let mut out = args.env.budget.buffer();
    for value in args.values.iter().filter(|value| !matches!(value, Value::Nil)) {
        if out.len() > 0 {
            out.push(b" ")?;
        }
        let bytes = printed(value, args.env.budget)?;
        args.env.budget.work(bytes.len().saturating_mul(10))?;
        out.push(printf::quote(&bytes, false).as_bytes())?;
    }
    text(out.into_bytes())
}

fn squote(args: &Args<'_>) -> Result<Value, Fault> {
    let mut out = args.env.budget.buffer();
    for value in args.values.iter().filter(|value| !matches!(value, Value::Nil)) {
        out.push(if out.len() > 0 { b" '" } else { b"'" })?;
        value.print(&mut out)?;
        out.push(b"'")?;
    }
    text(out.into_bytes())
}

fn cat(args: &Args<'_>) -> Result<Value, Fault> {
    let mut out = args.env.budget.buffer();
    for value in args.values.iter().filter(|value| !matches!(value, Value::Nil)) {
        if out.len() > 0 {
            out.push(b" ")?;
        }
        value.print(&mut out)?;
    }
    text(out.into_bytes())
}

fn indent(args: &Args<'_>, newline: bool) -> Result<Value, Fault> {
    let (width, bytes) = (args.count(0)?, args.bytes(1)?);
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
    args.env.budget.allows(bytes.len().saturating_add(width.saturating_mul(lines)))?;
    let pad = vec![b' '; width];
    let mut out = Vec::with_capacity(bytes.len() + width * lines + 1);
    if newline {
        out.push(b'\n');
    }
    out.extend_from_slice(&pad);
    for byte in bytes.iter() {
        out.push(*byte);
        if *byte == b'\n' {
            out.extend_from_slice(&pad);
        }
    }
    text(out)
}

fn replace(args: &Args<'_>) -> Result<Value, Fault> {
    let (old, new, bytes) = (args.bytes(0)?, args.bytes(1)?, args.bytes(2)?);
    let mut out = args.env.budget.buffer();
    if old.is_empty() {
        // Go: between all characters, and at both ends.
        out.push(new)?;
        for character in utf8(bytes)?.chars() {
            out.push(character.encode_utf8(&mut [0; 4]).as_bytes())?;
            out.push(new)?;
        }
        return text(out.into_bytes());
    }
    for (index, part) in split_on(bytes, old, usize::MAX).into_iter().enumerate() {
        if index > 0 {
            out.push(new)?;
        }
        out.push(part)?;
    }
    text(out.into_bytes())
}

fn to_strings(args: &Args<'_>) -> Result<Value, Fault> {
    let strings = strings_of(args.value(0)?, args.env.budget)?;
    Ok(Value::list(strings.into_iter().map(Value::Text).collect()))
}

fn join(args: &Args<'_>) -> Result<Value, Fault> {
    let separator = args.bytes(0)?;
    let mut out = args.env.budget.buffer();
    for (index, item) in strings_of(args.value(1)?, args.env.budget)?.iter().enumerate() {
        if index > 0 {
            out.push(separator)?;
        }
        out.push(item)?;
    }
    text(out.into_bytes())
}

/// strings.SplitN for a separator that is not empty; by characters for an empty one.
pub(super) fn split_on<'a>(bytes: &'a [u8], separator: &[u8], most: usize) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut rest = bytes;
    if separator.is_empty() {
        while !rest.is_empty() && parts.len() + 1 < most {
            let length = rest.utf8_chunks().next().and_then(|chunk| chunk.valid().chars().next());
            let (first, after) = rest.split_at(length.map_or(1, char::len_utf8));
            parts.push(first);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(rest);
        }
        return parts;
    }
    let finder = memchr::memmem::Finder::new(separator);
    while parts.len() + 1 < most {
        let Some(at) = finder.find(rest) else { break };
        parts.push(&rest[..at]);
        rest = &rest[at + separator.len()..];
    }
    parts.push(rest);
    parts
}

fn numbered(parts: Vec<&[u8]>) -> Result<Value, Fault> {
    let entries = parts.into_iter().enumerate();
    Ok(Value::map(entries.map(|(index, part)| (format!("_{index}").into_bytes().into(), Value::text(part)))))
}

fn splitn(args: &Args<'_>) -> Result<Value, Fault> {
    let most = args.int(1)?;
    if most == 0 {
        return numbered(Vec::new());
    }
    numbered(split_on(args.bytes(2)?, args.bytes(0)?, usize::try_from(most).unwrap_or(usize::MAX)))
}

pub(super) fn split_list(args: &Args<'_>) -> Result<Value, Fault> {
    let parts = split_on(args.bytes(1)?, args.bytes(0)?, usize::MAX);
    args.env.budget.work(parts.len().saturating_mul(64))?;
    Ok(Value::list(parts.into_iter().map(Value::text).collect()))
}

fn sort_alpha(args: &Args<'_>) -> Result<Value, Fault> {
    let mut strings = strings_of(args.value(0)?, args.env.budget)?;
    strings.sort();
    Ok(Value::list(strings.into_iter().map(Value::Text).collect()))
}

/// path.Clean.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if kept.last().is_some_and(|last| *last != "..") => {
                kept.pop();
            }
            ".." if rooted => {}
            other => kept.push(other),
        }
    }
    let joined = kept.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".into(),
        (false, false) => joined,
    }
}

fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let stripped = path.trim_end_matches('/');
    if stripped.is_empty() { "/" } else { stripped.rsplit('/').next().unwrap_or(stripped) }
}

fn dir(path: &str) -> String {
    clean(&path[..path.rfind('/').map_or(0, |at| at + 1)])
}

fn ext(path: &str) -> &str {
    let name = &path[path.rfind('/').map_or(0, |at| at + 1)..];
    name.rfind('.').map_or("", |at| &name[at..])
}
