//! What a swap costs, beside the bare open, write and close of the same files on the same tmpfs in the
//! same run. Needs root. `cargo bench --bench writer`
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints its table and has nobody to hand an error to"
)]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use leasehold::{
    projection::{
        FileProjection, Payload,
        target::identify,
        writer::{RootMtime, WriteRequest, write},
    },
    spec::{FileMode, ObjectPath},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

const FILE_BYTES: usize = 4096;
const WARM_UP: usize = 200;
const ROUNDS: usize = 2000;

fn main() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).expect("needs root");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let folder = tempfile::tempdir().unwrap();
    mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let volume = folder.path();

    println!("{ROUNDS} rounds, {FILE_BYTES} bytes a file; times in µs");
    println!(
        "| files | swap p50 | swap p99 | unchanged p50 | bare loop p50 | bare loop p99 | swap / bare (p50) |"
    );
    println!("|---|---|---|---|---|---|---|");
    for count in [1, 10, 100] {
        let versions = [payload(count, b'x'), payload(count, b'y')];
        let identity = identify(volume).unwrap();
        let mut previous: Option<String> = None;
        let mut pass = |payload: &Payload| {
            let request = WriteRequest {
                target: volume,
                identity: &identity,
                previous: previous.as_deref(),
                payload,
                contents_as_before: false,
                root_mtime: RootMtime::Restore,
            };
            let start = Instant::now();
            let swap = write(request).unwrap();
            let took = start.elapsed();
            previous = Some(swap.version_dir);
            took
        };
        let (mut swaps, mut unchanged, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        // Interleaved, so that a slow moment of the machine falls on all three alike.
        for round in 0..WARM_UP + ROUNDS {
            let payload = &versions[round % 2];
            let took = (pass(payload), pass(payload), bare_loop(volume, payload));
            if round >= WARM_UP {
                swaps.push(took.0);
                unchanged.push(took.1);
                bare.push(took.2);
            }
        }
        let [swaps, unchanged, bare] = [swaps, unchanged, bare].map(|mut times| {
            times.sort();
            [times[ROUNDS / 2], times[ROUNDS * 99 / 100]].map(|time| time.as_secs_f64() * 1e6)
        });
        println!(
            "| {count} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.2} |",
            swaps[0],
            swaps[1],
            unchanged[0],
            bare[0],
            bare[1],
            swaps[0] / bare[0],
        );
    }
    nix::mount::umount(volume).unwrap();
}

fn payload(count: usize, byte: u8) -> Payload {
    let file = |index: usize| {
        let contents = vec![byte; FILE_BYTES].into();
        let path = ObjectPath::parse(&format!("file-{index:03}")).unwrap();
        (path, FileProjection { contents, mode: FileMode::DEFAULT, owner: None })
    };
    Payload { files: (0..count).map(file).collect() }
}

/// The least that has to happen for the bytes to be there: no swap, no links, no clean-up within the time.
fn bare_loop(volume: &Path, payload: &Payload) -> Duration {
    let folder = volume.join("bare");
    fs::create_dir(&folder).unwrap();
    let start = Instant::now();
    for (path, file) in &payload.files {
        fs::write(folder.join(path.as_str()), file.contents.expose()).unwrap();
    }
    let took = start.elapsed();
    fs::remove_dir_all(&folder).unwrap();
    took
}
