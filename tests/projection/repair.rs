//! What crashes leave behind goes; what is not ours stays.

use std::{fs, os::unix::fs::symlink, path::Path};

use crate::{
    driver,
    stage::{Stage, Writer, assert_layout, payload, tree},
};

fn plant_leftovers(target: &Path) {
    fs::create_dir_all(target.join("..2020_01_01_00_00_00.123/deep/er")).unwrap();
    fs::write(target.join("..2020_01_01_00_00_00.123/deep/er/x"), "orphan").unwrap();
    symlink("..2020_01_01_00_00_00.123", target.join("..data_tmp")).unwrap();
    symlink("..2020_01_01_00_00_00.123", target.join("..lh_tmp_77")).unwrap();
    fs::create_dir(target.join("..lh_tmp_dir")).unwrap();
    symlink("..data/dropped", target.join("dropped")).unwrap();
}

#[test]
fn leftovers_are_repaired_even_when_unchanged() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let files = payload(&[("a", "1"), ("nested/b", "2")]);

        // Without our guard: one leftover makes every later write of the AtomicWriter fail.
        symlink("..2020_01_01_00_00_00.123", target.join("..data_tmp")).unwrap();
        assert!(driver::write(&target, &[("a", b"1")]).is_err());
        let writer = Writer::of(&target);
        let mut made = writer.take_over(&files);
        assert_layout(&target, &made.version_dir, &files);
        driver::write(&target, &[("a", b"1"), ("nested/b", b"2")]).unwrap();
        made.version_dir =
            fs::read_link(target.join("..data")).unwrap().into_os_string().into_string().unwrap();

        for changed in [false, true, false] {
            let files = if changed { payload(&[("a", "1"), ("new/c", "3")]) } else { files.clone() };
            if !changed {
                made = writer.take_over(&files);
            }
            plant_leftovers(&target);
            // A file, a wrong link, and a folder that is not empty have the names of ours.
            fs::remove_file(target.join("a")).unwrap();
            fs::write(target.join("a"), "in the way").unwrap();
            let other = if changed { "new" } else { "nested" };
            let _ = fs::remove_file(target.join(other));
            fs::create_dir_all(target.join(other).join("in/the")).unwrap();
            fs::write(target.join(other).join("in/the/way"), "").unwrap();
            let after = writer.write(&files, Some(&made.version_dir)).unwrap();
            assert_eq!((after.changed, after.leftovers), (changed, 0), "{after:?}");
            assert_eq!(after.version_dir == made.version_dir, !changed);
            assert_layout(&target, &after.version_dir, &files);
        }
    });
}

#[test]
fn what_is_not_ours_stays() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let writer = Writer::of(&target);
        fs::write(target.join("extra"), "theirs").unwrap();
        fs::create_dir_all(target.join("folder/with")).unwrap();
        fs::write(target.join("..dotted"), "theirs").unwrap();
        fs::write(target.join("2020_01_01_00_00_00.123"), "theirs").unwrap();
        fs::create_dir(target.join("..2020_01_01_00_00_00.abc")).unwrap();
        symlink("..data/other", target.join("link")).unwrap();
        symlink("/etc/passwd", target.join("outside")).unwrap();
        let theirs = tree(&target);
        for contents in ["1", "1", "2"] {
            writer.take_over(&payload(&[("a", contents)]));
            let after = tree(&target);
            assert!(theirs.iter().all(|(path, shown)| after.get(path) == Some(shown)), "{after:#?}");
        }
    });
}
