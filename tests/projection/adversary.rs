//! A hostile container that runs as root and has the volume read-write. It may break its own files; it must
//! never reach one outside the volume through us.

use std::{
    fs,
    os::{fd::AsFd, unix::fs::symlink},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use leasehold::projection::writer::WriteError;
use rustix::fs::{Mode, OFlags, openat, renameat, symlinkat};

use crate::{
    driver,
    stage::{Stage, Writer, assert_layout, cycles, names, payload, tree},
};

/// A folder of the node beside the volume.
fn victim(stage: &Stage) -> PathBuf {
    let victim = stage.kubelet.join("victim");
    fs::create_dir_all(victim.join("nested")).unwrap();
    for name in ["a", "nested/b", "c"] {
        fs::write(victim.join(name), "host").unwrap();
    }
    victim
}

/// Plants links to the victim wherever a writer might step, as fast as it can, until told to stop. Relative to
/// descriptors, so that the attack itself never walks through one: in a container it could not.
fn attack(target: &Path, victim: &Path, stop: &AtomicBool, planted: &AtomicU64) {
    let volume = fs::File::open(target).unwrap();
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |name: &str| openat(&volume, name, flags, Mode::empty());
    let mut round = 0u64;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        for name in names(target) {
            let version = name.starts_with("..2");
            // Version folders, whole or in part, are swapped for links; so are the links themselves.
            let swapped = match round % 4 {
                0 if version => exchange(&volume, &name, &volume, victim, round),
                1 if version => open(&name)
                    .is_ok_and(|it| exchange(&it, "nested", &volume, &victim.join("nested"), round)),
                2 if name == "..data" || name == "nested" => exchange(&volume, &name, &volume, victim, round),
                3 if version => {
                    open(&name).is_ok_and(|it| symlinkat(victim, &it, format!("{round}")).is_ok())
                }
                _ => false,
            };
            planted.fetch_add(u64::from(swapped), Ordering::Relaxed);
        }
        let _ = fs::remove_dir_all(target.join("aside"));
        let _ = fs::create_dir(target.join("aside"));
    }
}

/// Moves an entry out of the way and puts a link in its place.
fn exchange(folder: &impl AsFd, name: &str, volume: &impl AsFd, to: &Path, round: u64) -> bool {
    renameat(folder, name, volume, format!("aside/{round}")).is_ok() && symlinkat(to, folder, name).is_ok()
}

#[test]
fn adversary_symlink_swap_100k() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let victim = victim(stage);
        let untouched = tree(&victim);
        let spared = || victim.exists() && tree(&victim) == untouched;
        // In the volume, so that renames stay on one file system; not a name that we would sweep.
        let aside = target.join("aside");
        fs::create_dir(&aside).unwrap();
        let under_attack = |body: &mut dyn FnMut() -> bool| {
            let (stop, planted) = (AtomicBool::new(false), AtomicU64::new(0));
            std::thread::scope(|scope| {
                let attacker = scope.spawn(|| attack(&target, &victim, &stop, &planted));
                // Whatever becomes of the body, the attack must end, or the scope never does.
                let outcome = catch_unwind(AssertUnwindSafe(|| {
                    while body() {
                        assert!(!attacker.is_finished(), "the attacker gave up");
                    }
                }));
                stop.store(true, Ordering::Relaxed);
                outcome.unwrap_or_else(|panic| resume_unwind(panic));
            });
            planted.into_inner()
        };

        // Without our guard: writing by path reaches the host within moments.
        let limit = Instant::now() + Duration::from_secs(60);
        under_attack(&mut || {
            let _ = driver::write(&target, &[("a", b"secret"), ("nested/b", b"secret"), ("c", b"secret")]);
            let _ = fs::remove_file(target.join("..data_tmp"));
            assert!(Instant::now() < limit, "the attack cannot even reach the naive writer");
            spared()
        });
        let _ = fs::remove_dir_all(&victim);
        self::victim(stage);
        assert!(spared());

        let writer = Writer::of(&target);
        let (mut swaps, mut refused) = (0u64, 0u64);
        let goal = cycles(20_000) / 2;
        let planted = under_attack(&mut || {
            let files = payload(&[
                ("a", format!("secret {swaps}")),
                ("nested/b", "secret".into()),
                ("c", "secret".into()),
            ]);
            match writer.write(&files, None) {
                Ok(_) => swaps += 1,
                Err(WriteError::Io { .. }) => refused += 1,
                Err(error) => panic!("{error}: {error:?}"),
            }
            swaps + refused < goal
        });
        assert!(spared(), "after {swaps} writes, {refused} refused, {planted} plantings");
        println!("{swaps} written and {refused} refused under {planted} plantings");
        assert!(planted > goal / 20 && swaps > goal / 20, "{swaps} {refused} {planted}: not an attack");

        // And when it is over, the next write is whole.
        fs::remove_dir_all(&aside).unwrap();
        let files = payload(&[("a", "secret"), ("nested/b", "secret")]);
        let last = writer.take_over(&files);
        writer.take_over(&files);
        for (path, shown) in tree(&target) {
            assert!(path.starts_with("..2") || shown.starts_with("-> "), "{path}: {shown}");
        }
        assert_eq!(fs::read(target.join("..data/nested/b")).unwrap(), b"secret");
        assert_eq!(fs::read_link(target.join("..data")).unwrap().to_str(), Some(last.version_dir.as_str()));
        assert_layout(&target, &last.version_dir, &files);
    });
}

