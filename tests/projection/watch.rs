//! Seeing the host's mounts and unmounts from the provider's namespace.

use std::{
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use leasehold::projection::mounts::{MountTable, MountWatch};

use crate::stage::{Stage, become_provider, mount_tmpfs, umount};

#[test]
fn mounts_of_the_host_wake_the_provider() {
    Stage::run(|stage| {
        let target = stage.target("app");
        let rounds = 200;
        let (ready, host_goes) = channel();
        let (told, provider_knows) = channel();
        std::thread::scope(|scope| {
            let (kubelet, target) = (&stage.kubelet, &target);
            scope.spawn(move || {
                become_provider();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let mut latencies = runtime.block_on(async {
                    let mut watch = MountWatch::open().unwrap();
                    assert_eq!(MountTable::read().unwrap().find(target), None);
                    let quiet = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
                    assert!(quiet.is_err(), "nothing changed, and yet it woke");
                    let mut latencies = Vec::new();
                    for round in 0..rounds {
                        let expected = round % 2 == 0;
                        ready.send(()).unwrap();
                        // Every other change comes while nobody is polling: it must not be lost either.
                        let early: Option<Instant> = (round % 4 < 2).then(|| provider_knows.recv().unwrap());
                        loop {
                            tokio::time::timeout(Duration::from_secs(10), watch.changed())
                                .await
                                .unwrap_or_else(|_| panic!("round {round}: the wake-up was lost"))
                                .unwrap();
                            let table = MountTable::read().unwrap();
                            let found = table.find(target);
                            assert!(
                                found.is_none_or(|entry| entry.propagates() && entry.is_tmpfs()),
                                "{found:?}"
                            );
                            assert_eq!(table.kubelet_volumes(kubelet).count(), usize::from(found.is_some()));
                            if found.is_some() == expected {
                                break;
                            }
                        }
                        let seen = Instant::now();
                        let done = early.unwrap_or_else(|| provider_knows.recv().unwrap());
                        latencies.push(seen.saturating_duration_since(done));
                    }
                    latencies
                });
                latencies.sort();
                println!("median {:?}, worst {:?}", latencies[rounds / 2], latencies[rounds - 1]);
            });
            for round in 0..rounds {
                if host_goes.recv().is_err() {
                    return;
                }
                if round % 2 == 0 {
                    mount_tmpfs(target, "");
                } else {
                    umount(target).unwrap();
                }
                told.send(Instant::now()).unwrap();
            }
        });
    });
}
