//! The binary from outside: spellings, precedence, exit codes, and one life from start to SIGTERM.

use std::process::{Command, Output, Stdio};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_serves_until_sigterm_and_leaves_no_socket() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let socket = folder.path().join("openbao.sock");
    let mut child = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .arg(format!("-endpoint={}", socket.display()))
        .arg(format!("-state-dir={}", state.display()))
        .args(["-health-addr=127.0.0.1:0", "-vault-addr=http://127.0.0.1:1"])
        .env_clear()
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("it listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    let client = Wire::connect(UnixStream::connect(&socket).await.unwrap(), "localhost").await;
    let version: proto::VersionResponse = client.call(VERSION, None, &[]).await.unwrap().decode();
    assert_eq!(version.runtime_version, env!("CARGO_PKG_VERSION"));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let mut ended = None;
    until("it ends", || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    })
    .await;
    let log = text(&child.wait_with_output().unwrap().stderr);
    assert_eq!(ended.unwrap().code(), Some(0), "{log}");
    assert!(!socket.exists(), "{log}");
    assert!(log.contains("ready") && log.contains("stopped"), "{log}");
}
