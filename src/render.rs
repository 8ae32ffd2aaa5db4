//! Pure: from a volume's spec and the answers of the store to the files and their versions.

use std::collections::BTreeMap;

use crate::{
    backend::Secret,
    projection::Payload,
    spec::{DependencyId, VolumeSpec},
};

/// Key of the version digests: random per node, kept in the journal, so that versions are stable over
/// restarts and say nothing about a value to those who read them.
#[derive(Clone)]
pub struct DigestKey(aws_lc_rs::hmac::Key);

impl DigestKey {
    /// A key from 32 random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, bytes))
    }
}

/// What a render gives.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The files.
    pub payload: Payload,
    /// Object name and opaque version, one per object, in the order of the spec.
    pub versions: Vec<(String, String)>,
}

/// Why a volume cannot be rendered: the object, and what it lacks; key names, never values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {}

/// Renders every file of a volume from one read set.
///
/// # Errors
/// The first object that cannot be rendered.
pub fn render(
    spec: &VolumeSpec,
    secrets: &BTreeMap<DependencyId, Secret>,
    key: &DigestKey,
) -> Result<Rendered, RenderError> {
    let _ = (spec, secrets, key);
    unimplemented!("replaced in the next commits")
}
