//! Mount calls: what each asks for, what it joins or starts, and how it is answered.

use std::{sync::Arc, time::Duration};

use super::{
    Lifecycle, PATIENCE, RETRY_GRACE,
    attempts::{Aim, ends_in},
    backoff::Pace,
    failure::{FailureKind, MountFailure},
    key::VolumeKey,
    message::{Action, CallId, Mount, Note, PlanId},
    session::{Session, SessionId},
    volume::{Attempt, Call, Mode, Need, Phase, Reason, Retired, Volume},
};
use crate::{
    backend::{BackendError, FailureClass},
    clock::BootTime,
};

#[cfg(test)]
mod tests;

impl Lifecycle {
    pub(super) fn mount(&mut self, mount: Mount, now: BootTime) {
        let key = mount.key.clone();
        if !self.volumes.contains_key(&key) {
            let refusal = mount.plan.as_ref().err().or(mount.token.as_ref().err());
            if let Some(failure) = refusal {
                self.answer(vec![mount.call], Err(failure.clone()), None, None, None);
                return;
            }
            let serial = self.fresh_id();
            let volume = Volume {
                serial,
                pod: mount.pod.clone(),
                provider: mount.provider,
                class: mount.class.clone(),
                mode: mount.mode,
                mounted: true,
                installed: None,
                attempt: None,
                token: None,
                service_account_uid: String::new(),
                retired: Vec::new(),
                rejected: None,
                refused: None,
                grace_until: None,
                hold_until: None,
                last_mount: now,
                mount_interval: Duration::ZERO,
                silent: false,
                handed_over_with: None,
                plans: 0,
            };
            self.volumes.insert(key.clone(), volume);
        }
        let volume = self.volumes.get_mut(&key).expect("inserted above when absent");
        volume.mounted = true;
        volume.grace_until = None;
        volume.hold_until = None;
        let mut fresh = false;
        if let Ok((times, uid)) = &mount.token {
            // The kubelet repeats a token until it is due for a new one; an older one never replaces a newer.
            fresh = volume.token.is_none_or(|held| times.issued > held.issued);
            if fresh || volume.token.is_some_and(|held| times.issued == held.issued) {
                volume.token = Some(*times);
            }
            volume.service_account_uid.clone_from(uid);
        }
        let was_silent = std::mem::take(&mut volume.silent);
        if volume.is_live() {
            volume.mount_interval = volume.mount_interval.max(now.since(volume.last_mount));
        }
        volume.last_mount = now;
        self.dirty_volumes.insert(key.clone());
        if fresh || was_silent {
            self.token_came(&key, fresh, now);
        }
        self.give_back_at_mount(&key, now);
        if self.volumes.get(&key).is_some_and(Volume::is_live) {
            self.mount_live(&key, mount, was_silent, now);
        } else {
            self.mount_new(&key, mount, now);
        }
        self.retime_volume(&key, now);
    }

    /// In driver-written mode a replaced credential is given up at the Mount after the one that delivered
    /// its successor: only then is it sure that the driver wrote it.
    fn give_back_at_mount(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        for retired in std::mem::take(&mut volume.retired) {
            match retired {
                Retired::Session(id) => self.retire_session(id, now, None),
                Retired::Lease(id, lease, ends) => self.owe_lease(id, lease, ends, now, now),
            }
        }
    }

