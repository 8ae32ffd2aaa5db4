//! A model of the secret store, as OpenBao 2.7 was measured to behave: what lives in it is the truth that the
//! core's belief is compared with.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    backend::{BackendError, DataLifetime, FailureClass, LeaseTerms, Renewed, SessionTerms},
    clock::BootTime,
    lifecycle::message::{Digest, Fetched},
    spec::SecretRequest,
};

/// A ServiceAccount token as the kubelet hands it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccountToken {
    pub(crate) account: usize,
    pub(crate) issued: BootTime,
    pub(crate) expires: Option<BootTime>,
}

/// What one answer holds, in place of secret bytes; and whose session read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) reader: usize,
    pub(crate) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Kv { version: u64, generation: u64 },
    Lease(u64),
    Password(u64),
    Certificate { serial: u64, ends: BootTime },
}

/// The role an account logs in with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Role {
    pub(crate) ttl: Duration,
    /// `token_max_ttl`; zero for none.
    pub(crate) max: Duration,
    pub(crate) periodic: bool,
    pub(crate) batch: bool,
    pub(crate) num_uses: u64,
    /// Whether its policy has sys/leases/revoke; the default policy has not.
    pub(crate) may_revoke: bool,
    /// The kubernetes method rather than jwt.
    pub(crate) shareable: bool,
}

impl Default for Role {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(3600),
            max: Duration::ZERO,
            periodic: false,
            batch: false,
            num_uses: 0,
            may_revoke: true,
            shareable: true,
        }
    }
}

/// What answers at a path.
#[derive(Clone, Debug)]
pub(crate) enum Engine {
    Kv {
        /// Whether it is version 2.
        versioned: bool,
        /// When each version was written.
        writes: Vec<BootTime>,
    },
    Database {
        ttl: Duration,
        max: Duration,
    },
    Static {
        period: Duration,
        rotated: BootTime,
        password: u64,
    },
    Pki {
        ttl: Duration,
        leased: bool,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) engine: Engine,
    pub(crate) deleted: bool,
    pub(crate) denied: bool,
    /// Whose it is; `None` is everybody's.
    pub(crate) owner: Option<usize>,
}

/// Why something died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its TTL ended: predictable.
    Ended,
    /// The core asked for it.
    Revoked,
    /// A fault took it.
    Fault,
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) account: usize,
    role: Role,
    pub(crate) created: BootTime,
    pub(crate) granted: BootTime,
    pub(crate) ends: BootTime,
    uses: u64,
    pub(crate) dead: Option<(BootTime, Cause)>,
    /// Its answer never arrived: nobody can give it back.
    pub(crate) orphan: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) token: u64,
    pub(crate) path: String,
    pub(crate) created: BootTime,
    pub(crate) granted: BootTime,
    pub(crate) ttl: Duration,
    max: Duration,
    renewable: bool,
    pub(crate) ends: BootTime,
    pub(crate) dead: Option<(BootTime, Cause)>,
    pub(crate) orphan: bool,
}

/// What a request finds on its way and at the server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weather {
    /// Connection refused.
    pub(crate) down: bool,
    /// Packets vanish: the request times out, nothing is done.
    pub(crate) black_hole: bool,
    /// Done, but the answer is lost.
    pub(crate) answers_lost: bool,
    pub(crate) sealed: bool,
    /// 429 with this `Retry-After`; OpenBao sends 0.
    pub(crate) throttled: Option<Duration>,
    /// Reads are answered with nothing, or with half of a body.
    pub(crate) garbled: bool,
    /// A broken renewal statement: 500 at each lease renewal.
    pub(crate) bad_renewals: bool,
    pub(crate) database_down: bool,
    /// TokenReview fails: a bare 403 at logins.
    pub(crate) review_broken: bool,
    /// Reads come from a standby this far behind.
    pub(crate) lag: Duration,
    /// Answers take up to this long.
    pub(crate) slow: Duration,
}

impl Weather {
    /// Whether nothing at all is served.
    pub(crate) const fn outage(&self) -> bool {
        self.down || self.black_hole || self.sealed || self.throttled.is_some()
    }
}

/// A request, with the tokens the shell adds.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Login(AccountToken),
    Fetch(u64, std::sync::Arc<SecretRequest>),
    RenewSession(u64),
    RenewLease(u64, String),
    RevokeSession(u64),
    RevokeLease(u64, String),
}

