//! What is wrong or strange about a SecretProviderClass, and where.

use std::fmt;

use super::FileOwner;

/// Why parameters are refused. Texts of vault-csi-provider are kept where people know them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No `roleName`.
    #[error("missing 'roleName' in SecretProviderClass definition")]
    MissingRole,
    /// Both names of one parameter, even if empty.
    #[error("cannot set both {kubernetes} and {auth}")]
    BothMounts {
        /// The older name.
        kubernetes: String,
        /// The newer name.
        auth: String,
    },
    /// No `objects`, or an empty list.
    #[error("no secrets configured - the provider will not read any secret material")]
    NoObjects,
    /// Two objects of one name.
    #[error(
        "each `objectName` within a SecretProviderClass must be unique, but the following keys were duplicated: {}",
        Names(names)
    )]
    DuplicateNames {
        /// Each repetition, in the order given.
        names: Vec<String>,
        /// Line of the first repetition within `objects`.
        line: u64,
    },
    /// Neither a parameter nor a default of the agent.
    #[error(
        "no address to read secrets from: set {parameter} in the SecretProviderClass, or the agent's own address"
    )]
    MissingAddress {
        /// The parameter to set.
        parameter: &'static str,
    },
    /// A parameter's value.
    #[error("parameter {parameter}: {reason}")]
    Parameter {
        /// Its name.
        parameter: String,
        /// The rule it breaks.
        reason: String,
    },
    /// `fileOwner: pod`, and nobody has looked at the pod.
    #[error(
        "{place}fileOwner: pod: leasehold does not read pods here. Write numbers (fileOwner: \"10001:10001\"), or set \
         fileOwner in the pod's own volumeAttributes, or have the operator turn on --read-pods (readPods.enabled in \
         the chart)"
    )]
    PodOwner {
        /// `object "a" (line 3): `, or empty for the volume's own.
        place: String,
        /// Line within `objects`, for an object's.
        line: Option<u64>,
    },
    /// `objects` as a whole.
    #[error("parameter objects{}: {reason}", Place(*line, None))]
    Objects {
        /// Line within `objects`, when known.
        line: Option<u64>,
        /// The rule it breaks.
        reason: String,
    },
    /// One field of one object.
    #[error("object {object}{}: {field}: {reason}", Place(Some(*line), *column))]
    Object {
        /// The quoted `objectName`, or `#n` when it has none.
        object: String,
        /// Field of the object.
        field: &'static str,
        /// Line within `objects`.
        line: u64,
        /// Column within `objects`, from 1, where it is about a character.
        column: Option<u64>,
        /// The rule it breaks.
        reason: String,
    },
}

impl SpecError {
    /// The parameter at fault, if it is a certain one.
    pub fn parameter(&self) -> Option<&str> {
        match self {
            Self::MissingRole | Self::MissingAddress { .. } | Self::NoObjects => None,
            Self::BothMounts { kubernetes, .. } => Some(kubernetes),
            Self::PodOwner { line: None, .. } => Some("fileOwner"),
            Self::PodOwner { .. } => Some("objects"),
            Self::Parameter { parameter, .. } => Some(parameter),
            Self::DuplicateNames { .. } | Self::Objects { .. } | Self::Object { .. } => Some("objects"),
        }
    }

    /// The line within that parameter's text, from 1, when known.
    pub fn line(&self) -> Option<u64> {
        match self {
            Self::DuplicateNames { line, .. } | Self::Object { line, .. } => Some(*line),
            Self::Objects { line, .. } | Self::PodOwner { line, .. } => *line,
            _ => None,
        }
    }

    /// The column on that line, from 1, when known.
    pub fn column(&self) -> Option<u64> {
        match self {
            Self::Object { column, .. } => *column,
            _ => None,
        }
    }
}

/// Something strange that is no reason to refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The parameter it is about.
    pub parameter: String,
    /// The line within that parameter's text, from 1, when known.
    pub line: Option<u64>,
    /// One line.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Warnings of one SecretProviderClass: a tenant's ten thousand misspelt fields shall not fill the log.
const MAX_WARNINGS: usize = 100;

/// Duplicated names that one message lists.
const MAX_NAMES: usize = 20;

/// Characters of each.
const MAX_NAME: usize = 200;

/// Everything found on the way: reading goes on after an error, so that `check` can show all of them.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) errors: Vec<SpecError>,
    pub(super) warnings: Vec<Warning>,
    /// What `fileOwner: pod` stands for, where somebody looked.
    pub(super) pod_owner: Option<FileOwner>,
}

impl Findings {
    pub(super) fn error(&mut self, error: SpecError) {
        self.errors.push(error);
    }

    pub(super) fn parameter_error(&mut self, parameter: &str, reason: impl fmt::Display) {
        self.error(SpecError::Parameter { parameter: parameter.to_owned(), reason: reason.to_string() });
    }

    /// Adds a warning, whose text is made only if there is room for it.
    pub(super) fn warn(&mut self, parameter: &str, line: Option<u64>, message: impl FnOnce() -> String) {
        let message = match self.warnings.len() {
            MAX_WARNINGS => "there are more warnings than are shown".to_owned(),
            more if more > MAX_WARNINGS => return,
            _ => message(),
        };
        self.warnings.push(Warning { parameter: parameter.to_owned(), line, message });
    }
}

// As upstream joins them, as far as a message has room.
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(MAX_NAMES)];
        let shown: Vec<String> = shown.iter().map(|name| name.chars().take(MAX_NAME).collect()).collect();
        f.write_str(&shown.join(", "))?;
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// ` (line 3, column 4)`, as far as it is known.
pub(crate) struct Place(pub(crate) Option<u64>, pub(crate) Option<u64>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(Some(line), Some(column)) => write!(f, " (line {line}, column {column})"),
            Self(Some(line), None) => write!(f, " (line {line})"),
            Self(None, _) => Ok(()),
        }
    }
}
