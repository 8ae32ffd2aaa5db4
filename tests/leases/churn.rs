//! Mounts that come and go, mounts that never work, and kills in the middle of everything.

use std::time::Duration;

use futures_util::future::join_all;

use crate::{
    case::{Case, Setup},
    support::{SOON, driver::SecretProviderClass, kubelet::Volume, proxy::Fault},
};

/// A pod whose first mount fails after a user was made: the kubelet's retries make no other, and when the
/// pod is deleted what was made is given back.
#[tokio::test]
async fn failing_mount_mints_once_for_all_its_retries() {
    let case = Setup::new("failing").start().await;
    let volume = case.volume();
    let objects = case.database() + &case.kv("absent");
    let start = case.kubelet.start(&volume, &case.class(&objects), 3).await;
    assert!(!start.started, "{start:?}");
    assert_eq!((case.mints(), case.logins(), case.roles().len()), (1, 1, 1), "{}", case.leasehold.log());
    // Peers mint once per retry: a retry by hand shows it.
    let by_hand = case.by_hand(&volume).await;
    for _ in 0..3 {
        case.unattended(&by_hand).await;
    }
    assert_eq!(case.roles().len(), 4);
    by_hand.write("auth/token/revoke-self", serde_json::json!({})).await;
    // The secret appears: the retry uses what was made.
    case.put("absent", "here").await;
    case.mounted(&volume, &objects).await;
    assert_eq!(case.files(&volume, ["absent"]), ["here"]);
    case.login(&case.credential(&volume)).await.unwrap();
    assert_eq!((case.mints(), case.logins()), (1, 1), "{}", case.leasehold.log());
    case.unmount(&volume);
    // Another pod fails likewise and is deleted.
    let gone = case.volume();
    let objects = case.database() + &case.kv("missing");
    let start = case.kubelet.start(&gone, &case.class(&objects), 1).await;
    assert!(!start.started, "{start:?}");
    assert_eq!(case.mints(), 2);
    case.remove_pod(&gone);
    case.nothing_left(SOON).await;
}

/// Mounts of churn that go on side by side.
const LANES: usize = 8;
/// Mounts that come and go between two kills.
const PER_KILL: usize = 50;

