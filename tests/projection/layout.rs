//! What a write leaves, to the byte; and what it leaves alone.

use std::{
    cell::Cell,
    fs,
    os::unix::fs::MetadataExt,
    panic::resume_unwind,
    path::Path,
    time::{Duration, SystemTime},
};

use leasehold::{
    projection::{
        Payload,
        target::TargetError,
        writer::{RootMtime, Swap, WriteError, WriteRequest, inspect, set_root_mtime, write},
    },
    spec::{FileMode, ObjectPath},
};
use nix::sys::stat::{Mode, umask};
use proptest::{prelude::*, test_runner::TestRunner};
use rustix::thread::CapabilitySet;

use crate::{
    driver,
    stage::{Stage, Writer, assert_layout, eventually, file, mount_tmpfs, names, payload, tree, umount},
};

/// What changes when anything at all is written: inode, mtime and ctime of every entry, and the root's.
fn fingerprint(target: &Path) -> Vec<(String, u64, i64, i64, i64, i64)> {
    let mut paths: Vec<String> = tree(target).into_keys().collect();
    paths.push(String::new());
    let stat = |path: String| {
        let stat = fs::symlink_metadata(target.join(&path)).unwrap();
        (path, stat.ino(), stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec())
    };
    paths.into_iter().map(stat).collect()
}

#[test]
fn the_layout_is_the_atomic_writers_and_both_sides_can_take_over() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let writer = Writer::of(&target);
        let first =
            payload(&[("password", "one"), ("tls/server/key.pem", "k"), ("tls/ca", "c"), (".hidden", "")]);
        let made = writer.take_over(&first);
        assert!(made.changed && made.bytes == 5 && made.leftovers == 0 && made.mtime_set, "{made:?}");
        assert_layout(&target, &made.version_dir, &first);
        assert_eq!(inspect(&target).unwrap().data.as_ref(), Some(&made.version_dir));

        let second = payload(&[("password", "two"), ("user", "u")]);
        let next = writer.write(&second, Some(&made.version_dir)).unwrap();
        assert_layout(&target, &next.version_dir, &second);

        driver::write(&target, &[("password", b"three"), ("other/x", b"x")]).unwrap();
        let theirs = fs::read_link(target.join("..data")).unwrap().into_os_string().into_string().unwrap();
        assert_layout(&target, &theirs, &payload(&[("password", "three"), ("other/x", "x")]));

        let outcome = writer.write(&second, Some(&next.version_dir));
        assert!(matches!(outcome, Err(WriteError::Displaced { .. })), "{outcome:?}");
        let back = writer.take_over(&second);
        assert_layout(&target, &back.version_dir, &second);
        let emptied = writer.take_over(&Payload::default());
        assert_layout(&target, &emptied.version_dir, &Payload::default());
    });
}

#[test]
fn unchanged_writes_nothing() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let writer = Writer::of(&target);
        let mut files = payload(&[("a", "1"), ("nested/b", "2")]);
        files.files.insert(ObjectPath::parse("private").unwrap(), file("s", 0o400, Some((1000, 2000))));
        let made = writer.take_over(&files);
        let before = fingerprint(&target);
        for previous in [None, Some(made.version_dir.as_str())] {
            let again = writer.write(&files, previous).unwrap();
            assert_eq!(again, Swap { changed: false, bytes: 0, ..made.clone() });
        }
        assert_eq!(fingerprint(&target), before);

        // As the DaemonSet runs: root with CAP_CHOWN alone cannot read the 0400 file back.
        let unprivileged = || {
            drop_capabilities(CapabilitySet::CHOWN);
            assert!(fs::read(target.join("private")).is_err(), "the capabilities are gone");
            let known =
                WriteRequest { contents_as_before: true, ..writer.request(&files, Some(&made.version_dir)) };
            assert!(!write(known).unwrap().changed);
            assert_eq!(fs::symlink_metadata(&target).unwrap().ctime_nsec(), before.last().unwrap().5);
            let unsure = writer.write(&files, Some(&made.version_dir)).unwrap();
            assert!(unsure.changed && unsure.leftovers == 0, "without the caller's word it is written again");
            let unrelated = WriteRequest { contents_as_before: true, ..writer.request(&files, None) };
            assert!(write(unrelated).unwrap().changed, "the word is about `previous` only");
        };
        std::thread::scope(|scope| scope.spawn(unprivileged).join())
            .unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// Without CAP_CHOWN an owner fails with what to add, and the version that was there stays.
