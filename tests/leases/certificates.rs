//! Certificates: issued anew before they end, key and certificate always of one answer.

use std::time::Duration;

use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    case::{Case, Setup},
    support::{SOON, cluster::unix_now},
};

async fn authority(name: &'static str, lease: bool) -> (Case, String) {
    let mount = format!("pki-{name}");
    let line = format!("path \"{mount}/issue/app\" {{ capabilities = [\"update\"] }}\n");
    let case = Setup::new(name).policy(&line).start().await;
    case.admin.write(&format!("sys/mounts/{mount}"), json!({"type": "pki"})).await;
    let root = json!({"common_name": "root", "ttl": "24h", "key_type": "ec"});
    case.admin.write(&format!("{mount}/root/generate/internal"), root).await;
    let role = json!({
        "allow_any_name": true, "enforce_hostnames": false, "key_type": "ec", "key_bits": 256,
        "ttl": "15s", "max_ttl": "1h", "generate_lease": lease,
    });
    case.admin.write(&format!("{mount}/roles/app"), role).await;
    let objects = ["certificate", "private_key", "expiration"]
        .map(|key| {
            format!(
                "- {{objectName: {key}, secretPath: {mount}/issue/app, method: POST, secretKey: {key}, \
                 secretArgs: {{common_name: app.example}}, overlap: 2s}}\n"
            )
        })
        .concat();
    (case, objects)
}

/// Reads for `duration` as a server that reloads its certificate would; the number of distinct ones.
async fn watch(case: &Case, volume: &crate::support::kubelet::Volume, duration: Duration) -> usize {
    let (started, mut last, mut distinct) = (Instant::now(), String::new(), 0);
    while started.elapsed() < duration {
        let [certificate, key, expiration] = case.files(volume, ["certificate", "private_key", "expiration"]);
        if certificate != last {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            let pair = CertifiedKey::new(chain, any_supported_type(&key).unwrap());
            pair.keys_match().unwrap_or_else(|error| panic!("{error}: {}", case.leasehold.log()));
            distinct += 1;
            last = certificate;
        }
        let expires: u64 = expiration.trim().parse().unwrap();
        assert!(expires > unix_now(), "the certificate is over\n{}", case.leasehold.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    distinct
}

/// Without a lease notAfter is all there is to go by.
#[tokio::test]
async fn certificate_is_issued_anew_before_it_ends() {
    let (case, objects) = authority("pki", false).await;
    let volume = case.volume();
    case.mounted(&volume, &objects).await;
    let distinct = watch(&case, &volume, Duration::from_secs(24)).await;
    let issued = case.done("issue/app");
    // At about six tenths of fifteen seconds each.
    assert!((3..=5).contains(&distinct) && issued.abs_diff(distinct) <= 1, "{distinct} of {issued}");
    assert_eq!(case.logins(), 1);
    case.unmount(&volume);
}

/// `generate_lease` makes a lease that cannot be renewed: it is replaced, and given back with the session.
#[tokio::test]
async fn certificate_with_a_lease_is_replaced_not_renewed() {
    let (case, objects) = authority("pkilease", true).await;
    let volume = case.volume();
    case.mounted(&volume, &objects).await;
    let distinct = watch(&case, &volume, Duration::from_secs(18)).await;
    assert!((2..=5).contains(&distinct), "{distinct}\n{}", case.leasehold.log());
    assert_eq!(case.seen(|seen| seen.path == "sys/leases/renew").len(), 0, "{}", case.leasehold.log());
    case.unmount(&volume);
    let path = "sys/leases/lookup/pki-pkilease/issue/app";
    case.until("its leases are gone", SOON, async || case.admin.list(path).await.is_empty().then_some(()))
        .await;
    case.nothing_left(SOON).await;
}
