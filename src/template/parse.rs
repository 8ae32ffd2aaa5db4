//! Tokens to a tree, with every check Go makes at parse time, and one more: named templates must exist.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use super::{
    Position, TemplateError,
    functions::{self, Dialect, Function},
    lex::{self, Keyword, Kind, Token},
};

/// Nesting of blocks and parentheses; the evaluator recurses as deep, on a stack of 2 MiB.
const MAX_NESTING: usize = 64;

#[derive(Debug)]
pub(super) enum Node {
    Text(Position, Arc<[u8]>),
    Action(Pipe),
    If(Branch),
    Range(Branch),
    With(Branch),
    Template { position: Position, name: Arc<str>, pipe: Option<Pipe> },
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct Branch {
    pub(super) pipe: Pipe,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) position: Position,
    /// Variables set by it, with their dollars.
    pub(super) variables: Vec<Arc<str>>,
    /// `=` rather than `:=`.
    pub(super) assigns: bool,
    pub(super) commands: Vec<Command>,
}

#[derive(Debug)]
pub(super) struct Command {
    /// Never empty.
    pub(super) args: Vec<Expr>,
}

#[derive(Debug)]
pub(super) struct Expr {
    pub(super) position: Position,
    pub(super) kind: ExprKind,
}

#[derive(Debug)]
pub(super) enum ExprKind {
    Dot,
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Arc<[u8]>),
    Field(Vec<Arc<str>>),
    Variable(Arc<str>, Vec<Arc<str>>),
    Function(&'static Function),
    Pipe(Box<Pipe>),
    Chain(Box<Expr>, Vec<Arc<str>>),
}

/// A parsed template: the body, and the named ones.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) body: Vec<Node>,
    pub(super) named: BTreeMap<Arc<str>, Vec<Node>>,
}

/// Why a list of nodes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    End,
    Else,
    OfText,
}

pub(super) fn parse(text: &str, left: &str, right: &str) -> Result<Tree, TemplateError> {
    let tokens = lex::tokens(text, left, right)?;
    let names = tokens.iter().filter_map(|token| match &token.kind {
        Kind::Identifier(name) => Some(name.as_ref()),
        _ => None,
    });
    let dialect = Dialect::of(names);
    let mut parser = Parser {
        tokens,
        at: 0,
        dialect,
        variables: vec![Rc::from("$")],
        loops: 0,
        nesting: 0,
        named: BTreeMap::new(),
        called: Vec::new(),
    };
    let start = parser.position();
    let (body, ended) = parser.list(true)?;
    if ended != Ended::OfText {
        let position = parser.tokens[parser.at.saturating_sub(1)].position;
        let why =
            if ended == Ended::End { "this {{end}} closes nothing" } else { "this {{else}} has no {{if}}" };
        return Err(TemplateError::syntax(if parser.at == 0 { start } else { position }, why));
    }
    for (name, position) in &parser.called {
        if !parser.named.contains_key(name) {
            return Err(TemplateError::syntax(*position, "no {{define}} has this template's name"));
        }
    }
    Ok(Tree { body, named: parser.named })
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    dialect: Dialect,
    variables: Vec<Rc<str>>,
    loops: usize,
    nesting: usize,
    named: BTreeMap<Arc<str>, Vec<Node>>,
    called: Vec<(Arc<str>, Position)>,
}

impl Parser {
    fn kind(&self) -> &Kind {
        &self.tokens[self.at].kind
    }

    fn position(&self) -> Position {
        self.tokens[self.at].position
    }

    /// The next token; the end of the text is never passed.
    fn next(&mut self) -> Token {
        let token = self.tokens[self.at].clone();
        if token.kind != Kind::End {
            self.at += 1;
        }
        token
    }

    fn skip_space(&mut self) {
        while *self.kind() == Kind::Space {
            self.at += 1;
        }
    }

    fn wrong<T>(&self, why: &'static str) -> Result<T, TemplateError> {
        Err(TemplateError::syntax(self.position(), why))
    }

