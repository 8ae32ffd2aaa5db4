#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};

use super::*;

const TARGET: &str = "/var/lib/kubelet/pods/1-2-3/volumes/kubernetes.io~csi/secrets/mount";

fn attributes() -> Value {
    json!({
        POD_NAME: "web-0", POD_NAMESPACE: "shop", POD_UID: "1-2-3", SERVICE_ACCOUNT: "web",
        "csi.storage.k8s.io/ephemeral": "true", CLASS: "db", "roleName": "web",
        TOKENS_KEY: r#"{"vault": {"token": "canary"}}"#,
    })
}

fn request() -> MountRequest {
    MountRequest {
        attributes: attributes().to_string(),
        secrets: "null".into(),
        target_path: TARGET.into(),
        permission: "420".into(),
        current_object_version: Vec::new(),
    }
}

fn parse(request: MountRequest) -> Result<Call, RequestError> {
    Call::parse(ProviderName::Vault, request, Path::new("/var/lib/kubelet"))
}

fn with(key: &str, value: Value) -> MountRequest {
    let mut attributes = attributes();
    attributes[key] = value;
    MountRequest { attributes: attributes.to_string(), ..request() }
}

#[test]
fn what_driver_1_6_0_sends_is_read() {
    let call = parse(request()).unwrap();
    assert_eq!(call.key.path(), Path::new(TARGET));
    assert_eq!((call.pod.namespace.as_str(), call.pod.name.as_str()), ("shop", "web-0"));
    assert_eq!((call.class.as_str(), call.default_mode.bits()), ("db", 0o644));
    assert_eq!(call.attributes["roleName"], "web");
    assert!(!call.attributes.contains_key(TOKENS_KEY));
    assert!(!format!("{call:?}").contains("canary"));
}

