//! Go's fmt verbs.
//!
//! Where Go prints `%!d(string=…)` into the file, a value under a wrong verb, this is an error.

use super::{
    budget::Buffer,
    fault::Fault,
    functions::Args,
    number,
    value::{Value, utf8},
};

/// Widths and precisions beyond this are refused; Go's own limit is a million.
const WIDEST: usize = 65_536;

#[derive(Default)]
struct Flags {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// The template function.
pub(super) fn printf(args: &Args<'_>) -> Result<Value, Fault> {
    let Some(Value::Text(format)) = args.values.first() else {
        return Err(Fault::Why("takes a format string first"));
    };
    let mut out = args.env.budget.buffer();
    let mut rest = utf8(format)?;
    let mut values = args.values[1..].iter();
    let mut next = || values.next().ok_or(Fault::Why("the format has more verbs than there are values"));
    while let Some(at) = rest.find('%') {
        out.push(&rest.as_bytes()[..at])?;
        rest = &rest[at + 1..];
        let mut flags = Flags::default();
        loop {
            match rest.as_bytes().first() {
                Some(b'-') => flags.minus = true,
                Some(b'+') => flags.plus = true,
                Some(b'#') => flags.sharp = true,
                Some(b' ') => flags.space = true,
                Some(b'0') => flags.zero = true,
                _ => break,
            }
            rest = &rest[1..];
        }
        flags.width = size(&mut rest, &mut next, &mut flags.minus)?;
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            flags.precision = Some(size(&mut rest, &mut next, &mut false)?.unwrap_or(0));
        }
        let Some(verb) = rest.chars().next() else {
            return Err(Fault::Why("the format ends within a verb"));
        };
        rest = &rest[verb.len_utf8()..];
        if verb == '%' {
            out.push(b"%")?;
        } else {
            verb_into(&mut out, verb, &flags, next()?, args)?;
        }
    }
    out.push(rest.as_bytes())?;
    if values.next().is_some() {
        return Err(Fault::Why("there are more values than the format has verbs"));
    }
    Ok(Value::text(out.into_bytes()))
}

fn size<'a>(
    rest: &mut &str,
    next: &mut impl FnMut() -> Result<&'a Value, Fault>,
    minus: &mut bool,
) -> Result<Option<usize>, Fault> {
    let size = if let Some(after) = rest.strip_prefix('*') {
        *rest = after;
        match next()? {
            Value::Int(value) => {
                *minus |= *value < 0;
                Some(usize::try_from(value.unsigned_abs()).unwrap_or(usize::MAX))
            }
            other => return Err(Fault::want("an integer for *", other)),
        }
    } else {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let size = (digits > 0).then(|| rest[..digits].parse().unwrap_or(usize::MAX));
        *rest = &rest[digits..];
        size
    };
    if size.is_some_and(|size| size > WIDEST) {
        return Err(Fault::Why("a width or precision is over 65536"));
    }
    Ok(size)
}

