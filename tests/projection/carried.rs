//! Files that go from one version to the next: read back, as root, from where a container may have been.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use leasehold::{
    projection::{
        MAX_PAYLOAD_LEN, Payload,
        writer::{WriteError, carry_over},
    },
    spec::{
        FileMode, Object, ProviderName, TlsSpec,
        parameters::{Defaults, parse},
    },
};
use nix::{
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, mknod},
    unistd::mkfifo,
};

use crate::stage::{Stage, Writer, cycles, eventually, payload, umount};

/// What the volume has: a file, one below a folder, and the folder of a secret's keys.
fn objects() -> Vec<Object> {
    let objects = "- {objectName: password, secretPath: secret/data/a, secretKey: password}
- {objectName: tls/key, secretPath: secret/data/a, secretKey: key}
- {objectName: keys, secretPath: secret/data/b, extract: {}}
";
    let attributes = [
        ("vaultAddress", "http://127.0.0.1:8200"),
        ("roleName", "app"),
        ("objects", objects),
        ("csi.storage.k8s.io/pod.namespace", "prod"),
    ];
    let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let mode = FileMode::new(0o644).unwrap();
    let defaults = Defaults {
        address: None,
        namespace: String::new(),
        auth_mount: "kubernetes".into(),
        node: String::new(),
        tls: TlsSpec::default(),
    };
    parse(ProviderName::Vault, &attributes, mode, &defaults).unwrap().spec.objects
}

fn files() -> Payload {
    payload(&[("password", "1"), ("tls/key", "2"), ("keys/a", "3"), ("keys/b", "4")])
}

/// A volume with its files, and a host file that is not the pod's.
struct Case<'a> {
    target: PathBuf,
    writer: Writer<'a>,
    version: String,
    objects: Vec<Object>,
    host: PathBuf,
}

impl<'a> Case<'a> {
    fn new(stage: &Stage, target: &'a Path) -> Self {
        let writer = Writer::of(target);
        let version = writer.take_over(&files()).version_dir;
        let host = stage.kubelet.join("shadow");
        fs::write(&host, "host").unwrap();
        Self { target: target.to_owned(), writer, version, objects: objects(), host }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.target.join(&self.version).join(name)
    }

    fn carry(&self) -> Result<Payload, WriteError> {
        let mut carried = Payload::default();
        let mode = FileMode::new(0o644).unwrap();
        carry_over(&self.target, &self.writer.identity, &self.version, (&self.objects, mode), &mut carried)?;
        Ok(carried)
    }

    #[track_caller]
    fn assert_refused(&self, what: &str, name: &str) {
        let started = Instant::now();
        match self.carry() {
            Err(WriteError::Tampered { name: found, .. }) => assert_eq!(found, name, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
        // The kernel gives the holder of a lease 45 s, and a FIFO has all the time there is.
        assert!(started.elapsed() < Duration::from_secs(30), "{what}: waited");
    }
}

/// Puts something else in a file's place.
fn replace(path: &Path, make: impl FnOnce(&Path)) {
    fs::remove_file(path).unwrap();
    make(path);
}

#[test]
fn carried_files_are_those_that_were_written() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let case = Case::new(stage, &target);
        assert_eq!(case.carry().unwrap(), files());
        // Beside what is new; only that is swapped in.
        let mut next = payload(&[("new", "5")]);
        next.files.extend(case.carry().unwrap().files);
        let made = case.writer.write(&next, Some(&case.version)).unwrap();
        assert_eq!(fs::read_to_string(target.join("..data/keys/b")).unwrap(), "4");
        assert!(made.changed);
        // The former version went with the swap: it is being unpublished, or displaced.
        assert!(matches!(case.carry(), Err(WriteError::BeingUnpublished { .. })));
    });
}