#[test]
fn tokens_come_from_secrets_before_attributes() {
    let pod = parse(request()).unwrap().pod;
    let audiences = |request| match parse(request).unwrap().tokens {
        Ok(tokens) => tokens.pick("none", &pod, std::time::UNIX_EPOCH).unwrap_err().to_string(),
        Err(error) => error.to_string(),
    };
    let secret = json!({TOKENS_KEY: r#"{"secret": {"token": ""}}"#, "other": "x"}).to_string();
    for (secrets, expected) in [
        (secret.as_str(), r#"(it has "secret")"#),
        ("null", r#"(it has "vault")"#),
        ("{}", r#"(it has "vault")"#),
        ("", r#"(it has "vault")"#),
    ] {
        let error = audiences(MountRequest { secrets: secrets.into(), ..request() });
        assert!(error.contains(expected), "{error}");
    }
    assert!(audiences(with(TOKENS_KEY, json!(""))).contains("(it has none now)"));
    assert!(audiences(with(TOKENS_KEY, json!("canary"))).contains("no JSON object of audience to token"));
}

#[test]
fn the_digest_is_over_all_but_the_tokens() {
    let digest = |request| parse(request).unwrap().digest;
    let same = digest(request());
    assert_eq!(same, digest(with(TOKENS_KEY, json!("other"))));
    let in_secrets = json!({TOKENS_KEY: "{}"}).to_string();
    assert_eq!(same, digest(MountRequest { secrets: in_secrets, ..request() }));
    let others = [
        digest(with("roleName", json!("we"))),
        digest(with("roleName2", json!(""))),
        digest(MountRequest { permission: "256".into(), ..request() }),
        Call::parse(ProviderName::Openbao, request(), Path::new("/var/lib/kubelet")).unwrap().digest,
    ];
    assert!(others.iter().all(|other| *other != same));
}

#[test]
fn malformed_calls_are_refused_without_a_value() {
    let no_uid = {
        let mut attributes = attributes();
        attributes.as_object_mut().unwrap().remove(POD_UID);
        MountRequest { attributes: attributes.to_string(), ..request() }
    };
    let cases = [
        (
            MountRequest { attributes: "canary".into(), ..request() },
            "attributes is no JSON object of strings (line 1",
        ),
        (MountRequest { attributes: r#"["canary"]"#.into(), ..request() }, "attributes is no JSON"),
        (MountRequest { attributes: r#"{"a": {"canary": 1}}"#.into(), ..request() }, "attributes is no JSON"),
        (MountRequest { attributes: r#"{"a": "canary"#.into(), ..request() }, "attributes is no JSON"),
        (
            MountRequest { secrets: r#"{"a": 123456}"#.into(), ..request() },
            "secrets is no JSON object of strings",
        ),
        (MountRequest { attributes: String::new(), ..request() }, "podInfoOnMount: true"),
        (no_uid, "have no csi.storage.k8s.io/pod.uid: the CSIDriver needs podInfoOnMount: true"),
        (with(POD_NAMESPACE, json!("canary/../x")), "csi.storage.k8s.io/pod.namespace is no name"),
        (with(POD_NAME, json!("canary\n")), "csi.storage.k8s.io/pod.name is no name"),
        (with(POD_NAME, json!("x".repeat(254))), "csi.storage.k8s.io/pod.name is no name"),
        (with(CLASS, json!("canary\u{1b}[2J")), "secretProviderClass is no name"),
        (MountRequest { permission: "0o644".into(), ..request() }, "no decimal number of a mode"),
        (MountRequest { permission: "2541".into(), ..request() }, "no decimal number of a mode"),
        (MountRequest { permission: "-1".into(), ..request() }, "no decimal number of a mode"),
    ];
    for (request, expected) in cases {
        let failure = MountFailure::from(parse(request).unwrap_err());
        assert!(failure.message.contains(expected), "{failure}");
        assert!(!failure.message.contains("canary") && !failure.message.contains("123456"), "{failure}");
        assert_eq!(failure.kind, FailureKind::InvalidArgument);
    }
}

#[test]
fn forged_targets_are_refused() {
    let forged = [
        "",
        "/",
        "/etc",
        "relative/pods/1-2-3/volumes/kubernetes.io~csi/secrets/mount",
        "/var/lib/kubelet/pods/other/volumes/kubernetes.io~csi/secrets/mount",
        "/var/lib/kubelet/pods/1-2-3/../other/volumes/kubernetes.io~csi/secrets/mount",
        "/var/lib/kubelet/pods/1-2-3/volumes/kubernetes.io~csi/../mount",
        "/var/lib/kubelet/pods/1-2-3/volumes/kubernetes.io~csi/./mount",
        "/var/lib/kubelet/pods/1-2-3/volumes/kubernetes.io~csi//mount",
        "/var/lib/kubelet//pods/1-2-3/volumes/kubernetes.io~csi/secrets/mount",
        "/var/lib/kubelet/pods/1-2-3/volumes/kubernetes.io~csi/secrets/mount/",
        "/var/lib/kubelet/pods/1-2-3/volumes/kubernetes.io~csi/secrets/mount/x",
        "/var/lib/kubelet/pods/1-2-3/volumes/kubernetes.io~csi/secrets",
        "/var/lib/kubelet/pods/1-2-3/volumes/kubernetes.io~empty-dir/secrets/mount",
        "/var/lib/kubelet/pods/1-2-3/volumes/kubernetes.io~csi/a\nb/mount",
        "/var/lib/kubelet/pods/1-2-3/volumes/kubernetes.io~csi/a\0b/mount",
        "/var/lib/kubelet2/pods/1-2-3/volumes/kubernetes.io~csi/secrets/mount",
        "/other/kubelet/pods/1-2-3/volumes/kubernetes.io~csi/secrets/mount",
    ];
    for target_path in forged {
        let error = parse(MountRequest { target_path: target_path.into(), ..request() }).unwrap_err();
        assert!(matches!(error, RequestError::Target { .. }), "{target_path}: {error}");
    }
    let dotted = MountRequest {
        target_path: "/var/lib/kubelet/pods/../volumes/kubernetes.io~csi/secrets/mount".into(),
        ..with(POD_UID, json!(".."))
    };
    assert!(matches!(parse(dotted), Err(RequestError::Target { .. })));
}
