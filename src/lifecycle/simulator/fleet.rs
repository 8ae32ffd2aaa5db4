//! A whole fleet on one server: the load of a steady day, and the recovery after an outage that outlived every
//! token. The shapes and the costs are those of the load model: 12 identities to a node, two static objects to
//! a mount, three distinct ones to an identity, a fifth of the mounts with a database lease.
//!
//! Republishes that bring no fresh token are left out: another test holds that they cost nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    DAWN, HOUR, MINUTE, at,
    audit::Counts,
    node::{Disk, Node},
    server::{AccountToken, Call, Endpoint, Engine, Role, Server, error},
};
use crate::{
    backend::FailureClass,
    clock::BootTime,
    lifecycle::key::VolumeKey,
    lifecycle::{
        Op,
        backoff::Jitter,
        message::{CallId, Lane, Mount, OpId},
        session::SessionId,
        volume::{Mode, Volume},
    },
    spec::{PodIdentity, ProviderName, VolumeSpec},
};

/// ServiceAccounts on a node.
const IDENTITIES: usize = 12;
/// What one OpenBao on two cores was measured to do, in KV reads per second.
const CAPACITY: f64 = 1700.0;
/// Requests in flight per node, and of them for upkeep, as the worker has it.
const IN_FLIGHT: usize = 64;
const BACKGROUND_IN_FLIGHT: usize = 16;
/// The kubelet's tokens live an hour and are renewed at four fifths of it.
const TOKEN_LIFE: Duration = HOUR;
/// Pods of each node that start while the fleet recovers.
const ARRIVALS: usize = 2;
/// They come within the time that the recovery takes at the least.
const ARRIVING: Duration = Duration::from_secs(600);
/// Nodes that are simulated together, with their share of the server: as many as a core's memory holds.
const PART: usize = 250;

/// A fleet's size and day.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) mounts: usize,
    /// Measured after the first two hours.
    pub(crate) steady: Duration,
    /// Down for so long after it; all tokens and leases live an hour.
    pub(crate) outage: Duration,
    /// The share of the server's capacity that this part of a fleet has.
    pub(crate) capacity: f64,
    pub(crate) seed: u64,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    pub(crate) steady: Counts,
    pub(crate) steady_seconds: f64,
    pub(crate) steady_load: BTreeMap<u64, f64>,
    pub(crate) outage_rate: f64,
    pub(crate) recovery: Counts,
    pub(crate) recovered: Counts,
    pub(crate) recovery_seconds: f64,
    /// Units offered in each second since the server came back.
    pub(crate) recovery_load: BTreeMap<u64, f64>,
    /// How long pods that started meanwhile waited, in seconds.
    pub(crate) waits: Vec<f64>,
    pub(crate) converged: bool,
    pub(crate) tokens: usize,
    pub(crate) leases: usize,
}

type Job = (OpId, Option<SessionId>, Lane, Call);

struct Site {
    node: Node,
    queues: [VecDeque<Job>; 2],
    flying: [usize; 2],
    wake: Option<BootTime>,
}

enum Step {
    Mount(usize, usize),
    Served { site: usize, job: Job, sent: BootTime, late: bool },
}

/// A part of a fleet.
struct Fleet {
    shape: Shape,
    now: BootTime,
    random: Jitter,
    server: Server,
    sites: Vec<Site>,
    specs: Vec<Arc<VolumeSpec>>,
    queue: BTreeMap<(BootTime, u64), Step>,
    sequence: u64,
    wakes: BTreeSet<(BootTime, usize)>,
    /// When the server has worked off what it was sent.
    free: BootTime,
    owing: f64,
    offered: Counts,
    served: Counts,
    /// Units by second since the last reset.
    seconds: BTreeMap<u64, f64>,
    /// Mounts that were not answered yet, and since when they wait.
    starting: BTreeMap<(usize, usize), (Option<CallId>, BootTime)>,
    waits: Vec<f64>,
}

