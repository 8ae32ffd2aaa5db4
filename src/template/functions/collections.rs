//! sprig's list, map and default functions.

use std::rc::Rc;

use super::{Args, Function, MANY, function, text};
use crate::template::{
    fault::Fault,
    value::{Map, Text, Value},
};

pub(super) const TABLE: &[Function] = &[
    function("list", 0, MANY, |args| Ok(Value::list(args.values.to_vec()))),
    function("tuple", 0, MANY, |args| Ok(Value::list(args.values.to_vec()))),
    function("append", 2, 2, append),
    function("push", 2, 2, append),
    function("mustAppend", 2, 2, append),
    function("mustPush", 2, 2, append),
    function("prepend", 2, 2, prepend),
    function("mustPrepend", 2, 2, prepend),
    function("concat", 0, MANY, concat),
    function("first", 1, 1, |args| Ok(args.list(0)?.items().first().cloned().unwrap_or(Value::Nil))),
    function("mustFirst", 1, 1, |args| Ok(args.list(0)?.items().first().cloned().unwrap_or(Value::Nil))),
    function("last", 1, 1, |args| Ok(args.list(0)?.items().last().cloned().unwrap_or(Value::Nil))),
    function("mustLast", 1, 1, |args| Ok(args.list(0)?.items().last().cloned().unwrap_or(Value::Nil))),
    function("rest", 1, 1, |args| without_end(args, true)),
    function("mustRest", 1, 1, |args| without_end(args, true)),
    function("initial", 1, 1, |args| without_end(args, false)),
    function("mustInitial", 1, 1, |args| without_end(args, false)),
    function("reverse", 1, 1, reverse),
    function("mustReverse", 1, 1, reverse),
    function("uniq", 1, 1, uniq),
    function("mustUniq", 1, 1, uniq),
    function("compact", 1, 1, compact),
    function("mustCompact", 1, 1, compact),
    function("without", 1, MANY, without),
    function("mustWithout", 1, MANY, without),
    function("has", 2, 2, |args| has(args, args.value(0)?, args.value(1)?)),
    function("mustHas", 2, 2, |args| has(args, args.value(0)?, args.value(1)?)),
    function("in", 2, 2, |args| has(args, args.value(1)?, args.value(0)?)),
    function("contains", 2, 2, contains),
    function("containsAll", 2, 2, |args| overlap(args, true, true)),
    function("containsAny", 2, 2, |args| overlap(args, false, true)),
    function("containsNone", 2, 2, |args| overlap(args, false, false)),
    function("containsNotAll", 2, 2, |args| overlap(args, true, false)),
    function("chunk", 2, 2, chunk),
    function("mustChunk", 2, 2, chunk),
    function("dict", 0, MANY, dict),
    function("get", 2, 2, get),
    function("set", 3, 3, set),
    function("unset", 2, 2, unset),
    function("hasKey", 2, 2, |args| Ok(Value::Bool(args.map(0)?.get(args.bytes(1)?).is_some()))),
    function("keys", 1, MANY, keys),
    function("values", 1, 1, |args| {
        Ok(Value::list(args.map(0)?.entries().into_iter().map(|(_, v)| v).collect()))
    }),
    function("pick", 1, MANY, pick),
    function("omit", 1, MANY, omit),
    function("pluck", 1, MANY, pluck),
    function("merge", 1, MANY, |args| merge(args, false)),
    function("mustMerge", 1, MANY, |args| merge(args, false)),
    function("mergeOverwrite", 1, MANY, |args| merge(args, true)),
    function("mustMergeOverwrite", 1, MANY, |args| merge(args, true)),
    function("dig", 3, MANY, dig),
    function("deepCopy", 1, 1, |args| args.value(0)?.deep_copy(args.env.budget)),
    function("mustDeepCopy", 1, 1, |args| args.value(0)?.deep_copy(args.env.budget)),
    function("deepEqual", 2, 2, |args| {
        Ok(Value::Bool(args.value(0)?.deep_equal(args.value(1)?, args.env.budget)?))
    }),
    function("default", 1, 2, default),
    function("empty", 1, 1, |args| Ok(Value::Bool(empty(args.value(0)?)))),
    function("coalesce", 0, MANY, |args| {
        Ok(args.values.iter().find(|v| !empty(v)).cloned().unwrap_or(Value::Nil))
    }),
    function("all", 0, MANY, |args| Ok(Value::Bool(!args.values.iter().any(empty)))),
    function("any", 0, MANY, |args| Ok(Value::Bool(!args.values.iter().all(empty)))),
    function("ternary", 3, 3, ternary),
    function("kindOf", 1, 1, |args| text(kind(args.value(0)?))),
    function("kindIs", 2, 2, |args| Ok(Value::Bool(args.text(0)? == kind(args.value(1)?)))),
    function("fail", 1, 1, |_| Err(Fault::Fail { argument: 0 })),
    function("hello", 0, 0, |_| text("Hello!")),
];

