//! Our own restarts: they cost the server and the pod nothing.

use std::{fs, os::unix::fs::MetadataExt as _, time::Duration};

use tokio::time::Instant;

use crate::{
    case::{Case, Setup},
    support::{
        SOON,
        leasehold::{Launch, Leasehold},
    },
};

/// SIGTERM and SIGKILL: no request, no rewrite; and then the renewals go on where they were.
#[tokio::test]
async fn restart_keeps_everything() {
    let mut case = Setup::new("restart").database("20s", "1h").start().await;
    case.put("note", "n").await;
    let note = case.kv("note").replace("refreshInterval: 5s, ", "");
    let volumes = [case.volume(), case.volume(), case.volume()];
    let objects = [case.database() + &note, note.clone(), note.clone()];
    for (volume, objects) in volumes.iter().zip(&objects) {
        case.mounted(volume, objects).await;
    }
    let started = Instant::now();
    let before = volumes.each_ref().map(|volume| case.snapshot(volume));
    let first = case.credential(&volumes[0]);
    let tokens = case.tokens().await;
    case.proxy.forget();
    for hard in [false, true] {
        if hard {
            case.leasehold.crash();
        } else {
            case.leasehold.terminate();
            let status = case.leasehold.ended(SOON).await;
            assert!(status.success(), "{status}\n{}", case.leasehold.log());
        }
        case.leasehold.restart().await;
        // The first lease is due at six tenths of its twenty seconds.
        if started.elapsed() < Duration::from_secs(10) {
            assert_eq!(case.proxy.requests(), [""; 0], "hard: {hard}");
        }
        for (volume, before) in volumes.iter().zip(&before) {
            assert_eq!(&case.snapshot(volume), before, "hard: {hard}");
        }
    }
    let probe = case.probe(&volumes[0], Duration::from_secs(42)).await;
    let log = case.leasehold.log();
    probe.never_failed(&log);
    assert_eq!(case.credential(&volumes[0]), first, "two TTLs later it is the same\n{log}");
    assert_eq!((case.mints(), case.logins(), case.tokens().await), (0, 0, tokens), "{log}");
    assert!(case.done("sys/leases/renew") >= 2, "{log}");
    for (volume, before) in volumes.iter().zip(&before) {
        assert_eq!(&case.snapshot(volume), before);
        case.unmount(volume);
    }
    case.until("the leased session is gone", SOON, async || case.roles().is_empty().then_some(())).await;
}

/// A template needs the database credential, whose value died with the process, and KV changed: it is made
/// anew, once, and the old one goes after the overlap, whatever the pod's policy allows.
#[tokio::test]
async fn restart_then_kv_change_mints_exactly_one() {
    let denied = change_after_restart(Setup::new("kvdenied"));
    tokio::join!(denied, change_after_restart(Setup::new("kvallow").may_revoke()));
}

async fn change_after_restart(setup: Setup) {
    let name = setup.name;
    let mut case = setup.start().await;
    case.put("note", "one").await;
    let volume = case.volume();
    let joined = format!(
        "- objectName: joined\n  overlap: 2s\n  template: '{{{{ with secret \"database/creds/{name}\" }}}}\
         {{{{ .Data.username }}}}{{{{ end }}}} {{{{ with secret \"secret/data/{name}/note\" }}}}\
         {{{{ .Data.data.value }}}}{{{{ end }}}}'\n"
    );
    case.mounted(&volume, &(case.database() + &case.kv("note") + &joined)).await;
    let first = case.credential(&volume);
    case.leasehold.crash();
    case.leasehold.restart().await;
    case.proxy.forget();
    case.put("note", "two").await;
    case.until("the change is delivered", SOON, async || {
        (case.files(&volume, ["note"]) == ["two"]).then_some(())
    })
    .await;
    let second = case.credential(&volume);
    assert_ne!(first, second, "{name}: nobody has the first one's value");
    case.login(&first).await.unwrap_or_else(|error| panic!("{name}: no overlap: {error}"));
    case.login(&second).await.unwrap();
    case.dies(&first).await;
    let probe = case.probe(&volume, Duration::from_secs(4)).await;
    probe.never_failed(&case.leasehold.log());
    assert_eq!(
        (case.mints(), case.roles().len(), case.leases().await),
        (1, 1, 1),
        "{name}\n{}",
        case.leasehold.log()
    );
    // The value is held now: the next change mints nothing.
    case.put("note", "three").await;
    case.until("the next change", SOON, async || (case.files(&volume, ["note"]) == ["three"]).then_some(()))
        .await;
    assert_eq!(case.credential(&volume), second, "{name}");
    let [joined] = case.files(&volume, ["joined"]);
    assert_eq!(joined, format!("{} three", second.username), "{name}");
    case.unmount(&volume);
    case.nothing_left(SOON).await;
}

