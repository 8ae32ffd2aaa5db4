#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    backend::{Envelope, SecretBody},
    clock::BootTime,
    secret::{SecretBytes, SecretJson},
    spec::{FileMode, ProviderName, TlsSpec, parameters},
};

mod objects;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn spec(objects: &str) -> VolumeSpec {
    let attributes = [
        ("roleName", "app"),
        ("objects", objects),
        ("csi.storage.k8s.io/pod.name", "web-0"),
        ("csi.storage.k8s.io/pod.namespace", "prod"),
        ("csi.storage.k8s.io/pod.uid", "u-1"),
        ("csi.storage.k8s.io/serviceAccount.name", "web"),
    ];
    let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let defaults = parameters::Defaults {
        address: Some("https://vault:8200".into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: TlsSpec::default(),
    };
    parameters::parse(ProviderName::Vault, &attributes, FileMode::DEFAULT, &defaults).unwrap().spec
}

fn answer(body: SecretBody) -> Secret {
    Secret {
        body,
        lease: None,
        lifetime: None,
        kv_version: None,
        warnings: vec![],
        since: BootTime::default(),
    }
}

fn envelope(data: Value) -> Envelope {
    Envelope { data: SecretJson::new(data), ..Envelope::default() }
}

fn with(objects: &str, body: SecretBody) -> Result<Rendered, RenderError> {
    let spec = spec(objects);
    let secrets = spec.requests().into_keys().map(|id| (id, answer(body.clone()))).collect();
    render(&spec, &secrets, &DigestKey::new(&[7; 32]), NOW)
}

fn json(objects: &str, data: Value) -> Result<Rendered, RenderError> {
    with(objects, SecretBody::Json(Arc::new(envelope(data))))
}

fn file(rendered: &Rendered, name: &str) -> Vec<u8> {
    let path = crate::spec::ObjectPath::parse(name).unwrap();
    rendered.payload.files[&path].contents.expose().to_vec()
}

fn key(key: &str, more: &str) -> String {
    format!("- {{objectName: f, secretPath: secret/data/app, secretKey: {key}{more}}}")
}

#[test]
fn values_follow_the_rule_of_the_vault_provider() {
    let numbers: Value = serde_json::from_str(r#"{"n":12345678901234567890123.10,"e":1E+2}"#).unwrap();
    for (secret_key, data, expected) in [
        ("k", json!({"k": "plain <&> text\n"}), "plain <&> text\n"),
        ("k", json!({"data": {"k": "nested"}, "k": "outer", "metadata": {}}), "nested"),
        ("k", json!({"data": "text", "k": "outer"}), "outer"),
        ("data", json!({"data": "text"}), "text"),
        ("data", json!({"data": ["a"]}), r#"["a"]"#),
        (
            "k",
            json!({"k": {"b": "<&>\u{2028}\u{2029}", "a": [1, true, null]}}),
            r#"{"a":[1,true,null],"b":"\u003c\u0026\u003e\u2028\u2029"}"#,
        ),
        ("k", json!({"k": null}), "null"),
        ("k", json!({"k": false}), "false"),
        ("k", json!({"k": ""}), ""),
        ("k", json!({"k": [" \u{1}\u{8}\u{c}\t\"\\\u{7f}é"]}), "[\" \\u0001\\b\\f\\t\\\"\\\\\u{7f}é\"]"),
        ("n", numbers.clone(), "12345678901234567890123.10"),
        ("e", numbers, "1e+2"), // serde_json lower-cases the E, and nothing else
    ] {
        let rendered = json(&key(secret_key, ""), data.clone()).unwrap();
        assert_eq!(String::from_utf8(file(&rendered, "f")).unwrap(), expected, "{data}");
    }
}

#[test]
fn encodings_decode_as_in_go() {
    for (encoding, value, expected) in [
        ("base64", "AAH/", Some(&b"\x00\x01\xff"[..])),
        ("base64", "AA\nH/\r\n", Some(b"\x00\x01\xff")),
        ("base64", "QR==", Some(b"A")),
        ("base64", "", Some(b"")),
        ("base64", "AAH", None),
        ("base64", "-_-_", None),
        ("base64", "a b=", None),
        ("hex", "00fF", Some(b"\x00\xff")),
        ("hex", "0", None),
        ("hex", "zz", None),
        ("utf-8", "zz", Some(b"zz")),
    ] {
        let rendered = json(&key("k", &format!(", encoding: {encoding}")), json!({"k": value}));
        match expected {
            Some(bytes) => assert_eq!(file(&rendered.unwrap(), "f"), bytes, "{encoding} {value:?}"),
            None => {
                let text = rendered.unwrap_err().to_string();
                assert!(text.starts_with("object \"f\": the value of key \"k\" is not valid"), "{text}");
                assert!(value.len() < 2 || !text.contains(value), "{text}");
            }
        }
    }
}

#[test]
fn a_missing_key_names_the_keys_there_are() {
    let error = json(&key("pasword", ""), json!({"data": {"user": "canary", "password": "canary"}}));
    let text = error.unwrap_err().to_string();
    assert_eq!(
        text,
        "object \"f\": key \"pasword\" does not exist at the secret path secret/data/app; it has the keys \
         \"password\", \"user\""
    );
    let many = (0..25).map(|n| (format!("k{n:02}"), json!("canary"))).collect::<serde_json::Map<_, _>>();
    let text = json(&key("x", ""), Value::Object(many)).unwrap_err().to_string();
    assert!(text.ends_with("\"k18\", \"k19\" and 5 more") && !text.contains("canary"), "{text}");
    for data in [Value::Null, json!({}), json!({"data": {}})] {
        assert!(json(&key("x", ""), data).unwrap_err().to_string().ends_with("it has no keys"));
    }
}

#[test]
fn a_whole_response_is_what_go_marshals() {
    let whole = "- {objectName: f, secretPath: secret/data/app}";
    let full = Envelope {
        request_id: "r<1>".into(),
        lease_id: "database/creds/app/x".into(),
        lease_duration: 3600,
        renewable: true,
        data: SecretJson::new(json!({"b": 1, "a": "<"})),
        warnings: vec!["careful & slow".into()],
        rest: [("mount_type", json!("kv")), ("auth", json!({"x": 1})), ("wrap_info", Value::Null)]
            .map(|(name, value)| (name.to_owned(), SecretJson::new(value)))
            .into(),
    };
    let body = |envelope: &Envelope| SecretBody::Json(Arc::new(envelope.clone()));
    let rendered = with(whole, body(&full)).unwrap();
    let expected = concat!(
        r#"{"request_id":"r\u003c1\u003e","lease_id":"database/creds/app/x","lease_duration":3600,"#,
        r#""renewable":true,"data":{"a":"\u003c","b":1},"warnings":["careful \u0026 slow"],"#,
        r#""auth":{"x":1},"mount_type":"kv"}"#
    );
    assert_eq!(String::from_utf8(file(&rendered, "f")).unwrap(), expected);
    let bare = with(whole, body(&Envelope::default())).unwrap();
    let expected =
        r#"{"request_id":"","lease_id":"","lease_duration":0,"renewable":false,"data":null,"warnings":null}"#;
    assert_eq!(file(&bare, "f"), expected.as_bytes());

    // The version is about the data: the next read of the same data has another envelope.
    let again = Envelope { request_id: "r2".into(), lease_duration: 1, warnings: vec![], ..full.clone() };
    assert_eq!(with(whole, body(&again)).unwrap().versions, rendered.versions);
    let other = Envelope { data: SecretJson::new(json!({"b": 2, "a": "<"})), ..full };
    assert_ne!(with(whole, body(&other)).unwrap().versions, rendered.versions);
}

#[test]
fn raw_bodies_are_files_as_they_are() {
    let raw = SecretBody::Raw(Arc::new(SecretBytes::new(b"\x30\x82\x00\xff".to_vec())));
    let rendered = with("- {objectName: ca.der, secretPath: pki/ca}", raw.clone()).unwrap();
    assert_eq!(file(&rendered, "ca.der"), b"\x30\x82\x00\xff");
    let error = with("- {objectName: f, secretPath: pki/ca, secretKey: x}", raw).unwrap_err();
    assert_eq!(
        error.to_string(),
        "object \"f\": pki/ca answers with a raw body that has no keys, remove secretKey"
    );
}

/// What a writer of secrets puts into them stays content: it is no template, no path, no second file.
#[test]
fn template_no_second_eval() {
    for hostile in
        ["{{ .password }}", "{{ env \"HOME\" }}", "../../etc/passwd", "${namespace}", "a\nb: c", "%2e%2e/x"]
    {
        let rendered = json(&key("k", ""), json!({ "k": hostile, "../../x": "y", "..data": "z" })).unwrap();
        assert_eq!(file(&rendered, "f"), hostile.as_bytes());
        let names: Vec<&str> = rendered.payload.files.keys().map(|path| path.as_str()).collect();
        assert_eq!(names, ["f"], "the SecretProviderClass alone names files");
    }
}

#[test]
fn version_hash_keyed() {
    let objects =
        "- {objectName: a, secretPath: s, secretKey: k}\n- {objectName: b, secretPath: s, secretKey: k}";
    let spec = spec(objects);
    let secrets: BTreeMap<_, _> = spec
        .requests()
        .into_keys()
        .map(|id| (id, answer(SecretBody::Json(Arc::new(envelope(json!({"k": "same"})))))))
        .collect();
    let first = render(&spec, &secrets, &DigestKey::new(&[1; 32]), NOW).unwrap().versions;
    let again = render(&spec, &secrets, &DigestKey::new(&[1; 32]), NOW).unwrap().versions;
    let other_node = render(&spec, &secrets, &DigestKey::new(&[2; 32]), NOW).unwrap().versions;
    assert_eq!(first, again);
    assert_eq!((first[0].0.as_str(), first[1].0.as_str()), ("a", "b"));
    assert_ne!(first[0].1, first[1].1, "equal values must not show as equal");
    assert_ne!(first[0].1, other_node[0].1);
    assert!(
        first
            .iter()
            .all(|(_, version)| version.len() == 32 && version.bytes().all(|b| b.is_ascii_hexdigit()))
    );
    let key = DigestKey::new(&[1; 32]);
    assert_ne!(key.version("ab", b"c"), key.version("a", b"bc"));
}

#[test]
fn modes_owners_and_limits() {
    let objects = "- {objectName: a, secretPath: s, secretKey: k, filePermission: 0400, fileOwner: '5:6'}\n\
                   - {objectName: d/b, secretPath: s, secretKey: k}";
    let rendered = json(objects, json!({"k": "v"})).unwrap();
    let shown: Vec<_> = rendered
        .payload
        .files
        .iter()
        .map(|(path, file)| (path.as_str(), file.mode.bits(), file.owner.map(|o| (o.uid, o.gid))))
        .collect();
    assert_eq!(shown, [("a", 0o400, Some((Some(5), Some(6)))), ("d/b", 0o644, None)]);

    let value = "x".repeat(MAX_OBJECT_LEN);
    let three = (0..3).map(|n| format!("- {{objectName: o{n}, secretPath: s, secretKey: k}}\n"));
    assert!(json(&key("k", ""), json!({"k": value.clone()})).is_ok());
    let error = json(&three.collect::<String>(), json!({"k": value.clone()})).unwrap_err();
    assert_eq!(error, RenderError::PayloadTooLarge);
    let error = json(&key("k", ""), json!({"k": value + "x"})).unwrap_err();
    assert!(matches!(error, RenderError::ObjectTooLarge { .. }), "{error}");
}

#[test]
fn what_was_not_read_is_said() {
    let error = render(&spec(&key("k", "")), &BTreeMap::new(), &DigestKey::new(&[0; 32]), NOW).unwrap_err();
    assert_eq!(error.to_string(), "object \"f\": secret/data/app has not been read");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|n| json!(n)),
        any::<String>().prop_map(Value::String),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn prop_json_reads_back(value in any_json()) {
        let mut out = Vec::new();
        json::write(&mut out, &value);
        prop_assert!(!out.iter().any(|byte| matches!(byte, b'<' | b'>' | b'&' | 0..=0x1f)));
        prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), value);
    }