#[test]
fn an_owner_without_the_capability_names_it() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let writer = Writer::of(&target);
        let made = writer.take_over(&payload(&[("a", "1")]));
        let before = fingerprint(&target);
        let mut owned = payload(&[("a", "2")]);
        owned.files.insert(ObjectPath::parse("private").unwrap(), file("s", 0o400, Some((1000, 2000))));
        let unprivileged = || {
            drop_capabilities(CapabilitySet::empty());
            let error = writer.write(&owned, Some(&made.version_dir)).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("\"private\"")
                    && text.contains("CAP_CHOWN")
                    && text.contains("fileOwnership.enabled"),
                "{text}"
            );
        };
        std::thread::scope(|scope| scope.spawn(unprivileged).join())
            .unwrap_or_else(|panic| resume_unwind(panic));
        let names = |print: &[_]| print.len();
        assert_eq!(names(&fingerprint(&target)), names(&before), "nothing is left behind");
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");
    });
}

fn drop_capabilities(kept: CapabilitySet) {
    let kept = rustix::thread::CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, kept).unwrap();
}

#[test]
fn every_kind_of_change_is_written() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let writer = Writer::of(&target);
        let files = payload(&[("a", "1"), ("nested/b", "2")]);
        let version = |name: &str| target.join("..data").join(name);
        let tampers: [(&str, &dyn Fn()); 8] = [
            ("contents", &|| fs::write(version("a"), "X").unwrap()),
            ("length", &|| fs::write(version("a"), "1 and more").unwrap()),
            ("mode", &|| chmod(&version("a"), 0o600)),
            ("mode of a folder", &|| chmod(&version("nested"), 0o700)),
            ("owner", &|| std::os::unix::fs::chown(version("nested/b"), Some(7), None).unwrap()),
            ("a file gone", &|| fs::remove_file(version("a")).unwrap()),
            ("a file more", &|| fs::write(version("nested/c"), "").unwrap()),
            ("a link in its place", &|| {
                fs::remove_file(version("a")).unwrap();
                std::os::unix::fs::symlink("nested/b", version("a")).unwrap();
            }),
        ];
        for (what, tamper) in tampers {
            let made = writer.take_over(&files);
            tamper();
            let repaired = writer.write(&files, Some(&made.version_dir)).unwrap();
            assert!(repaired.changed, "{what} went unnoticed");
            assert_layout(&target, &repaired.version_dir, &files);
        }
    });
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn mode_bits() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        // This tmpfs would keep the bit: nothing but us stands between a parameter and a setuid file.
        fs::write(target.join("naive"), "").unwrap();
        chmod(&target.join("naive"), 0o4755);
        assert_eq!(fs::metadata(target.join("naive")).unwrap().mode() & 0o7777, 0o4755);
        fs::remove_file(target.join("naive")).unwrap();

        let writer = Writer::of(&target);
        for mask in [0o000, 0o022, 0o077, 0o777] {
            let mut files = Payload::default();
            for mode in [0o000, 0o400, 0o440, 0o600, 0o644, 0o755, 0o777] {
                for owner in [None, Some((1000, 2000))] {
                    let path = format!("d{mask:o}/{mode:o}-{}", owner.is_some());
                    files.files.insert(ObjectPath::parse(&path).unwrap(), file("x", mode, owner));
                }
            }
            umask(Mode::from_bits(mask).unwrap());
            let made = writer.take_over(&files);
            umask(Mode::from_bits(0o022).unwrap());
            assert_layout(&target, &made.version_dir, &files);
        }
        let before = tree(&target);
        for bits in [0o4755, 0o2755, 0o1777, 0o10_0644, u32::MAX] {
            assert_eq!(FileMode::new(bits), None);
            // A journal is read with serde: the writer must not trust what comes out of it.
            let Ok(mode) = serde_json::from_value::<FileMode>(bits.into()) else { continue };
            let mut files = payload(&[("a", "x")]);
            files.files.values_mut().for_each(|file| file.mode = mode);
            let outcome = writer.write(&files, None);
            assert!(matches!(outcome, Err(WriteError::Mode { .. })), "{bits:o}: {outcome:?}");
        }
        let mut files = payload(&[("a", "x")]);
        files.files.values_mut().for_each(|file| file.owner = self::file("", 0, Some((u32::MAX, 0))).owner);
        assert!(matches!(writer.write(&files, None), Err(WriteError::Owner { .. })));
        assert_eq!(tree(&target), before);
    });
}

