//! What the node's gauges show, computed from the core in one pass.

use crate::{
    clock::BootTime,
    lifecycle::{
        Lifecycle,
        session::SessionState,
        volume::{Mode, Retired},
    },
    metrics::{Snapshot, VOLUME_STATES},
};

/// The state of all volumes and sessions; `unmanaged` is known to the worker alone.
pub(super) fn snapshot(core: &Lifecycle, unmanaged: usize, now: BootTime) -> Snapshot {
    let mut snapshot = Snapshot { unmanaged, ..Snapshot::default() };
    for volume in core.volumes().values() {
        match volume.mode {
            Mode::ProviderWritten => snapshot.provider_written += 1,
            Mode::DriverWritten => snapshot.driver_written += 1,
        }
        // Retired sessions are counted below.
        let leases = volume.retired.iter().filter(|retired| matches!(retired, Retired::Lease(..)));
        snapshot.leases_owed += leases.count();
        let state = super::report::state(volume, now);
        if let Some(at) = VOLUME_STATES.iter().position(|name| *name == state) {
            snapshot.states[at] += 1;
        }
        if volume.installed.is_some() && volume.mounted {
            earliest(&mut snapshot.oldest_call, volume.last_mount);
        }
        let failing = volume.attempt.as_ref().is_some_and(|attempt| attempt.failure.is_some())
            || volume
                .installed
                .iter()
                .flat_map(|installed| installed.dependencies.values())
                .any(|it| it.last_error.is_some());
        snapshot.stale += usize::from(volume.installed.is_some() && (failing || volume.refused.is_some()));
        let dependencies = volume.installed.iter().flat_map(|installed| installed.dependencies.values());
        for ends in dependencies.filter_map(|dependency| dependency.ends()) {
            earliest(&mut snapshot.nearest_expiry, ends);
        }
    }
    for session in core.sessions().values() {
        let granted = session.term.map(|term| term.ttl).filter(|ttl| !ttl.is_zero());
        snapshot.longest_session = snapshot.longest_session.max(granted);
        snapshot.leases_owed += session.owed.len();
        match session.state {
            SessionState::New(_) => {}
            SessionState::Retiring(_) => snapshot.sessions_owed += usize::from(!session.lost),
            SessionState::Live => {
                // It logs in again with the freshest token of its users: one that never ends is enough.
                let tokens = session.users.iter().filter_map(|key| core.volumes().get(key)?.token);
                let ends: Option<Vec<BootTime>> = tokens.map(|token| token.expires).collect();
                if let Some(last) = ends.and_then(|ends| ends.into_iter().max()) {
                    earliest(&mut snapshot.nearest_login_end, last);
                }
            }
        }
    }
    snapshot
}

fn earliest(known: &mut Option<BootTime>, at: BootTime) {
    *known = Some(known.map_or(at, |known| known.min(at)));
}
