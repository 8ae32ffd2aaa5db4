//! Unmounts, remounts and readers, all at the worst moment.

use std::{
    fs,
    hint::spin_loop,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use leasehold::projection::{
    mounts::MountTable,
    target::{TargetError, identify},
    writer::WriteError,
};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::statfs::{TMPFS_MAGIC, statfs},
};
use rand::RngExt;

use crate::{
    driver,
    stage::{Stage, Writer, become_provider, cycles, eventually, mount_tmpfs, names, payload, tree, umount},
};

fn spin(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        spin_loop();
    }
}

/// Mounts, lets the provider write as often as it can, unmounts at a random moment of that; returns in how
/// many cycles bytes were found on the disk beneath, and how many writes had succeeded.
fn race_unmount(stage: &Stage, count: u64, write_until_gone: impl Fn(&Path, &dyn Fn()) + Sync) -> (u64, u64) {
    let target = stage.target("race");
    let (mounted, wrote, finished) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let writes = AtomicU64::new(0);
    let mut leaked = 0;
    std::thread::scope(|scope| {
        let provider = scope.spawn(|| {
            become_provider();
            for cycle in 1..=count {
                eventually("the mount", || mounted.load(Ordering::Acquire) == cycle);
                write_until_gone(&target, &|| {
                    writes.fetch_add(1, Ordering::Relaxed);
                    wrote.store(cycle, Ordering::Release);
                    // Or the unmount would mostly wait for a gap.
                    spin(Duration::from_micros(50));
                });
                finished.store(cycle, Ordering::Release);
            }
        });
        let at = |what: &str, clock: &AtomicU64, cycle| {
            eventually(what, || clock.load(Ordering::Acquire) == cycle || provider.is_finished());
        };
        for cycle in 1..=count {
            mount_tmpfs(&target, "size=1m");
            mounted.store(cycle, Ordering::Release);
            at("the first write", &wrote, cycle);
            spin(Duration::from_micros(rand::rng().random_range(0..100)));
            // Every other time as an impatient operator does it, which is never refused.
            if cycle % 2 == 0 {
                umount2(&target, MntFlags::MNT_DETACH).unwrap();
            } else {
                eventually("the unmount", || umount(&target) != Err(Errno::EBUSY));
            }
            at("the writer's end", &finished, cycle);
            if fs::read_dir(&target).unwrap().next().is_some() {
                leaked += 1;
                driver::remove_files(&target);
            }
        }
    });
    (leaked, writes.into_inner())
}

#[test]
fn race_unmount_write_100k() {
    Stage::run(|stage| {
        // Without our guard: check the path, then write by path; a temporary file and a rename for each, as
        // the agents of this field do.
        let naive = cycles(20_000) / 10;
        let (leaked, written) = race_unmount(stage, naive, |target, wrote| {
            while statfs(target).unwrap().filesystem_type() == TMPFS_MAGIC {
                for name in ["a", "b"] {
                    let temporary = target.join(format!(".{name}.tmp"));
                    let _ = fs::write(&temporary, "secret")
                        .and_then(|()| fs::rename(&temporary, target.join(name)));
                }
                wrote();
            }
        });
        println!("check then write by path: {leaked} of {naive} leaked, {written} writes");
        assert!(leaked > naive / 20, "{leaked} of {naive}: the race is not run hard enough to show anything");

        let files = ["secret", "hidden"].map(|contents| payload(&[("a", contents), ("b", contents)]));
        let count = cycles(20_000);
        let (leaked, written) = race_unmount(stage, count, |target, wrote| {
            let writer = Writer::of(target);
            for files in files.iter().cycle() {
                match writer.write(files, None) {
                    Ok(_) => wrote(),
                    Err(WriteError::Target(TargetError::NotMounted { .. })) => break,
                    Err(error) => panic!("{error}: {error:?}"),
                }
            }
        });
        println!("beneath the verified descriptor: {leaked} of {count} leaked, {written} writes");
        assert_eq!(leaked, 0, "of {count}");
        assert!(written > count, "{written} of {count}: no race");
    });
}

