//! SecretProviderClasses of a hostile tenant, through parsing and policy as a Mount goes: all are refused
//! before a packet could be sent or a file opened.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::{collections::BTreeMap, time::Instant};

use leasehold::{
    policy::{Baseline, Policy},
    spec::{FileMode, PodIdentity, ProviderName, TlsSpec, parameters},
};

const OBJECTS: &str = "- {objectName: a, secretPath: secret/data/team/a}";

fn own_tls() -> TlsSpec {
    TlsSpec {
        ca_cert: Some("/own/ca.pem".into()),
        client_cert: Some("/own/c.pem".into()),
        client_key: Some("/own/k.pem".into()),
        ..TlsSpec::default()
    }
}

fn policies() -> [Policy; 2] {
    let baseline = Baseline {
        addresses: vec!["https://vault:8200".into()],
        tls_dirs: vec!["/etc/leasehold/tls".into()],
        own_tls: vec![own_tls()],
        audiences: vec![],
    };
    let file = "rules: [{namespaces: [team], roles: ['team-*'], paths: ['secret/data/${namespace}/**']}]";
    [Policy::baseline(baseline.clone()), Policy::from_yaml(file, baseline).unwrap()]
}

fn mount(policy: &Policy, attributes: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
    let defaults = parameters::Defaults {
        address: Some("https://vault:8200".into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: own_tls(),
    };
    let parsed = parameters::parse(ProviderName::Vault, attributes, FileMode::DEFAULT, &defaults);
    let parsed = parsed.map_err(|error| error.to_string())?;
    let pod = PodIdentity {
        namespace: "team".into(),
        name: "pod".into(),
        uid: "uid".into(),
        service_account: "sa".into(),
    };
    policy.check(ProviderName::Vault, &pod, &parsed.spec).map_err(|refusal| refusal.to_string())?;
    Ok(parsed.warnings)
}

fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let base = [("roleName", "team-a"), ("objects", OBJECTS)];
    base.iter().chain(pairs).map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[test]
fn an_honest_class_is_mounted() {
    for policy in policies() {
        assert_eq!(mount(&policy, &attributes(&[])), Ok(vec![]));
    }
}

#[test]
fn evil_spc() {
    let object = |field: &str, value: &str| {
        let mut fields = BTreeMap::from([("objectName", "\"a\""), ("secretPath", "\"secret/data/team/a\"")]);
        fields.insert(field, value);
        fields.iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join(", ")
    };
    let mut corpus: Vec<Vec<(&str, String)>> = Vec::new();
    for (name, values) in [
        (
            "vaultAddress",
            &[
                "https://evil.example",
                "http://vault:8200",
                "https://vault:8201",
                "https://vault.evil:8200",
                "https://vault:8200@evil.example",
                "https://evil.example#https://vault:8200",
                "https://evil.example\\@vault:8200",
                "https://vault:8200/../x",
                "http://169.254.169.254/latest",
                "http://[::ffff:169.254.169.254]",
                "http://2852039166",
                "http://0xa9fea9fe",
                "http://localhost",
                "https://10.96.0.1:443",
                "unix:///var/run/docker.sock",
                "file:///etc/shadow",
                "gopher://vault:8200",
                "https://vault:8200%00.evil",
                "https://váult:8200",
                "https://vault:8200\r\nHost: evil",
                "//vault:8200",
            ][..],
        ),
        ("vaultNamespace", &["../admin", "a//b", "a%2fb", "a\r\nX-Vault-Token: x", "тeam"]),
        (
            "vaultAuthMountPath",
            &["../sys", "kubernetes/../token", "kubernetes%2flogin?", "a#", "kubernetes\\login"],
        ),
        ("vaultSkipTLSVerify", &["true", "1", "T", "yes"]),
        (
            "vaultCACertPath",
            &[
                "/dev/zero",
                "/proc/self/environ",
                "/own/k.pem",
                "/etc/leasehold/tls/../../shadow",
                "ca.pem",
                "/var/run/secrets/kubernetes.io/serviceaccount/token",
            ],
        ),
        ("vaultCADirectory", &["/", "/proc", "/var/lib/kubelet/pods"]),
        ("vaultTLSClientKeyPath", &["/etc/kubernetes/pki/ca.key"]),
        ("audience", &["https://kubernetes.default.svc", "api", "openbao"]),
        ("fileOwner", &["root", "-1", "4294967295"]),
    ] {
        corpus.extend(values.iter().map(|value| vec![(name, (*value).to_owned())]));
    }
    corpus.push(vec![
        ("vaultTLSClientCertPath", "/own/c.pem".into()),
        ("vaultTLSClientKeyPath", "/own/other.pem".into()),
    ]);
    for (field, values) in [
        (
            "objectName",
            &[
                "../../etc/cron.d/x",
                "/etc/passwd",
                "..data",
                "..data/x",
                "a/../../b",
                "a\\0",
                "a\\n",
                ".",
                "a/",
                "",
            ][..],
        ),
        (
            "secretPath",
            &[
                "secret/data%2Fother",
                "secret//data/other",
                "secret/data/team/../other/a",
                "/v1/../sys/seal",
                "secret/data/team/а",
                "secret/data/team/a#",
                "secret\\\\data",
                "secret/data/team/a\\r\\nX: y",
                "secret/data/team/a?v=%0a",
                " secret/data/team/a",
            ],
        ),
        ("filePermission", &["04755", "8389101", "-1", "0o7777"]),
        ("method", &["LIST", "DELETE", "PATCH", "GET /v1/sys/seal HTTP/1.1"]),
    ] {
        corpus.extend(
            values
                .iter()
                .map(|value| vec![("objects", format!("[{{{}}}]", object(field, &format!("\"{value}\""))))]),
        );
    }
    for objects in [
        "- {objectName: a, secretPath: x}\n- {objectName: a, secretPath: y}",
        "- {objectName: a, secretPath: x}\n- {objectName: a/b, secretPath: y}",
        "!include /etc/passwd",
        "- {objectName: a, objectName: b, secretPath: x}",
        "- &a [*a]",
    ] {
        corpus.push(vec![("objects", objects.to_owned())]);
    }
    assert!(corpus.len() >= 40, "{}", corpus.len());
    for (index, policy) in policies().iter().enumerate() {
        for pairs in &corpus {
            let pairs: Vec<_> = pairs.iter().map(|(key, value)| (*key, value.as_str())).collect();
            let refused = mount(policy, &attributes(&pairs));
            let Err(message) = refused else { panic!("policy {index} allows {pairs:?}") };
            assert!(!message.contains(['\n', '\r', '\0']), "one line for the pod's events: {message:?}");
        }
    }
    // What only a policy file can know.
    let [_, file] = policies();
    for objects in [
        "[{objectName: a, secretPath: secret/data/other/a}]",
        "[{objectName: a, secretPath: secret/data/team}]",
        "[{objectName: a, secretPath: other-ns/secret/data/team/a}]",
        "[{objectName: a, secretPath: sys/policies/acl/x}]",
        "[{objectName: a, secretPath: secret/data/team/a, method: PUT}]",
        "[{objectName: a, secretPath: secret/data/team/a, method: POST, secretArgs: {a: b}}]",
    ] {
        assert!(mount(&file, &attributes(&[("objects", objects)])).is_err(), "{objects}");
    }
    assert!(mount(&file, &attributes(&[("vaultNamespace", "other")])).is_err());
    assert!(mount(&file, &attributes(&[("roleName", "admin")])).is_err());
}

#[test]
fn tenant_quota() {
    let [policy, _] = policies();
    let many = |count: usize| -> String {
        (0..count).map(|n| format!("- {{objectName: o{n}, secretPath: secret/data/team/o{n}}}\n")).collect()
    };
    assert_eq!(mount(&policy, &attributes(&[("objects", &many(10_000))])), Ok(vec![]));
    let mut bomb = String::from("- &a0 {secretArgs: {x: lol}}\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("- &a{level} [{aliases}]\n");
    }
    // Ten thousand strange fields are a hundred warnings.
    let strange = format!("- {{objectName: a, secretPath: secret/data/team/a, {}}}", {
        (0..10_000).map(|n| format!("k{n}: v, ")).collect::<String>()
    });
    assert_eq!(mount(&policy, &attributes(&[("objects", &strange)])).unwrap().len(), 101);
    for (what, objects) in [
        ("too many objects", many(10_001)),
        ("two MiB", format!("- {{objectName: a, secretPath: {}}}", "x".repeat(2 << 20))),
        ("a long path", format!("- {{objectName: a, secretPath: {}}}", "x".repeat(5000))),
        ("deep objects", format!("- objectName: d{}\n  secretPath: x", "/d".repeat(4000))),
        ("a long name", format!("- {{objectName: {}, secretPath: x}}", "x".repeat(1 << 20))),
        ("a long method", format!("- {{objectName: a, secretPath: x, method: {}}}", "x".repeat(1 << 20))),
        ("one name", "- {objectName: a, secretPath: x}\n".repeat(10_000)),
        ("aliases", bomb),
        ("depth", "[".repeat(1_500_000)),
        ("wide", format!("[{}]", "a,".repeat(700_000))),
        ("keys", format!("- {{{}}}", (0..100_000).map(|n| format!("k{n}: v, ")).collect::<String>())),
    ] {
        let started = Instant::now();
        let message = mount(&policy, &attributes(&[("objects", &objects)])).unwrap_err();
        assert!(message.len() < 2000, "{what} is told in {} bytes", message.len());
        assert!(started.elapsed().as_secs() < 30, "{what} took {:?}", started.elapsed());
    }
}
