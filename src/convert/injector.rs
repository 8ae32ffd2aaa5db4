//! The Vault Agent injector's annotations: as a SecretProviderClass with a pod patch, and as the in-pod
//! agent's file.

use super::{ConvertError, Translation};

/// Translates a pod's annotations, as the kubelet writes them into a downward API volume (a line for each:
/// `name="escaped value"`), into the in-pod agent's file.
///
/// # Errors
/// When a line is no annotation, with its number. What is understood and cannot be carried is a note with
/// [`super::Severity::Refused`]: call [`Translation::complete`] before running the result.
pub fn translate(text: &str) -> Result<Translation, ConvertError> {
    let _ = text;
    Err(ConvertError::Syntax { line: None, message: "not written yet".into() })
}
