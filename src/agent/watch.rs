//! Our own inputs, watched: configuration, template files, the projected token.
//!
//! The kernel's hints make it prompt; that every file is looked at each half minute makes it sure. A watch
//! is on the folder, because the kubelet replaces files by swapping a link beside them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Files are looked at this often, whatever the kernel says.
const LOOK: Duration = Duration::from_secs(30);
/// A swap is several events: they are one look.
const SETTLE: Duration = Duration::from_millis(100);

/// Wakes when an input may have changed.
#[derive(Debug)]
pub(super) struct InputWatch {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    events: mpsc::Receiver<()>,
    next: tokio::time::Instant,
}

impl InputWatch {
    /// Watches nothing yet. Where the kernel has no watch to give, looking now and then must do.
    pub(super) fn new() -> Self {
        // One is enough: it says that there is something to look at.
        let (sender, events) = mpsc::channel(1);
        let handler = move |event: notify::Result<notify::Event>| {
            // Reading is what we do ourselves.
            if event.is_ok_and(|event| event.kind.is_access()) {
                return;
            }
            let _ = sender.try_send(());
        };
        let watcher = notify::recommended_watcher(handler)
            .inspect_err(|error| {
                warn!(%error, "cannot watch configuration and token: they are looked at every 30 s");
            })
            .ok();
        Self { watcher, folders: BTreeSet::new(), events, next: tokio::time::Instant::now() + LOOK }
    }

    /// Watches the folders of exactly these files, and the files that are folders.
    pub(super) fn set(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let folder = |path: &Path| {
            if path.is_dir() { Some(path.to_owned()) } else { path.parent().map(Path::to_owned) }
        };
        let wanted: BTreeSet<PathBuf> = files.into_iter().filter_map(|file| folder(&file)).collect();
        let Some(watcher) = &mut self.watcher else { return };
        for gone in self.folders.difference(&wanted) {
            let _ = watcher.unwatch(gone);
        }
        let mut watched: BTreeSet<PathBuf> = self.folders.intersection(&wanted).cloned().collect();
        for folder in wanted.difference(&self.folders) {
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    watched.insert(folder.clone());
                }
                Err(error) => debug!(folder = %folder.display(), %error, "not watched, looked at every 30 s"),
            }
        }
        self.folders = watched;
    }

    /// Waits until it is time to look.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            event = self.events.recv() => match event {
                Some(()) => {
                    tokio::time::sleep(SETTLE).await;
                    while self.events.try_recv().is_ok() {}
                }
                // The watcher is gone, or never was.
                None => tokio::time::sleep_until(self.next).await,
            },
            () = tokio::time::sleep_until(self.next) => {}
        }
        self.next = tokio::time::Instant::now() + LOOK;
    }
}
