//! Values without a lease: followed when they change, asked for once for all, never backwards.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    case::{Credential, Setup},
    support::{SOON, http::Reply, kubelet::Volume, proxy::Fault},
};

/// Ten mounts of one ServiceAccount that read one path cost one request in each interval.
#[tokio::test]
async fn kv_change_is_followed_and_asked_for_once() {
    let case = Setup::new("kv").start().await;
    case.put("note", "one").await;
    let objects = case.kv("note");
    let volumes: Vec<Volume> = (0..10).map(|_| case.volume()).collect();
    case.mounted(&volumes[0], &objects).await;
    join_all(volumes[1..].iter().map(|volume| case.mounted(volume, &objects))).await;
    let before: Vec<_> = volumes.iter().map(|volume| case.snapshot(volume)).collect();
    case.proxy.forget();
    let started = Instant::now();
    case.until("four rounds", SOON, async || (case.proxy.count() >= 4).then_some(())).await;
    let took = started.elapsed();
    assert!(took > Duration::from_secs(12), "four requests in {took:?}: {:?}", case.proxy.requests());
    assert_eq!(volumes.iter().map(|volume| case.snapshot(volume)).collect::<Vec<_>>(), before, "unchanged");
    case.put("note", "two").await;
    for volume in &volumes {
        // Anybody else waits for a minute, or for five.
        case.until("the change is there", SOON, async || {
            (case.files(volume, ["note"]) == ["two"]).then_some(())
        })
        .await;
    }
    for volume in &volumes {
        case.unmount(volume);
    }
}

/// A whole secret's files beside the others (`objectName: .`) stay there when one of the others changes.
#[tokio::test]
async fn files_of_a_whole_secret_stay_beside_what_changes() {
    let case = Setup::new("beside").start().await;
    case.put("note", "one").await;
    case.admin.put_secret(&format!("{}/all", case.name), json!({ "first": "1", "second": "2" })).await;
    let volume = case.volume();
    let whole = format!("- {{objectName: ., secretPath: secret/data/{}/all, extract: {{}}}}\n", case.name);
    case.mounted(&volume, &(case.kv("note") + &whole)).await;
    case.proxy.forget();
    case.put("note", "two").await;
    case.until("the change is there", SOON, async || {
        (case.files(&volume, ["note"]) == ["two"]).then_some(())
    })
    .await;
    assert_eq!(case.files(&volume, ["first", "second"]), ["1", "2"]);
    assert_eq!(case.done("/all"), 0, "nothing is asked for that did not change");
    case.unmount(&volume);
}

/// A standby that lags answers an old version: the file does not go back, and follows a real rollback.
#[tokio::test]
async fn no_version_regress() {
    let case = Setup::new("regress").start().await;
    case.put("note", "one").await;
    let volume = case.volume();
    let old = case.admin.read(&format!("secret/data/{}/note", case.name)).await;
    case.put("note", "two").await;
    case.mounted(&volume, &case.kv("note")).await;
    let before = case.snapshot(&volume);
    case.proxy.forget();
    let rule_old = old.clone();
    case.proxy.rule(move |seen| {
        if seen.path.starts_with("secret/") {
            Fault::Answer(Reply::json(200, &rule_old))
        } else {
            Fault::Pass
        }
    });
    case.until("the old version was answered", SOON, async || (case.proxy.count() >= 2).then_some(())).await;
    assert_eq!(case.snapshot(&volume), before, "{}", case.leasehold.log());
    assert_eq!(case.files(&volume, ["note"]), ["two"]);
    case.proxy.heal();
    case.put("note", "three").await;
    case.until("the next version is followed", SOON, async || {
        (case.files(&volume, ["note"]) == ["three"]).then_some(())
    })
    .await;
    case.unmount(&volume);
}

/// A static role's password changes on the server's clock, or by an operator's hand.
#[tokio::test]
async fn static_role_is_followed() {
    let case = Setup::new("static").start().await;
    case.ground.postgres.sql("create role static_app login password 'x'");
    let role = json!({"db_name": "postgres", "username": "static_app", "rotation_period": "6s"});
    case.admin.write(&format!("database/static-roles/st-{}", case.name), role).await;
    let volume = case.volume();
    let objects: String = ["username", "password"]
        .map(|key| {
            format!(
                "- {{objectName: {key}, secretPath: database/static-creds/st-{}, secretKey: {key}}}\n",
                case.name
            )
        })
        .concat();
    case.mounted(&volume, &objects).await;
    let served = async || {
        let answer = case.admin.read(&format!("database/static-creds/st-{}", case.name)).await;
        answer["data"]["password"].as_str().expect("a password").to_owned()
    };
    let mut last: Credential = case.credential(&volume);
    case.login(&last).await.unwrap();
    for by_hand in [false, true, false] {
        if by_hand {
            case.admin.write(&format!("database/rotate-role/st-{}", case.name), json!({})).await;
        }
        let next = case
            .until("the server rotates", SOON, async || {
                Some(served().await).filter(|password| *password != last.password)
            })
            .await;
        // A rotation by hand is not announced: the next one is looked for when the announced time comes.
        case.until("the file follows", SOON, async || {
            let credential = case.credential(&volume);
            (credential.password == next || credential.password == served().await).then_some(())
        })
        .await;
        last = case.credential(&volume);
        case.login(&last).await.unwrap_or_else(|error| panic!("by hand: {by_hand}: {error}"));
    }
    let asked = case.seen(|seen| seen.path.starts_with("database/static-creds/")).len();
    assert!(asked < 30, "{asked} requests for three rotations\n{}", case.leasehold.log());
    assert_eq!(case.logins(), 1);
    case.unmount(&volume);
}

/// An edited class may not lead where policy forbids: the old files and their leases go on.
#[tokio::test]
async fn spc_change_revalidated() {
    let case = Setup::new("edited").database("12s", "1h").start().await;
    case.put("note", "n").await;
    let volume = case.volume();
    case.mounted(&volume, &(case.database() + &case.kv("note"))).await;
    let (before, first) = (case.snapshot(&volume), case.credential(&volume));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = format!("http://{}", listener.local_addr().unwrap());
    let class = case.class(&case.kv("note")).with("vaultAddress", &elsewhere);
    for _ in 0..3 {
        case.kubelet.publish(&volume, Some(&class)).await.expect("a live mount never fails");
    }
    assert_eq!(case.kubelet.driver.counts().masked, 0);
    case.leasehold.logged("edit rejected").await;
    let connected = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
    assert!(connected.is_err(), "no packet goes there");
    let probe = case.probe(&volume, Duration::from_secs(15)).await;
    probe.never_failed(&case.leasehold.log());
    assert_eq!((case.snapshot(&volume), case.credential(&volume)), (before, first));
    // An edit that is allowed drops the credential: its user goes, the file too.
    case.mounted(&volume, &case.kv("note")).await;
    case.until("what the edit dropped is given back", SOON, async || case.roles().is_empty().then_some(()))
        .await;
    assert_eq!(case.files(&volume, ["note"]), ["n"]);
    case.unmount(&volume);
}
