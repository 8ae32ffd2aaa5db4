//! `leasehold ls` and `leasehold refresh`, against a running provider.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    },
    process::Command,
    sync::Arc,
    time::Duration,
};

use notify::{RecursiveMode, Watcher as _};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{
    support::{
        SOON,
        kubelet::Options,
        leasehold::binary,
        node::Propagation,
        postgres::Postgres,
        process::output,
        proxy::Fault,
        stage::{Stage, class},
        until,
    },
    told,
};

const CANARY: &str = "canary-91af-value";

/// Runs the command where the agent's state folder is seen.
fn run(stage: &Stage, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(binary());
    command.args(arguments).arg("--state-dir").arg(stage.node.state_dir()).env_clear();
    told(stage.node.run(move || output(&mut command).unwrap()))
}

/// The cells of the line of a pod.
fn line(text: &str, pod: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(pod)).unwrap_or_else(|| panic!("{pod}:\n{text}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ls_shows_every_volume_and_never_a_value() {
    let mut stage = Stage::start().await;
    let (code, out, _) = run(&stage, &["ls"]);
    assert_eq!((code, out.as_str()), (0, "no volumes on this node\n"));
    stage.bao.put_secret("app/db", json!({"username": "u", "password": CANARY})).await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;

    let (code, table, _) = run(&stage, &["ls"]);
    assert!(code == 0 && table.starts_with("NAMESPACE/POD"), "{table}");
    let shown = line(&table, "prod/app-0");
    assert!(
        shown.starts_with("prod/app-0 app-secrets provider-written live 3 - check secret/data/app/")
            && shown.contains(" (refresh interval) in ")
            && shown.ends_with(" -"),
        "{shown}"
    );
    let (_, json, _) = run(&stage, &["ls", "-o", "json"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    let target = stage.kubelet.target(&volume);
    assert_eq!(report["volumes"][0]["target"], target.to_str().unwrap());
    assert_eq!(report["volumes"][0]["dependencies"].as_array().unwrap().len(), 2);
    let session = report["volumes"][0]["session_seconds"].as_u64().unwrap();
    assert!((3500..=3600).contains(&session), "{session}");
    let (_, wide, _) = run(&stage, &["ls", "-o", "wide"]);
    assert!(wide.contains(target.to_str().unwrap()) && wide.contains("username,password,api/key"), "{wide}");

    // An outage is shown, and what is wrong with the store's answer never brings a value along.
    stage.proxy.down();
    let (code, out, _) = run(&stage, &["refresh", "--pod", "prod/app-0"]);
    assert_eq!((code, out.as_str()), (0, "checking 1 volume\n"));
    until("the failure is shown", SOON, async || {
        let (_, table, _) = run(&stage, &["ls"]);
        line(&table, "prod/app-0").contains("secret/data/app/").then_some(())?;
        (!line(&table, "prod/app-0").ends_with(" -")).then_some(())
    })
    .await;
    let (_, failing, _) = run(&stage, &["ls", "-o", "json"]);
    stage.proxy.up();
    for text in [&table, &json, &wide, &failing] {
        assert!(!text.contains(CANARY), "{text}");
    }

    // Without its record a volume of ours is nobody's until the driver calls again.
    stage.leasehold.crash();
    let (code, _, error) = run(&stage, &["ls"]);
    assert!(code == 1 && error.contains("no agent answers at ") && error.contains("--state-dir"), "{error}");
    let records = stage.node.state_dir().join("volumes");
    stage.node.run(move || fs::remove_dir_all(records).unwrap());
    stage.leasehold.restart().await;
    let (_, table, _) = run(&stage, &["ls"]);
    let uid = &volume.pod.uid;
    assert_eq!(line(&table, "? uid"), format!("? uid {uid} - unmanaged unmanaged 0 - - -"));
    until("the gauge says so", SOON, async || {
        let (_, metrics) = stage.leasehold.http_get("/metrics").await;
        metrics.contains("leasehold_volumes{mode=\"unmanaged\"} 1\n").then_some(())
    })
    .await;
    stage.mount(&volume, &class()).await;
    let (_, table, _) = run(&stage, &["ls"]);
    assert!(line(&table, "prod/app-0").contains("provider-written live"), "{table}");
    until("the gauges say so", SOON, async || {
        let (_, metrics) = stage.leasehold.http_get("/metrics").await;
        let shown = ["volumes{mode=\"unmanaged\"} 0\n", "volumes{mode=\"provider-written\"} 1\n"];
        let login = metrics.contains("\nleasehold_nearest_login_end_seconds");
        (login && shown.iter().all(|it| metrics.contains(it))).then_some(())
    })
    .await;

    stage.leasehold.terminate();
    stage.leasehold.ended(SOON).await;
    let socket = stage.node.state_dir().join("control.sock");
    assert!(!stage.node.run(move || socket.exists()), "it is removed at the end");
}

/// A volume of another provider may be unmounted at any moment, and a descriptor of ours would be in the way: it is
/// not opened when other mounts come and go.
#[tokio::test]
async fn other_providers_volumes_are_left_alone() {
    let stage = Stage::start().await;
    let theirs = stage.kubelet.target(&stage.volume().named("theirs"));
    let foreign = theirs.clone();
    stage.node.create_dir(&foreign).unwrap();
    stage.node.mount_tmpfs(&foreign).unwrap();
    let (sender, opened) = std::sync::mpsc::channel();
    let watch = stage.node.run(move || {
        let version = "..2026_01_01_00_00_00.123456789";
        fs::create_dir(foreign.join(version)).unwrap();
        symlink(version, foreign.join("..data")).unwrap();
        let mut watch = notify::recommended_watcher(sender).unwrap();
        watch.watch(&foreign, RecursiveMode::NonRecursive).unwrap();
        watch
    });

    stage.bao.put_secret("app/db", json!({"username": "u", "password": CANARY})).await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    stage.kubelet.unpublish(&volume).unwrap();
    until("the unmount is seen", SOON, async || {
        run(&stage, &["ls"]).1.lines().all(|line| !line.starts_with("prod/")).then_some(())
    })
    .await;
    let events: Vec<_> = opened.try_iter().map(|event| event.unwrap().kind).collect();
    assert_eq!(events, []);
    drop(stage.node.list(&theirs));
    until("the watch sees what opens it", SOON, async || opened.try_recv().ok()).await.unwrap();
    drop(watch);
}

/// A lease has a bar and a gauge, and both go with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_shown_while_it_lives() {
    let stage = Stage::start().await;
    let postgres = Postgres::start().await;
    postgres.configure(&stage.bao, "app", "1h", "24h").await;
    stage.bao.put_policy("app", "path \"database/creds/app\" { capabilities = [\"read\"] }").await;
    let volume = stage.volume();
    let objects = "- {objectName: user, secretPath: database/creds/app, secretKey: username}";
    stage.mount(&volume, &class().with("objects", objects)).await;
    let (_, table, _) = run(&stage, &["ls"]);
    let shown = line(&table, "prod/app-0");
    // Its first second may have passed.
    let full = ["live 1 ██████████ 1h00m ", "live 1 ██████████ 59m "];
    assert!(full.iter().any(|bar| shown.contains(bar)) && shown.contains(" in "), "{shown}");
    let gauge = |metrics: &str, name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
    };
    let expiry = "leasehold_nearest_expiry_seconds";
    let left = until("the gauge shows it", SOON, async || {
        gauge(&stage.leasehold.http_get("/metrics").await.1, expiry)
    })
    .await;
    assert!((3500.0..=3600.0).contains(&left), "{left}");
    let (_, metrics) = stage.leasehold.http_get("/metrics").await;
    assert!(
        gauge(&metrics, "leasehold_nearest_login_end_seconds").is_some_and(|left| left > 0.0),
        "{metrics}"
    );
    assert!(metrics.contains("leasehold_queue_depth{lane=\"foreground\"} 0\n"), "{metrics}");

    // With the server away its session stays owed.
    let held = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&held);
    stage.proxy.rule(move |_| Fault::Hold(Arc::clone(&gate)));
    stage.kubelet.unpublish(&volume).unwrap();
    let owed = async |count: usize| {
        let line = format!("leasehold_revocations_owed{{kind=\"session\"}} {count}\n");
        until(&line, SOON, async || {
            let (_, metrics) = stage.leasehold.http_get("/metrics").await;
            (metrics.contains(&line) && gauge(&metrics, expiry).is_none()).then_some(())
        })
        .await;
    };
    owed(1).await;
    held.add_permits(100);
    owed(0).await;
    assert_eq!(run(&stage, &["ls"]).1, "no volumes on this node\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn driver_written_volumes_are_told_apart() {
    let stage = Stage::start_with(Options::default(), |launch| launch.propagation = Propagation::None).await;
    stage.mount(&stage.volume(), &class()).await;
    let (_, table, _) = run(&stage, &["ls"]);
    assert!(
        line(&table, "prod/app-0").starts_with("prod/app-0 app-secrets driver-written live 3"),
        "{table}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refresh_makes_the_files_follow_at_once() {
    let stage = Stage::start().await;
    let volume = stage.volume();
    stage.mount(&volume, &class()).await;
    for (round, which) in [["--all"].as_slice(), &["--pod", "prod/app-0"]].into_iter().enumerate() {
        let value = format!("changed-{round}");
        stage.bao.put_secret("app/db", json!({"username": "u", "password": value})).await;
        // The default interval is five minutes: by itself nothing happens within this test.
        assert_ne!(stage.kubelet.file(&volume, "password"), value);
        let arguments = [&["refresh"], which].concat();
        assert_eq!(run(&stage, &arguments), (0, "checking 1 volume\n".into(), String::new()));
        until("the file follows", Duration::from_secs(2), async || {
            (stage.kubelet.file(&volume, "password") == value).then_some(())
        })
        .await;
    }
    let (code, _, error) = run(&stage, &["refresh", "--pod", "prod/other"]);
    assert!(code == 1 && error.contains("no volume of pod prod/other"), "{error}");
}

/// Whoever is not root may not look, with the mode as it is and with one that lets everybody in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_socket_refuses_others_and_bounds_what_it_reads() {
    let mut stage = Stage::start().await;
    stage.mount(&stage.volume(), &class()).await;
    let root = stage.node.root().to_owned();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let program = root.join("asks");
    fs::copy(binary(), &program).unwrap();
    let as_nobody = |folder: std::path::PathBuf| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65532", "--regid=65532", "--clear-groups"]).arg(&program);
        command.arg("ls").arg("--state-dir").arg(folder);
        told(stage.node.run(move || output(&mut command).unwrap()))
    };
    let open = |path: std::path::PathBuf, mode| {
        stage.node.run(move || fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap());
    };

    // Without the guards: a socket whose mode lets everybody in answers everybody.
    let plain = root.join("plain");
    fs::create_dir(&plain).unwrap();
    let listener = UnixListener::bind(plain.join("control.sock")).unwrap();
    open(plain.clone(), 0o755);
    open(plain.join("control.sock"), 0o666);
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 64];
        let _ = stream.read(&mut request).unwrap();
        stream.write_all(b"{\"volumes\":[]}\n").unwrap();
    });
    assert_eq!(as_nobody(plain), (0, "no volumes on this node\n".into(), String::new()));
    server.join().unwrap();

    let state = stage.node.state_dir();
    let refused = |folder| {
        let (code, out, error) = as_nobody(folder);
        assert!(code == 1 && out.is_empty() && error.contains("be root, or the agent's own user"), "{error}");
    };
    refused(state.clone());
    let (folder, socket) = (state.clone(), state.join("control.sock"));
    let modes = stage
        .node
        .run(move || [folder, socket].map(|path| fs::metadata(path).unwrap().permissions().mode() & 0o777));
    assert_eq!(modes, [0o700, 0o600]);
    open(state.clone(), 0o755);
    refused(state.clone());
    open(state.join("control.sock"), 0o666);
    refused(state.clone());
    // The second guard did.
    stage.leasehold.logged("refused a caller that is not root").await;

    // Root may ask, and gets an answer to nonsense too.
    let ask = |request: Vec<u8>| {
        let socket = state.join("control.sock");
        stage.node.run(move || {
            let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
            // It may answer before all was sent.
            let _ = stream.write_all(&request);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        })
    };
    assert!(ask(b"\"list\"\n".to_vec()).unwrap().starts_with("{\"volumes\":[{"));
    for nonsense in ["\n", "{}\n", "\"stop\"\n", "{\"refresh\":{\"pod\":{}}}\n", "\"list\" x\n"] {
        let answer = ask(nonsense.into()).unwrap();
        assert!(answer.starts_with("{\"error\":\"no request of this version"), "{nonsense}: {answer}");
    }
    // Read no further than it must; the kernel may cut the answer short with what was not read.
    let long = ask(vec![b'x'; 1 << 20]);
    assert!(long.is_err() || long.is_ok_and(|it| it.is_empty() || it.contains("more than 4096 bytes")));
    // Eight who say nothing keep the ninth out for ten seconds at the most.
    let socket = state.join("control.sock");
    let silent = stage.node.run(move || {
        (0..8).map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap()).collect::<Vec<_>>()
    });
    until("the silent are cut", SOON, async || ask(b"\"list\"\n".to_vec()).ok().filter(|it| !it.is_empty()))
        .await;
    drop(silent);
    stage.leasehold.assert_running();
}
