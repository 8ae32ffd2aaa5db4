//! The `objects` parameter: YAML from a tenant.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use leasehold::spec::{FileMode, ProviderName, TlsSpec, parameters};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let attributes =
        BTreeMap::from([("roleName".to_owned(), "r".to_owned()), ("objects".to_owned(), text.to_owned())]);
    let defaults = parameters::Defaults {
        address: Some("https://vault:8200".into()),
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        tls: TlsSpec::default(),
    };
    if let Ok(parsed) = parameters::parse(ProviderName::Vault, &attributes, FileMode::DEFAULT, &defaults) {
        let names: BTreeSet<_> = parsed.spec.objects.iter().map(|object| object.name.as_str()).collect();
        assert_eq!(names.len(), parsed.spec.objects.len(), "names are unique");
        for name in &names {
            assert!(
                !name.match_indices('/').any(|(end, _)| names.contains(&name[..end])),
                "no file is a folder"
            );
        }
    }
});