/// Simulates a part of a fleet.
pub(crate) fn simulate(shape: Shape) -> Load {
    let mut fleet = Fleet::new(shape);
    let mut load = Load::default();
    fleet.run(at(2 * HOUR));
    fleet.reset();
    fleet.run(at(2 * HOUR + shape.steady));
    load.steady = fleet.offered.clone();
    load.steady_seconds = shape.steady.as_secs_f64();
    load.steady_load = std::mem::take(&mut fleet.seconds);
    load.tokens = fleet.server.live_tokens(fleet.now).count();
    load.leases = fleet.server.live_leases(fleet.now).count();

    if shape.outage.is_zero() {
        load.converged = fleet.healthy();
        return load;
    }
    fleet.server.weather.down = true;
    let back = fleet.now + shape.outage;
    fleet.run(fleet.now + 10 * MINUTE);
    fleet.reset();
    let from = fleet.now;
    fleet.run(back);
    load.outage_rate = fleet.offered.requests() as f64 / back.since(from).as_secs_f64() / shape.nodes as f64;

    fleet.server.weather.down = false;
    fleet.reset();
    for site in 0..shape.nodes {
        for arrival in 0..ARRIVALS {
            let start = fleet.random.between(Duration::ZERO, ARRIVING);
            fleet.push(back + start, Step::Mount(site, shape.mounts + arrival));
        }
    }
    let limit = back + 2 * HOUR;
    while fleet.now < limit && !load.converged {
        fleet.run(fleet.now + Duration::from_secs(5));
        // Pods that start meanwhile are part of it.
        load.converged = fleet.now >= back + ARRIVING && fleet.healthy();
    }
    load.recovery = fleet.offered.clone();
    load.recovered = fleet.served.clone();
    load.recovery_seconds = fleet.now.since(back).as_secs_f64();
    load.recovery_load = std::mem::take(&mut fleet.seconds);
    load.waits = std::mem::take(&mut fleet.waits);
    load
}

impl Fleet {
    fn new(shape: Shape) -> Self {
        let mut server = Server::default();
        for _ in 0..IDENTITIES {
            server.roles.push(Role::default());
            server.accounts.push(true);
        }
        let mut serve = |path: String, engine| {
            server.endpoints.insert(path, Endpoint { engine, deleted: false, denied: false, owner: None });
        };
        for path in 0..3 * IDENTITIES {
            serve(format!("secret/data/{path}"), Engine::Kv { versioned: true, writes: vec![DAWN] });
        }
        serve("database/creds/app".into(), Engine::Database { ttl: HOUR, max: 768 * HOUR });
        let specs = (0..shape.mounts + ARRIVALS)
            .map(|mount| {
                let account = mount % IDENTITIES;
                let turn = mount / IDENTITIES;
                let mut paths = vec![
                    format!("secret/data/{}", 3 * account + turn % 3),
                    format!("secret/data/{}", 3 * account + (turn + 1) % 3),
                ];
                if mount % 5 == 0 {
                    paths.push("database/creds/app".into());
                }
                super::spec(account, &paths.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect();
        let mut random = Jitter::new(shape.seed);
        let sites = (0..shape.nodes)
            .map(|_| Site {
                node: Node::new(random.next_u64(), false),
                queues: [VecDeque::new(), VecDeque::new()],
                flying: [0, 0],
                wake: None,
            })
            .collect();
        let mut fleet = Self {
            shape,
            now: DAWN,
            random,
            server,
            sites,
            specs,
            queue: BTreeMap::new(),
            sequence: 0,
            wakes: BTreeSet::new(),
            free: DAWN,
            owing: 0.0,
            offered: Counts::default(),
            served: Counts::default(),
            seconds: BTreeMap::new(),
            starting: BTreeMap::new(),
            waits: Vec::new(),
        };
        for site in 0..shape.nodes {
            for mount in 0..shape.mounts {
                // A fleet was not started in one minute.
                let start = fleet.random.between(Duration::ZERO, HOUR);
                fleet.push(DAWN + start, Step::Mount(site, mount));
            }
        }
        fleet
    }

    fn reset(&mut self) {
        self.offered = Counts::default();
        self.served = Counts::default();
        self.seconds.clear();
    }

    fn push(&mut self, at: BootTime, step: Step) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), step);
    }

