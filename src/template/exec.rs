//! Walks a parsed template.

use std::{rc::Rc, sync::Arc};

use super::{
    Limit, Position, TemplateError,
    budget::Buffer,
    fault::Fault,
    functions::{Args, Env, Special},
    parse::{Branch, Command, Expr, ExprKind, Node, Pipe, Tree},
    value::{Text, Value},
};

/// Depth of blocks, pipelines and named templates together; what a stack of 2 MiB holds in a debug build.
pub(super) const MAX_DEPTH: usize = 100;

enum Flow {
    On,
    Break,
    Continue,
}

pub(super) struct Executor<'a> {
    tree: &'a Tree,
    env: &'a Env<'a>,
    /// What the template was given, and the pod, which is a field of it that no range sees.
    root: &'a Value,
    pod: &'a Value,
    out: Buffer<'a>,
    variables: Vec<(Arc<str>, Value)>,
    depth: usize,
}

impl<'a> Executor<'a> {
    pub(super) fn run(
        tree: &'a Tree,
        env: &'a Env<'a>,
        root: &'a Value,
        pod: &'a Value,
    ) -> Result<Vec<u8>, TemplateError> {
        let variables = vec![(Arc::from("$"), root.clone())];
        let mut executor = Executor { tree, env, root, pod, out: env.budget.buffer(), variables, depth: 0 };
        executor.list(&tree.body, root)?;
        Ok(executor.out.into_bytes())
    }

