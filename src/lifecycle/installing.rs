//! From the last answer of an attempt to what is installed, and what that replaced.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Lifecycle, UNPUBLISH_HOLD,
    attempts::local_failure,
    carry,
    failure::{FailureKind, MountFailure},
    key::VolumeKey,
    message::{Action, CallId, Note, PlanId, SwapOutcome},
    session::SessionId,
    volume::{Installed, Mode, Need, Phase, Retired, Volume},
};
use crate::clock::BootTime;

impl Lifecycle {
    /// The longest overlap of a volume's credentials.
    pub(super) fn overlap(&self, key: &VolumeKey) -> Duration {
        let installed = self.volumes.get(key).and_then(|volume| volume.installed.as_ref());
        installed.map_or(Duration::ZERO, |installed| {
            installed.dependencies.values().map(|dependency| dependency.overlap).max().unwrap_or_default()
        })
    }

    pub(super) fn render(&mut self, key: &VolumeKey, plan: PlanId) {
        if let Some(attempt) = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut()) {
            attempt.phase = Phase::Rendering;
            let (spec, _) = carry::split(&attempt.spec, &attempt.needs);
            let got =
                attempt.needs.iter().filter(|(_, need)| matches!(need, Need::Got(_))).map(|(id, _)| *id);
            self.actions.push_back(Action::Render(plan, spec, got.collect()));
        }
    }

    /// The attempt of `plan`, if it is still the one in work and stands at `phase`.
    fn at_phase(&mut self, plan: &PlanId, phase: Phase) -> Option<&mut Volume> {
        self.volumes.get_mut(&plan.key).filter(|volume| {
            volume.serial == plan.serial
                && volume
                    .attempt
                    .as_ref()
                    .is_some_and(|attempt| attempt.plan == plan.plan && attempt.phase == phase)
        })
    }

    pub(super) fn rendered(
        &mut self,
        plan: &PlanId,
        result: Result<Vec<(String, String)>, String>,
        now: BootTime,
    ) {
        let Some(volume) = self.at_phase(plan, Phase::Rendering) else { return };
        let key = plan.key.clone();
        match result {
            Err(message) => self.fail(&key, local_failure(message), None, now),
            Ok(versions) => {
                let mode = volume.mode;
                let hold = volume.hold_until.filter(|until| now < *until);
                let mounted = volume.mounted;
                let live = volume.is_live();
                let installed = volume.installed.as_ref();
                let attempt = volume.attempt.as_mut().expect("at_phase checked it");
                let (_, carried) = carry::split(&attempt.spec, &attempt.needs);
                let versions = match installed {
                    Some(installed) if !carried.is_empty() => {
                        carry::versions(&attempt.spec, versions, &installed.versions)
                    }
                    _ => versions,
                };
                let unchanged = installed.is_some_and(|installed| installed.versions == versions);
                let previous = installed.and_then(|installed| installed.version_dir.clone());
                attempt.versions = versions;
                let previous = attempt.version_dir.clone().or(previous);
                let waits = !attempt.calls.is_empty();
                match mode {
                    Mode::ProviderWritten if !mounted => attempt.phase = Phase::Waiting(None),
                    Mode::ProviderWritten if hold.is_some() => attempt.phase = Phase::Waiting(hold),
                    // Nobody waits for a first mount any more: the driver is unmounting it.
                    Mode::ProviderWritten if !live && !waits => attempt.phase = Phase::Waiting(None),
                    Mode::ProviderWritten => {
                        attempt.phase = Phase::Swapping;
                        let callers = attempt.calls.iter().map(|call| call.id).collect();
                        self.dirty_volumes.insert(key.clone());
                        let plan = plan.clone();
                        self.actions.push_back(Action::Swap { plan, previous, unchanged, callers, carried });
                    }
                    Mode::DriverWritten if waits => self.deliver(&key),
                    Mode::DriverWritten if unchanged => self.commit(&key, now),
                    Mode::DriverWritten => {
                        attempt.phase = Phase::Ready;
                        self.dirty_volumes.insert(key.clone());
                    }
                }
            }
        }
        self.retime_volume(&key, now);
    }

    /// Hands rendered files to the driver with the answer.
    pub(super) fn deliver(&mut self, key: &VolumeKey) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let installed = volume.installed.as_ref();
        let Some(attempt) = &mut volume.attempt else { return };
        attempt.phase = Phase::Unanswered;
        let plan = PlanId { key: key.clone(), serial: volume.serial, plan: attempt.plan };
        let calls = std::mem::take(&mut attempt.calls).into_iter().map(|call| call.id).collect();
        // Byte for byte what the driver wrote before: it leaves an empty answer alone.
        let unchanged = installed.is_some_and(|installed| installed.versions == attempt.versions);
        let answer = Ok(attempt.versions.clone());
        let deliver = (!unchanged).then(|| plan.clone());
        self.dirty_volumes.insert(key.clone());
        self.answer(calls, answer, deliver, Some(plan), None);
    }

    pub(super) fn swapped(&mut self, plan: &PlanId, outcome: SwapOutcome, now: BootTime) {
        let Some(volume) = self.at_phase(plan, Phase::Swapping) else { return };
        let key = plan.key.clone();
        let live = volume.is_live();
        let attempt = volume.attempt.as_mut().expect("at_phase checked it");
        match outcome {
            SwapOutcome::Done { version_dir, changed } => {
                attempt.version_dir = Some(version_dir);
                attempt.phase = Phase::Unanswered;
                let why = attempt.reason.text();
                let versions = attempt.versions.clone();
                let calls: Vec<CallId> =
                    std::mem::take(&mut attempt.calls).into_iter().map(|call| call.id).collect();
                let healthy = volume.token.is_none_or(|token| token.fresh(now));
                if live {
                    self.note(Some(&key), Note::Rewritten { why, changed });
                }
                self.dirty_volumes.insert(key.clone());
                if calls.is_empty() {
                    if live {
                        self.commit(&key, now);
                    } else {
                        self.grace(&key, now);
                    }
                } else {
                    let clock = Some((key.clone(), healthy));
                    self.answer(calls, Ok(versions), None, Some(plan.clone()), clock);
                }
            }
            SwapOutcome::Unpublishing => {
                let until = now + UNPUBLISH_HOLD;
                volume.hold_until = Some(until);
                attempt.phase = Phase::Waiting(Some(until));
                let failure = MountFailure::new(
                    FailureKind::Internal,
                    "the volume is being unpublished; the kubelet will ask again if it is not",
                );
                self.answer_all(&key, failure);
            }
            SwapOutcome::Gone if live => {
                self.unmounted(&key, now);
                return;
            }
            SwapOutcome::Gone => {
                volume.mounted = false;
                attempt.phase = Phase::Waiting(None);
                let failure = MountFailure::new(
                    FailureKind::Internal,
                    "the volume was unmounted while its files were being written",
                );
                self.answer_all(&key, failure);
                self.grace(&key, now);
            }
            SwapOutcome::Unwanted => {
                attempt.phase = Phase::Waiting(live.then(|| now + UNPUBLISH_HOLD));
                attempt.calls.clear();
                self.grace(&key, now);
            }
            SwapOutcome::Failed(message) => self.fail(&key, local_failure(message), None, now),
        }
        self.retime_volume(&key, now);
    }

    pub(super) fn answered(&mut self, plan: &PlanId, delivered: bool, now: BootTime) {
        let Some(volume) = self.at_phase(plan, Phase::Unanswered) else { return };
        let key = plan.key.clone();
        if delivered || volume.is_live() {
            if volume.mode == Mode::DriverWritten && !delivered {
                // The driver did not get the files: the next Mount must carry them.
                volume.attempt.as_mut().expect("at_phase checked it").phase = Phase::Ready;
            } else {
                self.commit(&key, now);
            }
        } else {
            self.grace(&key, now);
        }
        self.retime_volume(&key, now);
    }

    /// What an attempt made is what the volume is now; what it replaced goes after the overlap.
    pub(super) fn commit(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let Some(attempt) = volume.attempt.take() else { return };
        let mut old = volume.installed.take();
        let mut dependencies = BTreeMap::new();
        for (id, need) in attempt.needs {
            let dependency = match need {
                Need::Got(dependency) => Some(dependency),
                Need::Reuse => old.as_mut().and_then(|old| old.dependencies.remove(&id)),
                Need::Carried => {
                    old.as_mut().and_then(|old| old.dependencies.remove(&id)).map(|mut known| {
                        known.held = false;
                        known
                    })
                }
                Need::Wanted | Need::InFlight(_) => None,
            };
            if let Some(mut dependency) = dependency {
                dependency.request = dependency.request.settled();
                dependencies.insert(id, dependency);
            }
        }
        let keep = carry::held(&attempt.spec, volume.mode, &dependencies);
        for (id, dependency) in &mut dependencies {
            dependency.held &= keep.contains(id);
        }
        let hold = dependencies.iter().filter(|(_, dependency)| dependency.held).map(|(id, _)| *id).collect();
        let plan = PlanId { key: key.clone(), serial: volume.serial, plan: attempt.plan };
        let leased = dependencies.values().any(|dependency| dependency.lease.is_some());
        let objects = attempt.versions.len();
        volume.installed = Some(Installed {
            plan: attempt.plan,
            spec: attempt.spec.settled(),
            digest: attempt.digest,
            session: attempt.session,
            dependencies,
            versions: attempt.versions,
            version_dir: attempt.version_dir,
            at: now,
        });
        volume.grace_until = None;
        volume.rejected = None;
        let driver_written = volume.mode == Mode::DriverWritten;
        let overlap = old.iter().flat_map(|old| old.dependencies.values()).map(|known| known.overlap).max();
        let overlap = overlap.unwrap_or_default();
        self.actions.push_back(Action::Keep(plan, hold));
        match old {
            None => self.note(Some(key), Note::Mounted { objects }),
            Some(old) => self.retire_replaced(key, old, attempt.session, driver_written, now),
        }
        self.dirty_volumes.insert(key.clone());
        self.dirty_sessions.insert(attempt.session);
        if !leased {
            self.share(key, attempt.session, overlap, now);
        }
        let session = self.volumes[key].installed.as_ref().map(|installed| installed.session);
        if let Some(session) = session {
            self.retime_session(session, now);
        }
    }

    /// Retires what `old` held and its successor does not: `old.dependencies` has only what was not reused.
    fn retire_replaced(
        &mut self,
        key: &VolumeKey,
        old: Installed,
        session: SessionId,
        driver_written: bool,
        now: BootTime,
    ) {
        if old.session != session {
            let longest = old.dependencies.values().map(|known| known.overlap).max().unwrap_or_default();
            let owned = self.sessions.get(&old.session).is_some_and(|record| !record.shared);
            if driver_written && owned {
                let volume = self.volumes.get_mut(key).expect("the caller looked it up");
                volume.retired.push(Retired::Session(old.session));
                self.keep_for_driver(old.session, key);
            } else {
                self.leave_session(old.session, key, now + longest, now);
            }
            return;
        }
        for dependency in old.dependencies.into_values() {
            let overlap = dependency.overlap;
            let Some((lease, term)) = dependency.lease else { continue };
            if dependency.lost || term.ends() <= now {
                continue;
            }
            if driver_written {
                let volume = self.volumes.get_mut(key).expect("the caller looked it up");
                volume.retired.push(Retired::Lease(session, lease, term.ends()));
            } else {
                self.owe_lease(session, lease, term.ends(), now + overlap, now);
            }
        }
    }
}