    fn run(&mut self, end: BootTime) {
        loop {
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            let wake = self.wakes.first().copied();
            let Some(soonest) = next.into_iter().chain(wake.map(|(at, _)| at)).min().filter(|at| *at <= end)
            else {
                break;
            };
            self.now = self.now.max(soonest);
            let site = match wake {
                Some((due, site)) if due <= soonest => {
                    self.sites[site].node.timeout(self.now);
                    site
                }
                _ => match self.queue.pop_first() {
                    Some((_, Step::Mount(site, mount))) => self.mount(site, mount),
                    Some((_, Step::Served { site, job, sent, late })) => self.finish(site, job, sent, late),
                    None => break,
                },
            };
            self.collect(site);
        }
        self.now = end;
    }

    fn mount(&mut self, site: usize, mount: usize) -> usize {
        let account = mount % IDENTITIES;
        let uid = format!("{mount}");
        let key = VolumeKey::new(format!("/p/{mount}").into());
        let token = AccountToken { account, issued: self.now, expires: Some(self.now + TOKEN_LIFE) };
        let node = &mut self.sites[site].node;
        node.disks.entry(key.clone()).or_insert_with(|| Disk { mount: 1, ..Disk::default() });
        let call = Mount {
            call: CallId(0),
            key,
            pod: PodIdentity {
                namespace: "n".into(),
                name: uid.clone(),
                uid,
                service_account: format!("s{account}"),
            },
            provider: ProviderName::Leasehold,
            class: String::new(),
            mode: Mode::ProviderWritten,
            plan: Ok(Arc::clone(&self.specs[mount])),
            digest: super::digest(mount as u64),
            token: Ok((
                crate::lifecycle::message::TokenTimes { issued: token.issued, expires: token.expires },
                format!("u{account}"),
            )),
            intact: true,
            deadline: self.now + Duration::from_secs(90),
        };
        let fresh = !node.core.volumes().get(&call.key).is_some_and(Volume::is_live);
        let call = node.mount(call, Some(token), self.now);
        if fresh {
            self.starting.entry((site, mount)).or_insert((None, self.now)).0 = Some(call);
        }
        let again = self.random.scale(TOKEN_LIFE, 800, 825);
        self.push(self.now + again, Step::Mount(site, mount));
        site
    }

    fn finish(&mut self, site: usize, job: Job, sent: BootTime, late: bool) -> usize {
        let (op, session, lane, call) = job;
        let outcome = if late {
            call.failed(error(FailureClass::Transient))
        } else {
            self.server.serve(&call, sent, self.now)
        };
        if outcome.error().is_none() {
            self.served.count(&call);
        }
        let here = &mut self.sites[site];
        here.flying[usize::from(lane == Lane::Background)] -= 1;
        here.node.ended(op, session, outcome, self.now);
        site
    }

    /// Takes what a node has to say; sends what may be sent; sets its alarm.
    fn collect(&mut self, site: usize) {
        let here = &mut self.sites[site];
        here.node.notes.clear();
        here.node.swaps.clear();
        let answered = std::mem::take(&mut here.node.answered);
        assert!(here.node.impossible.is_empty() && here.node.defect.is_none(), "{:?}", here.node.defect);
        for (op, lane, call) in std::mem::take(&mut here.node.out) {
            let session = match here.node.core.ops.get(&op) {
                Some(Op::Login(id)) => Some(*id),
                _ => None,
            };
            here.queues[usize::from(lane == Lane::Background)].push_back((op, session, lane, call));
        }
        let mut send = Vec::new();
        while here.flying[0] + here.flying[1] < IN_FLIGHT {
            let job = match here.queues[0].pop_front() {
                Some(job) => job,
                None if here.flying[1] < BACKGROUND_IN_FLIGHT => match here.queues[1].pop_front() {
                    Some(job) => job,
                    None => break,
                },
                None => break,
            };
            here.flying[usize::from(job.2 == Lane::Background)] += 1;
            send.push(job);
        }
        for (call, answer) in answered {
            self.answered(site, call, answer.is_ok());
        }
        let here = &mut self.sites[site];
        let due = here.node.core.poll_timeout();
        if due != here.wake {
            if let Some(old) = here.wake {
                self.wakes.remove(&(old, site));
            }
            if let Some(due) = due {
                self.wakes.insert((due, site));
            }
            here.wake = due;
        }
        for job in send {
            self.send(site, job);
        }
    }

