//! Every way out is tried twice from inside the serving process: without the walls, where it leads somewhere,
//! and behind them.

use std::{
    fmt::Debug,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use crate::{
    inject::{
        Argument::{self, Bytes, Number},
        Outcome, Victim,
    },
    support::{
        SOON, free_port,
        leasehold::{Launch, Leasehold, binary},
        node::Node,
        process::{Process, Worker},
    },
};

const HERE: Argument<'static> = Number(libc::AT_FDCWD as i64);
const NOTHING: Argument<'static> = Number(0);
const ZEROS: Argument<'static> = Bytes(&[0; 256]);

/// A way out by one system call.
struct Attempt {
    name: &'static str,
    number: i64,
    arguments: Vec<Argument<'static>>,
    /// What shows that the kernel itself has nothing against it.
    without: Without,
}

/// What a call comes to without the walls.
#[derive(Clone, Copy)]
enum Without {
    /// It is done.
    Done,
    /// It is done, and the process is of no use for a second try.
    Ends,
    /// The kernel looks at it and finds fault with our arguments only: done in earnest it would harm the
    /// machine that the test runs on.
    Faults(Errno),
}
use Without::{Done, Ends, Faults};

fn attempt(name: &'static str, number: i64, arguments: &[Argument<'static>], without: Without) -> Attempt {
    Attempt { name, number, arguments: arguments.to_vec(), without }
}

