//! Mounts that come and go, mounts that never work, and kills in the middle of everything.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;

use crate::{
    case::Setup,
    support::{SOON, kubelet::Volume, proxy::Fault},
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

/// 100 cycles (LEASEHOLD_CHURN for more) with a kill now and then, mounts in flight among them: no lease and
/// no user is left, and at most one login per kill that was answered into a dead process.
#[tokio::test]
async fn churn_lease_equals_mounts() {
    const LANES: usize = 4;
    const PER_KILL: usize = 10;
    let cycles: usize =
        std::env::var("LEASEHOLD_CHURN").ok().map_or(100, |text| text.parse().expect("a number of cycles"));
    let mut case = Setup::new("churn").start().await;
    case.put("note", "n").await;
    let objects = case.database() + &case.kv("note");
    let (mut kills, mut in_flight) = (0, 0);
    let failed = AtomicUsize::new(0);
    let mut left = cycles;
    while left > 0 {
        let round = left.min(PER_KILL);
        left -= round;
        let volumes: Vec<Volume> = (0..round).map(|_| case.volume()).collect();
        let cycle = async |volume: &Volume| {
            if case.kubelet.publish(volume, Some(&case.class(&objects))).await.is_err() {
                failed.fetch_add(1, Ordering::Relaxed);
            } else {
                case.login(&case.credential(volume)).await.unwrap();
            }
            case.unmount(volume);
            case.remove_pod(volume);
        };
        let all = join_all(volumes.chunks(round.div_ceil(LANES)).map(async |lane| {
            for volume in lane {
                cycle(volume).await;
            }
        }));
        all.await;
        assert_eq!(failed.load(Ordering::Relaxed), in_flight, "{}", case.leasehold.log());
        // And killed with mounts in flight: which of them get through is the kernel's choice.
        let volumes: Vec<Volume> = (0..LANES).map(|_| case.volume()).collect();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(case.leasehold.pid()).unwrap());
        let (asked, class) = (case.proxy.count(), case.class(&objects));
        let kill = async {
            // Somewhere between the first login and the last answer, later each time.
            let progress = asked + 2 + kills % (LANES * 3);
            let _ = tokio::time::timeout(SOON, async {
                while case.proxy.count() < progress {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        };
        let mounts = join_all(volumes.iter().map(async |volume| {
            let mounted =
                tokio::time::timeout(Duration::from_secs(2), case.kubelet.publish(volume, Some(&class)))
                    .await;
            matches!(mounted, Ok(Ok(())))
        }));
        let (mounted, ()) = tokio::join!(mounts, kill);
        kills += 1;
        case.leasehold.restart().await;
        for (volume, mounted) in volumes.iter().zip(mounted) {
            if mounted {
                case.login(&case.credential(volume)).await.unwrap();
            }
            case.unmount(volume);
            case.remove_pod(volume);
        }
        in_flight = failed.load(Ordering::Relaxed);
    }
    let started = tokio::time::Instant::now();
    loop {
        let (leases, roles, tokens) = (case.leases().await, case.roles().len(), case.tokens().await);
        // A login whose answer a kill swallowed has no lease under it. And a server that is told of the dead
        // connection just after PostgreSQL made a user forgets that user: no lease of it ever existed.
        let unanswered = case.seen(|seen| seen.path.ends_with("creds/churn") && seen.status.is_none()).len();
        if leases == 0 && roles <= unanswered && tokens <= kills * LANES {
            break;
        }
        let log = case.ground.bao.log();
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("[ERROR]")).collect();
        assert!(
            started.elapsed() < SOON,
            "{leases} leases, {roles} users, {tokens} logins left: {errors:#?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(case.leases().await == 0 && kills > 0);
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