    /// A pod that waited starts, or the kubelet asks again.
    fn answered(&mut self, site: usize, call: CallId, ok: bool) {
        let waiting = self.starting.iter().find(|((of, _), (asked, _))| *of == site && *asked == Some(call));
        let Some((&(_, mount), &(_, since))) = waiting else { return };
        if ok {
            self.starting.remove(&(site, mount));
            self.waits.push(self.now.since(since).as_secs_f64());
        } else {
            self.push(self.now + Duration::from_secs(1), Step::Mount(site, mount));
        }
    }

    /// One queue, first come first served; who would wait longer than its time-out gives up, unserved.
    fn send(&mut self, site: usize, job: Job) {
        let cost = job.3.cost();
        self.offered.count(&job.3);
        let sent = self.now;
        *self.seconds.entry(sent.as_millis() / 1000).or_default() += cost;
        if self.server.weather.down {
            self.push(sent + Duration::from_millis(2), Step::Served { site, job, sent, late: false });
            return;
        }
        let timeout = Duration::from_secs(if job.2 == Lane::Foreground { 40 } else { 60 });
        let start = self.free.max(sent);
        if start.since(sent) > timeout {
            self.push(sent + timeout, Step::Served { site, job, sent, late: true });
            return;
        }
        self.owing += cost * 1000.0 / self.shape.capacity;
        let whole = self.owing.floor();
        self.owing -= whole;
        self.free = start + Duration::from_millis(whole as u64);
        let done = self.free.max(sent + Duration::from_millis(1));
        self.push(done, Step::Served { site, job, sent, late: false });
    }

    /// Whether every session and every lease in a file lives.
    fn healthy(&self) -> bool {
        let (server, now) = (&self.server, self.now);
        self.sites.iter().all(|site| {
            site.node.core.volumes().values().all(|volume| {
                volume.installed.as_ref().is_some_and(|installed| {
                    let token = site.node.sessions.get(&installed.session);
                    token.is_some_and(|token| server.token_death(*token, now).is_none())
                        && installed.dependencies.values().all(|dependency| {
                            dependency.lease.as_ref().is_none_or(|(lease, _)| {
                                server.lease_death(Server::lease_number(lease), now).is_none()
                            })
                        })
                })
            })
        })
    }
}

impl Load {
    /// Two parts of one fleet, side by side.
    #[must_use]
    pub(crate) fn and(mut self, other: &Self) -> Self {
        for (mine, theirs) in [
            (&mut self.steady, &other.steady),
            (&mut self.recovery, &other.recovery),
            (&mut self.recovered, &other.recovered),
        ] {
            mine.logins += theirs.logins;
            mine.reads += theirs.reads;
            mine.mints += theirs.mints;
            mine.token_renewals += theirs.token_renewals;
            mine.lease_renewals += theirs.lease_renewals;
            mine.revocations += theirs.revocations;
            mine.units += theirs.units;
        }
        for (mine, theirs) in
            [(&mut self.steady_load, &other.steady_load), (&mut self.recovery_load, &other.recovery_load)]
        {
            for (second, units) in theirs {
                *mine.entry(*second).or_default() += units;
            }
        }
        self.waits.extend(&other.waits);
        self.outage_rate = self.outage_rate.max(other.outage_rate);
        self.recovery_seconds = self.recovery_seconds.max(other.recovery_seconds);
        self.converged &= other.converged;
        self.tokens += other.tokens;
        self.leases += other.leases;
        self
    }

