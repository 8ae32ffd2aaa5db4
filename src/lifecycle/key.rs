//! What a volume is known by.

use std::{
    cmp::Ordering,
    ffi::OsStr,
    fmt,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Names a volume: the target path on the host, as the kubelet chose it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct VolumeKey(Arc<std::path::Path>);

// By bytes: paths compare component by component, which was half of the core's time, and the kubelet spells
// a target in one way only.
impl Ord for VolumeKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.as_os_str().cmp(other.0.as_os_str())
    }
}

impl PartialOrd for VolumeKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for VolumeKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_os_str() == other.0.as_os_str()
    }
}

impl Eq for VolumeKey {}

impl Hash for VolumeKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_os_str().hash(state);
    }
}

impl VolumeKey {
    /// A key for `path`, which the edge has checked to be a volume of the kubelet's.
    pub fn new(path: PathBuf) -> Self {
        Self(path.components().collect::<PathBuf>().into())
    }

    /// The target path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What the pod calls the volume: the kubelet names its folder so.
    pub fn volume_name(&self) -> &str {
        let folder = self.0.parent().and_then(Path::file_name);
        folder.and_then(OsStr::to_str).unwrap_or_default()
    }
}

impl fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}
