//! Finds the `secret` calls of a template without running it.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use super::{
    Limit, Limits, PodContext, Position, SecretCall, TemplateError,
    budget::Budget,
    environment,
    exec::{self, locate},
    fault::Fault,
    functions::Args,
    functions::{Env, Special, secret_call},
    parse::{Command, Expr, ExprKind, Node, Pipe, Tree},
    value::Value,
};

/// Work for evaluating constants: paths are short.
const LIMITS: Limits = Limits { range_iterations: 0, output_bytes: 64 << 10, work_bytes: 4 << 20 };

pub(super) fn find(tree: &Tree, pod: &PodContext) -> Result<Vec<(SecretCall, Position)>, TemplateError> {
    let budget = Budget::new(&LIMITS);
    let env = environment(&budget, &|_| None, SystemTime::UNIX_EPOCH);
    let root = Value::map([(exec::key("pod"), pod.to_value())]);
    let mut pipes = Vec::new();
    collect(&tree.body, &mut pipes);
    tree.named.values().for_each(|body| collect(body, &mut pipes));
    let mut finder = Finder { known: variables(&pipes), env: &env, root, found: BTreeMap::new() };
    for pipe in &pipes {
        finder.pipe(pipe.0)?;
    }
    let mut calls: Vec<_> = finder.found.into_iter().collect();
    calls.sort_by_key(|(_, position)| *position);
    Ok(calls)
}

/// A pipeline, and whether it sets its variables to what it yields: not so for a range.
type Found<'a> = (&'a Pipe, bool);

fn collect<'a>(nodes: &'a [Node], into: &mut Vec<Found<'a>>) {
    for node in nodes {
        match node {
            Node::Action(pipe) => into.push((pipe, true)),
            Node::If(branch) | Node::With(branch) | Node::Range(branch) => {
                into.push((&branch.pipe, !matches!(node, Node::Range(_))));
                collect(&branch.body, into);
                collect(&branch.otherwise, into);
            }
            Node::Template { pipe: Some(pipe), .. } => into.push((pipe, true)),
            Node::Template { pipe: None, .. } | Node::Text(..) | Node::Break | Node::Continue => {}
        }
    }
}

/// Variables that are set once, and so are what they were set to; `None` for all others.
fn variables<'a>(pipes: &[Found<'a>]) -> BTreeMap<Arc<str>, Option<&'a Pipe>> {
    let mut known = BTreeMap::new();
    for (pipe, plain) in pipes {
        for name in &pipe.variables {
            let value = (*plain && pipe.variables.len() == 1 && !known.contains_key(name)).then_some(*pipe);
            known.insert(Arc::clone(name), value);
        }
        nested_variables(pipe, &mut known);
    }
    known
}

/// Variables set inside parentheses are never constants.
fn nested_variables(pipe: &Pipe, known: &mut BTreeMap<Arc<str>, Option<&Pipe>>) {
    for expr in pipe.commands.iter().flat_map(|command| &command.args) {
        let inner = match &expr.kind {
            ExprKind::Pipe(inner) => inner,
            ExprKind::Chain(inner, _) => match &inner.kind {
                ExprKind::Pipe(inner) => inner,
                _ => continue,
            },
            _ => continue,
        };
        for name in &inner.variables {
            known.insert(Arc::clone(name), None);
        }
        nested_variables(inner, known);
    }
}

struct Finder<'a> {
    known: BTreeMap<Arc<str>, Option<&'a Pipe>>,
    env: &'a Env<'a>,
    root: Value,
    found: BTreeMap<SecretCall, Position>,
}

impl<'a> Finder<'a> {
    fn pipe(&mut self, pipe: &Pipe) -> Result<(), TemplateError> {
        for (index, command) in pipe.commands.iter().enumerate() {
            let before = &pipe.commands[..index];
            self.command(command, before, pipe.position)?;
        }
        Ok(())
    }

    fn command(
        &mut self,
        command: &Command,
        before: &[Command],
        start: Position,
    ) -> Result<(), TemplateError> {
        for (index, expr) in command.args.iter().enumerate() {
            let callee = match &expr.kind {
                ExprKind::Chain(inner, _) => inner,
                _ => expr,
            };
            if is_secret(callee) {
                // As an argument it is called with none.
                let (args, piped) = match index {
                    0 => (&command.args[1..], before),
                    _ => (&[][..], &[][..]),
                };
                self.call(callee.position, args, piped, start)?;
            }
            if let ExprKind::Pipe(inner) = &callee.kind {
                self.pipe(inner)?;
            }
        }
        Ok(())
    }

