//! From answers to files, and from files to the caller.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::Worker;
use crate::{
    backend::SecretBackend,
    clock::wall_now,
    lifecycle::{
        Event,
        message::{CallId, PlanId, SwapOutcome},
    },
    projection::{
        Payload,
        target::{self, MountIdentity},
        writer::{self, RootMtime, WriteError, WriteRequest},
    },
    render::{Rendered, render},
    spec::{DependencyId, Object, VolumeSpec},
    volume::{Change, DriverFile, MountAnswer, MountFailure, VolumeKey},
};

/// Said of a rendering that panicked.
const DEFECT: &str = "a defect in leasehold stopped the rendering; the log has its place";

/// The files, or what they lack.
pub(super) type RenderOutcome = Result<Rendered, String>;

impl<B: SecretBackend> Worker<B> {
    /// Renders at once what is quickly done, and beside the worker what is not.
    pub(super) fn render(&mut self, plan: PlanId, spec: Arc<VolumeSpec>, got: &[DependencyId]) {
        let costly = spec.is_costly();
        let values = self.holdings.read_set(&plan, got);
        // Until it is kept or discarded: what comes back for a plan without a place is dropped.
        self.holdings.plans.entry(plan.clone()).or_default();
        let key = self.digest_key.clone();
        let work = move || {
            catch_unwind(AssertUnwindSafe(|| render(&spec, &values, &key, wall_now())))
                .map(|result| result.map_err(|error| error.to_string()))
                .unwrap_or_else(|_| Err(DEFECT.to_owned()))
        };
        if costly {
            self.rendering.spawn_blocking(move || (plan, work()));
        } else {
            self.rendered(plan, work());
        }
    }

    pub(super) fn rendered(&mut self, plan: PlanId, outcome: RenderOutcome) {
        if outcome.as_ref().is_err_and(|error| error == DEFECT) {
            self.metrics.panicked();
        }
        let result = outcome.map(|rendered| {
            if let Some(held) = self.holdings.plans.get_mut(&plan) {
                held.rendered = Some(rendered.payload);
            }
            rendered.versions
        });
        self.feed(Event::Rendered(plan, result));
    }

    /// Writes what was rendered, with the files of the objects that were not. It is held no longer, whatever comes of
    /// it: each swap has a rendering of its own.
    pub(super) fn swap(
        &mut self,
        plan: &PlanId,
        previous: Option<&str>,
        unchanged: bool,
        callers: &[CallId],
        carried: &[Object],
    ) -> SwapOutcome {
        let payload = self.holdings.plans.get_mut(plan).and_then(|held| held.rendered.take());
        let gone = |call: &CallId| self.calls.get(call).is_none_or(oneshot::Sender::is_closed);
        if !callers.is_empty() && callers.iter().all(gone) {
            return SwapOutcome::Unwanted;
        }
        let Some(identity) = self.identities.get(&plan.key) else { return SwapOutcome::Gone };
        let Some(mut payload) = payload else {
            return SwapOutcome::Failed("what was rendered is not held any more".into());
        };
        if !carried.is_empty()
            && let Err(failed) = self.carry(plan, identity, previous, carried, &mut payload)
        {
            return failed;
        }
        let started = Instant::now();
        let written = writer::write(WriteRequest {
            target: plan.key.path(),
            identity,
            // In a folder of our pod no driver removes anything: what is gone was removed by whom may write there.
            previous: previous.filter(|_| self.targets.kubelet_root().is_some()),
            payload: &payload,
            contents_as_before: unchanged,
            root_mtime: RootMtime::Restore,
        });
        match written {
            Ok(swap) => {
                self.metrics.swapped(swap.changed, swap.bytes, started.elapsed());
                if swap.leftovers > 0 {
                    warn!(volume = %plan.key, entries = swap.leftovers, "entries that should go could not be removed");
                }
                SwapOutcome::Done { version_dir: swap.version_dir, changed: swap.changed }
            }
            Err(error) => not_written(error),
        }
    }

    /// Adds the files of objects that were not rendered to those that were.
    fn carry(
        &self,
        plan: &PlanId,
        identity: &MountIdentity,
        previous: Option<&str>,
        carried: &[Object],
        payload: &mut Payload,
    ) -> Result<(), SwapOutcome> {
        let Some(previous) = previous else {
            return Err(SwapOutcome::Failed(
                "no version is on disk that files could be carried over from".into(),
            ));
        };
        let attempt = self.core.volumes().get(&plan.key).and_then(|volume| volume.attempt.as_ref());
        let Some(default_mode) = attempt.map(|attempt| attempt.spec.default_mode) else {
            return Err(SwapOutcome::Gone);
        };
        let carried = (carried, default_mode);
        writer::carry_over(plan.key.path(), identity, previous, carried, payload).map_err(not_written)
    }

    pub(super) fn announce(&self, key: &VolumeKey) {
        let Some(changes) = &self.changes else { return };
        let attempt = self.core.volumes().get(key).and_then(|volume| volume.attempt.as_ref());
        let versions = attempt.map(|attempt| attempt.versions.clone()).unwrap_or_default();
        // Nobody listens any more when the process ends.
        let _ = changes.send(Change { key: key.clone(), versions });
    }

    pub(super) fn answer(
        &mut self,
        calls: Vec<CallId>,
        answer: Result<Vec<(String, String)>, MountFailure>,
        deliver: Option<PlanId>,
        report: Option<PlanId>,
        clock: Option<(VolumeKey, bool)>,
    ) {
        if let Some((key, healthy)) = clock
            && let Some(identity) = self.identities.get(&key)
            && self.targets.kubelet_root().is_some()
        {
            let mtime = if healthy { RootMtime::Now } else { RootMtime::Zero };
            if let Err(error) = writer::set_root_mtime(key.path(), identity, mtime) {
                debug!(volume = %key, error = %crate::telemetry::chain(&error), "cannot set the driver's clock");
            }
        }
        let files: Vec<DriverFile> = deliver
            .and_then(|plan| self.holdings.plans.get(&plan)?.rendered.as_ref().map(driver_files))
            .unwrap_or_default();
        let mut delivered = false;
        for call in calls {
            let Some(reply) = self.calls.remove(&call) else { continue };
            let answer = match &answer {
                Ok(versions) => Ok(MountAnswer { versions: versions.clone(), files: files.clone() }),
                Err(failure) => Err(failure.clone()),
            };
            delivered |= reply.send(answer).is_ok();
        }
        if let Some(plan) = report {
            self.feed(Event::Answered(plan, delivered));
        }
    }
}

fn not_written(error: WriteError) -> SwapOutcome {
    match error {
        WriteError::BeingUnpublished { .. } => SwapOutcome::Unpublishing,
        WriteError::Target(target::TargetError::NotMounted { .. } | target::TargetError::Changed { .. }) => {
            SwapOutcome::Gone
        }
        error => SwapOutcome::Failed(crate::telemetry::chain(&error).to_string()),
    }
}

fn driver_files(payload: &Payload) -> Vec<DriverFile> {
    payload
        .files
        .iter()
        .map(|(path, file)| DriverFile {
            path: path.to_string(),
            mode: file.mode.bits(),
            contents: file.contents.clone(),
        })
        .collect()
}
