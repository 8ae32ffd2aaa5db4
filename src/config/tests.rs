#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use clap::Parser;

use super::*;
use crate::cli::{Cli, Command, normalise};

/// Flags and upstream variables, each separated by spaces, to a configuration.
fn resolve(flags: &str, variables: &str) -> Result<Config, String> {
    let arguments = ["leasehold", "provider"].into_iter().chain(flags.split_whitespace());
    let cli = Cli::try_parse_from(normalise(arguments.map(Into::into))).map_err(|error| error.to_string())?;
    let Command::Provider(provider) = cli.command else { panic!("not the provider") };
    let environment: BTreeMap<_, _> =
        variables.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect();
    Config::resolve(*provider, |name| environment.get(name).map(|value| (*value).to_owned()))
        .map_err(|error| crate::telemetry::chain(&error))
}

#[test]
fn without_flags_the_defaults_of_the_driver_and_the_kubelet_hold() {
    let config = resolve("", "").unwrap();
    let paths: Vec<_> = config.endpoints.iter().map(|endpoint| endpoint.path.to_str().unwrap()).collect();
    assert_eq!(
        paths,
        ["leasehold", "vault", "openbao"]
            .map(|name| format!("/var/run/secrets-store-csi-providers/{name}.sock"))
    );
    assert!(config.authority_shim && config.warnings.is_empty());
    assert_eq!(config.log.level, Some(Level::INFO));
    let vault = &config.defaults[&ProviderName::Vault];
    assert_eq!((vault.address.as_deref(), vault.auth_mount.as_str()), (None, "kubernetes"));
    assert_eq!(config.baseline, Baseline { own_tls: vec![TlsSpec::default()], ..Baseline::default() });
}

/// Every setting of a server by flag, with one dash and with two, over every variable of it.
#[test]
fn flags_win_over_variables_and_openbao_falls_back_to_vault() {
    type Get = fn(&Defaults) -> Option<&str>;
    let settings: [(&str, &str, Get); 7] = [
        ("addr", "ADDR", |d| d.address.as_deref()),
        ("namespace", "NAMESPACE", |d| Some(d.namespace.as_str()).filter(|text| !text.is_empty())),
        ("tls-ca-cert", "CACERT", |d| d.tls.ca_cert.as_deref()),
        ("tls-ca-directory", "CAPATH", |d| d.tls.ca_directory.as_deref()),
        ("tls-server-name", "TLS_SERVER_NAME", |d| d.tls.server_name.as_deref()),
        ("tls-client-cert", "CLIENT_CERT", |d| d.tls.client_cert.as_deref()),
        ("tls-client-key", "CLIENT_KEY", |d| d.tls.client_key.as_deref()),
    ];
    for (flag, suffix, get) in settings {
        let all = |flags: &str, variables: &str| {
            let config = resolve(flags, variables).unwrap();
            [ProviderName::Leasehold, ProviderName::Vault, ProviderName::Openbao]
                .map(|provider| get(&config.defaults[&provider]).unwrap_or("-").to_owned())
                .join(" ")
        };
        let (vault, both) = (format!("VAULT_{suffix}=/v"), format!("VAULT_{suffix}=/v BAO_{suffix}=/b"));
        assert_eq!(all("", ""), "- - -", "{flag}");
        assert_eq!(all("", &vault), "/v /v /v", "{flag}");
        assert_eq!(all("", &both), "/v /v /b", "{flag}");
        assert_eq!(all("", &format!("BAO_{suffix}=")), "- - -", "{flag}");
        for dashes in ["-", "--"] {
            for equals in ["=", " "] {
                let flags = format!("{dashes}vault-{flag}{equals}/f {dashes}openbao-{flag}{equals}/g");
                assert_eq!(all(&flags, &both), "/f /f /g", "{flag}");
                assert_eq!(all(&format!("{dashes}vault-{flag}{equals}/f"), &both), "/f /f /b", "{flag}");
            }
        }
    }
    for (flag, other) in
        [("-vault-addr=https://v", ProviderName::Openbao), ("-openbao-addr=https://v", ProviderName::Vault)]
    {
        let config = resolve(flag, "").unwrap();
        assert_eq!(
            config.defaults[&other].address.as_deref(),
            Some("https://v"),
            "one server serves both names"
        );
    }
    let config = resolve("-vault-mount=a/b --openbao-mount=c", "VAULT_MOUNT=x").unwrap();
    assert_eq!(config.defaults[&ProviderName::Leasehold].auth_mount, "a/b");
    assert_eq!(config.defaults[&ProviderName::Openbao].auth_mount, "c");
}

