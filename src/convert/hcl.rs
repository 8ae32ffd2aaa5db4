//! Vault Agent's configuration language, HCL 1 or JSON, to the same tree as YAML.
//!
//! The reader at hand is one of HCL 2. Where the two differ, HCL 1 is followed: nothing in braces is evaluated
//! (`${…}` and `%{…}` are text), and an indented heredoc loses the indentation of its end mark.

use hcl_edit::{
    Span,
    expr::{Expression, ObjectKey},
    structure::{Body, Structure},
};

use super::ConvertError;
use crate::spec::yaml::{Kind, Node};

/// Bytes of a configuration: templates of a hundred files fit.
const MAX_TEXT: usize = 1 << 20;

/// Reads a configuration. Blocks become mappings, their labels keys, and what is repeated a list.
pub(super) fn parse(text: &str) -> Result<Node, ConvertError> {
    if text.len() > MAX_TEXT {
        let message = format!("has {} bytes, more than {MAX_TEXT}: it is no configuration", text.len());
        return Err(ConvertError::Syntax { line: None, message });
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{') { json(text) } else { hcl(text) }
}

fn syntax(line: Option<u64>, message: impl Into<String>) -> ConvertError {
    ConvertError::Syntax { line, message: message.into() }
}

fn json(text: &str) -> Result<Node, ConvertError> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| {
        // serde_json's own text may quote the input.
        let what = if error.is_eof() { "it ends too early" } else { "something here has no place in JSON" };
        syntax(Some(error.line() as u64), format!("not valid JSON (column {}): {what}", error.column()))
    })?;
    // JSON is YAML, but for tabs and surrogate pairs; only the lines are lost with those.
    Ok(Node::parse(text).unwrap_or_else(|_| untold(&value)))
}

fn untold(value: &serde_json::Value) -> Node {
    use serde_json::Value;
    let text = |text: &str| Node { line: 1, kind: Kind::text(text) };
    let kind = match value {
        Value::Null => Kind::Null,
        Value::Bool(value) => Kind::Bool(*value, value.to_string()),
        Value::Number(number) => Kind::Number(number.clone(), number.to_string()),
        Value::String(value) => return text(value),
        Value::Array(items) => Kind::List(items.iter().map(untold).collect()),
        Value::Object(map) => Kind::Map(map.iter().map(|(key, value)| (text(key), untold(value))).collect()),
    };
    Node { line: 1, kind }
}

fn hcl(text: &str) -> Result<Node, ConvertError> {
    let escaped = text.replace("${", "$${").replace("%{", "%%{");
    let body = hcl_edit::parser::parse_body(&escaped).map_err(|error| {
        let place = error.location();
        let message = format!(
            "not valid HCL (column {}): {}; entries of a block stand on lines of their own",
            place.column(),
            error.message().replace('\n', ", ")
        );
        syntax(Some(place.line() as u64), message)
    })?;
    // A parser that found no error has bounded the nesting.
    Reader { text: &escaped }.body(&body, 1)
}

struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn line(&self, node: &impl Span) -> u64 {
        let start = node.span().map_or(0, |span| span.start).min(self.text.len());
        self.text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() as u64 + 1
    }

    fn body(&self, body: &Body, line: u64) -> Result<Node, ConvertError> {
        let mut entries = Vec::new();
        for structure in body {
            let (name, line, value) = match structure {
                Structure::Attribute(attribute) => {
                    (attribute.key.as_str(), self.line(attribute), self.value(&attribute.value)?)
                }
                Structure::Block(block) => {
                    let line = self.line(block);
                    let mut value = self.body(&block.body, line)?;
                    for label in block.labels.iter().rev() {
                        value = Node { line, kind: Kind::Map(vec![(text(label.as_str(), line), value)]) };
                    }
                    (block.ident.as_str(), line, value)
                }
            };
            add(&mut entries, name, line, value);
        }
        Ok(Node { line, kind: Kind::Map(entries) })
    }

    fn value(&self, value: &Expression) -> Result<Node, ConvertError> {
        let line = self.line(value);
        let kind = match value {
            Expression::Null(_) => Kind::Null,
            Expression::Bool(value) => Kind::Bool(*value.value(), value.value().to_string()),
            // Its spelling, because a mode is octal.
            Expression::Number(number) => {
                let spelling =
                    number.span().and_then(|span| self.text.get(span)).unwrap_or_default().to_owned();
                match serde_json::from_str(&number.value().to_string()) {
                    Ok(number) => Kind::Number(number, spelling),
                    Err(_) => Kind::text(spelling),
                }
            }
            Expression::String(value) => Kind::text(value.value()),
            Expression::HeredocTemplate(heredoc) => {
                let written = heredoc.span().and_then(|span| self.text.get(span)).unwrap_or_default();
                Kind::text(heredoc_text(written))
            }
            Expression::Array(items) => {
                Kind::List(items.iter().map(|item| self.value(item)).collect::<Result<_, _>>()?)
            }
            Expression::Object(object) => {
                let mut entries = Vec::new();
                for (key, value) in object {
                    let name = match key {
                        ObjectKey::Ident(name) => name.as_str(),
                        ObjectKey::Expression(Expression::String(name)) => name.value(),
                        ObjectKey::Expression(other) => return Err(self.refuse(other)),
                    };
                    let value = self.value(value.expr())?;
                    add(&mut entries, name, value.line, value);
                }
                Kind::Map(entries)
            }
            Expression::Parenthesis(inner) => return self.value(inner.inner()),
            other => return Err(self.refuse(other)),
        };
        Ok(Node { line, kind })
    }

    fn refuse(&self, expression: &Expression) -> ConvertError {
        let what = match expression {
            Expression::FuncCall(_) => "a function call",
            Expression::Variable(_) | Expression::Traversal(_) => "a name without quotes",
            Expression::Conditional(_) | Expression::ForExpr(_) => "a condition or loop",
            Expression::UnaryOp(_) | Expression::BinaryOp(_) => "a calculation",
            _ => "an expression",
        };
        let message =
            format!("here is {what}; Vault Agent evaluates nothing: write the value, text in quotes");
        syntax(Some(self.line(expression)), message)
    }
}