/// Ways that end the process when it is confined.
fn deadly(ground: &Ground) -> Vec<Attempt> {
    let program = Bytes(b"/bin/true");
    // A map of 1 entry: kind, size of key, size of value, entries.
    let map: &[u8] =
        &[2, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let own_keys = Number(-2);
    vec![
        // Another program.
        attempt("execve", libc::SYS_execve, &[program, NOTHING, NOTHING], Ends),
        attempt("execveat", libc::SYS_execveat, &[HERE, program, NOTHING, NOTHING, NOTHING], Ends),
        attempt("fork", libc::SYS_fork, &[], Ends),
        attempt("memfd_create", libc::SYS_memfd_create, &[Bytes(b"x"), NOTHING], Done),
        // Another process.
        attempt("ptrace", libc::SYS_ptrace, &[NOTHING], Faults(Errno::EPERM)),
        attempt(
            "process_vm_readv",
            libc::SYS_process_vm_readv,
            &[Number(1), NOTHING, NOTHING, NOTHING, NOTHING, NOTHING],
            Done,
        ),
        attempt(
            "process_vm_writev",
            libc::SYS_process_vm_writev,
            &[Number(1), NOTHING, NOTHING, NOTHING, NOTHING, NOTHING],
            Done,
        ),
        attempt("pidfd_open", libc::SYS_pidfd_open, &[Number(1), NOTHING], Done),
        attempt("pidfd_getfd", libc::SYS_pidfd_getfd, &[Number(-1), NOTHING, NOTHING], Faults(Errno::EBADF)),
        attempt(
            "pidfd_send_signal",
            libc::SYS_pidfd_send_signal,
            &[Number(-1), NOTHING, NOTHING, NOTHING],
            Faults(Errno::EBADF),
        ),
        attempt("kcmp", libc::SYS_kcmp, &[NOTHING, NOTHING, NOTHING, NOTHING, NOTHING], Faults(Errno::ESRCH)),
        // Mounts, roots, namespaces.
        attempt(
            "mount",
            libc::SYS_mount,
            &[Bytes(b"tmpfs"), Bytes(b"/mnt"), Bytes(b"tmpfs"), NOTHING, NOTHING],
            Done,
        ),
        attempt("umount2", libc::SYS_umount2, &[Bytes(b"/"), Number(0x100)], Faults(Errno::EINVAL)),
        attempt("pivot_root", libc::SYS_pivot_root, &[Bytes(b"/"), Bytes(b"/")], Faults(Errno::EBUSY)),
        attempt("chroot", libc::SYS_chroot, &[Bytes(b"/mnt")], Ends),
        attempt("unshare", libc::SYS_unshare, &[Number(libc::CLONE_NEWUTS as i64)], Done),
        attempt("setns", libc::SYS_setns, &[Number(-1), NOTHING], Faults(Errno::EBADF)),
        attempt("fsopen", libc::SYS_fsopen, &[Bytes(b"tmpfs"), NOTHING], Done),
        attempt(
            "fsconfig",
            libc::SYS_fsconfig,
            &[Number(-1), NOTHING, NOTHING, NOTHING, NOTHING],
            Faults(Errno::EINVAL),
        ),
        attempt("fsmount", libc::SYS_fsmount, &[Number(-1), NOTHING, NOTHING], Faults(Errno::EBADF)),
        attempt("fspick", libc::SYS_fspick, &[HERE, Bytes(b"/dev/shm"), NOTHING], Done),
        attempt("open_tree", libc::SYS_open_tree, &[HERE, Bytes(b"/"), Number(1)], Done),
        attempt(
            "move_mount",
            libc::SYS_move_mount,
            &[Number(-1), Bytes(b""), HERE, Bytes(b"/mnt"), Number(4)],
            Faults(Errno::EBADF),
        ),
        attempt(
            "mount_setattr",
            libc::SYS_mount_setattr,
            &[HERE, Bytes(b"/"), NOTHING, ZEROS, Number(32)],
            Done,
        ),
        // Files past their folders, and devices.
        attempt(
            "open_by_handle_at",
            libc::SYS_open_by_handle_at,
            &[HERE, ZEROS, NOTHING],
            Faults(Errno::EINVAL),
        ),
        attempt(
            "name_to_handle_at",
            libc::SYS_name_to_handle_at,
            &[HERE, Bytes(b"/"), ZEROS, ZEROS, NOTHING],
            Faults(Errno::EOVERFLOW),
        ),
        attempt(
            "mknodat",
            libc::SYS_mknodat,
            &[HERE, ground.path("device"), Number(libc::S_IFCHR as i64 | 0o600), Number(0x103)],
            Done,
        ),
        attempt("fanotify_init", libc::SYS_fanotify_init, &[NOTHING, NOTHING], Done),
        // The kernel.
        attempt("bpf", libc::SYS_bpf, &[NOTHING, Bytes(map), Number(32)], Done),
        attempt("io_uring_setup", libc::SYS_io_uring_setup, &[Number(1), ZEROS], Done),
        attempt("userfaultfd", libc::SYS_userfaultfd, &[Number(1)], Done),
        attempt(
            "perf_event_open",
            libc::SYS_perf_event_open,
            &[NOTHING, NOTHING, Number(-1), Number(-1), NOTHING],
            Faults(Errno::EFAULT),
        ),
        attempt(
            "add_key",
            libc::SYS_add_key,
            &[Bytes(b"user"), Bytes(b"x"), Bytes(b"y"), Number(1), own_keys],
            Done,
        ),
        attempt(
            "request_key",
            libc::SYS_request_key,
            &[Bytes(b"user"), Bytes(b"none"), NOTHING, NOTHING],
            Faults(Errno::ENOKEY),
        ),
        attempt("keyctl", libc::SYS_keyctl, &[NOTHING, own_keys, Number(1)], Done),
        attempt("syslog", libc::SYS_syslog, &[Number(10), NOTHING, NOTHING], Done),
        attempt("personality", libc::SYS_personality, &[Number(0x0040_0000)], Done),
        // Another user.
        attempt("setuid", libc::SYS_setuid, &[Number(65534)], Ends),
        attempt("setresgid", libc::SYS_setresgid, &[Number(65534), Number(65534), Number(65534)], Done),
        attempt("setgroups", libc::SYS_setgroups, &[NOTHING, NOTHING], Done),
        attempt("capset", libc::SYS_capset, &[NOTHING, NOTHING], Faults(Errno::EFAULT)),
        // The machine.
        attempt("reboot", libc::SYS_reboot, &[NOTHING, NOTHING, NOTHING, NOTHING], Faults(Errno::EINVAL)),
        attempt("swapoff", libc::SYS_swapoff, &[Bytes(b"/none")], Faults(Errno::ENOENT)),
        attempt("swapon", libc::SYS_swapon, &[Bytes(b"/none"), NOTHING], Faults(Errno::ENOENT)),
        attempt("clock_settime", libc::SYS_clock_settime, &[NOTHING, NOTHING], Faults(Errno::EFAULT)),
        attempt("settimeofday", libc::SYS_settimeofday, &[NOTHING, NOTHING], Done),
        attempt("sethostname", libc::SYS_sethostname, &[Bytes(b""), Number(-1)], Faults(Errno::EINVAL)),
    ]
}

/// Ways that are refused, by a filter (ENOSYS) or by Landlock, and that the process survives.
fn refused(ground: &Ground) -> Vec<(Attempt, Errno)> {
    let own = |name| ground.path(name);
    let writable = Number((libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as i64);
    let anonymous = Number((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as i64);
    let create = Number((libc::O_CREAT | libc::O_WRONLY) as i64);
    let raw = Number(libc::SOCK_RAW as i64);
    let by_filter = [
        attempt(
            "clone of a process",
            libc::SYS_clone,
            &[Number(libc::SIGCHLD as i64), NOTHING, NOTHING, NOTHING, NOTHING],
            Ends,
        ),
        attempt(
            "executable memory",
            libc::SYS_mmap,
            &[NOTHING, Number(4096), writable, anonymous, Number(-1), NOTHING],
            Done,
        ),
        attempt("packet socket", libc::SYS_socket, &[Number(libc::AF_PACKET as i64), raw, NOTHING], Done),
        attempt(
            "dumpable again",
            libc::SYS_prctl,
            &[Number(libc::PR_SET_DUMPABLE as i64), Number(1), NOTHING, NOTHING, NOTHING],
            Done,
        ),
        attempt(
            "limits",
            libc::SYS_prlimit64,
            &[NOTHING, Number(libc::RLIMIT_CORE as i64), Bytes(&[0; 16]), NOTHING],
            Done,
        ),
        attempt("signal of others", libc::SYS_kill, &[Number(1), NOTHING], Done),
        attempt(
            "terminal input",
            libc::SYS_ioctl,
            &[NOTHING, Number(libc::TIOCSTI as i64), Bytes(b"x")],
            Faults(Errno::ENOTTY),
        ),
        attempt("shared memory", libc::SYS_shmget, &[NOTHING, Number(4096), Number(0o1600)], Done),
        attempt("another filter", libc::SYS_seccomp, &[Number(2), NOTHING, Bytes(&[0])], Done),
    ];
    let by_landlock = [
        attempt("read a file of others", libc::SYS_openat, &[HERE, Bytes(b"/etc/passwd"), NOTHING], Done),
        attempt(
            "list the root",
            libc::SYS_openat,
            &[HERE, Bytes(b"/"), Number(libc::O_DIRECTORY as i64)],
            Done,
        ),
        attempt("another process", libc::SYS_openat, &[HERE, Bytes(b"/proc/1/status"), NOTHING], Done),
        attempt(
            "a device",
            libc::SYS_openat,
            &[HERE, Bytes(b"/dev/null"), Number(libc::O_WRONLY as i64)],
            Done,
        ),
        attempt(
            "write beside the pods",
            libc::SYS_openat,
            &[HERE, own("kubelet/planted"), create, Number(0o600)],
            Done,
        ),
        attempt(
            "write into the sockets' folder",
            libc::SYS_openat,
            &[HERE, own("providers/planted"), create, Number(0o600)],
            Done,
        ),
        attempt("make a folder elsewhere", libc::SYS_mkdirat, &[HERE, own("planted"), Number(0o700)], Done),
        attempt("move a file elsewhere", libc::SYS_renameat, &[HERE, own("here"), HERE, own("there")], Done),
        attempt("remove a file elsewhere", libc::SYS_unlinkat, &[HERE, own("victim"), NOTHING], Done),
        attempt(
            "pods folder to a link",
            libc::SYS_symlinkat,
            &[Bytes(b"/etc"), HERE, own("kubelet/link")],
            Done,
        ),
    ];
    let by_filter = by_filter.into_iter().map(|attempt| (attempt, Errno::ENOSYS));
    by_filter.chain(by_landlock.into_iter().map(|attempt| (attempt, Errno::EACCES))).collect()
}

/// Which process is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// A node's provider.
    Provider,
    /// A pod's agent.
    Agent,
    /// The same with an application to supervise, which inherits what confines it.
    Supervisor,
}

/// A serving process.
enum Running {
    Provider(Leasehold),
    Agent(Process),
}

impl Running {
    fn pid(&self) -> u32 {
        match self {
            Self::Provider(leasehold) => leasehold.pid(),
            Self::Agent(process) => process.pid(),
        }
    }
}

/// Where the process runs, and what lies about for it to find.
struct Ground {
    shape: Shape,
    node: Arc<Node>,
    folder: &'static Path,
    pod: Worker,
}

impl Ground {
    fn new(shape: Shape) -> Self {
        let node = Arc::new(Node::new());
        let folder: &'static Path = Box::leak(node.root().to_owned().into_boxed_path());
        let pod = Worker::new("pod");
        std::fs::create_dir_all(folder.join("pod/secrets")).unwrap();
        pod.run(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let secrets = folder.join("pod/secrets");
            mount(Some("tmpfs"), &secrets, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        });
        Self { shape, node, folder, pod }
    }

    fn path(&self, name: &str) -> Argument<'static> {
        Bytes(format!("{}/{name}", self.folder.display()).into_bytes().leak())
    }

    async fn start(&self, confined: bool) -> Running {
        for file in ["here", "victim"] {
            std::fs::write(self.folder.join(file), "").unwrap();
        }
        let open = ["--no-seccomp", "--no-landlock", "--allow-core-dumps"];
        let flags = if confined { &[][..] } else { &open[..] };
        if self.shape == Shape::Provider {
            let mut launch = Launch::new("https://127.0.0.1:1");
            launch.names = vec!["vault".into()];
            launch.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
            let leasehold = Leasehold::start(&self.node, launch).await;
            leasehold.is_ready().await;
            return Running::Provider(leasehold);
        }
        let pod = self.folder.join("pod");
        let config = format!(
            "vaultAddress: https://127.0.0.1:1\nauth: {{method: token, tokenPath: {0}/token}}\nstateDir: {0}/state\n\
             folders:\n- path: {0}/secrets\n  objects: [{{objectName: a, secretPath: secret/data/a, secretKey: b}}]\n",
            pod.display()
        );
        std::fs::create_dir_all(pod.join("config")).unwrap();
        std::fs::write(pod.join("config/agent.yaml"), config).unwrap();
        std::fs::write(pod.join("token"), "s.token").unwrap();
        let process = Process::spawn_on(&self.pod, "agent", &[], binary(), |command| {
            // Where a core file of an unconfined one may lie.
            command.current_dir(self.folder);
            command.args(["agent", "--config"]).arg(pod.join("config")).args(flags);
            if self.shape == Shape::Supervisor {
                command.args(["--exec", "--", "sleep", "600"]);
            }
        });
        // Nobody answers at that address, so it tries on.
        process.logged("first mount failing", SOON).await;
        Running::Agent(process)
    }

    /// Tries each of `attempts`, in a fresh process as often as one is used up.
    async fn try_all<T: Sync>(&self, confined: bool, attempts: &[T], of: fn(&T) -> &Attempt) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while outcomes.len() < attempts.len() {
            let process = self.start(confined).await;
            let pid = process.pid();
            // Of a thread, and of one for all calls: ptrace is between threads.
            std::thread::scope(|scope| {
                let tracer = scope.spawn(|| {
                    let victim = Victim::stop(pid);
                    for item in &attempts[outcomes.len()..] {
                        let attempt = of(item);
                        let outcome = victim.call(attempt.number, &attempt.arguments);
                        outcomes.push(outcome);
                        if let (true, Outcome::Done(child @ 2..)) =
                            (attempt.number == libc::SYS_fork || attempt.number == libc::SYS_clone, outcome)
                        {
                            end(child);
                        }
                        let used_up = matches!((attempt.without, outcome), (Ends, Outcome::Done(_)));
                        if used_up || matches!(outcome, Outcome::Killed(_)) {
                            break;
                        }
                    }
                });
                tracer.join().unwrap();
            });
        }
        outcomes
    }

    /// Takes away what the process planted.
    fn clear(&self) {
        for name in ["device", "kubelet/planted", "kubelet/link", "providers/planted", "there", "planted"] {
            let path = self.folder.join(name);
            let _absent = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
        }
    }
}

