//! What the mount table says of our volumes, and what lies in them.

use std::time::{Duration, Instant};

use tracing::error;

use super::{GAUGES, Worker};
use crate::{
    backend::SecretBackend,
    lifecycle::{Event, volume::Mode},
    projection::mounts::{MountTable, MountWatch},
    volume::{FailureKind, MountFailure, VolumeKey},
};

/// How often it is looked whether a pod whose mount failed is still there.
const POD_LOOK: Duration = Duration::from_secs(5);

impl<B: SecretBackend> Worker<B> {
    /// Who writes the volume, and whether its content is as we left it. A mount that is another one than
    /// recorded is told to the core first.
    pub(super) fn look_at_target(&mut self, key: &VolumeKey) -> Result<(Mode, bool), MountFailure> {
        let known = self.core.volumes().get(key);
        if known.is_some_and(|volume| volume.mode == Mode::DriverWritten) {
            return Ok((Mode::DriverWritten, true));
        }
        let refused = |message: String| MountFailure::new(FailureKind::FailedPrecondition, message);
        if known.is_none_or(|volume| !volume.mounted)
            && self.mode_for(key).map_err(refused)? == Mode::DriverWritten
        {
            return Ok((Mode::DriverWritten, true));
        }
        let found = self
            .targets
            .inspect(key.path())
            .map_err(|error| refused(crate::telemetry::chain(&error).to_string()))?;
        if self.identities.get(key).is_some_and(|recorded| *recorded != found.identity) {
            self.feed(Event::Unmounted(key.clone()));
            // What belonged to the former mount goes before the new one is recorded.
            self.settle();
        }
        self.identities.insert(key.clone(), found.identity);
        let left = self
            .core
            .volumes()
            .get(key)
            .and_then(|volume| volume.installed.as_ref())
            .and_then(|installed| installed.version_dir.clone());
        Ok((Mode::ProviderWritten, left.is_none() || left == found.data))
    }

    /// Whether mounts of the host reach us at this path.
    fn mode_for(&self, key: &VolumeKey) -> Result<Mode, String> {
        let Some(root) = self.targets.kubelet_root() else { return Ok(Mode::ProviderWritten) };
        let table = MountTable::read_above(key.path())
            .map_err(|error| format!("cannot read the mount table: {error}"))?;
        let entry = table.find(key.path());
        let propagates = match entry {
            Some(entry) => entry.propagates(),
            // Not mounted here: either nothing is propagated, or the driver mounted nothing.
            None => {
                let pods = root.join("pods");
                pods.is_dir() && table.covering(&pods).is_some_and(|entry| entry.propagates())
            }
        };
        if propagates { Ok(Mode::ProviderWritten) } else { Ok(Mode::DriverWritten) }
    }

    /// Which of our volumes are still in the mount table.
    pub(super) fn look(&mut self) {
        let Some(root) = self.targets.kubelet_root() else { return };
        if self.mounts.is_none()
            && let Ok(watch) = MountWatch::open()
        {
            self.mounts = Some(watch);
            self.metrics.watch_restarted();
        }
        let table = match MountTable::read() {
            Ok(table) => table,
            Err(error) => {
                error!(%error, "cannot read the mount table");
                return;
            }
        };
        let topmost = table.topmost();
        let is_mounted =
            |key: &VolumeKey| topmost.get(key.path().as_os_str()).is_some_and(|entry| entry.is_tmpfs());
        let mut gone = Vec::new();
        let mut left = Vec::new();
        for (key, volume) in self.core.volumes() {
            if volume.mode != Mode::ProviderWritten {
                continue;
            }
            if !volume.mounted {
                let pod = root.join("pods").join(&volume.pod.uid);
                if !pod.exists() {
                    left.push(key.clone());
                }
            } else if !is_mounted(key) {
                gone.push(key.clone());
            }
        }
        self.unmanaged.retain(is_mounted);
        self.gauges_at.get_or_insert_with(|| Instant::now() + GAUGES);
        for key in gone {
            self.feed(Event::Unmounted(key));
        }
        for key in left {
            self.feed(Event::PodGone(key));
        }
        // The folder of a pod goes without a change in the mount table.
        if self.core.volumes().values().any(|volume| !volume.mounted) {
            self.look_at = Instant::now() + POD_LOOK;
        }
    }
}
