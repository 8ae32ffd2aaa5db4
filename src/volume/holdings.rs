//! The secret bytes of the node: session tokens, ServiceAccount tokens, answers on their way to a file.
//!
//! Answers are held only where the core says so: for the one event that brought them, for a plan in work,
//! and, when asking again would do something, while the volume lives. Everything else is dropped after the
//! swap.

use std::collections::BTreeMap;

use super::{LoginCredential, VolumeKey};
use crate::{
    backend::{ClientToken, Secret},
    lifecycle::{
        message::{OpId, PlanId},
        session::SessionId,
    },
    projection::Payload,
    spec::DependencyId,
};

/// A session's token and its name in the server's audit log.
#[derive(Clone, Debug)]
pub(super) struct HeldSession {
    pub(super) token: ClientToken,
    pub(super) accessor: std::sync::Arc<str>,
}

/// What a plan in work holds.
#[derive(Debug, Default)]
pub(super) struct HeldPlan {
    pub(super) values: BTreeMap<DependencyId, Secret>,
    pub(super) rendered: Option<Payload>,
}

/// Everything secret that this process holds.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    pub(super) sessions: BTreeMap<SessionId, HeldSession>,
    pub(super) tokens: BTreeMap<VolumeKey, LoginCredential>,
    /// Values of what is installed whose request has side effects.
    pub(super) values: BTreeMap<VolumeKey, BTreeMap<DependencyId, Secret>>,
    pub(super) plans: BTreeMap<PlanId, HeldPlan>,
    /// The answer whose event is being handled.
    pub(super) answer: Option<(OpId, Secret)>,
}

impl Holdings {
    /// Copies the answer at hand to a plan.
    pub(super) fn supply(&mut self, op: OpId, plan: PlanId, dependency: DependencyId) {
        if let Some((answered, secret)) = &self.answer
            && *answered == op
        {
            self.plans.entry(plan).or_default().values.insert(dependency, secret.clone());
        }
    }

    /// The read set of a plan: its own answers to `got` over those held for the volume. Other answers that it holds
    /// were given up, and go.
    pub(super) fn read_set(&mut self, plan: &PlanId, got: &[DependencyId]) -> BTreeMap<DependencyId, Secret> {
        let mut values = self.values.get(&plan.key).cloned().unwrap_or_default();
        if let Some(held) = self.plans.get_mut(plan) {
            held.values.retain(|id, _| got.contains(id));
            values.extend(held.values.iter().map(|(id, secret)| (*id, secret.clone())));
        }
        values
    }

    /// The plan is what the volume is now: of all its values only `hold` stay.
    pub(super) fn keep(&mut self, plan: &PlanId, hold: &[DependencyId]) {
        let mut values = self.values.remove(&plan.key).unwrap_or_default();
        if let Some(held) = self.plans.remove(plan) {
            values.extend(held.values);
        }
        values.retain(|id, _| hold.contains(id));
        if !values.is_empty() {
            self.values.insert(plan.key.clone(), values);
        }
    }

    /// Nothing of the volume stays.
    pub(super) fn forget(&mut self, key: &VolumeKey) {
        self.tokens.remove(key);
        self.values.remove(key);
        self.plans.retain(|plan, _| plan.key != *key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::BootTime,
        spec::{ApiPath, SecretRequest},
    };

    /// A credential that died before it could be written: its plan then goes on with the one that is held.
    #[test]
    fn what_was_given_up_is_neither_rendered_nor_kept() {
        let at = BootTime::from_millis;
        let id = SecretRequest::read(ApiPath::parse("database/creds/app").expect("a path")).id();
        let plan = PlanId { key: VolumeKey::new("/p".into()), serial: 1, plan: 2 };
        let mut holdings = Holdings::default();
        holdings.values.entry(plan.key.clone()).or_default().insert(id, Secret::absent(at(1)));
        holdings.answer = Some((OpId(7), Secret::absent(at(2))));
        holdings.supply(OpId(7), plan.clone(), id);
        assert_eq!(holdings.read_set(&plan, &[id])[&id].since, at(2));
        assert_eq!(holdings.read_set(&plan, &[])[&id].since, at(1));
        holdings.keep(&plan, &[id]);
        assert_eq!(holdings.values[&plan.key][&id].since, at(1));
    }
}
