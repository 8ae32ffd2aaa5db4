//! A random day of a node: who runs on it, what they ask for, and what goes wrong.

use std::time::Duration;

use super::{
    Edit, Fault, HOUR, MINUTE, PodSpec, PodState, World, at, audit,
    server::{Engine, Role},
};
use crate::lifecycle::volume::Mode;

/// What a day came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) counts: audit::Counts,
    pub(crate) restarts: usize,
    pub(crate) outage_rate: f64,
}

/// Simulates the day of `seed`; the trace is kept in `world`.
pub(crate) fn day(world: &mut World, seed: u64) -> Result<Summary, String> {
    let mut random = crate::lifecycle::backoff::Jitter::new(seed ^ 0x5eed);
    let mut below = |bound: u64| random.next_u64() % bound;
    let accounts = 1 + below(3) as usize;
    for account in 0..accounts {
        let ttl = [1200, 1800, 3600, 7200][below(4) as usize];
        let max = [0, 0, 3 * 3600, 8 * 3600][below(4) as usize];
        world.role(Role {
            ttl: Duration::from_secs(ttl),
            max: Duration::from_secs(max),
            periodic: below(8) == 0,
            batch: below(16) == 0,
            num_uses: 0,
            may_revoke: below(2) == 0,
            shareable: below(5) > 0,
        });
        for path in [
            format!("secret/data/sa{account}-0"),
            format!("secret/data/sa{account}-1"),
            format!("kv/sa{account}"),
        ] {
            world.kv(&path);
            if let Some(endpoint) = world.server.endpoints.get_mut(&path) {
                endpoint.owner = Some(account);
            }
        }
    }
    world.database("database/creds/hour", 3600, 24 * 3600);
    world.database("database/creds/short", 600, 2400);
    world.database("database/creds/long", 6 * 3600, 48 * 3600);
    for (name, period) in [("quick", 120), ("slow", 3600)] {
        let engine =
            Engine::Static { period: Duration::from_secs(period), rotated: at(Duration::ZERO), password: 1 };
        world.serve(&format!("database/static-creds/{name}"), engine);
    }
    world.serve("pki/issue/leased", Engine::Pki { ttl: 6 * HOUR, leased: true });
    world.serve("pki/issue/plain", Engine::Pki { ttl: 72 * HOUR, leased: false });

    let pods = 1 + below(4) + below(2) * below(5);
    let mut silent = false;
    for _ in 0..pods {
        let account = below(accounts as u64) as usize;
        let paths = paths(&mut below, account);
        let driver_written = below(8) == 0;
        silent |= driver_written;
        let index = world.pod(&PodSpec {
            account,
            paths: paths.iter().map(String::as_str).collect(),
            mode: if driver_written { Mode::DriverWritten } else { Mode::ProviderWritten },
            interval: (below(8) > 0).then(|| Duration::from_secs(75)),
            token_life: Duration::from_secs([600, 3600, 3600, 86_400][below(4) as usize]),
            start: Duration::from_secs(below(12 * 3600)),
        });
        world.pods[index].impatient = [0, 0, 0, 300][below(4) as usize];
        world.pods[index].twice = below(4) == 0;
        if below(3) == 0 {
            world.fault(Duration::from_secs(13 * 3600 + below(10 * 3600)), Fault::Stop(index));
        }
        if below(6) == 0 && !driver_written {
            world.fault(Duration::from_secs(below(18 * 3600)), Fault::Remount(index));
        }
        if below(5) == 0 {
            let edit = match below(5) {
                0 => Edit::Invalid,
                1 => Edit::Refuse,
                2 => Edit::Audience("another"),
                _ => Edit::Paths(super::plan::paths(&mut below, account)),
            };
            let when = below(16 * 3600);
            world.fault(Duration::from_secs(when), Fault::Edit(index, edit.clone()));
            if edit == Edit::Refuse {
                world.fault(Duration::from_secs(when + 2 * 3600), Fault::Edit(index, Edit::Allow));
            }
            if edit == Edit::Invalid {
                let paths = super::plan::paths(&mut below, account);
                world.fault(Duration::from_secs(when + 2 * 3600), Fault::Edit(index, Edit::Paths(paths)));
            }
        }
    }
    for _ in 0..below(12) {
        let path = format!("secret/data/sa{}-{}", below(accounts as u64), below(2));
        world.fault(Duration::from_secs(below(23 * 3600)), Fault::Write(path));
    }
    for _ in 0..below(7) {
        episode(world, &mut below, accounts);
    }

    world.run(Duration::from_secs(24 * 3600))?;
    audit::converged(world)?;
    for pod in 0..world.pods.len() {
        if world.pods[pod].state != PodState::Gone {
            world.stop(pod);
        }
    }
    // A driver-written volume shows no unmount: it is let expire.
    let rest = if silent { 3 * HOUR } else { MINUTE * 5 };
    world.run(24 * HOUR + rest)?;
    if !silent {
        audit::drained(world)?;
    }
    Ok(Summary {
        counts: world.audit.counts.clone(),
        restarts: world.audit.restarts,
        outage_rate: world.audit.outage_rate,
    })
}