type Plant = fn(&Case<'_>, &Path);

/// Everything that a container may put in a file's place, as root in its volume. Each is refused by name, none is
/// opened, and the volume's next version is made of answers instead.
#[test]
fn adversary_carried_files() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let plantings: [(&str, &str, Plant); 15] = [
            ("a link to the host", "password", |case, path| {
                replace(path, |it| symlink(&case.host, it).unwrap())
            }),
            ("a link within the volume", "password", |_, path| {
                replace(path, |it| symlink("keys/a", it).unwrap())
            }),
            ("a link to our own memory", "password", |_, path| {
                replace(path, |it| symlink("/proc/self/environ", it).unwrap());
            }),
            ("a link in place of a folder above", "tls/key", |case, path| {
                fs::rename(path.parent().unwrap(), case.target.join("aside")).unwrap();
                symlink("../aside", path.parent().unwrap()).unwrap();
            }),
            ("a second name of another file", "password", |case, path| {
                replace(path, |it| fs::hard_link(case.path("keys/a"), it).unwrap());
            }),
            ("a FIFO", "password", |_, path| {
                replace(path, |it| mkfifo(it, Mode::from_bits_truncate(0o644)).unwrap())
            }),
            ("a socket", "password", |_, path| {
                replace(path, |it| mknod(it, SFlag::S_IFSOCK, Mode::from_bits_truncate(0o644), 0).unwrap())
            }),
            ("a device", "password", |_, path| {
                let null = nix::sys::stat::makedev(1, 3);
                replace(path, |it| mknod(it, SFlag::S_IFCHR, Mode::from_bits_truncate(0o644), null).unwrap());
            }),
            ("a folder", "password", |_, path| replace(path, |it| fs::create_dir(it).unwrap())),
            ("more bytes than a volume may have", "password", |_, path| {
                let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(MAX_PAYLOAD_LEN as u64 + 1).unwrap();
            }),
            ("another mode", "password", |_, path| {
                fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
            }),
            ("another owner", "password", |_, path| chown(path, Some(1000), None).unwrap()),
            ("another group", "keys", |case, _| chown(case.path("keys/b"), None, Some(1000)).unwrap()),
            ("a link in a secret's folder", "keys", |case, _| {
                symlink(&case.host, case.path("keys/c")).unwrap()
            }),
            ("more files than a volume may have", "keys", |case, _| {
                (0..10_001)
                    .for_each(|count| drop(fs::File::create(case.path(&format!("keys/{count}"))).unwrap()));
            }),
        ];
        for (what, name, plant) in plantings {
            let case = Case::new(stage, &target);
            plant(&case, &case.path(name));
            // Without the guard: a reader by name takes all that can be read at all.
            let taken = ["password", "tls/key", "keys/b"].map(|it| read_at_once(&case.path(it)).is_some());
            assert_eq!(taken.contains(&false), ["a socket", "a folder"].contains(&what), "{what}: {taken:?}");
            case.assert_refused(what, name);
            case.writer.take_over(&payload(&[("other", what)]));
            let _ = fs::remove_dir_all(target.join("aside"));
            assert_eq!(fs::read_to_string(&case.host).unwrap(), "host", "{what}");
        }
        // Deeper than any secret's keys are.
        let case = Case::new(stage, &target);
        fs::create_dir_all(case.path("keys/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18")).unwrap();
        case.assert_refused("depth", "keys");
        // A whole version of somebody else's, which a container can make where everybody may write.
        let case = Case::new(stage, &target);
        chown(case.path(""), Some(1000), None).unwrap();
        case.assert_refused("a version of another's", &case.version);
        // What is mounted over a file or a folder belongs to whom may mount.
        for name in ["password", "tls"] {
            let case = Case::new(stage, &target);
            if name == "tls" {
                mount(Some("tmpfs"), &case.path(name), Some("tmpfs"), MsFlags::empty(), None::<&str>)
                    .unwrap();
            } else {
                mount(Some(&case.host), &case.path(name), None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .unwrap();
            }
            case.assert_refused("a mount", if name == "tls" { "tls/key" } else { name });
            umount(&case.path(name)).unwrap();
        }
        // Where `..data` leads is nothing to us: the version that is read is the one on record.
        let case = Case::new(stage, &target);
        fs::create_dir(target.join("..2020_01_01_00_00_00.1")).unwrap();
        fs::write(target.join("..2020_01_01_00_00_00.1/password"), "planted").unwrap();
        fs::remove_file(target.join("..data")).unwrap();
        symlink("..2020_01_01_00_00_00.1", target.join("..data")).unwrap();
        assert_eq!(case.carry().unwrap(), files());
    });
}

/// Looking is not opening: who waits at the other end of a FIFO would hear of it, and a device would act.
#[test]
fn what_is_no_file_is_not_opened() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let case = Case::new(stage, &target);
        let fifo = case.path("password");
        replace(&fifo, |it| mkfifo(it, Mode::from_bits_truncate(0o644)).unwrap());
        let heard = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Returns once somebody has opened the other end.
                let _writer = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
                heard.store(true, Ordering::SeqCst);
            });
            for _ in 0..100 {
                case.assert_refused("a FIFO", "password");
            }
            assert!(!heard.load(Ordering::SeqCst), "it was opened");
            // What any other reader does.
            let naive =
                fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&fifo).unwrap();
            eventually("the other end hears of an open", || heard.load(Ordering::SeqCst));
            drop(naive);
        });
    });
}