    fn call(
        &mut self,
        position: Position,
        args: &[Expr],
        before: &[Command],
        start: Position,
    ) -> Result<(), TemplateError> {
        let piped = if before.is_empty() {
            None
        } else {
            Some(constant_commands(before, start, &self.known, &self.root, self.env, 0)?)
        };
        let values = constant_args(args, piped, &self.known, &self.root, self.env)?;
        let call = secret_call(&values).map_err(|fault| locate(fault, "secret", position, args))?;
        self.found.entry(call).and_modify(|first| *first = position.min(*first)).or_insert(position);
        Ok(())
    }
}

fn is_secret(expr: &Expr) -> bool {
    matches!(&expr.kind, ExprKind::Function(function) if function.special == Special::Secret)
}

/// The value of an argument that is known before anything is read.
fn constant(
    expr: &Expr,
    known: &BTreeMap<Arc<str>, Option<&Pipe>>,
    root: &Value,
    env: &Env<'_>,
    depth: usize,
) -> Result<Value, TemplateError> {
    let unknown = TemplateError::DependsOnSecret { position: expr.position };
    if depth > exec::MAX_DEPTH {
        return Err(TemplateError::Budget { limit: Limit::Depth, position: expr.position });
    }
    Ok(match &expr.kind {
        ExprKind::Bool(value) => Value::Bool(*value),
        ExprKind::Int(value) => Value::Int(*value),
        ExprKind::Float(value) => Value::Float(*value),
        ExprKind::Text(text) => Value::text(text),
        // Dot may be anything inside with and range; there, $.pod says the same.
        ExprKind::Field(fields) if fields[0].as_ref() == "pod" => pod_field(fields, root, expr.position)?,
        ExprKind::Variable(name, fields) if name.as_ref() == "$" => {
            if fields.first().is_none_or(|first| first.as_ref() != "pod") {
                return Err(unknown);
            }
            pod_field(fields, root, expr.position)?
        }
        ExprKind::Variable(name, fields) if fields.is_empty() => match known.get(name) {
            Some(Some(pipe)) => constant_pipe(pipe, known, root, env, depth + 1)?,
            _ => return Err(unknown),
        },
        ExprKind::Pipe(pipe) => constant_pipe(pipe, known, root, env, depth + 1)?,
        _ => return Err(unknown),
    })
}

fn pod_field(fields: &[Arc<str>], root: &Value, position: Position) -> Result<Value, TemplateError> {
    let mut value = root.clone();
    for field in fields {
        let next = match &value {
            Value::Map(map) => map.get(field.as_bytes()),
            _ => None,
        };
        value = next.ok_or_else(|| TemplateError::MissingKey { key: Some(field.to_string()), position })?;
    }
    Ok(value)
}

fn constant_pipe(
    pipe: &Pipe,
    known: &BTreeMap<Arc<str>, Option<&Pipe>>,
    root: &Value,
    env: &Env<'_>,
    depth: usize,
) -> Result<Value, TemplateError> {
    constant_commands(&pipe.commands, pipe.position, known, root, env, depth)
}

/// The value of the commands of a pipeline, or of its beginning.
fn constant_commands(
    commands: &[Command],
    position: Position,
    known: &BTreeMap<Arc<str>, Option<&Pipe>>,
    root: &Value,
    env: &Env<'_>,
    depth: usize,
) -> Result<Value, TemplateError> {
    let mut last = None;
    for command in commands {
        last = Some(constant_command(command, last, known, root, env, depth)?);
    }
    last.ok_or(TemplateError::DependsOnSecret { position })
}

fn constant_command(
    command: &Command,
    piped: Option<Value>,
    known: &BTreeMap<Arc<str>, Option<&Pipe>>,
    root: &Value,
    env: &Env<'_>,
    depth: usize,
) -> Result<Value, TemplateError> {
    let first = &command.args[0];
    let ExprKind::Function(function) = &first.kind else {
        if command.args.len() > 1 {
            return Err(TemplateError::DependsOnSecret { position: first.position });
        }
        return constant(first, known, root, env, depth);
    };
    if !matches!(function.name, "printf" | "print" | "join" | "list") {
        return Err(TemplateError::DependsOnSecret { position: first.position });
    }
    let mut values = Vec::new();
    for expr in &command.args[1..] {
        values.push(constant(expr, known, root, env, depth + 1)?);
    }
    values.extend(piped);
    let located = |fault: Fault| locate(fault, function.name, first.position, &command.args[1..]);
    if values.len() < function.least || values.len() > function.most {
        return Err(located(Fault::Arguments));
    }
    (function.run)(&Args::new(&values, env)).map_err(located)
}

/// A list of arguments evaluated to constants, for a `secret` call found in the tree.
fn constant_args(
    exprs: &[Expr],
    piped: Option<Value>,
    known: &BTreeMap<Arc<str>, Option<&Pipe>>,
    root: &Value,
    env: &Env<'_>,
) -> Result<Vec<Value>, TemplateError> {
    let mut values = Vec::new();
    for expr in exprs {
        values.push(constant(expr, known, root, env, 0)?);
    }
    values.extend(piped);
    Ok(values)
}
