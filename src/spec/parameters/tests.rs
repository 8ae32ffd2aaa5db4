#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::time::Duration;

use super::*;
use crate::spec::{Encoding, RefreshPolicy, object::Method};

fn defaults() -> Defaults {
    Defaults {
        address: Some("https://own:8200/".into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: TlsSpec::default(),
    }
}

fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let base = [
        ("csi.storage.k8s.io/pod.name", "pod"),
        ("csi.storage.k8s.io/serviceAccount.tokens", "{}"),
        ("secretProviderClass", "spc"),
        ("roleName", "app"),
        ("objects", "- {objectName: a, secretPath: secret/data/a}"),
    ];
    base.iter().chain(pairs).map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn read(provider: ProviderName, pairs: &[(&str, &str)]) -> Result<Parsed, SpecError> {
    parse(provider, &attributes(pairs), FileMode::DEFAULT, &defaults())
}

fn vault(pairs: &[(&str, &str)]) -> Result<Parsed, SpecError> {
    read(ProviderName::Vault, pairs)
}

fn object(fields: &str) -> Result<Parsed, SpecError> {
    vault(&[("objects", &format!("- objectName: db\n  secretPath: secret/data/db\n{fields}"))])
}

#[test]
fn defaults_fill_what_is_not_given() {
    for provider in [ProviderName::Vault, ProviderName::Leasehold, ProviderName::Openbao] {
        let Parsed { spec, warnings } = read(provider, &[]).unwrap();
        assert_eq!(warnings, [""; 0]);
        assert_eq!(spec.connection.address, "https://own:8200");
        assert_eq!(spec.connection.namespace, "");
        assert_eq!((spec.login.mount.as_str(), spec.login.role.as_str()), ("kubernetes", "app"));
        assert_eq!(spec.login.audience, provider.default_audience());
        assert_eq!(spec.default_mode, FileMode::DEFAULT);
        let object = &spec.objects[0];
        assert_eq!((request(object).method, request(object).path.as_str()), (Method::Get, "secret/data/a"));
        assert_eq!((key(object), object.encoding, object.mode), (None, Encoding::Utf8, None));
        assert_eq!((object.overlap, object.refresh_interval), (Duration::from_secs(30), None));
    }
}

#[test]
fn every_parameter_of_the_vault_provider_is_read() {
    let spec = vault(&[
        ("vaultAddress", "https://vault.example/prefix/"),
        ("vaultNamespace", "/team-a/"),
        ("vaultSkipTLSVerify", "T"),
        ("vaultCACertPath", "/tls/ca.pem"),
        ("vaultCADirectory", "/tls/ca"),
        ("vaultTLSServerName", "vault.internal"),
        ("vaultTLSClientCertPath", "/tls/c.pem"),
        ("vaultTLSClientKeyPath", "/tls/k.pem"),
        ("vaultAuthMountPath", "jwt/k8s"),
        ("audience", "other"),
    ]);
    let spec = spec.unwrap().spec;
    assert_eq!(spec.connection.address, "https://vault.example/prefix");
    assert_eq!(spec.connection.namespace, "team-a");
    let some = |text: &str| Some(text.to_owned());
    let expected = TlsSpec {
        ca_cert: some("/tls/ca.pem"),
        ca_directory: some("/tls/ca"),
        server_name: some("vault.internal"),
        client_cert: some("/tls/c.pem"),
        client_key: some("/tls/k.pem"),
        skip_verify: true,
    };
    assert_eq!(spec.connection.tls, expected);
    assert_eq!((spec.login.mount.as_str(), spec.login.audience.as_str()), ("jwt/k8s", "other"));
    let older = vault(&[("vaultKubernetesMountPath", "k8s"), ("vaultNamespace", "root")]).unwrap().spec;
    assert_eq!((older.login.mount.as_str(), older.connection.namespace.as_str()), ("k8s", ""));
}

#[test]
fn openbao_prefixes_are_tried_in_order() {
    let bao = |pairs: &[_]| read(ProviderName::Openbao, pairs).unwrap();
    let all = [("vaultAddress", "http://v"), ("openbaoAddress", "http://o"), ("baoAddress", "http://b")];
    for (count, expected) in [(1, "http://v"), (2, "http://o"), (3, "http://b")] {
        let Parsed { spec, warnings } = bao(&all[..count]);
        assert_eq!((spec.connection.address.as_str(), warnings.len()), (expected, 0));
    }
    assert_eq!(bao(&[("baoAddress", ""), ("vaultAddress", "http://v")]).spec.connection.address, "http://v");
    assert_eq!(bao(&[("vaultRoleName", "v"), ("baoRoleName", "b")]).spec.login.role, "b");
    assert_eq!(bao(&[]).spec.login.role, "app");
    let both = read(ProviderName::Openbao, &[("baoAuthMountPath", ""), ("vaultKubernetesMountPath", "")]);
    assert_eq!(
        both.unwrap_err().to_string(),
        "cannot set both vaultKubernetesMountPath and baoAuthMountPath"
    );
    assert!(vault(&[("baoAddress", "http://b")]).unwrap().warnings[0].contains("unknown parameter"));
}

#[test]
fn errors_of_parameters() {
    for (pairs, expected) in [
        (&[("roleName", "")][..], "missing 'roleName' in SecretProviderClass definition"),
        (
            &[("vaultAuthMountPath", ""), ("vaultKubernetesMountPath", "")],
            "cannot set both vaultKubernetesMountPath and vaultAuthMountPath",
        ),
        (&[("objects", "")], "no secrets configured - the provider will not read any secret material"),
        (&[("objects", "[]")], "no secrets configured - the provider will not read any secret material"),
        (
            &[("vaultSkipTLSVerify", "yes")],
            "parameter vaultSkipTLSVerify: \"yes\" is not a boolean, write \"true\" or \"false\"",
        ),
        (
            &[("vaultNamespace", "a/../b")],
            "parameter vaultNamespace: the namespace has a segment \".\" or \"..\"",
        ),
        (
            &[("vaultAuthMountPath", "a%2fb")],
            "parameter vaultAuthMountPath: the path has a \"%\", write the characters themselves",
        ),
        (
            &[("vaultTLSClientKeyPath", "/k")],
            "parameter vaultTLSClientKeyPath: needs vaultTLSClientCertPath beside it",
        ),
        (&[("fileOwner", "root")], "parameter fileOwner: \"root\" is not a numeric id, write one like 10001"),
        (
            &[("fileOwner", "1:2"), ("fileGroup", "3")],
            "parameter fileGroup: the group is given in fileOwner already",
        ),
        (
            &[("objects", "array:\n  - objectName: a")],
            "parameter objects (line 1): is in the form of vault-csi-provider's first releases, which nothing \
             reads any more: remove the line \"array:\" and write each entry as a mapping in a list",
        ),
        (&[("objects", "text")], "parameter objects (line 1): is text, expected a list of objects"),
        (
            &[("objects", "- a\n- {objectName: b, secretPath: c}")],
            "parameter objects (line 1): entry #1 is text, expected a mapping",
        ),
        (
            &[(
                "objects",
                "- {objectName: b, secretPath: c}\n- {objectName: b, secretPath: d}\n- {objectName: \
                b, secretPath: d}",
            )],
            "each `objectName` within a SecretProviderClass must be unique, but the following keys were \
             duplicated: b, b",
        ),
        (
            &[("objects", "- {objectName: a/b, secretPath: c}\n- {objectName: a, secretPath: d}")],
            "object \"a/b\" (line 1): objectName: \"a\" is the file of another object and cannot be a folder \
             too",
        ),
        (&[("objects", "- secretPath: c")], "object #1 (line 1): objectName: is missing"),
        (
            &[("objects", "- objectName: a\n- objectName: b\n  secretPath: c")],
            "object \"a\" (line 1): secretPath: is missing",
        ),
        (
            &[("objects", "- objectName: a\n  objectName: b")],
            "parameter objects (line 2): the key \"objectName\" is given twice in one mapping",
        ),
    ] {
        assert_eq!(vault(pairs).unwrap_err().to_string(), expected, "{pairs:?}");
    }
    let none = Defaults { address: None, ..defaults() };
    for (provider, parameter) in
        [(ProviderName::Vault, "vaultAddress"), (ProviderName::Openbao, "baoAddress")]
    {
        let error = parse(provider, &attributes(&[]), FileMode::DEFAULT, &none).unwrap_err();
        assert_eq!(error, SpecError::MissingAddress { parameter });
    }
}

#[test]
fn errors_of_objects_name_field_and_line() {
    for (fields, expected) in [
        (
            "  filePermission: 644",
            "filePermission: 644 is decimal and has bits outside 0777, write 0644 for octal",
        ),
        (
            "  encoding: rot13",
            "encoding: invalid encoding type. Should be utf-8, base64, or hex; or base64url",
        ),
        ("  method: LIST", "method: \"LIST\" does not read a secret, use GET, PUT or POST"),
        ("  method: [GET]", "method: is a list, expected text"),
        ("  secretArgs: x", "secretArgs: is text, expected a mapping"),
        ("  overlap: 30", "overlap: \"30\" is not a duration, write one like \"30s\", \"5m\" or \"1h30m\""),
        (
            "  refreshPolicy: periodic",
            "refreshPolicy: \"periodic\" is not one of Periodic, CreatedOnce, OnChange",
        ),
        ("  fileOwner: {user: 1}", "fileOwner: has fields other than uid and gid"),
        ("  fileOwner: {uid: -1}", "fileOwner: \"-1\" is not a numeric id, write one like 10001"),
        ("  fileOwner: {}\n  fileGroup: x", "fileGroup: \"x\" is not a numeric id, write one like 10001"),
        ("  secretKey: {a: b}", "secretKey: is a mapping, expected text"),
    ] {
        let line = 2 + fields.lines().count();
        let expected = format!("object \"db\" (line {line}): {expected}");
        assert_eq!(object(fields).unwrap_err().to_string(), expected);
    }
    let paths = [
        ("a//b", "has an empty segment (\"//\")"),
        ("a?b=%zz", "the query is not a valid URL query"),
        ("a#b", "has a \"#\", which begins a fragment in a URL"),
    ];
    for (path, says) in paths {
        let objects = format!("- objectName: db\n  secretPath: \"{path}\"");
        let error = vault(&[("objects", &objects)]).unwrap_err();
        assert_eq!(error.to_string(), format!("object \"db\" (line 2): secretPath: {says}"));
    }
}

#[test]
fn fields_of_objects() {
    let one = |fields: &str| object(fields).unwrap().spec.objects.remove(0);
    for spelled in ["0644", "0o644", "\"0644\"", "420", "'420'"] {
        assert_eq!(one(&format!("  filePermission: {spelled}")).mode, FileMode::new(0o644), "{spelled}");
    }
    assert_eq!(one("  filePermission: 0").mode, None);
    assert_eq!(one("  encoding: BASE64\n  secretKey: k").encoding, Encoding::Base64);
    assert_eq!(key(&one("  secretKey: 123")).as_deref(), Some("123"));
    assert_eq!(key(&one("  secretKey: true")).as_deref(), Some("true"));
    assert_eq!(key(&one("  secretKey: ''")), None);
    assert_eq!(request(&one("  method: put")).method, Method::Put);
    let args =
        "  method: POST\n  secretArgs: {ttl: 24h, n: 12345678901234567890.10, b: {y: 1, x: [true, ~]}}";
    assert_eq!(
        request(&one(args)).args.as_deref(),
        Some(r#"{"b":{"x":[true,null],"y":1},"n":12345678901234567890.10,"ttl":"24h"}"#)
    );
    assert_eq!(request(&one("  method: POST\n  secretArgs: {}")).args, None);
    assert!(!request(&one("  secretArgs: {a: b}")).is_write());
    assert_eq!(one("  overlap: 1m").overlap, Duration::from_secs(60));
    for (fields, interval, policy) in [
        ("  refreshInterval: 30s", Some(30), RefreshPolicy::Periodic),
        ("  refreshInterval: 1s", Some(5), RefreshPolicy::Periodic),
        ("  refreshInterval: 0", None, RefreshPolicy::CreatedOnce),
        ("  refreshInterval: 0s", None, RefreshPolicy::CreatedOnce),
        ("  refreshPolicy: OnChange\n  refreshInterval: 0", None, RefreshPolicy::OnChange),
        ("  refreshPolicy: CreatedOnce\n  refreshInterval: 1h", None, RefreshPolicy::CreatedOnce),
    ] {
        let object = one(fields);
        let expected = (interval.map(Duration::from_secs), policy);
        assert_eq!((object.refresh_interval, object.refresh_policy), expected, "{fields}");
    }
    let queried = vault(&[("objects", "- {objectName: a, secretPath: '/v1/kv/data/a?version=2&x=1&x=2'}")]);
    let request = request(&queried.unwrap().spec.objects[0]);
    assert_eq!(request.path.as_str(), "kv/data/a");
    assert_eq!(request.query["x"], ["1", "2"]);
    assert_eq!(request.query["version"], ["2"]);
}

#[test]
fn owners_of_the_volume_go_to_objects_without_one() {
    let objects = "- {objectName: a, secretPath: s}\n\
                   - {objectName: b, secretPath: s, fileOwner: {uid: 7}}\n\
                   - {objectName: c, secretPath: s, fileGroup: 8}\n\
                   - {objectName: d, secretPath: s, fileOwner: '9:9'}";
    let spec = vault(&[("objects", objects), ("fileOwner", "10001"), ("fileGroup", "20002")]).unwrap().spec;
    let owners: Vec<_> = spec.objects.iter().map(|object| object.owner.map(|o| (o.uid, o.gid))).collect();
    assert_eq!(
        owners,
        [
            Some((Some(10001), Some(20002))),
            Some((Some(7), None)),
            Some((None, Some(8))),
            Some((Some(9), Some(9)))
        ]
    );
    assert_eq!(vault(&[]).unwrap().spec.objects[0].owner, None);
}

#[test]
fn what_is_strange_warns_and_mounts() {
    for (pairs, says) in [
        (
            &[("vaultAdress", "x")][..],
            "unknown parameter \"vaultAdress\" is ignored, did you mean vaultAddress?",
        ),
        (&[("usePodIdentity", "x")], "unknown parameter \"usePodIdentity\" is ignored"),
        (
            &[("vaultCAPem", "x")],
            "parameter vaultCAPem is ignored, as vault-csi-provider ignores it: put the certificate into the \
             agent's TLS folder and name it in vaultCACertPath",
        ),
        (
            &[("objects", "- {objectName: a, secretPath: b, secretkey: c}")],
            "object \"a\" (line 1): unknown field \"secretkey\" is ignored, did you mean secretKey?",
        ),
        (
            &[("objects", "- {objectName: a, secretPath: b, generateName: {uuid: {}}}")],
            "object \"a\" (line 1): unknown field \"generateName\" is ignored",
        ),
        (
            &[("objects", "- {objectName: a, secretPath: b, objectVersion: ''}")],
            "object \"a\" (line 1): objectVersion is ignored, vault-csi-provider does not read it either",
        ),
        (
            &[("objects", "- {objectName: a, secretPath: b, filePermission: 400}")],
            "object \"a\" (line 1): filePermission: 400 is decimal and means 0620, write 0400 for octal",
        ),
        (
            &[("objects", "- {objectName: a, secretPath: b, encoding: hex}")],
            "object \"a\" (line 1): encoding is ignored without a secretKey, jsonPointer or extract: there is no one value \
             to decode",
        ),
    ] {
        assert_eq!(vault(pairs).unwrap().warnings, [says]);
    }
}

#[test]
fn collect_shows_every_error() {
    let pairs = [
        ("roleName", ""),
        ("vaultSkipTLSVerify", "maybe"),
        (
            "objects",
            "- {objectName: .., secretPath: a//b, method: LIST}\n- {secretPath: c}\n- {objectName: ok, \
          secretPath: d}",
        ),
    ];
    let found = collect(ProviderName::Vault, &attributes(&pairs), FileMode::DEFAULT, &defaults());
    assert!(found.spec.is_none());
    let shown: Vec<_> = found.errors.iter().map(|error| (error.parameter(), error.line())).collect();
    let objects = |line| (Some("objects"), Some(line));
    let skip = (Some("vaultSkipTLSVerify"), None);
    assert_eq!(shown, [(None, None), skip, objects(1), objects(1), objects(1), objects(2)]);
}

#[test]
fn own_tls_is_replaced_by_groups() {
    let some = |text: &str| Some(text.to_owned());
    let tls = TlsSpec {
        ca_cert: some("/own/ca"),
        server_name: some("own"),
        client_cert: some("/own/c"),
        client_key: some("/own/k"),
        ..TlsSpec::default()
    };
    let own = Defaults { tls: tls.clone(), ..defaults() };
    let with = |pairs: &[_]| {
        parse(ProviderName::Vault, &attributes(pairs), FileMode::DEFAULT, &own).map(|p| p.spec.connection.tls)
    };
    assert_eq!(with(&[]).unwrap(), tls);
    let directory = with(&[("vaultCADirectory", "/d")]).unwrap();
    assert_eq!((directory.ca_cert, directory.ca_directory), (None, some("/d")));
    // A tenant's certificate never goes with the operator's key, nor the other way round.
    assert!(with(&[("vaultTLSClientCertPath", "/c")]).is_err());
    assert!(with(&[("vaultSkipTLSVerify", "1")]).unwrap().skip_verify);
}

fn request(object: &Object) -> crate::spec::SecretRequest {
    object.requests().next().unwrap().clone()
}

fn key(object: &Object) -> Option<String> {
    use crate::spec::object::{Part, Source};
    match &object.source {
        Source::Secret { part: Part::Key(key), .. } => Some(key.clone()),
        _ => None,
    }
}

#[test]
fn generators_of_one_secret_become_one_request() {
    let spec = vault(&[(
        "objects",
        "- {objectName: a, secretPath: secret/data/db, secretKey: a, generate: uuid}\n\
         - {objectName: b, secretPath: /v1/secret/data/db, secretKey: b, generate: {hex: {}}}\n\
         - {objectName: plain, secretPath: secret/data/db, secretKey: c}\n\
         - {objectName: other, secretPath: secret/data/x, secretKey: a}\n",
    )])
    .unwrap()
    .spec;
    assert_eq!(spec.requests().len(), 2);
    for object in &spec.objects[..3] {
        let request = object.requests().next().unwrap();
        assert_eq!(request.generate.keys().collect::<Vec<_>>(), ["a", "b"], "{}", object.name());
        assert!(request.may_write() && !request.is_write());
    }
    assert!(!spec.objects[3].requests().next().unwrap().may_write());
    let settled = std::sync::Arc::new(spec.clone()).settled();
    assert!(settled.requests().values().all(|request| !request.may_write()));
    assert_eq!(settled.requests().keys().collect::<Vec<_>>(), spec.requests().keys().collect::<Vec<_>>());
}

#[test]
fn generators_that_cannot_write_are_refused() {
    for (fields, says) in [
        ("  generate: uuid\n", "needs secretKey"),
        ("  secretKey: a\n  generate: uuid\n  optional: true\n", "leave out optional and default"),
        ("  secretKey: a\n  generate: uuid\n  method: PUT\n", "leave out method and secretArgs"),
        ("  jsonPointer: /a\n  generate: uuid\n", "needs secretKey"),
        ("  secretKey: a\n  generate:\n    hex: {byte: 1}\n", "(line 5): generate: hex has no field"),
        (
            "  secretKey: a\n  generate: uuid\n- {objectName: b, secretPath: secret/data/db, secretKey: a, generate: hex}\n",
            "makes \"a\" of the same secret otherwise above",
        ),
    ] {
        let error = object(fields).unwrap_err().to_string();
        assert!(error.contains(says), "{fields}: {error}");
    }
    for path in ["secret/db", "secret/data/db?version=3"] {
        let objects = format!("- {{objectName: a, secretPath: {path}, secretKey: a, generate: uuid}}\n");
        let error = vault(&[("objects", &objects)]).unwrap_err().to_string();
        assert!(error.contains("secretPath"), "{error}");
    }
}

#[test]
fn a_folder_that_names_a_key_writes_that_file() {
    let read = |objects: &str| vault(&[("objects", objects)]).map(|parsed| parsed.spec.objects.len());
    for objects in [
        "- {objectName: db/password, secretPath: a/b}\n- {objectName: db, secretPath: a/c, extract: {include: [password]}}",
        "- {objectName: db, secretPath: a/c, extract: {include: [x/password]}}\n\
         - {objectName: db/x, secretPath: a/b, extract: {include: [password]}}",
        "- {objectName: password, secretPath: a/b}\n- {objectName: ., secretPath: a/c, extract: {include: [password]}}",
    ] {
        let error = read(objects).unwrap_err();
        assert!(
            error.to_string().contains("extract: ")
                && error.to_string().contains("password\" is the file of object"),
            "{error}"
        );
        assert_eq!(error.line(), Some(2));
    }
    for objects in [
        "- {objectName: db/password, secretPath: a/b}\n- {objectName: db, secretPath: a/c, extract: {include: [p*]}}",
        "- {objectName: db/password, secretPath: a/b}\n\
         - {objectName: db, secretPath: a/c, extract: {include: [password], exclude: [password]}}",
        "- {objectName: db, secretPath: a/c, extract: {include: [password, password]}}",
    ] {
        assert!(read(objects).is_ok(), "{objects}");
    }
}
