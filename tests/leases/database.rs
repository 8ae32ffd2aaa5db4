//! Database credentials: what the files say logs in, always, and nothing is minted without need.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use crate::{
    case::{Credential, Setup},
    support::{SOON, proxy::Fault},
};

/// Renewed while that helps, replaced before the maximum, the old one alive for the overlap and no longer.
#[tokio::test]
async fn credential_is_renewed_then_replaced_before_its_maximum() {
    let (case, volume) = Setup::new("renew").database("5s", "14s").may_revoke().mounted().await;
    assert_eq!((case.mints(), case.leases().await), (1, 1), "both files come from one read");
    // Without us: the same credential, delivered once and never looked after.
    let (abandoned, _) = case.unattended(&case.admin).await;
    let (probe, ()) = tokio::join!(case.probe(&volume, Duration::from_secs(36)), case.dies(&abandoned));
    let log = case.leasehold.log();
    probe.never_failed(&log);
    assert!(probe.logins > 100, "{probe:?}");
    let distinct: BTreeSet<&String> = probe.users.iter().collect();
    assert!(distinct.len() >= 3 && distinct.len() == probe.users.len(), "{probe:?}");
    assert!(
        case.mints().abs_diff(distinct.len()) <= 1,
        "one read per credential: {} {probe:?}",
        case.mints()
    );
    let renewals = case.done("sys/leases/renew");
    assert!(renewals >= distinct.len() * 2, "each was renewed before it was replaced: {renewals}\n{log}");
    assert!(probe.most_roles <= 2, "{probe:?}");
    case.until("only the last credential lives", SOON, async || (case.roles().len() == 1).then_some(()))
        .await;
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// consul-template#1433: a lease of an hour dies with the ten-second token that made it.
#[tokio::test]
async fn parent_token_handover() {
    let login = json!({"token_ttl": "10s", "token_max_ttl": "10s"});
    let (case, volume) = Setup::new("parent").login(login).mounted().await;
    let token = case.by_hand(&volume).await;
    let (abandoned, _) = case.unattended(&token).await;
    let (probe, ()) = tokio::join!(case.probe(&volume, Duration::from_secs(24)), case.dies(&abandoned));
    let log = case.leasehold.log();
    probe.never_failed(&log);
    assert!(probe.users.len() >= 3, "{probe:?}\n{log}");
    assert_eq!(case.mints(), case.logins(), "every lease is made again in the new session, once");
    assert!(probe.most_roles <= 3, "{probe:?}");
    // The session it was made in is given back after the overlap, not left to its end.
    let revoked = case.done("auth/token/revoke-self");
    assert!(revoked + 2 >= probe.users.len(), "{revoked} of {probe:?}\n{log}");
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// consul-template#2165: a broken renewal made 592 users a minute.
#[tokio::test]
async fn bad_renew_statements() {
    const TTL: Duration = Duration::from_secs(10);
    let case = Setup::new("badrenew").database("10s", "1h").start().await;
    let role = format!("database/roles/{}", case.name);
    let mut body = case.admin.read(&role).await["data"].clone();
    body["renew_statements"] = json!(["ALTER ROLE \"nobody-{{name}}\" VALID UNTIL '{{expiration}}'"]);
    case.admin.write(&role, body).await;
    // The naive loop: renewing fails, so make another.
    let started = Instant::now();
    let mut naive = 0;
    while naive < 7 {
        let (_, lease) = case.unattended(&case.admin).await;
        let renew = json!({"lease_id": lease});
        let answer = case.admin.call(reqwest::Method::PUT, "sys/leases/renew", Some(renew)).await;
        assert!(answer.status >= 400, "the statement is broken: {answer:?}");
        naive += 1;
    }
    assert!(started.elapsed() < TTL, "{naive} users within one TTL took {:?}", started.elapsed());
    let prefix = format!("sys/leases/revoke-prefix/database/creds/{}", case.name);
    case.admin.write(&prefix, json!({})).await;

    let volume = case.volume();
    case.mounted(&volume, &case.database()).await;
    let probe = case.probe(&volume, Duration::from_secs(26)).await;
    let log = case.leasehold.log();
    probe.never_failed(&log);
    let path = format!("database/creds/{}", case.name);
    let mints: Vec<_> = case.seen(|seen| seen.path == path).iter().map(|seen| seen.started).collect();
    assert!(mints.len() >= 3, "{mints:?}");
    let crowded = mints.windows(3).any(|three| three[2] - three[0] < TTL);
    assert!(!crowded, "three users within one TTL: {mints:?}\n{log}");
    // The default policy lets no pod revoke a single lease: that is learnt once, and told.
    let refused = case.seen(|seen| seen.path == "sys/leases/revoke").len();
    assert!(refused == 1 && log.contains("left to expire"), "{refused} refusals\n{log}");
    let renewals = case.seen(|seen| seen.path == "sys/leases/renew").len();
    assert!(renewals <= mints.len() * 4, "{renewals} renewals, {} mints", mints.len());
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// sscsi#1453: peers mint at every poll.
#[tokio::test]
async fn republish_mints_nothing() {
    let case = Setup::new("republ").start().await;
    case.put("note", "n").await;
    let volume = case.volume();
    let objects = case.database() + &case.kv("note");
    case.mounted(&volume, &objects).await;
    // What a poll does that asks again: one more user for each.
    let by_hand = case.by_hand(&volume).await;
    for _ in 0..3 {
        case.unattended(&by_hand).await;
    }
    assert_eq!((case.leases().await, case.roles().len()), (4, 4));
    by_hand.write("auth/token/revoke-self", json!({})).await;
    case.until("the users made by hand are gone", SOON, async || (case.leases().await == 1).then_some(()))
        .await;

    let before = (case.snapshot(&volume), case.credential(&volume));
    case.proxy.forget();
    let calls = case.kubelet.driver.counts().provider_calls;
    let started = Instant::now();
    for _ in 0..20 {
        case.mounted(&volume, &objects).await;
    }
    assert_eq!(case.kubelet.driver.counts().provider_calls, calls + 20, "the calls reached leasehold");
    let mut requests = case.proxy.requests();
    // Its own clock may have come round meanwhile on a slow machine.
    if started.elapsed() > Duration::from_secs(4) {
        requests.retain(|request| !request.starts_with("GET secret/data/"));
    }
    assert_eq!(requests, [""; 0]);
    assert_eq!((case.snapshot(&volume), case.credential(&volume)), before);
    assert_eq!((case.leases().await, case.roles().len()), (1, 1));
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// What a failed renewal leaves behind is nothing: a lease that the server has lost is replaced, once.
#[tokio::test]
async fn lease_lost_on_the_server_is_replaced_once() {
    let (case, volume) = Setup::new("lost").database("8s", "1h").mounted().await;
    let first: Credential = case.credential(&volume);
    let prefix = format!("sys/leases/revoke-prefix/database/creds/{}", case.name);
    case.admin.write(&prefix, json!({})).await;
    // The fault: the file holds a dead user until somebody notices.
    case.dies(&first).await;
    let second = case
        .until("the credential is replaced", SOON, async || {
            Some(case.credential(&volume)).filter(|credential| *credential != first)
        })
        .await;
    case.login(&second).await.unwrap();
    assert_eq!((case.mints(), case.logins()), (2, 1), "{}", case.leasehold.log());
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// A lease starts when it was asked for, not when the answer arrived (Vault's own watcher counts from then).
#[tokio::test]
async fn slow_answers_do_not_lengthen_a_lease() {
    const LATE: Duration = Duration::from_secs(9);
    let case = Setup::new("slow").database("15s", "1h").start().await;
    case.proxy.rule(|seen| {
        let late = seen.path.contains("/creds/") || seen.path == "sys/leases/renew";
        if late { Fault::Late(LATE) } else { Fault::Pass }
    });
    let volume = case.volume();
    // Who counts from the arrival renews at six tenths of its TTL from then: nine seconds after the end.
    let abandoned = case.unattended(&case.admin).await.0;
    case.mounted(&volume, &case.database()).await;
    let arrived = Instant::now();
    case.dies(&abandoned).await;
    assert!(arrived.elapsed() < Duration::from_secs(9), "{:?}", arrived.elapsed());
    let first = case.credential(&volume);
    let probe = case.probe(&volume, Duration::from_secs(20)).await;
    probe.never_failed(&case.leasehold.log());
    assert_eq!((case.credential(&volume), case.mints()), (first, 1), "{}", case.leasehold.log());
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}
