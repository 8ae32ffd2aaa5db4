//! YAML as users write it: a tree that knows its lines, read the way Go's yaml.v3 reads it.
//!
//! The incumbents parse `objects` with yaml.v3: `0644` is octal, `yes` is a string, a repeated key is an
//! error, and a scalar given where text is expected counts by its spelling. Built on the event parser rather
//! than on serde, because a number's spelling and a block scalar's lines are gone by then. Limits stand
//! against documents made to exhaust the reader, and messages never quote a value of the document.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use super::{origin::Origin, values::quote};
use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, ScanError, Span, Tag};

mod place;
#[cfg(test)]
mod tests;

/// Nesting of lists and mappings: deeper than any arguments of a secrets engine, far from any stack's end.
const MAX_DEPTH: usize = 64;

/// Nodes of one document: ten thousand objects of a dozen fields, twice over.
const MAX_NODES: usize = 500_000;

/// Bytes (and nodes, counted as one byte each) that anchors and aliases may copy: enough for shared
/// arguments, too little for a "billion laughs".
const MAX_COPIED: usize = 4 << 20;

/// Why a document cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct YamlError {
    /// Line in the document, from 1, when known.
    pub(crate) line: Option<u64>,
    /// What is wrong; no value of the document.
    pub(crate) message: String,
}

impl YamlError {
    fn at(line: u64, message: impl Into<String>) -> Self {
        Self { line: Some(line), message: message.into() }
    }
}

/// A value, and the line it starts on (from 1). A block scalar starts where its text does.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) line: u64,
    pub(crate) kind: Kind,
}

/// What a node is. Scalars that are not text keep their spelling.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// `null`, `~`, or nothing.
    Null,
    /// `true` or `false` in YAML 1.2's spellings.
    Bool(bool, String),
    /// A number, and its spelling.
    Number(serde_json::Number, String),
    /// Text, and where its characters stand in the document.
    Text(String, Origin),
    /// A list.
    List(Vec<Node>),
    /// A mapping in the order written, without repeated keys.
    Map(Vec<(Node, Node)>),
}

impl Kind {
    /// Text that stands in no document.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into(), Origin::Unknown)
    }
}

impl Node {
    /// Reads a single document; nothing at all is null.
    pub(crate) fn parse(source: &str) -> Result<Self, YamlError> {
        let mut documents = documents(source).into_iter();
        let first = documents.next().unwrap_or(Ok(Self { line: 1, kind: Kind::Null }))?;
        match documents.next() {
            None => Ok(first),
            Some(Ok(second)) => {
                Err(YamlError::at(second.line, "a second document begins here, expected one"))
            }
            Some(Err(error)) => Err(error),
        }
    }

    /// A scalar as the text it was written as; null is the empty text, as in Go.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Null => Some(""),
            Kind::Text(text, _) | Kind::Bool(_, text) | Kind::Number(_, text) => Some(text),
            Kind::List(_) | Kind::Map(_) => None,
        }
    }

    /// The value of `key`, when this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Kind::Map(entries) = &self.kind else { return None };
        entries.iter().find(|(name, _)| name.as_text() == Some(key)).map(|(_, value)| value)
    }

    /// The node as part of the document around the text that it was read from.
    pub(crate) fn embed(&mut self, around: &Node) {
        let outer = around.origin();
        self.line = outer.line(self.line).unwrap_or(around.line);
        match &mut self.kind {
            Kind::Text(_, origin) => *origin = origin.within(outer),
            Kind::List(items) => items.iter_mut().for_each(|item| item.embed(around)),
            Kind::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
                key.embed(around);
                value.embed(around);
            }),
            Kind::Null | Kind::Bool(..) | Kind::Number(..) => {}
        }
    }

    /// Where the characters of its text stand.
    pub(crate) const fn origin(&self) -> &Origin {
        match &self.kind {
            Kind::Text(_, origin) => origin,
            _ => &Origin::Unknown,
        }
    }

    /// What the node is, for messages.
    pub(crate) const fn describe(&self) -> &'static str {
        match self.kind {
            Kind::Null => "nothing",
            Kind::Bool(..) => "a boolean",
            Kind::Number(..) => "a number",
            Kind::Text(..) => "text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }

    /// The node as JSON with sorted keys; a number keeps its spelling where JSON has it.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value, _) => Value::Bool(*value),
            Kind::Number(number, _) => Value::Number(number.clone()),
            Kind::Text(text, _) => Value::String(text.clone()),
            Kind::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Kind::Map(entries) => {
                // Sorted here, because serde_json's own map keeps insertion order under a feature that any
                // dependency could switch on.
                let sorted: BTreeMap<_, _> = entries
                    .iter()
                    .map(|(key, value)| (key.as_text().unwrap_or_default().to_owned(), value.to_json()))
                    .collect();
                Value::Object(sorted.into_iter().collect())
            }
        }
    }

    // Bytes of text plus one for each node.
    fn weight(&self) -> usize {
        1 + match &self.kind {
            Kind::List(items) => items.iter().map(Self::weight).sum(),
            Kind::Map(entries) => entries.iter().map(|(key, value)| key.weight() + value.weight()).sum(),
            _ => self.as_text().map_or(0, str::len),
        }
    }
}

