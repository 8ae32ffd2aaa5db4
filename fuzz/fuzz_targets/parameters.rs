//! Attributes of a Mount as `key=value` lines, for each provider name: parsing never panics, and what it
//! accepts is within the limits that everything after it relies on.
#![no_main]

use std::collections::BTreeMap;

use leasehold::{
    policy::{Baseline, Policy},
    spec::{FileMode, PodIdentity, ProviderName, TlsSpec, parameters},
};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let attributes: BTreeMap<String, String> = text
        .split('\u{1e}')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let defaults = parameters::Defaults {
        address: Some("https://vault:8200".into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: TlsSpec::default(),
    };
    let policy =
        Policy::baseline(Baseline { addresses: vec!["https://vault:8200".into()], ..Baseline::default() });
    let pod =
        PodIdentity { namespace: "n".into(), name: "p".into(), uid: "u".into(), service_account: "s".into() };
    for provider in [ProviderName::Vault, ProviderName::Openbao, ProviderName::Leasehold] {
        match parameters::parse(provider, &attributes, FileMode::DEFAULT, &defaults) {
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
});