/// Where the credential has files of its own, they are carried over: its value is not needed, nor is a value
/// that is gone, and neither stops what did change.
#[tokio::test]
async fn files_that_did_not_change_are_carried_over() {
    let mut case = Setup::new("carried").database("20s", "40s").start().await;
    for file in ["note", "gone"] {
        case.put(file, "one").await;
    }
    let volume = case.volume();
    let objects = case.database() + &case.kv("note") + &case.kv("gone");
    case.mounted(&volume, &objects).await;
    let first = case.credential(&volume);
    case.leasehold.crash();
    case.leasehold.restart().await;
    case.admin.delete(&format!("secret/metadata/{}/gone", case.name)).await;
    case.proxy.forget();
    case.put("note", "two").await;
    case.until("the change is delivered", SOON, async || {
        (case.files(&volume, ["note", "gone"]) == ["two", "one"]).then_some(())
    })
    .await;
    assert_eq!((case.credential(&volume), case.mints()), (first.clone(), 0), "{}", case.leasehold.log());
    let replaced = case.until("the credential is replaced", 3 * SOON, async || {
        Some(case.credential(&volume)).filter(|credential| *credential != first)
    });
    let second = replaced.await;
    case.login(&second).await.unwrap();
    assert_eq!(case.files(&volume, ["note", "gone"]), ["two", "one"]);
    case.unmount(&volume);
}

/// Records that are torn, damaged or of another version cost what they describe, never the process or the
/// files; a mount that went while we were down is given back at the start.
#[tokio::test]
async fn damaged_journal_is_survived() {
    let mut case = Setup::new("damaged").start().await;
    case.put("note", "n").await;
    let objects = case.database() + &case.kv("note");
    let volumes: Vec<_> = (0..5).map(|_| case.volume()).collect();
    for volume in &volumes {
        case.mounted(volume, &objects).await;
    }
    let credentials: Vec<_> = volumes.iter().map(|volume| case.credential(volume)).collect();
    case.leasehold.crash();
    let records = |folder: &'static str| records(&case, folder);
    assert_eq!((records("volumes").len(), records("sessions").len()), (5, 5));
    let of = |uid: &str, folder: &'static str| {
        records(folder).into_iter().find(|(_, text)| text.contains(uid)).expect("a record")
    };
    let damage: [fn(&str) -> String; 3] = [
        |text| text[..text.len() / 2].to_owned(),
        |_| "\u{0}\u{0}garbage".to_owned(),
        |text| {
            let mut record: serde_json::Value = serde_json::from_str(text).expect("a record");
            record["format"] = 99.into();
            record.to_string()
        },
    ];
    for (volume, damage) in volumes.iter().zip(damage) {
        let (path, text) = of(&volume.pod.uid, "volumes");
        let damaged = damage(&text);
        assert_ne!(damaged, text);
        write(&case, path, damaged);
    }
    // The fourth loses its session; the fifth its mount.
    let (path, text) = of(&volumes[3].pod.uid, "sessions");
    write(&case, path, text[..text.len() - 2].to_owned());
    case.unmount(&volumes[4]);
    assert_eq!(case.roles().len(), 5, "nobody gave anything back while we were down");
    case.leasehold.restart().await;
    case.until("what the fifth held is gone", SOON, async || {
        case.login(&credentials[4]).await.is_err().then_some(())
    })
    .await;
    // Until the republish, what is in the files still works.
    for (index, volume) in volumes[..4].iter().enumerate() {
        assert_eq!(case.credential(volume), credentials[index]);
        case.login(&credentials[index]).await.unwrap_or_else(|error| {
            panic!("volume {index}: the credential in the file is dead: {error}\n{}", case.leasehold.log())
        });
    }
    for (index, volume) in volumes[..4].iter().enumerate() {
        case.mounted(volume, &objects).await;
        case.login(&case.credential(volume)).await.unwrap_or_else(|error| panic!("volume {index}: {error}"));
        case.unmount(volume);
    }
    assert_eq!(case.kubelet.driver.counts().masked, 0, "{:?}", case.kubelet.driver.masked());
    // The fourth's first session is known to nobody: it lives to its TTL, as the log says.
    case.until("all but the lost session is gone", SOON, async || (case.roles().len() <= 1).then_some(()))
        .await;
    let log = case.leasehold.log();
    assert_eq!(log.matches("damaged or of another version").count(), 4, "one line a record\n{log}");
}

fn records(case: &Case, folder: &str) -> Vec<(std::path::PathBuf, String)> {
    let folder = case.node.state_dir().join(folder);
    case.node.run(move || {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
    })
}

fn write(case: &Case, path: std::path::PathBuf, text: String) {
    case.node.run(move || fs::write(path, text).unwrap());
}

/// The second agent of a rolling update waits, not ready and without a socket, and takes over for free.
#[tokio::test]
async fn second_agent_waits_for_the_first() {
    let mut case = Setup::new("second").start().await;
    case.put("note", "n").await;
    let volume = case.volume();
    let objects = case.database() + &case.kv("note").replace("refreshInterval: 5s, ", "");
    case.mounted(&volume, &objects).await;
    let before = case.snapshot(&volume);
    case.proxy.forget();
    let socket = case.leasehold.socket("vault");
    let inode = || fs::metadata(&socket).ok().map(|found| found.ino());
    let first = inode();
    let mut second = Leasehold::start_waiting(&case.node, Launch::new(&case.proxy.url()));
    second.logged("another leasehold holds the state folder").await;
    let ready = second.ready().await;
    assert!(ready != Some(200), "not ready: {ready:?}");
    assert_eq!(inode(), first, "it must not answer while the first acts");
    case.mounted(&volume, &objects).await;
    case.leasehold.terminate();
    case.leasehold.ended(SOON).await;
    case.until("the second takes over", SOON, async || inode().filter(|inode| Some(*inode) != first)).await;
    assert_eq!(case.proxy.requests(), [""; 0]);
    assert_eq!(case.snapshot(&volume), before);
    case.unmount(&volume);
    case.nothing_left(SOON).await;
    second.assert_running();
}
