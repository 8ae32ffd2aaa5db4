//! Regular expressions: Rust's engine has RE2's syntax and its linear time.

use std::{borrow::Cow, rc::Rc};

use regex::bytes::{Regex, RegexBuilder};

use super::{Args, Function, function, text};
use crate::template::{
    fault::Fault,
    value::{Value, utf8},
};

/// Memory a compiled expression may take; a counted repetition can make it large.
const LARGEST: usize = 1 << 20;

pub(super) const TABLE: &[Function] = &[
    function("regexMatch", 2, 2, matches),
    function("mustRegexMatch", 2, 2, matches),
    function("regexFind", 2, 2, find),
    function("mustRegexFind", 2, 2, find),
    function("regexFindAll", 3, 3, find_all),
    function("mustRegexFindAll", 3, 3, find_all),
    function("regexReplaceAll", 3, 3, |args| replace(args, 1, 2, false)),
    function("mustRegexReplaceAll", 3, 3, |args| replace(args, 1, 2, false)),
    function("regexReplaceAllLiteral", 3, 3, |args| replace(args, 1, 2, true)),
    function("mustRegexReplaceAllLiteral", 3, 3, |args| replace(args, 1, 2, true)),
    function("regexSplit", 3, 3, split),
    function("mustRegexSplit", 3, 3, split),
    function("regexQuoteMeta", 1, 1, |args| text(quote_meta(args.text(0)?))),
];

fn regex(args: &Args<'_>) -> Result<Rc<Regex>, Fault> {
    let pattern = args.text(0)?;
    let mut known = args.env.regexes.borrow_mut();
    if let Some(regex) = known.get(pattern) {
        return Ok(Rc::clone(regex));
    }
    args.env.budget.work(LARGEST / 4)?;
    let built = RegexBuilder::new(pattern).size_limit(LARGEST).dfa_size_limit(LARGEST).nest_limit(50).build();
    let Ok(regex) = built else {
        return Err(Fault::Why("the regular expression is not valid, or too large"));
    };
    let regex = Rc::new(regex);
    known.insert(pattern.to_owned(), Rc::clone(&regex));
    Ok(regex)
}

fn matches(args: &Args<'_>) -> Result<Value, Fault> {
    Ok(Value::Bool(regex(args)?.is_match(args.bytes(1)?)))
}

fn find(args: &Args<'_>) -> Result<Value, Fault> {
    text(regex(args)?.find(args.bytes(1)?).map_or(&b""[..], |found| found.as_bytes()))
}

fn limit(count: i64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn find_all(args: &Args<'_>) -> Result<Value, Fault> {
    let mut found = Vec::new();
    for part in regex(args)?.find_iter(args.bytes(1)?).take(limit(args.int(2)?)) {
        args.env.budget.work(64)?;
        found.push(Value::text(part.as_bytes()));
    }
    Ok(Value::list(found))
}

/// `$1` and `${name}` in the replacement; `$1x` names the group `1x`, in Go as in Rust.
pub(super) fn replace(args: &Args<'_>, input: usize, with: usize, literal: bool) -> Result<Value, Fault> {
    let regex = regex(args)?;
    let (input, with) = (args.bytes(input)?, args.bytes(with)?);
    let with: Cow<'_, [u8]> = Cow::Borrowed(with);
    let mut out = args.env.budget.buffer();
    let mut at = 0;
    for captures in regex.captures_iter(input) {
        let Some(whole) = captures.get(0) else { continue };
        out.push(&input[at..whole.start()])?;
        if literal {
            out.push(&with)?;
        } else {
            // Expanded, it is at most as long as every group at every dollar.
            let dollars = with.iter().filter(|byte| **byte == b'$').count();
            args.env.budget.allows(with.len() + dollars.saturating_mul(whole.len()))?;
            let mut expanded = Vec::new();
            captures.expand(&with, &mut expanded);
            out.push(&expanded)?;
        }
        at = whole.end();
    }
    out.push(&input[at..])?;
    text(out.into_bytes())
}

fn split(args: &Args<'_>) -> Result<Value, Fault> {
    let (regex, input, count) = (regex(args)?, args.bytes(1)?, args.int(2)?);
    if count == 0 {
        return Ok(Value::list(Vec::new()));
    }
    let most = limit(count);
    let mut parts = Vec::new();
    let (mut at, mut end) = (0, 0);
    if input.is_empty() {
        return Ok(Value::list(vec![Value::text("")]));
    }
    for found in regex.find_iter(input) {
        if parts.len() + 1 >= most {
            break;
        }
        end = found.start();
        // Go: an empty match at the very start splits nothing.
        if found.end() != 0 {
            args.env.budget.work(64)?;
            parts.push(Value::text(&input[at..end]));
        }
        at = found.end();
    }
    if end != input.len() || most == 1 {
        parts.push(Value::text(&input[at..]));
    }
    Ok(Value::list(parts))
}

fn quote_meta(input: &str) -> String {
    let mut out = String::with_capacity(input.len() + 8);
    for character in input.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// consul-template's order: expression, replacement, text.
pub(super) fn replace_consul(args: &Args<'_>) -> Result<Value, Fault> {
    utf8(args.bytes(1)?)?;
    replace(args, 2, 1, false)
}
