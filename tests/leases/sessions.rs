//! Kinds of session: periodic, batch, revoked under us, of a deleted ServiceAccount, shared or not.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use serde_json::json;

use crate::{
    case::Setup,
    support::{SOON, cluster::Pod, kubelet::Volume},
};

/// A periodic token has no maximum: it is renewed for ever, and nothing is made again.
#[tokio::test]
async fn periodic_session_is_renewed_for_ever() {
    let login = json!({"token_period": "10s", "token_ttl": 0, "token_max_ttl": 0});
    let (case, volume) = Setup::new("periodic").login(login).mounted().await;
    // Without us: a session of ten seconds, and its user, are gone after ten.
    let (abandoned, _) = case.unattended(&case.by_hand(&volume).await).await;
    let (probe, ()) = tokio::join!(case.probe(&volume, Duration::from_secs(25)), case.dies(&abandoned));
    let log = case.leasehold.log();
    probe.never_failed(&log);
    assert_eq!((case.mints(), case.logins(), probe.users.len()), (1, 1, 1), "{log}");
    assert!(case.done("auth/token/renew-self") >= 3, "{log}");
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// Batch tokens can neither be renewed nor revoked: the mount works, is handed over before the token's end,
/// and nobody hammers the server with what it cannot do.
#[tokio::test]
async fn batch_session_is_handed_over_and_never_revoked() {
    let login = json!({"token_type": "batch", "token_ttl": "12s", "token_max_ttl": "12s"});
    let (case, volume) = Setup::new("batch").login(login).mounted().await;
    let (abandoned, _) = case.unattended(&case.by_hand(&volume).await).await;
    let (probe, ()) = tokio::join!(case.probe(&volume, Duration::from_secs(20)), case.dies(&abandoned));
    let log = case.leasehold.log();
    probe.never_failed(&log);
    assert!(probe.users.len() >= 3 && probe.most_roles <= 3, "{probe:?}\n{log}");
    let futile = |seen: &crate::support::proxy::Seen| {
        seen.path.ends_with("revoke-self") || seen.path.ends_with("renew-self")
    };
    assert_eq!(case.seen(futile).len(), 0, "{log}");
    assert!(
        log.matches("a batch token, or a token made elsewhere").count() == 1,
        "the log says what that costs: {log}"
    );
    case.unmount(&volume);
    // All that can be done is wait for the token's end.
    case.nothing_left(SOON).await;
    assert_eq!(case.seen(futile).len(), 0, "{}", case.leasehold.log());
}

/// bao agent never recovers from this.
#[tokio::test]
async fn session_revoked_by_an_operator_is_replaced_once() {
    let case = Setup::new("revoked").database("8s", "1h").start().await;
    let volume = case.volume();
    case.put("note", "n").await;
    case.mounted(&volume, &(case.database() + &case.kv("note"))).await;
    let first = case.credential(&volume);
    let token = case.seen(|seen| seen.token.is_some()).pop().unwrap().token.unwrap();
    case.admin.write("auth/token/revoke", json!({ "token": token })).await;
    case.dies(&first).await;
    let second = case
        .until("the credential is replaced", SOON, async || {
            Some(case.credential(&volume)).filter(|credential| *credential != first)
        })
        .await;
    case.login(&second).await.unwrap();
    let probe = case.probe(&volume, Duration::from_secs(10)).await;
    probe.never_failed(&case.leasehold.log());
    assert_eq!((case.logins(), case.mints()), (2, 2), "{}", case.leasehold.log());
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// A deleted ServiceAccount logs in no more: the hand-over fails, the files stay, the log says so, and the
/// server is not asked in a loop.
#[tokio::test]
async fn sa_deleted_stops() {
    let login = json!({"token_ttl": "8s", "token_max_ttl": "8s"});
    let (case, volume) = Setup::new("deleted").login(login).mounted().await;
    let first = case.credential(&volume);
    case.ground.cluster.delete(&volume.pod);
    let before = case.snapshot(&volume);
    case.dies(&first).await;
    case.until("the end of the credential is told", SOON, async || {
        case.leasehold.log().contains("expired: database/creds/").then_some(())
    })
    .await;
    let log = case.leasehold.log();
    assert!(log.contains("login") && log.contains("failing"), "{log}");
    let refused = case.seen(|seen| seen.path.ends_with("/login") && seen.status == Some(403)).len();
    assert!((1..=5).contains(&refused), "{refused} logins refused\n{log}");
    assert_eq!(case.snapshot(&volume), before, "the files stay");
    assert_eq!(case.mints(), 1);
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// One login for all mounts of one ServiceAccount; another ServiceAccount has its own.
#[tokio::test]
async fn lease_free_mounts_of_one_identity_share_a_login() {
    let case = Setup::new("shared").start().await;
    case.put("note", "n").await;
    let objects = case.kv("note");
    case.mounted(&case.volume(), &objects).await;
    let volumes: Vec<Volume> = (0..10).map(|_| case.volume()).collect();
    join_all(volumes.iter().map(|volume| case.mounted(volume, &objects))).await;
    assert!(case.logins() <= 2, "{:?}", case.proxy.requests());
    let other = Volume::new(&Pod::new("prod", "app-0", "other"));
    let before = case.logins();
    case.mounted(&other, &objects).await;
    assert_eq!(case.logins(), before + 1, "another ServiceAccount never shares");
    // A mount with a lease has a session of its own, which dies with it and takes nobody along.
    let leased = case.volume();
    case.mounted(&leased, &(case.database() + &objects)).await;
    let held = case.tokens().await;
    case.unmount(&leased);
    case.until("the leased mount's session is gone", SOON, async || {
        (case.tokens().await == held - 1 && case.roles().is_empty()).then_some(())
    })
    .await;
    case.put("note", "m").await;
    for volume in &volumes {
        case.until("the others go on", SOON, async || (case.files(volume, ["note"]) == ["m"]).then_some(()))
            .await;
        case.unmount(volume);
    }
}

/// The jwt method vouches for a pod, not for a ServiceAccount: nothing is shared.
#[tokio::test]
async fn jwt_mounts_never_share_a_login() {
    let case = Setup::new("jwt").start().await;
    case.put("note", "n").await;
    let mount = "jwt-jwt";
    case.admin.enable_jwt_auth(mount, &case.ground.cluster).await;
    let role = json!({
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"],
        "bound_subject": "system:serviceaccount:prod:app",
        "token_policies": [format!("pod-{}", case.name)], "token_ttl": "1h", "token_max_ttl": "2h",
    });
    case.admin.write(&format!("auth/{mount}/role/app"), role).await;
    let class = case.class(&case.kv("note")).with("vaultAuthMountPath", mount);
    let volumes: Vec<Volume> = (0..3).map(|_| case.volume()).collect();
    for volume in &volumes {
        case.kubelet.publish(volume, Some(&class)).await.unwrap();
    }
    let tokens: BTreeSet<_> =
        case.seen(|seen| seen.path.starts_with("secret/")).into_iter().map(|seen| seen.token).collect();
    assert_eq!((case.logins(), tokens.len()), (3, 3), "{:?}", case.proxy.requests());
    for volume in &volumes {
        case.unmount(volume);
    }
    let path = format!("sys/leases/lookup/auth/{mount}/login");
    case.until("their sessions are gone", SOON, async || {
        case.admin.list(&path).await.is_empty().then_some(())
    })
    .await;
}

/// vault#26844: a session that may neither be renewed nor revoked is handed over in time, and what it may not
/// do is not tried in a loop.
#[tokio::test]
async fn session_without_rights_is_handed_over() {
    let login = json!({"token_no_default_policy": true, "token_ttl": "10s", "token_max_ttl": "10s"});
    let (case, volume) = Setup::new("rights").login(login).mounted().await;
    let probe = case.probe(&volume, Duration::from_secs(20)).await;
    let log = case.leasehold.log();
    probe.never_failed(&log);
    assert!(probe.users.len() >= 3, "{probe:?}\n{log}");
    assert!(case.logins() <= 6, "{:?}", case.proxy.requests());
    let futile = case.seen(|seen| seen.path.starts_with("auth/token/") && seen.status == Some(403)).len();
    assert!(futile <= probe.users.len() * 6, "{futile} refusals: {:?}\n{log}", case.proxy.requests());
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// vault#14531, ESO#376: the count of leases follows the mounts, not the time.
#[tokio::test]
async fn lease_count_is_flat() {
    let login = json!({"token_ttl": "6s", "token_max_ttl": "12s"});
    let case = Setup::new("flat").login(login).database("6s", "12s").start().await;
    case.put("note", "n").await;
    let volumes: Vec<Volume> = (0..5).map(|_| case.volume()).collect();
    for (index, volume) in volumes.iter().enumerate() {
        let leased = if index < 2 { case.database() } else { String::new() };
        case.mounted(volume, &(leased + &case.kv("note"))).await;
    }
    // The naive poll that logs in each time: as many leases as polls.
    let mut naive = Vec::new();
    for _ in 0..5 {
        naive.push(case.by_hand(&volumes[0]).await);
    }
    assert!(case.tokens().await >= 8);
    for token in naive {
        token.write("auth/token/revoke-self", json!({})).await;
    }
    let started = tokio::time::Instant::now();
    let mut most = (0, 0);
    while started.elapsed() < Duration::from_secs(18) {
        let (tokens, leases) = (case.tokens().await, case.leases().await);
        most = (most.0.max(tokens), most.1.max(leases));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Two sessions of their own and a shared one, and their successors while they overlap.
    assert!(most.0 <= 7 && most.1 <= 6, "{most:?}\n{}", case.leasehold.log());
    for volume in &volumes[..2] {
        case.login(&case.credential(volume)).await.unwrap();
    }
    for volume in &volumes {
        case.unmount(volume);
    }
    case.until("no user is left", SOON, async || case.roles().is_empty().then_some(())).await;
}

/// kubernetes-external-secrets#457: nothing is renewed at every poll, nor right after the login.
#[tokio::test]
async fn no_renew_before_due() {
    let case = Setup::new("due").database("20s", "1h").login(json!({"token_ttl": "60s"})).start().await;
    case.put("note", "n").await;
    let volume = case.volume();
    let objects = case.database() + &case.kv("note");
    case.mounted(&volume, &objects).await;
    let mounted = tokio::time::Instant::now();
    case.proxy.forget();
    let mut renewed = None;
    while renewed.is_none() && mounted.elapsed() < SOON {
        case.mounted(&volume, &objects).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        renewed = case.seen(|seen| seen.path.contains("renew")).pop();
    }
    let renewed = renewed.expect("a renewal");
    let after = renewed.started.duration_since(mounted.into_std());
    assert!(after >= Duration::from_secs(11), "{after:?}: {}", renewed.path);
    assert_eq!(renewed.path, "sys/leases/renew", "the lease is due first");
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// Where the driver does not come again nobody can log in any more once the token that it brought has ended: the time
/// until then is told.
#[tokio::test]
async fn end_of_logins_is_told() {
    let (case, volume) = Setup::new("loginend").mounted().await;
    let told = case
        .until("the metric", SOON, async || {
            let (_, text) = case.leasehold.http_get("/metrics").await;
            let line =
                text.lines().find_map(|line| line.strip_prefix("leasehold_nearest_login_end_seconds "));
            line.map(|value| value.parse::<f64>().expect("a number"))
        })
        .await;
    let (code, list, error) = case.leasehold.exec(&["ls", "-o", "json"]).await;
    assert_eq!(code, 0, "{error}");
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let listed = list.pointer("/volumes/0/login_seconds").or_else(|| list.pointer("/0/login_seconds"));
    let listed = listed.and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("{list}"));
    // Of a token for an hour.
    for seconds in [told, listed] {
        assert!((3000.0..=3600.0).contains(&seconds), "{told} {listed}");
    }
    case.unmount(&volume);
}

/// What a node's reboot would leave alive for more than a day is told at the first login, once per role.
#[tokio::test]
async fn ttl_beyond_a_day_is_a_warning() {
    let case = Setup::new("longttl").login(json!({"token_ttl": "30h", "token_max_ttl": "48h"})).start().await;
    case.put("note", "n").await;
    let volume = case.volume();
    case.mounted(&volume, &case.kv("note")).await;
    case.leasehold.logged("token_ttl and token_max_ttl").await;
    let log = case.leasehold.log();
    let told = log.lines().find(|line| line.contains("token_ttl and token_max_ttl"));
    assert!(told.is_some_and(|line| line.contains("WARN") && line.contains("108000s")), "{log}");
    case.unmount(&volume);
}
