//! Values of a template while it runs.
//!
//! Text is bytes, as in Go, so that binary values pass through every function unharmed.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use serde_json::Value as Json;

use super::{fault::Fault, number};

/// A string of Go: any bytes.
pub(super) type Text = Rc<[u8]>;

/// Nesting that walks over a value follow; deeper is an error, not a full stack.
pub(super) const MAX_DEPTH: usize = 100;

#[derive(Clone)]
pub(super) enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// A JSON number that is no `i64`, as it was received: prints unchanged, counts as a float.
    Number(Rc<str>),
    Text(Text),
    List(Rc<List>),
    Map(Rc<Map>),
    /// Nanoseconds since 1970, UTC.
    Time(i128),
}

/// A list.
pub(super) struct List(Vec<Value>);

/// A map, shared and mutable as Go's are (`set $map "key" value`).
#[derive(Default)]
pub(super) struct Map(RefCell<BTreeMap<Text, Value>>);

impl List {
    pub(super) fn items(&self) -> &[Value] {
        &self.0
    }
}

impl Map {
    pub(super) fn get(&self, key: &[u8]) -> Option<Value> {
        self.0.borrow().get(key).cloned()
    }

    pub(super) fn insert(&self, key: Text, value: Value) {
        let old = self.0.borrow_mut().insert(key, value);
        drop(old);
    }

    pub(super) fn remove(&self, key: &[u8]) {
        let old = self.0.borrow_mut().remove(key);
        drop(old);
    }

    pub(super) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// A copy of the entries, sorted by key; values are shared.
    pub(super) fn entries(&self) -> Vec<(Text, Value)> {
        self.0.borrow().iter().map(|(key, value)| (Rc::clone(key), value.clone())).collect()
    }
}

// A loop can nest values as deep as it has rounds: dropping them must not recurse.
impl Drop for List {
    fn drop(&mut self) {
        drop_flat(std::mem::take(&mut self.0));
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        drop_flat(std::mem::take(self.0.get_mut()).into_values().collect());
    }
}

fn drop_flat(mut waiting: Vec<Value>) {
    while let Some(value) = waiting.pop() {
        match value {
            Value::List(list) => {
                if let Ok(mut list) = Rc::try_unwrap(list) {
                    waiting.append(&mut list.0);
                }
            }
            Value::Map(map) => {
                if let Ok(mut map) = Rc::try_unwrap(map) {
                    waiting.extend(std::mem::take(map.0.get_mut()).into_values());
                }
            }
            _ => {}
        }
    }
}

