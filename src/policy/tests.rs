#![allow(clippy::unwrap_used)] // a test fails by panicking

use super::*;
use crate::spec::{FileMode, TlsSpec, parameters};

const OWN: &str = "https://vault:8200";

fn pod(namespace: &str, service_account: &str) -> PodIdentity {
    PodIdentity {
        namespace: namespace.into(),
        name: "pod".into(),
        uid: "uid".into(),
        service_account: service_account.into(),
    }
}

fn baseline() -> Baseline {
    Baseline {
        addresses: vec![OWN.into(), "https://second:8200/".into()],
        tls_dirs: vec!["/etc/leasehold/tls".into()],
        own_tls: vec![TlsSpec {
            ca_cert: Some("/own/ca.pem".into()),
            client_cert: Some("/own/c.pem".into()),
            client_key: Some("/own/k.pem".into()),
            ..TlsSpec::default()
        }],
        audiences: vec!["extra".into()],
    }
}

fn spec(pairs: &[(&str, &str)]) -> VolumeSpec {
    let base = [("roleName", "app"), ("objects", "- {objectName: a, secretPath: secret/data/a}")];
    let attributes = base.iter().chain(pairs).map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
    let defaults = parameters::Defaults {
        address: Some(OWN.into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: TlsSpec { ca_cert: Some("/own/ca.pem".into()), ..TlsSpec::default() },
    };
    parameters::parse(ProviderName::Vault, &attributes, FileMode::DEFAULT, &defaults).unwrap().spec
}

fn check(policy: &Policy, pod: &PodIdentity, pairs: &[(&str, &str)]) -> Result<(), String> {
    policy.check(ProviderName::Vault, pod, &spec(pairs)).map_err(|refusal| refusal.to_string())
}

fn file(text: &str) -> Policy {
    Policy::from_yaml(text, baseline()).unwrap()
}

fn object(path: &str, more: &str) -> String {
    format!("- {{objectName: a, secretPath: {path}{more}}}")
}

#[test]
fn the_baseline_leaves_to_vault_what_vault_decides() {
    let (policy, pod) = (Policy::baseline(baseline()), pod("any", "any"));
    let write = object("pki/issue/app", ", method: PUT, secretArgs: {common_name: x}");
    for pairs in [
        &[][..],
        &[("vaultAddress", "HTTPS://VAULT:8200/")],
        &[("vaultAddress", "https://second:8200")],
        &[("vaultNamespace", "team-b"), ("vaultAuthMountPath", "x/y"), ("roleName", "any")],
        &[("objects", &write)],
        &[("audience", "extra")],
        &[("vaultCACertPath", "/etc/leasehold/tls/a/ca.pem")],
        &[("vaultCADirectory", "/etc/leasehold/tls/")],
        &[("vaultTLSClientCertPath", "/own/c.pem"), ("vaultTLSClientKeyPath", "/own/k.pem")],
        &[("vaultSkipTLSVerify", "false")],
    ] {
        assert_eq!(check(&policy, &pod, pairs), Ok(()), "{pairs:?}");
    }
}

#[test]
fn skip_verify_denied() {
    let pairs = [("vaultSkipTLSVerify", "true")];
    let team = pod("team", "sa");
    let refused = check(&Policy::baseline(baseline()), &team, &pairs).unwrap_err();
    assert_eq!(
        refused,
        "the node refuses skipTLSVerify \"true\": the server must be verified; to see the smallest policy that \
         allows it: leasehold check --suggest-policy DIR"
    );
    assert!(check(&file("rules: [{namespaces: [team]}]"), &team, &pairs).is_err());
    let allowing = file("rules: [{namespaces: [team], skipTLSVerify: allow}]");
    assert_eq!(check(&allowing, &team, &pairs), Ok(()));
    assert!(check(&allowing, &pod("other", "sa"), &pairs).is_err());
    let mut own = baseline();
    own.own_tls.push(TlsSpec { skip_verify: true, ..TlsSpec::default() });
    assert_eq!(check(&Policy::baseline(own), &team, &pairs), Ok(()));
}

#[test]
fn audience_within_policy() {
    let with = |audience| [("audience", audience)];
    let (plain, team) = (Policy::baseline(baseline()), pod("team", "sa"));
    for audience in ["vault", "extra", ""] {
        assert_eq!(check(&plain, &team, &with(audience)), Ok(()));
    }
    // Another provider's default is not this one's.
    for audience in ["openbao", "https://kubernetes.default.svc", "Vault", "vault ", "*"] {
        let refused = check(&plain, &team, &with(audience)).unwrap_err();
        assert!(refused.contains("allowed: \"vault\", \"extra\""), "{refused}");
    }
    let listed = file("rules: [{namespaces: [team], audiences: ['https://${namespace}.example']}]");
    assert_eq!(check(&listed, &team, &with("https://team.example")), Ok(()));
    assert!(check(&listed, &team, &with("vault")).is_err());
}

#[test]
fn a_file_refuses_what_no_rule_allows() {
    let policy = file(
        "rules:
  - name: team
    namespaces: [team, 'team-*']
    serviceAccounts: [web, 'api-*']
    addresses: ['https://vault:8200']
    vaultNamespaces: [tenant]
    authMounts: [kubernetes]
    roles: ['${namespace}-*']
    paths: ['tenant/secret/data/${namespace}/**', 'tenant/database/creds/${serviceAccount}']
  - namespaces: [ops]
    vaultNamespaces: [root]
    paths: ['**']
    writes: allow
",
    );
    let base = [("vaultNamespace", "tenant"), ("roleName", "team-x")];
    let with = |pairs: &[(&'static str, &'static str)]| [&base[..], pairs].concat();
    let good = ("objects", "- {objectName: a, secretPath: secret/data/team/a/b}");
    let web = pod("team", "web");
    assert_eq!(check(&policy, &web, &with(&[good])), Ok(()));
    let lease = ("objects", "- {objectName: a, secretPath: database/creds/api-1}");
    assert_eq!(check(&policy, &pod("team", "api-1"), &with(&[lease])), Ok(()));
    for (pod, pairs, says) in [
        (
            pod("elsewhere", "web"),
            with(&[good]),
            "no rule of the node's policy is for ServiceAccount \"web\" of \
            namespace \"elsewhere\"",
        ),
        (pod("teams", "web"), with(&[good]), "no rule"),
        (pod("team", "other"), with(&[good]), "no rule"),
        (
            web.clone(),
            with(&[good, ("vaultAddress", "https://second:8200")]),
            "rule \"team\" of the node's policy \
            refuses address \"https://second:8200\": allowed: \"https://vault:8200\";",
        ),
        (web.clone(), with(&[good, ("vaultNamespace", "tenant/child")]), "refuses vaultNamespace"),
        (web.clone(), with(&[good, ("vaultNamespace", "")]), "refuses vaultNamespace \"\""),
        (web.clone(), with(&[good, ("vaultAuthMountPath", "other")]), "refuses authMount \"other\""),
        (
            web.clone(),
            with(&[good, ("roleName", "team")]),
            "refuses role \"team\": allowed: \"${namespace}-*\"",
        ),
        (
            pod("team-b", "web"),
            with(&[good, ("roleName", "team-b-x")]),
            "refuses path \
            \"tenant/secret/data/team/a/b\" of object \"a\"",
        ),
        (
            web.clone(),
            with(&[("objects", "- {objectName: a, secretPath: secret/data/teamx/a}")]),
            "refuses path",
        ),
        (
            web.clone(),
            with(&[("objects", "- {objectName: a, secretPath: secret/data/team}")]),
            "refuses path",
        ),
        (
            web.clone(),
            with(&[("objects", "- {objectName: a, secretPath: x/secret/data/team/a}")]),
            "refuses path",
        ),
        (
            web.clone(),
            with(&[("objects", "- {objectName: a, secretPath: secret/data/team/a, method: PUT}")]),
            "refuses write \"PUT tenant/secret/data/team/a\" of object \"a\": it has no \"writes: allow\"",
        ),
        (pod("ops", "x"), with(&[good]), "rule 2 of the node's policy refuses vaultNamespace \"tenant\""),
    ] {
        let refused = check(&policy, &pod, &pairs).unwrap_err();
        assert!(refused.contains(says), "{refused}\n{says}");
        assert!(refused.ends_with("leasehold check --suggest-policy DIR"), "{refused}");
    }
    let root = [("objects", "- {objectName: a, secretPath: tenant/pki/issue/x, method: POST}")];
    assert_eq!(check(&policy, &pod("ops", "x"), &root), Ok(()));
}

#[test]
fn a_namespace_in_the_path_is_a_namespace() {
    let policy = file("rules: [{namespaces: ['*'], paths: ['team-a/secret/**', 'secret/data/shared']}]");
    let pod = pod("x", "y");
    let reach = |namespace, path: &str| {
        check(&policy, &pod, &[("vaultNamespace", namespace), ("objects", &object(path, ""))]).is_ok()
    };
    assert!(reach("team-a", "secret/data/x"));
    assert!(reach("", "team-a/secret/data/x"));
    assert!(reach("", "/v1/team-a/secret/data/x"));
    assert!(reach("", "secret/data/shared"));
    assert!(!reach("team-b", "secret/data/x"));
    assert!(!reach("", "team-b/secret/data/x"));
    assert!(!reach("", "/v1/team-b/secret/data/x"));
    assert!(!reach("team-b", "team-a/secret/data/x"));
    assert!(!reach("team-a", "secret-2/data/x"));
}

#[test]
fn any_one_rule_may_allow_all_of_it_but_two_do_not_add_up() {
    let policy = file(
        "rules: [{namespaces: [n], roles: [a], paths: ['secret/data/a']}, {namespaces: [n], roles: [b], paths: \
         ['secret/data/b']}]",
    );
    let pod = pod("n", "s");
    let ask = |role, path: &str| check(&policy, &pod, &[("roleName", role), ("objects", &object(path, ""))]);
    assert_eq!((ask("a", "secret/data/a"), ask("b", "secret/data/b")), (Ok(()), Ok(())));
    // Named by the rule that allowed the role.
    assert!(ask("b", "secret/data/a").unwrap_err().starts_with("rule 2 of the node's policy refuses path"));
    assert!(ask("a", "secret/data/b").unwrap_err().starts_with("rule 1 of the node's policy refuses path"));
}

#[test]
fn tls_paths_stay_below_the_allowed_folders() {
    let policy = Policy::baseline(baseline());
    let pod = pod("n", "s");
    for path in [
        "/dev/zero",
        "/proc/self/environ",
        "/etc/leasehold/tls/../../passwd",
        "/etc/leasehold/tls-other/ca.pem",
        "/etc/leasehold",
        "etc/leasehold/tls/ca.pem",
        "./ca.pem",
        "~/ca.pem",
        "/own/k.pem",
        "/own/ca.pem/../k.pem",
        "/etc/leasehold/tls/a\0b",
    ] {
        assert!(check(&policy, &pod, &[("vaultCACertPath", path)]).is_err(), "{path:?}");
        assert!(check(&policy, &pod, &[("vaultCADirectory", path)]).is_err(), "{path:?}");
        let pair = [("vaultTLSClientCertPath", path), ("vaultTLSClientKeyPath", path)];
        assert!(check(&policy, &pod, &pair).is_err(), "{path:?}");
    }
    let listed = file("rules: [{namespaces: [n], tlsDirs: [/team]}]");
    assert_eq!(check(&listed, &pod, &[("vaultCACertPath", "/team/./ca.pem")]), Ok(()));
    assert!(check(&listed, &pod, &[("vaultCACertPath", "/etc/leasehold/tls/ca.pem")]).is_err());
}

#[test]
fn spc_change_revalidated() {
    // A republish asks again with the edited parameters: nothing is remembered from the first answer.
    let policy = file("rules: [{namespaces: [n], roles: [app]}]");
    let pod = pod("n", "s");
    assert_eq!(check(&policy, &pod, &[]), Ok(()));
    assert!(check(&policy, &pod, &[("vaultAddress", "https://evil.example")]).is_err());
    assert!(check(&policy, &pod, &[("roleName", "admin")]).is_err());
    assert_eq!(check(&policy, &pod, &[]), Ok(()));
}

#[test]
fn mistakes_in_a_file_name_the_line() {
    for (text, line, says) in [
        ("", 1, "expected a mapping"),
        ("rule: []", 1, "unknown field \"rule\", did you mean rules?"),
        ("{}", 1, "no field \"rules\""),
        ("rules: {}", 1, "rules is a mapping, expected a list"),
        ("rules:\n  - namespaces: [a]\n    path: [x]", 3, "unknown field \"path\", did you mean paths?"),
        ("rules:\n  - namespaces: [a]\n    paths: x", 3, "paths is text, expected a list"),
        ("rules:\n  - namespaces: [a]\n    paths: [/x]", 3, "without v1/"),
        ("rules:\n  - namespaces: [a]\n    paths: [v1/x]", 3, "without v1/"),
        ("rules:\n  - namespaces: [a]\n    paths: ['']", 3, "without v1/"),
        ("rules:\n  - namespaces: [a]\n    paths:\n      -", 4, "paths has nothing"),
        ("rules:\n  - namespaces: [a]\n    paths: [[x]]", 3, "paths has a list"),
        ("rules:\n  - namespaces: [a]\n    roles: ['${pod}']", 3, "only ${namespace}"),
        ("rules:\n  - namespaces: ['${namespace}']", 2, "cannot stand here"),
        ("rules:\n  - namespaces: ['']", 2, "a pattern is empty"),
        ("rules:\n  - paths: [x]", 2, "needs the field \"namespaces\""),
        ("rules:\n  - namespaces: [a]\n    writes: true", 3, "\"allow\" or \"deny\""),
        ("rules:\n  - namespaces: [a]\n    addresses: [vault]", 3, "not http://"),
        ("rules:\n  - namespaces: [a]\n    tlsDirs: [tls/..]", 3, "absolute"),
        ("rules:\n  - namespaces: [a]\n    vaultNamespaces: ['']", 2, "reaches every other one"),
        ("rules:\n  - namespaces: [a]\n    vaultNamespaces: [root]", 2, "reaches every other one"),
        ("rules:\n  - namespaces: [a]\n    namespaces: [b]", 3, "twice"),
        ("rules: [", 1, "not valid YAML"),
    ] {
        let error = Policy::from_yaml(text, baseline()).unwrap_err();
        assert_eq!(error.line, Some(line), "{text}: {error}");
        assert!(error.to_string().starts_with(&format!("policy file line {line}: ")), "{error}");
        assert!(error.to_string().contains(says), "{text}: {error}");
    }
    assert!(check(&file("rules: []"), &pod("n", "s"), &[]).is_err());
}

#[test]
fn the_example_of_the_documentation_is_a_policy() {
    let docs = include_str!("../policy.rs");
    let example: String = docs
        .lines()
        .skip_while(|line| *line != "//! ```yaml")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .map(|line| line.trim_start_matches("//! ").to_owned() + "\n")
        .collect();
    let policy = file(&example);
    let objects = "- {objectName: a, secretPath: secret/data/payments/a}";
    let pairs = [("vaultNamespace", "team-a"), ("roleName", "payments-web"), ("objects", objects)];
    assert_eq!(check(&policy, &pod("payments", "web"), &pairs), Ok(()));
    assert!(check(&policy, &pod("payments-eu", "web"), &pairs).is_err());
}

/// What a template reads by itself is asked for like anything else, and so is the path that a KV version 2
/// mount would have us ask for instead.
#[test]
fn calls_of_templates_pass_policy() {
    let template =
        |call: &str| format!("- {{objectName: a, template: '{{{{ with secret {call} }}}}{{{{ end }}}}'}}");
    let team = pod("team", "sa");
    let policy = file("rules: [{namespaces: [team], paths: [secret/app, pki/issue/web]}]");
    let of = |call: &str| check(&policy, &team, &[("objects", &template(call))]);
    assert_eq!(of("\"secret/app\""), Ok(()));
    let refused = of("\"secret/other\"").unwrap_err();
    assert!(
        refused.starts_with("rule 1 of the node's policy refuses path \"secret/other\" of object \"a\""),
        "{refused}"
    );
    let refused = of("\"pki/issue/web\" \"common_name=x\"").unwrap_err();
    assert!(refused.contains("refuses write \"PUT pki/issue/web\" of object \"a\""), "{refused}");
    let writes = file("rules: [{namespaces: [team], paths: [pki/issue/web], writes: allow}]");
    let objects = template("\"pki/issue/web\" \"common_name=x\"");
    assert_eq!(check(&writes, &team, &[("objects", &objects)]), Ok(()));

    let objects = template("\"secret/app\"");
    let versioned = |policy: &Policy| {
        let mut spec = spec(&[("objects", &objects)]);
        policy.narrow(ProviderName::Vault, &team, &mut spec);
        spec.objects[0].requests().next().unwrap().versioned.clone().map(|path| path.to_string())
    };
    assert_eq!(versioned(&policy), None, "nobody allowed secret/data/app");
    let both = file("rules: [{namespaces: [team], paths: [secret/app, secret/data/*]}]");
    assert_eq!(versioned(&both).as_deref(), Some("secret/data/app"));
    assert_eq!(versioned(&Policy::baseline(baseline())).as_deref(), Some("secret/data/app"));
}
