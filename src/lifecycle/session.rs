//! Sessions: one login of one identity, owned by a mount or shared by the identity's mounts on this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    backoff::Backoff,
    key::VolumeKey,
    message::{Digest, OpId},
    renewal::Term,
};
use crate::{
    backend::{Served, SessionTerms},
    clock::BootTime,
    spec::{Connection, DependencyId, LoginSpec},
};

/// Names a session on this node, across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// Who logs in where: mounts of equal identities may share a session where the auth method vouches for the
/// ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    // First what tells two of them apart soonest: they are compared often.
    /// Uid of the ServiceAccount: one deleted and made again is another.
    pub service_account_uid: String,
    /// Its name.
    pub service_account: String,
    /// Its namespace.
    pub namespace: String,
    /// Auth mount, role, audience.
    pub login: Arc<LoginSpec>,
    /// Address, Vault namespace, TLS.
    pub connection: Arc<Connection>,
}

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SessionState {
    /// Not logged in yet; the op while a login is in flight.
    New(#[serde(skip)] Option<OpId>),
    /// Logged in.
    Live,
    /// Given up: revoked once this time has come, then forgotten.
    Retiring(BootTime),
}

/// A lease to be revoked by itself. It stays on record until the server has answered: a crash in between
/// must not lose the debt.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Owed {
    /// Its id.
    pub lease: String,
    /// When it ends by itself.
    pub ends: BootTime,
    /// Not before.
    pub at: BootTime,
    /// Revocation in flight.
    #[serde(skip)]
    pub op: Option<OpId>,
}

/// A session.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Session {
    /// Whose.
    pub identity: Identity,
    /// For the audit line: `namespace/pod`, or `namespace/serviceaccount` when shared.
    pub on_behalf_of: Arc<str>,
    /// For the audit line when nobody uses it any more: the volume whose plan asked for it.
    #[serde(default)]
    pub made_for: Option<Served>,
    /// Whether mounts of the identity share it.
    pub shared: bool,
    /// Where it stands.
    pub state: SessionState,
    /// Volumes that use it, for what is on disk or for a plan in work. Not on record where there are many: what
    /// uses it says so itself.
    #[serde(default, skip_serializing_if = "are_many")]
    pub users: BTreeSet<VolumeKey>,
    /// Values without a lifetime that were read in it and found unchanged: when last, and their digest.
    #[serde(default)]
    pub confirmed: BTreeMap<DependencyId, (BootTime, Digest)>,
    /// Its lifetime, once logged in.
    pub term: Option<Term>,
    /// What the login granted.
    pub terms: Option<SessionTerms>,
    /// Since when a shared session has had no user.
    pub idle_since: Option<BootTime>,
    /// Renewal or revocation in flight.
    #[serde(skip)]
    pub op: Option<OpId>,
    /// Not before: after a failure.
    pub wait_until: Option<BootTime>,
    /// Failures in a row.
    pub backoff: Backoff,
    /// The last failure, for `ls`.
    pub last_error: Option<String>,
    /// Whether renewing was refused: it lives to its end, and is replaced before.
    pub renewal_refused: bool,
    /// Whether the server does not know it any more: it is replaced, and not revoked.
    pub lost: bool,
    /// The session that this one is to take the users of, once logged in.
    pub succeeds: Option<SessionId>,
    /// The volume whose overlap keeps it: when that goes, it goes at once.
    pub retired_from: Option<VolumeKey>,
    /// Leases made in it that nobody uses and that could not be revoked; end of each.
    pub leftover: Vec<(String, BootTime)>,
    /// Leases made in it that are to be revoked one by one.
    pub owed: Vec<Owed>,
    /// Whether the end of its life, and so of all its leases, was reported.
    #[serde(skip)]
    pub expiry_noted: bool,
}

fn are_many(users: &BTreeSet<VolumeKey>) -> bool {
    users.len() > 1
}

impl Session {
    /// A session to be.
    pub fn new(identity: Identity, on_behalf_of: Arc<str>, shared: bool) -> Self {
        Self {
            identity,
            on_behalf_of,
            made_for: None,
            shared,
            state: SessionState::New(None),
            users: BTreeSet::new(),
            confirmed: BTreeMap::new(),
            term: None,
            terms: None,
            idle_since: None,
            op: None,
            wait_until: None,
            backoff: Backoff::default(),
            last_error: None,
            renewal_refused: false,
            lost: false,
            succeeds: None,
            retired_from: None,
            leftover: Vec::new(),
            owed: Vec::new(),
            expiry_noted: false,
        }
    }

    /// Whether requests can be made in it.
    pub fn is_live(&self) -> bool {
        self.state == SessionState::Live
    }

    /// Whether anything but its own renewal may be asked in it: by the clock it lives.
    pub fn can_ask(&self, now: BootTime) -> bool {
        self.is_live() && !self.lost && self.ends().is_none_or(|ends| now < ends)
    }

    /// When it ends, and every lease made in it; `None` before the login, and for one that lives for ever.
    pub fn ends(&self) -> Option<BootTime> {
        self.term.filter(|term| !term.ttl.is_zero()).map(Term::ends)
    }

    /// Its lifetime with what we learnt about renewing it.
    pub fn effective_term(&self) -> Option<Term> {
        self.term.map(|term| Term { renewable: term.renewable && !self.renewal_refused, ..term })
    }
}
