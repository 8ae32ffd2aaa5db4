//! What each fuzz target does with its input: it must neither panic nor hang, and what it accepts must hold what
//! the rest of the program relies on. Driven by libFuzzer in `fuzz_targets/`, and by the tests of the project.

#![allow(dead_code, reason = "a fuzz target uses one of them, the tests all")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
    pin::Pin,
    task::{Context as Task, Poll, Waker},
};

use leasehold::{
    policy::{Baseline, Policy, address_key},
    provider::authority::AuthorityShim,
    spec::{ApiPath, FileMode, ObjectPath, PodIdentity, ProviderName, TlsSpec, parameters},
    template::{Context, Limits, PodContext, Template},
};
use tokio::io::{AsyncRead, ReadBuf};

type Target = fn(&[u8]);

/// Name and function of every target.
pub(crate) const ALL: [(&str, Target); 8] = [
    ("parameters", |data| text(data, parameters_of_a_mount)),
    ("objects", |data| text(data, objects)),
    ("object_path", |data| text(data, object_path)),
    ("api_path", |data| text(data, api_path)),
    ("policy", |data| text(data, policy)),
    ("manifests", |data| text(data, manifests)),
    ("template", |data| text(data, template)),
    ("authority", authority),
];

fn text(data: &[u8], target: fn(&str)) {
    if let Ok(text) = std::str::from_utf8(data) {
        target(text);
    }
}

