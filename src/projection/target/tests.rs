use std::path::Path;

use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
};

use super::*;

#[test]
fn only_the_kubelets_own_shape_is_a_volume() {
    let root = Path::new("/var/lib/kubelet");
    let good = Path::new("/var/lib/kubelet/pods/0b1c/volumes/kubernetes.io~csi/db/mount");
    assert_eq!(
        validate_target_path(root, good).expect("the kubelet writes it so"),
        PodVolume { pod_uid: "0b1c", volume: "db" }
    );
    for bad in [
        "",
        "/",
        "/var/lib/kubelet",
        "/var/lib/kubelet/pods/0b1c/volumes/kubernetes.io~csi/db/mount/",
        "/var/lib/kubelet/pods/0b1c/volumes/kubernetes.io~csi/db/mount/x",
        "/var/lib/kubelet/pods/0b1c/volumes/kubernetes.io~csi/db",
        "/var/lib/kubelet/pods/0b1c/volumes/kubernetes.io~csi//mount",
        "/var/lib/kubelet/pods/0b1c/volumes/kubernetes.io~csi/./db/mount",
        "/var/lib/kubelet/pods/../volumes/kubernetes.io~csi/db/mount",
        "/var/lib/kubelet/pods/0b1c/volumes/kubernetes.io~csi/../mount",
        "/var/lib/kubelet//pods/0b1c/volumes/kubernetes.io~csi/db/mount",
        "/var/lib/kubelet/pods/0b1c/volumes/kubernetes.io~secret/db/mount",
        "/var/lib/kubelet/pods/0b\n1c/volumes/kubernetes.io~csi/db/mount",
        "/var/lib/kubelet2/pods/0b1c/volumes/kubernetes.io~csi/db/mount",
        "var/lib/kubelet/pods/0b1c/volumes/kubernetes.io~csi/db/mount",
        "/etc/pods/0b1c/volumes/kubernetes.io~csi/db/mount",
    ] {
        assert!(validate_target_path(root, Path::new(bad)).is_err(), "{bad:?} was accepted");
    }
    assert_eq!(split(good), (root, Path::new("pods/0b1c/volumes/kubernetes.io~csi/db/mount")));
    assert_eq!(split(Path::new("/run/secrets/app")), (Path::new("/run/secrets"), Path::new("app")));
}

// The kernels we cannot boot here: what they would go by must tell mounts apart as well.
#[test]
fn the_file_system_id_notices_a_remount_too() {
    let seen = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("tests run as root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("a namespace of our own");
        let folder = tempfile::tempdir().expect("a temporary folder");
        (0..100)
            .map(|_| {
                mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), none).expect("mounts");
                let target = OpenTarget::open(folder.path()).expect("it is a tmpfs");
                let stat = rustix::fs::statx(
                    &target.root,
                    "",
                    AtFlags::EMPTY_PATH,
                    StatxFlags::BASIC_STATS | StatxFlags::BTIME,
                )
                .expect("stat of an open folder");
                assert!(stat.stx_mask & StatxFlags::BTIME.bits() != 0, "tmpfs keeps birth times");
                let identity = OpenTarget::identity_of(&target.root, &stat).expect("statvfs");
                drop(target);
                umount(folder.path()).expect("nobody holds it");
                identity
            })
            .collect::<std::collections::BTreeSet<_>>()
    })
    .join()
    .expect("the thread passes");
    assert_eq!(seen.len(), 100);
    assert!(seen.iter().all(|identity| matches!(identity, MountIdentity::FsId(_))), "{seen:?}");
}