impl Call {
    /// In the load model's units: a KV read is one.
    pub(crate) fn cost(&self) -> f64 {
        match self {
            Self::Login(_) => 3.1,
            Self::Fetch(_, request) if request.path.as_str().starts_with("database/creds/") => 14.0,
            Self::Fetch(..) => 1.0,
            Self::RenewSession(_) => 2.5,
            Self::RenewLease(..) => 3.7,
            Self::RevokeSession(_) | Self::RevokeLease(..) => 3.7,
        }
    }

    pub(crate) fn failed(&self, error: BackendError) -> Outcome {
        match self {
            Self::Login(_) => Outcome::LoggedIn(Err(error)),
            Self::Fetch(..) => Outcome::Fetched(Err(error)),
            Self::RenewSession(_) | Self::RenewLease(..) => Outcome::Renewed(Err(error)),
            Self::RevokeSession(_) | Self::RevokeLease(..) => Outcome::Revoked(Err(error)),
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    LoggedIn(Result<(SessionTerms, BootTime, u64), BackendError>),
    Fetched(Result<(Fetched, Value), BackendError>),
    Renewed(Result<Renewed, BackendError>),
    Revoked(Result<(), BackendError>),
}

impl Outcome {
    pub(crate) fn error(&self) -> Option<&BackendError> {
        match self {
            Self::LoggedIn(result) => result.as_ref().err(),
            Self::Fetched(result) => result.as_ref().err(),
            Self::Renewed(result) => result.as_ref().err(),
            Self::Revoked(result) => result.as_ref().err(),
        }
    }
}

/// An error of a class, as the backend words it.
pub(crate) fn error(class: FailureClass) -> BackendError {
    BackendError { class, message: format!("model: {class}"), retry_after: None, worth_retrying: false }
}

/// The store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    pub(crate) roles: Vec<Role>,
    /// ServiceAccounts that exist.
    pub(crate) accounts: Vec<bool>,
    pub(crate) endpoints: BTreeMap<String, Endpoint>,
    pub(crate) tokens: BTreeMap<u64, Token>,
    pub(crate) leases: BTreeMap<u64, Lease>,
    pub(crate) weather: Weather,
    pub(crate) last: u64,
    /// Raised by a restored snapshot.
    pub(crate) generation: u64,
    /// Fetches that made something, by account and path.
    pub(crate) mints: Vec<(BootTime, usize, String)>,
}

impl Server {
    pub(crate) fn lease_number(id: &str) -> u64 {
        id.rsplit_once('/').and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Since when and why a token is dead, if it is.
    pub(crate) fn token_death(&self, id: u64, now: BootTime) -> Option<(BootTime, Cause)> {
        let Some(token) = self.tokens.get(&id) else { return Some((BootTime::default(), Cause::Fault)) };
        token.dead.or((token.ends <= now).then_some((token.ends, Cause::Ended)))
    }

    /// The same of a lease: it dies with its token, whatever its own TTL says.
    pub(crate) fn lease_death(&self, id: u64, now: BootTime) -> Option<(BootTime, Cause)> {
        let Some(lease) = self.leases.get(&id) else { return Some((BootTime::default(), Cause::Fault)) };
        let own = lease.dead.or((lease.ends <= now).then_some((lease.ends, Cause::Ended)));
        let parent = self.token_death(lease.token, now);
        own.into_iter().chain(parent).min_by_key(|(at, _)| *at)
    }

    pub(crate) fn live_tokens(&self, now: BootTime) -> impl Iterator<Item = (&u64, &Token)> {
        self.tokens.iter().filter(move |(id, _)| self.token_death(**id, now).is_none())
    }

    pub(crate) fn live_leases(&self, now: BootTime) -> impl Iterator<Item = (&u64, &Lease)> {
        self.leases.iter().filter(move |(id, _)| self.lease_death(**id, now).is_none())
    }

    /// Nobody knows a token that no lease was made with.
    pub(crate) fn forsake(&mut self, id: u64) {
        let used = self.leases.values().any(|lease| lease.token == id);
        if let Some(token) = self.tokens.get_mut(&id).filter(|_| !used) {
            token.orphan = true;
        }
    }

    /// Nobody knows a lease: it ends with its session.
    pub(crate) fn forsake_lease(&mut self, id: &str) {
        if let Some(lease) = self.leases.get_mut(&Self::lease_number(id)) {
            lease.orphan = true;
        }
    }

    /// The answer to a request will not arrive: what it made belongs to nobody.
    pub(crate) fn orphan(&mut self, call: Option<&Call>, outcome: &Outcome) {
        match outcome {
            // It lives longer than the core can know.
            Outcome::Renewed(Ok(_)) => match call {
                Some(Call::RenewSession(token)) => {
                    if let Some(token) = self.tokens.get_mut(token) {
                        token.orphan = true;
                    }
                }
                Some(Call::RenewLease(_, lease)) => {
                    self.forsake_lease(lease);
                }
                _ => {}
            },
            Outcome::LoggedIn(Ok((_, _, token))) => {
                if let Some(token) = self.tokens.get_mut(token) {
                    token.orphan = true;
                }
            }
            Outcome::Fetched(Ok((Fetched { lease: Some(lease), .. }, _))) => {
                self.forsake_lease(&lease.id);
            }
            _ => {}
        }
    }

    /// A fault takes these tokens, and their leases with them.
    pub(crate) fn lose_tokens(&mut self, now: BootTime, pick: impl Fn(u64, &Token) -> bool) {
        for (id, token) in &mut self.tokens {
            if token.dead.is_none() && token.ends > now && pick(*id, token) {
                token.dead = Some((now, Cause::Fault));
            }
        }
    }

    /// An operator revokes one lease.
    pub(crate) fn lose_lease(&mut self, nth: u64, now: BootTime) {
        let live: Vec<u64> = self.live_leases(now).map(|(id, _)| *id).collect();
        let chosen = usize::try_from(nth).unwrap_or(0).checked_rem(live.len()).map(|index| live[index]);
        if let Some(lease) = chosen.and_then(|id| self.leases.get_mut(&id)) {
            lease.dead = Some((now, Cause::Fault));
        }
    }

    /// Back to how things were at `then`: younger tokens are unknown, KV versions go back, and what is
    /// written next is other content under the same version numbers.
    pub(crate) fn restore_snapshot(&mut self, then: BootTime, now: BootTime) {
        self.lose_tokens(now, |_, token| token.created > then);
        for lease in self.leases.values_mut().filter(|lease| lease.created > then) {
            lease.dead = lease.dead.or(Some((now, Cause::Fault)));
        }
        self.generation += 1;
        for endpoint in self.endpoints.values_mut() {
            if let Engine::Kv { writes, .. } = &mut endpoint.engine {
                let keep = writes.iter().filter(|at| **at <= then).count().max(1);
                writes.truncate(keep);
            }
        }
    }

    pub(crate) fn write(&mut self, path: &str, now: BootTime) {
        if let Some(Endpoint { engine: Engine::Kv { writes, .. }, .. }) = self.endpoints.get_mut(path) {
            writes.push(now);
        }
    }

    /// Serves one request that has arrived.
    pub(crate) fn serve(&mut self, call: &Call, sent: BootTime, now: BootTime) -> Outcome {
        let refused = if self.weather.down || self.weather.black_hole {
            Some(error(FailureClass::Transient))
        } else if self.weather.sealed {
            Some(error(FailureClass::Sealed))
        } else if self.weather.throttled.is_some() {
            Some(BackendError { retry_after: self.weather.throttled, ..error(FailureClass::Throttled) })
        } else if self.weather.garbled && matches!(call, Call::Fetch(..)) {
            Some(error(FailureClass::Invalid))
        } else {
            None
        };
        if let Some(error) = refused {
            return call.failed(error);
        }
        match call {
            Call::Login(token) => Outcome::LoggedIn(self.login(*token, sent, now)),
            Call::Fetch(token, request) => Outcome::Fetched(self.fetch(*token, request, sent, now)),
            Call::RenewSession(token) => Outcome::Renewed(self.renew_session(*token, sent, now)),
            Call::RenewLease(token, lease) => Outcome::Renewed(self.renew_lease(*token, lease, sent, now)),
            Call::RevokeSession(token) => Outcome::Revoked(self.revoke_session(*token, now)),
            Call::RevokeLease(token, lease) => Outcome::Revoked(self.revoke_lease(*token, lease, now)),
        }
    }

    fn login(
        &mut self,
        token: AccountToken,
        sent: BootTime,
        now: BootTime,
    ) -> Result<(SessionTerms, BootTime, u64), BackendError> {
        if self.weather.review_broken || !self.accounts[token.account] {
            return Err(BackendError { worth_retrying: true, ..error(FailureClass::Denied) });
        }
        if token.expires.is_some_and(|at| at <= now) {
            return Err(error(FailureClass::Denied));
        }
        let role = self.roles[token.account];
        let ttl = if role.max.is_zero() { role.ttl } else { role.ttl.min(role.max) };
        let id = self.next();
        let record = Token {
            account: token.account,
            role,
            created: now,
            granted: now,
            ends: now + ttl,
            uses: 0,
            dead: None,
            orphan: role.batch,
        };
        self.tokens.insert(id, record);
        let terms = SessionTerms {
            ttl,
            renewable: !role.batch,
            revocable: !role.batch,
            num_uses: role.num_uses,
            shareable: role.shareable,
        };
        Ok((terms, sent, id))
    }

    /// A use of a token: `LeaseGone` when it is dead.
    fn spend(&mut self, id: u64, now: BootTime) -> Result<Token, BackendError> {
        if self.token_death(id, now).is_some() {
            return Err(error(FailureClass::LeaseGone));
        }
        let token = self.tokens.get_mut(&id).ok_or_else(|| error(FailureClass::LeaseGone))?;
        token.uses += 1;
        let spent = token.clone();
        if token.role.num_uses > 0 && token.uses >= token.role.num_uses {
            token.dead = Some((now, Cause::Fault));
        }
        Ok(spent)
    }

    fn fetch(
        &mut self,
        id: u64,
        request: &SecretRequest,
        sent: BootTime,
        now: BootTime,
    ) -> Result<(Fetched, Value), BackendError> {
        let token = self.spend(id, now)?;
        let path = request.path.as_str();
        let (lag, generation, database_down) =
            (self.weather.lag, self.generation, self.weather.database_down);
        let Some(endpoint) = self.endpoints.get_mut(path) else { return Err(error(FailureClass::NotFound)) };
        if endpoint.denied || endpoint.owner.is_some_and(|owner| owner != token.account) {
            return Err(error(FailureClass::Denied));
        }
        if endpoint.deleted {
            return Err(error(FailureClass::NotFound));
        }
        let mut answer =
            Fetched { digest: Digest([0; 16]), lease: None, lifetime: None, kv_version: None, since: sent };
        let content = match &mut endpoint.engine {
            Engine::Kv { versioned, writes } => {
                let lag = u64::try_from(lag.as_millis()).unwrap_or(0);
                let seen = BootTime::from_millis(now.as_millis().saturating_sub(lag));
                let version = writes.iter().filter(|at| **at <= seen).count();
                if version == 0 {
                    return Err(BackendError { worth_retrying: true, ..error(FailureClass::NotFound) });
                }
                let version = version as u64;
                answer.kv_version = versioned.then_some(version);
                Content::Kv { version, generation }
            }
            Engine::Static { period, rotated, password } => {
                let elapsed = now.since(*rotated).as_millis() / period.as_millis();
                if elapsed > 0 {
                    *rotated = *rotated + *period * u32::try_from(elapsed).unwrap_or(1);
                    *password += 1;
                }
                // The server may answer ttl 0 with the old password for some seconds.
                let fresh = now.since(*rotated) >= Duration::from_secs(2);
                let ttl = if fresh { now.until(*rotated + *period) } else { Duration::ZERO };
                answer.lifetime = Some(DataLifetime::Rotates { ttl });
                Content::Password(if fresh { *password } else { password.saturating_sub(1) })
            }
            Engine::Database { .. } if database_down => return Err(error(FailureClass::Transient)),
            Engine::Database { ttl, max } => {
                let (ttl, max) = (*ttl, *max);
                self.mints.push((now, token.account, path.to_owned()));
                let ttl = if token.role.batch { ttl.min(now.until(token.ends)) } else { ttl };
                let renewable = !token.role.batch;
                let lease = self.lease(id, path, ttl, max, renewable, now);
                answer.lease = Some(LeaseTerms { id: format!("{path}/{lease}"), ttl, renewable });
                Content::Lease(lease)
            }
            Engine::Pki { ttl, leased } => {
                let (ttl, leased) = (*ttl, *leased);
                self.mints.push((now, token.account, path.to_owned()));
                if leased {
                    let lease = self.lease(id, path, ttl, ttl, false, now);
                    answer.lease = Some(LeaseTerms { id: format!("{path}/{lease}"), ttl, renewable: false });
                    Content::Lease(lease)
                } else {
                    answer.lifetime = Some(DataLifetime::Expires { ttl });
                    Content::Certificate { serial: self.next(), ends: now + ttl }
                }
            }
        };
        answer.digest = digest(&content);
        Ok((answer, Value { reader: token.account, content }))
    }

    fn lease(
        &mut self,
        token: u64,
        path: &str,
        ttl: Duration,
        max: Duration,
        renewable: bool,
        now: BootTime,
    ) -> u64 {
        let id = self.next();
        let record = Lease {
            token,
            path: path.to_owned(),
            created: now,
            granted: now,
            ttl,
            max,
            renewable,
            ends: now + ttl,
            dead: None,
            orphan: false,
        };
        self.leases.insert(id, record);
        id
    }

    fn renew_session(&mut self, id: u64, since: BootTime, now: BootTime) -> Result<Renewed, BackendError> {
        let spent = self.spend(id, now)?;
        if spent.role.batch {
            return Err(error(FailureClass::Invalid));
        }
        let limit = spent.created + spent.role.max;
        let capped = !spent.role.max.is_zero() && !spent.role.periodic;
        let ends = if capped { (now + spent.role.ttl).min(limit) } else { now + spent.role.ttl };
        if let Some(token) = self.tokens.get_mut(&id) {
            token.ends = ends;
            token.granted = now;
        }
        Ok(Renewed { ttl: now.until(ends), renewable: true, since })
    }

    fn renew_lease(
        &mut self,
        token: u64,
        lease: &str,
        since: BootTime,
        now: BootTime,
    ) -> Result<Renewed, BackendError> {
        self.spend(token, now)?;
        let number = Self::lease_number(lease);
        if self.lease_death(number, now).is_some() {
            return Err(error(FailureClass::LeaseGone));
        }
        let bad = self.weather.bad_renewals;
        let Some(lease) = self.leases.get_mut(&number) else { return Err(error(FailureClass::LeaseGone)) };
        if !lease.renewable {
            return Err(error(FailureClass::Invalid));
        }
        if bad || self.weather.database_down {
            return Err(error(FailureClass::Transient));
        }
        lease.ends = (now + lease.ttl).min(lease.created + lease.max);
        lease.granted = now;
        Ok(Renewed { ttl: now.until(lease.ends), renewable: true, since })
    }

    fn revoke_session(&mut self, id: u64, now: BootTime) -> Result<(), BackendError> {
        if let Ok(spent) = self.spend(id, now) {
            if spent.role.batch {
                return Err(error(FailureClass::Invalid));
            }
            if let Some(token) = self.tokens.get_mut(&id) {
                token.dead = Some((now, Cause::Revoked));
            }
        }
        Ok(())
    }

    fn revoke_lease(&mut self, token: u64, lease: &str, now: BootTime) -> Result<(), BackendError> {
        let spent = self.spend(token, now)?;
        if !spent.role.may_revoke {
            return Err(error(FailureClass::Denied));
        }
        let number = Self::lease_number(lease);
        if self.lease_death(number, now).is_none()
            && let Some(lease) = self.leases.get_mut(&number)
        {
            lease.dead = Some((now, Cause::Revoked));
        }
        Ok(())
    }
}

fn digest(content: &Content) -> Digest {
    let (kind, low, high) = match content {
        Content::Kv { version, generation } => (1_u8, *version, *generation),
        Content::Lease(lease) => (2, *lease, 0),
        Content::Password(password) => (3, *password, 0),
        Content::Certificate { serial, .. } => (4, *serial, 0),
    };
    let mut bytes = [kind; 16];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..15].copy_from_slice(&high.to_le_bytes()[..7]);
    Digest(bytes)
}
