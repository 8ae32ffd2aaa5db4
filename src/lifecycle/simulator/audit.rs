//! The invariants (I3 to I11 of the design's list), checked while a day goes by. Readers of files are on the
//! real stack: I1, I2 and I12 are not a simulator's business.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    Fault, HOUR, PodState, SECOND, World,
    node::{Node, Swap},
    server::{Call, Cause, Content, Outcome, Server},
};
use crate::{
    clock::BootTime,
    lifecycle::key::VolumeKey,
    lifecycle::{
        Op, TimerKey,
        message::{Lane, Mount, Note, OpId},
        session::SessionState,
        volume::{Mode, Need, Phase},
    },
};

/// Requests of one node in a minute, whatever happens to it (I7): per pod, and besides.
const PER_POD: usize = 40;
const BASE: usize = 40;
/// No background request is repeated sooner after it failed.
const SOONEST: Duration = Duration::from_millis(400);
/// Within this a credential that died by its own TTL must be flagged (I4), and an extra for answers under way.
const FLAGGED: Duration = Duration::from_millis(1500);
/// The overlap that the model's objects ask for.
const OVERLAP: Duration = crate::spec::DEFAULT_OVERLAP;

/// Counts of a day.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) logins: usize,
    pub(crate) reads: usize,
    pub(crate) mints: usize,
    pub(crate) token_renewals: usize,
    pub(crate) lease_renewals: usize,
    pub(crate) revocations: usize,
    pub(crate) swaps: usize,
    pub(crate) units: f64,
}

impl Counts {
    pub(crate) const fn requests(&self) -> usize {
        self.logins + self.reads + self.mints + self.token_renewals + self.lease_renewals + self.revocations
    }

    pub(crate) fn count(&mut self, call: &Call) {
        self.units += call.cost();
        match call {
            Call::Login(_) => self.logins += 1,
            Call::Fetch(_, request) if request.is_write() || is_mint(request.path.as_str()) => {
                self.mints += 1;
            }
            Call::Fetch(..) => self.reads += 1,
            Call::RenewSession(_) => self.token_renewals += 1,
            Call::RenewLease(..) => self.lease_renewals += 1,
            Call::RevokeSession(_) | Call::RevokeLease(..) => self.revocations += 1,
        }
    }
}

pub(crate) fn is_mint(path: &str) -> bool {
    path.starts_with("database/creds/") || path.contains("/issue/")
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    pub(crate) broken: Option<String>,
    pub(crate) idle_spins: u32,
    /// The process is down.
    pub(crate) down: bool,
    pub(crate) counts: Counts,
    pub(crate) notes: BTreeMap<&'static str, usize>,
    minute: VecDeque<BootTime>,
    asked: BTreeMap<OpId, (String, Lane)>,
    failed: BTreeMap<String, BootTime>,
    replaced: BTreeMap<u64, (BootTime, VolumeKey, u64)>,
    /// Since when the server serves nothing, and the background requests since.
    outage: Option<(BootTime, usize)>,
    /// The worst rate of background requests in a long outage, per second.
    pub(crate) outage_rate: f64,
    /// Answers may have been lost until then: what the server granted and what the core knows differ.
    uncertain: bool,
    pub(crate) restarts: usize,
    pub(crate) kinds: BTreeSet<&'static str>,
}

impl Audit {
    pub(crate) fn broke(&mut self, what: impl FnOnce() -> String) {
        if self.broken.is_none() {
            self.broken = Some(what());
        }
    }

    pub(crate) fn noted(&mut self, note: &Note) {
        *self.notes.entry(note.name()).or_default() += 1;
    }

