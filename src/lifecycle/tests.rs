//! The core in simulation: random days, and the incidents of the field as scenarios.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use super::{
    renewal::Term,
    simulator::{
        Edit, Fault, HOUR, MINUTE, PodSpec, PodState, SECOND, World, audit, fleet,
        node::Values,
        plan,
        server::{Content, Engine, Role},
    },
    volume::Mode,
};

fn run_seed(seed: u64, trace: bool) -> (Result<plan::Summary, String>, String) {
    let mut world = World::new(seed, seed.is_multiple_of(3));
    if trace {
        world.traced();
    }
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| plan::day(&mut world, seed)))
        .unwrap_or_else(|_| Err("a panic".into()));
    (result, world.trace())
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn explain(seed: u64, error: &str) -> String {
    let (_, trace) = run_seed(seed, true);
    format!(
        "{trace}\nseed {seed}: {error}\nreplay: LEASEHOLD_SEED={seed} cargo test --lib simulator_replay -- --nocapture"
    )
}

#[test]
fn simulate_node_days() {
    let seeds = number("LEASEHOLD_SEEDS", 100);
    let first = number("LEASEHOLD_FIRST_SEED", 1);
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let results: Vec<(u64, Result<plan::Summary, String>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut results = Vec::new();
                    let mut seed = first + thread;
                    while seed < first + seeds {
                        results.push((seed, run_seed(seed, false).0));
                        seed += threads;
                    }
                    results
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let took = started.elapsed();
    println!(
        "{seeds} node-days in {took:?}: {:.2} ms of one core each",
        took.as_secs_f64() * 1000.0 * threads as f64 / seeds as f64
    );
    let mut failures = Vec::new();
    let (mut requests, mut restarts, mut outage_rate) = (0, 0, 0.0_f64);
    for (seed, result) in results {
        match result {
            Ok(day) => {
                requests += day.counts.requests();
                restarts += day.restarts;
                outage_rate = outage_rate.max(day.outage_rate);
            }
            Err(error) => {
                println!("seed {seed}: {error}");
                failures.push((seed, error));
            }
        }
    }
    println!("{requests} requests, {restarts} restarts, at worst {outage_rate:.3} requests/s in an outage");
    if let Some((seed, error)) = failures.first() {
        panic!("{}", explain(*seed, error));
    }
}

#[test]
fn simulator_replay() {
    let seed = number("LEASEHOLD_SEED", 1);
    let (result, _) = run_seed(seed, false);
    if let Err(error) = result {
        panic!("{}", explain(seed, &error));
    }
}

/// A node without surprises: one role, one KV value, two database roles.
fn node(role: Role) -> World {
    let mut world = World::new(11, true);
    world.traced();
    world.role(role);
    world.kv("secret/data/a");
    world.kv("secret/data/b");
    world.database("database/creds/hour", 3600, 24 * 3600);
    world.database("database/creds/short", 60, 300);
    world
}

fn run(world: &mut World, after: Duration) {
    if let Err(broken) = world.run(after) {
        panic!("{}\n{broken}", world.trace());
    }
}

fn pod(paths: &[&'static str]) -> PodSpec<'static> {
    PodSpec { paths: paths.to_vec(), ..PodSpec::default() }
}

fn files(world: &World, pod: usize) -> Values {
    world.node.disks[&world.pods[pod].key].content.clone().expect("the pod has files")
}

fn lease_of(world: &World, pod: usize) -> u64 {
    let leases = files(world, pod).values().find_map(|value| match value.content {
        Content::Lease(lease) => Some(lease),
        _ => None,
    });
    leases.expect("the pod has a credential")
}

/// The oldest version of a KV value that the pod's files show.
fn version_of(world: &World, pod: usize, path: &str) -> u64 {
    let request =
        world.pods[pod].spec.requests().into_iter().find(|(_, request)| request.path.as_str() == path);
    let (id, _) = request.expect("the pod asks for it");
    let versions = files(world, pod).into_iter().filter_map(|((_, shown), value)| match value.content {
        Content::Kv { version, .. } if shown == id => Some(version),
        _ => None,
    });
    versions.min().expect("a file shows it")
}

fn alive(world: &World, pod: usize) -> bool {
    world.server.lease_death(lease_of(world, pod), world.now).is_none()
}

fn stop_all(world: &mut World, rest: Duration) {
    for pod in 0..world.pods.len() {
        world.stop(pod);
    }
    let until = world.now.since(super::simulator::DAWN) + rest;
    run(world, until);
}

fn drained(world: &World) {
    if let Err(broken) = audit::drained(world) {
        panic!("{}\n{broken}", world.trace());
    }
}

/// consul-template#1433: a credential dies with the token that made it, whatever its own lease says.
#[test]
fn parent_token_handover() {
    let mut world = node(Role { ttl: HOUR, max: 3 * HOUR, ..Role::default() });
    world.pod(&pod(&["database/creds/hour"]));
    for hour in 1..24 {
        run(&mut world, HOUR * hour);
        assert!(alive(&world, 0), "hour {hour}");
    }
    assert!((7..=16).contains(&world.audit.counts.logins), "{} logins in 24 h", world.audit.counts.logins);
    assert_eq!(world.audit.note_count("expired"), 0);
    stop_all(&mut world, 2 * MINUTE);
    drained(&world);
}

#[test]
fn hand_over_before_max() {
    let mut world = node(Role { ttl: 20 * MINUTE, max: HOUR, may_revoke: false, ..Role::default() });
    world.pod(&pod(&["database/creds/hour", "secret/data/a"]));
    let first = {
        run(&mut world, MINUTE);
        lease_of(&world, 0)
    };
    run(&mut world, 58 * MINUTE);
    assert_ne!(lease_of(&world, 0), first, "another credential before the token's maximum");
    run(&mut world, 10 * HOUR);
    assert_eq!(world.audit.note_count("expired"), 0);
    assert!(alive(&world, 0));
}

/// vault#30558: a restart costs the server nothing.
#[test]
fn restart_keeps_everything() {
    let mut world = node(Role::default());
    for _ in 0..10 {
        world.pod(&pod(&["database/creds/hour", "secret/data/a"]));
        world.pod(&pod(&["secret/data/a", "secret/data/b"]));
    }
    run(&mut world, 10 * MINUTE);
    let before = world.audit.counts.clone();
    let leases: Vec<u64> = (0..20).step_by(2).map(|pod| lease_of(&world, pod)).collect();
    world.fault(10 * MINUTE + SECOND, Fault::Kill(0, 5 * SECOND));
    run(&mut world, 10 * MINUTE + 20 * SECOND);
    assert_eq!(world.audit.restarts, 1);
    run(&mut world, 5 * HOUR);
    let after = &world.audit.counts;
    assert_eq!((after.logins, after.mints, after.swaps), (before.logins, before.mints, before.swaps));
    let now: Vec<u64> = (0..20).step_by(2).map(|pod| lease_of(&world, pod)).collect();
    assert_eq!(now, leases, "the same credentials, hours later");
    stop_all(&mut world, 2 * MINUTE);
    drained(&world);
}

/// A template after a restart needs a password that is held no more: one new credential, make before break.
/// Where password and value are files of their own, the password's is carried over.
#[test]
fn restart_then_kv_change_mints_exactly_one() {
    for (paths, mints) in
        [(&["database/creds/hour+secret/data/a"][..], 1), (&["database/creds/hour", "secret/data/a"][..], 0)]
    {
        let mut world = node(Role::default());
        world.pod(&pod(paths));
        world.fault(10 * MINUTE, Fault::Kill(0, 5 * SECOND));
        world.fault(20 * MINUTE, Fault::Write("secret/data/a".into()));
        run(&mut world, 15 * MINUTE);
        let before = world.audit.counts.mints;
        run(&mut world, 2 * HOUR);
        assert_eq!(world.audit.counts.mints, before + mints, "{paths:?}");
        assert_eq!(version_of(&world, 0, "secret/data/a"), 2);
        assert!(alive(&world, 0));
        assert_eq!(world.server.live_leases(world.now).count(), 1);
    }
}

/// sscsi#1453: each republish is free (the audit holds it), so a day of them mints nothing.
#[test]
fn republish_mints_nothing() {
    let mut world = node(Role::default());
    world.pod(&pod(&["database/creds/hour"]));
    run(&mut world, 23 * HOUR);
    assert_eq!(world.audit.counts.mints, 1, "one until the maximum of 24 h");
    assert_eq!(world.audit.counts.logins, 1);
}

/// consul-template#2165: 592 database users a minute, there.
#[test]
fn bad_renew_statements() {
    let mut world = node(Role::default());
    world.pod(&pod(&["database/creds/short"]));
    world.fault(MINUTE, Fault::BadRenewals(true));
    run(&mut world, 2 * HOUR);
    let mints: Vec<_> = world.server.mints.iter().map(|(at, ..)| *at).collect();
    assert!(mints.len() > 60, "it is kept alive all the same: {}", mints.len());
    for window in mints.windows(3) {
        assert!(window[2].since(window[0]) >= MINUTE, "three credentials within one TTL");
    }
    assert_eq!(world.audit.note_count("expired"), 0);
    assert!(alive(&world, 0));
}

/// kubernetes-external-secrets#457: renewed on each poll, there. The audit refuses a renewal before 45 % of a
/// TTL; a day of one token and one lease is some 40 of each.
#[test]
fn no_renew_before_due() {
    let mut world = node(Role::default());
    world.pod(&pod(&["database/creds/hour"]));
    run(&mut world, 20 * HOUR);
    let counts = &world.audit.counts;
    assert!((25..=36).contains(&counts.token_renewals), "{counts:?}");
    assert!((25..=36).contains(&counts.lease_renewals), "{counts:?}");
}

/// ESO#376, vault#14531: leases pile up until the server falls over.
#[test]
fn lease_count_flat_48h() {
    for may_revoke in [true, false] {
        let mut world = node(Role { max: 8 * HOUR, may_revoke, ..Role::default() });
        for _ in 0..4 {
            world.pod(&pod(&["database/creds/short", "secret/data/a"]));
        }
        for hour in 1..=48 {
            run(&mut world, HOUR * hour);
            let leases = world.server.live_leases(world.now).count();
            let tokens = world.server.live_tokens(world.now).count();
            assert!(leases <= 12 && tokens <= 8, "hour {hour}: {leases} leases, {tokens} tokens");
        }
        stop_all(&mut world, 2 * MINUTE);
        drained(&world);
    }
}

/// vault#10918, fly.io: a server down for hours; files stay, retries are rare, everything comes back.
#[test]
fn vault_down_6h() {
    let mut world = node(Role { ttl: 24 * HOUR, ..Role::default() });
    world.database("database/creds/day", 24 * 3600, 240 * 3600);
    for _ in 0..8 {
        world.pod(&pod(&["database/creds/day", "secret/data/a"]));
    }
    world.fault(HOUR, Fault::Down(true));
    world.fault(7 * HOUR, Fault::Down(false));
    run(&mut world, 50 * MINUTE);
    let before: Vec<Values> = (0..8).map(|pod| files(&world, pod)).collect();
    run(&mut world, 7 * HOUR);
    let during: Vec<Values> = (0..8).map(|pod| files(&world, pod)).collect();
    assert_eq!(before, during);
    assert!(world.audit.outage_rate <= 0.05, "{} requests/s in the outage", world.audit.outage_rate);
    run(&mut world, 24 * HOUR);
    assert_eq!(world.audit.counts.logins, 8, "no login was needed");
    assert_eq!(world.audit.note_count("expired"), 0);
}

/// vault-k8s#49: what happens if Vault goes down? Each way, for 20 minutes and for three hours; a credential
/// that outlives the outage is never lost, one that does not is flagged and replaced.
#[test]
fn outage_matrix() {
    for (name, on, off) in [
        ("down", Fault::Down(true), Fault::Down(false)),
        ("black hole", Fault::BlackHole(true), Fault::BlackHole(false)),
        ("sealed", Fault::Sealed(true), Fault::Sealed(false)),
        ("throttled", Fault::Throttled(Some(Duration::ZERO)), Fault::Throttled(None)),
        ("answers lost", Fault::AnswersLost(true), Fault::AnswersLost(false)),
        ("slow", Fault::Slow(70 * SECOND), Fault::Slow(Duration::ZERO)),
        ("database down", Fault::DatabaseDown(true), Fault::DatabaseDown(false)),
        ("logins refused", Fault::ReviewBroken(true), Fault::ReviewBroken(false)),
    ] {
        for length in [20 * MINUTE, 3 * HOUR] {
            let mut world = node(Role::default());
            for _ in 0..3 {
                world.pod(&pod(&["database/creds/hour", "secret/data/a"]));
                world.pod(&pod(&["secret/data/b"]));
            }
            world.fault(HOUR, on.clone());
            world.fault(HOUR + length, off.clone());
            if let Err(broken) = world.run(HOUR + length) {
                panic!("{}\n{name} for {length:?}: {broken}", world.trace());
            }
            if length < 21 * MINUTE {
                // B11: an outage of a third of a TTL is not noticed.
                assert_eq!(world.audit.note_count("expired"), 0, "{name}");
            }
            assert!(world.audit.outage_rate <= 0.2, "{name}: {}", world.audit.outage_rate);
            run(&mut world, HOUR + length + 10 * MINUTE);
            if let Err(broken) = audit::converged(&world) {
                panic!("{}\n{name} for {length:?}: {broken}", world.trace());
            }
        }
    }
}

/// sscsi#1483: five hours of 429 with a `Retry-After` of zero.
#[test]
fn server_429_5h() {
    let mut world = node(Role { ttl: 24 * HOUR, ..Role::default() });
    for _ in 0..8 {
        world.pod(&pod(&["secret/data/a", "secret/data/b"]));
    }
    world.pod(&PodSpec { start: 90 * MINUTE, ..pod(&["secret/data/a"]) });
    world.fault(HOUR, Fault::Throttled(Some(Duration::ZERO)));
    world.fault(6 * HOUR, Fault::Throttled(None));
    run(&mut world, 6 * HOUR + 5 * MINUTE);
    assert!(world.audit.outage_rate <= 0.05, "{} requests/s", world.audit.outage_rate);
    assert_eq!(world.pods[8].state, PodState::Running, "the pod that came meanwhile starts");
}

/// B9: mounts and unmounts with kills; live leases are what live mounts hold.
#[test]
fn churn_lease_equals_mounts() {
    let mut world = node(Role::default());
    let mut start = Duration::ZERO;
    for round in 0..300_u32 {
        let pod = world.pod(&PodSpec { start, ..pod(&["database/creds/hour"]) });
        world.fault(start + 90 * SECOND, Fault::Stop(pod));
        if round % 7 == 3 {
            world.fault(start + SECOND * (round % 50), Fault::Kill(round % 11, 3 * SECOND));
        }
        start += 20 * SECOND;
    }
    run(&mut world, start + 5 * MINUTE);
    drained(&world);
    let orphans = world.server.live_leases(world.now).count();
    assert_eq!(orphans, 0, "nothing beyond a minute while the server is up");
    let lost = world.server.live_tokens(world.now).count();
    assert!(lost <= world.audit.restarts, "at most one lease-free token for each kill");
}

#[test]
fn revoke_on_unmount() {
    for (paths, within) in [(vec!["database/creds/hour"], 2 * SECOND), (vec!["secret/data/a"], 64 * SECOND)] {
        let mut world = node(Role { may_revoke: false, ..Role::default() });
        let index = world.pod(&pod(&paths));
        run(&mut world, 10 * MINUTE);
        assert_eq!(world.server.live_tokens(world.now).count(), 1);
        world.stop(index);
        run(&mut world, 10 * MINUTE + within);
        assert_eq!(world.server.live_tokens(world.now).count(), 0, "{paths:?}");
        assert_eq!(world.server.live_leases(world.now).count(), 0);
    }
}

/// The ServiceAccount is gone: no login works any more; the mount lives to its session's maximum, then it is
/// flagged, and the server is left alone.
#[test]
fn sa_deleted_stops() {
    let mut world = node(Role { ttl: HOUR, max: 2 * HOUR, ..Role::default() });
    world.pod(&pod(&["database/creds/hour"]));
    world.fault(30 * MINUTE, Fault::AccountDeleted(0));
    run(&mut world, 4 * HOUR);
    assert!(world.audit.note_count("expired") >= 1);
    let before = world.audit.counts.requests();
    run(&mut world, 10 * HOUR);
    let asked = world.audit.counts.requests() - before;
    assert!(asked <= 6 * 20, "{asked} requests in six hours without a ServiceAccount");
    stop_all(&mut world, 2 * MINUTE);
    drained(&world);
}

/// A standby answers older versions; the audit refuses a version that goes back. A restored snapshot is
/// believed after it was seen for some time.
#[test]
fn no_version_regress() {
    let mut world = node(Role::default());
    world.pod(&pod(&["secret/data/a", "secret/data/b"]));
    world.fault(SECOND, Fault::Lag(Duration::from_millis(2200)));
    for minute in 1..600 {
        world.fault(MINUTE * minute, Fault::Write("secret/data/a".into()));
    }
    run(&mut world, 10 * HOUR);
    world.fault(10 * HOUR + SECOND, Fault::Snapshot(8 * HOUR));
    run(&mut world, 10 * HOUR + 10 * MINUTE);
    assert!(audit::converged(&world).is_ok(), "{:?}\n{}", audit::converged(&world), world.trace());
}

#[test]
fn spc_change_revalidated() {
    let mut world = node(Role::default());
    let index = world.pod(&pod(&["secret/data/a"]));
    for (minute, edit) in [
        (10, Edit::Invalid),
        (20, Edit::Paths(vec!["secret/data/b".into(), "database/creds/hour".into()])),
        (30, Edit::Refuse),
        (40, Edit::Allow),
        (50, Edit::Paths(vec!["secret/data/none".into()])),
    ] {
        world.fault(MINUTE * minute, Fault::Edit(index, edit));
    }
    run(&mut world, 19 * MINUTE);
    assert_eq!(
        (world.audit.note_count("edit-rejected"), files(&world, 0).len()),
        (1, 1),
        "the old files stay"
    );
    run(&mut world, 29 * MINUTE);
    assert_eq!(files(&world, 0).len(), 3, "a value, a user and its password");
    run(&mut world, 39 * MINUTE);
    assert_eq!(world.audit.note_count("refused"), 1);
    assert_eq!(world.server.live_leases(world.now).count(), 0, "what policy refuses is given back");
    run(&mut world, 49 * MINUTE);
    assert!(alive(&world, 0), "and made again once it is allowed");
    run(&mut world, 3 * HOUR);
    assert!(alive(&world, 0), "an edit that names nothing changes nothing");
    assert!(world.audit.note_count("edit-rejected") >= 2);
    stop_all(&mut world, 2 * MINUTE);
    drained(&world);
}

/// A node that starts anew has no record: its pods are mounted anew, what lived before is left to its TTL.
#[test]
fn a_reboot_orphans_what_was_given_out_for_its_ttl() {
    let mut world = node(Role { ttl: 20 * MINUTE, ..Role::default() });
    for _ in 0..3 {
        world.pod(&pod(&["database/creds/hour", "secret/data/a"]));
    }
    world.fault(HOUR, Fault::Reboot(MINUTE));
    run(&mut world, HOUR + 5 * MINUTE);
    assert!((0..3).all(|pod| alive(&world, pod)));
    assert_eq!(world.server.live_tokens(world.now).count(), 6, "three of them nobody's");
    run(&mut world, HOUR + 25 * MINUTE);
    assert_eq!(world.server.live_tokens(world.now).count(), 3, "the orphan window is the token's TTL");
    stop_all(&mut world, 2 * MINUTE);
    drained(&world);
}

/// An operator revokes a lease, or the driver passes no token for hours: what can be kept true is.
#[test]
fn a_lease_revoked_by_hand_and_a_missing_token() {
    let mut world = node(Role::default());
    world.pod(&pod(&["database/creds/hour", "secret/data/a"]));
    world.fault(10 * MINUTE, Fault::LoseLease(0));
    world.fault(HOUR, Fault::TokenMissing(true));
    world.fault(5 * HOUR, Fault::TokenMissing(false));
    run(&mut world, 55 * MINUTE);
    assert!(alive(&world, 0), "found out at its renewal");
    assert_eq!(
        (world.audit.note_count("expired"), world.audit.counts.logins),
        (1, 1),
        "shown, and minted anew"
    );
    run(&mut world, 6 * HOUR);
    assert!(alive(&world, 0));
    assert!(world.audit.counts.logins <= 2, "a live mount needs its last token once, before that ends");
}

/// Threat row: shared sessions and coalesced checks never carry one identity's value to another. The audit
/// compares who read each value with whose pod shows it.
#[test]
fn model_no_cross_identity() {
    for seed in 0..40 {
        let mut world = World::new(seed, false);
        for _ in 0..3 {
            world.role(Role::default());
        }
        for path in ["secret/data/a", "secret/data/b"] {
            world.kv(path);
        }
        for pod_index in 0..24 {
            world.pod(&PodSpec {
                account: pod_index % 3,
                start: SECOND * u32::try_from(pod_index).unwrap(),
                ..pod(&["secret/data/a", "secret/data/b"])
            });
        }
        for minute in 1..60 {
            world.fault(MINUTE * minute, Fault::Write("secret/data/a".into()));
        }
        world.fault(20 * MINUTE, Fault::LoseToken(seed));
        run(&mut world, HOUR);
        assert!(world.audit.counts.swaps > 24 * 30);
    }
}

#[test]
fn kv_refresh_is_coalesced() {
    let mut world = node(Role::default());
    for _ in 0..20 {
        world.pod(&pod(&["secret/data/a", "secret/data/b"]));
    }
    run(&mut world, HOUR);
    let before = world.audit.counts.reads;
    run(&mut world, 3 * HOUR);
    let reads = world.audit.counts.reads - before;
    assert!((46..=56).contains(&reads), "{reads} reads of two values in two hours");
    assert_eq!(world.server.live_tokens(world.now).count(), 1, "one session for all");
}

/// istio#27945: each login is a TokenReview. A burst of first mounts waits for one login of its identity and
/// reads each value once; where the method vouches for a pod only, each logs in for itself.
#[test]
fn login_budget() {
    for (shareable, logins, reads) in [(true, 1, 2), (false, 20, 40)] {
        let mut world = node(Role { shareable, ..Role::default() });
        for _ in 0..20 {
            world.pod(&pod(&["secret/data/a", "secret/data/b"]));
        }
        run(&mut world, MINUTE);
        assert!((0..20).all(|pod| world.pods[pod].state == PodState::Running));
        let counts = &world.audit.counts;
        assert_eq!((counts.logins, counts.reads), (logins, reads), "shareable: {shareable}");
        stop_all(&mut world, 2 * MINUTE);
        drained(&world);
    }
}

/// What is shaped as KV and answers with a lease all the same moves its mount to a login of its own.
#[test]
fn a_lease_at_a_path_shaped_as_kv_gets_a_session_of_its_own() {
    let mut world = node(Role { may_revoke: false, ..Role::default() });
    world.database("plugin/data/creds", 3600, 24 * 3600);
    for _ in 0..3 {
        world.pod(&pod(&["plugin/data/creds"]));
    }
    world.pod(&pod(&["secret/data/a"]));
    run(&mut world, 10 * MINUTE);
    assert!((0..3).all(|pod| alive(&world, pod)), "{}", world.trace());
    assert_eq!(world.server.live_tokens(world.now).count(), 4, "one each, and the shared one");
    world.stop(0);
    run(&mut world, 11 * MINUTE);
    assert!((1..3).all(|pod| alive(&world, pod)), "one pod's end is no other's");
    let again = world.pod(&PodSpec { start: 11 * MINUTE, ..pod(&["plugin/data/creds"]) });
    let before = world.server.mints.len();
    run(&mut world, 12 * MINUTE);
    assert_eq!(world.pods[again].state, PodState::Running);
    assert_eq!(world.server.mints.len(), before + 1, "once it is known nothing is minted in vain");
}

/// aws provider#136, GCP#383: a node starts with 250 mounts of 12 identities, a fifth of them with a database
/// credential.
#[test]
fn mount_storm_250() {
    let mut world = World::new(3, false);
    for identity in 0..12 {
        world.role(Role::default());
        for path in 0..3 {
            world.kv(&format!("secret/data/{identity}-{path}"));
        }
    }
    world.database("database/creds/hour", 3600, 24 * 3600);
    for index in 0..250_usize {
        let account = index % 12;
        let paths = [format!("secret/data/{account}-{}", index % 3), format!("secret/data/{account}-0")];
        let mut paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        if index % 5 == 0 {
            paths.push("database/creds/hour");
        }
        world.pod(&PodSpec { account, paths, ..PodSpec::default() });
    }
    run(&mut world, 20 * SECOND);
    assert!(world.pods.iter().all(|pod| pod.state == PodState::Running));
    let counts = &world.audit.counts;
    assert_eq!((counts.logins, counts.mints), (12 + 50, 50), "one for each identity, and for each lease");
    assert!(counts.reads <= 36 + 100, "{} reads of 36 values", counts.reads);
}

/// gocardless, 2020: renewals failed for 22 minutes because the server's certificate had expired; containers
/// exited. To the core it is a server that cannot be asked.
#[test]
fn vault_cert_expired_then_fixed() {
    let mut world = node(Role::default());
    for _ in 0..8 {
        world.pod(&pod(&["database/creds/hour", "secret/data/a"]));
    }
    world.fault(HOUR, Fault::Down(true));
    world.fault(HOUR + 22 * MINUTE, Fault::Down(false));
    run(&mut world, 50 * MINUTE);
    let before: Vec<Values> = (0..8).map(|pod| files(&world, pod)).collect();
    run(&mut world, 5 * HOUR);
    let after: Vec<Values> = (0..8).map(|pod| files(&world, pod)).collect();
    assert_eq!(before, after, "the same credentials all along");
    assert_eq!((world.audit.note_count("expired"), world.audit.counts.logins), (0, 8));
}

/// Driver-written volumes show no unmount: what Mounts stopped coming for is let expire.
#[test]
fn driver_written_silence() {
    let mut world = node(Role::default());
    world.pod(&PodSpec { mode: Mode::DriverWritten, ..pod(&["database/creds/hour"]) });
    run(&mut world, 2 * HOUR);
    assert!(alive(&world, 0), "kept true while Mounts come");
    world.fault(2 * HOUR, Fault::Republish(false));
    run(&mut world, 2 * HOUR + 11 * MINUTE);
    assert_eq!(world.audit.note_count("silent"), 1);
    run(&mut world, 4 * HOUR);
    assert_eq!(world.server.live_tokens(world.now).count(), 0);
    world.fault(4 * HOUR, Fault::Republish(true));
    run(&mut world, 4 * HOUR + 5 * MINUTE);
    assert!(alive(&world, 0), "a Mount that comes back brings it back");
}

/// A lease-free volume that Mounts came back to lives in a session that was logged in, and follows changes.
#[test]
fn after_silence_changes_are_followed() {
    let mut world = node(Role { ttl: 20 * MINUTE, ..Role::default() });
    world.pod(&PodSpec { mode: Mode::DriverWritten, ..pod(&["secret/data/a"]) });
    world.fault(HOUR, Fault::Republish(false));
    world.fault(3 * HOUR, Fault::Republish(true));
    world.fault(4 * HOUR, Fault::Write("secret/data/a".into()));
    run(&mut world, 4 * HOUR + 10 * MINUTE);
    assert_eq!(version_of(&world, 0, "secret/data/a"), 2, "{}", world.trace());
}

/// A session that a driver-written volume has left is kept until the driver wrote its successor, and is not kept
/// up meanwhile: each hand-over would leave one behind.
#[test]
fn a_session_kept_for_the_driver_has_no_successor() {
    let mut world = node(Role { ttl: 20 * MINUTE, batch: true, ..Role::default() });
    world.pod(&PodSpec {
        mode: Mode::DriverWritten,
        interval: Some(2 * MINUTE),
        ..pod(&["database/creds/hour"])
    });
    run(&mut world, 6 * HOUR);
    let logins = world.audit.counts.logins;
    assert!(logins <= 6 * 60 / 12 + 1, "{logins} logins for a session of 20 minutes");
    assert!(alive(&world, 0));
}

/// What was minted in a session that ends before a Mount came for it does not come over to its successor: it
/// dies there, and says so (I4, which every run checks).
#[test]
fn what_waits_for_the_driver_stays_in_its_session() {
    let mut world = node(Role { ttl: 20 * MINUTE, batch: true, ..Role::default() });
    for _ in 0..8 {
        let slow = Some(20 * MINUTE);
        world.pod(&PodSpec { mode: Mode::DriverWritten, interval: slow, ..pod(&["database/creds/hour"]) });
    }
    // The hand-over of the first session waits until its own is due for one.
    world.fault(MINUTE, Fault::DatabaseDown(true));
    world.fault(24 * MINUTE, Fault::DatabaseDown(false));
    run(&mut world, 6 * HOUR);
    assert!(world.audit.note_count("expired") > 0, "no Mount comes in the life of a session");
}

/// A login that was refused is not made again because some other pod's token is new: it is made with the one that
/// ends last.
#[test]
fn another_pods_token_repeats_no_login() {
    let mut world = node(Role { ttl: 20 * MINUTE, max: HOUR, ..Role::default() });
    world.pod(&PodSpec { token_life: 24 * HOUR, ..pod(&["secret/data/a"]) });
    for _ in 0..11 {
        world.pod(&PodSpec { token_life: 10 * MINUTE, ..pod(&["secret/data/a"]) });
    }
    world.fault(40 * MINUTE, Fault::ReviewBroken(true));
    run(&mut world, HOUR);
    let before = world.audit.counts.logins;
    run(&mut world, 2 * HOUR);
    let logins = world.audit.counts.logins - before;
    assert!(logins <= 60 * 60 / 30, "{logins} logins in an hour of refusals");
}

/// What an attempt has minted is asked for again when its session is about to end. The session is renewed after all,
/// and both live on in it.
#[test]
fn what_was_given_up_in_a_session_that_lives_on_is_given_back() {
    let mut world = node(Role::default());
    world.serve("pki/issue/leased", Engine::Pki { ttl: 6 * HOUR, leased: true });
    world.pod(&pod(&["pki/issue/leased", "secret/data/a"]));
    world.fault(Duration::ZERO, Fault::Deleted("secret/data/a".into(), true));
    run(&mut world, 6 * SECOND);
    let term =
        |world: &World| world.node.core.sessions.values().next().and_then(|session| session.term).unwrap();
    let set = |world: &mut World, term| {
        world.node.core.sessions.values_mut().for_each(|session| session.term = Some(term));
    };
    let granted = term(&world);
    let ttl = world.now.since(granted.since) + 4 * SECOND;
    set(&mut world, Term { ttl, ..granted });
    run(&mut world, 9 * SECOND + Duration::from_millis(900));
    set(&mut world, granted);
    assert_eq!(world.audit.counts.mints, 2, "{}", world.trace());
    run(&mut world, 3 * MINUTE);
    assert_eq!(world.server.live_leases(world.now).count(), 1, "{}", world.trace());
}

/// What died with its session while its answer was on the way is asked for again, and not written.
#[test]
fn what_died_on_its_way_is_not_written() {
    let mut world = node(Role::default());
    world.pod(&pod(&["database/creds/hour"]));
    world.fault(Duration::ZERO, Fault::Slow(30 * SECOND));
    let mut after = Duration::ZERO;
    while world.server.leases.is_empty() {
        after += SECOND / 10;
        run(&mut world, after);
    }
    let ends = world.now + SECOND / 1000;
    for session in world.node.core.sessions.values_mut() {
        session.term = session.term.map(|term| Term { ttl: ends.since(term.since), ..term });
    }
    world.server.tokens.values_mut().for_each(|token| token.ends = ends);
    run(&mut world, after + 5 * MINUTE);
    assert!(alive(&world, 0), "{}", world.trace());
    assert_eq!(world.server.mints.len(), 2);
}

/// A first mount that fails after it has minted: the kubelet's retries use what is there.
#[test]
fn retry_reuses_what_was_minted() {
    let mut world = node(Role::default());
    world.pod(&pod(&["database/creds/hour", "secret/data/a"]));
    world.fault(Duration::ZERO, Fault::Deleted("secret/data/a".into(), true));
    world.fault(10 * MINUTE, Fault::Deleted("secret/data/a".into(), false));
    run(&mut world, 15 * MINUTE);
    assert_eq!(world.pods[0].state, PodState::Running);
    assert_eq!(world.audit.counts.mints, 1, "ten minutes of retries minted once");
    assert_eq!(world.audit.counts.logins, 1);
    // One that is never tried again gives everything back.
    world.fault(16 * MINUTE, Fault::Deleted("secret/data/b".into(), true));
    let lost = world.pod(&PodSpec { start: 17 * MINUTE, ..pod(&["database/creds/hour", "secret/data/b"]) });
    run(&mut world, 18 * MINUTE);
    world.stop(lost);
    run(&mut world, 19 * MINUTE);
    assert_eq!(world.server.live_leases(world.now).count(), 1);
}

/// I9: what fails for one pod stays its own, and its leases live on.
#[test]
fn one_failing_object_blocks_no_other() {
    let mut world = node(Role::default());
    world.pod(&pod(&["secret/data/a", "secret/data/b", "database/creds/hour"]));
    world.pod(&pod(&["secret/data/b"]));
    world.fault(10 * MINUTE, Fault::Deleted("secret/data/a".into(), true));
    world.fault(20 * MINUTE, Fault::Write("secret/data/b".into()));
    run(&mut world, 3 * HOUR);
    let newest =
        files(&world, 1).values().any(|value| matches!(value.content, Content::Kv { version: 2, .. }));
    assert!(newest, "the other pod follows the change");
    assert!(alive(&world, 0));
}

/// I9 of what dies: a credential is replaced although what is shown beside it cannot be read any more, even in
/// the same file; and in a session that must be handed over.
#[test]
fn a_deleted_value_blocks_no_replacement() {
    for paths in [&["database/creds/mid", "secret/data/a"][..], &["database/creds/mid+secret/data/a"][..]] {
        for role in
            [Role::default(), Role { ttl: 20 * MINUTE, max: HOUR, may_revoke: false, ..Role::default() }]
        {
            for mode in [Mode::ProviderWritten, Mode::DriverWritten] {
                let mut world = node(role);
                world.database("database/creds/mid", 600, 1800);
                world.pod(&PodSpec { mode, ..pod(paths) });
                world.fault(10 * MINUTE, Fault::Deleted("secret/data/a".into(), true));
                for minute in 11..300 {
                    run(&mut world, MINUTE * minute);
                    assert!(alive(&world, 0), "{paths:?} {mode:?} minute {minute}\n{}", world.trace());
                }
                assert_eq!(world.audit.note_count("expired"), 0, "{paths:?} {mode:?}");
            }
        }
    }
}

/// A file of two values of which one is gone stays as it is, another file of the other follows; once both can
/// be read, so does the first.
#[test]
fn a_deleted_value_blocks_no_change() {
    let mut world = node(Role::default());
    world.pod(&pod(&["secret/data/a+secret/data/b", "secret/data/b"]));
    world.fault(10 * MINUTE, Fault::Deleted("secret/data/a".into(), true));
    world.fault(20 * MINUTE, Fault::Write("secret/data/b".into()));
    world.fault(50 * MINUTE, Fault::Deleted("secret/data/a".into(), false));
    run(&mut world, 30 * MINUTE);
    let versions: Vec<u64> = files(&world, 0)
        .into_values()
        .filter_map(|value| match value.content {
            Content::Kv { version, .. } => Some(version),
            _ => None,
        })
        .collect();
    assert_eq!(versions, [1, 1, 2], "{}", world.trace());
    run(&mut world, HOUR + 5 * MINUTE);
    assert_eq!(version_of(&world, 0, "secret/data/b"), 2, "{}", world.trace());
}

/// An edit that fails for hours must not let the credential of what is installed die, nor its session.
#[test]
fn a_replacement_overtakes_a_failing_edit() {
    for (interval, role) in [
        (Some(75 * SECOND), Role::default()),
        (Some(20 * MINUTE), Role::default()),
        (Some(20 * MINUTE), Role { ttl: 20 * MINUTE, max: HOUR, may_revoke: false, ..Role::default() }),
    ] {
        let mut world = node(role);
        world.pod(&PodSpec { interval, ..pod(&["database/creds/short"]) });
        let edit =
            vec!["database/creds/short".into(), "database/creds/hour".into(), "secret/data/none".into()];
        world.fault(10 * MINUTE, Fault::Edit(0, Edit::Paths(edit)));
        for minute in 11..180 {
            run(&mut world, MINUTE * minute);
            assert!(alive(&world, 0), "minute {minute}\n{}", world.trace());
        }
        assert_eq!(world.audit.note_count("expired"), 0, "{}", world.trace());
        assert!(world.audit.note_count("edit-rejected") >= 1);
        let mints = world.server.mints.iter().filter(|(_, _, path)| path.ends_with("hour")).count();
        assert!(mints <= 60, "the edit minted {mints} times");
    }
}

/// What cannot be replaced holds up no other credential of its volume.
#[test]
fn a_failing_replacement_blocks_no_other() {
    let mut world = node(Role::default());
    world.database("database/creds/other", 60, 300);
    world.pod(&pod(&["database/creds/short", "database/creds/other"]));
    world.fault(10 * MINUTE, Fault::Deleted("database/creds/other".into(), true));
    run(&mut world, 11 * MINUTE);
    for minute in 12..120 {
        run(&mut world, MINUTE * minute);
        let short = files(&world, 0).into_values().any(|value| match value.content {
            Content::Lease(lease) => {
                world.server.leases[&lease].path.ends_with("short")
                    && world.server.lease_death(lease, world.now).is_none()
            }
            _ => false,
        });
        assert!(short, "minute {minute}\n{}", world.trace());
    }
    world.fault(2 * HOUR, Fault::Deleted("database/creds/other".into(), false));
    run(&mut world, 2 * HOUR + 10 * MINUTE);
    if let Err(broken) = audit::converged(&world) {
        panic!("{}\n{broken}", world.trace());
    }
}

/// B17: half an hour of suspend; nothing is declared dead that can be renewed, nothing stampedes.
#[test]
fn suspend_30_min() {
    let mut world = node(Role::default());
    for _ in 0..8 {
        world.pod(&pod(&["database/creds/hour", "secret/data/a"]));
    }
    world.fault(2 * HOUR, Fault::Suspend(15 * MINUTE));
    run(&mut world, 4 * HOUR);
    assert_eq!(world.audit.counts.logins, 8);
    assert_eq!(world.audit.note_count("expired"), 0);
    world.fault(4 * HOUR, Fault::Suspend(2 * HOUR));
    run(&mut world, 6 * HOUR + 5 * MINUTE);
    assert!((0..8).all(|pod| alive(&world, pod)), "after two hours asleep all are dead, and replaced");
}

fn print_fleet(nodes: usize, steady: Duration, outage: Duration) -> fleet::Load {
    let started = Instant::now();
    let load = fleet::fleet(nodes, steady, outage);
    println!(
        "{nodes} nodes x 50 mounts, {} h steady, {} min outage, recovery: {:?}\n{}",
        steady.as_secs() / 3600,
        outage.as_secs() / 60,
        started.elapsed(),
        load.table(nodes)
    );
    load
}

/// The fleet in an hour of peace, and in an outage of a third of every TTL: nothing ends in it, so that afterwards
/// only the one pod with a lease that each node starts meanwhile logs in and mints.
#[test]
fn simulate_fleet() {
    let load = print_fleet(200, HOUR, HOUR / 3);
    let steady = load.steady.units / load.steady_seconds;
    assert!(steady <= 0.35 * 200.0, "{steady} units/s is over the floor of 0.35 per node");
    assert_eq!((load.steady.logins, load.steady.mints), (0, 0), "a steady fleet logs in and mints nothing");
    assert_eq!((load.recovery.logins, load.recovery.mints), (200, 200), "something ended in the outage");
}

/// The floors of a fleet's recovery.
fn assert_recovered(load: &fleet::Load, nodes: usize) {
    let scale = nodes as f64 / 5000.0;
    assert!(load.converged, "the fleet did not recover in two hours");
    assert!(load.outage_rate <= 0.2, "{} requests/s of a node in the outage", load.outage_rate);
    let minimum = load.minimum(scale);
    assert!(load.recovery_seconds <= 2.0 * minimum, "{} s of {minimum}", load.recovery_seconds);
    assert!(load.offered_to_served() <= 1.5, "{}", load.offered_to_served());
    let peak = load.recovery_peak(scale);
    assert!(peak <= 4.0, "peak / mean of {peak}");
    assert!(load.wait_p99() <= 30.0, "{}", load.wait_p99());
}

/// teleport#6889: after an outage that outlived every token, all come back at once, and must not; ESO#5045: nor
/// must pods that start meanwhile wait for them.
#[test]
fn herd_sim() {
    assert_recovered(&print_fleet(50, HOUR, 2 * HOUR), 50);
}

/// The whole fleet's day, and an outage that outlives every token.
#[test]
#[ignore = "minutes; run by `make simulate`"]
fn simulate_fleet_day() {
    let nodes = usize::try_from(number("LEASEHOLD_NODES", 5000)).unwrap();
    let hours = u32::try_from(number("LEASEHOLD_HOURS", 24)).unwrap();
    assert_recovered(&print_fleet(nodes, HOUR * hours, 2 * HOUR), nodes);
}
