//! `leasehold ls`: the volumes of this node as the agent reports them.

use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::{
    cli::{ListFormat, LsArgs},
    control::{self, Answer, Request},
    volume::VolumeReport,
};

/// Cells of a bar.
const BAR: u64 = 10;

/// Prints every volume of the node.
///
/// # Errors
/// When no agent answers.
pub fn run(arguments: &LsArgs) -> anyhow::Result<ExitCode> {
    let volumes = match control::ask(&arguments.state_dir, &Request::List)? {
        Answer::Volumes(volumes) => volumes,
        Answer::Error(message) => bail!("{message}"),
        Answer::Refreshed(_) | Answer::Ready { .. } | Answer::Status(_) => {
            bail!("the agent answered something else: is it of this version?")
        }
    };
    let text = match arguments.output {
        ListFormat::Json => {
            let json = serde_json::json!({ "volumes": volumes });
            serde_json::to_string_pretty(&json).context("cannot write the report as JSON")? + "\n"
        }
        ListFormat::Table => show(&volumes, false),
        ListFormat::Wide => show(&volumes, true),
    };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn show(volumes: &[VolumeReport], wide: bool) -> String {
    if volumes.is_empty() {
        return "no volumes on this node\n".to_owned();
    }
    let row = |cells: [&str; 12]| {
        let [pod, class, mode, state, objects, ttl, session, login, next, target, names, error] =
            cells.map(str::to_owned);
        if wide {
            vec![pod, class, mode, state, objects, ttl, session, login, next, target, names, error]
        } else {
            vec![pod, class, mode, state, objects, ttl, next, error]
        }
    };
    let header = row([
        "NAMESPACE/POD",
        "CLASS",
        "MODE",
        "STATE",
        "OBJECTS",
        "TTL",
        "SESSION",
        "LOGIN",
        "NEXT",
        "TARGET",
        "NAMES",
        "ERROR",
    ]);
    let rows = volumes.iter().map(|volume| {
        let pod = volume.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
        let names: Vec<&str> = volume.objects.iter().map(|(name, _)| name.as_str()).collect();
        let seconds = |seconds: Option<u64>| seconds.map_or_else(|| "-".to_owned(), duration);
        row([
            &pod.unwrap_or_else(|| format!("? uid {}", pod_uid(&volume.target))),
            or_dash(&volume.class),
            &volume.mode,
            &volume.state,
            &names.len().to_string(),
            &ttl(volume),
            &seconds(volume.session_seconds),
            &seconds(volume.login_seconds),
            &next(volume),
            &volume.target,
            or_dash(&names.join(",")),
            or_dash(volume.error.as_deref().unwrap_or_default()),
        ])
    });
    super::table(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// Nobody told us whose an unmanaged volume is; the kubelet's path has the pod's uid.
fn pod_uid(target: &str) -> &str {
    target.split("/pods/").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or("-")
}

/// What is left of the credential that ends first.
fn ttl(volume: &VolumeReport) -> String {
    let first = volume
        .dependencies
        .iter()
        .filter_map(|dependency| dependency.ttl_seconds.map(|left| (left, dependency.granted_seconds)))
        .min();
    match first {
        None => "-".to_owned(),
        Some((left, Some(granted))) => format!("{} {}", bar(left, granted), duration(left)),
        Some((left, None)) => duration(left),
    }
}

/// Full cells for what is left, to the nearest, and one at least while there is anything.
fn bar(left: u64, granted: u64) -> String {
    let share = left.saturating_mul(BAR).saturating_add(granted / 2).checked_div(granted).unwrap_or(0);
    let full = share.clamp(u64::from(left > 0), BAR);
    (0..BAR).map(|cell| if cell < full { '█' } else { '░' }).collect()
}

fn next(volume: &VolumeReport) -> String {
    match &volume.next {
        None => "-".to_owned(),
        Some(next) if next.seconds == 0 => format!("{}, now", next.what),
        Some(next) => format!("{} in {}", next.what, duration(next.seconds)),
    }
}

/// The two largest units.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..600 if !seconds.is_multiple_of(60) => format!("{minutes}m{:02}s", seconds % 60),
        60..3600 => format!("{minutes}m"),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        spec::PodIdentity,
        volume::{DependencyReport, NextReport},
    };

    #[test]
    fn a_line_tells_the_life_of_a_volume() {
        let dependency = |ttl_seconds, granted_seconds| DependencyReport {
            request: "GET database/creds/app".into(),
            ttl_seconds,
            granted_seconds,
            version: None,
            age_seconds: 3,
        };
        let managed = VolumeReport {
            target: "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/v/mount".into(),
            pod: Some(PodIdentity {
                namespace: "shop".into(),
                name: "web-0".into(),
                uid: "u-1".into(),
                service_account: "web".into(),
            }),
            class: "db".into(),
            mode: "provider-written".into(),
            state: "live".into(),
            objects: vec![("user".into(), "v".into()), ("password".into(), "v".into())],
            dependencies: vec![
                dependency(Some(9_000), Some(9_000)),
                dependency(Some(2_520), Some(4_200)),
                dependency(None, None),
            ],
            next: Some(NextReport { seconds: 95, what: "check x (refresh interval)".into() }),
            error: Some("two\nlines \u{1b}[31m".into()),
            login_seconds: Some(90_000),
            session_seconds: Some(3_600),
        };
        let unmanaged = VolumeReport {
            target: "/k/pods/u-2/volumes/kubernetes.io~csi/v/mount".into(),
            mode: "unmanaged".into(),
            state: "unmanaged".into(),
            ..VolumeReport::default()
        };
        let text = show(&[managed.clone(), unmanaged], false);
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "NAMESPACE/POD CLASS MODE STATE OBJECTS TTL NEXT ERROR",
                "shop/web-0 db provider-written live 2 ██████░░░░ 42m check x (refresh interval) in 1m35s two?lines ?[31m",
                "? uid u-2 - unmanaged unmanaged 0 - - -",
            ]
        );
        let wide = show(&[managed], true);
        assert!(wide.contains("1h00m") && wide.contains("1d01h") && wide.contains("user,password"), "{wide}");
    }

    #[test]
    fn a_bar_is_empty_only_at_the_end() {
        for (left, granted, full) in
            [(0, 10, 0), (1, 1000, 1), (949, 1000, 9), (999, 1000, 10), (20, 10, 10), (5, 0, 1)]
        {
            assert_eq!(bar(left, granted).matches('█').count(), full, "{left} of {granted}");
            assert_eq!(bar(left, granted).chars().count(), 10);
        }
    }
}