/// Ends a child of the process, which is nobody's.
fn end(child: i64) {
    let child = Pid::from_raw(i32::try_from(child).unwrap());
    let _gone = kill(child, Signal::SIGKILL);
    let _not_ours = waitpid(child, Some(WaitPidFlag::WNOHANG));
}

#[track_caller]
fn all_work<'a>(attempts: impl Iterator<Item = &'a Attempt>, outcomes: Vec<Outcome>) {
    let other: Vec<_> = attempts
        .zip(outcomes)
        .filter(|(attempt, outcome)| match attempt.without {
            Done | Ends => !matches!(outcome, Outcome::Done(_)),
            Faults(errno) => *outcome != Outcome::Refused(errno),
        })
        .map(|(attempt, outcome)| (attempt.name, outcome))
        .collect();
    assert!(other.is_empty(), "without the walls: {other:#?}");
}

#[track_caller]
fn all_are<T: Debug + PartialEq>(what: &str, found: Vec<(&'static str, T)>, expected: impl Fn(usize) -> T) {
    let other: Vec<_> =
        found.iter().enumerate().filter(|(at, (_, outcome))| *outcome != expected(*at)).collect();
    assert!(other.is_empty(), "{what}: {other:#?}");
}

/// Whatever only a program that was taken over would call ends the process.
#[tokio::test(flavor = "multi_thread")]
async fn sandbox_escape_attempts() {
    for shape in [Shape::Provider, Shape::Agent] {
        let ground = Ground::new(shape);
        let attempts = deadly(&ground);
        let free = ground.try_all(false, &attempts, |attempt| attempt).await;
        all_work(attempts.iter(), free);
        ground.clear();

        let confined = ground.try_all(true, &attempts, |attempt| attempt).await;
        let found: Vec<_> = attempts.iter().map(|attempt| attempt.name).zip(confined).collect();
        assert!(found.len() >= 25);
        all_are(&format!("{shape:?}, confined"), found, |_| Outcome::Killed(Signal::SIGSYS));
    }
}

/// What a supervised application may do as any other of a restricted pod, and so its supervisor.
const LEFT: [&str; 17] = [
    "capset",
    "chroot",
    "execve",
    "execveat",
    "fork",
    "io_uring_setup",
    "kcmp",
    "memfd_create",
    "mknodat",
    "name_to_handle_at",
    "personality",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "setgroups",
    "setresgid",
    "setuid",
];

/// A supervisor starts programs, and neither it nor they mount, trace or load anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_stays_in_its_pod_and_starts_programs() {
    let ground = Ground::new(Shape::Supervisor);
    let (left, refused): (Vec<_>, Vec<_>) =
        deadly(&ground).into_iter().partition(|attempt| LEFT.contains(&attempt.name));
    assert_eq!(left.len(), LEFT.len());
    let free = ground.try_all(false, &refused, |attempt| attempt).await;
    all_work(refused.iter(), free);

    let confined = ground.try_all(true, &refused, |attempt| attempt).await;
    let found = refused.iter().map(|attempt| attempt.name).zip(confined).collect();
    all_are("confined", found, |_| Outcome::Refused(Errno::EPERM));
    let confined = ground.try_all(true, &left, |attempt| attempt).await;
    all_work(left.iter(), confined);
    ground.clear();
}

