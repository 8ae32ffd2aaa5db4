//! JSON, YAML, TOML and URLs.

use std::rc::Rc;

use super::{Args, Function, builtin, function, text};
use crate::{
    format,
    template::{
        exec::key,
        fault::Fault,
        value::{Value, utf8},
    },
};

pub(super) const TABLE: &[Function] = &[
    function("toJson", 1, 1, |args| json(args, format::json::to_text)),
    function("mustToJson", 1, 1, |args| json(args, format::json::to_text)),
    function("toJSON", 1, 1, |args| json(args, format::json::to_text)),
    function("toRawJson", 1, 1, |args| json(args, format::json::to_raw_text)),
    function("mustToRawJson", 1, 1, |args| json(args, format::json::to_raw_text)),
    function("toUnescapedJSON", 1, 1, |args| json(args, format::json::to_raw_text)),
    function("toPrettyJson", 1, 1, |args| json(args, format::json::to_pretty_text)),
    function("mustToPrettyJson", 1, 1, |args| json(args, format::json::to_pretty_text)),
    function("toJSONPretty", 1, 1, |args| json(args, format::json::to_pretty_text)),
    function("fromJson", 1, 1, |args| from_json(args, false)),
    function("mustFromJson", 1, 1, |args| from_json(args, false)),
    function("parseJSON", 1, 1, |args| from_json(args, true)),
    function("toYaml", 1, 1, to_yaml),
    function("toYAML", 1, 1, to_yaml),
    function("fromYaml", 1, 1, from_yaml),
    function("parseYAML", 1, 1, from_yaml),
    function("toTOML", 1, 1, to_toml),
    function("urlParse", 1, 1, url_parse),
    function("urlJoin", 1, 1, url_join),
];

fn json(args: &Args<'_>, write: fn(&serde_json::Value) -> String) -> Result<Value, Fault> {
    let budget = args.env.budget;
    let json = args.value(0)?.to_json(budget)?;
    // Escapes make six bytes of one.
    text(write(&json))
}

fn from_json(args: &Args<'_>, empty_is_map: bool) -> Result<Value, Fault> {
    let input = args.bytes(0)?;
    if input.is_empty() && empty_is_map {
        return Ok(Value::map([]));
    }
    args.env.budget.work(input.len().saturating_mul(32))?;
    // serde_json's own limit is 128 levels.
    let json: serde_json::Value =
        serde_json::from_slice(input).map_err(|_| Fault::Why("the string is not JSON"))?;
    Ok(Value::from_json(&json))
}

fn to_yaml(args: &Args<'_>) -> Result<Value, Fault> {
    let json = args.value(0)?.to_json(args.env.budget)?;
    let yaml = format::yaml::to_text(&json);
    args.env.budget.work(yaml.len())?;
    // Both peers drop the last line end.
    text(yaml.strip_suffix('\n').unwrap_or(&yaml))
}

fn from_yaml(args: &Args<'_>) -> Result<Value, Fault> {
    let input = utf8(args.bytes(0)?)?;
    args.env.budget.work(input.len().saturating_mul(32))?;
    let json = format::yaml::from_text(input).map_err(|_| Fault::Why("the string is not YAML"))?;
    Ok(if json.is_null() { Value::map([]) } else { Value::from_json(&json) })
}

fn to_toml(args: &Args<'_>) -> Result<Value, Fault> {
    let json = args.value(0)?.to_json(args.env.budget)?;
    let toml = format::toml::to_text(&json).ok_or(Fault::Why("takes a map without nulls"))?;
    text(toml.trim_end_matches('\n'))
}