fn verb_into(
    out: &mut Buffer<'_>,
    verb: char,
    flags: &Flags,
    value: &Value,
    args: &Args<'_>,
) -> Result<(), Fault> {
    if matches!(value, Value::Nil) {
        return Err(Fault::Why("a value is null; use default, or if"));
    }
    let budget = args.env.budget;
    if verb == 'v' && flags.sharp {
        return Err(Fault::Why("%#v prints Go source, which nothing here is; use %v or %q"));
    }
    // %+v names the fields of structs, and adds no plus to a number.
    let plain = Flags { plus: flags.plus && verb != 'v', ..copy(flags) };
    let flags = &plain;
    match (verb, value) {
        ('v', Value::Int(value)) | ('d', Value::Int(value)) => integer(out, *value, 10, false, flags),
        ('b', Value::Int(value)) => integer(out, *value, 2, false, flags),
        ('o' | 'O', Value::Int(value)) => {
            let sharp = flags.sharp;
            let prefix = if verb == 'O' {
                "0o"
            } else if sharp {
                "0"
            } else {
                ""
            };
            prefixed(out, *value, &format!("{:o}", value.unsigned_abs()), prefix, flags)
        }
        ('x', Value::Int(value)) => integer(out, *value, 16, false, flags),
        ('X', Value::Int(value)) => integer(out, *value, 16, true, flags),
        ('c', Value::Int(value)) => pad(out, rune(*value).to_string().as_bytes(), flags),
        ('q', Value::Int(value)) => pad(out, quoted_rune(rune(*value)).as_bytes(), flags),
        ('U', Value::Int(value)) => pad(out, format!("U+{value:04X}").as_bytes(), flags),
        ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'v', Value::Float(value)) => float(out, verb, *value, flags),
        ('e' | 'E' | 'f' | 'F' | 'g' | 'G', Value::Number(_)) => {
            float(out, verb, value.number().unwrap_or(0.0), flags)
        }
        ('t' | 'v', Value::Bool(value)) => pad(out, value.to_string().as_bytes(), flags),
        ('s' | 'v', Value::Text(_) | Value::Number(_) | Value::List(_) | Value::Map(_) | Value::Time(_)) => {
            let mut inner = budget.buffer();
            value.print(&mut inner)?;
            pad(out, truncated(inner.as_slice(), flags.precision), flags)
        }
        ('q', Value::Text(bytes)) => {
            let bytes = truncated(bytes, flags.precision);
            budget.work(bytes.len().saturating_mul(10))?;
            if flags.sharp && backquotable(bytes) {
                return pad(out, &[b"`", bytes, b"`"].concat(), flags);
            }
            pad(out, quote(bytes, flags.plus).as_bytes(), flags)
        }
        ('q', Value::List(list)) => {
            out.push(b"[")?;
            for (index, item) in list.items().iter().enumerate() {
                if index > 0 {
                    out.push(b" ")?;
                }
                verb_into(out, verb, flags, item, args)?;
            }
            out.push(b"]")
        }
        ('x' | 'X', Value::Text(bytes)) => {
            let bytes = &bytes[..flags.precision.unwrap_or(bytes.len()).min(bytes.len())];
            budget.work(bytes.len().saturating_mul(5))?;
            let mut hex = String::with_capacity(bytes.len() * 2);
            let prefix = match (flags.sharp, verb) {
                (false, _) => "",
                (true, 'x') => "0x",
                (true, _) => "0X",
            };
            for (index, byte) in bytes.iter().enumerate() {
                if index > 0 && flags.space {
                    hex.push(' ');
                }
                if index == 0 || flags.space {
                    hex.push_str(prefix);
                }
                hex.push_str(&if verb == 'x' { format!("{byte:02x}") } else { format!("{byte:02X}") });
            }
            pad(out, hex.as_bytes(), flags)
        }
        ('d' | 'b' | 'o' | 'O' | 'c' | 'U', other) => Err(Fault::want("an integer for this verb", other)),
        ('e' | 'E' | 'f' | 'F' | 'g' | 'G', other) => Err(Fault::want("a float for this verb", other)),
        ('t', other) => Err(Fault::want("a boolean for %t", other)),
        ('s' | 'q' | 'x' | 'X', other) => Err(Fault::want("a string for this verb", other)),
        _ => {
            Err(Fault::Why("the format has a verb that is not known: %v %s %q %d %t %x %f %e %g %c %b %o %U"))
        }
    }
}

fn integer(out: &mut Buffer<'_>, value: i64, radix: u32, upper: bool, flags: &Flags) -> Result<(), Fault> {
    let size = value.unsigned_abs();
    let (digits, prefix) = match (radix, upper) {
        (2, _) => (format!("{size:b}"), "0b"),
        (16, false) => (format!("{size:x}"), "0x"),
        (16, true) => (format!("{size:X}"), "0X"),
        _ => (size.to_string(), ""),
    };
    prefixed(out, value, &digits, if flags.sharp { prefix } else { "" }, flags)
}

fn prefixed(
    out: &mut Buffer<'_>,
    value: i64,
    digits: &str,
    prefix: &str,
    flags: &Flags,
) -> Result<(), Fault> {
    let sign = match (value < 0, flags.plus, flags.space) {
        (true, ..) => "-",
        (_, true, _) => "+",
        (.., true) => " ",
        _ => "",
    };
    let least = match (flags.precision, flags.width) {
        (Some(precision), _) => precision,
        (None, Some(width)) if flags.zero && !flags.minus => width.saturating_sub(sign.len()),
        _ => 0,
    };
    if flags.precision == Some(0) && value == 0 {
        return pad(out, b"", &Flags { zero: false, ..copy(flags) });
    }
    let zeros = "0".repeat(least.saturating_sub(digits.len()));
    let text = format!("{sign}{prefix}{zeros}{digits}");
    pad(out, text.as_bytes(), &Flags { zero: false, ..copy(flags) })
}

