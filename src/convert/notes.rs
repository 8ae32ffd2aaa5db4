//! What becomes of each field of the other's configuration: said once, for the program, its tests and the docs.

use super::{Note, Severity};
use crate::spec::values;

/// A field of another's configuration, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// As the other spells it; `<n>` and `<k>` stand for a name of the user's.
    pub name: &'static str,
    /// How much is lost; `None` when nothing is.
    pub fate: Option<Severity>,
    /// What it becomes, or why it does not and what to do.
    pub text: &'static str,
}

/// A field that is carried over.
pub(super) const fn carried(name: &'static str, text: &'static str) -> Field {
    Field { name, fate: None, text }
}

/// A field that means something else afterwards.
pub(super) const fn changed(name: &'static str, text: &'static str) -> Field {
    Field { name, fate: Some(Severity::Changed), text }
}

/// A field without a meaning here.
pub(super) const fn ignored(name: &'static str, text: &'static str) -> Field {
    Field { name, fate: Some(Severity::Ignored), text }
}

/// A field that cannot be carried.
pub(super) const fn refused(name: &'static str, text: &'static str) -> Field {
    Field { name, fate: Some(Severity::Refused), text }
}

/// The notes of one conversion, each said once.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    list: Vec<Note>,
}

impl Notes {
    pub(super) fn add(&mut self, line: u64, severity: Severity, message: impl Into<String>) {
        let message = message.into();
        if !self.list.iter().any(|note| note.message == message && note.severity == severity) {
            self.list.push(Note { line: (line > 0).then_some(line), severity, message });
        }
    }

    pub(super) fn refused(&mut self, line: u64, message: impl Into<String>) {
        self.add(line, Severity::Refused, message);
    }

    pub(super) fn changed(&mut self, line: u64, message: impl Into<String>) {
        self.add(line, Severity::Changed, message);
    }

    /// Says what becomes of a field, as its table has it; `shown` is its name as written. Whether it is carried.
    pub(super) fn field(&mut self, table: &[Field], name: &str, shown: &str, line: u64) -> bool {
        let Some(field) = table.iter().find(|field| field.name == name) else {
            let near = values::nearest(name, table.iter().map(|field| field.name));
            let hint = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
            self.refused(line, format!("{}: it is not known here{hint}", plain(shown)));
            return false;
        };
        if let Some(severity) = field.fate {
            self.add(line, severity, format!("{}: {}", plain(shown), field.text));
        }
        field.fate.is_none()
    }

    pub(super) fn into_sorted(mut self) -> Vec<Note> {
        self.list.sort_by_key(|note| (note.line.unwrap_or(0), note.severity));
        self.list
    }
}

/// A name from the input for a message: on one line, of bounded length.
pub(super) fn plain(text: &str) -> String {
    let text: String = text.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect();
    text
}
