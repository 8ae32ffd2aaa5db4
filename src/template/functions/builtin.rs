//! Go's own functions (text/template).

use std::{cmp::Ordering, rc::Rc};

use super::{Args, Function, MANY, Special, function, integer, text};
use crate::template::{
    fault::Fault,
    printf,
    value::{Text, Value},
};

pub(super) const TABLE: &[Function] = &[
    Function {
        name: "and",
        least: 1,
        most: MANY,
        special: Special::And,
        run: |args| Ok(args.last()?.clone()),
    },
    Function { name: "or", least: 1, most: MANY, special: Special::Or, run: |args| Ok(args.last()?.clone()) },
    function("not", 1, 1, |args| Ok(Value::Bool(!args.value(0)?.truth()))),
    function("eq", 2, MANY, eq),
    function("ne", 2, 2, |args| Ok(Value::Bool(!equal(args.value(0)?, args.value(1)?)?))),
    function("lt", 2, 2, |args| compare(args, Ordering::is_lt)),
    function("le", 2, 2, |args| compare(args, Ordering::is_le)),
    function("gt", 2, 2, |args| compare(args, Ordering::is_gt)),
    function("ge", 2, 2, |args| compare(args, Ordering::is_ge)),
    function("len", 1, 1, len),
    function("index", 1, MANY, index),
    function("slice", 1, 4, slice),
    function("mustSlice", 1, 4, slice),
    function("print", 0, MANY, print),
    function("println", 0, MANY, println),
    function("printf", 1, MANY, printf::printf),
    function("html", 1, MANY, |args| escaped(args, html)),
    function("js", 1, MANY, |args| escaped(args, js)),
    function("urlquery", 1, MANY, |args| escaped(args, urlquery)),
];

fn eq(args: &Args<'_>) -> Result<Value, Fault> {
    let first = args.value(0)?;
    for other in &args.values[1..] {
        if equal(first, other)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

/// As Go's, but numbers compare by what they are: JSON has one kind of number.
fn equal(a: &Value, b: &Value) -> Result<bool, Fault> {
    match (a, b) {
        (Value::Nil, Value::Nil) => Ok(true),
        (Value::Nil, _) | (_, Value::Nil) => Ok(false),
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Int(a), Value::Int(b)) => Ok(a == b),
        (Value::Text(a), Value::Text(b)) => Ok(a == b),
        (Value::Time(a), Value::Time(b)) => Ok(a == b),
        _ => match (a.number(), b.number()) {
            #[allow(clippy::float_cmp, reason = "as Go's ==")]
            (Some(a), Some(b)) => Ok(a == b),
            _ => Err(Fault::Why("compares two numbers, two strings or two booleans")),
        },
    }
}

fn compare(args: &Args<'_>, wanted: fn(Ordering) -> bool) -> Result<Value, Fault> {
    let order = match (args.value(0)?, args.value(1)?) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Time(a), Value::Time(b)) => Some(a.cmp(b)),
        (a, b) => match (a.number(), b.number()) {
            (Some(a), Some(b)) => a.partial_cmp(&b),
            _ => None,
        },
    };
    match order {
        Some(order) => Ok(Value::Bool(wanted(order))),
        None => Err(Fault::Why("compares two numbers or two strings")),
    }
}

fn len(args: &Args<'_>) -> Result<Value, Fault> {
    match args.value(0)? {
        Value::Text(bytes) => Ok(integer(bytes.len())),
        Value::List(list) => Ok(integer(list.items().len())),
        Value::Map(map) => Ok(integer(map.len())),
        other => Err(Fault::want("a string, a list or a map", other)),
    }
}

/// Strict, unlike Go's: an absent key is an error and not an empty value.
fn index(args: &Args<'_>) -> Result<Value, Fault> {
    let mut value = args.value(0)?.clone();
    for (argument, key) in args.values.iter().enumerate().skip(1) {
        value = match (&value, key) {
            (Value::Map(map), Value::Text(key)) => map.get(key).ok_or(Fault::Key { argument })?,
            (Value::List(list), Value::Int(at)) => {
                let found = usize::try_from(*at).ok().and_then(|at| list.items().get(at));
                found.cloned().ok_or(Fault::Key { argument })?
            }
            (Value::Text(bytes), Value::Int(at)) => {
                let found = usize::try_from(*at).ok().and_then(|at| bytes.get(at));
                Value::Int(i64::from(*found.ok_or(Fault::Key { argument })?))
            }
            (Value::Map(_), other) => return Err(Fault::want("a string as the key of a map", other)),
            (Value::List(_) | Value::Text(_), other) => {
                return Err(Fault::want("an integer as index", other));
            }
            (Value::Nil, _) => return Err(Fault::Key { argument }),
            (other, _) => return Err(Fault::want("a map, a list or a string", other)),
        };
    }
    Ok(value)
}

