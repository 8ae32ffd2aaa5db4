//! The fields beyond the vault provider's: the reference in docs/, and what bad input comes to.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::*;
use crate::spec::SpecError;

const REFERENCE: &str = include_str!("../../../docs/objects.md");

/// Renders with the data given for each path; a path without any does not exist.
fn with_data(objects: &str, data: &Map<String, Value>) -> Result<Rendered, RenderError> {
    let spec = spec(objects);
    let secrets = spec.requests().into_iter().map(|(id, request)| {
        let body = match data.get(request.path.as_str()) {
            None | Some(Value::Null) if request.optional => SecretBody::Absent,
            None => panic!("no data for {}", request.path),
            Some(Value::String(raw)) => SecretBody::Raw(Arc::new(SecretBytes::new(raw.clone().into_bytes()))),
            Some(data) => SecretBody::Json(Arc::new(envelope(data.clone()))),
        };
        (id, answer(body))
    });
    render(&spec, &secrets.collect(), &DigestKey::new(&[7; 32]), NOW)
}

fn data(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn error(objects: &str, value: Value) -> String {
    let rendered = with_data(objects, &data(value));
    let text = rendered.map(|_| objects.to_owned()).unwrap_err().to_string();
    assert!(!text.contains("canary") && !text.contains('\n'), "{text}");
    text
}

fn refused(objects: &str) -> (Option<u64>, String) {
    let attributes = [("roleName", "app"), ("objects", objects)];
    let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let defaults = parameters::Defaults {
        address: Some("https://vault:8200".into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: TlsSpec::default(),
    };
    let error: SpecError =
        parameters::parse(ProviderName::Vault, &attributes, FileMode::DEFAULT, &defaults).unwrap_err();
    (error.line(), error.to_string())
}

/// Fenced blocks in order: language and content.
fn blocks(text: &str) -> Vec<(&str, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => open = Some((language, String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, content)), None) => *content += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    blocks
}

#[test]
fn every_example_of_the_reference_renders_as_it_says() {
    // A pod's manifest is no list of objects.
    let mut blocks = blocks(REFERENCE);
    blocks.retain(|(_, content)| !content.starts_with("# pod"));
    let mut fields = std::collections::BTreeSet::new();
    assert!(blocks.len() >= 21 && blocks.len().is_multiple_of(3), "{}", blocks.len());
    for example in blocks.chunks(3) {
        let [("yaml", objects), ("json", values), ("text", expected)] = example else {
            panic!("an example is a yaml, a json and a text block: {example:?}")
        };
        let values: Map<String, Value> = serde_json::from_str(values).unwrap();
        let rendered = with_data(objects, &values).unwrap_or_else(|error| panic!("{error}\n{objects}"));
        let files: BTreeMap<&str, Vec<u8>> = rendered
            .payload
            .files
            .iter()
            .map(|(path, file)| (path.as_str(), file.contents.expose().to_vec()))
            .collect();
        let mut seen = Vec::new();
        for section in expected.split("== ").skip(1) {
            let (name, content) = section.split_once('\n').unwrap();
            seen.push(name);
            let file = files.get(name).unwrap_or_else(|| panic!("no file {name}:\n{objects}"));
            if content == "(binary)\n" {
                assert!(std::str::from_utf8(file).is_err(), "{name}");
                continue;
            }
            let text = String::from_utf8(file.clone()).unwrap();
            assert_eq!(text.trim_end_matches('\n'), content.trim_end_matches('\n'), "{name}:\n{objects}");
        }
        seen.sort_unstable();
        assert_eq!(seen, files.keys().copied().collect::<Vec<_>>(), "{objects}");
        fields.extend(
            objects
                .split(['\n', '{', ',', '-'])
                .filter_map(|part| part.split_once(':').map(|(name, _)| name.trim().to_owned())),
        );
    }
    // Every field of the table is in an example.
    for line in REFERENCE.lines().filter(|line| line.starts_with("| `")) {
        let names = line.split('|').nth(1).unwrap();
        for name in names.split('`').skip(1).step_by(2) {
            assert!(fields.contains(name), "{name} has no example");
        }
    }
}

#[test]
fn what_the_data_lacks_is_said_with_its_place() {
    let kv = json!({
        "secret/data/app": {"data": {"user": "canary", "nested": {"a": [1]}}},
        "secret/data/bin": {"data": {"B": "canary\u{0}"}},
    });
    for (objects, expected) in [
        (
            "- {objectName: f, secretPath: secret/data/app, jsonPointer: /nested/b/c}",
            "object \"f\": jsonPointer \"/nested/b/c\" leads to nothing at the secret path secret/data/app; \
             \"/nested\" has the keys \"a\"",
        ),
        (
            "- {objectName: f, secretPath: secret/data/app, jsonPointer: /nested/a/01}",
            "object \"f\": jsonPointer \"/nested/a/01\" leads to nothing at the secret path secret/data/app; \
             \"/nested/a\" has no keys",
        ),
        (
            "- as: app\n  secretPath: secret/data/app\n- objectName: f\n  template: |\n    first\n    \
             x {{ .app.pasword }}",
            "object \"f\" (line 6, column 10): template: there is no key \"pasword\"; for a key \
             that may be absent use hasKey or dig (.app has the keys \"nested\", \"user\")",
        ),
        ("- {objectName: f, secretPath: secret/data/app, format: pem-bundle}", "object \"f\": cannot read"),
        (
            "- {objectName: f, secretPath: secret/data/bin, format: env}",
            "object \"f\": cannot write as env: the value of key \"B\" is binary; write it to a file of its own",
        ),
        (
            "- {objectName: f, template: '{{ repeat 5000000 \"x\" }}'}",
            "object \"f\" (line 1, column 33): template: the file or a value would be too large",
        ),
        (
            "- {objectName: f, secretPath: secret/data/app, format: jks, passwordKey: x}",
            "object \"f\": the keystore's password: there is no text at key \"x\"; secret/data/app has the keys \
             \"nested\", \"user\"",
        ),
        (
            "- {objectName: d, secretPath: secret/data/app, extract: {rename: [{from: '.*', to: x}]}}",
            "object \"d\" and object \"d\" both write the file \"d/x\"; rename or exclude one",
        ),
        (
            "- {objectName: d, secretPath: secret/data/app, extract: {}}\n\
             - {objectName: d/user, secretPath: secret/data/app, secretKey: user}",
            "object \"d\" and object \"d/user\" both write the file \"d/user\"; rename or exclude one",
        ),
        (
            "- {objectName: d, secretPath: secret/data/app, extract: {}}\n\
             - {objectName: d/user/x, secretPath: secret/data/app, secretKey: user}",
            "object \"d\" writes \"d/user\" as a file, and object \"d/user/x\" writes below it",
        ),
        (
            "- {objectName: d, secretPath: secret/data/app, extract: {rename: [{from: user, to: ../../x}]}}",
            "object \"d\": key \"user\" cannot be extracted: the path \"d/../../x\" has an element \"..\", which would \
             leave the volume",
        ),
    ] {
        let text = error(objects, kv.clone());
        assert!(text.starts_with(expected), "{text}\n{expected}");
    }
    let loops =
        "- objectName: f\n  template: '{{ range until 100000 }}{{ range until 100000 }}x{{ end }}{{ end }}'";
    let ended = error(loops, json!({}));
    assert!(ended.starts_with("object \"f\" (line 2, column "), "{ended}");
    assert!(ended.ends_with("): template: too many rounds of range; does it end?"), "{ended}");
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_read() {
    for (objects, line, expected) in [
        (
            "- objectName: f\n  template: |\n    one\n    {{ .a | toJsn }}",
            4,
            "object \"f\" (line 4, column 13): template: there is no function toJsn; did you mean toJSON?",
        ),
        ("- objectName: f\n  template: '{{ if }}'", 2, "object \"f\" (line 2, column 20): template: "),
        (
            "- objectName: f\n  template: '{{ with secret .db.path }}{{ end }}'",
            2,
            "object \"f\" (line 2, column 29): template: the path and arguments of secret must be constants",
        ),
        (
            "- objectName: f\n  template: '{{ secret \"a/../b\" }}'",
            2,
            "object \"f\" (line 2, column 17): template: the path \"a/../b\" ",
        ),
        (
            "- objectName: f\n  template: x\n  secretPath: a/b",
            2,
            "object \"f\" (line 2): secretPath: has no meaning",
        ),
        ("- {as: x, secretPath: a/b}", 0, "parameter objects: has only entries with \"as\""),
        (
            "- {as: pod, secretPath: a/b}\n- {objectName: f, secretPath: a/b}",
            1,
            "object \"pod\" (line 1): as: the name",
        ),
        (
            "- {as: a b, secretPath: a/b}\n- {objectName: f, secretPath: a/b}",
            1,
            "object \"a b\" (line 1): as: is not",
        ),
        (
            "- {objectName: f, secretPath: a/b, secretKey: k, format: json}",
            1,
            "object \"f\" (line 1): format: and secretKey",
        ),
        (
            "- {objectName: f, secretPath: a/b, format: jsn}",
            1,
            "object \"f\" (line 1): format: \"jsn\" is not one of",
        ),
        (
            "- {objectName: f, secretPath: a/b, format: jks}",
            1,
            "object \"f\" (line 1): format: a keystore needs",
        ),
        (
            "- {objectName: f, secretPath: a/b, format: jks, passwordFrom: pas}\n- {as: pass, secretPath: a/b}",
            1,
            "object \"f\" (line 1): passwordFrom: no entry has \"as: pas\", did you mean pass?",
        ),
        (
            "- {objectName: f, secretPath: a/b, jsonPointer: a}",
            1,
            "object \"f\" (line 1): jsonPointer: is no JSON",
        ),
        (
            "- {objectName: f, secretPath: a/b, jsonPointer: /a~2}",
            1,
            "object \"f\" (line 1): jsonPointer: is no JSON",
        ),
        (
            "- {objectName: f, secretPath: a/b, extract: {rename: [{from: '(', to: a}]}}",
            1,
            "object \"f\" (line 1): extract",
        ),
        (
            "- {as: x, secretPath: a/b}\n- {as: x, secretPath: a/c}\n- {objectName: f, secretPath: a/b}",
            2,
            "object \"x\" (line 2): as",
        ),
    ] {
        let (at, text) = refused(objects);
        assert!(text.starts_with(expected), "{text}\n{expected}");
        assert_eq!(at.unwrap_or_default(), line, "{text}");
    }
}

/// What consul-template's users write becomes requests like any other.
#[test]
fn secret_calls_are_requests() {
    let objects = "- {objectName: raw, secretPath: kv/app, secretKey: a, optional: true}\n\
        - {objectName: pki, secretPath: pki/issue/web, method: PUT, secretArgs: {common_name: x, ttl: 1h}}\n\
        - objectName: f\n  template: |\n    \
        {{ with secret \"kv/app\" }}{{ .Data.a }}{{ end }}\n    \
        {{ with secret \"pki/issue/web\" \"ttl=1h\" \"common_name=x\" }}{{ .Data.certificate }}{{ end }}\n    \
        {{ with secret (printf \"kv/data/%s?version=2\" .pod.namespace) }}{{ .Data.a }}{{ end }}\n";
    let spec = spec(objects);
    let shown: Vec<_> = spec
        .objects
        .iter()
        .flat_map(Object::requests)
        .map(|it| {
            (
                it.method.as_str(),
                it.path.as_str(),
                it.versioned.as_ref().map(|path| path.as_str()),
                it.optional,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("GET", "kv/app", None, false),
            ("PUT", "pki/issue/web", None, false),
            ("GET", "kv/app", Some("kv/data/app"), false),
            ("PUT", "pki/issue/web", None, false),
            ("GET", "kv/data/prod", None, false),
        ]
    );
    assert_eq!(spec.requests().len(), 3, "equal calls and objects share a request");
    assert!(spec.is_costly());
    let back: VolumeSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(back, spec, "the journal gives back what it took");
}

/// Versions move when and only when the content does, absence included.
#[test]
fn versions_tell_absence_from_emptiness() {
    let objects = "- {objectName: f, secretPath: kv/a, secretKey: k, optional: true}";
    let of = |value: Value| with_data(objects, &data(value)).unwrap();
    let (absent, keyless, empty) =
        (of(json!({"kv/a": null})), of(json!({"kv/a": {"x": 1}})), of(json!({"kv/a": {"k": ""}})));
    assert!(absent.payload.files.is_empty() && keyless.payload.files.is_empty());
    assert_eq!(empty.payload.files.len(), 1);
    assert_eq!(absent.versions, keyless.versions);
    assert_ne!(absent.versions, empty.versions);

    let folder = "- {objectName: d, secretPath: kv/a, extract: {}}";
    let of = |value: Value| with_data(folder, &data(json!({ "kv/a": value }))).unwrap().versions;
    assert_eq!(of(json!({"a": "b", "c": "d"})), of(json!({"c": "d", "a": "b"})));
    assert_ne!(of(json!({"a": "bc"})), of(json!({"ab": "c"})));
}

#[test]
fn key_and_certificate_of_one_answer_belong_together_or_nothing_is_written() {
    let issue = || {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["web".into()]).unwrap().self_signed(&key).unwrap();
        (key.serialize_pem(), certificate.pem())
    };
    let ((key, certificate), (_, other)) = (issue(), issue());
    // Not even where the two go into files of their own.
    let objects = "- {objectName: k, secretPath: kv/tls, secretKey: private_key}\n\
                   - {objectName: c, secretPath: kv/tls, secretKey: certificate}";
    let with = |key: &str, certificate: &str| {
        with_data(objects, &data(json!({"kv/tls": {"private_key": key, "certificate": certificate}})))
    };
    assert!(with(&key, &certificate).is_ok());
    assert!(with(&key, &format!("{other}{certificate}")).is_ok(), "a chain in another order");
    assert!(with("not PEM", &other).is_ok(), "what is no PEM is the application's own matter");
    let text = with(&key, &other).unwrap_err().to_string();
    assert!(text.starts_with("object \"k\": kv/tls: the private key does not match"), "{text}");
}

/// What a secret holds is data: never a template, and no name of an input.
#[test]
fn contents_are_never_evaluated_again() {
    let objects = "- {as: ., secretPath: kv/a}\n- {objectName: f, template: '{{ .a }} {{ .pod.name }}'}";
    let hostile = json!({"kv/a": {"a": "{{ .b }}{{ fail \"x\" }}", "b": "no", "pod": {"name": "other"}}});
    let rendered = with_data(objects, &data(hostile)).unwrap();
    assert_eq!(file(&rendered, "f"), b"{{ .b }}{{ fail \"x\" }} web-0");
}
