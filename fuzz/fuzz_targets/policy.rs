//! A policy file, and an address to compare: neither panics, and an address's key is its own key.
#![no_main]

use leasehold::policy::{Baseline, Policy, address_key};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = Policy::from_yaml(text, Baseline::default());
    if let Ok(key) = address_key(text) {
        assert_eq!(address_key(&key), Ok(key.clone()));
        assert!(
            !key.contains(['@', '?', '#', '\\', '%']) && !key.bytes().any(|byte| byte.is_ascii_control())
        );
    }
});