fn slice(args: &Args<'_>) -> Result<Value, Fault> {
    const RANGE: Fault = Fault::Why("the indices are outside of the value");
    let length = match args.value(0)? {
        Value::List(list) => list.items().len(),
        Value::Text(bytes) => bytes.len(),
        other => return Err(Fault::want("a list or a string", other)),
    };
    let at = |index: usize, default: usize| match args.values.get(index) {
        None => Ok(default),
        Some(Value::Int(value)) => usize::try_from(*value).map_err(|_| RANGE),
        Some(other) => Err(Fault::want("an integer as index", other)),
    };
    let (from, to) = (at(1, 0)?, at(2, length)?);
    if from > to || to > length || at(3, to)? < to || at(3, to)? > length {
        return Err(RANGE);
    }
    match args.value(0)? {
        Value::List(list) => Ok(Value::list(list.items()[from..to].to_vec())),
        Value::Text(bytes) => text(&bytes[from..to]),
        other => Err(Fault::want("a list or a string", other)),
    }
}

const NULL: Fault = Fault::Why("a value is null; use default, or if");

fn print(args: &Args<'_>) -> Result<Value, Fault> {
    let mut out = args.env.budget.buffer();
    let mut spaced = false;
    for (index, value) in args.values.iter().enumerate() {
        // Go: a space between operands when neither is a string.
        let string = matches!(value, Value::Text(_));
        if index > 0 && spaced && !string {
            out.push(b" ")?;
        }
        spaced = !string;
        if matches!(value, Value::Nil) {
            return Err(NULL);
        }
        value.print(&mut out)?;
    }
    text(out.into_bytes())
}

fn println(args: &Args<'_>) -> Result<Value, Fault> {
    let mut out = args.env.budget.buffer();
    for (index, value) in args.values.iter().enumerate() {
        if index > 0 {
            out.push(b" ")?;
        }
        if matches!(value, Value::Nil) {
            return Err(NULL);
        }
        value.print(&mut out)?;
    }
    out.push(b"\n")?;
    text(out.into_bytes())
}

fn escaped(args: &Args<'_>, escape: fn(&[u8], &mut Vec<u8>)) -> Result<Value, Fault> {
    let input: Text = match args.values {
        [Value::Text(only)] => Rc::clone(only),
        _ => match print(args)? {
            Value::Text(text) => text,
            _ => return Err(Fault::Arguments),
        },
    };
    // No escape is longer than six bytes for one.
    args.env.budget.work(input.len().saturating_mul(6))?;
    let mut out = Vec::with_capacity(input.len());
    escape(&input, &mut out);
    text(out)
}

fn html(input: &[u8], out: &mut Vec<u8>) {
    for byte in input {
        match byte {
            0 => out.extend_from_slice("\u{fffd}".as_bytes()),
            b'"' => out.extend_from_slice(b"&#34;"),
            b'\'' => out.extend_from_slice(b"&#39;"),
            b'&' => out.extend_from_slice(b"&amp;"),
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            other => out.push(*other),
        }
    }
}

fn js(input: &[u8], out: &mut Vec<u8>) {
    for chunk in input.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => out.extend_from_slice(b"\\\\"),
                '\'' => out.extend_from_slice(b"\\'"),
                '"' => out.extend_from_slice(b"\\\""),
                '<' | '>' | '&' | '=' => {
                    out.extend_from_slice(format!("\\u{:04X}", character as u32).as_bytes())
                }
                c if c < ' ' => out.extend_from_slice(format!("\\u{:04X}", c as u32).as_bytes()),
                c if !printf::printable(c) => {
                    out.extend_from_slice(format!("\\u{:04X}", c as u32).as_bytes())
                }
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(b"\\uFFFD");
        }
    }
}

/// url.QueryEscape.
pub(super) fn urlquery(input: &[u8], out: &mut Vec<u8>) {
    for byte in input {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(*byte),
            b' ' => out.push(b'+'),
            other => out.extend_from_slice(format!("%{other:02X}").as_bytes()),
        }
    }
}
