//! A server that is sealed or away: files stay, leases live on, what is owed is paid later.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use hyper::body::Bytes;
use tokio::sync::Semaphore;

use crate::{
    case::Setup,
    support::{
        SOON,
        authority::Authority,
        bao::{Bao, Shape},
        ground::Ground,
        http::Reply,
        leasehold::Launch,
        proxy::{Fault, Proxy},
    },
};

const OUTAGE: Duration = Duration::from_secs(10);

/// Sealed for ten seconds, then stopped for ten: the credential is neither lost nor made anew, and a node
/// asks the server a few times a minute, not a few times a second.
#[tokio::test]
async fn outage_costs_no_file_and_no_lease() {
    let ground = Ground::get().await;
    let mut bao = Bao::start(Shape::Raft).await;
    let (admin, url) = (bao.admin().clone(), bao.url().to_owned());
    let case = Setup::new("outage").database("60s", "1h").start_on(ground, admin, &url).await;
    case.put("note", "n").await;
    let volume = case.volume();
    let objects = case.database() + &case.kv("note");
    case.mounted(&volume, &objects).await;
    let before = case.snapshot(&volume);
    for stopped in [false, true] {
        let renewals = case.done("sys/leases/renew");
        // The first renewal falls into the outage: due at six to seven tenths of a minute.
        let quiet = if stopped { Duration::from_secs(2) } else { Duration::from_secs(34) };
        case.probe(&volume, quiet).await.never_failed(&case.leasehold.log());
        case.proxy.forget();
        if stopped {
            bao.crash();
        } else {
            bao.seal().await;
        }
        case.probe(&volume, OUTAGE).await.never_failed(&case.leasehold.log());
        let asked = case.proxy.count();
        assert!(asked <= 8, "stopped: {stopped}: {asked} requests in 10 s: {:?}", case.proxy.requests());
        // A republish meanwhile is answered from what is there.
        case.mounted(&volume, &objects).await;
        if stopped {
            bao.restart().await;
        } else {
            bao.unseal().await;
        }
        let wanted = if stopped { 1 } else { renewals + 1 };
        case.until("the lease is renewed after the outage", SOON * 2, async || {
            (case.done("sys/leases/renew") >= wanted).then_some(())
        })
        .await;
        case.probe(&volume, Duration::from_secs(1)).await.never_failed(&case.leasehold.log());
        assert_eq!(case.snapshot(&volume), before, "stopped: {stopped}");
        assert_eq!((case.mints(), case.logins()), (0, 0), "stopped: {stopped}\n{}", case.leasehold.log());
    }
    assert_eq!(case.kubelet.driver.counts().masked, 0);
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// Seen in the mount table, not told by anybody: what the mount held is gone long before the next look that is due
/// anyway, half a minute later.
#[tokio::test]
async fn revoke_on_unmount() {
    let (case, volume) = Setup::new("unmount").mounted().await;
    assert_eq!((case.leases().await, case.roles().len(), case.tokens().await), (1, 1, 1));
    // Without us: the driver tells no provider, and an hour's lease lives for an hour.
    let (abandoned, lease) = case.unattended(&case.admin).await;
    case.unmount(&volume);
    case.until("the session is given back at once", Duration::from_secs(10), async || {
        (case.done("revoke-self") == 1).then_some(())
    })
    .await;
    case.until("the user is gone", SOON, async || case.roles().is_empty().then_some(())).await;
    assert_eq!(case.tokens().await, 0);
    case.login(&abandoned).await.expect("what nobody revokes lives on");
    case.admin.write("sys/leases/revoke", serde_json::json!({"lease_id": lease, "sync": true})).await;
    case.nothing_left(SOON).await;
}

/// Unmounted in the moment of a rewrite: the writer finds the mount gone before the mount table is looked at.
#[tokio::test]
async fn unmount_in_the_moment_of_a_rewrite_is_an_unmount() {
    let case = Setup::new("moment").start().await;
    case.put("note", "one").await;
    let volume = case.volume();
    case.mounted(&volume, &(case.database() + &case.kv("note"))).await;
    case.put("note", "two").await;
    case.proxy.forget();
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    case.proxy.rule(move |seen| {
        if seen.path.starts_with("secret/") { Fault::Hold(Arc::clone(&held)) } else { Fault::Pass }
    });
    case.until("the change is on its way", SOON, async || (case.proxy.count() >= 1).then_some(())).await;
    case.unmount(&volume);
    gate.add_permits(100);
    case.nothing_left(SOON).await;
    assert_eq!(case.logins(), 0, "{}", case.leasehold.log());
}

/// Unmounted while the server is away, and killed while it is: the debt is on record and paid later.
#[tokio::test]
async fn owed_revocation_survives_outage_and_kill() {
    let mut case = Setup::new("owed").start().await;
    let volumes = [case.volume(), case.volume()];
    for volume in &volumes {
        case.mounted(volume, &case.database()).await;
    }
    case.proxy.down();
    for volume in &volumes {
        case.unmount(volume);
    }
    case.leasehold.logged("unmounted").await;
    case.until("the revocation was tried in vain", SOON, async || {
        case.leasehold.log().contains("revoke session").then_some(())
    })
    .await;
    case.leasehold.crash();
    assert_eq!(case.roles().len(), 2, "nothing reached the server");
    case.leasehold.restart().await;
    case.proxy.up();
    case.nothing_left(SOON * 2).await;
    assert_eq!(case.logins(), 2, "paid with the old sessions");
}

/// sscsi#1483: a server that throttles is left alone for as long as it asks, and no lease dies of it.
#[tokio::test]
async fn throttling_server_is_left_alone() {
    let case = Setup::new("throttle").database("40s", "1h").start().await;
    case.put("note", "n").await;
    let volume = case.volume();
    case.mounted(&volume, &(case.database() + &case.kv("note"))).await;
    let before = case.snapshot(&volume);
    case.proxy.forget();
    case.proxy.rule(|_| {
        Fault::Answer(Reply::Full {
            status: 429,
            headers: vec![("retry-after".into(), "4".into())],
            body: Bytes::from_static(b"{\"errors\":[\"request path: rate limit quota exceeded\"]}"),
        })
    });
    // The lease comes due at six to seven tenths of forty seconds.
    case.probe(&volume, Duration::from_secs(27)).await.never_failed(&case.leasehold.log());
    let asked = case.proxy.count();
    assert!((1..=9).contains(&asked), "{asked} requests in 27 s: {:?}", case.proxy.requests());
    case.proxy.heal();
    case.until("the lease is renewed", SOON, async || (case.done("sys/leases/renew") >= 1).then_some(()))
        .await;
    assert_eq!((case.mints(), case.logins()), (0, 0), "{}", case.leasehold.log());
    assert_eq!(case.snapshot(&volume), before);
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// vault-k8s#49: what happens if the server goes down? The files stay and log in, a republish is answered, the
/// node asks little, nothing is made again, and the first change afterwards is followed. However it goes down.
#[tokio::test]
async fn outage_matrix() {
    let reply = |status, body: &'static str| {
        Some(Fault::Answer(Reply::Full {
            status,
            headers: Vec::new(),
            body: Bytes::from_static(body.as_bytes()),
        }))
    };
    let gate = Arc::new(Semaphore::new(0));
    let kinds = [
        ("refused", None),
        ("hangs", Some(Fault::Hold(Arc::clone(&gate)))),
        ("closed", Some(Fault::Answer(Reply::Close))),
        ("cut", Some(Fault::CutAfter(9))),
        ("torn", reply(200, "{\"data\": {\"da")),
        ("error", reply(500, "{\"errors\":[\"internal error\"]}")),
        ("gateway", reply(502, "<html><body>Bad Gateway</body></html>")),
        ("sealed", reply(503, "{\"errors\":[\"Vault is sealed\"]}")),
        ("standby", reply(473, "")),
        ("stale", reply(412, "{\"errors\":[\"required index state not present\"]}")),
        ("quota", reply(429, "{\"errors\":[\"request path: rate limit quota exceeded\"]}")),
    ];
    join_all(kinds.map(async |(name, fault)| {
        let mut case = Setup::new(name).database("40s", "1h").start().await;
        case.put("note", "one").await;
        let volume = case.volume();
        let objects = case.database() + &case.kv("note");
        case.mounted(&volume, &objects).await;
        let (before, first) = (case.snapshot(&volume), case.credential(&volume));
        case.proxy.forget();
        match fault {
            None => case.proxy.down(),
            Some(fault) => case.proxy.rule(move |_| fault.clone()),
        }
        case.put("note", "two").await;
        let connections = case.proxy.connections();
        // Four refresh intervals of the value.
        let probe = case.probe_every(Duration::from_millis(500), &volume, Duration::from_secs(20)).await;
        probe.never_failed(&case.leasehold.log());
        let asked = case.proxy.count().max(case.proxy.connections() - connections);
        assert!(asked <= 16, "{name}: {asked} requests in 20 s: {:?}", case.proxy.requests());
        case.mounted(&volume, &objects).await;
        assert_eq!(case.kubelet.driver.counts().masked, 0, "{name}: {:?}", case.kubelet.driver.masked());
        assert_eq!(case.snapshot(&volume), before, "{name}");
        case.proxy.heal();
        match name {
            "refused" => case.proxy.up(),
            "hangs" => gate.add_permits(1),
            _ => {}
        }
        case.until("the change is followed after the outage", SOON * 2, async || {
            (case.files(&volume, ["note"]) == ["two"]).then_some(())
        })
        .await;
        case.until("the lease is renewed", SOON * 2, async || (case.done("leases/renew") >= 1).then_some(()))
            .await;
        assert_eq!(case.credential(&volume), first, "{name}\n{}", case.leasehold.log());
        assert_eq!((case.mints(), case.logins()), (0, 0), "{name}: {:?}", case.proxy.requests());
        case.unmount(&volume);
        case.nothing_left(SOON).await;
    }))
    .await;
}

/// gocardless, 25 October 2020: the server's certificate had expired, renewals failed, and everything stopped.
#[tokio::test]
async fn vault_cert_expired_then_fixed() {
    let ground = Ground::get().await;
    let admin = ground.bao.admin().clone();
    let authority = Authority::new();
    let folder = crate::support::temp_dir();
    let path = folder.path().join("ca.pem").to_string_lossy().into_owned();
    std::fs::write(&path, authority.pem()).unwrap();
    let proxy = Proxy::start_with(ground.bao.url(), Some(authority.valid()));
    let url = format!("https://127.0.0.1:{}", proxy.port());
    let mut launch = Launch::new(&url);
    launch.flags = ["--vault-tls-ca-cert", &path, "--allow-tls-dir", &folder.path().to_string_lossy()]
        .map(str::to_owned)
        .into();
    let mut case =
        Setup::new("expired").database("50s", "1h").start_behind(ground, admin, proxy, launch).await;
    case.put("note", "one").await;
    let volume = case.volume();
    let objects = case.database() + &case.kv("note");
    case.mounted(&volume, &objects).await;
    let (before, first) = (case.snapshot(&volume), case.credential(&volume));
    case.proxy.forget();
    case.proxy.present(authority.expired());
    let certificate = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([certificate]).build().unwrap();
    let refused = client.get(&url).send().await.unwrap_err();
    assert!(format!("{refused:?}").contains("Expired"), "{refused:?}");
    // The lease comes due at six to seven tenths of fifty seconds.
    case.probe(&volume, Duration::from_secs(28)).await.never_failed(&case.leasehold.log());
    case.leasehold.logged("renew lease of database/creds/expired").await;
    let log = case.leasehold.log();
    assert!(log.contains("the server's certificate has expired"), "{log}");
    assert_eq!(case.proxy.requests(), [""; 0], "nothing is sent to a server that cannot be trusted");
    case.mounted(&volume, &objects).await;
    assert_eq!(case.snapshot(&volume), before);
    // Whoever went on without a renewal would lose the user in some twenty seconds from here.
    case.proxy.present(authority.valid());
    case.until("the lease is renewed", SOON, async || (case.done("leases/renew") >= 1).then_some(())).await;
    case.probe(&volume, Duration::from_secs(22)).await.never_failed(&case.leasehold.log());
    assert_eq!((case.credential(&volume), case.mints(), case.logins()), (first, 0, 0));
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}