#[test]
fn prop_paths_never_escape() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let writer = Writer::of(&target);
        fs::write(stage.kubelet.join("victim"), "untouched").unwrap();
        let outside = |stage: &Stage| {
            let mut all = tree(&stage.kubelet);
            all.retain(|path, _| !path.contains("/app/mount/"));
            all
        };
        let before = outside(stage);
        let element = prop_oneof![
            Just("..".to_owned()),
            Just(".".to_owned()),
            Just(String::new()),
            Just("a\0b".to_owned()),
            Just("..data".to_owned()),
            Just("..2026_11_23_14_06_47.1".to_owned()),
            Just("x".repeat(256)),
            Just("victim".to_owned()),
            "[a-c]{1,2}",
            "\\PC{1,8}",
        ];
        let paths = proptest::collection::vec(proptest::collection::vec(element, 1..6), 1..4);
        let (written, refused) = (Cell::new(0), Cell::new(0));
        TestRunner::new(ProptestConfig {
            failure_persistence: None,
            cases: 400,
            ..ProptestConfig::default()
        })
        .run(&paths, |paths| {
            let mut files = Payload::default();
            for path in paths.iter().map(|elements| elements.join("/")) {
                // The parser refuses most of these; deserialised or not, the writer judges again.
                let parsed = serde_json::from_value(path.clone().into()).ok();
                let Some(path) = parsed.or_else(|| ObjectPath::parse(&path).ok()) else { return Ok(()) };
                files.files.insert(path, file("x", 0o644, None));
            }
            match writer.write(&files, None) {
                Ok(swap) => {
                    written.set(written.get() + 1);
                    assert_layout(&target, &swap.version_dir, &files);
                }
                Err(WriteError::Path { .. } | WriteError::Clash { .. }) => {
                    refused.set(refused.get() + 1);
                }
                Err(error) => panic!("{error}: {error:?}"),
            }
            prop_assert_eq!(&outside(stage), &before);
            Ok(())
        })
        .unwrap();
        assert!(written.get() > 10, "{written:?} written, {refused:?} refused");
        let clash = writer.write(&payload(&[("a", ""), ("a/b", "")]), None);
        assert!(matches!(clash, Err(WriteError::Clash { .. })), "{clash:?}");
    });
}

#[test]
fn enospc_keeps_old() {
    Stage::run(|stage| {
        let target = stage.target("app");
        mount_tmpfs(&target, "size=128k");
        let writer = Writer::of(&target);
        let small = payload(&[("a", vec![b'a'; 20_000]), ("b", vec![b'b'; 20_000])]);
        let made = writer.take_over(&small);
        let before = fingerprint(&target);
        for big in [
            payload(&[("a", vec![b'A'; 60_000]), ("c/d", vec![b'C'; 60_000])]),
            payload(&[("new", vec![b'A'; 200_000])]),
        ] {
            let outcome = writer.write(&big, Some(&made.version_dir));
            assert!(matches!(outcome, Err(WriteError::Full { .. })), "{outcome:?}");
            assert_layout(&target, &made.version_dir, &small);
            assert_eq!(fs::symlink_metadata(&target).unwrap().mtime_nsec(), before.last().unwrap().3);
        }
        // An orphan of a crash must not keep the volume full for ever.
        fs::create_dir(target.join("..2020_01_01_00_00_00.1")).unwrap();
        fs::write(target.join("..2020_01_01_00_00_00.1/x"), vec![0; 70_000]).unwrap();
        let fits = payload(&[("a", vec![b'z'; 50_000])]);
        let next = writer.write(&fits, Some(&made.version_dir)).unwrap();
        assert_layout(&target, &next.version_dir, &fits);
        // The same without our guard: the naive way destroys the old value.
        assert!(fs::write(target.join("a"), vec![b'!'; 200_000]).is_err());
        assert!(fs::read(target.join("a")).unwrap().iter().all(|byte| *byte == b'!'));
    });
}