pub(crate) fn paths(below: &mut impl FnMut(u64) -> u64, account: usize) -> Vec<String> {
    let mut paths = Vec::new();
    for _ in 0..=below(3) {
        paths.push(match below(12) {
            0..=3 => format!("secret/data/sa{account}-{}", below(2)),
            4 => format!("kv/sa{account}"),
            5 | 6 => "database/creds/hour".into(),
            7 => "database/creds/short".into(),
            8 => "database/creds/long".into(),
            9 => format!("database/static-creds/{}", if below(2) == 0 { "quick" } else { "slow" }),
            10 => "pki/issue/leased".into(),
            _ => "pki/issue/plain".into(),
        });
    }
    paths.sort();
    paths.dedup();
    if paths.len() > 1 && below(3) == 0 {
        let joined = format!("{}+{}", paths[0], paths[1]);
        if below(2) == 0 {
            paths.remove(0);
        }
        paths.push(joined);
    }
    paths
}

/// One thing that goes wrong, and passes before the evening.
fn episode(world: &mut World, below: &mut impl FnMut(u64) -> u64, accounts: usize) {
    let start = 600 + below(14 * 3600);
    let length = [20, 120, 1200, 7200, 3 * 3600][below(5) as usize];
    let from = Duration::from_secs(start);
    let to = Duration::from_secs(start + length);
    let path = format!("secret/data/sa{}-{}", below(accounts as u64), below(2));
    let (on, off) = match below(26) {
        0 | 1 => (Fault::Down(true), Fault::Down(false)),
        2 => (Fault::BlackHole(true), Fault::BlackHole(false)),
        3 => (Fault::AnswersLost(true), Fault::AnswersLost(false)),
        4 => (Fault::Sealed(true), Fault::Sealed(false)),
        5 => (Fault::Throttled(Some(Duration::from_secs(below(2) * below(90)))), Fault::Throttled(None)),
        6 => (Fault::BadRenewals(true), Fault::BadRenewals(false)),
        7 => (Fault::DatabaseDown(true), Fault::DatabaseDown(false)),
        8 => (Fault::ReviewBroken(true), Fault::ReviewBroken(false)),
        9 => (Fault::Lag(Duration::from_millis(1 + below(2200))), Fault::Lag(Duration::ZERO)),
        10 => (Fault::Slow(Duration::from_secs(1 + below(70))), Fault::Slow(Duration::ZERO)),
        11 => (Fault::Deleted(path.clone(), true), Fault::Deleted(path, false)),
        12 => (Fault::Denied(path.clone(), true), Fault::Denied(path, false)),
        13 => (Fault::LoseToken(below(8)), Fault::Refresh),
        14 => (Fault::LostStorage, Fault::Refresh),
        15 => (Fault::Snapshot(Duration::from_secs(below(6 * 3600))), Fault::Refresh),
        16 => (Fault::Suspend(Duration::from_secs(60 + below(2400))), Fault::Refresh),
        17 => (Fault::Full(true), Fault::Full(false)),
        18 => (Fault::Republish(false), Fault::Republish(true)),
        19 => (Fault::Garbled(true), Fault::Garbled(false)),
        20 => (Fault::TokenMissing(true), Fault::TokenMissing(false)),
        21 | 22 => (Fault::LoseLease(below(8)), Fault::Refresh),
        23 if world.journalled() => (Fault::Reboot(Duration::from_secs(30 + below(300))), Fault::Refresh),
        _ if world.journalled() => {
            let steps = if below(2) == 0 { 0 } else { below(60) };
            let back = Duration::from_secs(5 + below(600));
            (Fault::Kill(steps as u32, back), Fault::Refresh)
        }
        _ => (Fault::Down(true), Fault::Down(false)),
    };
    world.fault(from, on);
    world.fault(to, off);
}