/// url.Parse, as far as sprig shows it.
fn url_parse(args: &Args<'_>) -> Result<Value, Fault> {
    const WRONG: Fault = Fault::Why("the string is not a URL");
    let input = args.text(0)?;
    if input.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err(WRONG);
    }
    let (rest, fragment) = input.split_once('#').unwrap_or((input, ""));
    let scheme_end = rest.find(':').filter(|at| {
        *at > 0 && rest[..*at].bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    });
    let (scheme, rest) = match scheme_end {
        Some(at) if rest.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            (rest[..at].to_ascii_lowercase(), &rest[at + 1..])
        }
        _ => (String::new(), rest),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (mut userinfo, mut host, mut path, mut opaque) = ("", "", rest, "");
    let authority = rest.starts_with("//") && (!scheme.is_empty() || !rest.starts_with("///"));
    let first = path.split('/').next().unwrap_or_default();
    if scheme.is_empty() && !authority && first.contains(':') {
        return Err(WRONG);
    }
    if let Some(after) = rest.strip_prefix("//").filter(|_| authority) {
        let end = after.find('/').unwrap_or(after.len());
        let authority = &after[..end];
        path = &after[end..];
        match authority.rsplit_once('@') {
            Some((user, at)) => (userinfo, host) = (user, at),
            None => host = authority,
        }
    } else if !scheme.is_empty() && !rest.starts_with('/') {
        (opaque, path) = (rest, "");
    }
    let port =
        host.rsplit_once(']').map_or(host, |(_, after)| after).rsplit_once(':').map_or("", |(_, port)| port);
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(WRONG);
    }
    let hostname = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((inner, _)) => inner,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let path = percent_decoded(path).ok_or(WRONG)?;
    let fragment = percent_decoded(fragment).ok_or(WRONG)?;
    Ok(Value::map([
        (key("scheme"), Value::text(scheme)),
        (key("userinfo"), Value::text(userinfo)),
        (key("host"), Value::text(host)),
        (key("hostname"), Value::text(hostname)),
        (key("path"), Value::text(path)),
        (key("query"), Value::text(query)),
        (key("opaque"), Value::text(opaque)),
        (key("fragment"), Value::text(fragment)),
    ]))
}

fn percent_decoded(input: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(input.len());
    let mut rest = input.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            out.push(*first);
        }
    }
    Some(out)
}

/// url.URL.String from sprig's map.
fn url_join(args: &Args<'_>) -> Result<Value, Fault> {
    let map = args.map(0)?;
    let part = |name: &str| match map.get(name.as_bytes()) {
        None => Ok(Rc::from(&b""[..])),
        Some(Value::Text(text)) => Ok(text),
        Some(other) => Err(Fault::want("strings in its map", &other)),
    };
    let (scheme, userinfo, host) = (part("scheme")?, part("userinfo")?, part("host")?);
    let (path, query) = (part("path")?, part("query")?);
    let (opaque, fragment) = (part("opaque")?, part("fragment")?);
    let mut out = Vec::new();
    if !scheme.is_empty() {
        out.extend_from_slice(&scheme);
        out.push(b':');
    }
    if opaque.is_empty() {
        let placed = !(host.is_empty() && userinfo.is_empty());
        if placed || !scheme.is_empty() && !path.is_empty() {
            out.extend_from_slice(b"//");
        }
        if placed {
            if !userinfo.is_empty() {
                out.extend_from_slice(&userinfo);
                out.push(b'@');
            }
            out.extend_from_slice(&host);
            if !host.is_empty() && !path.is_empty() && path[0] != b'/' {
                out.push(b'/');
            }
        }
        percent_encoded(&path, b"$&+,/:;=@", &mut out);
    } else {
        out.extend_from_slice(&opaque);
    }
    if !query.is_empty() {
        out.push(b'?');
        out.extend_from_slice(&query);
    }
    if !fragment.is_empty() {
        out.push(b'#');
        percent_encoded(&fragment, b"$&+,/:;=?@!()*", &mut out);
    }
    text(out)
}

fn percent_encoded(input: &[u8], safe: &[u8], out: &mut Vec<u8>) {
    for byte in input {
        match byte {
            b' ' => out.extend_from_slice(b"%20"),
            byte if safe.contains(byte) => out.push(*byte),
            byte => builtin::urlquery(&[*byte], out),
        }
    }
}