    fn list(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        for node in nodes {
            match self.node(node, dot)? {
                Flow::On => {}
                other => return Ok(other),
            }
        }
        Ok(Flow::On)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, TemplateError> {
        match node {
            Node::Text(position, text) => {
                self.out.push(text).map_err(|fault| plain(fault, *position))?;
            }
            Node::Action(pipe) => {
                let value = self.pipe(pipe, dot)?;
                if pipe.variables.is_empty() {
                    if matches!(value, Value::Nil) {
                        return Err(TemplateError::NoValue { position: pipe.position });
                    }
                    value.print(&mut self.out).map_err(|fault| plain(fault, pipe.position))?;
                }
            }
            Node::If(branch) => {
                return self.scoped(branch.pipe.position, |this| this.branch(branch, dot, false));
            }
            Node::With(branch) => {
                return self.scoped(branch.pipe.position, |this| this.branch(branch, dot, true));
            }
            Node::Range(branch) => return self.scoped(branch.pipe.position, |this| this.range(branch, dot)),
            Node::Template { position, name, pipe } => {
                let dot = match pipe {
                    Some(pipe) => self.pipe(pipe, dot)?,
                    None => Value::Nil,
                };
                let tree = self.tree;
                let Some(body) = tree.named.get(name) else {
                    return Err(TemplateError::syntax(*position, "no {{define}} has this template's name"));
                };
                let outer = std::mem::replace(&mut self.variables, vec![(Arc::from("$"), dot.clone())]);
                let done = self.scoped(*position, |this| this.list(body, &dot));
                self.variables = outer;
                done?;
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn scoped<T>(
        &mut self,
        position: Position,
        run: impl FnOnce(&mut Self) -> Result<T, TemplateError>,
    ) -> Result<T, TemplateError> {
        if self.depth >= MAX_DEPTH {
            return Err(TemplateError::Budget { limit: Limit::Depth, position });
        }
        let variables = self.variables.len();
        self.depth += 1;
        let done = run(self);
        self.depth -= 1;
        self.variables.truncate(variables);
        done
    }

    fn branch(&mut self, branch: &Branch, dot: &Value, with: bool) -> Result<Flow, TemplateError> {
        let value = self.pipe(&branch.pipe, dot)?;
        if value.truth() {
            self.list(&branch.body, if with { &value } else { dot })
        } else {
            self.list(&branch.otherwise, dot)
        }
    }

    fn range(&mut self, branch: &Branch, dot: &Value) -> Result<Flow, TemplateError> {
        let pipe = &branch.pipe;
        let value = self.commands(pipe, dot)?;
        let mut rounds = 0_usize;
        match &value {
            Value::Nil => {}
            Value::Int(count) => {
                if pipe.variables.len() > 1 {
                    return Err(expression(pipe.position, "a range over an integer sets one variable"));
                }
                for index in 0..*count {
                    rounds += 1;
                    if !self.round(branch, Value::Int(index), Value::Int(index))? {
                        break;
                    }
                }
            }
            Value::List(list) => {
                for (index, item) in list.items().iter().enumerate() {
                    rounds += 1;
                    if !self.round(branch, integer(index), item.clone())? {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for (key, item) in map.entries() {
                    rounds += 1;
                    if !self.round(branch, Value::Text(key), item)? {
                        break;
                    }
                }
            }
            other => {
                let why = Fault::want("a list, a map or an integer", other);
                return Err(TemplateError::Function {
                    name: "range".into(),
                    why: reason(&why),
                    position: pipe.position,
                });
            }
        }
        if rounds == 0 {
            return self.list(&branch.otherwise, dot);
        }
        Ok(Flow::On)
    }

    /// One round; whether the next one runs.
    fn round(&mut self, branch: &Branch, key: Value, item: Value) -> Result<bool, TemplateError> {
        let position = branch.pipe.position;
        self.env.budget.round().map_err(|fault| plain(fault, position))?;
        let flow = self.scoped(position, |this| {
            let names = &branch.pipe.variables;
            let values = if names.len() > 1 { vec![key, item.clone()] } else { vec![item.clone()] };
            for (name, value) in names.iter().zip(values) {
                this.set(name, value, branch.pipe.assigns);
            }
            this.list(&branch.body, &item)
        })?;
        Ok(!matches!(flow, Flow::Break))
    }

    fn set(&mut self, name: &Arc<str>, value: Value, assigns: bool) {
        if assigns && let Some((_, slot)) = self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            *slot = value;
            return;
        }
        self.variables.push((Arc::clone(name), value));
    }

    /// A pipeline's value, with its variables set.
    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, TemplateError> {
        let value = self.commands(pipe, dot)?;
        for name in &pipe.variables {
            self.set(name, value.clone(), pipe.assigns);
        }
        Ok(value)
    }

    fn commands(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, TemplateError> {
        if self.depth >= MAX_DEPTH {
            return Err(TemplateError::Budget { limit: Limit::Depth, position: pipe.position });
        }
        self.depth += 1;
        let mut last = None;
        for command in &pipe.commands {
            last = Some(self.command(command, dot, last)?);
        }
        self.depth -= 1;
        // The parser makes no empty pipeline.
        Ok(last.unwrap_or(Value::Nil))
    }

    fn command(
        &mut self,
        command: &Command,
        dot: &Value,
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let Some((first, rest)) = command.args.split_first() else { return Ok(Value::Nil) };
        match &first.kind {
            ExprKind::Function(_) => self.call(first, rest, dot, piped),
            ExprKind::Chain(inner, fields) if matches!(inner.kind, ExprKind::Function(_)) => {
                if let ExprKind::Function(function) = &inner.kind
                    && function.special == Special::Scratch
                {
                    return self.scratch(first.position, fields, rest, dot, piped);
                }
                if !rest.is_empty() || piped.is_some() {
                    return Err(expression(first.position, "a field takes no arguments"));
                }
                let value = self.call(inner, &[], dot, None)?;
                self.fields(value, fields, first.position)
            }
            ExprKind::Nil => Err(expression(first.position, "nil is no command")),
            _ if !rest.is_empty() || piped.is_some() => {
                Err(expression(first.position, "only a function takes arguments; is a | or a name missing?"))
            }
            _ => self.expr(first, dot),
        }
    }

    fn expr(&mut self, expr: &Expr, dot: &Value) -> Result<Value, TemplateError> {
        Ok(match &expr.kind {
            ExprKind::Dot => dot.clone(),
            ExprKind::Nil => Value::Nil,
            ExprKind::Bool(value) => Value::Bool(*value),
            ExprKind::Int(value) => Value::Int(*value),
            ExprKind::Float(value) => Value::Float(*value),
            ExprKind::Text(text) => Value::text(text),
            ExprKind::Field(fields) => self.fields(dot.clone(), fields, expr.position)?,
            ExprKind::Variable(name, fields) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let Some((_, value)) = found else {
                    return Err(expression(expr.position, "this variable has no value here"));
                };
                self.fields(value.clone(), fields, expr.position)?
            }
            ExprKind::Function(_) => self.call(expr, &[], dot, None)?,
            ExprKind::Pipe(pipe) => self.pipe(pipe, dot)?,
            ExprKind::Chain(inner, fields) => {
                if let ExprKind::Function(function) = &inner.kind
                    && function.special == Special::Scratch
                {
                    return self.scratch(expr.position, fields, &[], dot, None);
                }
                let value = self.expr(inner, dot)?;
                self.fields(value, fields, expr.position)?
            }
        })
    }

    fn fields(
        &self,
        mut value: Value,
        fields: &[Arc<str>],
        position: Position,
    ) -> Result<Value, TemplateError> {
        for field in fields {
            let found = match &value {
                Value::Map(_) if field.as_ref() == "pod" && value.is(self.root) => Some(self.pod.clone()),
                Value::Map(map) => map.get(field.as_bytes()),
                Value::Nil => None,
                other => {
                    let of = other.kind();
                    return Err(TemplateError::NoField { field: field.to_string(), of, position });
                }
            };
            let Some(found) = found else {
                return Err(TemplateError::MissingKey { key: Some(field.to_string()), position });
            };
            value = found;
        }
        Ok(value)
    }

    fn call(
        &mut self,
        callee: &Expr,
        rest: &[Expr],
        dot: &Value,
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let ExprKind::Function(function) = &callee.kind else {
            return Err(expression(callee.position, "this is no function"));
        };
        let count = rest.len() + usize::from(piped.is_some());
        let located = |fault: Fault| locate(fault, function.name, callee.position, rest);
        if count < function.least || count > function.most {
            return Err(located(Fault::Arguments));
        }
        if let Special::And | Special::Or = function.special {
            let stop = function.special == Special::Or;
            let mut value = Value::Nil;
            for expr in rest {
                value = self.expr(expr, dot)?;
                if value.truth() == stop {
                    return Ok(value);
                }
            }
            return Ok(piped.unwrap_or(value));
        }
        let mut values = Vec::with_capacity(count);
        for expr in rest {
            values.push(self.expr(expr, dot)?);
        }
        values.extend(piped);
        let cost = values.iter().fold(32_usize, |sum, value| sum.saturating_add(value.weight()));
        self.env.budget.work(cost).map_err(located)?;
        let result = (function.run)(&Args::new(&values, self.env)).map_err(located)?;
        self.env.budget.allows(result.weight()).map_err(located)?;
        Ok(result)
    }

    /// consul-template's scratch pad: `scratch.Set "key" value` and its kin.
    fn scratch(
        &mut self,
        position: Position,
        fields: &[Arc<str>],
        rest: &[Expr],
        dot: &Value,
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let [method] = fields else {
            return Err(expression(position, "scratch has one method after its dot"));
        };
        let mut values = Vec::new();
        for expr in rest {
            values.push(self.expr(expr, dot)?);
        }
        values.extend(piped);
        let cost = values.iter().fold(32_usize, |sum, value| sum.saturating_add(value.weight()));
        let name = format!("scratch.{method}");
        self.env
            .budget
            .work(cost)
            .and_then(|()| super::functions::scratch(method, &Args::new(&values, self.env)))
            .map_err(|fault| locate(fault, &name, position, rest))
    }
}

fn integer(value: usize) -> Value {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

fn expression(position: Position, why: &'static str) -> TemplateError {
    TemplateError::Expression { why, position }
}

/// Faults that come from no function.
fn plain(fault: Fault, position: Position) -> TemplateError {
    match fault {
        Fault::Limit(limit) => TemplateError::Budget { limit, position },
        other => TemplateError::Function { name: "print".into(), why: reason(&other), position },
    }
}

fn reason(fault: &Fault) -> String {
    match fault {
        Fault::Why(why) => (*why).to_owned(),
        Fault::Type { want, got } => format!("takes {want}, not {got}"),
        Fault::Arguments => "wrong number of arguments".into(),
        Fault::Key { .. } => "the key is not there".into(),
        Fault::Limit(limit) => limit.to_string(),
        Fault::Fail { .. } => "the template called fail".into(),
        Fault::NotRead(_) => "the secret was not read".into(),
    }
}

fn literal(exprs: &[Expr], index: usize) -> Option<String> {
    match &exprs.get(index)?.kind {
        ExprKind::Text(text) => String::from_utf8(text.to_vec()).ok(),
        ExprKind::Int(value) => Some(value.to_string()),
        _ => None,
    }
}

/// A fault with its place. Only what is written in the template is shown: a computed key may be a secret.
pub(super) fn locate(fault: Fault, name: &str, position: Position, exprs: &[Expr]) -> TemplateError {
    match fault {
        Fault::Key { argument } => TemplateError::MissingKey { key: literal(exprs, argument), position },
        Fault::Limit(limit) => TemplateError::Budget { limit, position },
        Fault::Fail { argument } => TemplateError::Failed { message: literal(exprs, argument), position },
        Fault::NotRead(path) => TemplateError::NotRead { path, position },
        other => TemplateError::Function { name: name.to_owned(), why: reason(&other), position },
    }
}

pub(super) fn key(text: &str) -> Text {
    Rc::from(text.as_bytes())
}