    /// Beside the targets of the load model, scaled from its 5,000 nodes with 50 mounts.
    pub(crate) fn table(&self, nodes: usize) -> String {
        let scale = nodes as f64 / 5000.0;
        let per_second = |count: usize| count as f64 / self.steady_seconds;
        let mut text =
            format!("{:<34}{:>12}{:>12}\n", "per second, whole fleet, steady", "simulated", "target");
        for (name, seen, target) in [
            ("KV reads", per_second(self.steady.reads), 600.0),
            ("logins", per_second(self.steady.logins), 0.0),
            ("token renewals", per_second(self.steady.token_renewals), 25.0),
            ("database credentials", per_second(self.steady.mints), 0.0),
            ("lease renewals", per_second(self.steady.lease_renewals), 21.0),
            ("cost units", self.steady.units / self.steady_seconds, 740.0),
        ] {
            let _ = writeln!(text, "{name:<34}{seen:>12.2}{:>12.2}", target * scale);
        }
        for (name, seen, target) in [
            ("live tokens", self.tokens as f64, 60_000.0 * scale),
            ("live leases", self.leases as f64, 50_000.0 * scale),
            (
                "peak second / mean, steady",
                peak(&self.steady_load, scale) / (self.steady.units / self.steady_seconds),
                2.5,
            ),
            ("outage: requests/s of a node", self.outage_rate, 0.05),
            ("recovery: s", self.recovery_seconds, self.minimum(scale) * 1.3),
            ("recovery: offered / served", self.offered_to_served(), 1.2),
            ("recovery: peak second / mean", self.recovery_peak(scale), 2.5),
            ("recovery: new mounts wait, p99 s", self.wait_p99(), 5.0),
        ] {
            let _ = writeln!(text, "{name:<34}{seen:>12.3}{target:>12.3}");
        }
        text
    }

    pub(crate) fn offered_to_served(&self) -> f64 {
        self.recovery.units / self.recovered.units
    }

    pub(crate) fn recovery_peak(&self, scale: f64) -> f64 {
        peak(&self.recovery_load, scale) / (self.recovery.units / self.recovery_seconds)
    }

    pub(crate) fn wait_p99(&self) -> f64 {
        let mut waits = self.waits.clone();
        waits.sort_by(f64::total_cmp);
        waits.get((waits.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
    }

    /// Seconds in which a server of the fleet's share could serve what the recovery took.
    pub(crate) fn minimum(&self, scale: f64) -> f64 {
        self.recovered.units / (CAPACITY * scale)
    }
}

/// Units per second of the busiest second of the whole fleet. A part of it is looked at for as many seconds as
/// it takes for as many requests: of fewer, chance would make the peak.
fn peak(load: &BTreeMap<u64, f64>, scale: f64) -> f64 {
    let window = (1.0 / scale).ceil().max(1.0);
    let mut windows: BTreeMap<u64, f64> = BTreeMap::new();
    for (second, units) in load {
        *windows.entry(second / window as u64).or_default() += units;
    }
    windows.into_values().fold(0.0, f64::max) / window
}

/// A fleet in parts, each with its share of the server: as many at a time as there are cores.
pub(crate) fn fleet(nodes: usize, steady: Duration, outage: Duration) -> Load {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let parts = nodes.div_ceil(PART).max(cores.min(nodes));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut sum: Option<Load> = None;
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return sum;
            }
            let share = nodes / parts + usize::from(part < nodes % parts);
            let load = simulate(Shape {
                nodes: share,
                mounts: 50,
                steady,
                outage,
                capacity: CAPACITY * share as f64 / 5000.0,
                seed: 7 + part as u64,
            });
            sum = Some(match sum {
                Some(sum) => sum.and(&load),
                None => load,
            });
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let loads = workers.into_iter().filter_map(|worker| worker.join().expect("a part ran to its end"));
        loads.reduce(|sum, load| sum.and(&load)).unwrap_or_default()
    })
}