#[test]
fn booleans_are_gos() {
    let skip = |flags: &str, variables: &str| {
        resolve(flags, variables).map(|config| config.defaults[&ProviderName::Vault].tls.skip_verify)
    };
    for (flags, variables, expected) in [
        ("", "", false),
        ("", "VAULT_SKIP_VERIFY=T", true),
        ("", "VAULT_SKIP_VERIFY=0", false),
        ("-vault-tls-skip-verify", "", true),
        ("-vault-tls-skip-verify=False", "VAULT_SKIP_VERIFY=1", false),
        ("-vault-tls-skip-verify=1 -openbao-tls-skip-verify=0", "VAULT_SKIP_VERIFY=maybe", true),
    ] {
        assert_eq!(skip(flags, variables), Ok(expected), "{flags} {variables}");
    }
    let error = skip("", "VAULT_SKIP_VERIFY=yes").unwrap_err();
    assert!(error.starts_with("VAULT_SKIP_VERIFY=yes: must be one of 1, t, T"), "{error}");
    assert!(skip("-vault-tls-skip-verify=yes", "").unwrap_err().contains("must be one of 1, t, T"));
    for (flags, level) in [
        ("-debug", Some(Level::DEBUG)),
        ("-debug=true -log-level=WARN", Some(Level::WARN)),
        ("-debug=false", Some(Level::INFO)),
        ("-log-level off", None),
        ("--log-level=trace", Some(Level::TRACE)),
    ] {
        assert_eq!(resolve(flags, "").unwrap().log.level, level, "{flags}");
    }
    assert!(!resolve("--no-authority-shim", "").unwrap().authority_shim);
}

#[test]
fn the_baseline_is_the_operators_own_and_what_he_allows() {
    let config = resolve(
        "-vault-addr=https://v:8200 -openbao-tls-ca-cert=/tls/ca.pem --allow-vault-address=https://a,https://b \
         --allow-vault-address https://v:8200 --allow-tls-dir /tls//x/ --allow-audience other",
        "BAO_ADDR=unix:///run/bao.sock",
    )
    .unwrap();
    assert_eq!(
        config.baseline.addresses,
        ["https://a", "https://b", "https://v:8200", "unix:///run/bao.sock"].map(str::to_owned)
    );
    assert_eq!(config.baseline.tls_dirs, [PathBuf::from("/tls/x")]);
    assert_eq!(config.baseline.audiences, ["other"]);
    assert_eq!(config.baseline.own_tls.len(), 2);
}

#[test]
fn what_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("large");
    std::fs::write(&large, vec![b'#'; 1 + usize::try_from(MAX_POLICY).unwrap()]).unwrap();
    let (large, absent) =
        (format!("--policy={}", large.display()), format!("--policy={}/x", folder.path().display()));
    for (flags, expected) in [
        ("--endpoint=/p/aws.sock", "must be leasehold.sock, vault.sock or openbao.sock"),
        ("--endpoint=/p/vault", "must be leasehold.sock, vault.sock or openbao.sock"),
        ("--endpoint=p/vault.sock", "--endpoint p/vault.sock: must be an absolute path"),
        ("-endpoint=/p/vault.sock -endpoint=/p//vault.sock", "--endpoint /p/vault.sock: given twice"),
        ("--state-dir=x", "--state-dir x: must be an absolute path"),
        ("--kubelet-root=/var/../x", "--kubelet-root /var/../x: must be an absolute path without .."),
        ("--allow-tls-dir=tls", "--allow-tls-dir tls: must be an absolute path"),
        ("--health-addr=8080", "--health-addr 8080: must be HOST:PORT or :PORT"),
        ("--health-addr=:99999", "must be HOST:PORT or :PORT"),
        ("--log-level=loud", "invalid value 'loud'"),
        ("--vault-adr=x", "unexpected argument '--vault-adr'"),
        (large.as_str(), "large: it has more than 1 MiB"),
        (absent.as_str(), "x: No such file or directory"),
    ] {
        let error = resolve(flags, "").unwrap_err();
        assert!(error.contains(expected), "{flags}: {error}");
    }
}

#[test]
fn flags_without_meaning_here_are_taken_with_a_warning() {
    let config = resolve("-hmac-secret-name=x -cache-size=1000 -output=json", "").unwrap();
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert_eq!(resolve("--hmac-secret-name=", "").unwrap().warnings.len(), 1);
}
