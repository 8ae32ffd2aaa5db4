//! Who may call, for what, from which driver, and how much.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    process::Command,
};

use old_driver::{SocketPathAuthority, placeholder};

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Names the socket to the copy of this program that runs as uid 65532.
const AS_NOBODY: &str = "LEASEHOLD_TEST_NONROOT_SOCKET";

/// Says `refused by mode`, `closed` or `served`.
fn knock(socket: &Path) -> &'static str {
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else { return "refused by mode" };
    stream.set_read_timeout(Some(SOON)).unwrap();
    // Writing to a closed socket fails, which is an answer too.
    let _closed = stream.write_all(PREFACE);
    match stream.read(&mut [0; 64]) {
        Ok(0) | Err(_) => "closed",
        Ok(_) => "served",
    }
}

/// threats 19.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn socket_nonroot_refused() {
    if let Some(socket) = std::env::var_os(AS_NOBODY) {
        assert_eq!(nix::unistd::geteuid().as_raw(), 65532);
        println!("knock: {}", knock(Path::new(&socket)));
        return;
    }
    assert!(nix::unistd::geteuid().is_root(), "this test drops to another uid: run it as root");
    let bench = Bench::start(|_| forever());
    fs::set_permissions(bench.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = bench.folder.path().join("knock");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let as_nobody = |socket: PathBuf| {
        let program = program.clone();
        tokio::task::spawn_blocking(move || {
            let output = Command::new("setpriv")
                .args(["--reuid=65532", "--regid=65532", "--clear-groups"])
                .arg(program)
                .args(["--exact", "peers::socket_nonroot_refused", "--nocapture"])
                .env(AS_NOBODY, socket)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
            text.lines().find_map(|line| Some(line.split_once("knock: ")?.1.to_owned())).unwrap()
        })
    };

    // Without the guards: a plain socket whose mode lets everybody in serves everybody.
    let open = bench.folder.path().join("open.sock");
    let listener = std::os::unix::net::UnixListener::bind(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
    let plain = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"settings").unwrap();
        stream
    });
    assert_eq!(as_nobody(open).await.unwrap(), "served");
    drop(plain.join().unwrap());

    assert_eq!(as_nobody(bench.socket()).await.unwrap(), "refused by mode");
    // Whoever loosens the mode meets the second guard.
    fs::set_permissions(bench.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(as_nobody(bench.socket()).await.unwrap(), "closed");
    let socket = bench.socket();
    assert_eq!(tokio::task::spawn_blocking(move || knock(&socket)).await.unwrap(), "served");
}

/// threats 19: root in a container that has the socket, or a driver gone wrong, names other people's folders.
#[tokio::test]
async fn forged_target_refused() {
    let bench = Bench::start(|_| async { Ok(one_version()) }.boxed());
    let client = bench.client().await;
    client.mount(&bench.request("shop")).await.decode::<proto::MountResponse>();
    let kubelet = bench.folder.path().join("kubelet");
    let good = target(&kubelet);
    for target_path in [
        "/etc".to_owned(),
        String::new(),
        good.replace("pod-uid", "other-pod"),
        good.replace("/secrets/", "/../secrets/"),
        good.replace("/pods/", "/pods/../pods/"),
        good.replace("kubernetes.io~csi", "kubernetes.io~projected"),
        format!("{good}/deeper"),
        format!("/proc/1/root{good}"),
    ] {
        let answer = client.mount(&proto::MountRequest { target_path, ..bench.request("shop") }).await;
        assert!(answer.code == 7 && answer.message.contains("--kubelet-root"), "{answer:?}");
    }
    assert_eq!(bench.calls(), 1, "a forged target came through");
}

/// Drivers before 1.6.0 say the socket's path for `:authority` (dependencies: 0 and 2,000 of 2,000).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_drivers_are_let_in_by_the_authority_shim() {
    const CONNECTIONS: usize = 4;
    const CALLS: usize = 500;
    for shim in [false, true] {
        let bench = Bench::start_with(shim, |_| async { Ok(one_version()) }.boxed());
        let (socket, message) = (bench.socket(), bench.request("shop").encode_to_vec());
        let mut passed = 0;
        for _ in 0..CONNECTIONS {
            let stream = UnixStream::connect(&socket).await.unwrap();
            let client =
                Wire::connect(SocketPathAuthority::new(stream, &socket), &placeholder(&socket)).await;
            for call in 0..CALLS {
                // Different lengths of other headers, so that the dynamic table turns over.
                let timeout = format!("{}S", 20 + call * 7);
                match client.call(MOUNT, Some(&timeout), &message).await {
                    Ok(answer) => {
                        answer.decode::<proto::MountResponse>();
                        passed += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.reason(), Some(h2::Reason::PROTOCOL_ERROR), "{error}");
                        assert!(!shim, "{error}");
                    }
                }
            }
        }
        assert_eq!(passed, if shim { CONNECTIONS * CALLS } else { 0 });
        assert_eq!(bench.calls(), passed);
    }
}

/// threats 17: one namespace's flood is bounded, and keeps nobody else out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noisy() {
    const FLOOD: usize = 1_000;
    let bench = Bench::start(|command| match command.pod.namespace.as_str() {
        "noisy" => forever(),
        _ => async { Ok(one_version()) }.boxed(),
    });
    let client = Arc::new(bench.client().await);
    let message = Arc::new(bench.request("noisy").encode_to_vec());
    let refused = Arc::new(AtomicUsize::new(0));
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..FLOOD {
        let (client, message, refused) = (Arc::clone(&client), Arc::clone(&message), Arc::clone(&refused));
        flood.spawn(async move {
            let answer = client.call(MOUNT, Some("20S"), &message).await.unwrap();
            assert_eq!(answer.code, 13, "{answer:?}");
            if answer.message.contains("leasehold is busy") {
                refused.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    until("what is too much is refused", || bench.calls() + refused.load(Ordering::SeqCst) == FLOOD).await;
    assert_eq!(bench.calls(), 512);

    let (quiet, mut slowest) = (bench.client().await, Duration::ZERO);
    for _ in 0..50 {
        let asked = std::time::Instant::now();
        quiet.mount(&bench.request("quiet")).await.decode::<proto::MountResponse>();
        slowest = slowest.max(asked.elapsed());
    }
    assert!(slowest < Duration::from_secs(8), "another namespace waited {slowest:?}");
    // All that waited are answered by their deadline of 12 s, and their places are free again.
    while let Some(answered) = flood.join_next().await {
        answered.unwrap();
    }
    let again = client.call(MOUNT, Some("1S"), &message).await.unwrap();
    assert!(again.message.contains("still logging in"), "{again:?}");
}
