//! Other people's configuration in, ours out: External Secrets Operator, the Vault Agent injector's
//! annotations, and Vault Agent's own files.
//!
//! Pure: text to text, the same for the same input. What changes its meaning on the way is a [`Note`], and so is
//! what cannot be carried ([`Severity::Refused`]); nothing is left out in silence.

use std::fmt;

mod agent_file;
mod emit;
pub mod eso;
mod hcl;
pub mod injector;
mod manifest;
mod notes;
mod rule;
#[cfg(test)]
mod tests;
pub mod vault_agent;
mod workload;
mod write_to_file;

pub use manifest::{Converted, Document, Part, convert};
pub use notes::Field;

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It cannot be carried: what it did is missing from the result.
    Refused,
    /// It is carried and means something else than before.
    Changed,
    /// It has no meaning here and is left out.
    Ignored,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Changed => "changed",
            Self::Ignored => "ignored",
        })
    }
}

/// What became of a part of the input.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Note {
    /// Line in the input, from 1, where one is known.
    pub line: Option<u64>,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about, as the input names it, and what to do; one line.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)
    }
}

/// A configuration of ours, and what became of the other's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The in-pod agent's file, YAML. The notes are not in it.
    pub yaml: String,
    /// In order of lines.
    pub notes: Vec<Note>,
}

impl Translation {
    /// The translation, if it does all that the original did: for running it unseen.
    ///
    /// # Errors
    /// What cannot be carried.
    pub fn complete(self) -> Result<Self, ConvertError> {
        let refused: Vec<Note> =
            self.notes.iter().filter(|note| note.severity == Severity::Refused).cloned().collect();
        if refused.is_empty() { Ok(self) } else { Err(ConvertError::Refused { notes: refused }) }
    }
}

impl Translation {
    /// The file with its notes as comments in front.
    pub fn document(&self) -> Document {
        let mut text: String = self.notes.iter().map(|note| emit::comment(&note.to_string(), 0)).collect();
        text.push_str(&self.yaml);
        Document { part: Part::Class, text }
    }
}

/// Translates whatever describes an agent in a pod: Vault Agent's configuration, a workload with the injector's
/// annotations, or those annotations as the downward API writes them.
///
/// # Errors
/// When it is none of them.
pub fn to_agent(text: &str) -> Result<Translation, ConvertError> {
    if let Some(workload) = injector::of_manifest(text) {
        return Ok(workload);
    }
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    if lines
        .all(|line| line.split_once("=\"").is_some_and(|(name, _)| name.contains('/') && !name.contains(' ')))
        && !text.trim().is_empty()
    {
        return injector::translate(text);
    }
    vault_agent::translate(text)
}

/// Why there is no translation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The text is not in its language.
    #[error("{}{message}", at(*line))]
    Syntax {
        /// Line, from 1.
        line: Option<u64>,
        /// What is wrong; no value of the text.
        message: String,
    },
    /// Parts of it cannot be carried.
    #[error("{} of it cannot be carried over:{}", parts(notes.len()), list(notes))]
    Refused {
        /// Which, each with its reason and advice.
        notes: Vec<Note>,
    },
}

fn at(line: Option<u64>) -> String {
    line.map(|line| format!("line {line}: ")).unwrap_or_default()
}

fn parts(count: usize) -> String {
    if count == 1 { "a part".into() } else { format!("{count} parts") }
}

fn list(notes: &[Note]) -> String {
    notes.iter().map(|note| format!("\n  {}{}", at(note.line), note.message)).collect()
}
