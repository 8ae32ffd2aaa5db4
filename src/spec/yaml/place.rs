//! Follows a scalar's text through the document it is written in, by YAML's rules of folding and escapes.

use std::iter::Peekable;

use serde_saphyr::granit_parser::{ScalarStyle, Span};

use crate::{
    spec::origin::{Origin, Run},
    template::Position,
};

/// Where the characters of `text` stand, which is the value of the scalar at `span` of `source`.
pub(super) fn of(text: &str, style: ScalarStyle, span: Span, source: &str) -> Origin {
    let start = Position { line: span.start.line(), column: span.start.col() + 1 };
    let written = span.slice(source).unwrap_or_default();
    match style {
        // It starts at the first line that is not blank.
        ScalarStyle::Literal => {
            let blank = text.bytes().take_while(|byte| *byte == b'\n').count();
            Origin::Lines(Position { line: start.line.saturating_sub(blank).max(1), ..start })
        }
        ScalarStyle::Folded => folded(text, written, start),
        ScalarStyle::Plain if !written.contains(['\n', '\r']) => Origin::Lines(start),
        ScalarStyle::Plain => Walk::new(written, start).flow(None),
        ScalarStyle::SingleQuoted => Walk::new(written, start).flow(Some('\'')),
        ScalarStyle::DoubleQuoted => Walk::new(written, start).flow(Some('"')),
    }
}

/// `>`: a line break is a space or some line breaks of the text, whichever stands there.
fn folded(text: &str, written: &str, start: Position) -> Origin {
    let mut rest = text.chars().peekable();
    let mut from = skip(&mut rest, |c| c == '\n');
    let mut runs = vec![Run { from, at: start }];
    let mut lines = written.lines().zip(start.line..);
    let mut taken = lines.next().map_or(0, |(line, _)| line.chars().count());
    for (line, number) in lines {
        let indented: String = line.chars().skip(start.column - 1).collect();
        if indented.is_empty() {
            continue;
        }
        from += rest.by_ref().take(taken).count();
        let breaks = skip(&mut rest, |c| c == '\n');
        from += if breaks > 0 { breaks } else { rest.next().map_or(0, |_| 1) };
        taken = indented.chars().count();
        runs.push(Run { from, at: Position { line: number, column: start.column } });
    }
    Origin::Runs(runs.into())
}

fn skip<I: Iterator<Item = char>>(rest: &mut Peekable<I>, is: fn(char) -> bool) -> usize {
    std::iter::from_fn(|| rest.next_if(|c| is(*c))).count()
}

struct Walk<'a> {
    rest: &'a str,
    at: Position,
    /// Characters of the text so far.
    count: usize,
    runs: Vec<Run>,
}

impl<'a> Walk<'a> {
    fn new(written: &'a str, start: Position) -> Self {
        Self { rest: written, at: start, count: 0, runs: Vec::new() }
    }

    /// A plain or quoted scalar.
    fn flow(mut self, quote: Option<char>) -> Origin {
        if quote.is_some() {
            self.pass(1);
        }
        self.run();
        while let Some(first) = self.rest.chars().next() {
            match (first, quote) {
                (' ' | '\t' | '\n' | '\r', _) => self.space(),
                ('\'', Some('\'')) if self.rest.starts_with("''") => self.escape(2),
                ('\\', Some('"')) => self.backslash(),
                (end, Some(quote)) if end == quote => break,
                _ => {
                    self.pass(1);
                    self.count += 1;
                }
            }
        }
        match self.runs.as_slice() {
            [only] => Origin::Lines(only.at),
            _ => Origin::Runs(self.runs.into()),
        }
    }

    /// Blanks, which count, or blanks around line breaks: the first break is a space unless more follow.
    fn space(&mut self) {
        let length = self.rest.len() - self.rest.trim_start_matches([' ', '\t']).len();
        self.pass(length);
        if self.rest.starts_with(['\n', '\r']) {
            let breaks = self.breaks();
            self.count += (breaks - 1).max(1);
            self.run();
        } else {
            self.count += length;
        }
    }

    /// Line breaks and the blanks between and after them; how many breaks.
    fn breaks(&mut self) -> usize {
        let mut breaks = 0;
        loop {
            let length = match self.rest.as_bytes() {
                [b'\r', b'\n', ..] => 2,
                [b'\n' | b'\r', ..] => 1,
                [b' ' | b'\t', ..] => {
                    self.pass(1);
                    continue;
                }
                _ => return breaks,
            };
            breaks += 1;
            self.rest = &self.rest[length..];
            self.at = Position { line: self.at.line + 1, column: 1 };
        }
    }

    fn backslash(&mut self) {
        let digits = match self.rest[1..].chars().next() {
            Some('\n' | '\r') => {
                self.pass(1);
                self.count += self.breaks() - 1;
                return self.run();
            }
            Some('x') => 2,
            // JSON writes a character beyond U+FFFF as two.
            Some('u') if is_half(self.rest) => 4 + 6,
            Some('u') => 4,
            Some('U') => 8,
            _ => 0,
        };
        self.escape(2 + digits);
    }

    /// So many characters are one of the text.
    fn escape(&mut self, characters: usize) {
        self.pass(characters);
        self.count += 1;
        self.run();
    }

    fn pass(&mut self, characters: usize) {
        let bytes = self.rest.chars().take(characters).map(char::len_utf8).sum();
        self.rest = &self.rest[bytes..];
        self.at.column += characters;
    }

    fn run(&mut self) {
        match self.runs.last_mut() {
            Some(last) if last.from == self.count => last.at = self.at,
            _ => self.runs.push(Run { from: self.count, at: self.at }),
        }
    }
}

fn is_half(escape: &str) -> bool {
    escape
        .get(2..6)
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .is_some_and(|code| (0xD800..0xDC00).contains(&code))
}