#[test]
fn adversary_cleanup_links() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let victim = victim(stage);
        let untouched = tree(&victim);
        let files = payload(&[("a", "1"), ("nested/b", "2")]);
        let up = "../../../../../../victim";
        assert_eq!(tree(&target.join(up)), untouched, "the relative path leads to the victim");

        // Without our guard (CVE-2017-1002102): the old version is whatever `..data` says it is.
        symlink(up, target.join("..data")).unwrap();
        driver::write(&target, &[("a", b"1"), ("nested/b", b"2"), ("c", b"3")]).unwrap();
        assert!(!victim.exists(), "the naive cleanup deletes the host's folder");
        self::victim(stage);

        let writer = Writer::of(&target);
        writer.take_over(&files);
        let plant: [&dyn Fn(); 6] = [
            &|| replace(&target.join("..data"), Path::new(up)),
            &|| replace(&target.join("..data"), &victim),
            &|| replace(&target.join("..2020_01_01_00_00_00.1"), &victim),
            &|| replace(&target.join("..data_tmp"), &victim),
            &|| {
                let orphan = target.join("..2020_01_01_00_00_00.2/nested");
                fs::create_dir_all(&orphan).unwrap();
                for (count, name) in ["x", "y/../z", "deeper"].iter().enumerate() {
                    symlink(victim.join(name), orphan.join(count.to_string())).unwrap();
                }
                symlink(up, orphan.join("up")).unwrap();
                symlink("/", target.join("..2020_01_01_00_00_00.2/root")).unwrap();
            },
            &|| {
                let old = fs::read_link(target.join("..data")).unwrap();
                replace(&target.join(&old).join("nested"), &victim.join("nested"));
            },
        ];
        for (count, plant) in plant.iter().enumerate() {
            plant();
            let made = writer.take_over(&payload(&[("a", count.to_string())]));
            assert_eq!(made.leftovers, 0);
            assert_layout(&target, &made.version_dir, &payload(&[("a", count.to_string())]));
            writer.take_over(&files);
            assert_eq!(tree(&victim), untouched, "planting {count}");
        }

        // Depth costs neither stack nor descriptors: far deeper than the 1,024 usual of the latter.
        let deep = target.join("..2020_01_01_00_00_00.3");
        for _ in 0..5_000 {
            fs::create_dir(target.join("layer")).unwrap();
            if deep.exists() {
                fs::rename(&deep, target.join("layer/d")).unwrap();
            }
            fs::rename(target.join("layer"), &deep).unwrap();
        }
        // Breadth is bounded work per pass, and still ends.
        let wide = target.join("..2020_01_01_00_00_00.4");
        fs::create_dir(&wide).unwrap();
        (0..20_000).for_each(|count| drop(fs::File::create(wide.join(count.to_string())).unwrap()));
        let first = writer.take_over(&files);
        assert_eq!(first.leftovers, 1, "20,000 entries are more than one pass takes");
        let made = writer.write(&files, Some(&first.version_dir)).unwrap();
        assert_eq!(made.leftovers, 0);
        assert_layout(&target, &made.version_dir, &files);
    });
}

fn replace(path: &Path, to: &Path) {
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir_all(path);
    symlink(to, path).unwrap();
}