/// Every document of a stream. One that cannot be read does not hide those after it.
pub(crate) fn documents(source: &str) -> Vec<Result<Node, YamlError>> {
    let options = granit_parser::options! { emit_comments: false, flow_nesting_limit: MAX_DEPTH };
    let mut reader = Reader {
        source,
        parser: Parser::new_from_str_with_options(source, options),
        anchors: BTreeMap::new(),
        nodes: 0,
        copied: 0,
    };
    let mut found = Vec::new();
    loop {
        match reader.document() {
            Ok(None) => return found,
            Ok(Some(node)) => found.push(Ok(node)),
            Err(error) => {
                found.push(Err(error));
                if !reader.parser.proceed_next_document().unwrap_or(false) {
                    return found;
                }
            }
        }
        reader.anchors.clear();
    }
}

struct Reader<'s> {
    source: &'s str,
    parser: Parser<'s, granit_parser::StrInput<'s>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    copied: usize,
}

impl<'s> Reader<'s> {
    fn next(&mut self) -> Result<(Event<'s>, Span), YamlError> {
        match self.parser.next_event() {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => Err(explain(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn document(&mut self) -> Result<Option<Node>, YamlError> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(None),
                (Event::DocumentStart(..) | Event::StreamStart | Event::DocumentEnd, _) => {}
                (event, span) => return self.node(event, span, 0).map(Some),
            }
        }
    }

    fn node(&mut self, event: Event<'s>, span: Span, depth: usize) -> Result<Node, YamlError> {
        let line = span.start.line() as u64;
        if depth > MAX_DEPTH {
            return Err(YamlError::at(line, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(YamlError::at(line, format!("more than {MAX_NODES} values")));
        }
        let (anchor, kind) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let mut kind = scalar(&text, style, tag.as_deref(), line)?;
                if let Kind::Text(text, origin) = &mut kind {
                    *origin = place::of(text, style, span, self.source);
                }
                (anchor, kind)
            }
            Event::SequenceStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), &["seq"], line)?;
                (anchor, self.list(depth)?)
            }
            Event::MappingStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), &["map"], line)?;
                (anchor, self.map(depth)?)
            }
            Event::Alias(target) => {
                let node = self.anchors.get(&target).cloned();
                // An anchor is known once its node is complete, so one that contains itself never is.
                let node =
                    node.ok_or_else(|| YamlError::at(line, "an alias refers to a value it is part of"))?;
                self.copy(&node, line)?;
                return Ok(Node { line, kind: node.kind });
            }
            _ => return Err(YamlError::at(line, "expected a value")),
        };
        let node = Node { line, kind };
        if anchor != 0 {
            self.copy(&node, line)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn copy(&mut self, node: &Node, line: u64) -> Result<(), YamlError> {
        self.copied = self.copied.saturating_add(node.weight());
        if self.copied > MAX_COPIED {
            return Err(YamlError::at(line, "anchors and aliases expand to too much"));
        }
        Ok(())
    }

    fn list(&mut self, depth: usize) -> Result<Kind, YamlError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Kind::List(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Kind, YamlError> {
        let mut entries = Vec::new();
        let mut merged = None;
        let mut seen = BTreeSet::new();
        loop {
            let (event, span) = self.next()?;
            let line = span.start.line() as u64;
            if matches!(event, Event::MappingEnd) {
                if let Some(merged) = merged {
                    merge(&mut entries, &mut seen, merged)?;
                }
                return Ok(Kind::Map(entries));
            }
            let merges = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = self.node(event, span, depth + 1)?;
            let Some(name) = key.as_text().filter(|_| !matches!(key.kind, Kind::Null)) else {
                return Err(YamlError::at(line, format!("a key is {}, expected text", key.describe())));
            };
            if !seen.insert(name.to_owned()) {
                return Err(YamlError::at(
                    line,
                    format!("the key {} is given twice in one mapping", quote(name)),
                ));
            }
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            if merges {
                merged = Some(value);
            } else {
                entries.push((key, value));
            }
        }
    }
}

/// Adds what a merge key brings: a mapping, or several of which the first that has a key gives it. A key that the
/// mapping has itself stays, wherever the merge key stands.
fn merge(
    entries: &mut Vec<(Node, Node)>,
    seen: &mut BTreeSet<String>,
    merged: Node,
) -> Result<(), YamlError> {
    let line = merged.line;
    let several = match merged.kind {
        Kind::List(items) => items,
        _ => vec![merged],
    };
    for node in several {
        let Kind::Map(more) = node.kind else {
            let reason =
                format!("the merge key (<<) is {}, expected a mapping or a list of them", node.describe());
            return Err(YamlError::at(line, reason));
        };
        for (key, value) in more {
            if seen.insert(key.as_text().unwrap_or_default().to_owned()) {
                entries.push((key, value));
            }
        }
    }
    Ok(())
}

fn explain(error: &ScanError) -> YamlError {
    let line = u64::try_from(error.marker().line()).ok().filter(|line| *line > 0);
    YamlError { line, message: format!("not valid YAML: {}", error.info()) }
}

fn check_tag(tag: Option<&Tag>, allowed: &[&str], line: u64) -> Result<(), YamlError> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && allowed.contains(&tag.suffix())) => Err(YamlError::at(
            line,
            format!("the tag {} is not supported", quote(&format!("{}{}", tag.handle(), tag.suffix()))),
        )),
        _ => Ok(()),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, line: u64) -> Result<Kind, YamlError> {
    let text = text.to_owned();
    // The non-specific tag `!` means text whatever it looks like.
    let non_specific = tag.is_some_and(|tag| format!("{}{}", tag.handle(), tag.suffix()) == "!");
    if !non_specific {
        check_tag(tag, &["str", "int", "float", "bool", "null"], line)?;
    }
    let text_tag = non_specific || tag.is_some_and(|tag| tag.suffix() == "str");
    let plain = style == ScalarStyle::Plain && !text_tag;
    Ok(match text.as_str() {
        _ if !plain => Kind::text(text),
        "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
        "true" | "True" | "TRUE" => Kind::Bool(true, text),
        "false" | "False" | "FALSE" => Kind::Bool(false, text),
        _ => match number(&text) {
            Some(number) => Kind::Number(number, text),
            None => Kind::text(text),
        },
    })
}

