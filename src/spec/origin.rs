//! Where a text was written: what an error within it can point to.

use std::sync::Arc;

use super::values::quote;
use crate::template::Position;

/// Where the characters of a text stand in the document that it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Origin {
    /// Not known.
    #[default]
    Unknown,
    /// The text is this file's.
    File(String),
    /// Its lines are lines of the document, all indented by as much: here is the first character.
    Lines(Position),
    /// Pieces that stand in the document as they are, in order: a scalar that is folded, or has escapes.
    Runs(Arc<[Run]>),
}

/// A piece of a text, to the beginning of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Run {
    /// Characters of the text before it.
    pub from: usize,
    /// Where it begins in the document.
    pub at: Position,
}

impl Origin {
    /// Where the character at `at` of `text` stands in the document.
    pub fn locate(&self, text: &str, at: Position) -> Option<Position> {
        match self {
            Self::Unknown | Self::File(_) => None,
            Self::Lines(first) => Some(beyond(*first, at)),
            Self::Runs(runs) => {
                let before = text.split('\n').take(at.line - 1).map(|line| line.chars().count() + 1);
                let index = before.sum::<usize>() + at.column - 1;
                let run = &runs[runs.partition_point(|run| run.from <= index).checked_sub(1)?];
                Some(Position { column: run.at.column + index - run.from, ..run.at })
            }
        }
    }

    /// The place of `why`, and `why`; which names the place within the text where that is all that is known.
    pub(crate) fn tell(&self, text: &str, at: Position, why: &str) -> (Option<Position>, String) {
        match (self.locate(text, at), self) {
            (Some(place), _) => (Some(place), why.to_owned()),
            (None, Self::File(path)) => (None, format!("{at} of {}: {why}", quote(path))),
            (None, _) => (None, format!("{at} of it: {why}")),
        }
    }

    /// The same in the document around that document, of which this is the text at `outer`.
    pub(crate) fn within(&self, outer: &Self) -> Self {
        match (self, outer) {
            (Self::Lines(first), Self::Lines(outer)) => Self::Lines(beyond(*outer, *first)),
            (Self::Runs(runs), Self::Lines(outer)) => {
                Self::Runs(runs.iter().map(|run| Run { at: beyond(*outer, run.at), ..*run }).collect())
            }
            _ => Self::Unknown,
        }
    }

    /// The line of the document for one of the text, where lines are lines.
    pub(crate) fn line(&self, line: u64) -> Option<u64> {
        let Self::Lines(first) = self else { return None };
        Some(first.line as u64 + line - 1)
    }
}

fn beyond(first: Position, at: Position) -> Position {
    Position { line: first.line + at.line - 1, column: first.column + at.column - 1 }
}