fn defaults() -> parameters::Defaults {
    parameters::Defaults {
        address: Some("https://vault:8200".into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: TlsSpec::default(),
    }
}

/// Attributes of a Mount as `key=value` records, for each provider name: parsing never panics, and what it
/// accepts is within the limits that everything after it relies on.
pub(crate) fn parameters_of_a_mount(text: &str) {
    let attributes: BTreeMap<String, String> = text
        .split('\u{1e}')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let policy =
        Policy::baseline(Baseline { addresses: vec!["https://vault:8200".into()], ..Baseline::default() });
    let pod =
        PodIdentity { namespace: "n".into(), name: "p".into(), uid: "u".into(), service_account: "s".into() };
    for provider in [ProviderName::Vault, ProviderName::Openbao, ProviderName::Leasehold] {
        match parameters::parse(provider, &attributes, FileMode::DEFAULT, &defaults()) {
            Ok(parsed) => {
                assert!(!parsed.spec.objects.is_empty());
                assert!(parsed.spec.objects.len() <= parameters::MAX_OBJECTS);
                if let Err(refusal) = policy.check(provider, &pod, &parsed.spec) {
                    assert!(!refusal.to_string().contains('\n'));
                }
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        }
    }
}

/// The `objects` parameter: YAML from a tenant.
pub(crate) fn objects(text: &str) {
    let attributes =
        BTreeMap::from([("roleName".to_owned(), "r".to_owned()), ("objects".to_owned(), text.to_owned())]);
    let parsed = parameters::parse(ProviderName::Vault, &attributes, FileMode::DEFAULT, &defaults());
    let Ok(parsed) = parsed else { return };
    let files = || parsed.spec.objects.iter().filter(|object| object.file().is_some());
    let names: BTreeSet<_> = files().map(|object| object.name()).collect();
    assert_eq!(names.len(), files().count(), "names are unique");
    let names: BTreeSet<_> = files().filter(|it| !it.is_folder()).map(|object| object.name()).collect();
    for name in &names {
        assert!(!name.match_indices('/').any(|(end, _)| names.contains(&name[..end])), "no file is a folder");
    }
}

/// No file's path leaves the volume or takes a name of the atomic writer's.
pub(crate) fn object_path(text: &str) {
    if let Ok(path) = ObjectPath::parse(text) {
        assert_eq!(path.as_str(), text, "accepted as it is or not at all");
        assert!(Path::new(text).components().all(|part| matches!(part, Component::Normal(_))));
        assert!(!text.starts_with("..") && !text.contains('\0'));
    }
}

/// What is accepted is canonical, and is its own canonical form.
pub(crate) fn api_path(text: &str) {
    if let Ok(path) = ApiPath::parse(text) {
        let path = path.as_str();
        assert!(text.ends_with(path), "only a prefix is stripped");
        assert!(path.split('/').all(|segment| !matches!(segment, "" | "." | "..")));
        assert!(path.bytes().all(|byte| (b' '..=b'~').contains(&byte) && !b"%#?\\".contains(&byte)));
        assert_eq!(ApiPath::parse_mount(path).expect("canonical").as_str(), path);
    }
}

/// A policy file, and an address to compare: neither panics, and an address's key is its own key.
pub(crate) fn policy(text: &str) {
    let _ = Policy::from_yaml(text, Baseline::default());
    if let Ok(key) = address_key(text) {
        assert_eq!(address_key(&key), Ok(key.clone()));
        assert!(
            !key.contains(['@', '?', '#', '\\', '%']) && !key.bytes().any(|byte| byte.is_ascii_control())
        );
    }
}

/// Files of manifests for the offline check: every line it names is in the file.
pub(crate) fn manifests(text: &str) {
    let report = leasehold::check::check_texts(&[("m".to_owned(), text.to_owned())]);
    // A carriage return alone ends a line of YAML too.
    let lines = text.matches(['\n', '\r']).count() as u64;
    assert!(report.findings.iter().all(|finding| finding.line >= 1 && finding.line <= lines + 2));
}

/// Never in a template, so that what an error quotes cannot have come from there.
const CANARY: &str = "canary\u{2603}";

/// A template: it is parsed, asked for its secrets, and executed within its budgets. Rendering twice gives the
/// same, and no error shows a value.
pub(crate) fn template(text: &str) {
    let Ok(template) = Template::parse(text, None) else { return };
    let pod = PodContext { name: "web-0".into(), namespace: "prod".into(), ..PodContext::default() };
    let _ = template.secret_calls(&pod);
    let db = serde_json::json!({
        "user": CANARY, "port": 5432, "ratio": 1.5, "on": true, "none": null,
        "list": [1, "two", {"three": 3}, [4]], "nested": {"a": {"b": CANARY}},
    });
    let answer = serde_json::json!({"data": {"data": {"password": CANARY}, "metadata": {"version": 1}}});
    let mut context = Context::default();
    context.pod = pod;
    context.insert_json("db", &db);
    context.insert_bytes("raw", b"\xff\x00\xfe");
    let limits = Limits { range_iterations: 1000, output_bytes: 64 << 10, work_bytes: 1 << 20 };
    let render = || template.render(&context, &|_| Some(&answer), &limits);
    match (render(), render()) {
        (Ok(first), Ok(second)) => {
            assert!(first.expose().len() <= limits.output_bytes);
            let random = [
                "rand",
                "uuid",
                "gen",
                "derive",
                "bcrypt",
                "htpasswd",
                "encrypt",
                "shuffle",
                "now",
                "ago",
                "pkcs12",
                "Pkcs12",
                "PKCS12",
                "timestamp",
            ];
            let is_random = random.iter().any(|name| text.contains(name));
            assert!(is_random || first.expose() == second.expose(), "rendering is deterministic");
        }
        (Err(error), _) | (_, Err(error)) => {
            let error = error.to_string();
            assert!(!error.contains(CANARY) && !error.contains('\n'), "{error}");
        }
    }
}

/// Bytes of a driver that may be older than 1.6.0: as many come out as went in, however they are cut, and what
/// came out once comes out unchanged.
pub(crate) fn authority(data: &[u8]) {
    let Some((cut, rest)) = data.split_first() else { return };
    // Most of what is not a connection ends at once: begin as one does.
    let mut stream = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    if cut & 1 == 0 {
        stream.clear();
    }
    stream.extend_from_slice(rest);
    let whole = through(&stream, usize::MAX);
    assert_eq!(whole.len(), stream.len());
    assert_eq!(through(&stream, usize::from(cut >> 1) + 1), whole, "cuts change nothing");
    assert_eq!(through(&whole, usize::MAX), whole, "what is valid stays");
}

/// A peer that sends so many bytes at once.
struct Chunks<'a>(&'a [u8], usize);

impl AsyncRead for Chunks<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Task<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let size = self.1.min(self.0.len()).min(buf.remaining());
        let (now, later) = self.0.split_at(size);
        buf.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

fn through(stream: &[u8], chunk: usize) -> Vec<u8> {
    let mut shim = AuthorityShim::new(Chunks(stream, chunk), true);
    let mut task = Task::from_waker(Waker::noop());
    let mut all = Vec::with_capacity(stream.len());
    loop {
        let mut bytes = [0; 4096];
        let mut buf = ReadBuf::new(&mut bytes);
        match Pin::new(&mut shim).poll_read(&mut task, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return all,
            Poll::Ready(Ok(())) => all.extend_from_slice(buf.filled()),
            other => panic!("a peer that always answers: {other:?}"),
        }
    }
}
