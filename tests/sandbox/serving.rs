//! Confined, it does all that it is for; the other end-to-end tests run so too.

use std::fs;

use crate::support::{
    leasehold::{Launch, Leasehold},
    stage::{Stage, class},
};

/// Each wall stands around each thread before the first call is served, and stays out of the way.
#[tokio::test]
async fn serves_behind_every_wall() {
    let stage = Stage::start().await;
    let pid = stage.leasehold.pid();
    stage.leasehold.is_ready().await;
    let (_, ready) = stage.leasehold.http_get("/readyz").await;
    assert!(!ready.contains("sandbox"), "{ready}");
    for measure in ["not dumpable, core limit 0", "files and ports, Landlock", "system calls are left"] {
        stage.leasehold.logged(measure).await;
    }

    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    let second = stage.volume();
    stage.mount(&second, &class()).await;
    stage.mount(&volume, &class()).await;
    assert_eq!(stage.kubelet.file(&second, "password"), "p1");
    stage.kubelet.unpublish(&volume).unwrap();

    let tasks: Vec<_> = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().collect();
    assert!(tasks.len() > 2, "it has threads");
    for task in tasks {
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t2"] {
            assert!(status.contains(line), "{line} of {status}");
        }
    }
}

/// A successor that waited long still reads what it needs of /proc, though the kernel has made those entries
/// anew meanwhile.
#[tokio::test]
async fn a_successor_takes_over_behind_its_walls() {
    let mut stage = Stage::start().await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    let mut launch = Launch::new(&stage.proxy.url());
    launch.names = vec!["vault".into()];
    let successor = Leasehold::start_waiting(&stage.node, launch);
    successor.logged("another leasehold holds the state folder").await;
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    stage.leasehold.crash();
    successor.logged("ready").await;
    stage.mount(&volume, &class()).await;
}

/// Each wall is taken down by its own flag, and the operator is told.
#[tokio::test]
async fn each_wall_has_its_flag() {
    for (flag, told, still) in [
        ("--no-landlock", "sandbox: degraded: landlock: off by --no-landlock", "Seccomp:\t2"),
        ("--no-seccomp", "sandbox: degraded: seccomp: off by --no-seccomp", "Seccomp:\t0"),
        ("--allow-core-dumps", "sandbox: degraded: no core dumps: off by --allow-core-dumps", "Seccomp:\t2"),
    ] {
        let stage = Stage::start_with(Default::default(), |launch| launch.flags.push(flag.into())).await;
        stage.leasehold.is_ready().await;
        let (status, ready) = stage.leasehold.http_get("/readyz").await;
        assert!(status == 200 && ready.contains(told), "{flag}: {ready}");
        let pid = stage.leasehold.pid();
        assert!(fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains(still), "{flag}");
        stage.mount(&stage.volume(), &class()).await;
    }
}