fn append(args: &Args<'_>) -> Result<Value, Fault> {
    let mut items = args.list(0)?.items().to_vec();
    items.push(args.value(1)?.clone());
    Ok(Value::list(items))
}

fn prepend(args: &Args<'_>) -> Result<Value, Fault> {
    let mut items = vec![args.value(1)?.clone()];
    items.extend_from_slice(args.list(0)?.items());
    Ok(Value::list(items))
}

fn concat(args: &Args<'_>) -> Result<Value, Fault> {
    let mut items = Vec::new();
    for index in 0..args.len() {
        items.extend_from_slice(args.list(index)?.items());
    }
    Ok(Value::list(items))
}

fn without_end(args: &Args<'_>, first: bool) -> Result<Value, Fault> {
    let items = args.list(0)?.items();
    let kept = match items.len().checked_sub(1) {
        None => &[],
        Some(_) if first => &items[1..],
        Some(last) => &items[..last],
    };
    Ok(Value::list(kept.to_vec()))
}

fn reverse(args: &Args<'_>) -> Result<Value, Fault> {
    Ok(Value::list(args.list(0)?.items().iter().rev().cloned().collect()))
}

fn among(args: &Args<'_>, needle: &Value, items: &[Value]) -> Result<bool, Fault> {
    for item in items {
        if needle.deep_equal(item, args.env.budget)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn uniq(args: &Args<'_>) -> Result<Value, Fault> {
    let mut kept: Vec<Value> = Vec::new();
    for item in args.list(0)?.items() {
        if !among(args, item, &kept)? {
            kept.push(item.clone());
        }
    }
    Ok(Value::list(kept))
}

fn compact(args: &Args<'_>) -> Result<Value, Fault> {
    Ok(Value::list(args.list(0)?.items().iter().filter(|item| !empty(item)).cloned().collect()))
}

fn without(args: &Args<'_>) -> Result<Value, Fault> {
    let mut kept = Vec::new();
    for item in args.list(0)?.items() {
        if !among(args, item, &args.values[1..])? {
            kept.push(item.clone());
        }
    }
    Ok(Value::list(kept))
}

fn has(args: &Args<'_>, needle: &Value, haystack: &Value) -> Result<Value, Fault> {
    match (haystack, needle) {
        (Value::Nil, _) => Ok(Value::Bool(false)),
        (Value::List(list), _) => Ok(Value::Bool(among(args, needle, list.items())?)),
        (Value::Map(map), Value::Text(key)) => Ok(Value::Bool(map.get(key).is_some())),
        (Value::Text(text), Value::Text(part)) => Ok(Value::Bool(memchr::memmem::find(text, part).is_some())),
        (other, _) => Err(Fault::want("a list", other)),
    }
}

/// sprig's `contains part text`, and consul-template's `contains item list`.
fn contains(args: &Args<'_>) -> Result<Value, Fault> {
    has(args, args.value(0)?, args.value(1)?)
}

/// Whether all (or any) of the needles are in the list, negated unless `wanted`.
fn overlap(args: &Args<'_>, all: bool, wanted: bool) -> Result<Value, Fault> {
    let haystack = args.list(1)?.items();
    let mut found = all;
    for needle in args.list(0)?.items() {
        let inside = among(args, needle, haystack)?;
        found = if all { found && inside } else { found || inside };
    }
    Ok(Value::Bool(found == wanted))
}

fn chunk(args: &Args<'_>) -> Result<Value, Fault> {
    let size = args.count(0)?;
    if size == 0 {
        return Err(Fault::Why("takes a size above zero"));
    }
    let items = args.list(1)?.items();
    Ok(Value::list(items.chunks(size).map(|chunk| Value::list(chunk.to_vec())).collect()))
}

fn dict(args: &Args<'_>) -> Result<Value, Fault> {
    let mut entries = Vec::new();
    for index in (0..args.len()).step_by(2) {
        let value = args.values.get(index + 1).cloned().unwrap_or_else(|| Value::text(""));
        entries.push((args.printed(index)?, value));
    }
    Ok(Value::map(entries))
}

/// Strict, unlike sprig's, which answers "" for an absent key.
fn get(args: &Args<'_>) -> Result<Value, Fault> {
    args.map(0)?.get(args.bytes(1)?).ok_or(Fault::Key { argument: 1 })
}

pub(super) fn insert(args: &Args<'_>, map: &Rc<Map>, key: &Text, value: &Value) -> Result<(), Fault> {
    if value.holds(map, args.env.budget)? {
        return Err(Fault::Why("the map would hold itself"));
    }
    args.env.budget.work(64)?;
    map.insert(Rc::clone(key), value.clone());
    Ok(())
}

fn set(args: &Args<'_>) -> Result<Value, Fault> {
    let map = args.map(0)?;
    insert(args, map, args.bytes(1)?, args.value(2)?)?;
    Ok(Value::Map(Rc::clone(map)))
}

fn unset(args: &Args<'_>) -> Result<Value, Fault> {
    let map = args.map(0)?;
    map.remove(args.bytes(1)?);
    Ok(Value::Map(Rc::clone(map)))
}

/// Sorted, where sprig's come in any order: the same secrets make the same file.
fn keys(args: &Args<'_>) -> Result<Value, Fault> {
    let mut keys = Vec::new();
    for index in 0..args.len() {
        keys.extend(args.map(index)?.entries().into_iter().map(|(key, _)| Value::Text(key)));
    }
    Ok(Value::list(keys))
}

fn pick(args: &Args<'_>) -> Result<Value, Fault> {
    let map = args.map(0)?;
    let mut entries = Vec::new();
    for index in 1..args.len() {
        let key = args.bytes(index)?;
        entries.extend(map.get(key).map(|value| (Rc::clone(key), value)));
    }
    Ok(Value::map(entries))
}

fn omit(args: &Args<'_>) -> Result<Value, Fault> {
    let left = Value::map(args.map(0)?.entries());
    if let Value::Map(left) = &left {
        for index in 1..args.len() {
            left.remove(args.bytes(index)?);
        }
    }
    Ok(left)
}

fn pluck(args: &Args<'_>) -> Result<Value, Fault> {
    let key = args.bytes(0)?;
    let mut found = Vec::new();
    for index in 1..args.len() {
        found.extend(args.map(index)?.get(key));
    }
    Ok(Value::list(found))
}

fn merge(args: &Args<'_>, overwrite: bool) -> Result<Value, Fault> {
    let into = args.map(0)?;
    for index in 1..args.len() {
        merge_into(args, into, args.map(index)?, overwrite, 0)?;
    }
    Ok(Value::Map(Rc::clone(into)))
}

/// mergo's rule: an empty value counts as absent on either side.
fn merge_into(
    args: &Args<'_>,
    into: &Rc<Map>,
    from: &Rc<Map>,
    overwrite: bool,
    depth: usize,
) -> Result<(), Fault> {
    if depth > crate::template::value::MAX_DEPTH {
        return Err(Fault::Why("the value is nested deeper than 100"));
    }
    for (key, value) in from.entries() {
        let old = into.get(&key);
        if let (Some(Value::Map(old)), Value::Map(new)) = (&old, &value) {
            merge_into(args, old, new, overwrite, depth + 1)?;
            continue;
        }
        let replaces = match &old {
            None => true,
            Some(old) => empty(old) || overwrite && !empty(&value),
        };
        if replaces {
            insert(args, into, &key, &value)?;
        }
    }
    Ok(())
}

fn dig(args: &Args<'_>) -> Result<Value, Fault> {
    let count = args.len();
    let mut value = args.value(count - 1)?.clone();
    for index in 0..count - 2 {
        let next = match &value {
            Value::Map(map) => map.get(args.bytes(index)?),
            other => return Err(Fault::want("maps on the way", other)),
        };
        match next {
            Some(next) => value = next,
            None => return Ok(args.value(count - 2)?.clone()),
        }
    }
    Ok(value)
}

fn default(args: &Args<'_>) -> Result<Value, Fault> {
    let chosen = args.values.get(1).filter(|given| !empty(given));
    Ok(chosen.unwrap_or(args.value(0)?).clone())
}

/// sprig's emptiness is Go's untruth.
fn empty(value: &Value) -> bool {
    !value.truth()
}

fn ternary(args: &Args<'_>) -> Result<Value, Fault> {
    match args.value(2)? {
        Value::Bool(true) => Ok(args.value(0)?.clone()),
        Value::Bool(false) => Ok(args.value(1)?.clone()),
        other => Err(Fault::want("a boolean last", other)),
    }
}

/// reflect's kinds, as far as they exist here.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "invalid",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int",
        Value::Float(_) | Value::Number(_) => "float64",
        Value::Text(_) => "string",
        Value::List(_) => "slice",
        Value::Map(_) => "map",
        Value::Time(_) => "struct",
    }
}
