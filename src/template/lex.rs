//! Text to tokens, by the rules of Go's text/template/parse.
//!
//! Written here because the crate we tried accepts `{{if .x}}` without its `{{end}}` and drops the rest of
//! a file after a stray `{{end}}`: both would deliver a truncated file without an error.

use std::rc::Rc;

use super::{Position, TemplateError};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Literal text outside delimiters.
    Text(Vec<u8>),
    Open,
    Close,
    Space,
    Pipe,
    LeftParen,
    RightParen,
    Comma,
    /// `=`.
    Assign,
    /// `:=`.
    Declare,
    Dot,
    /// `.name`.
    Field(Rc<str>),
    /// `$name`, with the dollar.
    Variable(Rc<str>),
    /// A function name.
    Identifier(Rc<str>),
    Keyword(Keyword),
    Bool(bool),
    Int(i64),
    Float(f64),
    Quoted(Vec<u8>),
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyword {
    Block,
    Break,
    Continue,
    Define,
    Else,
    End,
    If,
    Nil,
    Range,
    Template,
    With,
}

impl Keyword {
    fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "block" => Self::Block,
            "break" => Self::Break,
            "continue" => Self::Continue,
            "define" => Self::Define,
            "else" => Self::Else,
            "end" => Self::End,
            "if" => Self::If,
            "nil" => Self::Nil,
            "range" => Self::Range,
            "template" => Self::Template,
            "with" => Self::With,
            _ => return None,
        })
    }
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) position: Position,
}

const TRIMMED: [char; 4] = [' ', '\t', '\r', '\n'];