// YAML 1.1's numbers as yaml.v3 resolves them; timestamps, infinities and NaN stay text.
fn number(text: &str) -> Option<serde_json::Number> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    if let Ok(verbatim) = serde_json::from_str(text) {
        return Some(verbatim);
    }
    if let Some(value) = integer(text) {
        return serde_json::from_str(&value.to_string()).ok();
    }
    let mut plain = text.replace('_', "");
    let decimal = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    if !plain.chars().all(decimal) {
        return None;
    }
    if plain.starts_with('+') {
        plain = mem::take(&mut plain).split_off(1);
    }
    plain.parse::<f64>().ok().and_then(serde_json::Number::from_f64)
}

/// An integer in Go's base-0 notation: `420`, `0644` and `0o644` octal, `0x1a4`, `0b1`, with underscores.
pub(crate) fn integer(text: &str) -> Option<i128> {
    let plain = text.replace('_', "");
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let prefixed = |lower, upper| digits.strip_prefix(lower).or_else(|| digits.strip_prefix(upper));
    let (radix, digits) = match (prefixed("0x", "0X"), prefixed("0o", "0O"), prefixed("0b", "0B")) {
        (Some(rest), ..) => (16, rest),
        (_, Some(rest), _) => (8, rest),
        (_, _, Some(rest)) => (2, rest),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    // from_str_radix would take a second sign.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    i128::from_str_radix(digits, radix).ok().map(|value| sign * value)
}
