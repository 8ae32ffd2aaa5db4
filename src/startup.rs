//! What every shape of the process needs at its start: signals, whom its rooms report to, what its node is like.

use std::{io, path::Path, sync::Arc};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{admin::Readiness, metrics::Metrics, projection::mounts::MountTable};

pub(crate) mod ownership;
pub(crate) mod swap;

/// A command line or a configuration that makes no sense: EX_USAGE of sysexits.h.
pub const BAD_CONFIG: u8 = 64;

/// The parts that every room of the process reports to.
#[derive(Clone, Debug, Default)]
pub struct Reporting {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What stands between the process and a Mount.
    pub readiness: Arc<Readiness>,
}

/// Why the host's mounts do not reach this process, so that the driver has to write the files.
pub(crate) fn missing_propagation(kubelet_root: &Path) -> Option<String> {
    let pods = kubelet_root.join("pods");
    let table = MountTable::read().ok()?;
    let propagates = pods.is_dir() && table.covering(&pods).is_some_and(|entry| entry.propagates());
    (!propagates).then(|| {
        format!(
            "no mount propagation at {}: every volume is driver-written (files change only with the driver's \
             next call, unmounts are not seen, fileOwner is refused); mount the kubelet's pods folder as hostPath \
             with mountPropagation HostToContainer",
            pods.display()
        )
    })
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on the signals no longer end the process by themselves. Must be called within a runtime.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for either.
    pub async fn terminated(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
