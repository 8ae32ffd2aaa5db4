//! The binary from outside: spellings, precedence, exit codes, and one life from start to SIGTERM.

use std::{
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Output},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::*;

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_flag_wins_over_its_variable_and_both_over_upstreams() {
    const UPSTREAM: (&str, &str) = ("VAULT_ADDR", "http://upstream");
    const OWN: (&str, &str) = ("LEASEHOLD_VAULT_ADDR", "http://own");
    let flag = "--vault-addr=http://flag";
    for (arguments, environment, address) in [
        (vec!["provider"], vec![UPSTREAM], "http://upstream"),
        (vec!["provider"], vec![UPSTREAM, OWN], "http://own"),
        (vec!["provider", flag], vec![UPSTREAM, OWN], "http://flag"),
        (vec!["provider", &flag[1..]], vec![OWN], "http://flag"),
        (vec!["provider", "-vault-addr", "http://flag"], vec![OWN], "http://flag"),
        // As the vault chart starts vault-csi-provider.
        (
            vec!["--endpoint=/provider/vault.sock", "--log-level=info", "--hmac-secret-name=x", flag],
            vec![UPSTREAM],
            "http://flag",
        ),
        (vec!["-endpoint=/provider/vault.sock", "-debug"], vec![UPSTREAM], "http://upstream"),
    ] {
        let all = [arguments.as_slice(), &["--print-config"]].concat();
        let output = run(&all, &environment);
        let shown = text(&output.stdout);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        for line in [format!("vault address: {address}\n"), format!("allowed address: {address}\n")] {
            assert!(shown.contains(&line), "{arguments:?} {environment:?}: {shown}");
        }
    }
    let environment = [
        ("LEASEHOLD_ENDPOINT", "/a/vault.sock,/b/openbao.sock"),
        ("LEASEHOLD_ALLOW_VAULT_ADDRESS", "http://a,http://b"),
        ("LEASEHOLD_POLICY", ""),
        ("LEASEHOLD_NO_AUTHORITY_SHIM", "true"),
        ("LEASEHOLD_LOG_FORMAT", "json"),
        ("LEASEHOLD_PRINT_CONFIG", "1"),
        ("BAO_NAMESPACE", "team"),
    ];
    let shown = text(&run(&["provider"], &environment).stdout);
    for line in [
        "endpoint: /a/vault.sock (vault)",
        "endpoint: /b/openbao.sock (openbao)",
        "allowed address: http://a",
        "allowed address: http://b",
        "policy: -",
        "authority-shim: off",
        "log-format: json",
        "openbao namespace: team",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
    }
}

#[test]
fn versions_are_told_and_mistakes_end_with_64() {
    let version = env!("CARGO_PKG_VERSION");
    for (arguments, expected) in [
        (vec!["version"], format!("leasehold {version}\n")),
        (vec!["-version"], format!("leasehold {version}\n")),
        (
            vec!["--version", "-output=json"],
            format!(
                "{{\"name\":\"leasehold\",\"version\":\"{version}\",\"providerInterface\":\"v1alpha1\"}}\n"
            ),
        ),
        (
            vec!["version", "-output", "yaml"],
            format!("name: leasehold\nversion: {version}\nproviderInterface: v1alpha1\n"),
        ),
    ] {
        let output = run(&arguments, &[]);
        assert_eq!((text(&output.stdout), output.status.code()), (expected, Some(0)), "{arguments:?}");
    }
    let pretty: Value =
        serde_json::from_slice(&run(&["version", "--output=json-pretty"], &[]).stdout).unwrap();
    assert_eq!(pretty["version"], version);
    for (arguments, code, expected) in [
        (vec![], 64, "Usage: leasehold"),
        (vec!["--help"], 0, "Usage: leasehold"),
        (vec!["provider", "-help"], 0, "--vault-addr"),
        (vec!["-vault-adr=x"], 64, "--vault-adr"),
        (vec!["mount"], 64, "mount"),
        (vec!["-endpoint=/x/aws.sock"], 64, "must be leasehold.sock, vault.sock or openbao.sock"),
        (vec!["-vault-tls-skip-verify=maybe"], 64, "must be one of 1, t, T"),
    ] {
        let output = run(&arguments, &[]);
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.code() == Some(code) && all.contains(expected), "{arguments:?}: {all}");
    }
}

/// The binary with one socket, and what it logs.
struct Provider {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Provider {
    fn start(folder: &Path, socket: &str) -> Self {
        let (socket, log) = (folder.join(socket), folder.join(format!("{socket}.log")));
        let state = folder.join("state");
        std::fs::create_dir_all(&state).unwrap();
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .arg(format!("-endpoint={}", socket.display()))
            .arg(format!("-state-dir={}", state.display()))
            .args(["-health-addr=127.0.0.1:0", "-vault-addr=http://127.0.0.1:1"])
            .env_clear()
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, socket, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn listens(&self) -> bool {
        std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
    }

    async fn terminate(&mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        let mut ended = None;
        until("it ends", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        })
        .await;
        assert_eq!(ended.unwrap().code(), Some(0), "{}", self.log());
        assert!(!self.socket.exists(), "{}", self.log());
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // Ended already, where the test passed.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_serves_until_sigterm_and_leaves_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let mut provider = Provider::start(folder.path(), "openbao.sock");
    until("it listens", || provider.listens()).await;
    let client = Wire::connect(UnixStream::connect(&provider.socket).await.unwrap(), "localhost").await;
    let version: proto::VersionResponse = client.call(VERSION, None, &[]).await.unwrap().decode();
    assert_eq!(version.runtime_version, env!("CARGO_PKG_VERSION"));
    provider.terminate().await;
    let log = provider.log();
    assert!(log.contains("ready") && log.contains("stopped"), "{log}");
}

/// A rolling update, or a second DaemonSet: two that wrote the same folders would undo each other's work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_waits_for_the_first_and_can_be_stopped_while_it_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Provider::start(folder.path(), "vault.sock");
    until("the first listens", || first.listens()).await;
    let mut stopped = Provider::start(folder.path(), "openbao.sock");
    let mut second = Provider::start(folder.path(), "leasehold.sock");
    for waiting in [&stopped, &second] {
        until("it is past its health address", || waiting.log().contains("health and metrics")).await;
    }
    stopped.terminate().await;
    // One that waits has bound nothing; the other has had time to, while that one ended.
    assert!(!second.listens() && !stopped.log().contains("listening"), "{}", second.log());
    first.terminate().await;
    until("the second listens", || second.listens()).await;
    second.terminate().await;
}