    /// Raw files, forms, folders and templates of four secrets that change a few at a time: whatever came before,
    /// the files are those of a fresh render of what the store holds, in any order of the list.
    #[test]
    fn prop_refreshes_in_parts_end_where_a_fresh_render_does(
        refreshes in prop::collection::vec((0_usize..4, "[ -~]{0,12}"), 1..24),
        order in Just([0_usize, 1, 2, 3, 4, 5]).prop_shuffle(),
    ) {
        let entries = [
            "- {objectName: raw, secretPath: secret/data/s0, secretKey: v}\n",
            "- {objectName: all.json, secretPath: secret/data/s1, format: json}\n",
            "- {objectName: dir, secretPath: secret/data/s2, extract: {}}\n",
            "- {as: s3, secretPath: secret/data/s3}\n",
            "- {objectName: t, template: '{{ .s3.v }} {{ with secret \"secret/data/s1\" }}{{ .Data.data.v | toJSON }}{{ end }}'}\n",
            "- {objectName: u, template: '{{ range $k, $v := .s3 }}{{ $k }}={{ $v }};{{ end }}'}\n",
        ];
        let (given, shuffled) = (spec(&entries.concat()), spec(&order.map(|at| entries[at]).concat()));
        let ids: BTreeMap<String, DependencyId> =
            given.requests().into_iter().map(|(id, request)| (request.path.to_string(), id)).collect();
        let id = |secret: usize| ids[&format!("secret/data/s{secret}")];
        let fresh = |values: &[String; 4]| -> BTreeMap<DependencyId, Secret> {
            let body = |value: &str| json!({"data": {"v": value, "w": "fixed"}, "metadata": {"version": 1}});
            values.iter().enumerate().map(|(at, value)| {
                (id(at), answer(SecretBody::Json(Arc::new(envelope(body(value))))))
            }).collect()
        };
        let key = DigestKey::new(&[7; 32]);
        let mut values: [String; 4] = Default::default();
        let mut held = fresh(&values);
        for (secret, value) in refreshes {
            values[secret] = value;
            // As after a check that found a change: that one answer is new, the others are those that were held.
            held.insert(id(secret), fresh(&values).remove(&id(secret)).unwrap());
            let kept = render(&given, &held, &key, NOW).unwrap();
            let anew = render(&given, &fresh(&values), &key, NOW).unwrap();
            prop_assert_eq!(&kept.payload, &anew.payload);
            prop_assert_eq!(&kept.versions, &anew.versions);
            let other = render(&shuffled, &held, &key, NOW).unwrap();
            prop_assert_eq!(&other.payload, &anew.payload);
            let sorted = |rendered: Rendered| rendered.versions.into_iter().collect::<BTreeMap<_, _>>();
            prop_assert_eq!(sorted(other), sorted(anew));
        }
    }
}