    fn enter(&mut self) -> Result<(), TemplateError> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING { self.wrong("nested deeper than 64") } else { Ok(()) }
    }

    fn close(&mut self) -> Result<(), TemplateError> {
        self.skip_space();
        if *self.kind() != Kind::Close {
            return self.wrong("expected the right delimiter here");
        }
        self.next();
        Ok(())
    }

    /// Nodes until `{{end}}` (passed), `{{else` (passed, its rest is not) or the end of the text.
    fn list(&mut self, top: bool) -> Result<(Vec<Node>, Ended), TemplateError> {
        self.enter()?;
        let mut nodes = Vec::new();
        let ended = loop {
            let token = self.next();
            match token.kind {
                Kind::End => break Ended::OfText,
                Kind::Text(text) => nodes.push(Node::Text(token.position, Arc::from(text))),
                Kind::Open => {
                    self.skip_space();
                    if let Kind::Keyword(keyword) = *self.kind() {
                        match keyword {
                            Keyword::End => {
                                self.next();
                                self.close()?;
                                break Ended::End;
                            }
                            Keyword::Else => {
                                self.next();
                                break Ended::Else;
                            }
                            _ => self.control(keyword, token.position, top, &mut nodes)?,
                        }
                    } else {
                        let pipe = self.pipeline(&Kind::Close, 1)?;
                        nodes.push(Node::Action(pipe));
                    }
                }
                _ => return Err(TemplateError::syntax(token.position, "unexpected here")),
            }
        };
        self.nesting -= 1;
        Ok((nodes, ended))
    }

    fn control(
        &mut self,
        keyword: Keyword,
        opened: Position,
        top: bool,
        nodes: &mut Vec<Node>,
    ) -> Result<(), TemplateError> {
        let position = self.position();
        match keyword {
            Keyword::If | Keyword::With | Keyword::Range => {
                self.next();
                let branch = self.branch(keyword, opened)?;
                nodes.push(match keyword {
                    Keyword::If => Node::If(branch),
                    Keyword::With => Node::With(branch),
                    _ => Node::Range(branch),
                });
            }
            Keyword::Break | Keyword::Continue => {
                if self.loops == 0 {
                    return self.wrong("{{break}} and {{continue}} belong inside {{range}}");
                }
                self.next();
                self.close()?;
                nodes.push(if keyword == Keyword::Break { Node::Break } else { Node::Continue });
            }
            Keyword::Define => {
                if !top {
                    return self.wrong("{{define}} belongs at the top level");
                }
                self.next();
                let name = self.name()?;
                self.close()?;
                self.definition(name, opened)?;
            }
            Keyword::Block => {
                self.next();
                let name = self.name()?;
                let pipe = self.pipeline(&Kind::Close, 0)?;
                self.definition(Arc::clone(&name), opened)?;
                nodes.push(Node::Template { position, name, pipe: Some(pipe) });
            }
            Keyword::Template => {
                self.next();
                let name = self.name()?;
                self.skip_space();
                let pipe = if *self.kind() == Kind::Close {
                    self.next();
                    None
                } else {
                    Some(self.pipeline(&Kind::Close, 0)?)
                };
                self.called.push((Arc::clone(&name), position));
                nodes.push(Node::Template { position, name, pipe });
            }
            Keyword::Nil => return self.wrong("nil is no command"),
            Keyword::Else | Keyword::End => return self.wrong("unexpected here"),
        }
        Ok(())
    }

    /// A template's name: a string constant.
    fn name(&mut self) -> Result<Arc<str>, TemplateError> {
        self.skip_space();
        let token = self.next();
        match token.kind {
            Kind::Quoted(name) => match String::from_utf8(name) {
                Ok(name) => Ok(Arc::from(name)),
                Err(_) => Err(TemplateError::syntax(token.position, "a template's name is text")),
            },
            _ => Err(TemplateError::syntax(token.position, "a template's name is a quoted string")),
        }
    }

    fn definition(&mut self, name: Arc<str>, opened: Position) -> Result<(), TemplateError> {
        // Named templates see none of the variables around them, as in Go.
        let outer = std::mem::replace(&mut self.variables, vec![Rc::from("$")]);
        let loops = std::mem::replace(&mut self.loops, 0);
        let (body, ended) = self.list(false)?;
        if ended != Ended::End {
            return Err(TemplateError::syntax(opened, "this {{define}} or {{block}} has no {{end}}"));
        }
        self.variables = outer;
        self.loops = loops;
        if self.named.insert(name, body).is_some() {
            return Err(TemplateError::syntax(opened, "this template is defined twice"));
        }
        Ok(())
    }

    fn branch(&mut self, keyword: Keyword, opened: Position) -> Result<Branch, TemplateError> {
        let scope = self.variables.len();
        let pipe = self.pipeline(&Kind::Close, if keyword == Keyword::Range { 2 } else { 1 })?;
        self.loops += usize::from(keyword == Keyword::Range);
        let (body, ended) = self.list(false)?;
        self.loops -= usize::from(keyword == Keyword::Range);
        let otherwise = match ended {
            Ended::End => Vec::new(),
            Ended::OfText => return Err(TemplateError::syntax(opened, "this block has no {{end}}")),
            Ended::Else => {
                self.skip_space();
                match *self.kind() {
                    // `{{else if}}` is `{{else}}{{if}}` with one {{end}} for both; likewise with.
                    Kind::Keyword(inner @ (Keyword::If | Keyword::With)) if inner == keyword => {
                        let position = self.position();
                        self.enter()?;
                        self.next();
                        let branch = self.branch(inner, position)?;
                        self.nesting -= 1;
                        vec![if inner == Keyword::If { Node::If(branch) } else { Node::With(branch) }]
                    }
                    _ => {
                        self.close()?;
                        match self.list(false)? {
                            (nodes, Ended::End) => nodes,
                            (_, Ended::Else) => {
                                return self.wrong("expected {{end}}, found another {{else}}");
                            }
                            _ => return Err(TemplateError::syntax(opened, "this block has no {{end}}")),
                        }
                    }
                }
            }
        };
        self.variables.truncate(scope);
        Ok(Branch { pipe, body, otherwise })
    }

    /// A pipeline up to and with `end`; at most `declares` variables may be set by it.
    fn pipeline(&mut self, end: &Kind, declares: usize) -> Result<Pipe, TemplateError> {
        self.skip_space();
        let position = self.position();
        let (variables, assigns) = self.declaration(declares)?;
        let mut commands = Vec::new();
        loop {
            self.skip_space();
            if self.kind() == end {
                self.next();
                break;
            }
            let (command, more) = self.command(end)?;
            if !commands.is_empty() && !matches!(command.args[0].kind, ExprKind::Function(_)) {
                let chained = matches!(&command.args[0].kind,
                    ExprKind::Chain(inner, _) if matches!(inner.kind, ExprKind::Function(_)));
                if !chained {
                    let position = command.args[0].position;
                    return Err(TemplateError::syntax(position, "only a function can follow |"));
                }
            }
            commands.push(command);
            if more {
                self.skip_space();
                if self.kind() == end {
                    return self.wrong("a command is missing after |");
                }
            }
        }
        if commands.is_empty() {
            return Err(TemplateError::syntax(position, "a value is missing here"));
        }
        if !assigns {
            self.variables.extend(variables.iter().map(|name| Rc::from(name.as_ref())));
        }
        Ok(Pipe { position, variables, assigns, commands })
    }

    /// `$x :=`, `$x =`, `$i, $x :=`, if that is what stands here.
    fn declaration(&mut self, allowed: usize) -> Result<(Vec<Arc<str>>, bool), TemplateError> {
        let start = self.at;
        let mut names = Vec::new();
        while let Kind::Variable(name) = self.kind().clone() {
            let position = self.position();
            self.next();
            self.skip_space();
            names.push(Arc::<str>::from(name.as_ref()));
            match *self.kind() {
                Kind::Comma => {
                    self.next();
                    self.skip_space();
                    if !matches!(self.kind(), Kind::Variable(_)) {
                        return self.wrong("a variable is missing after the comma");
                    }
                }
                Kind::Declare | Kind::Assign => {
                    if names.len() > allowed {
                        let why = if allowed == 0 {
                            "a variable cannot be set here"
                        } else {
                            "so many variables can only be set by {{range}}"
                        };
                        return Err(TemplateError::syntax(position, why));
                    }
                    let assigns = *self.kind() == Kind::Assign;
                    if assigns {
                        for name in &names {
                            self.declared(name, position)?;
                        }
                    }
                    self.next();
                    return Ok((names, assigns));
                }
                _ if names.len() > 1 => return self.wrong("expected := or = after these variables"),
                _ => break,
            }
        }
        self.at = start;
        Ok((Vec::new(), false))
    }

    fn declared(&self, name: &str, position: Position) -> Result<(), TemplateError> {
        if self.variables.iter().any(|known| known.as_ref() == name) {
            Ok(())
        } else {
            Err(TemplateError::syntax(position, "this variable was never set with :="))
        }
    }

    /// A command, and whether a | followed.
    fn command(&mut self, end: &Kind) -> Result<(Command, bool), TemplateError> {
        let mut args = Vec::new();
        let more = loop {
            self.skip_space();
            if self.kind() == end {
                break false;
            }
            if *self.kind() == Kind::Pipe {
                if args.is_empty() {
                    return self.wrong("a command is missing before |");
                }
                self.next();
                break true;
            }
            args.push(self.operand()?);
            match self.kind() {
                Kind::Space | Kind::Pipe => {}
                kind if kind == end => {}
                Kind::Close => return self.wrong("a ( has no )"),
                _ => return self.wrong("a space is missing, or this does not belong here"),
            }
        };
        if args.is_empty() { self.wrong("a value is missing here") } else { Ok((Command { args }, more)) }
    }

    fn operand(&mut self) -> Result<Expr, TemplateError> {
        let token = self.next();
        let position = token.position;
        let kind = match token.kind {
            Kind::Dot => ExprKind::Dot,
            Kind::Keyword(Keyword::Nil) => ExprKind::Nil,
            Kind::Bool(value) => ExprKind::Bool(value),
            Kind::Int(value) => ExprKind::Int(value),
            Kind::Float(value) => ExprKind::Float(value),
            Kind::Quoted(text) => ExprKind::Text(Arc::from(text)),
            Kind::Field(name) => ExprKind::Field(vec![Arc::from(name.as_ref())]),
            Kind::Variable(name) => {
                self.declared(&name, position)?;
                ExprKind::Variable(Arc::from(name.as_ref()), Vec::new())
            }
            Kind::Identifier(name) => ExprKind::Function(functions::find(&name, self.dialect, position)?),
            Kind::LeftParen => {
                self.enter()?;
                let pipe = self.pipeline(&Kind::RightParen, 1)?;
                self.nesting -= 1;
                ExprKind::Pipe(Box::new(pipe))
            }
            Kind::Keyword(_) => {
                return Err(TemplateError::syntax(position, "this keyword must come first in its action"));
            }
            Kind::End => return Err(TemplateError::syntax(position, "the template ends within an action")),
            _ => return Err(TemplateError::syntax(position, "a value was expected here")),
        };
        let mut fields = Vec::new();
        while let Kind::Field(name) = self.kind().clone() {
            fields.push(Arc::<str>::from(name.as_ref()));
            self.next();
        }
        if fields.is_empty() {
            return Ok(Expr { position, kind });
        }
        let kind = match kind {
            ExprKind::Field(mut names) => {
                names.append(&mut fields);
                ExprKind::Field(names)
            }
            ExprKind::Variable(name, _) => ExprKind::Variable(name, fields),
            kind @ (ExprKind::Function(_) | ExprKind::Pipe(_)) => {
                ExprKind::Chain(Box::new(Expr { position, kind }), fields)
            }
            _ => return Err(TemplateError::syntax(position, "a constant has no fields")),
        };
        Ok(Expr { position, kind })
    }
}
