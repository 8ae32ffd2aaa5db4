//! `leasehold check`: offline.

use std::{fs, io::Write as _, path::Path, process::Stdio};

use super::{leasehold, support::temp_dir, told};

const GOOD: &str = r#"apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: db, namespace: shop}
spec:
  provider: vault
  parameters:
    roleName: web
    objects: |
      - objectName: password
        secretPath: secret/data/shop/db
        secretKey: password
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: pay, namespace: pay}
spec:
  provider: openbao
  parameters:
    roleName: pay
    baoAddress: https://other:8200
    objects: |
      - {objectName: tls, secretPath: pki/issue/pay, method: PUT, secretArgs: {common_name: pay}}
"#;

const BAD: &str = r#"apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: bad}
spec:
  provider: vault
  parameters:
    vaultAdress: https://x
    objects: |
      - objectName: ../up
        secretPath: secret/data/a
"#;

fn check(arguments: &[&str], stdin: &str) -> (i32, String, String) {
    let mut command = leasehold(&["check"]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    told(child.wait_with_output().unwrap())
}

fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn every_problem_has_its_line_and_errors_fail() {
    let dir = temp_dir();
    let (good, bad) = (file(dir.path(), "good.yaml", GOOD), file(dir.path(), "bad.yaml", BAD));
    let problems = |file: &str| {
        format!(
            "{file}:6: error: missing 'roleName' in SecretProviderClass definition\n\
             {file}:7: warning: unknown parameter \"vaultAdress\" is ignored, did you mean vaultAddress?\n\
             {file}:9: error: object \"../up\" (line 1): objectName: has an element \"..\", which would leave the volume\n"
        )
    };
    let counted = |classes, errors, warnings| {
        format!(
            "{classes} SecretProviderClass(es) checked, {errors} error(s), {warnings} warning(s), 0 other \
             document(s) skipped\n"
        )
    };
    let nothing = String::new;
    let warning = BAD.replace("provider: vault", "provider: openbao").replace("../up", "up");
    let warning =
        warning.replace("    vaultAdress: https://x", "    roleName: r\n    vaultRoleName: r\n    x: y");
    for (arguments, stdin, expected) in [
        (vec![good.as_str()], "", (0, counted(2, 0, 0), nothing())),
        (vec![&bad], "", (1, problems(&bad) + &counted(1, 2, 1), nothing())),
        (vec!["-"], BAD, (1, problems("-") + &counted(1, 2, 1), nothing())),
        (
            vec!["-"],
            &warning,
            (0, format!("-:9: warning: unknown parameter \"x\" is ignored\n{}", counted(1, 0, 1)), nothing()),
        ),
        (vec![dir.path().to_str().unwrap()], "", (1, problems(&bad) + &counted(3, 2, 1), nothing())),
    ] {
        assert_eq!(check(&arguments, stdin), expected, "{arguments:?}");
    }
    let (code, out, _) = check(&["/nowhere.yaml"], "");
    assert!(code == 1 && out.starts_with("/nowhere.yaml:1: error: cannot read it: "), "{out}");
    let (code, _, error) = check(&[], "");
    assert!(code == 64 && error.contains("<FILE>"), "{error}");
}

#[test]
fn suggested_policy_is_accepted_and_a_narrower_one_names_what_it_refuses() {
    let dir = temp_dir();
    let manifests = dir.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let good = file(&manifests, "good.yaml", GOOD);
    let (code, policy, error) = check(&["--suggest-policy", manifests.to_str().unwrap()], "");
    assert_eq!((code, error.as_str()), (0, ""), "{policy}");
    let path = file(dir.path(), "policy.yaml", &policy);
    let (code, out, error) = told(
        leasehold(&["provider", "--print-config", "--policy", &path, "--vault-addr=http://v"])
            .output()
            .unwrap(),
    );
    assert!(code == 0 && out.contains(&format!("policy: {path}\n")), "{error}");
    let (code, out, _) = check(&[&good, "--policy", &path], "");
    assert_eq!(code, 0, "the policy for them refuses none of them: {out}");

    // Without the writes, and without one of the namespaces.
    let narrower = file(dir.path(), "narrower.yaml", &policy.replace("    writes: allow\n", ""));
    let (code, out, _) = check(&[&good, "--policy", &narrower], "");
    let expected = format!(
        "{good}:18: error: the policy refuses SecretProviderClass pay in namespace pay for ServiceAccount \
         default: rule \"pay at https://other:8200\" of the node's policy refuses "
    );
    assert!(code == 1 && out.starts_with(&expected) && out.lines().count() == 2, "{out}");
    let other = GOOD.replace("namespace: shop", "namespace: stop");
    let (code, out, _) = check(&["-", "--policy", &path, "--service-account=web"], &other);
    assert!(
        code == 1 && out.contains("-:6: error: the policy refuses SecretProviderClass db in namespace stop for ServiceAccount web: no rule"),
        "{out}"
    );

    // Errors do not spoil the policy on standard output.
    file(&manifests, "bad.yaml", BAD);
    let (code, out, error) = check(&["--suggest-policy", manifests.to_str().unwrap()], "");
    assert!(code == 1 && out.contains("left out") && error.contains("bad.yaml:6: error"), "{out}{error}");
    let (code, _, error) = check(&["-", "--policy=/nowhere"], "");
    assert!(code == 64 && error.contains("cannot read the policy /nowhere"), "{error}");
}
