//! The driver's side, as driver 1.6.0 does it: everything by path. It is both the other writer that must
//! be able to take over from us, and the naive writer whose faults show that a test can see them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// The AtomicWriter of kubernetes 1.20.6, which the driver vendors, without its no-op check.
pub(crate) fn write(target: &Path, files: &[(&str, &[u8])]) -> std::io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let old = fs::read_link(target.join("..data")).ok();
    let version = format!("..2020_01_02_03_04_05.{}", COUNT.fetch_add(1, Ordering::Relaxed) + 1000);
    fs::create_dir(target.join(&version))?;
    fs::set_permissions(target.join(&version), fs::Permissions::from_mode(0o755))?;
    for (path, contents) in files {
        let path = target.join(&version).join(path);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(&path, contents)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    let tops: Vec<&str> = files.iter().map(|(path, _)| path.split('/').next().unwrap()).collect();
    for top in &tops {
        if fs::symlink_metadata(target.join(top)).is_err() {
            symlink(Path::new("..data").join(top), target.join(top))?;
        }
    }
    let before: Vec<PathBuf> = fs::read_dir(target.join("..data"))
        .map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path()).collect())
        .unwrap_or_default();
    symlink(&version, target.join("..data_tmp"))?;
    fs::rename(target.join("..data_tmp"), target.join("..data"))?;
    for gone in
        before.iter().filter_map(|path| path.file_name()?.to_str()).filter(|name| !tops.contains(name))
    {
        fs::remove_file(target.join(gone))?;
    }
    if let Some(old) = old {
        // By path and by name: what CVE-2017-1002102 was.
        let _ = fs::remove_dir_all(target.join(old));
    }
    Ok(())
}

/// NodeUnpublishVolume up to the umount: `filepath.Glob(target/*)`, sorted, each removed.
pub(crate) fn remove_files(target: &Path) {
    for name in super::stage::names(target) {
        let path = target.join(name);
        if fs::remove_file(&path).is_err() {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// The umount after it: mount-utils runs the program.
pub(crate) fn umount(target: &Path) -> bool {
    Command::new("umount").arg(target).stderr(Stdio::null()).status().unwrap().success()
}
