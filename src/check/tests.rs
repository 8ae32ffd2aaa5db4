#![allow(clippy::unwrap_used)] // a test fails by panicking

use super::*;
use crate::{
    policy::{Baseline, Policy},
    spec::{PodIdentity, ProviderName},
};

const MANIFEST: &str = r#"apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: one
  namespace: pay
spec:
  provider: vault
  parameters:
    roleName: app
    vaultSkipTLSVerify: maybe
    vaultAdress: x
    objects: |

      # a comment
      - objectName: ../up
        secretPath: secret//a
        method: LIST
      - objectName: ok
        secretPath: secret/data/a
        secretkey: k
---
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
---
apiVersion: secrets-store.csi.x-k8s.io/v1alpha1
kind: SecretProviderClass
metadata:
  name: two
spec:
  provider: openbao
  parameters:
    objects: "- {objectName: a, secretPath: b}"
    baoSkipTLSVerify: true
--- # a broken one hides nothing
a: [
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
spec: {provider: azure, parameters: {}}
---
kind: List
items:
- apiVersion: secrets-store.csi.x-k8s.io/v1
  kind: SecretProviderClass
  spec:
    provider: leasehold
"#;

#[test]
fn every_problem_is_found_on_its_line() {
    let report = check_texts(&[("m.yaml".into(), MANIFEST.into())]);
    assert_eq!((report.classes, report.skipped), (3, 2));
    let mut out = Vec::new();
    report.write(&mut out).unwrap();
    let expected = r#"m.yaml:10: error: parameter vaultSkipTLSVerify: "maybe" is not a boolean, write "true" or "false"
m.yaml:11: warning: unknown parameter "vaultAdress" is ignored, did you mean vaultAddress?
m.yaml:15: error: object "../up" (line 3): objectName: has an element "..", which would leave the volume
m.yaml:16: error: object "../up" (line 4): secretPath: has an empty segment ("//")
m.yaml:17: error: object "../up" (line 5): method: "LIST" does not read a secret, use GET, PUT or POST
m.yaml:20: warning: object "ok" (line 8): unknown field "secretkey" is ignored, did you mean secretKey?
m.yaml:32: error: missing 'roleName' in SecretProviderClass definition
m.yaml:34: error: parameter baoSkipTLSVerify is a boolean, and the API server takes text only: quote it
m.yaml:36: error: not valid YAML: "#;
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with(expected), "{text}");
    let rest: Vec<_> = text.lines().skip(9).collect();
    assert_eq!(
        rest,
        [
            "m.yaml:44: error: missing 'roleName' in SecretProviderClass definition",
            "m.yaml:44: error: no secrets configured - the provider will not read any secret material",
            "3 SecretProviderClass(es) checked, 9 error(s), 2 warning(s), 2 other document(s) skipped",
        ]
    );
}

#[test]
fn folders_are_read_and_what_cannot_be_read_is_said() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("sub/loop")).unwrap();
    fs::write(dir.path().join("sub/b.yml"), MANIFEST).unwrap();
    fs::write(dir.path().join("a.yaml"), "kind: Pod\n").unwrap();
    fs::write(dir.path().join("README.md"), "no: [manifest").unwrap();
    fs::write(dir.path().join("c.yaml"), b"\xff").unwrap();
    let missing = dir.path().join("missing");
    let report = check_files(&[dir.path().to_owned(), missing], &Judge::default());
    assert!(report.has_errors());
    assert_eq!((report.classes, report.skipped), (3, 3));
    let unread: Vec<_> =
        report.findings.iter().filter(|it| it.message.starts_with("cannot read it")).collect();
    assert_eq!(unread.len(), 2, "{unread:?}");
}

const GOOD: &str = r#"apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: a, namespace: pay}
spec:
  provider: vault
  parameters:
    roleName: pay
    vaultNamespace: team
    audience: special
    objects: |
      - {objectName: a, secretPath: secret/data/pay/a}
      - {objectName: c, secretPath: pki/issue/pay, method: PUT, secretArgs: {common_name: x}}
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: b, namespace: pay}
spec:
  provider: openbao
  parameters:
    roleName: 'ro${le}**'
    baoAddress: https://other:8200
    baoCACertPath: /tls/team/ca.pem
    baoSkipTLSVerify: "1"
    objects: "[{objectName: a, secretPath: secret/data/pay/b}]"
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: c}
spec:
  provider: leasehold
  parameters:
    roleName: r
    objects: "[{objectName: a, secretPath: secret/data/pay/b}]"
"#;