    fn mount_live(&mut self, key: &VolumeKey, mount: Mount, was_silent: bool, now: BootTime) {
        let call = call_of(&mount, now);
        let volume = &self.volumes[key];
        let installed = volume.installed.as_ref().expect("the caller checked that the volume is live");
        let installed_digest = installed.digest;
        let same = installed_digest == mount.digest;
        let spec = match mount.plan {
            // What runs was agreed to. Only policy takes it back: an API server that is down does not, nor does
            // a successor of ours that reads the class more strictly.
            Err(failure) => {
                if same && failure.kind == FailureKind::PermissionDenied {
                    self.refuse(key, failure.message, now);
                } else if !same {
                    self.reject_edit(key, failure.message);
                }
                // A replacement of what runs has no other way to the driver than this Mount.
                let volume = &self.volumes[key];
                let keeps = |attempt: &Attempt| attempt.digest == installed_digest;
                if volume.mode == Mode::DriverWritten
                    && volume.refused.is_none()
                    && volume.attempt.as_ref().is_none_or(keeps)
                {
                    self.mount_driver_written(key, call, was_silent, now);
                } else {
                    self.answer_installed(key, vec![call.id], now);
                }
                return;
            }
            Ok(spec) => spec,
        };
        if !same {
            let joins = volume.attempt.as_ref().is_some_and(|attempt| attempt.digest == mount.digest);
            if joins {
                self.join(key, call, now);
            } else if let Err(failure) = mount.token {
                self.reject_edit(key, failure.message);
                self.answer_installed(key, vec![call.id], now);
            } else {
                self.abandon(key, "the SecretProviderClass changed again", now);
                self.start(key, Aim::new(Reason::Edit, spec, mount.digest), vec![call], now);
            }
            return;
        }
        let edit_in_work = volume.attempt.as_ref().is_some_and(|attempt| attempt.digest != mount.digest);
        if edit_in_work {
            self.abandon(key, "the edit was taken back", now);
        }
        let volume = self.volumes.get_mut(key).expect("looked up above");
        volume.rejected = None;
        if volume.refused.take().is_some() {
            self.abandon(key, "policy allows it again", now);
            self.start(key, Aim::new(Reason::Edit, spec, mount.digest), vec![call], now);
        } else if volume.mode == Mode::DriverWritten {
            self.mount_driver_written(key, call, was_silent, now);
        } else if !mount.intact {
            self.abandon(key, "the files are gone", now);
            self.start(key, Aim::new(Reason::Repair, spec, mount.digest), vec![call], now);
        } else {
            self.answer_installed(key, vec![call.id], now);
        }
    }

    fn mount_driver_written(&mut self, key: &VolumeKey, call: Call, was_silent: bool, now: BootTime) {
        let volume = self.volumes.get_mut(key).expect("the caller looked it up");
        let sessions = &self.sessions;
        let died = |attempt: &Attempt| {
            let session = sessions.get(&attempt.session);
            let ends = |need: &Need| match need {
                Need::Got(dependency) => ends_in(dependency, session),
                Need::Wanted | Need::InFlight(_) | Need::Reuse | Need::Carried => None,
            };
            attempt.needs.values().filter_map(ends).any(|ends| ends <= now)
        };
        if let Some(attempt) = volume.attempt.as_ref()
            && attempt.phase == Phase::Ready
            && died(attempt)
        {
            let (spec, digest) = (Arc::clone(&attempt.spec), attempt.digest);
            self.abandon(key, "the replacement died before a Mount came for it", now);
            let reason = Reason::HandOver("the replacement died before a Mount came for it".into());
            self.start(key, Aim::new(reason, spec, digest), vec![call], now);
        } else if let Some(attempt) = &mut volume.attempt
            && attempt.phase == Phase::Ready
        {
            attempt.calls.push(call);
            self.deliver(key);
        } else if was_silent
            && volume.attempt.is_none()
            && let Some(installed) = &volume.installed
        {
            let (spec, digest) = (Arc::clone(&installed.spec), installed.digest);
            let reason = Reason::HandOver("Mounts had stopped, and came back".into());
            self.start(key, Aim::new(reason, spec, digest), vec![call], now);
        } else {
            self.answer_installed(key, vec![call.id], now);
        }
    }

    fn mount_new(&mut self, key: &VolumeKey, mount: Mount, now: BootTime) {
        let call = call_of(&mount, now);
        let volume = &self.volumes[key];
        let spec = match (mount.plan, mount.token) {
            (Ok(spec), Ok(_)) => spec,
            (Err(failure), _) | (_, Err(failure)) => {
                self.answer(vec![call.id], Err(failure), None, None, None);
                if volume_is_idle(&self.volumes[key]) {
                    self.forget_volume(key, now);
                } else {
                    self.grace(key, now);
                }
                return;
            }
        };
        if volume.attempt.as_ref().is_some_and(|attempt| attempt.digest == mount.digest) {
            self.join(key, call, now);
        } else {
            self.abandon(key, "another Mount of the volume asks for something else", now);
            let volume = self.volumes.get_mut(key).expect("looked up above");
            volume.mode = mount.mode;
            volume.class = mount.class;
            self.start(key, Aim::new(Reason::Mount, spec, mount.digest), vec![call], now);
        }
    }