impl Value {
    pub(super) fn text(bytes: impl AsRef<[u8]>) -> Self {
        Self::Text(Rc::from(bytes.as_ref()))
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(List(items)))
    }

    pub(super) fn map(entries: impl IntoIterator<Item = (Text, Self)>) -> Self {
        Self::Map(Rc::new(Map(RefCell::new(entries.into_iter().collect()))))
    }

    /// From JSON, whose depth the reader of it has bounded.
    pub(super) fn from_json(json: &Json) -> Self {
        match json {
            Json::Null => Self::Nil,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(value) => match value.as_i64() {
                Some(integer) => Self::Int(integer),
                None => Self::Number(Rc::from(value.to_string())),
            },
            Json::String(text) => Self::text(text),
            Json::Array(items) => Self::list(items.iter().map(Self::from_json).collect()),
            Json::Object(map) => {
                Self::map(map.iter().map(|(key, value)| (Rc::from(key.as_bytes()), Self::from_json(value))))
            }
        }
    }

    /// To JSON; `budget` pays for each node.
    pub(super) fn to_json(&self, budget: &super::budget::Budget) -> Result<Json, Fault> {
        self.to_json_at(budget, 0)
    }

    fn to_json_at(&self, budget: &super::budget::Budget, depth: usize) -> Result<Json, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Why("the value is nested deeper than 100"));
        }
        budget.work(64)?;
        Ok(match self {
            Self::Nil => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => Json::from(*value),
            Self::Float(value) if value.is_finite() => {
                Json::Number(serde_json::Number::from_string_unchecked(number::json_float(*value)))
            }
            Self::Float(_) => return Err(Fault::Why("JSON has no infinite numbers")),
            Self::Number(text) => Json::Number(serde_json::Number::from_string_unchecked(text.to_string())),
            Self::Text(bytes) => {
                budget.work(bytes.len())?;
                Json::String(utf8(bytes)?.to_owned())
            }
            Self::List(list) => {
                let items = list.items().iter().map(|item| item.to_json_at(budget, depth + 1));
                Json::Array(items.collect::<Result<_, _>>()?)
            }
            Self::Map(map) => {
                let mut object = serde_json::Map::new();
                for (key, value) in map.entries() {
                    object.insert(utf8(&key)?.to_owned(), value.to_json_at(budget, depth + 1)?);
                }
                Json::Object(object)
            }
            Self::Time(nanos) => Json::String(super::time::rfc3339(*nanos)),
        })
    }

    /// Whether both are the same map, not only an equal one.
    pub(super) fn is(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Map(a), Self::Map(b)) if Rc::ptr_eq(a, b))
    }

    /// The word for its type in errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) | Self::Number(_) => "a float",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
            Self::Time(_) => "a time",
        }
    }

    /// Go's truth: everything but zero values and empty collections.
    pub(super) fn truth(&self) -> bool {
        match self {
            Self::Nil => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Number(_) => self.number() != Some(0.0),
            Self::Text(bytes) => !bytes.is_empty(),
            Self::List(list) => !list.items().is_empty(),
            Self::Map(map) => map.len() != 0,
            Self::Time(_) => true,
        }
    }

    /// As a float, if it is a number.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            #[allow(clippy::cast_precision_loss, reason = "as Go's float64(int64)")]
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Number(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// What it costs to hold or copy, roughly, in bytes, without what is inside its children.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Text(bytes) => bytes.len(),
            Self::List(list) => list.items().len().saturating_mul(16),
            Self::Map(map) => map.len().saturating_mul(32),
            _ => 8,
        }
    }

    /// Go's `%v`, into `out`.
    pub(super) fn print(&self, out: &mut super::budget::Buffer<'_>) -> Result<(), Fault> {
        self.print_at(out, 0)
    }

    fn print_at(&self, out: &mut super::budget::Buffer<'_>, depth: usize) -> Result<(), Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Why("the value is nested deeper than 100"));
        }
        match self {
            Self::Nil => out.push(b"<nil>"),
            Self::Bool(value) => out.push(if *value { b"true" } else { b"false" }),
            Self::Int(value) => out.push(value.to_string().as_bytes()),
            Self::Float(value) => out.push(number::shortest(*value).as_bytes()),
            Self::Number(text) => out.push(text.as_bytes()),
            Self::Text(bytes) => out.push(bytes),
            Self::List(list) => {
                out.push(b"[")?;
                for (index, item) in list.items().iter().enumerate() {
                    if index > 0 {
                        out.push(b" ")?;
                    }
                    item.print_at(out, depth + 1)?;
                }
                out.push(b"]")
            }
            Self::Map(map) => {
                out.push(b"map[")?;
                for (index, (key, value)) in map.entries().into_iter().enumerate() {
                    if index > 0 {
                        out.push(b" ")?;
                    }
                    out.push(&key)?;
                    out.push(b":")?;
                    value.print_at(out, depth + 1)?;
                }
                out.push(b"]")
            }
            Self::Time(nanos) => out.push(super::time::format(*nanos, super::time::GO_DEFAULT).as_bytes()),
        }
    }

    /// Go's reflect.DeepEqual, except that numbers are compared by what they are.
    pub(super) fn deep_equal(&self, other: &Self, budget: &super::budget::Budget) -> Result<bool, Fault> {
        self.equal_at(other, budget, 0)
    }

    fn equal_at(&self, other: &Self, budget: &super::budget::Budget, depth: usize) -> Result<bool, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Why("the value is nested deeper than 100"));
        }
        budget.work(8)?;
        Ok(match (self, other) {
            (Self::Nil, Self::Nil) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Time(a), Self::Time(b)) => a == b,
            (Self::List(a), Self::List(b)) => {
                if a.items().len() != b.items().len() {
                    return Ok(false);
                }
                for (a, b) in a.items().iter().zip(b.items()) {
                    if !a.equal_at(b, budget, depth + 1)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Map(a), Self::Map(b)) => {
                let (a, b) = (a.entries(), b.entries());
                if a.len() != b.len() {
                    return Ok(false);
                }
                for ((key, a), (other, b)) in a.iter().zip(&b) {
                    if key != other || !a.equal_at(b, budget, depth + 1)? {
                        return Ok(false);
                    }
                }
                true
            }
            _ => match (self.number(), other.number()) {
                #[allow(clippy::float_cmp, reason = "as Go's ==")]
                (Some(a), Some(b)) => a == b,
                _ => false,
            },
        })
    }

    /// Whether `map` is in it: setting it in `map` would make a cycle, which nothing could print or free.
    pub(super) fn holds(&self, map: &Rc<Map>, budget: &super::budget::Budget) -> Result<bool, Fault> {
        self.holds_at(map, budget, 0)
    }

    fn holds_at(&self, map: &Rc<Map>, budget: &super::budget::Budget, depth: usize) -> Result<bool, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Why("the value is nested deeper than 100"));
        }
        budget.work(8)?;
        match self {
            Self::List(list) => {
                for item in list.items() {
                    if item.holds_at(map, budget, depth + 1)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Map(inner) => {
                if Rc::ptr_eq(inner, map) {
                    return Ok(true);
                }
                for (_, value) in inner.entries() {
                    if value.holds_at(map, budget, depth + 1)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Maps and lists anew, so that setting in the copy leaves the original alone.
    pub(super) fn deep_copy(&self, budget: &super::budget::Budget) -> Result<Self, Fault> {
        self.copy_at(budget, 0)
    }

    fn copy_at(&self, budget: &super::budget::Budget, depth: usize) -> Result<Self, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Why("the value is nested deeper than 100"));
        }
        budget.work(64)?;
        Ok(match self {
            Self::List(list) => {
                let items = list.items().iter().map(|item| item.copy_at(budget, depth + 1));
                Self::list(items.collect::<Result<_, _>>()?)
            }
            Self::Map(map) => {
                let mut copy = BTreeMap::new();
                for (key, value) in map.entries() {
                    copy.insert(key, value.copy_at(budget, depth + 1)?);
                }
                Self::map(copy)
            }
            other => other.clone(),
        })
    }
}

/// Text that must be text.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| Fault::Why("the value is binary; encode it first, with b64enc"))
}