#[test]
fn the_suggested_policy_allows_the_classes_and_no_neighbour() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.yaml");
    fs::write(&path, GOOD).unwrap();
    let mut judge = Judge::default();
    for defaults in judge.defaults.values_mut() {
        defaults.address = Some("https://vault:8200".into());
    }
    let mut out = Vec::new();
    let report = suggest_policy(&[dir.path().to_owned()], &judge, &mut out).unwrap();
    assert_eq!((report.classes, report.findings.len()), (3, 0), "{report:?}");
    let text = String::from_utf8(out).unwrap();
    let baseline = Baseline { addresses: vec!["https://vault:8200".into()], ..Baseline::default() };
    let policy = Policy::from_yaml(&text, baseline).unwrap();
    let pod = |namespace: &str| PodIdentity {
        namespace: namespace.into(),
        name: "p".into(),
        uid: "u".into(),
        service_account: "any".into(),
    };
    let mut ignored = Report::default();
    let specs: Vec<(ProviderName, String, VolumeSpec)> = manifest::classes("m.yaml", GOOD, &mut ignored)
        .into_iter()
        .map(|class| {
            let spec = examine(&class, &judge, &mut Report::default()).unwrap();
            (class.provider, class.namespace.unwrap_or_else(|| "default".into()), spec)
        })
        .collect();
    for (provider, namespace, spec) in &specs {
        assert_eq!(policy.check(*provider, &pod(namespace), spec), Ok(()), "{text}");
        assert!(policy.check(*provider, &pod("neighbour"), spec).is_err());
        let neighbours: [fn(&mut VolumeSpec); 6] = [
            |spec| spec.connection.address = "https://evil:8200".into(),
            |spec| spec.connection.namespace = "neighbour".into(),
            |spec| spec.login.mount = crate::spec::ApiPath::parse("neighbour").unwrap(),
            |spec| spec.login.role = "neighbour".into(),
            |spec| spec.login.audience = "neighbour".into(),
            |spec| request(spec).path = crate::spec::ApiPath::parse("secret/data/pay/z").unwrap(),
        ];
        for change in neighbours {
            let mut neighbour = spec.clone();
            change(&mut neighbour);
            assert!(policy.check(*provider, &pod(namespace), &neighbour).is_err(), "{neighbour:?}\n{text}");
        }
    }
    // Writes and skip-verify are for those that need them only.
    let mut writes = specs[2].2.clone();
    request(&mut writes).method = crate::spec::object::Method::Put;
    assert!(policy.check(ProviderName::Leasehold, &pod("default"), &writes).is_err());
    let mut skips = specs[0].2.clone();
    skips.connection.tls.skip_verify = true;
    assert!(policy.check(ProviderName::Vault, &pod("pay"), &skips).is_err());
    assert!(text.contains("put the right one here") && text.contains("name those that use them"), "{text}");
}

fn request(spec: &mut VolumeSpec) -> &mut crate::spec::SecretRequest {
    spec.objects[0].requests_mut().next().unwrap()
}

#[test]
fn mistakes_in_templates_are_on_their_line_of_the_file() {
    let manifest = "apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: one, namespace: pay}
spec:
  provider: vault
  parameters:
    roleName: app
    objects: |
      - as: db
        secretPath: database/creds/app
      - objectName: app.env
        template: |
          A={{ .db.username }}
          B={{ .db.password | urlquer }}
";
    let why = "there is no function urlquer; did you mean urlquery?";
    let shown = |manifest: &str| {
        let report = check_texts(&[("m.yaml".into(), manifest.to_owned())]);
        let mut out = Vec::new();
        report.write(&mut out).unwrap();
        String::from_utf8(out).unwrap().lines().next().unwrap().to_owned()
    };
    let place = "object \"app.env\" (line 6, column 25)";
    assert_eq!(shown(manifest), format!("m.yaml:14:31: error: {place}: template: {why}"));

    // The same as other tools write it: each place is the one that the character has in the file.
    let objects = &manifest[manifest.find("      - as").unwrap()..];
    let objects: String = objects.lines().map(|line| format!("{}\n", &line[6..])).collect();
    let head = &manifest[..manifest.find("    objects:").unwrap()];
    let json = serde_json::json!({
        "apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClass",
        "spec": {"provider": "vault", "parameters": {"roleName": "app", "objects": objects}},
    })
    .to_string();
    let column = json.find("urlquer").unwrap() + 1;
    assert_eq!(shown(&json), format!("m.yaml:1:{column}: error: {place}: template: {why}"));
    // Folding takes the indentation of lines away.
    let single = format!(
        "{head}    objects: '[{{objectName: app.env,\n\n      template: \"it''s {{{{ 1 | urlquer }}}}\"}}]'\n"
    );
    assert_eq!(
        shown(&single),
        format!("m.yaml:10:31: error: object \"app.env\" (line 2, column 24): template: {why}")
    );
    // Within a folded text that is itself within the text of a parameter.
    let folded = manifest.replace("template: |", "template: >-");
    assert_eq!(shown(&folded), format!("m.yaml:14:31: error: {place}: template: {why}"));
    let quoted = manifest
        .replace("template: |\n          A=", "template: \"\\x41=")
        .replace("urlquer }}", "urlquer }}\"")
        .replace("          B=", "\n          B=");
    assert_eq!(shown(&quoted), format!("m.yaml:14:31: error: {place}: template: {why}"));
    let good = manifest.replace("urlquer ", "urlquery ");
    assert_eq!(check_texts(&[("m.yaml".into(), good)]).findings, []);
}
