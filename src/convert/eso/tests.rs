#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::convert::{Converted, Severity, convert as convert_all, injector::tests::assert_usable};

/// Shapes of the operator's own documentation (HashiCorp Vault provider, templating, generators).
const INPUT: &str = include_str!("../../../tests/convert/eso.yaml");
const EXPECTED: &str = include_str!("../../../tests/convert/eso-converted.yaml");

fn run(text: &str) -> Converted {
    convert_all(&[("eso.yaml".into(), text.into())], "default")
}

fn joined(converted: &Converted) -> String {
    converted.documents.iter().map(|document| document.text.as_str()).collect::<Vec<_>>().join("---\n")
}

fn told(converted: &Converted, severity: Severity) -> Vec<String> {
    let of = converted.notes.iter().filter(|(_, note)| note.severity == severity);
    of.map(|(_, note)| format!("{} {}", note.line.unwrap_or(0), note.message)).collect()
}

#[test]
fn stores_and_secrets_become_classes_rules_and_patches() {
    let converted = run(INPUT);
    assert_eq!(joined(&converted), EXPECTED, "{}", joined(&converted));
    assert_eq!(told(&converted, Severity::Refused), Vec::<String>::new());
    assert_usable(&converted, "default");
}

/// A store, an ExternalSecret and a generator, into each of whose parts one field can be put.
fn shape(section: &str, own: &str) -> String {
    let put = |name: &str, indent: usize| {
        let pad = " ".repeat(indent);
        let own: String = own.lines().map(|line| format!("{pad}{line}\n")).collect();
        if section == name { own } else { String::new() }
    };
    let unless = |field: &str, line: &str| {
        if own.lines().any(|it| it.starts_with(&format!("{field}:"))) {
            String::new()
        } else {
            format!("{line}\n")
        }
    };
    let is = |name: &str| section == name;
    let auth = if is("jwt") {
        format!("          jwt:\n{}{}", unless("role", "            role: r"), put("jwt", 12))
    } else if is("auth") && !own.starts_with("namespace") && !own.starts_with("kubernetes") {
        put("auth", 10)
    } else {
        format!(
            "          kubernetes:\n{}{}{}",
            unless("role", "            role: r"),
            put("kubernetes", 12),
            if own.starts_with("kubernetes") { String::new() } else { put("auth", 10) }
        )
    };
    let generator = is("generator");
    let extract = match (is("dataFrom"), is("rewrite"), is("extract")) {
        (true, ..) => format!("  dataFrom:\n  - {}", put("dataFrom", 4).trim_start()),
        (_, true, _) => format!(
            "  dataFrom:\n  - extract: {{key: all}}\n    rewrite:\n    - {}",
            put("rewrite", 6).trim_start()
        ),
        _ if generator => {
            "  dataFrom:\n  - sourceRef: {generatorRef: {kind: VaultDynamicSecret, name: g}}\n".into()
        }
        _ => String::new(),
    };
    let template = if is("template") {
        format!("    template:\n{}{}", unless("data", "      data: {t: x}"), put("template", 6))
    } else {
        String::new()
    };
    let data = if generator {
        String::new()
    } else {
        format!(
            "  data:\n  - {}{}    remoteRef:\n{}{}{}{}",
            unless("secretKey", "    secretKey: k").trim_start(),
            if own.starts_with("secretKey") { put("data", 4).trim_start().to_owned() } else { String::new() },
            unless("key", "      key: app"),
            if own.starts_with("property") || is("remoteRef") && own.starts_with("property") {
                String::new()
            } else {
                "      property: p\n".into()
            },
            put("remoteRef", 6),
            if own.starts_with("secretKey") { String::new() } else { put("data", 4) },
        )
    };
    format!(
        "apiVersion: external-secrets.io/v1\nkind: {}\nmetadata: {{name: s, namespace: n}}\nspec:\n{}{}  provider:\n    vault:\n      \
         {}\n{}{}        auth:\n{auth}---\napiVersion: external-secrets.io/v1\nkind: ExternalSecret\nmetadata: {{name: e, namespace: n}}\nspec:\n\
         {}{}{data}{extract}  target:\n{}{}{template}---\napiVersion: generators.external-secrets.io/v1alpha1\nkind: \
         VaultDynamicSecret\nmetadata: {{name: g, namespace: n}}\nspec:\n{}{}  provider:\n    server: https://v:8200\n    auth: \
         {{kubernetes: {{role: r}}}}\n",
        if is("conditions") { "ClusterSecretStore" } else { "SecretStore" },
        put("store", 2),
        if is("conditions") {
            format!("  conditions:\n  - {}", put("conditions", 4).trim_start())
        } else {
            String::new()
        },
        unless("server", "  server: https://v:8200").trim_end(),
        unless("path", "        path: kv"),
        put("vault", 8),
        unless(
            "secretStoreRef",
            &format!(
                "  secretStoreRef: {{name: s, kind: {}}}",
                if is("conditions") { "ClusterSecretStore" } else { "SecretStore" }
            )
        ),
        put("spec", 2),
        unless("name", "    name: made"),
        put("target", 4),
        unless("path", "  path: db/creds/x"),
        put("generator", 2),
    )
}

