//! A server that is sealed or away: files stay, leases live on, what is owed is paid later.

use std::time::Duration;

use crate::{
    case::{Ground, Setup},
    support::{
        SOON,
        bao::{Bao, Shape},
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
    let case = Setup::new("outage").database("30s", "1h").start_on(ground, admin, &url).await;
    case.put("note", "n").await;
    let volume = case.volume();
    let objects = case.database() + &case.kv("note");
    case.mounted(&volume, &objects).await;
    let before = case.snapshot(&volume);
    for stopped in [false, true] {
        let renewals = case.done("sys/leases/renew");
        // The renewal falls into the outage: due at six to seven tenths of thirty seconds.
        let quiet = if stopped { Duration::from_secs(2) } else { Duration::from_secs(14) };
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
        case.until("the lease is renewed after the outage", SOON, async || {
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

/// Seen in the mount table, not told by anybody: what the mount held is gone within two seconds.
#[tokio::test]
async fn revoke_on_unmount() {
    let case = Setup::new("unmount").start().await;
    let volume = case.volume();
    case.mounted(&volume, &case.database()).await;
    assert_eq!((case.leases().await, case.roles().len(), case.tokens().await), (1, 1, 1));
    // Without us: the driver tells no provider, and an hour's lease lives for an hour.
    let (abandoned, lease) = case.unattended(&case.admin).await;
    case.unmount(&volume);
    case.until("the session is given back within 2 s", Duration::from_secs(2), async || {
        (case.done("revoke-self") == 1).then_some(())
    })
    .await;
    case.until("the user is gone", SOON, async || case.roles().is_empty().then_some(())).await;
    assert_eq!(case.tokens().await, 0);
    case.login(&abandoned).await.expect("what nobody revokes lives on");
    case.admin.write("sys/leases/revoke", serde_json::json!({"lease_id": lease, "sync": true})).await;
    case.nothing_left(SOON).await;
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