/// Splits `text` into tokens; the last one is [`Kind::End`].
pub(super) fn tokens(text: &str, left: &str, right: &str) -> Result<Vec<Token>, TemplateError> {
    Lexer { text, at: 0, position: Position { line: 1, column: 1 }, left, right, tokens: Vec::new() }.run()
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    position: Position,
    left: &'a str,
    right: &'a str,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    fn run(mut self) -> Result<Vec<Token>, TemplateError> {
        let mut trim_next = false;
        loop {
            let found = self.rest().find(self.left);
            let mut literal = &self.rest()[..found.unwrap_or(self.rest().len())];
            if trim_next {
                literal = literal.trim_start_matches(TRIMMED);
            }
            if found.is_some() {
                let after = &self.rest()[found.unwrap_or(0) + self.left.len()..];
                if trims_left(after) {
                    literal = literal.trim_end_matches(TRIMMED);
                }
            }
            if !literal.is_empty() {
                self.push(Kind::Text(literal.as_bytes().to_vec()));
            }
            let Some(found) = found else { break };
            self.advance(found);
            trim_next = self.action()?;
        }
        let length = self.rest().len();
        self.advance(length);
        self.push(Kind::End);
        Ok(self.tokens)
    }

    /// One action or comment, from its left delimiter on; whether its end trims the text that follows.
    fn action(&mut self) -> Result<bool, TemplateError> {
        let opened = self.position;
        self.advance(self.left.len());
        let trimmed = if trims_left(self.rest()) { 2 } else { 0 };
        if self.rest()[trimmed..].starts_with("/*") {
            self.advance(trimmed + 2);
            let Some(end) = self.rest().find("*/") else {
                return Err(TemplateError::syntax(opened, "this comment is never closed by */"));
            };
            self.advance(end + 2);
            return match self.closes() {
                Some((length, trims)) => {
                    self.advance(length);
                    Ok(trims)
                }
                None => Err(TemplateError::syntax(
                    self.position,
                    "a comment must be alone in its action: the right delimiter follows */",
                )),
            };
        }
        self.tokens.push(Token { kind: Kind::Open, position: opened });
        self.advance(trimmed);
        let mut parens = 0_usize;
        loop {
            if let Some((length, trims)) = self.closes() {
                if parens > 0 {
                    return Err(TemplateError::syntax(self.position, "a ( in this action has no )"));
                }
                self.push(Kind::Close);
                self.advance(length);
                return Ok(trims);
            }
            let Some(first) = self.rest().chars().next() else {
                return Err(TemplateError::syntax(opened, "this action is never closed"));
            };
            match first {
                c if TRIMMED.contains(&c) => {
                    let length = self.rest().len() - self.rest().trim_start_matches(TRIMMED).len();
                    self.push(Kind::Space);
                    // A trim marker needs a space: its last one is left for `closes`.
                    let marker = self.rest()[length..].strip_prefix('-');
                    let keep = usize::from(marker.is_some_and(|after| after.starts_with(self.right)));
                    self.advance(length - keep);
                }
                '|' => self.single(Kind::Pipe),
                ',' => self.single(Kind::Comma),
                '=' => self.single(Kind::Assign),
                '(' => {
                    parens += 1;
                    self.single(Kind::LeftParen);
                }
                ')' => {
                    let Some(left) = parens.checked_sub(1) else {
                        return Err(TemplateError::syntax(self.position, "this ) closes nothing"));
                    };
                    parens = left;
                    self.single(Kind::RightParen);
                }
                ':' => {
                    if !self.rest().starts_with(":=") {
                        return Err(TemplateError::syntax(self.position, "expected := after a variable"));
                    }
                    self.push(Kind::Declare);
                    self.advance(2);
                }
                '"' => self.quoted()?,
                '`' => self.raw()?,
                '\'' => self.character()?,
                '$' => {
                    let name = self.word(1);
                    self.push(Kind::Variable(Rc::from(&self.rest()[..1 + name])));
                    self.advance(1 + name);
                    self.terminated()?;
                }
                '.' if !self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                    let name = self.word(1);
                    let kind = match name {
                        0 => Kind::Dot,
                        _ => Kind::Field(Rc::from(&self.rest()[1..1 + name])),
                    };
                    self.push(kind);
                    self.advance(1 + name);
                    self.terminated()?;
                }
                '+' | '-' | '.' | '0'..='9' => self.number()?,
                c if c.is_alphanumeric() || c == '_' => self.identifier()?,
                _ => return Err(self.bad_character()),
            }
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn advance(&mut self, bytes: usize) {
        for character in self.text[self.at..self.at + bytes].chars() {
            if character == '\n' {
                self.position.line += 1;
                self.position.column = 1;
            } else {
                self.position.column += 1;
            }
        }
        self.at += bytes;
    }

    fn push(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, position: self.position });
    }

    fn single(&mut self, kind: Kind) {
        self.push(kind);
        self.advance(1);
    }

    /// The right delimiter here, with or without a trim marker: its length, and whether it trims.
    fn closes(&self) -> Option<(usize, bool)> {
        let rest = self.rest();
        if rest.starts_with(self.right) {
            return Some((self.right.len(), false));
        }
        let after = rest.strip_prefix(TRIMMED)?.strip_prefix('-')?;
        after.starts_with(self.right).then_some((2 + self.right.len(), true))
    }

    /// Bytes of a word that starts `skip` bytes from here.
    fn word(&self, skip: usize) -> usize {
        let rest = &self.rest()[skip..];
        rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())
    }

    fn terminated(&self) -> Result<(), TemplateError> {
        let rest = self.rest();
        let ended = rest.is_empty()
            || rest.starts_with(|c: char| TRIMMED.contains(&c) || ".,|:)(=".contains(c))
            || rest.starts_with(self.right);
        if ended { Ok(()) } else { Err(self.bad_character()) }
    }

    fn bad_character(&self) -> TemplateError {
        let why = match self.rest().chars().next() {
            Some('-') => "this - is no operator; a key with a dash needs index: {{ index . \"a-key\" }}",
            Some('}') => "this } is not the whole right delimiter",
            _ => "this character has no meaning inside an action",
        };
        TemplateError::syntax(self.position, why)
    }

    fn identifier(&mut self) -> Result<(), TemplateError> {
        let length = self.word(0);
        let word = &self.rest()[..length];
        let kind = match word {
            "true" => Kind::Bool(true),
            "false" => Kind::Bool(false),
            _ => match Keyword::from_word(word) {
                Some(keyword) => Kind::Keyword(keyword),
                None => Kind::Identifier(Rc::from(word)),
            },
        };
        self.push(kind);
        self.advance(length);
        self.terminated()
    }

    fn raw(&mut self) -> Result<(), TemplateError> {
        let Some(end) = self.rest()[1..].find('`') else {
            return Err(TemplateError::syntax(self.position, "this ` string is never closed"));
        };
        // Go drops carriage returns from raw strings.
        let content = self.rest()[1..=end].bytes().filter(|byte| *byte != b'\r').collect();
        self.push(Kind::Quoted(content));
        self.advance(end + 2);
        Ok(())
    }

    fn quoted(&mut self) -> Result<(), TemplateError> {
        let mut content = Vec::new();
        let mut rest = &self.rest()[1..];
        loop {
            match rest.chars().next() {
                None | Some('\n') => {
                    return Err(TemplateError::syntax(
                        self.position,
                        "this \" string is not closed on its line",
                    ));
                }
                Some('"') => break,
                Some(_) => {
                    let Some((bytes, after)) = unescape(rest, '"') else {
                        return Err(TemplateError::syntax(
                            self.position,
                            "an escape in this string is not Go's",
                        ));
                    };
                    content.extend_from_slice(&bytes);
                    rest = after;
                }
            }
        }
        self.push(Kind::Quoted(content));
        let length = self.rest().len() - rest.len() + 1;
        self.advance(length);
        Ok(())
    }

    fn character(&mut self) -> Result<(), TemplateError> {
        let wrong = TemplateError::syntax(self.position, "a ' constant holds one character; strings take \"");
        let Some((bytes, after)) = unescape(&self.rest()[1..], '\'') else { return Err(wrong) };
        if !after.starts_with('\'') || self.rest()[1..].starts_with(['\'', '\n']) {
            return Err(wrong);
        }
        let value = match std::str::from_utf8(&bytes).ok().and_then(|text| text.chars().next()) {
            Some(character) => u32::from(character),
            None => bytes.first().copied().map_or(0, u32::from),
        };
        self.push(Kind::Int(i64::from(value)));
        let length = self.rest().len() - after.len() + 1;
        self.advance(length);
        self.terminated()
    }

    fn number(&mut self) -> Result<(), TemplateError> {
        let rest = self.rest();
        let mut length = 0;
        let mut previous = ' ';
        let hex = rest.trim_start_matches(['+', '-']).to_ascii_lowercase().starts_with("0x");
        for character in rest.chars() {
            let sign = (character == '+' || character == '-')
                && (length == 0 || matches!((previous, hex), ('e' | 'E', false) | ('p' | 'P', _)));
            if !(sign || character.is_ascii_alphanumeric() || character == '.' || character == '_') {
                break;
            }
            previous = character;
            length += character.len_utf8();
        }
        let Some(kind) = number(&rest[..length]) else {
            return Err(TemplateError::syntax(self.position, "this is not a number of Go's"));
        };
        self.push(kind);
        self.advance(length);
        self.terminated()
    }
}

