//! Driver-written volumes: no unmount is seen, and only a Mount can deliver.

use std::path::PathBuf;

use super::*;
use crate::{
    backend::{LeaseTerms, SessionTerms},
    lifecycle::{
        Event, SILENCE,
        message::{Digest, Fetched, OpId, Request, TokenTimes},
    },
    page,
    spec::{
        ApiPath, Connection, FileMode, LoginSpec, Object, ObjectPath, PodIdentity, ProviderName,
        SecretRequest, TlsSpec, VolumeSpec,
        object::{Generator, Output, Part, Source},
    },
};

/// A node whose server grants everything: sessions of 20 min, leases of 10 min that cannot be renewed.
struct Node {
    core: Lifecycle,
    now: BootTime,
    calls: u64,
    leases: u64,
    /// What was asked, and how calls ended: files delivered or not, OK or not.
    asked: Vec<String>,
    answers: Vec<(bool, bool)>,
    /// What Mounts ask for, and the requests that it came to.
    spec: VolumeSpec,
    fetched: Vec<Arc<SecretRequest>>,
    notes: Vec<String>,
    key: VolumeKey,
}

impl Node {
    fn new() -> Self {
        Self {
            core: Lifecycle::new(7),
            now: BootTime::from_millis(1_000_000),
            calls: 0,
            leases: 0,
            asked: Vec::new(),
            answers: Vec::new(),
            spec: Self::spec(),
            fetched: Vec::new(),
            notes: Vec::new(),
            key: VolumeKey::new(PathBuf::from("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount")),
        }
    }

    fn spec() -> VolumeSpec {
        VolumeSpec {
            connection: Connection {
                address: "http://vault".into(),
                namespace: String::new(),
                tls: TlsSpec::default(),
            },
            login: LoginSpec {
                method: Default::default(),
                mount: ApiPath::parse("kubernetes").expect("a path"),
                role: "app".into(),
                audience: "vault".into(),
            },
            objects: vec![Object::new(
                Output::File(ObjectPath::parse("db").expect("a path")),
                Source::Secret {
                    request: SecretRequest::read(ApiPath::parse("database/creds/app").expect("a path")),
                    part: Part::Response,
                },
            )],
            default_mode: FileMode::DEFAULT,
            pod: Default::default(),
        }
    }

    fn mount(&mut self) {
        self.calls += 1;
        let token = TokenTimes { issued: self.now, expires: Some(self.now + Duration::from_secs(3600)) };
        let mount = Mount {
            call: CallId(self.calls),
            key: self.key.clone(),
            pod: PodIdentity {
                namespace: "prod".into(),
                name: "app".into(),
                uid: "u".into(),
                service_account: "app".into(),
            },
            provider: ProviderName::Vault,
            class: "app".into(),
            mode: Mode::DriverWritten,
            plan: Ok(Arc::new(self.spec.clone())),
            digest: [1; 32],
            token: Ok((token, "sa".into())),
            intact: true,
            deadline: self.now + Duration::from_secs(90),
        };
        self.core.handle(Event::Mount(Box::new(mount)), self.now);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(action) = self.core.poll_action() {
            let event = match action {
                Action::Perform(op, _, request) => Some(self.perform(op, request)),
                Action::Render(plan, ..) => {
                    Some(Event::Rendered(plan, Ok(vec![("db".into(), self.leases.to_string())])))
                }
                Action::Answer { answer, deliver, report, .. } => {
                    self.answers.push((deliver.is_some(), answer.is_ok()));
                    report.map(|plan| Event::Answered(plan, true))
                }
                Action::Note(_, note) => {
                    self.notes.push(note.to_string());
                    None
                }
                Action::Swap { .. } => panic!("nothing is written into a driver-written volume"),
                _ => None,
            };
            if let Some(event) = event {
                self.core.handle(event, self.now);
            }
        }
    }

    fn perform(&mut self, op: OpId, request: Request) -> Event {
        let terms = SessionTerms {
            ttl: Duration::from_secs(1200),
            renewable: true,
            revocable: true,
            num_uses: 0,
            shareable: true,
        };
        let renewed =
            crate::backend::Renewed { ttl: Duration::from_secs(1200), renewable: true, since: self.now };
        let (asked, event) = match request {
            Request::Login { .. } => ("login", Event::LoggedIn(op, Ok((terms, self.now)))),
            Request::Fetch { request, .. } if request.path.as_str().starts_with("secret/data/") => {
                self.fetched.push(request);
                let fetched = Fetched {
                    digest: Digest([0; 16]),
                    lease: None,
                    lifetime: None,
                    kv_version: Some(1),
                    since: self.now,
                };
                ("read", Event::Fetched(op, Ok(fetched)))
            }
            Request::Fetch { request, .. } => {
                self.fetched.push(request);
                self.leases += 1;
                let lease = LeaseTerms {
                    id: format!("database/creds/app/{}", self.leases),
                    ttl: Duration::from_secs(600),
                    renewable: false,
                };
                let mut digest = [0; 16];
                digest[..8].copy_from_slice(&self.leases.to_be_bytes());
                let fetched = Fetched {
                    digest: Digest(digest),
                    lease: Some(lease),
                    lifetime: None,
                    kv_version: None,
                    since: self.now,
                };
                ("mint", Event::Fetched(op, Ok(fetched)))
            }
            Request::RenewSession(_) => ("renew-session", Event::Renewed(op, Ok(renewed))),
            Request::RenewLease(..) => ("renew-lease", Event::Renewed(op, Ok(renewed))),
            Request::RevokeSession(_) => ("revoke-session", Event::Revoked(op, Ok(()))),
            Request::RevokeLease(..) => ("revoke-lease", Event::Revoked(op, Ok(()))),
        };
        self.asked.push(asked.into());
        event
    }

