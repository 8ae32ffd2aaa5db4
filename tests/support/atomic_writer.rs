//! The driver's way of writing files: `fileutil.Validate` and the kubelet's AtomicWriter (v1.20.6), with
//! their habits: no memory of their own, and a stale `..data_tmp` that blocks them for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use super::{
    cluster::{rfc3339, unix_now},
    proto,
};

/// Why the driver refuses an answer's files before it writes any.
pub fn validate(files: &[proto::File]) -> Result<(), String> {
    for file in files {
        let path = file.path.as_str();
        let first = path.split('/').next().unwrap_or_default();
        let problem = if path.is_empty() {
            "must not be empty"
        } else if path.starts_with('/') {
            "must not be absolute"
        } else if path.len() > 4096 {
            "is too long"
        } else if path.split('/').any(|element| element == "..") {
            "must not contain '..'"
        } else if path.split('/').any(|element| element.len() > 255) {
            "has an element that is too long"
        } else if first.starts_with("..") {
            "must not start with '..'"
        } else if path.split('/').any(|element| element.is_empty() || element == ".") {
            "is not clean"
        } else {
            continue;
        };
        return Err(format!("invalid file path {path:?}: {problem}"));
    }
    Ok(())
}

/// Writes the payload below `target`.
pub fn write(target: &Path, files: &[proto::File]) -> io::Result<()> {
    // A path that comes twice: the last one wins.
    let payload: BTreeMap<&str, &proto::File> = files.iter().map(|file| (file.path.as_str(), file)).collect();
    let tops: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &tops {
        let path = target.join(top);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path)?,
            Ok(found) if !found.is_symlink() => fs::remove_file(&path)?,
            _ => {}
        }
    }
    let old = match fs::read_link(target.join("..data")) {
        Ok(link) => Some(target.join(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut obsolete = Vec::new();
    if let Some(old) = &old {
        let mut current = Vec::new();
        walk(old, Path::new(""), &mut current)?;
        obsolete = current
            .iter()
            .filter(|path| !payload.contains_key(path.to_string_lossy().as_ref()))
            .cloned()
            .collect();
        // Only bytes count: a mode that changed alone is never applied.
        let same = |(path, file): (&&str, &&proto::File)| {
            fs::read(old.join(path)).is_ok_and(|bytes| bytes == file.contents)
        };
        if obsolete.is_empty() && payload.iter().all(same) {
            return Ok(());
        }
    }
    let fresh = timestamped_dir(target)?;
    for (path, file) in &payload {
        let path = fresh.join(path);
        fs::create_dir_all(path.parent().expect("a file lies in a folder"))?;
        fs::write(&path, &file.contents)?;
        let mode = u32::try_from(file.mode).unwrap_or(0) & 0o777;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    for top in &tops {
        let link = target.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(top), &link)?;
        }
    }
    let name = fresh.file_name().expect("the folder has a name");
    symlink(name, target.join("..data_tmp"))?;
    fs::rename(target.join("..data_tmp"), target.join("..data"))?;
    for path in obsolete {
        let top = path.iter().next().expect("a relative path has an element").to_string_lossy().into_owned();
        if !tops.contains(top.as_str()) {
            match fs::remove_file(target.join(top)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    match old {
        Some(old) => fs::remove_dir_all(old),
        None => Ok(()),
    }
}

fn walk(root: &Path, below: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            walk(root, &path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

fn timestamped_dir(target: &Path) -> io::Result<PathBuf> {
    let stamp = rfc3339(unix_now()).trim_end_matches('Z').replace(['-', ':', 'T'], "_");
    let dir = target.join(format!("..{stamp}.{}", rand::random::<u32>()));
    fs::create_dir(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}
