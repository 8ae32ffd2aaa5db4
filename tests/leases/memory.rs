//! What the process still knows: read through /proc/PID/mem, as somebody who took the node would.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
};

use nix::mount::{MsFlags, mount};

use crate::{case::Setup, support::SOON};

/// How often `needle` lies in the writable memory of a process.
fn copies(pid: u32, needle: &str) -> usize {
    let needle = needle.as_bytes();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw")))
    {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        let mut region = vec![0; usize::try_from(end - start).unwrap()];
        memory.seek(SeekFrom::Start(start)).unwrap();
        // A guard page or a region that went away meanwhile has nothing to tell.
        if memory.read_exact(&mut region).is_err() {
            continue;
        }
        let mut at = 0;
        while let Some(next) = region[at..].iter().position(|byte| *byte == needle[0]) {
            at += next;
            found += usize::from(region[at..].starts_with(needle));
            at += 1;
        }
    }
    found
}

/// A value that can be read again is forgotten once it is in its file; one that cannot, with its mount.
#[tokio::test]
async fn mem_scan_after_unmount() {
    let case = Setup::new("memory").start().await;
    // Not in a file of ours, not in an argument: it comes through the wire only.
    let canary = format!("canary-{:032x}", rand::random::<u128>());
    case.put("note", &canary).await;
    let volume = case.volume();
    let note = case.kv("note").replace("refreshInterval: 5s, ", "");
    case.mounted(&volume, &(case.database() + &note)).await;
    assert_eq!(case.files(&volume, ["note"])[0], canary);
    let (pid, password) = (case.leasehold.pid(), case.credential(&volume).password);
    assert!(copies(pid, &password) > 0, "the scanner finds what is held: it cannot be read again");
    case.until("the KV value is forgotten after the swap", SOON, async || {
        (copies(pid, &canary) == 0).then_some(())
    })
    .await;
    assert!(copies(pid, &password) > 0, "held while the mount lives");
    case.unmount(&volume);
    case.until("the password is forgotten with the mount", SOON, async || {
        (copies(pid, &password) == 0).then_some(())
    })
    .await;
    assert_eq!(copies(pid, &canary), 0);
    case.nothing_left(SOON).await;
}

/// Resident memory, MiB.
fn resident(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// A container blows up one of its files, sparse, in a volume that has no room for it in full: the write that
/// carries it over fails, time and again, and what it read is not kept in between. A hundred such pods would end the
/// node's agent otherwise.
#[tokio::test]
async fn swollen_file_is_not_held() {
    const SWOLLEN: u64 = 30 << 20;
    let mut case = Setup::new("swollen").start().await;
    case.put("note", "one").await;
    let volume = case.volume();
    case.mounted(&volume, &(case.database() + &case.kv("note"))).await;
    // After a restart the password's value is not held: its file is what there is.
    case.leasehold.crash();
    case.leasehold.restart().await;
    let target = case.kubelet.target(&volume);
    case.node.run(move || {
        mount(None::<&str>, &target, None::<&str>, MsFlags::MS_REMOUNT, Some("size=4m")).unwrap();
        let file = fs::OpenOptions::new().write(true).open(target.join("..data/password")).unwrap();
        file.set_len(SWOLLEN).unwrap();
    });
    let before = resident(case.leasehold.pid());
    case.put("note", "two").await;
    case.leasehold.logged(&format!("{} is full", case.kubelet.target(&volume).display())).await;
    let after = resident(case.leasehold.pid());
    assert!(after < before + 10.0, "{before:.1} MiB before, {after:.1} after");
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}
