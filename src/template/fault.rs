//! What goes wrong inside a function or a field access, before a position is known.

use super::Limit;

/// Texts are constants of ours: no variant can carry a value.
#[derive(Debug)]
pub(super) enum Fault {
    /// A reason.
    Why(&'static str),
    /// An argument of another type than the function takes.
    Type { want: &'static str, got: &'static str },
    /// More or fewer arguments than the function takes.
    Arguments,
    /// No such key. `argument` is where the key was given, so that the evaluator can tell a key written in
    /// the template, which is shown, from a computed one, which may be a secret.
    Key { argument: usize },
    /// A limit is used up.
    Limit(Limit),
    /// `fail` with its text at this argument.
    Fail { argument: usize },
    /// The secret of this call was not read.
    NotRead(String),
}

impl Fault {
    pub(super) fn want(want: &'static str, got: &super::value::Value) -> Self {
        Self::Type { want, got: got.kind() }
    }
}