#[test]
fn unmount_never_blocked() {
    Stage::run(|stage| {
        let target = stage.target("app");
        let count = cycles(20_000) / 20;
        let (mounted, unmounted) = (AtomicU64::new(0), AtomicU64::new(0));
        let (first_write, writes, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let (mut refused, mut waited) = (0u64, Duration::ZERO);
        std::thread::scope(|scope| {
            let provider = scope.spawn(|| {
                become_provider();
                // Without our guard: a descriptor that is kept.
                eventually("the first mount", || mounted.load(Ordering::Acquire) == 1);
                let held = fs::File::open(&target).unwrap();
                first_write.store(1, Ordering::Release);
                eventually("the refusal", || stop.load(Ordering::Acquire));
                drop(held);
                unmounted.store(1, Ordering::Release);
                for cycle in 2..count + 2 {
                    eventually("a mount", || mounted.load(Ordering::Acquire) == cycle);
                    let writer = Writer::of(&target);
                    let mut last = writer.take_over(&payload(&[("a", "0")])).version_dir;
                    first_write.store(cycle, Ordering::Release);
                    // As the worker: no write after the first sign of the unmount. A real volume rests for
                    // seconds between writes; this one long enough not to be in every unmount's way.
                    loop {
                        std::thread::sleep(Duration::from_micros(500));
                        let number = writes.fetch_add(1, Ordering::Relaxed);
                        match writer.write(&payload(&[("a", number.to_string())]), Some(&last)) {
                            Ok(swap) => last = swap.version_dir,
                            Err(WriteError::BeingUnpublished { .. } | WriteError::Target(_)) => break,
                            Err(error) => panic!("{error}: {error:?}"),
                        }
                    }
                    unmounted.store(cycle, Ordering::Release);
                }
            });
            mount_tmpfs(&target, "");
            mounted.store(1, Ordering::Release);
            eventually("the held descriptor", || first_write.load(Ordering::Acquire) == 1);
            for _ in 0..100 {
                assert_eq!(umount(&target), Err(Errno::EBUSY));
            }
            stop.store(true, Ordering::Release);
            eventually("its end", || unmounted.load(Ordering::Acquire) == 1);
            eventually("the unmount", || umount(&target).is_ok());

            for cycle in 2..count + 2 {
                mount_tmpfs(&target, "");
                mounted.store(cycle, Ordering::Release);
                eventually("the first write", || {
                    first_write.load(Ordering::Acquire) == cycle || provider.is_finished()
                });
                spin(Duration::from_micros(rand::rng().random_range(0..5000)));
                // The driver: delete, then umount; on failure the kubelet calls again.
                driver::remove_files(&target);
                if !driver::umount(&target) {
                    refused += 1;
                    let start = Instant::now();
                    eventually("the unmount", || umount(&target).is_ok());
                    waited = waited.max(start.elapsed());
                }
                eventually("the writer", || {
                    unmounted.load(Ordering::Acquire) == cycle || provider.is_finished()
                });
            }
        });
        let writes = writes.into_inner();
        println!("{writes} writes in {count} unmounts: {refused} met one in flight, for {waited:?} at most");
        assert!(writes > 1000, "{writes} writes");
        // A burst that the scheduler interrupts can meet one; the kubelet's retry, 500 ms later, never does.
        assert!(refused < count / 4, "{refused} of {count} refused");
        assert!(waited < Duration::from_millis(500), "an unmount waited {waited:?}");
    });
}

/// The driver removes in the order of names, and a new version's may come before the old one's: what is being made is
/// then gone while the old content is still there.
#[test]
fn what_is_removed_as_it_is_made_is_being_unpublished() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let writer = Writer::of(&target);
        let (stop, mut met) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            let driver = scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    let versions = names(&target).into_iter().filter(|name| name.starts_with("..2"));
                    let current = fs::read_link(target.join("..data")).unwrap_or_default();
                    for made in versions.filter(|name| Path::new(name) != current) {
                        let _may_be_gone = fs::remove_dir_all(target.join(made));
                    }
                }
            });
            let mut last = None;
            let mut wrong = None;
            for number in 0..cycles(20_000) / 20 {
                // Many files: most removals come while they are being written.
                let files: Vec<_> = (0..100).map(|file| (format!("f{file}"), number.to_string())).collect();
                let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text)).collect();
                let files = payload(&files);
                match writer.write(&files, last.as_deref()) {
                    Ok(swap) => last = Some(swap.version_dir),
                    Err(WriteError::BeingUnpublished { .. }) => {
                        met += 1;
                        last = None;
                    }
                    // Nothing is known of a content that could be removed.
                    Err(WriteError::Io { source, .. })
                        if last.is_none() && source.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => {
                        wrong = Some(error);
                        break;
                    }
                }
            }
            stop.store(true, Ordering::Release);
            driver.join().unwrap();
            assert!(wrong.is_none(), "{wrong:?}");
        });
        println!("{met} writes met a removal");
        assert!(met > 0, "no race");
    });
}