    pub(crate) fn note_count(&self, name: &str) -> usize {
        self.notes.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn ended(&mut self, op: OpId, failed: bool, now: BootTime) {
        if let Some((what, _)) = self.asked.remove(&op)
            && failed
        {
            self.failed.insert(what, now);
        }
    }

    pub(crate) fn fault(&mut self, fault: &Fault, now: BootTime) {
        let name = match fault {
            Fault::AnswersLost(_)
            | Fault::Slow(_)
            | Fault::Kill(..)
            | Fault::Reboot(_)
            | Fault::Suspend(_) => {
                self.uncertain = true;
                "uncertain"
            }
            _ => "other",
        };
        self.kinds.insert(name);
        let _ = now;
    }

    /// A restart alone asks nothing of the server.
    pub(crate) fn restarted(&mut self, node: &Node, _now: BootTime) {
        self.down = false;
        self.restarts += 1;
        self.asked.clear();
        let asks = node
            .out
            .iter()
            .find(|(_, _, call)| !matches!(call, Call::RevokeSession(_) | Call::RevokeLease(..)));
        if let Some((_, _, call)) = asks {
            self.broke(|| format!("a restart alone made a request: {call:?}"));
        }
    }
}

/// A request leaves the node: I7, and no hot loop.
pub(crate) fn asked(world: &mut World, op: OpId, lane: Lane, call: &Call) {
    let now = world.now;
    let pods = world.pods.len();
    let outage = world.server.weather.outage();
    let what = match world.node.core.ops.get(&op) {
        Some(Op::Need(plan, id, session)) => format!("need {} {id:?} {session:?}", plan.key),
        Some(Op::Check(check)) => format!("check {} {:?} {:?}", check.asker, check.id, check.session),
        Some(Op::RenewLease(_, _, _, lease)) => format!("renew {lease}"),
        Some(Op::RevokeLease(_, lease, _)) => format!("revoke {lease}"),
        // A login with another ServiceAccount token is another request: the fresh one is what was waited for.
        Some(Op::Login(id)) => match call {
            Call::Login(token) => format!("login {id:?} {:?}", token.issued),
            other => format!("login {id:?} {other:?}"),
        },
        Some(other) => format!("{other:?}"),
        None => format!("{op:?}"),
    };
    let audit = &mut world.audit;
    audit.counts.count(call);
    audit.minute.push_back(now);
    while audit.minute.front().is_some_and(|at| now.since(*at) > Duration::from_secs(60)) {
        audit.minute.pop_front();
    }
    let in_minute = audit.minute.len();
    if in_minute > BASE + PER_POD * pods {
        audit.broke(|| format!("I7: {in_minute} requests in a minute"));
    }
    if lane == Lane::Background
        && let Some(failed) = audit.failed.get(&what)
        && now.since(*failed) < SOONEST
    {
        let gap = now.since(*failed);
        audit.broke(|| format!("hot loop: {what} again {gap:?} after it failed"));
    }
    match (&mut audit.outage, outage) {
        (None, true) => audit.outage = Some((now, 0)),
        (Some((since, count)), true) => {
            // The first minutes find out; then it is an outage.
            if lane == Lane::Background && now.since(*since) > Duration::from_secs(300) {
                *count += 1;
            }
            let length = now.since(*since).saturating_sub(Duration::from_secs(300));
            if length > Duration::from_secs(1800) {
                let rate = *count as f64 / length.as_secs_f64();
                audit.outage_rate = audit.outage_rate.max(rate);
                if rate > 0.2 {
                    audit.broke(|| format!("I7: {rate:.2} requests/s in an outage"));
                }
            }
        }
        (Some(_), false) => audit.outage = None,
        (None, false) => {}
    }
    audit.asked.insert(op, (what, lane));
}

/// A request reaches the server: nothing is renewed before it is due.
pub(crate) fn arriving(world: &mut World, call: &Call) {
    if world.audit.uncertain {
        return;
    }
    let now = world.now;
    let granted = match call {
        Call::RenewSession(token) => {
            world.server.tokens.get(token).map(|token| (token.granted, token.ends.since(token.granted)))
        }
        Call::RenewLease(_, lease) => world
            .server
            .leases
            .get(&Server::lease_number(lease))
            .map(|lease| (lease.granted, lease.ends.since(lease.granted))),
        _ => None,
    };
    if let Some((since, ttl)) = granted
        && now.since(since) < ttl * 45 / 100
    {
        world.audit.broke(|| format!("{call:?} came {:?} into {ttl:?}: not due", now.since(since)));
    }
}

/// A request was served: what was revoked was in no file, and its overlap was over.
pub(crate) fn served(world: &mut World, call: &Call, outcome: &Outcome) {
    if outcome.error().is_some() {
        return;
    }
    let gone: Vec<u64> = match call {
        Call::RevokeSession(token) => world
            .server
            .leases
            .iter()
            .filter(|(_, lease)| lease.token == *token && lease.dead.is_none())
            .map(|(id, _)| *id)
            .collect(),
        Call::RevokeLease(_, lease) => vec![Server::lease_number(lease)],
        _ => return,
    };
    let now = world.now;
    for pod in &world.pods {
        if pod.state != PodState::Running || pod.refused {
            continue;
        }
        let Some(volume) = world.node.core.volumes().get(&pod.key) else { continue };
        if volume.refused.is_some() || volume.silent {
            continue;
        }
        let Some(disk) = world.node.disks.get(&pod.key).filter(|disk| !disk.unpublishing) else { continue };
        for value in disk.content.iter().flat_map(BTreeMap::values) {
            if let Content::Lease(lease) = value.content
                && gone.contains(&lease)
                && world.server.leases.get(&lease).is_some_and(|lease| lease.ends > now)
                && !matches!(world.server.lease_death(lease, now), Some((at, _)) if at < now)
            {
                world
                    .audit
                    .broke(|| format!("make before break: {call:?} took lease {lease} of {}", pod.key));
            }
        }
        for lease in &gone {
            if let Some((at, key, mount)) = world.audit.replaced.get(lease)
                && *key == pod.key
                && *mount == disk.mount
                && pod.mode == Mode::ProviderWritten
                && now.since(*at) + Duration::from_millis(20) < OVERLAP
            {
                let after = now.since(*at);
                world.audit.broke(|| format!("lease {lease} was revoked {after:?} after its replacement"));
            }
        }
    }
}

/// Files changed: I5, I6, and what is new is alive.
pub(crate) fn swapped(world: &mut World, swap: Swap) {
    let now = world.now;
    world.audit.counts.swaps += 1;
    let Some(pod) = world.pods.iter().find(|pod| pod.key == swap.key) else { return };
    let mount = world.node.disks.get(&swap.key).map_or(0, |disk| disk.mount);
    for (id, value) in &swap.new {
        if value.reader != pod.account {
            let (reader, account) = (value.reader, pod.account);
            world.audit.broke(|| format!("I6: pod of account {account} got what {reader} read"));
        }
        let old = swap.old.as_ref().and_then(|old| old.get(id));
        match (&value.content, old.map(|old| &old.content)) {
            (
                Content::Kv { version: new, generation },
                Some(Content::Kv { version: old, generation: before }),
            ) if new < old && generation == before => {
                world.audit.broke(|| format!("I5: version {old} became {new} in {}", swap.key));
            }
            (Content::Lease(lease), before)
                if before != Some(&value.content)
                    && matches!(
                        world.server.lease_death(*lease, now),
                        Some((at, Cause::Revoked | Cause::Ended)) if at + SECOND < now
                    ) =>
            {
                let death = world.server.lease_death(*lease, now);
                world.audit.broke(|| format!("I4: lease {lease} was dead when written: {death:?}"));
            }
            _ => {}
        }
    }
    for value in swap.old.iter().flat_map(BTreeMap::values) {
        if let Content::Lease(lease) = value.content
            && !swap.new.values().any(|new| new.content == value.content)
        {
            world.audit.replaced.insert(lease, (now, swap.key.clone(), mount));
        }
    }
}

/// Whether a Mount finds everything as it is: then it must cost nothing.
pub(crate) fn republish_is_free(node: &Node, mount: &Mount) -> bool {
    let Some(volume) = node.core.volumes().get(&mount.key) else { return false };
    let Some(installed) = &volume.installed else { return false };
    volume.mode == Mode::ProviderWritten
        && volume.attempt.is_none()
        && volume.refused.is_none()
        && installed.digest == mount.digest
        && mount.plan.is_ok()
        && node.disks.get(&mount.key).is_some_and(|disk| disk.version_dir == installed.version_dir)
}

/// Looks at everything at once: I3, I4, I8.
pub(crate) fn walk(world: &mut World) {
    if world.node.dead {
        return;
    }
    if let Some(broken) = stuck(world).or_else(|| visible(world)).or_else(|| leaked(world)) {
        world.audit.broke(|| broken);
    }
    let now = world.now;
    let old =
        |dead: Option<(BootTime, Cause)>, ends: BootTime| dead.map_or(ends, |(at, _)| at) + HOUR * 24 < now;
    world.server.leases.retain(|_, lease| !old(lease.dead, lease.ends));
    world.server.tokens.retain(|_, token| !old(token.dead, token.ends));
}

/// I8: whatever lives has something under way, a time to act, or a reason not to.
fn stuck(world: &World) -> Option<String> {
    let core = &world.node.core;
    let now = world.now;
    let flies = |op: &Option<OpId>| op.is_none_or(|op| core.ops.contains_key(&op));
    for (key, volume) in &core.volumes {
        let timer = core.timers.get(&TimerKey::Volume(key.clone()));
        let wanted = super::super::upkeep::next_of_volume(volume, now);
        if wanted.is_some_and(|wanted| timer.is_none_or(|timer| *timer > wanted.max(now))) {
            return Some(format!("I8: {key} is due at {wanted:?} and woken at {timer:?}"));
        }
        for (id, dependency) in volume.installed.iter().flat_map(|installed| &installed.dependencies) {
            if !flies(&dependency.op) {
                return Some(format!("I8: {key} {id:?} waits for {:?}, which is gone", dependency.op));
            }
        }
        if let Some(installed) = &volume.installed
            && volume.attempt.is_none()
            && volume.refused.is_none()
            && !volume.silent
        {
            let Some(session) = core.sessions.get(&installed.session) else {
                return Some(format!("I8: {key} lives in {:?}, which is gone", installed.session));
            };
            if !session.users.contains(key) {
                return Some(format!("I8: {key} is no user of its session {:?}", installed.session));
            }
            if matches!(session.state, SessionState::Retiring(_)) {
                return Some(format!("I8: {key} lives in {:?}, which retires", installed.session));
            }
        }
        let Some(attempt) = &volume.attempt else { continue };
        let session = core.sessions.get(&attempt.session);
        let Some(session) = session else {
            return Some(format!("I8: an attempt of {key} in {:?}, which is gone", attempt.session));
        };
        match attempt.phase {
            Phase::Gathering => {
                let reads = attempt
                    .needs
                    .values()
                    .any(|need| matches!(need, Need::InFlight(op) if core.ops.contains_key(op)));
                let logs_in =
                    matches!(session.state, SessionState::New(Some(op)) if core.ops.contains_key(&op));
                // Another login for the identity is on its way, or has its time.
                let succeeds = session.succeeds.is_some()
                    && core.timers.contains_key(&TimerKey::Session(attempt.session));
                if !reads && !logs_in && !succeeds {
                    return Some(format!("I8: {key} gathers nothing: {attempt:?} in {:?}", session.state));
                }
            }
            Phase::Waiting(None) if volume.is_live() && volume.mounted => {
                return Some(format!("I8: an attempt of live {key} waits for ever: {:?}", attempt.reason));
            }
            Phase::Waiting(None) | Phase::Unanswered if volume.grace_until.is_none() && !volume.is_live() => {
                return Some(format!("I8: {key} never answered and has no end: {:?}", attempt.phase));
            }
            Phase::Rendering | Phase::Swapping => {
                return Some(format!("I8: {key} stands at {:?}", attempt.phase));
            }
            Phase::Unanswered if volume.is_live() => {
                return Some(format!("I8: live {key} waits for an answer's fate"));
            }
            _ => {}
        }
    }
    for (id, session) in &core.sessions {
        let timer = core.timers.get(&TimerKey::Session(*id));
        let wanted = core.next_of_session(*id, now);
        if wanted.is_some_and(|wanted| timer.is_none_or(|timer| *timer > wanted.max(now))) {
            return Some(format!("I8: {id:?} is due at {wanted:?} and woken at {timer:?}: {session:?}"));
        }
        if !flies(&session.op) {
            return Some(format!("I8: {id:?} waits for {:?}, which is gone", session.op));
        }
        if let SessionState::New(Some(op)) = session.state
            && !core.ops.contains_key(&op)
        {
            return Some(format!("I8: {id:?} waits for a login that is gone"));
        }
        if session.is_live() && session.users.is_empty() && session.idle_since.is_none() {
            return Some(format!("I8: live {id:?} has no user and no end"));
        }
        for user in &session.users {
            let Some(volume) = core.volumes.get(user) else {
                return Some(format!("I8: {id:?} is kept by {user}, which is gone"));
            };
            let lives = volume.installed.as_ref().is_some_and(|installed| installed.session == *id);
            let works = volume.attempt.as_ref().is_some_and(|attempt| attempt.session == *id);
            if !lives && !works {
                return Some(format!("I8: {id:?} is kept by {user}, which has nothing in it"));
            }
        }
    }
    None
}

/// I4: what is in a file lives, or died in a way that nobody could foresee, or is flagged.
fn visible(world: &World) -> Option<String> {
    let now = world.now;
    for pod in &world.pods {
        if pod.state != PodState::Running {
            continue;
        }
        let Some(disk) = world.node.disks.get(&pod.key) else { continue };
        let volume = world.node.core.volumes.get(&pod.key);
        let Some(installed) = volume.and_then(|volume| volume.installed.as_ref()) else { continue };
        for ((_, id), value) in disk.content.iter().flatten() {
            let Content::Lease(lease) = value.content else { continue };
            let Some((at, Cause::Ended)) = world.server.lease_death(lease, now) else { continue };
            let flagged = installed.dependencies.get(id).is_some_and(|dependency| dependency.expiry_noted);
            if !flagged && at + FLAGGED < now && !world.audit.down {
                return Some(format!("I4: lease {lease} in {} died at {at:?}, unflagged", pod.key));
            }
        }
    }
    None
}

/// I3: everything that lives in the server is known to the core, or its answer is under way or was lost.
fn leaked(world: &World) -> Option<String> {
    let now = world.now;
    let core = &world.node.core;
    let held: BTreeMap<u64, _> = world.node.sessions.iter().map(|(id, token)| (*token, *id)).collect();
    let mut known: BTreeSet<u64> = BTreeSet::new();
    for volume in core.volumes.values() {
        let installed = volume.installed.iter().flat_map(|installed| installed.dependencies.values());
        let got =
            volume.attempt.iter().flat_map(|attempt| attempt.needs.values()).filter_map(|need| match need {
                Need::Got(dependency) => Some(dependency),
                _ => None,
            });
        known.extend(
            installed
                .chain(got)
                .filter_map(|dependency| dependency.lease.as_ref())
                .map(|(lease, _)| Server::lease_number(lease)),
        );
        known.extend(volume.retired.iter().filter_map(|retired| match retired {
            crate::lifecycle::volume::Retired::Lease(_, lease, _) => Some(Server::lease_number(lease)),
            crate::lifecycle::volume::Retired::Session(_) => None,
        }));
    }
    for session in core.sessions.values() {
        known.extend(session.owed.iter().map(|owed| Server::lease_number(&owed.lease)));
        known.extend(session.leftover.iter().map(|(lease, _)| Server::lease_number(lease)));
    }
    for op in core.ops.values() {
        if let Op::RevokeLease(_, lease, _) = op {
            known.insert(Server::lease_number(lease));
        }
    }
    let settled = |created: BootTime| created + Duration::from_secs(120) < now;
    for (id, token) in world.server.live_tokens(now) {
        if !token.orphan && settled(token.created) && !held.contains_key(id) {
            return Some(format!("I3: token {id} of account {} is known to nobody", token.account));
        }
    }
    for (id, lease) in world.server.live_leases(now) {
        let retiring = held
            .get(&lease.token)
            .and_then(|session| core.sessions.get(session))
            .is_some_and(|session| matches!(session.state, SessionState::Retiring(_)));
        let orphan = lease.orphan || world.server.tokens.get(&lease.token).is_some_and(|token| token.orphan);
        // What ends within the overlap is not worth a revocation.
        let brief = lease.ends <= now + OVERLAP + SECOND;
        if !orphan && !brief && settled(lease.created) && !retiring && !known.contains(id) {
            return Some(format!("I3: lease {id} of {} is known to nobody", lease.path));
        }
    }
    None
}

/// I10: once the faults are over, running pods hold what the server holds.
pub(crate) fn converged(world: &World) -> Result<(), String> {
    let now = world.now;
    for (index, pod) in world.pods.iter().enumerate() {
        // Without republishes no fresh ServiceAccount token comes: such a pod may end, and says so.
        if pod.interval.is_none() || pod.refused || pod.invalid || !world.server.accounts[pod.account] {
            continue;
        }
        if pod.state == PodState::Mounting {
            return Err(format!("I10: pod {index} still does not start"));
        }
        if pod.state != PodState::Running {
            continue;
        }
        let wanted: BTreeSet<_> = pod.spec.requests().into_keys().collect();
        let content = world.node.disks.get(&pod.key).and_then(|disk| disk.content.as_ref());
        let Some(content) = content else { return Err(format!("I10: pod {index} has no files")) };
        if content.keys().map(|(_, id)| *id).collect::<BTreeSet<_>>() != wanted {
            return Err(format!("I10: the edit of pod {index} was not followed"));
        }
        for (id, request) in pod.spec.requests() {
            let Some(endpoint) = world.server.endpoints.get(request.path.as_str()) else { continue };
            let stale = |what: &str| Err(format!("I10: {what} at {} of pod {index}", request.path));
            for value in
                content.iter().filter(|((_, shown), _)| *shown == id).map(|(_, value)| &value.content)
            {
                match (value, &endpoint.engine) {
                    (Content::Kv { version, generation }, super::server::Engine::Kv { writes, .. }) => {
                        let settled =
                            writes.iter().filter(|at| **at + Duration::from_secs(400) < now).count() as u64;
                        if *generation != world.server.generation || *version < settled {
                            return stale("an old version");
                        }
                    }
                    (Content::Lease(lease), _) => {
                        if let Some(death) = world.server.lease_death(*lease, now) {
                            return stale(&format!("lease {lease}, dead {death:?},"));
                        }
                    }
                    (Content::Certificate { ends, .. }, _) if *ends <= now => {
                        return stale("a dead certificate");
                    }
                    (
                        Content::Password(password),
                        super::server::Engine::Static { password: now_is, rotated, period },
                    ) => {
                        let elapsed = now.since(*rotated).as_millis() / period.as_millis();
                        if elapsed == 0 && now.since(*rotated) > Duration::from_secs(60) && password != now_is
                        {
                            return stale("an old password");
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

/// After every pod is gone: nothing lives that could be given back.
pub(crate) fn drained(world: &World) -> Result<(), String> {
    let now = world.now;
    if let Some((id, token)) = world.server.live_tokens(now).find(|(_, token)| !token.orphan) {
        return Err(format!("I3: token {id} of account {} outlives all pods", token.account));
    }
    let orphaned = |lease: &super::server::Lease| {
        lease.orphan || world.server.tokens.get(&lease.token).is_some_and(|token| token.orphan)
    };
    if let Some((id, lease)) = world.server.live_leases(now).find(|(_, lease)| !orphaned(lease)) {
        return Err(format!("I3: lease {id} of {} outlives all pods", lease.path));
    }
    let core = &world.node.core;
    if !core.volumes.is_empty() || !core.sessions.is_empty() || !core.ops.is_empty() {
        let left: Vec<_> = core.sessions.iter().map(|(id, record)| (id, &record.state)).collect();
        return Err(format!("the core still holds {} volumes, sessions {left:?}", core.volumes.len()));
    }
    Ok(())
}
