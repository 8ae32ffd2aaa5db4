#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
};

use super::*;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn socket_squat() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vault.sock");
    let victim = folder.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o640)).unwrap();
    let squatter = folder.path().join("squatter");
    let alive = StdListener::bind(&squatter).unwrap();

    let plants: [(&str, &dyn Fn()); 5] = [
        ("nothing", &|| {}),
        ("a link to a file", &|| symlink(&victim, &path).unwrap()),
        ("a dangling link", &|| symlink(folder.path().join("nowhere"), &path).unwrap()),
        ("a file", &|| fs::write(&path, "squat").unwrap()),
        ("a link to a live socket", &|| symlink(&squatter, &path).unwrap()),
    ];
    for (plant, plant_it) in plants {
        plant_it();
        if plant != "nothing" {
            // Without the guard: a plain bind fails, and the usual chmod after it reaches through the link.
            assert!(StdListener::bind(&path).is_err(), "{plant}: a plain bind passed");
        }
        let socket = Socket::bind(&path).unwrap();
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.file_type().is_socket(), "{plant}");
        assert_eq!((found.mode() & 0o7777, found.uid()), (0o600, nix::unistd::geteuid().as_raw()), "{plant}");
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        tokio::time::timeout(Duration::from_secs(5), socket.listener.accept()).await.unwrap().unwrap();
        // A predecessor must not remove what its successor bound.
        let successor = Socket::bind(&path).unwrap();
        socket.unlink();
        assert_eq!(names(folder.path()), ["squatter", "vault.sock", "victim"], "{plant}");
        successor.unlink();
        assert_eq!(names(folder.path()), ["squatter", "victim"], "{plant}");
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(fs::metadata(&victim).unwrap().mode() & 0o7777, 0o640);
    alive.set_nonblocking(true).unwrap();
    assert_eq!(alive.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "somebody followed the link");
}

#[tokio::test]
async fn a_folder_in_the_way_or_missing_is_named_and_leftovers_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vault.sock");
    fs::create_dir(&path).unwrap();
    let error = crate::telemetry::chain(&Socket::bind(&path).unwrap_err());
    assert!(error.contains("vault.sock: its place cannot be taken: "), "{error}");
    let error = crate::telemetry::chain(&Socket::bind(&folder.path().join("absent/vault.sock")).unwrap_err());
    assert!(error.contains("create it or correct --endpoint: No such file"), "{error}");
    fs::remove_dir(&path).unwrap();

    let crashed = folder.path().join(".leasehold-0123456789abcdef");
    fs::create_dir(&crashed).unwrap();
    drop(StdListener::bind(crashed.join("s")).unwrap());
    // As long as the kernel allows in a path, far beyond sockaddr_un.
    let deep = folder.path().join("d".repeat(200));
    fs::create_dir(&deep).unwrap();
    Socket::bind(&deep.join("openbao.sock")).unwrap();
    Socket::bind(&path).unwrap();
    assert_eq!(names(folder.path()), ["d".repeat(200), "vault.sock".to_owned()]);
}