#[test]
fn the_drivers_clock_is_kept_set_or_cleared() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let mut writer = Writer::of(&target);
        let root = |time: SystemTime| fs::File::open(&target).unwrap().set_modified(time).unwrap();
        let mtime = || fs::metadata(&target).unwrap().modified().unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let started = SystemTime::now() - Duration::from_secs(1);
        let future = SystemTime::now() + Duration::from_secs(60);
        let near_future = SystemTime::now() + Duration::from_secs(3);
        for (count, (wanted, before, expected)) in [
            (RootMtime::Restore, old, Some(old)),
            (RootMtime::Restore, near_future, Some(near_future)),
            (RootMtime::Restore, future, Some(SystemTime::UNIX_EPOCH)),
            (RootMtime::Zero, old, Some(SystemTime::UNIX_EPOCH)),
            (RootMtime::Now, old, None),
            (RootMtime::Now, future, None),
        ]
        .into_iter()
        .enumerate()
        {
            let right = |what: &str| {
                let (mtime, now) = (mtime(), SystemTime::now() + Duration::from_secs(1));
                let good = expected.map_or(mtime > started && mtime < now, |expected| mtime == expected);
                assert!(good, "{what} with {wanted:?} at {before:?} gave {mtime:?}");
            };
            writer.root_mtime = wanted;
            let files = payload(&[("a", count.to_string())]);
            root(before);
            assert!(writer.take_over(&files).changed);
            right("a changed write");
            root(before);
            assert!(!writer.take_over(&files).changed);
            right("an unchanged write");
            root(before);
            set_root_mtime(&target, &writer.identity, wanted).unwrap();
            right("setting");
        }
    });
}

#[test]
fn only_the_recorded_tmpfs_is_written() {
    Stage::run(|stage| {
        let target = stage.target("app");
        let nothing = inspect(&target);
        assert!(matches!(nothing, Err(TargetError::NotMounted { .. })), "{nothing:?}");
        let gone = inspect(&target.with_file_name("absent"));
        assert!(matches!(gone, Err(TargetError::NotMounted { .. })), "{gone:?}");

        let none = None::<&str>;
        nix::mount::mount(Some(&stage.kubelet), &target, none, nix::mount::MsFlags::MS_BIND, none).unwrap();
        let disk = inspect(&target);
        assert!(matches!(disk, Err(TargetError::NotMounted { .. })), "the same disk again: {disk:?}");
        eventually("the unmount", || umount(&target).is_ok());
        nix::mount::mount(Some("proc"), &target, Some("proc"), nix::mount::MsFlags::empty(), none).unwrap();
        let proc = inspect(&target);
        assert!(matches!(proc, Err(TargetError::NotTmpfs { found: 0x9fa0, .. })), "{proc:?}");
        eventually("the unmount", || umount(&target).is_ok());

        mount_tmpfs(&target, "");
        let fresh = inspect(&target).unwrap();
        assert!(fresh.empty && fresh.data.is_none());
        // A link below the kubelet's root is refused; one above it is the operator's.
        let volume = target.parent().unwrap();
        std::os::unix::fs::symlink(volume, volume.with_file_name("linked")).unwrap();
        assert!(matches!(
            inspect(&volume.with_file_name("linked").join("mount")),
            Err(TargetError::Io { .. })
        ));
        let alias = stage.kubelet.join("alias");
        std::os::unix::fs::symlink(&stage.kubelet, &alias).unwrap();
        let through = alias.join(target.strip_prefix(&stage.kubelet).unwrap());
        assert_eq!(inspect(&through).unwrap(), fresh);
        assert_eq!(leasehold::projection::target::resolve(&through).unwrap(), target);

        let writer = Writer::of(&target);
        let first = writer.take_over(&payload(&[("a", "1")]));
        // The driver's RemoveAll goes by name: the version folder is the first to go.
        for gone in [first.version_dir.as_str(), "..data"] {
            fs::remove_dir_all(target.join(gone)).or_else(|_| fs::remove_file(target.join(gone))).unwrap();
            let before = fingerprint_names(&target);
            assert_eq!(inspect(&target).unwrap().data, None);
            let outcome = writer.write(&payload(&[("a", "2")]), Some(&first.version_dir));
            assert!(matches!(outcome, Err(WriteError::BeingUnpublished { .. })), "{outcome:?}");
            assert_eq!(fingerprint_names(&target), before);
        }
    });
}

fn fingerprint_names(target: &Path) -> (Vec<String>, i64) {
    (names(target), fs::metadata(target).unwrap().ctime_nsec())
}