/// What is refused without ending the process: calls that libraries try, arguments that are not ours, files,
/// ports and sockets of others.
#[tokio::test(flavor = "multi_thread")]
async fn sandbox_refuses_what_is_not_ours() {
    for shape in [Shape::Provider, Shape::Agent] {
        let ground = Ground::new(shape);
        // An agent looks for the processes of its pod, and signals them.
        let concerns = |attempt: &Attempt| {
            shape == Shape::Provider || !matches!(attempt.name, "another process" | "signal of others")
        };
        let attempts: Vec<_> =
            refused(&ground).into_iter().filter(|(attempt, _)| concerns(attempt)).collect();
        let free = ground.try_all(false, &attempts, |(attempt, _)| attempt).await;
        all_work(attempts.iter().map(|(attempt, _)| attempt), free);
        ground.clear();

        let confined = ground.try_all(true, &attempts, |(attempt, _)| attempt).await;
        let found = attempts.iter().map(|(attempt, _)| attempt.name).zip(confined).collect();
        all_are(&format!("{shape:?}, confined"), found, |at| Outcome::Refused(attempts[at].1));
    }
}

/// A listener on a port of its own would be a way in; an abstract socket belongs to no folder.
#[tokio::test(flavor = "multi_thread")]
async fn sandbox_opens_no_way_in() {
    let name = format!("leasehold-{}", std::process::id());
    let _open = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let abstract_address = [&libc::AF_UNIX.to_ne_bytes()[..2], b"\0", name.as_bytes()].concat();
    let port = free_port();
    // At an address of loopback that no other server has.
    let port_address =
        [&libc::AF_INET.to_ne_bytes()[..2], &port.to_be_bytes(), &[127, 53, 9, 1], &[0; 8]].concat();
    for (shape, confined) in
        [(Shape::Provider, false), (Shape::Provider, true), (Shape::Agent, false), (Shape::Agent, true)]
    {
        let ground = Ground::new(shape);
        let process = ground.start(confined).await;
        let pid = process.pid();
        let (abstract_address, port_address) = (abstract_address.clone(), port_address.clone());
        let outcomes = tokio::task::spawn_blocking(move || {
            let victim = Victim::stop(pid);
            let then = |domain: i32, call, address: &[u8]| {
                let socket = victim.call(libc::SYS_socket, &[Number(domain.into()), Number(1), NOTHING]);
                let Outcome::Done(socket) = socket else { panic!("{socket:?}") };
                let length = i64::try_from(address.len()).unwrap();
                victim.call(call, &[Number(socket), Bytes(address), Number(length)])
            };
            [
                then(libc::AF_INET, libc::SYS_bind, &port_address),
                then(libc::AF_UNIX, libc::SYS_connect, &abstract_address),
            ]
        });
        let expected = match confined {
            false => [Outcome::Done(0), Outcome::Done(0)],
            true => [Outcome::Refused(Errno::EACCES), Outcome::Refused(Errno::EPERM)],
        };
        assert_eq!(outcomes.await.unwrap(), expected, "{shape:?} confined: {confined}");
    }
}
