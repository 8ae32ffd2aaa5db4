//! A payload as directories and files, checked once more before anything is opened.

use std::collections::{BTreeMap, BTreeSet};

use super::WriteError;
use crate::projection::{FileProjection, Payload};

/// Longest path the driver accepts, in bytes (`fileutil.Validate`).
const PATH_MAX: usize = 4096;

/// Longest element, in bytes: tmpfs's own NAME_MAX.
const NAME_MAX: usize = 255;

/// The version folder itself, among folders within it.
pub(super) const HERE: &str = ".";

/// What a version folder will hold.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    /// Files by path.
    pub(super) files: BTreeMap<&'a str, &'a FileProjection>,
    /// Names within each folder, by the folder's path, [`HERE`] for the version folder's own. A folder
    /// comes after its parent.
    pub(super) folders: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// First elements: the names the pod sees.
    pub(super) tops: BTreeSet<&'a str>,
}

impl<'a> Layout<'a> {
    /// Checks paths, modes and owners. The parser of SecretProviderClasses has done so before; a writer
    /// that runs as root on the node does not rely on it.
    pub(super) fn new(payload: &'a Payload) -> Result<Self, WriteError> {
        let mut files = BTreeMap::new();
        let mut folders = BTreeMap::from([(HERE, BTreeSet::new())]);
        for (path, file) in &payload.files {
            let path = path.as_str();
            if let Err(rule) = check_path(path) {
                return Err(WriteError::Path { path: path.to_owned(), rule });
            }
            if file.mode.bits() & !0o777 != 0 {
                return Err(WriteError::Mode { path: path.to_owned(), mode: file.mode.bits() });
            }
            let ids = file.owner.map(|owner| [owner.uid, owner.gid]).unwrap_or_default();
            if ids.contains(&Some(u32::MAX)) {
                return Err(WriteError::Owner { path: path.to_owned() });
            }
            let mut rest = path;
            loop {
                let (folder, name) = rest.rsplit_once('/').unwrap_or((HERE, rest));
                folders.entry(folder).or_default().insert(name);
                if folder == HERE {
                    break;
                }
                rest = folder;
            }
            files.insert(path, file);
        }
        if let Some(clash) = files.keys().find(|path| folders.contains_key(**path)) {
            return Err(WriteError::Clash { path: (*clash).to_owned() });
        }
        let tops = folders[HERE].clone();
        Ok(Self { files, folders, tops })
    }
}

/// The driver's rules (`fileutil.Validate`), and NUL, which no system call takes.
pub(super) fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("is empty");
    }
    if path.starts_with('/') {
        return Err("is absolute");
    }
    if path.len() > PATH_MAX {
        return Err("is longer than 4096 bytes");
    }
    if path.contains('\0') {
        return Err("contains a NUL byte");
    }
    if path.starts_with("..") {
        return Err("starts with .., which is the writer's own namespace");
    }
    for element in path.split('/') {
        match element {
            "" => return Err("has an empty element"),
            "." | ".." => return Err("has an element . or .."),
            element if element.len() > NAME_MAX => return Err("has an element longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::check_path;

    #[test]
    fn paths_are_judged_as_the_driver_judges_them() {
        let long = "x".repeat(256);
        let deep = "a/".repeat(2049);
        for bad in [
            "", "/abs", "a/../b", "a//b", "./a", "a/", "..", "..x", "..data", "a/.", "a\0b", &long, &deep,
            "..2026/x",
        ] {
            assert!(check_path(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "a/..b", ".hidden", "a/b/c", "ä/ö", &long[1..]] {
            assert_eq!(check_path(good), Ok(()), "{good:?}");
        }
    }

    proptest! {
        // Joined to a folder and walked element by element, an accepted path never leaves that folder.
        #[test]
        fn accepted_paths_stay_beneath(path in "(\\.{0,3}[a-b/\\x00]{0,3}){0,4}") {
            if check_path(&path).is_ok() {
                let mut elements = std::path::Path::new(&path).components();
                prop_assert!(elements.all(|element| matches!(element, std::path::Component::Normal(_))));
                prop_assert!(!path.contains("//") && !path.ends_with('/') && !path.contains('\0'));
            }
        }
    }
}
