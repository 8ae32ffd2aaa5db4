//! A writer killed before and after every one of its system calls.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use leasehold::projection::Payload;
use nix::{
    sys::{
        ptrace,
        signal::{Signal, raise},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, gettid},
};

use crate::stage::{Stage, Writer, assert_layout, eventually, payload, tree};

const TARGET: &str = "LEASEHOLD_TEST_CRASH_TARGET";

fn old() -> Payload {
    payload(&[("a", "old"), ("nested/b", "old"), ("dropped", "old")])
}

fn new() -> Payload {
    payload(&[("a", "new"), ("nested/b", "new"), ("added/c", "new")])
}

/// The program that is killed; a test only so that it is in this binary. Stops itself before and after.
#[test]
#[ignore = "run by crash_at_every_syscall in a process of its own"]
fn victim_of_the_crash() {
    let target = PathBuf::from(std::env::var_os(TARGET).expect("started by crash_at_every_syscall"));
    let writer = Writer::of(&target);
    let (files, previous) = (new(), fs::read_link(target.join("..data")).unwrap());
    println!("\ntid={}", gettid());
    ptrace::traceme().unwrap();
    raise(Signal::SIGSTOP).unwrap();
    let outcome = writer.write(&files, previous.to_str());
    raise(Signal::SIGSTOP).unwrap();
    outcome.unwrap();
}

/// Runs the victim up to its `stops`-th stop, each system call having one before and one after, and kills
/// it there. Returns whether the write was over before.
fn kill_at(target: &Path, stops: u64) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::victim_of_the_crash", "--ignored", "--nocapture"])
        .env(TARGET, target)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let tid = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("tid=").map(|tid| tid.parse().unwrap()))
        .expect("the victim starts");
    let over = step(Pid::from_raw(tid), stops);
    reap(&mut child, Pid::from_raw(tid));
    over
}

fn step(thread: Pid, stops: u64) -> bool {
    let wait = || waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    // It says who it is just before it becomes ours to wait for.
    eventually("the victim", || {
        waitpid(thread, Some(WaitPidFlag::__WALL)) == Ok(WaitStatus::Stopped(thread, Signal::SIGSTOP))
    });
    ptrace::setoptions(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
    for stop in 0..stops {
        ptrace::syscall(thread, None).unwrap();
        match wait() {
            WaitStatus::PtraceSyscall(_) => {}
            WaitStatus::Stopped(_, Signal::SIGSTOP) => return true,
            other => panic!("stop {stop}: {other:?}"),
        }
    }
    false
}

fn reap(child: &mut Child, thread: Pid) {
    // Killed in the stop before a system call, the call is never made.
    child.kill().unwrap();
    while let Ok(WaitStatus::PtraceSyscall(_) | WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..)) =
        waitpid(thread, Some(WaitPidFlag::__WALL))
    {}
    child.wait().unwrap();
}

/// What an application sees: every name that leads somewhere, through the links.
fn seen(target: &Path) -> Vec<(&'static str, String)> {
    ["a", "nested/b", "dropped", "added/c"]
        .into_iter()
        .filter_map(|name| Some((name, fs::read_to_string(target.join(name)).ok()?)))
        .collect()
}

#[test]
fn crash_at_every_syscall() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let writer = Writer::of(&target);
        let whole = |files: &Payload| {
            writer.take_over(files);
            seen(&target)
        };
        let (seen_new, seen_old) = (whole(&new()), whole(&old()));
        let (mut olds, mut news, mut messes) = (0, 0, 0);
        for stops in 0.. {
            let start = writer.take_over(&old());
            assert_layout(&target, &start.version_dir, &old());
            let over = kill_at(&target, stops);
            let found = seen(&target);
            if found == seen_new {
                news += 1;
            } else {
                assert_eq!(found, seen_old, "a mixed version after stop {stops}: {:#?}", tree(&target));
                olds += 1;
            }
            let mess = tree(&target).keys().filter(|path| !path.contains('/')).count();
            messes += u64::from(mess != 5);
            // And once more, elsewhere, on what the first crash left.
            kill_at(&target, stops * 37 % (stops + 1));
            let twice = seen(&target);
            assert!(twice == seen_new || (twice == seen_old && found == seen_old), "{:#?}", tree(&target));
            let after = writer.take_over(&new());
            assert_eq!(after.leftovers, 0, "after stop {stops}");
            assert_layout(&target, &after.version_dir, &new());
            if over {
                assert!(found == seen_new && !after.changed);
                break;
            }
        }
        println!("{olds} crashes left the old version, {news} the new, {messes} left something to repair");
        assert!(olds > 40 && news > 4 && messes > 20, "{olds} {news} {messes}: not every step was hit");
    });
}
