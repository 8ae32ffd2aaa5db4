//! A server as its answers show it: whether upkeep may ask it now, and how fast.
//!
//! While it is out one request at a time finds its return. Then every node of a fleet has everything to make
//! again, so upkeep comes back slowly: one request per interval, which shrinks while the server answers at once
//! and grows while it is slow. Pods that wait are not held back: they find a server that is kept responsive.

use std::time::Duration;

use super::{
    Lifecycle,
    backoff::{Backoff, Pace},
    key::VolumeKey,
    message::OpId,
    session::SessionId,
    upkeep::BUSY,
};
use crate::{
    backend::{BackendError, FailureClass},
    clock::BootTime,
    spec::DependencyId,
};

/// Failures in a row, of any request, after which a server counts as out: one broken path alone, beside
/// others that work, never does.
const OUT_AFTER: u32 = 3;
/// While a server is out, upkeep that is due comes back spread over so long, and longer the longer it is out: all
/// that comes back is due, and one request is enough to find out.
const SPREAD: Duration = Duration::from_secs(20);
const WIDEST_SPREAD: Duration = Duration::from_secs(120);
/// What dies before a server that is out is looked at again asks once more within so long of its end: the server
/// may be back since.
const LAST_CALL: Duration = Duration::from_secs(10);
/// What dies within so long does not wait for its turn once the server is back: of what was granted at different
/// times no more dies in a minute than is renewed in one.
const LAST_MINUTE: Duration = Duration::from_secs(60);
/// A paced request that has to wait looks again within so many intervals: there are many of them.
const TURNS: u32 = 8;

/// After an outage of an hour or more the first requests of a node are so far apart: 5,000 nodes are then no
/// more than what one small server can take of the dearest kind.
const FIRST: Duration = Duration::from_secs(12);
/// Where a queue slows them down: the others slow down too, and who went further would be the last by far.
const SLOW: Duration = Duration::from_secs(24);
/// Requests are never farther apart, whatever the server is asked for.
const SLOWEST: Duration = Duration::from_secs(60);
/// Closer together, pacing has no effect left.
const FASTEST: Duration = Duration::from_millis(50);
/// A server that answers within this can take more.
const PROMPT: Duration = Duration::from_millis(500);
/// One that takes longer has a queue.
const QUEUED: Duration = Duration::from_secs(2);
/// One that takes this long is paced although it never was out.
const OVERLOADED: Duration = Duration::from_secs(10);

/// The time between upkeep's requests.
#[derive(Clone, Copy, Debug)]
struct Pacing {
    interval: Duration,
    next: BootTime,
}

impl Pacing {
    fn adapt(&mut self, took: Duration) {
        if took <= PROMPT {
            self.interval = self.interval * 3 / 4;
        } else if took >= QUEUED {
            let limit = if took >= OVERLOADED { SLOWEST } else { SLOW };
            self.interval = (self.interval * 3 / 2).min(limit).max(self.interval);
        }
    }
}

/// What is known of a server that does not simply answer.
#[derive(Debug, Default)]
pub(super) struct Server {
    backoff: Backoff,
    /// When it failed first.
    since: Option<BootTime>,
    /// Upkeep waits until then.
    closed_until: Option<BootTime>,
    /// It told to be left alone until then.
    told: Option<BootTime>,
    /// The one request that may find out meanwhile.
    probe: Option<OpId>,
    pacing: Option<Pacing>,
}

impl Server {
    /// Whether it answers nobody.
    pub(super) const fn is_out(&self) -> bool {
        self.closed_until.is_some()
    }

    fn spread(&self, now: BootTime) -> Duration {
        let out = self.since.map_or(Duration::ZERO, |since| since.until(now));
        (out / 20).clamp(SPREAD, WIDEST_SPREAD)
    }
}

impl Lifecycle {
    /// Whether upkeep may ask this server now; if not, when to look again. Foreground requests are not asked:
    /// they carry their own patience. `ends`: when what is asked for would die.
    pub(super) fn admit(
        &mut self,
        address: &str,
        ends: Option<BootTime>,
        now: BootTime,
    ) -> Result<(), BootTime> {
        let Some(server) = self.servers.get(address) else { return Ok(()) };
        let (from, spread) = match (server.closed_until, server.pacing) {
            (Some(until), _) => {
                let probing = server.probe.is_some_and(|op| self.ops.contains_key(&op));
                // What dies soon does not wait until it is dead.
                let dying = ends
                    .filter(|ends| now < *ends && *ends <= until)
                    .map(|ends| now + now.until(ends).saturating_sub(LAST_CALL));
                let until = dying.map_or(until, |at| server.told.map_or(at, |told| at.max(told)));
                if now >= until && !probing {
                    return Ok(());
                }
                (until.max(now), server.spread(now))
            }
            (None, Some(pacing))
                if now < pacing.next
                    && ends.is_none_or(|ends| ends <= now || now.until(ends) > LAST_MINUTE) =>
            {
                (pacing.next, pacing.interval * TURNS)
            }
            (None, _) => return Ok(()),
        };
        // Those who wait come back spread out, not together; what dies soon comes back before it does.
        let least = spread.min(SPREAD) / 20;
        let spread = ends.map_or(spread, |ends| (from.until(ends) / 3).clamp(least, spread));
        let until = from + self.jitter.between(least, spread);
        let last = ends.map(|ends| now + now.until(ends).saturating_sub(LAST_MINUTE)).filter(|at| now < *at);
        Err(last.map_or(until, |at| until.min(at)))
    }