/// Holds a lease on a file until it is dropped: whoever opens it waits until the holder lets go.
struct Lease(Child);

impl Lease {
    fn on(path: &Path) -> Self {
        let program = "import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
time.sleep(600)";
        let mut child =
            Command::new("python3").args(["-c", program]).arg(path).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = [0; 4];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"held");
        Self(child)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A lease of fcntl: an open that would wait stops the one task that serves the whole node.
#[test]
fn a_lease_on_a_file_stops_nobody() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let case = Case::new(stage, &target);
        let lease = Lease::on(&case.path("password"));
        case.assert_refused("a lease", "password");
        // The same bytes are there, and cannot be seen: written anew.
        let unseen = case.writer.write(&files(), Some(&case.version)).unwrap();
        assert!(unseen.changed);
        drop(lease);
        // What any other reader does: it waits for as long as the holder likes, up to the kernel's 45 s.
        let path = target.join(&unseen.version_dir).join("password");
        let lease = Lease::on(&path);
        let (opened, waits) = std::sync::mpsc::channel();
        std::thread::spawn(move || opened.send(fs::read(path).unwrap()));
        assert!(waits.recv_timeout(Duration::from_secs(1)).is_err(), "it waits");
        drop(lease);
        assert_eq!(waits.recv_timeout(Duration::from_secs(30)).unwrap(), b"1");
    });
}

/// The files change hands while they are read: what is carried over is what was written, or nothing.
#[test]
fn adversary_carry_race() {
    Stage::run(|stage| {
        let target = stage.volume("app");
        let case = Case::new(stage, &target);
        let path = case.path("password");
        let aside = target.join("aside");
        fs::create_dir(&aside).unwrap();
        symlink(&case.host, aside.join("link")).unwrap();
        mkfifo(&aside.join("fifo"), Mode::from_bits_truncate(0o644)).unwrap();
        fs::write(aside.join("foreign"), "foreign").unwrap();
        chown(aside.join("foreign"), Some(1000), Some(1000)).unwrap();
        let under_attack = |body: &mut dyn FnMut() -> bool| {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let attacker = scope.spawn(|| {
                    let mut swaps = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        for other in ["link", "fifo", "foreign"] {
                            // At no time is the name free.
                            exchange(&path, &aside.join(other));
                            exchange(&path, &aside.join(other));
                            swaps += 2;
                        }
                    }
                    swaps
                });
                while body() {
                    assert!(!attacker.is_finished(), "the attacker gave up");
                }
                stop.store(true, Ordering::Relaxed);
                attacker.join().unwrap()
            })
        };
        // Without the guard: a reader by name, who even looks first, gets the host's file soon.
        let limit = Instant::now() + Duration::from_secs(60);
        under_attack(&mut || {
            assert!(Instant::now() < limit, "the attack cannot even reach a naive reader");
            let looked = fs::symlink_metadata(&path).is_ok_and(|it| it.is_file() && it.uid() == 0);
            !(looked && read_at_once(&path).is_some_and(|read| read == "host"))
        });
        let (mut carried, mut refused) = (0, 0);
        let goal = cycles(20_000);
        let swaps = under_attack(&mut || {
            match case.carry() {
                Ok(found) => {
                    assert_eq!(found, files());
                    carried += 1;
                }
                Err(WriteError::Tampered { .. }) => refused += 1,
                Err(error) => panic!("{error}: {error:?}"),
            }
            carried + refused < goal
        });
        assert!(
            carried > 0 && refused > 0 && swaps > goal / 20,
            "{carried} {refused} {swaps}: not an attack"
        );
        assert_eq!(fs::read_to_string(&case.host).unwrap(), "host");
        assert_eq!(case.carry().unwrap(), files(), "when it is over");
    });
}

fn exchange(one: &Path, other: &Path) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

/// By name, without waiting for a FIFO's other end.
fn read_at_once(path: &Path) -> Option<String> {
    let mut text = String::new();
    let mut file = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).ok()?;
    file.read_to_string(&mut text).ok().map(|_| text)
}