/// 1,000 cycles (LEASEHOLD_CHURN for more) with a kill after every fifty, in the middle of eight further mounts:
/// no lease is left, no user that ever had one, and at most one login per kill, with nothing under it.
#[tokio::test]
async fn churn_lease_equals_mounts() {
    let cycles: usize =
        std::env::var("LEASEHOLD_CHURN").ok().map_or(1000, |text| text.parse().expect("a number of cycles"));
    let mut case = Setup::new("churn").start().await;
    case.put("note", "n").await;
    let class = case.class(&(case.database() + &case.kv("note")));
    // Who only delivers leaves a lease for every pod that went.
    let peer = case.by_hand(&case.volume()).await;
    case.unattended(&peer).await;
    assert_eq!((case.leases().await, case.roles().len(), case.tokens().await), (1, 1, 1));
    peer.write("auth/token/revoke-self", serde_json::json!({})).await;
    case.nothing_left(SOON).await;

    let (mut kills, mut unanswered, mut left) = (0, 0, cycles);
    while left > 0 {
        let round = left.min(PER_KILL);
        left -= round;
        let volumes: Vec<Volume> = (0..round).map(|_| case.volume()).collect();
        join_all(volumes.chunks(round.div_ceil(LANES)).map(async |lane| {
            for volume in lane {
                if let Err(status) = case.kubelet.publish(volume, Some(&class)).await {
                    panic!("mount: {status:?}\n{}", case.leasehold.log());
                }
                case.login(&case.credential(volume)).await.unwrap();
                case.unmount(volume);
                case.remove_pod(volume);
            }
        }))
        .await;
        unanswered += killed_in_flight(&mut case, &class, kills).await;
        kills += 1;
    }
    let started = tokio::time::Instant::now();
    loop {
        let (leases, roles, tokens) = (case.leases().await, case.roles(), case.tokens().await);
        // See `cancelled_commit_leaves_a_user_without_a_lease`.
        if leases == 0 && roles.len() <= unanswered && tokens <= kills {
            break;
        }
        assert!(
            started.elapsed() < SOON,
            "{leases} leases, {tokens} logins after {kills} kills, {unanswered} answers swallowed, users {roles:?}\n{}",
            case.ground.bao.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Kills leasehold in the middle of mounts, each of them a stage behind the one before it, and takes all of
/// them down again. How many requests for a credential were never answered.
async fn killed_in_flight(case: &mut Case, class: &SecretProviderClass, kills: usize) -> usize {
    case.proxy.forget();
    let volumes: Vec<Volume> = (0..LANES).map(|_| case.volume()).collect();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(case.leasehold.pid()).unwrap());
    let (killed, dead) = tokio::sync::watch::channel(false);
    let kill = async {
        // Somewhere between the first login and the last answer, later each time.
        let progress = 1 + kills % (LANES * 3);
        let _ = tokio::time::timeout(SOON, async {
            while case.proxy.count() < progress {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        let _ = killed.send(true);
    };
    let running = &*case;
    let minting = || running.seen(|seen| seen.path.contains("/creds/")).len();
    let mounts = join_all(volumes.iter().enumerate().map(|(lane, volume)| {
        let (mut dead, minting) = (dead.clone(), &minting);
        async move {
            let mounted = async {
                // Who asks for a credential has its session on record: of all, one login is in flight.
                while minting() < lane {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                running.kubelet.publish(volume, Some(class)).await.is_ok()
            };
            tokio::select! {
                biased;
                mounted = mounted => mounted,
                _ = dead.wait_for(|dead| *dead) => false,
            }
        }
    }));
    let (mounted, ()) = tokio::join!(mounts, kill);
    case.leasehold.restart().await;
    for (volume, mounted) in volumes.iter().zip(mounted) {
        if mounted {
            case.login(&case.credential(volume)).await.unwrap();
        }
        case.unmount(volume);
        case.remove_pod(volume);
    }
    case.seen(|seen| seen.path.contains("/creds/") && seen.status.is_none()).len()
}

/// What no agent can help, shown without one: a client that goes away while PostgreSQL commits. OpenBao calls
/// the request off, the user is there, and no lease of it ever existed.
#[tokio::test]
async fn cancelled_commit_leaves_a_user_without_a_lease() {
    let case = Setup::new("commit").start().await;
    let postgres = &case.ground.postgres;
    let by_hand = case.by_hand(&case.volume()).await;
    // The commit is on the server's disk and waits for a replica that never comes.
    let role = format!("database/roles/{}", case.name);
    let mut body = case.admin.read(&role).await["data"].clone();
    let create = body["creation_statements"][0].clone();
    body["creation_statements"] = serde_json::json!(["SET LOCAL synchronous_commit = on", create]);
    case.admin.write(&role, body).await;
    postgres.sql("alter system set synchronous_standby_names = 'nobody'");
    postgres.sql("select pg_reload_conf()");
    let path = format!("database/creds/{}", case.name);
    let asked = tokio::spawn({
        let by_hand = by_hand.clone();
        async move { by_hand.read(&path).await }
    });
    let waiting = || postgres.sql("select count(*) from pg_stat_activity where wait_event = 'SyncRep'");
    case.until("the commit waits", SOON, async || (waiting() == "1").then_some(())).await;
    asked.abort();
    case.until("the server calls the request off", SOON, async || (waiting() == "0").then_some(())).await;
    by_hand.write("auth/token/revoke-self", serde_json::json!({})).await;
    case.until("the session is gone", SOON, async || (case.tokens().await == 0).then_some(())).await;
    assert_eq!((case.roles().len(), case.leases().await), (1, 0));
    postgres.sql("alter system reset synchronous_standby_names");
    postgres.sql("select pg_reload_conf()");
}

/// A pod that is deleted while its credential is being made: the session is given back after the request has
/// ended, or the lease could outlive it.
#[tokio::test]
async fn unmount_while_minting_leaves_nothing() {
    let case = Setup::new("minting").start().await;
    let (volume, class) = (case.volume(), case.class(&case.database()));
    case.proxy.rule(|seen| {
        if seen.path.contains("/creds/") { Fault::Delay(Duration::from_secs(7)) } else { Fault::Pass }
    });
    let caller =
        tokio::time::timeout(Duration::from_millis(700), case.kubelet.publish(&volume, Some(&class)));
    assert!(caller.await.is_err(), "the caller went away");
    case.unmount(&volume);
    case.remove_pod(&volume);
    case.nothing_left(SOON).await;
    let (made, revoked) = (
        case.seen(|seen| seen.path.contains("/creds/")).pop().unwrap(),
        case.seen(|seen| seen.path.ends_with("revoke-self")).pop().unwrap(),
    );
    assert_eq!(made.status, Some(200), "{}", case.leasehold.log());
    assert!(revoked.started >= made.finished.unwrap(), "{:?}", case.proxy.requests());
}
