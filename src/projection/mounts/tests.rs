use std::path::Path;

use proptest::prelude::*;

use super::*;

const TABLE: &[u8] = br"22 28 0:20 / /proc rw,nosuid - proc proc rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 28 0:50 / /var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/db/mount rw,relatime shared:9 master:7 propagate_from:3 unbindable - tmpfs tmpfs rw,size=64k
41 28 0:51 / /var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/db/mount rw,relatime master:8 - tmpfs tmpfs rw
42 28 0:52 / /var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/nfs/mount rw - nfs4 srv:/x rw
43 28 0:53 / /var/lib/kubelet/pods/u-1/volumes/kubernetes.io~secret/s rw master:8 - tmpfs tmpfs rw
44 28 0:54 / /srv/a\040b\134\011c rw new_field:1 - tmpfs tmpfs\0431 rw
short line
x 1 0:1 / / rw - ext4 a rw
45 28 0:54 / /no-separator rw shared:1
";

#[test]
fn lines_are_read_and_odd_ones_left_out() {
    let table = MountTable::parse(TABLE);
    assert_eq!(table.entries().len(), 7);
    let root = Path::new("/var/lib/kubelet");
    let volume = root.join("pods/u-1/volumes/kubernetes.io~csi/db/mount");
    let top = table.find(&volume).expect("two are stacked there");
    assert_eq!((top.id, top.parent, top.fs_type.as_str()), (41, 28, "tmpfs"), "the last one is on top");
    assert_eq!(top.propagation, Propagation { shared: None, master: Some(8) });
    assert_eq!(table.entries()[2].propagation, Propagation { shared: Some(9), master: Some(7) });
    assert_eq!(table.find(Path::new("/srv/a b\\\tc")).expect("escapes undone").id, 44);
    assert_eq!(
        table.find(&volume.join("")).map(|entry| entry.id),
        Some(41),
        "a slash at the end means nothing"
    );
    assert_eq!(table.topmost().get(volume.as_os_str()).map(|entry| entry.id), Some(41));
    assert!(table.find(Path::new("/proc")).is_some_and(|entry| !entry.propagates()));
    assert!(table.find(Path::new("/")).is_some_and(MountEntry::propagates));
    assert_eq!(table.covering(&volume.join("..data/x")).map(|entry| entry.id), Some(41));
    assert_eq!(table.covering(Path::new("/procession")).map(|entry| entry.id), Some(28));
    assert_eq!(table.covering(Path::new("relative")), None);
    assert_eq!(table.kubelet_volumes(root).map(|entry| entry.id).collect::<Vec<_>>(), [40, 41]);
    assert_eq!(table.kubelet_volumes(Path::new("/var/lib/other")).count(), 0);
}

#[test]
fn the_real_table_is_read() {
    let table = MountTable::read().expect("/proc is mounted");
    assert!(table.covering(Path::new("/proc/self")).is_some_and(|entry| entry.fs_type == "proc"));
}

proptest! {
    #[test]
    fn parsing_is_total(text in proptest::collection::vec(any::<u8>(), 0..400)) {
        MountTable::parse(&text);
    }

    #[test]
    fn every_mutation_of_a_line_is_survived(position in 0..TABLE.len(), byte in any::<u8>(), cut in 0..TABLE.len()) {
        let mut text = TABLE.to_vec();
        text[position] = byte;
        text.truncate(cut);
        prop_assert!(MountTable::parse(&text).entries().len() <= 11);
    }

    #[test]
    fn any_mount_point_survives_the_kernels_escaping(name in proptest::collection::vec(1u8.., 1..40)) {
        let mut line = b"1 2 0:3 / /".to_vec();
        for byte in &name {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' => line.extend(format!("\\{byte:03o}").bytes()),
                byte => line.push(*byte),
            }
        }
        line.extend(b" rw - tmpfs tmpfs rw");
        let table = MountTable::parse(&line);
        let mut expected = b"/".to_vec();
        expected.extend(&name);
        prop_assert_eq!(table.entries()[0].mount_point.as_os_str().as_encoded_bytes(), expected.as_slice());
    }
}