    /// Puts upkeep off that waits for other work on the same volume or session: in an outage that work comes to no
    /// end either.
    pub(super) fn delay_behind_work(
        &mut self,
        key: &VolumeKey,
        id: DependencyId,
        address: &str,
        now: BootTime,
    ) {
        let out =
            self.servers.get(address).and_then(|server| Some((server.closed_until?, server.spread(now))));
        let until = match out {
            Some((until, spread)) => until.max(now) + self.jitter.between(BUSY, spread),
            None => now + BUSY,
        };
        self.delay_dependency(key, id, until);
    }

    /// Notes that upkeep's request `op` was made: it may find out whether a server is back, and the next one
    /// has its time.
    pub(super) fn sent(&mut self, address: &str, op: OpId, now: BootTime) {
        let Some(server) = self.servers.get_mut(address) else { return };
        if server.is_out() {
            server.probe = Some(op);
        }
        if let Some(pacing) = &mut server.pacing {
            pacing.next = pacing.next.max(now) + self.jitter.scale(pacing.interval, 750, 1250);
        }
    }

    /// Learns from the end of any request how the server is. `sent`: when, if it was answered.
    pub(super) fn observe(
        &mut self,
        session: SessionId,
        op: OpId,
        result: Result<Option<BootTime>, &BackendError>,
        now: BootTime,
    ) {
        if let Some(session) = self.sessions.get(&session) {
            let address = session.identity.connection.address.clone();
            self.observe_server(&address, op, result, now);
        }
    }

    pub(super) fn observe_server(
        &mut self,
        address: &str,
        op: OpId,
        result: Result<Option<BootTime>, &BackendError>,
        now: BootTime,
    ) {
        let down = result.err().filter(|error| {
            matches!(error.class, FailureClass::Transient | FailureClass::Throttled | FailureClass::Sealed)
        });
        match down {
            None => {
                let took = result.ok().flatten().map(|sent| now.since(sent));
                self.answered_at_last(address, took, now);
            }
            Some(error) => {
                let server = self.servers.entry(address.to_owned()).or_default();
                if server.probe == Some(op) {
                    server.probe = None;
                }
                // Requests that were in flight together fail together: they count once.
                if server.closed_until.is_some_and(|until| now < until) {
                    return;
                }
                server.since.get_or_insert(now);
                server.told = error.retry_after.map(|wait| now + wait);
                let wait = server.backoff.next(Pace::OUTAGE, error.retry_after, &mut self.jitter);
                if server.backoff.failures() >= OUT_AFTER || error.class == FailureClass::Sealed {
                    server.closed_until = Some(now + wait);
                }
            }
        }
    }

    /// `took`: of the request, where that is known.
    fn answered_at_last(&mut self, address: &str, took: Option<Duration>, now: BootTime) {
        let overloaded = took.is_some_and(|took| took >= OVERLOADED);
        if overloaded {
            self.servers.entry(address.to_owned()).or_default();
        }
        let Some(server) = self.servers.get_mut(address) else { return };
        let was_out = server.closed_until.take().is_some();
        let since = server.since.take();
        server.backoff.reset();
        server.probe = None;
        if was_out || (overloaded && server.pacing.is_none()) {
            // What there is to make again grows with the time that nothing could be asked.
            let interval = (since.unwrap_or(now).until(now) / 300).clamp(FASTEST, FIRST);
            let interval = if overloaded { interval.max(Duration::from_secs(1)) } else { interval };
            let next = now + self.jitter.between(Duration::ZERO, interval);
            server.pacing = Some(Pacing { interval, next });
        } else if let Some((pacing, took)) = server.pacing.as_mut().zip(took) {
            pacing.adapt(took);
        }
        if server.pacing.is_none_or(|pacing| pacing.interval < FASTEST) {
            self.servers.remove(address);
        }
        if was_out {
            self.forgive(address);
        }
    }

    /// What failed while the whole server was out says nothing of what was asked for: it is asked for again, before
    /// it is replaced for having failed.
    fn forgive(&mut self, address: &str) {
        let sessions = self.sessions.values_mut();
        for session in sessions.filter(|session| session.identity.connection.address == address) {
            session.backoff.reset();
        }
        let installed = self.volumes.values_mut().filter_map(|volume| volume.installed.as_mut());
        for installed in installed.filter(|installed| installed.spec.connection.address == address) {
            for dependency in installed.dependencies.values_mut() {
                dependency.backoff.reset();
            }
        }
    }
}