/// Every row of the table is walked: what it says is what happens.
#[test]
fn every_field_has_the_fate_that_its_row_says() {
    for field in FIELDS {
        let (section, name) = field.name.split_once('.').unwrap();
        let value = match field.name {
            "store.provider"
            | "store.conditions"
            | "vault.auth"
            | "auth.kubernetes"
            | "auth.jwt"
            | "spec.data"
            | "spec.dataFrom"
            | "spec.target"
            | "data.remoteRef"
            | "target.template"
            | "generator.provider"
            | "spec.secretStoreRef"
            | "template.engineVersion" => continue,
            "conditions.namespaces" | "spec.syncWindows" => "[other]",
            "conditions.namespaceRegexes" => "[\"^a-.*$\"]",
            "vault.version" => "v1",
            "vault.caBundle" => "QQ==",
            "spec.refreshInterval" => "7m",
            "spec.refreshPolicy" => "OnChange",
            "remoteRef.decodingStrategy" => "Base64",
            "remoteRef.metadataPolicy" => "Fetch",
            "remoteRef.version" => "3",
            "remoteRef.conversionStrategy" => "Default",
            "data.sourceRef" => "{storeRef: {name: s}}",
            "dataFrom.extract" => "{key: all}",
            "dataFrom.rewrite" => "[{regexp: {source: a, target: b}}]\nextract: {key: all}",
            "dataFrom.sourceRef" => "{storeRef: {name: s}}\nextract: {key: all}",
            "rewrite.regexp" => "{source: a, target: b}",
            "template.data" => "{own: x}",
            "template.templateFrom" => "[{literal: x}]",
            "template.mergePolicy" => "Merge",
            "generator.method" => "POST",
            "generator.parameters" => "{ttl: 1h}\nmethod: PUT",
            "generator.getParameters" => "{a: [b c, d]}",
            "generator.resultType" => "Auth",
            "generator.allowEmptyResponse" => "true",
            _ if field.fate == Some(Severity::Refused)
                || section == "kubernetes" && name.ends_with("Ref") =>
            {
                "{name: x}"
            }
            "vault.caProvider" => "{type: ConfigMap, name: x, key: k}",
            "vault.tls" => "{certSecretRef: {name: x}, keySecretRef: {name: x}}",
            "jwt.kubernetesServiceAccountToken" => "{serviceAccountRef: {name: x}, audiences: [mine]}",
            _ => "own-value",
        };
        let own = format!("{name}: {value}");
        let (with, without) = (run(&shape(section, &own)), run(&shape(section, "")));
        let prefix = format!("{}: ", field.name);
        let told: Vec<_> = with.notes.iter().filter(|(_, note)| note.message.starts_with(&prefix)).collect();
        match field.fate {
            None => {
                let same = ["remoteRef.conversionStrategy", "data.sourceRef"].contains(&field.name);
                assert!(
                    joined(&with) != joined(&without) || same,
                    "{} changes nothing:\n{}\n{:?}",
                    field.name,
                    shape(section, &own),
                    with.notes
                );
                let unknown = with.notes.iter().find(|(_, note)| note.message.contains("not known"));
                assert_eq!(unknown, None, "{}", field.name);
            }
            Some(severity) => {
                let (_, note) = told
                    .first()
                    .unwrap_or_else(|| panic!("nothing is told of {}: {:?}", field.name, with.notes));
                assert_eq!((note.severity, note.line.is_some()), (severity, true), "{}", field.name);
            }
        }
    }
}