    fn run_until(&mut self, until: BootTime) {
        while let Some(at) = self.core.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.core.handle_timeout(self.now);
            self.settle();
        }
        self.now = until;
    }

    fn pass(&mut self, seconds: u64) -> Vec<String> {
        self.asked.clear();
        self.run_until(self.now + Duration::from_secs(seconds));
        std::mem::take(&mut self.asked)
    }
}

#[test]
fn an_old_credential_is_given_up_only_after_the_new_one_was_delivered_and_a_mount_came_again() {
    let mut node = Node::new();
    node.mount();
    assert_eq!(node.answers.pop(), Some((true, true)));
    node.mount();
    let (files, _) = node.answers.pop().expect("answered");
    assert!(!files, "an unchanged mount hands the driver no file, and the driver leaves all as it is");
    let asked = node.pass(420);
    assert_eq!(asked, ["mint"], "the successor is there before the old one dies, and the old one lives");
    node.asked.clear();
    node.mount();
    assert!(node.answers.pop().expect("answered").0, "the next Mount carries the whole set");
    let after = node.pass(60);
    assert!(
        !after.iter().any(|asked| asked.starts_with("revoke")),
        "the driver may not have written it: {after:?}"
    );
    node.mount();
    assert!(!node.answers.pop().expect("answered").0);
    let after = node.pass(1);
    let given_back = after.iter().filter(|asked| asked.starts_with("revoke")).count();
    assert_eq!(given_back, 1, "{after:?}");
}

#[test]
fn driver_written_silence() {
    let mut node = Node::new();
    node.mount();
    // Mounts keep coming every 5 minutes: three of these intervals are longer than ten minutes.
    for _ in 0..6 {
        node.pass(300);
        node.mount();
    }
    node.answers.clear();
    let asked = node.pass(880);
    assert!(asked.iter().any(|asked| asked == "renew-session"), "it is taken for alive: {asked:?}");
    node.pass(40);
    assert!(node.core.volumes()[&node.key].silent, "three intervals without a Mount");
    page::brought_about(page::SILENT, &node.notes.join("\n"));
    let after = node.pass(24 * 3600);
    assert!(after.is_empty(), "it is left to expire: {after:?}");
    // And back to life at once, with credentials that live.
    node.mount();
    assert_eq!(node.answers.pop(), Some((true, true)));
    assert_eq!(node.asked, ["login", "mint"]);
    assert!(!node.core.volumes()[&node.key].silent);
    // Without any observed interval the limit is ten minutes.
    let mut node = Node::new();
    node.mount();
    node.pass(SILENCE.as_secs() - 1);
    assert!(!node.core.volumes()[&node.key].silent);
    node.pass(2);
    assert!(node.core.volumes()[&node.key].silent);
}

#[test]
fn a_replacement_that_died_undelivered_is_made_again() {
    let mut node = Node::new();
    node.mount();
    // The replacement is ready after 400 s, and lives for ten minutes: no Mount came to carry it.
    node.core.volumes.get_mut(&node.key).expect("mounted").mount_interval = Duration::from_secs(1000);
    node.pass(1100);
    node.answers.clear();
    node.mount();
    assert_eq!(node.answers.pop(), Some((true, true)));
    let installed = node.core.volumes()[&node.key].installed.as_ref().expect("live");
    let alive = installed.dependencies.values().all(|known| known.ends().is_some_and(|ends| ends > node.now));
    assert!(alive, "what was delivered lives");
}

/// What nobody has written yet is made by a Mount: no check, no replacement and no hand-over may write, for what is
/// gone then was there.
#[test]
fn nothing_is_generated_but_by_a_mount() {
    let mut node = Node::new();
    let path = ApiPath::parse("secret/data/app/made").expect("a path");
    let request = SecretRequest {
        generate: [("token".to_owned(), Generator::Uuid)].into(),
        ..SecretRequest::read(path)
    };
    let name = ObjectPath::parse("made").expect("a path");
    let source = Source::Secret { request, part: Part::Key("token".into()) };
    let made =
        Object { refresh_interval: Some(Duration::from_secs(60)), ..Object::new(Output::File(name), source) };
    node.spec.objects.push(made);
    let writes = |node: &mut Node| {
        let fetched = std::mem::take(&mut node.fetched);
        let reads = fetched.iter().filter(|request| request.path.as_str().ends_with("made")).count();
        (reads, fetched.iter().filter(|request| request.may_write()).count())
    };
    node.mount();
    assert_eq!(node.answers.pop(), Some((true, true)));
    assert_eq!(writes(&mut node), (1, 1));
    // Checks of the value.
    node.pass(300);
    let (reads, written) = writes(&mut node);
    assert!(reads > 3, "{reads}");
    assert_eq!(written, 0, "a check would write");
    // As after a restart nothing is in memory: what replaces the credential reads the value anew.
    node.mount();
    let installed = node.core.volumes.get_mut(&node.key).and_then(|volume| volume.installed.as_mut());
    installed.expect("live").dependencies.values_mut().for_each(|known| known.held = false);
    let asked = node.pass(420);
    assert!(asked.iter().any(|asked| asked == "mint"), "{asked:?}");
    assert_eq!(writes(&mut node).1, 0, "a replacement would write");
}