fn text(value: &str, line: u64) -> Node {
    Node { line, kind: Kind::text(value) }
}

/// What is repeated becomes a list.
fn add(entries: &mut Vec<(Node, Node)>, name: &str, line: u64, value: Node) {
    let Some((_, known)) = entries.iter_mut().find(|(key, _)| key.as_text() == Some(name)) else {
        entries.push((text(name, line), value));
        return;
    };
    match &mut known.kind {
        Kind::List(items) => items.push(value),
        _ => {
            let first = Node { line: known.line, kind: std::mem::replace(&mut known.kind, Kind::Null) };
            known.kind = Kind::List(vec![first, value]);
        }
    }
}

/// The text of a heredoc, from its first mark to its last.
fn heredoc_text(written: &str) -> String {
    let (mark, rest) = written.split_once('\n').unwrap_or((written, ""));
    let (body, end) = rest.rsplit_once('\n').map_or(("", rest), |(body, end)| (body, end));
    let mut lines: Vec<&str> = if rest.contains('\n') { body.split('\n').collect() } else { Vec::new() };
    if mark.starts_with("<<-") {
        let indent = &end[..end.len() - end.trim_start().len()];
        // As HCL 1 does: all lines or none.
        if lines.iter().all(|line| line.starts_with(indent)) {
            lines.iter_mut().for_each(|line| *line = &line[indent.len()..]);
        }
    }
    let text: String =
        lines.iter().map(|line| format!("{}\n", line.strip_suffix('\r').unwrap_or(line))).collect();
    text.replace("$${", "${").replace("%%{", "%{")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn both_languages_make_one_tree_with_lines() {
        let hcl = "# a comment\nvault {\n  address = \"https://v:8200\" // here\n}\nauto_auth {\n  method \"jwt\" \
                   {\n    config = { role = \"app\", path = \"/t\" }\n  }\n  sink \"file\" { }\n  sink \"file\" \
                   { }\n}\ntemplate {\n  perms = 0600\n  contents = <<-EOT\n    a ${X:-y} %{z}\n      b \\n\n    \
                   EOT\n  exec = [\"a\", \"b\"]\n  args = \"${x} \\\"q\\\"\"\n}\n";
        let node = parse(hcl).unwrap();
        let json = r#"{"vault":{"address":"https://v:8200"},"auto_auth":{"method":{"jwt":{"config":{"role":"app","path":"/t"}}},"sink":[{"file":{}},{"file":{}}]},"template":{"perms":600,"contents":"a ${X:-y} %{z}\n  b \\n\n","exec":["a","b"],"args":"${x} \"q\""}}"#;
        assert_eq!(node.to_json(), serde_json::from_str::<serde_json::Value>(json).unwrap());
        let template = node.get("template").unwrap();
        assert_eq!(template.get("perms").unwrap().as_text(), Some("0600"));
        assert_eq!((template.line, template.get("exec").unwrap().line), (12, 18));
        assert_eq!(parse(json).unwrap().to_json(), node.to_json());
        assert_eq!(parse("{\"a\":\n\t\"\\ud83d\\ude00\"}").unwrap().get("a").unwrap().as_text(), Some("😀"));
    }

    #[test]
    fn an_indented_heredoc_keeps_what_its_end_mark_has_not() {
        for (text, expected) in [
            ("a = <<EOF\n  x\n  EOF\n", "  x\n"),
            ("a = <<-EOF\n    x\n  EOF\n", "  x\n"),
            ("a = <<-EOF\n    x\n y\n  EOF\n", "    x\n y\n"),
            ("a = <<EOF\nEOF\n", ""),
        ] {
            assert_eq!(parse(text).unwrap().get("a").unwrap().as_text(), Some(expected), "{text}");
        }
    }

    #[test]
    fn hostile_text_is_refused_with_its_line() {
        let deep = format!("a = 1\nb = {}{}", "[".repeat(5_000), "]".repeat(5_000));
        let blocks = format!("{}{}", "a {\n".repeat(5_000), "}\n".repeat(5_000));
        let parentheses = format!("a = {}1{}", "(".repeat(60), ")".repeat(60));
        let objects = format!("a = {}1{}", "{ a = [".repeat(30), "] }".repeat(30));
        for (text, line, part) in [
            ("a = env(\"HOME\")", Some(1), "function call"),
            ("\n\na = b", Some(3), "without quotes"),
            ("a = true ? 1 : 2", Some(1), "condition"),
            ("a = 1 + 1", Some(1), "calculation"),
            ("a = {\n  (b) = 1\n}", Some(2), "an expression"),
            ("a {\n  b = \"x", Some(2), "not valid HCL"),
            ("{\n\"a\": [1,\n}", Some(3), "not valid JSON"),
            (&deep, Some(2), "64 nested levels"),
            (&blocks, Some(65), "64 nested levels"),
            (&"{\"a\":".repeat(5_000), Some(1), "not valid JSON"),
            (&"#".repeat(MAX_TEXT + 1), None, "more than 1048576"),
        ] {
            let ConvertError::Syntax { line: found, message } = parse(text).unwrap_err() else { panic!() };
            assert!(message.contains(part), "{message}");
            assert_eq!(found, line, "{message}");
        }
        parse(&parentheses).unwrap();
        parse(&objects).unwrap();
    }
}
