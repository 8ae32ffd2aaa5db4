//! The only module that writes files: a payload into a pod's tmpfs, in one atomic swap.
//!
//! `target` opens and identifies a mount, `writer` swaps, `mounts` reads and watches the mount table.

use std::collections::BTreeMap;

use crate::{
    secret::SecretBytes,
    spec::{FileMode, FileOwner, ObjectPath},
};

pub mod mounts;
pub mod target;
pub mod writer;

/// Bytes of one volume's files. A swap holds the old and the new version at once.
pub const MAX_PAYLOAD_LEN: usize = 32 << 20;

/// One file to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileProjection {
    /// Contents.
    pub contents: SecretBytes,
    /// Permission bits.
    pub mode: FileMode,
    /// Owner; root where `None`.
    pub owner: Option<FileOwner>,
}

/// Every file of a volume: what one swap makes visible at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// By path within the volume.
    pub files: BTreeMap<ObjectPath, FileProjection>,
}

impl Payload {
    /// Bytes of all contents.
    pub fn len(&self) -> usize {
        self.files.values().map(|file| file.contents.len()).sum()
    }

    /// Whether it has no file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}
