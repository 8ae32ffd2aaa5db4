//! Vault Agent's configuration (HCL or JSON) as the in-pod agent's file.

use super::{ConvertError, Translation};

/// Translates a configuration of Vault Agent, HCL or JSON, into the in-pod agent's file.
///
/// Beside the fields of a SecretProviderClass's objects the result has `templateFile` (a path, in place of
/// `template`) where a template stanza names a `source`, and `onChange` in objects.
///
/// # Errors
/// When the text is neither HCL nor JSON, with the line. What is understood and cannot be carried is a note with
/// [`super::Severity::Refused`]: call [`Translation::complete`] before running the result.
pub fn translate(text: &str) -> Result<Translation, ConvertError> {
    let _ = text;
    Err(ConvertError::Syntax { line: None, message: "not written yet".into() })
}
