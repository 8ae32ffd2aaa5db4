//! Who asked for what, on whose behalf: the audit lines against what the server saw.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{case::Setup, support::SOON};

/// The fields of an audit line.
type Line = BTreeMap<String, String>;

fn lines(log: &str, message: &str) -> Vec<Line> {
    let mark = format!("leasehold::audit: {message} ");
    log.lines()
        .filter_map(|line| line.split_once(&mark))
        .map(|(_, fields)| {
            // No value has a blank in it but a status in words.
            fields
                .split(' ')
                .filter_map(|field| field.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
                .collect()
        })
        .collect()
}

fn fingerprint(accessor: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, accessor.as_bytes());
    data_encoding::HEXLOWER.encode(&digest.as_ref()[..8])
}

/// Every request that the server saw has its line, with the pods it was made for, though pods share a session
/// and though the last request comes when its pod has gone.
#[tokio::test]
async fn audit_complete() {
    let case = Setup::new("audit").database("4s", "30s").may_revoke().start().await;
    for file in ["both", "one"] {
        case.put(file, "1").await;
    }
    let (both, one) = (case.kv("both"), case.kv("one"));
    let volumes = [case.volume(), case.volume(), case.volume()];
    let [first, second, leased] = &volumes;
    case.mounted(first, &both).await;
    case.mounted(second, &(both.clone() + &one)).await;
    case.mounted(leased, &case.database()).await;
    case.put("both", "2").await;
    for volume in [first, second] {
        case.until("the value arrives", SOON, async || {
            (case.files(volume, ["both"])[0] == "2").then_some(())
        })
        .await;
    }
    case.until("the lease is renewed", SOON, async || (case.done("sys/leases/renew") > 0).then_some(()))
        .await;

    // While the tokens live, the server says which accessor is whose.
    let mut accessors = BTreeMap::new();
    for token in case.seen(|_| true).into_iter().filter_map(|seen| seen.token).collect::<BTreeSet<_>>() {
        let known = case.admin.with_token(&token).read("auth/token/lookup-self").await;
        accessors.insert(token, fingerprint(known["data"]["accessor"].as_str().unwrap()));
    }
    assert_eq!(accessors.len(), 2, "the first two share a session");
    case.unmount(leased);
    case.until("its session is revoked", SOON, async || {
        (case.done("auth/token/revoke-self") > 0).then_some(())
    })
    .await;

    let uids: BTreeSet<_> = volumes.iter().map(|volume| volume.pod.uid.clone()).collect();
    let of = |line: &Line| line["pod_uids"].split(',').map(str::to_owned).collect::<BTreeSet<_>>();
    let settled = Duration::from_secs(20);
    let (seen, audit) = case
        .until("every request has its line", settled, async || {
            let seen = case.seen(|_| true);
            let audit = lines(&case.leasehold.log(), "request");
            let count = |paths: Vec<&str>| {
                paths.into_iter().fold(BTreeMap::<String, usize>::new(), |mut counts, path| {
                    *counts.entry(path.to_owned()).or_default() += 1;
                    counts
                })
            };
            let asked = count(seen.iter().map(|seen| seen.path.as_str()).collect());
            let told = count(audit.iter().map(|line| line["path"].as_str()).collect());
            (asked == told).then_some((seen, audit))
        })
        .await;
    assert!(seen.len() >= 8, "{}", seen.len());
    for line in &audit {
        assert!(!of(line).is_empty() && of(line).is_subset(&uids), "{line:?}");
        let (pods, classes) = (line["pods"].split(','), line["classes"].split(','));
        assert_eq!(pods.clone().count(), of(line).len());
        assert!(pods.clone().all(|pod| pod.starts_with("prod/")), "{line:?}");
        assert!(
            classes.clone().all(|class| !class.is_empty()) && classes.count() == pods.count(),
            "{line:?}"
        );
        if !line["path"].ends_with("/login") {
            assert!(accessors.values().any(|known| *known == line["accessor"]), "{line:?}");
        }
    }
    let only = |path: &str, who: &[&crate::support::kubelet::Volume]| {
        let who: BTreeSet<_> = who.iter().map(|volume| volume.pod.uid.clone()).collect();
        let lines: Vec<_> = audit.iter().filter(|line| line["path"].ends_with(path)).collect();
        assert!(!lines.is_empty() && lines.iter().all(|line| of(line).is_subset(&who)), "{path}: {lines:#?}");
        assert_eq!(lines.iter().flat_map(|line| of(line)).collect::<BTreeSet<_>>(), who, "{path}");
    };
    only("secret/data/audit/both", &[first, second]);
    only("secret/data/audit/one", &[second]);
    only("database/creds/audit", &[leased]);
    only("sys/leases/renew", &[leased]);
    // Made after its pod has gone.
    only("auth/token/revoke-self", &[leased]);
    // The token of each request is the session's whose accessor the line tells.
    for (token, accessor) in &accessors {
        let with: Vec<_> = seen.iter().filter(|seen| seen.token.as_ref() == Some(token)).collect();
        assert_eq!(with.len(), audit.iter().filter(|line| line["accessor"] == *accessor).count());
    }
    let sessions: BTreeSet<_> =
        lines(&case.leasehold.log(), "session").into_iter().map(|line| line["accessor"].clone()).collect();
    assert!(accessors.values().all(|accessor| sessions.contains(accessor)));
    case.unmount(first);
    case.unmount(second);
}