fn copy(flags: &Flags) -> Flags {
    Flags { ..*flags }
}

fn float(out: &mut Buffer<'_>, verb: char, value: f64, flags: &Flags) -> Result<(), Fault> {
    let text = match verb {
        'e' => number::exponent_form(value, 'e', Some(flags.precision.unwrap_or(6))),
        'E' => number::exponent_form(value, 'E', Some(flags.precision.unwrap_or(6))),
        'f' | 'F' if value.is_finite() => format!("{value:.*}", flags.precision.unwrap_or(6)),
        'G' => number::format_general(value, 'E', flags.precision, flags.sharp),
        _ => number::format_general(value, 'e', flags.precision, flags.sharp),
    };
    let (sign, body) = match text.strip_prefix(['-', '+']) {
        Some(body) if text.starts_with('-') => ("-", body),
        Some(body) => (if flags.plus { "+" } else { "" }, body),
        None if flags.plus => ("+", text.as_str()),
        None if flags.space => (" ", text.as_str()),
        None => ("", text.as_str()),
    };
    let width = flags.width.unwrap_or(0);
    if flags.zero && !flags.minus && value.is_finite() {
        let zeros = "0".repeat(width.saturating_sub(sign.len() + body.len()));
        return out.push(format!("{sign}{zeros}{body}").as_bytes());
    }
    pad(out, format!("{sign}{body}").as_bytes(), &Flags { zero: false, ..copy(flags) })
}

/// Pads to the width, which counts characters.
fn pad(out: &mut Buffer<'_>, text: &[u8], flags: &Flags) -> Result<(), Fault> {
    let length = text.utf8_chunks().map(|chunk| chunk.valid().chars().count() + chunk.invalid().len()).sum();
    let missing = flags.width.unwrap_or(0).saturating_sub(length);
    let filler = if flags.zero && !flags.minus { "0" } else { " " }.repeat(missing);
    if flags.minus {
        out.push(text)?;
        out.push(filler.as_bytes())
    } else {
        out.push(filler.as_bytes())?;
        out.push(text)
    }
}

fn truncated(text: &[u8], precision: Option<usize>) -> &[u8] {
    let Some(precision) = precision else { return text };
    let mut left = precision;
    let mut end = 0;
    for chunk in text.utf8_chunks() {
        let lengths = chunk.valid().chars().map(char::len_utf8).chain(chunk.invalid().iter().map(|_| 1));
        for length in lengths {
            if left == 0 {
                return &text[..end];
            }
            left -= 1;
            end += length;
        }
    }
    text
}

fn rune(value: i64) -> char {
    u32::try_from(value).ok().and_then(char::from_u32).unwrap_or('\u{fffd}')
}

/// strconv.IsPrint, near enough: Rust's own judgement of what Debug may show.
pub(super) fn printable(character: char) -> bool {
    match character {
        ' '..='~' => true,
        '\u{0}'..='\u{a0}' | '\u{ad}' | '\u{fffe}' | '\u{ffff}' => false,
        other if other.is_whitespace() => false,
        // A combining mark is printable to Go, and escaped by Rust only when it comes first.
        other => {
            let shown = format!("{:?}", format!("a{other}"));
            !shown.contains("\\u")
        }
    }
}

/// strconv.Quote, what `%q` and sprig's `quote` make.
pub(super) fn quote(bytes: &[u8], ascii: bool) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            escape(&mut out, character, '"', ascii);
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

fn quoted_rune(character: char) -> String {
    let mut out = String::from("'");
    escape(&mut out, character, '\'', false);
    out.push('\'');
    out
}

fn escape(out: &mut String, character: char, quote: char, ascii: bool) {
    match character {
        '\\' => out.push_str("\\\\"),
        c if c == quote => {
            out.push('\\');
            out.push(c);
        }
        '\u{7}' => out.push_str("\\a"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{b}' => out.push_str("\\v"),
        c if printable(c) && (!ascii || c.is_ascii()) => out.push(c),
        c if c < ' ' || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", c as u32)),
        c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
        c => out.push_str(&format!("\\U{:08x}", c as u32)),
    }
}

fn backquotable(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| {
        !text.chars().any(|c| c == '`' || c == '\u{feff}' || c != '\t' && (c < ' ' || c == '\u{7f}'))
    })
}