#[test]
fn what_cannot_be_carried_is_refused_by_name() {
    let store = "apiVersion: external-secrets.io/v1\nkind: SecretStore\nmetadata: {name: s}\nspec:\n  provider:\n    vault:\n      \
                 server: https://v\n      path: kv\n      auth: {kubernetes: {role: r}}\n---\n";
    let secret = |spec: &str| {
        run(&format!(
            "{store}apiVersion: external-secrets.io/v1\nkind: ExternalSecret\nmetadata: {{name: e}}\nspec:\n  secretStoreRef: {{name: \
             s}}\n{spec}\n"
        ))
    };
    for (spec, part) in [
        ("  data: [{secretKey: a, remoteRef: {key: k, property: 'a.#.b'}}]", "is a query"),
        ("  data: [{secretKey: a, remoteRef: {key: k, decodingStrategy: Auto}}]", "Auto guesses"),
        ("  dataFrom: [{find: {name: {regexp: '.*'}}}]", "dataFrom.find: paths are not searched"),
        ("  dataFrom: [{extract: {key: k, property: a}}]", "in an extract"),
        (
            "  dataFrom: [{extract: {key: k}, rewrite: [{transform: {template: x}}]}]",
            "names are not made by templates",
        ),
        ("  dataFrom: [{sourceRef: {generatorRef: {kind: Password, name: x}}}]", "no generator Password"),
        (
            "  dataFrom: [{sourceRef: {generatorRef: {kind: VaultDynamicSecret, name: x}}}]",
            "is not in the input",
        ),
        (
            "  data: [{secretKey: a, remoteRef: {key: k}, sourceRef: {storeRef: {name: t}}}]",
            "SecretStore t is not in the input",
        ),
        ("  target: {template: {engineVersion: v1, data: {a: x}}}", "only v2"),
        ("  target: {template: {data: {a: '{{ nope }}'}}}", "there is no function nope"),
        (
            "  target: {template: {templateFrom: [{secret: {name: x}}]}}",
            "a Secret or a literal is not carried",
        ),
        ("  target: {template: {templateFrom: [{configMap: {name: x}}]}}", "ConfigMap x is not in the input"),
        ("  colour: blue", "spec.colour: it is not known here"),
    ] {
        let converted = secret(spec);
        let refused = told(&converted, Severity::Refused);
        assert!(
            converted.is_incomplete() && refused.iter().any(|it| it.contains(part)),
            "{spec}: {refused:?}"
        );
    }
    for (kind, part) in
        [("PushSecret", "generate makes a password"), ("ClusterExternalSecret", "for each namespace")]
    {
        let converted =
            run(&format!("apiVersion: external-secrets.io/v1\nkind: {kind}\nmetadata: {{name: x}}\n"));
        assert!(told(&converted, Severity::Refused)[0].contains(part));
    }
    let aws = run(
        "apiVersion: external-secrets.io/v1\nkind: SecretStore\nmetadata: {name: x}\nspec: {provider: {aws: {}}}\n",
    );
    assert!(told(&aws, Severity::Refused)[0].contains("its provider is not vault"), "{aws:?}");
    let broken = run("a: [\n");
    assert!(broken.is_incomplete() && broken.documents.is_empty());
}