fn trims_left(after_delimiter: &str) -> bool {
    after_delimiter.strip_prefix('-').is_some_and(|rest| rest.starts_with(TRIMMED))
}

fn number(text: &str) -> Option<Kind> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'+' => (false, &text[1..]),
        b'-' => (true, &text[1..]),
        _ => (false, text),
    };
    let plain: String = digits.chars().filter(|c| *c != '_').collect();
    let lower = plain.to_ascii_lowercase();
    let (radix, body) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        _ if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit()) => {
            (8, &lower[1..])
        }
        _ => (10, lower.as_str()),
    };
    if !body.starts_with(['+', '-'])
        && let Ok(value) = i128::from_str_radix(body, radix)
    {
        return i64::try_from(if negative { -value } else { value }).ok().map(Kind::Int);
    }
    if radix != 10 || !lower.bytes().all(|b| b.is_ascii_digit() || b"+-.e".contains(&b)) {
        return None;
    }
    let value: f64 = lower.parse().ok()?;
    value.is_finite().then_some(Kind::Float(if negative { -value } else { value }))
}

/// One character of a Go string literal: its bytes, and what follows.
fn unescape(text: &str, quote: char) -> Option<(Vec<u8>, &str)> {
    let mut characters = text.chars();
    let first = characters.next()?;
    if first != '\\' {
        let mut buffer = [0; 4];
        return Some((first.encode_utf8(&mut buffer).as_bytes().to_vec(), characters.as_str()));
    }
    let escape = characters.next()?;
    let rest = characters.as_str();
    let simple = match escape {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' => b'\\',
        c if c == quote => c as u8,
        'x' => return byte(rest, 16, 2, 0),
        '0'..='7' => return byte(rest, 8, 2, escape.to_digit(8)?),
        'u' => return code_point(rest, 4),
        'U' => return code_point(rest, 8),
        _ => return None,
    };
    Some((vec![simple], rest))
}

fn byte(text: &str, radix: u32, digits: usize, start: u32) -> Option<(Vec<u8>, &str)> {
    let mut value = start;
    for digit in text.get(..digits)?.chars() {
        value = value * radix + digit.to_digit(radix)?;
    }
    Some((vec![u8::try_from(value).ok()?], &text[digits..]))
}

fn code_point(text: &str, digits: usize) -> Option<(Vec<u8>, &str)> {
    let mut value = 0_u32;
    for digit in text.get(..digits)?.chars() {
        value = value.checked_mul(16)?.checked_add(digit.to_digit(16)?)?;
    }
    let character = char::from_u32(value)?;
    Some((character.to_string().into_bytes(), &text[digits..]))
}
