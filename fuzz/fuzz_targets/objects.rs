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
        node: String::new(),
        tls: TlsSpec::default(),
    };
    if let Ok(parsed) = parameters::parse(ProviderName::Vault, &attributes, FileMode::DEFAULT, &defaults) {
        let files = || parsed.spec.objects.iter().filter(|object| object.file().is_some());
        let names: BTreeSet<_> = files().map(|object| object.name()).collect();
        assert_eq!(names.len(), files().count(), "names are unique");
        let names: BTreeSet<_> = files().filter(|it| !it.is_folder()).map(|object| object.name()).collect();
        for name in &names {
            assert!(
                !name.match_indices('/').any(|(end, _)| names.contains(&name[..end])),
                "no file is a folder"
            );
        }
    }
});
