//! consul-template's own: secrets, the scratch pad, and what it named as sprig did but means otherwise.

use std::rc::Rc;

use super::{Args, Function, MANY, Special, collections::insert, function, regexes, strings, text};
use crate::template::{
    SecretCall,
    exec::key,
    fault::Fault,
    value::{Map, Value},
};

pub(super) const TABLE: &[Function] = &[
    Function { name: "secret", least: 1, most: MANY, special: Special::Secret, run: |args| secret(args) },
    Function { name: "pkiCert", least: 1, most: MANY, special: Special::Secret, run: |args| pki_cert(args) },
    Function {
        name: "scratch",
        least: 0,
        most: 0,
        special: Special::Scratch,
        run: |_| Err(Fault::Why("is used with a method: scratch.Set, scratch.Get and their kin")),
    },
    function("explodeMap", 1, 1, explode_map),
];

/// In templates that read secrets themselves.
pub(super) const OVERRIDES: &[Function] = &[
    function("split", 2, 2, strings::split_list),
    function("trim", 2, 2, trim),
    function("regexReplaceAll", 3, 3, regexes::replace_consul),
];

fn trim(args: &Args<'_>) -> Result<Value, Fault> {
    let set: Vec<char> = args.text(0)?.chars().collect();
    text(args.text(1)?.trim_matches(|c| set.contains(&c)))
}

/// The call that these arguments make: a path, and `key=value` pairs.
pub(in crate::template) fn secret_call(values: &[Value]) -> Result<SecretCall, Fault> {
    let mut texts = values.iter().map(constant_text);
    let Some(Some(path)) = texts.next() else { return Err(Fault::Why("takes a path first, a string")) };
    let mut call = SecretCall { path, args: Default::default() };
    for pair in texts {
        let pair = pair.as_ref().and_then(|pair| pair.split_once('='));
        let Some((name, value)) = pair else {
            return Err(Fault::Why("takes \"key=value\" strings after the path"));
        };
        call.args.insert(name.trim().to_owned(), value.to_owned());
    }
    Ok(call)
}

fn answer(args: &Args<'_>) -> Result<Rc<Map>, Fault> {
    let call = secret_call(args.values)?;
    match (args.env.secrets)(&call) {
        Some(Value::Map(answer)) => Ok(answer),
        Some(other) => Err(Fault::want("a response of the store", &other)),
        None => Err(Fault::NotRead(call.path)),
    }
}

/// The fields of consul-template's secret that the response has.
const FIELDS: [(&str, &str); 8] = [
    ("Data", "data"),
    ("LeaseID", "lease_id"),
    ("LeaseDuration", "lease_duration"),
    ("Renewable", "renewable"),
    ("RequestID", "request_id"),
    ("Warnings", "warnings"),
    ("Auth", "auth"),
    ("WrapInfo", "wrap_info"),
];

fn secret(args: &Args<'_>) -> Result<Value, Fault> {
    let answer = answer(args)?;
    let fields = FIELDS.iter().filter_map(|(field, name)| {
        let value = answer.get(name.as_bytes()).filter(|value| !matches!(value, Value::Nil))?;
        Some((key(field), value))
    });
    Ok(Value::map(fields))
}

/// `.Cert`, `.Key` and `.CA` of an issued certificate, and the same under `.Data`.
fn pki_cert(args: &Args<'_>) -> Result<Value, Fault> {
    let answer = answer(args)?;
    let data = inner(answer.get(b"data"))?.ok_or(Fault::Why("the answer holds no certificate"))?;
    let field = |name: &str| data.get(name.as_bytes()).filter(|value| matches!(value, Value::Text(_)));
    let fields = [("Cert", "certificate"), ("Key", "private_key"), ("CA", "issuing_ca")];
    let found: Vec<_> = fields.iter().filter_map(|(to, from)| Some((key(to), ended(field(from)?)))).collect();
    if found.is_empty() {
        return Err(Fault::Why("the answer holds no certificate"));
    }
    let data = Value::map(found.clone());
    Ok(Value::map(found.into_iter().chain([(key("Data"), data)])))
}

/// PEM ends with its line, as consul-template writes it again: templates put one after another.
fn ended(value: Value) -> Value {
    match value {
        Value::Text(text) if text.starts_with(b"-----BEGIN ") && !text.ends_with(b"\n") => {
            Value::text([text.as_ref(), b"\n"].concat())
        }
        other => other,
    }
}

/// `explodeMap`: keys with slashes become nested maps.
fn explode_map(args: &Args<'_>) -> Result<Value, Fault> {
    let root = Value::map([]);
    for (path, value) in args.map(0)?.entries() {
        let Value::Map(mut map) = root.clone() else { break };
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
        let Some((last, folders)) = parts.split_last() else { continue };
        for folder in folders {
            args.env.budget.work(64)?;
            let next = match map.get(folder) {
                Some(Value::Map(next)) => next,
                Some(_) => return Err(Fault::Why("a key is both a value and a folder")),
                None => {
                    let Value::Map(next) = Value::map([]) else { break };
                    map.insert(Rc::from(*folder), Value::Map(Rc::clone(&next)));
                    next
                }
            };
            map = next;
        }
        if map.get(last).is_some() {
            return Err(Fault::Why("a key is both a value and a folder"));
        }
        map.insert(Rc::from(*last), value);
    }
    Ok(root)
}

/// The scratch pad's methods. All but Get and its kin answer "", as in consul-template.
pub(in crate::template) fn scratch(method: &str, args: &Args<'_>) -> Result<Value, Fault> {
    let pad = &args.env.scratch;
    let wanted = match method {
        "Key" | "Get" | "MapValues" => 1,
        "Set" | "SetX" => 2,
        "MapSet" | "MapSetX" => 3,
        _ => return Err(Fault::Why("scratch has Key, Get, Set, SetX, MapSet, MapSetX and MapValues")),
    };
    if args.len() != wanted {
        return Err(Fault::Arguments);
    }
    let name = args.bytes(0)?;
    match method {
        "Key" => return Ok(Value::Bool(pad.get(name).is_some())),
        "Get" => return pad.get(name).ok_or(Fault::Key { argument: 0 }),
        "MapValues" => {
            let map = inner(pad.get(name))?.ok_or(Fault::Key { argument: 0 })?;
            return Ok(Value::list(map.entries().into_iter().map(|(_, value)| value).collect()));
        }
        "Set" | "SetX" => {
            if method == "Set" || pad.get(name).is_none() {
                insert(args, pad, name, args.value(1)?)?;
            }
        }
        _ => {
            let map = match inner(pad.get(name))? {
                Some(map) => map,
                None => {
                    let Value::Map(map) = Value::map([]) else { return text("") };
                    insert(args, pad, name, &Value::Map(Rc::clone(&map)))?;
                    map
                }
            };
            if method == "MapSet" || map.get(args.bytes(1)?).is_none() {
                insert(args, &map, args.bytes(1)?, args.value(2)?)?;
            }
        }
    }
    text("")
}

fn inner(value: Option<Value>) -> Result<Option<Rc<Map>>, Fault> {
    match value {
        None => Ok(None),
        Some(Value::Map(map)) => Ok(Some(map)),
        Some(other) => Err(Fault::want("a map", &other)),
    }
}

/// The text of a constant, as a path or argument of a secret call.
fn constant_text(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) => String::from_utf8(text.to_vec()).ok(),
        _ => None,
    }
}