    /// A second Mount that asks for the same joins the work in flight, or takes it up where it stopped.
    fn join(&mut self, key: &VolumeKey, call: Call, now: BootTime) {
        let Some(attempt) = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut()) else {
            return;
        };
        attempt.calls.push(call);
        match attempt.phase {
            Phase::Waiting(_) | Phase::Unanswered | Phase::Ready => self.resume(key, now),
            Phase::Gathering | Phase::Rendering | Phase::Swapping => {}
        }
    }

    pub(super) fn reject_edit(&mut self, key: &VolumeKey, why: String) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        if volume.rejected.as_ref() != Some(&why) {
            volume.rejected = Some(why.clone());
            self.note(Some(key), Note::EditRejected(why));
        }
    }

    /// Policy refuses the plan that runs: nothing more is asked of Vault for it, its session goes after the
    /// overlap, the files stay.
    fn refuse(&mut self, key: &VolumeKey, why: String, now: BootTime) {
        self.abandon(key, "policy refuses the volume", now);
        let Some(volume) = self.volumes.get_mut(key) else { return };
        if volume.refused.is_some() {
            return;
        }
        volume.refused = Some(why.clone());
        let session = volume.installed.as_ref().map(|installed| installed.session);
        if let Some(session) = session {
            self.end_with_session(key, session);
            let overlap = self.overlap(key);
            self.leave_session(session, key, now + overlap, now);
        }
        self.note(Some(key), Note::Refused(why));
    }

    /// The session is kept up no more, and may not be there any more to tell of its end: its leases die by then.
    fn end_with_session(&mut self, key: &VolumeKey, session: SessionId) {
        let Some(ends) = self.sessions.get(&session).and_then(Session::ends) else { return };
        let installed = self.volumes.get_mut(key).and_then(|volume| volume.installed.as_mut());
        let dependencies = installed.into_iter().flat_map(|installed| installed.dependencies.values_mut());
        for (_, term) in dependencies.filter_map(|known| known.lease.as_mut()) {
            if term.ttl.is_zero() || term.ends() > ends {
                // Zero would be for ever.
                term.ttl = ends.since(term.since).max(Duration::from_millis(1));
            }
        }
    }

    /// Answers with what is on disk.
    pub(super) fn answer_installed(&mut self, key: &VolumeKey, calls: Vec<CallId>, now: BootTime) {
        let Some(volume) = self.volumes.get(key) else { return };
        let Some(installed) = &volume.installed else { return };
        let healthy = volume.rejected.is_none()
            && volume.refused.is_none()
            && volume.token.is_some_and(|token| token.fresh(now));
        let clock = (volume.mode == Mode::ProviderWritten).then(|| (key.clone(), healthy));
        let versions = installed.versions.clone();
        self.answer(calls, Ok(versions), None, None, clock);
    }

    pub(super) fn answer(
        &mut self,
        calls: Vec<CallId>,
        answer: Result<Vec<(String, String)>, MountFailure>,
        deliver: Option<PlanId>,
        report: Option<PlanId>,
        clock: Option<(VolumeKey, bool)>,
    ) {
        self.actions.push_back(Action::Answer { calls, answer, deliver, report, clock });
    }

    /// Answers everyone who waits for the attempt with a failure.
    pub(super) fn answer_all(&mut self, key: &VolumeKey, failure: MountFailure) {
        let Some(attempt) = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut()) else {
            return;
        };
        let calls: Vec<CallId> = std::mem::take(&mut attempt.calls).into_iter().map(|call| call.id).collect();
        if !calls.is_empty() {
            self.answer(calls, Err(failure), None, None, None);
        }
    }

    /// Calls whose time is over are answered with whatever there is to say.
    pub(super) fn answer_overdue(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        let live = volume.is_live();
        let Some(attempt) = &mut volume.attempt else { return };
        let waiting = matches!(attempt.phase, Phase::Waiting(_));
        let (over, rest): (Vec<Call>, Vec<Call>) = std::mem::take(&mut attempt.calls)
            .into_iter()
            .partition(|call| call.deadline <= now || (waiting && call.patience <= now));
        attempt.calls = rest;
        if over.is_empty() {
            return;
        }
        let login = || format!("auth/{} as role \"{}\"", attempt.spec.login.mount, attempt.spec.login.role);
        let reading = attempt.needs.iter().find(|(_, need)| matches!(need, Need::InFlight(_)));
        let reading = reading.and_then(|(id, _)| attempt.spec.user_of(*id));
        let doing = match (attempt.phase, reading) {
            (Phase::Gathering, Some((object, request))) => {
                format!("reading {} for object \"{}\"", request.path, object.name())
            }
            (Phase::Gathering, None) => format!("logging in at {}", login()),
            (Phase::Waiting(_), _) => "waiting to try again".to_owned(),
            (Phase::Rendering | Phase::Swapping | Phase::Unanswered | Phase::Ready, _) => {
                "writing".to_owned()
            }
        };
        let address = &attempt.spec.connection.address;
        let failure = match &attempt.failure {
            Some(error) => failure_of(error),
            None => MountFailure::new(
                FailureKind::Internal,
                format!(
                    "not ready in time, still {doing} on {address}; the work goes on and the next Mount takes it up"
                ),
            ),
        };
        let calls: Vec<CallId> = over.into_iter().map(|call| call.id).collect();
        if live {
            self.answer_installed(key, calls, now);
            let attempt = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut());
            if let Some(attempt) = attempt
                && attempt.calls.is_empty()
                && let Phase::Waiting(Some(until)) = attempt.phase
            {
                // The wait was that of somebody who waits.
                let wait = { attempt.backoff }.next(Pace::BACKGROUND, None, &mut self.jitter);
                attempt.phase = Phase::Waiting(Some(until.max(now + wait)));
            }
        } else {
            self.answer(calls, Err(failure), None, None, None);
            let attempt = self.volumes.get_mut(key).and_then(|volume| volume.attempt.as_mut());
            if let Some(attempt) = attempt
                && attempt.calls.is_empty()
            {
                if matches!(attempt.phase, Phase::Waiting(_)) {
                    attempt.phase = Phase::Waiting(None);
                }
                self.grace(key, now);
            }
        }
    }

    pub(super) fn grace(&mut self, key: &VolumeKey, now: BootTime) {
        if let Some(volume) = self.volumes.get_mut(key)
            && !volume.is_live()
        {
            volume.grace_until = Some(now + RETRY_GRACE);
            self.dirty_volumes.insert(key.clone());
        }
    }

    pub(super) fn unmounted(&mut self, key: &VolumeKey, now: BootTime) {
        let Some(volume) = self.volumes.get_mut(key) else { return };
        volume.mounted = false;
        if volume.is_live() || volume.attempt.is_none() {
            self.note(Some(key), Note::Unmounted);
            self.forget_volume(key, now);
            return;
        }
        // A first mount that failed: the driver unmounts, the kubelet will retry.
        if let Some(attempt) = &mut volume.attempt
            && !matches!(attempt.phase, Phase::Gathering | Phase::Rendering)
        {
            attempt.phase = Phase::Waiting(None);
            attempt.version_dir = None;
        }
        let failure =
            MountFailure::new(FailureKind::Internal, "the volume was unmounted while it was being mounted");
        self.answer_all(key, failure);
        self.grace(key, now);
        self.retime_volume(key, now);
    }

    /// Gives everything back that a volume holds, at once.
    pub(super) fn forget_volume(&mut self, key: &VolumeKey, now: BootTime) {
        self.abandon(key, "the volume is gone", now);
        let Some(volume) = self.volumes.remove(key) else { return };
        if let Some(installed) = &volume.installed {
            self.leave_session(installed.session, key, now, now);
        }
        for retired in volume.retired {
            if let Retired::Session(id) = retired {
                self.retire_session(id, now, None);
            }
        }
        self.hurry_retired(key, now);
        self.set_timer(super::TimerKey::Volume(key.clone()), None);
        self.dirty_volumes.insert(key.clone());
        self.actions.push_back(Action::Forget(key.clone()));
    }
}

fn call_of(mount: &Mount, now: BootTime) -> Call {
    Call { id: mount.call, patience: (now + PATIENCE).min(mount.deadline), deadline: mount.deadline }
}

const fn volume_is_idle(volume: &Volume) -> bool {
    volume.installed.is_none() && volume.attempt.is_none()
}

pub(super) fn failure_of(error: &BackendError) -> MountFailure {
    let kind = match error.class {
        FailureClass::Transient
        | FailureClass::Throttled
        | FailureClass::Sealed
        | FailureClass::LeaseGone => FailureKind::Internal,
        FailureClass::Denied => FailureKind::PermissionDenied,
        FailureClass::NotFound => FailureKind::NotFound,
        FailureClass::Invalid => FailureKind::InvalidArgument,
    };
    MountFailure::new(kind, error.message.clone())
}
