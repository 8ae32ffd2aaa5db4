use std::{
    io::Read,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use leasehold::{
    backend::{FailureClass, vault::VaultBackend},
    spec::TlsSpec,
};
use nix::sys::stat::Mode;

use crate::stub::{CANARY, limits, login};

/// Paths that a tenant would write to read, stall or exhaust this process: refused at once, and the error
/// says nothing of what is behind them.
#[tokio::test]
async fn ca_path_dev_zero_fifo_proc() {
    let folder = tempfile::tempdir().unwrap();
    let inside = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    nix::unistd::mkfifo(inside("fifo").as_str(), Mode::S_IRWXU).unwrap();
    symlink("/dev/zero", inside("zero")).unwrap();
    symlink("loop", inside("loop")).unwrap();
    std::fs::File::create(inside("huge")).unwrap().set_len(1 << 40).unwrap();
    std::fs::write(inside("secret"), CANARY).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(inside("socket")).unwrap();

    // The fault without the guard: a plain read of the FIFO waits for ever, one of /dev/zero never ends.
    let fifo = inside("fifo");
    let reader = std::thread::spawn(move || std::fs::read(fifo));
    let mut zeros = std::fs::File::open("/dev/zero").unwrap().take(64 << 20);
    assert_eq!(std::io::copy(&mut zeros, &mut std::io::sink()).unwrap(), 64 << 20);
    assert!(!reader.is_finished());

    for path in [
        "/dev/zero".to_owned(),
        "/dev/full".to_owned(),
        "/dev/tty".to_owned(),
        "/proc/self/environ".to_owned(),
        "/proc/self/maps".to_owned(),
        "/proc/kmsg".to_owned(),
        "/proc/self/fd/0".to_owned(),
        folder.path().to_str().unwrap().to_owned(),
        inside("fifo"),
        inside("zero"),
        inside("loop"),
        inside("huge"),
        inside("socket"),
        inside("secret"),
        inside("absent"),
        "relative/ca.pem".to_owned(),
        "a\0b".to_owned(),
    ] {
        let ca = TlsSpec { ca_cert: Some(path.clone()), ..TlsSpec::default() };
        let pair = TlsSpec {
            client_cert: Some(path.clone()),
            client_key: Some(path.clone()),
            skip_verify: true,
            ..TlsSpec::default()
        };
        let directory = TlsSpec { ca_directory: Some(path.clone()), ..TlsSpec::default() };
        for tls in [ca, pair, directory] {
            let started = Instant::now();
            let backend = VaultBackend::new(limits());
            let error = login(&backend, "https://127.0.0.1:1", tls).await.expect_err(&path);
            assert_eq!(error.class, FailureClass::Invalid, "{path}: {error}");
            assert!(!error.message.contains(CANARY) && !error.message.contains("PATH="), "{error}");
            assert!(started.elapsed() < Duration::from_secs(10), "{path} took {:?}", started.elapsed());
        }
    }
    // Lets the reader of the FIFO end.
    std::fs::write(inside("fifo"), "x").unwrap();
    reader.join().unwrap().unwrap();
}