#[test]
fn remount_noticed_1000() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        // What a look at the path alone could go by.
        let naive = || {
            let stat = fs::metadata(&target).unwrap();
            let id = MountTable::read().unwrap().find(&target).unwrap().id;
            (stat.dev(), stat.ino(), id)
        };
        let files = payload(&[("a", "secret")]);
        let mut missed = 0;
        for _ in 0..1000 {
            let (before, writer) = (naive(), Writer::of(&target));
            // A child that another test forks holds our descriptors until its exec.
            eventually("the unmount", || umount(&target).is_ok());
            mount_tmpfs(&target, "");
            missed += u64::from(naive() == before);
            assert_ne!(identify(&target).unwrap(), writer.identity);
            let outcome = writer.write(&files, None);
            assert!(matches!(outcome, Err(WriteError::Target(TargetError::Changed { .. }))), "{outcome:?}");
            assert!(tree(&target).is_empty());
        }
        println!("device, inode and mount id miss {missed} of 1000 remounts");
        assert!(missed > 100, "{missed}: the kernel no longer reuses them, the control shows nothing");
    });
}

/// A version of two files that any reader can check: the same number all over.
fn version(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(4096)
}

fn whole(contents: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(contents.get(..8)?.try_into().unwrap());
    (contents == version(number)).then_some(number)
}

#[test]
fn torn_reads_never() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let read = |write: &mut dyn FnMut(u64), count: u64| {
            let (stop, torn, reads) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut newest = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // One resolution of `..data`, as an application that wants both files of one version.
                        let Ok(link) = fs::read_link(target.join("..data")) else { continue };
                        let pair = ["a", "b"].map(|name| fs::read(target.join(&link).join(name)));
                        let [Ok(a), Ok(b)] = pair else { continue };
                        let same = whole(&a).filter(|number| Some(*number) == whole(&b) && *number >= newest);
                        torn.fetch_add(u64::from(same.is_none()), Ordering::Relaxed);
                        newest = same.unwrap_or(newest);
                        // And one that opens by name: never missing, never in part.
                        let single = fs::read(target.join("a")).ok();
                        torn.fetch_add(
                            u64::from(single.is_some_and(|bytes| whole(&bytes).is_none())),
                            Ordering::Relaxed,
                        );
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                });
                let mut number = 0;
                let limit = Instant::now() + Duration::from_secs(60);
                while number < count || reads.load(Ordering::Relaxed) < 200 {
                    number += 1;
                    write(number);
                    assert!(Instant::now() < limit, "the reader gets nowhere");
                }
                stop.store(true, Ordering::Relaxed);
            });
            (torn.into_inner(), reads.into_inner())
        };
        let writer = Writer::of(&target);
        let files = |number| payload(&[("a", version(number)), ("b", version(number))]);
        writer.take_over(&files(0));
        // Without our guard: writing in place.
        let (torn, reads) = read(
            &mut |number| {
                fs::write(target.join("a"), version(number)).unwrap();
                fs::write(target.join("b"), version(number)).unwrap();
            },
            cycles(20_000) / 20,
        );
        println!("in place: {torn} torn of {reads}");
        assert!(torn > 0, "of {reads}");

        let mut last = writer.take_over(&files(0)).version_dir;
        let (torn, reads) = read(
            &mut |number| last = writer.write(&files(number), Some(&last)).unwrap().version_dir,
            cycles(20_000) / 4,
        );
        println!("swapped: {torn} torn of {reads}");
        assert_eq!(torn, 0, "of {reads}");
    });
}
