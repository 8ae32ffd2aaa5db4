//! leasehold from a pod's point of view, in under a minute: `make demo`.
//!
//! Everything is real except the cluster: OpenBao, PostgreSQL and leasehold run on loopback, the volume is a tmpfs in a
//! mount namespace of this process, and the calls are those of the Secrets Store CSI driver. Nothing is left
//! behind.

#![allow(clippy::print_stdout, reason = "a demo talks")]
#![allow(clippy::unwrap_used, reason = "a demo that cannot go on stops")]

use std::{
    io::IsTerminal as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use support::{
    bao::{Bao, Shape},
    cluster::{Cluster, Pod},
    driver::SecretProviderClass,
    kubelet::{Kubelet, Options, Volume},
    leasehold::{Launch, Leasehold},
    node::Node,
    postgres::Postgres,
    proxy::Proxy,
    require_root, stage, until,
};

#[path = "../tests/support/mod.rs"]
mod support;

const OBJECTS: &str = "\
- objectName: username            # the file
  secretPath: secret/data/app/db  # where it is in OpenBao
  secretKey: username             # the key within
- objectName: password
  secretPath: secret/data/app/db
  secretKey: password
  filePermission: 0400
  refreshInterval: 5s             # how soon the file follows (5m if not said)
";

const POLICY: &str = r#"
path "secret/data/app/*"   { capabilities = ["read"] }
path "database/creds/shop" { capabilities = ["read"] }
"#;

/// `PORT` is the database's.
const DATABASE: &str = "\
- as: db                           # read for the template below; no file of its own
  secretPath: database/creds/shop  # OpenBao makes a user of the database for this pod
  overlap: 2s                      # how long the old user works beside the new one
- objectName: app.env
  template: |
    DATABASE_URL=postgres://{{ .db.username | urlquery }}:{{ .db.password | urlquery }}@127.0.0.1:PORT/postgres
";

/// How long a user of the database lives, and how many the application goes through.
const LIFE: &str = "8s";
const USERS: usize = 3;

/// Bold numbered steps and dim details on a terminal, plain text elsewhere.
struct Voice {
    colour: bool,
    step: usize,
}

impl Voice {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn step(&mut self, text: &str) {
        self.step += 1;
        println!("\n{}", self.paint("1;36", &format!("{}. {text}", self.step)));
    }

    fn say(&self, text: &str) {
        println!("   {text}");
    }

    fn detail(&self, text: &str) {
        for line in text.lines() {
            println!("   {}", self.paint("2", line));
        }
    }

    fn good(&self, text: &str) {
        println!("   {}", self.paint("32", text));
    }

    /// The volume's files as `ls -l` and `cat` show them inside the pod.
    fn files(&self, node: &Node, target: &Path) {
        for name in node.list(target).unwrap().iter().filter(|name| !name.starts_with("..")) {
            let path = target.join(name);
            let bits = node.metadata(&path).permissions().mode() & 0o777;
            let contents = node.read_text(&path);
            println!("   {bits:04o}  /secrets/{name:<10} {}", self.paint("1;33", &contents));
        }
    }
}

#[tokio::main]
async fn main() {
    require_root();
    let started = Instant::now();
    let mut voice =
        Voice { colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(), step: 0 };

    voice.step("A place where secrets live: OpenBao, and a cluster that vouches for its pods");
    let cluster = Arc::new(Cluster::start());
    let (bao, postgres) = tokio::join!(Bao::start(Shape::Dev), Postgres::start());
    stage::configure(&bao, &cluster).await;
    postgres.configure(&bao, "shop", "4s", LIFE).await;
    bao.put_policy("app", POLICY).await;
    bao.put_secret("app/db", json!({"username": "shop", "password": "correct-horse"})).await;
    voice.say(&format!("OpenBao listens on {} and holds the secret app/db.", bao.url()));
    voice.say(
        "Its policy: pods of the ServiceAccount prod/app may read app/*, and may have a user of the shop's",
    );
    voice.say("database. Nobody else may.");

    voice.step("leasehold on a node");
    let node = Arc::new(Node::new());
    let proxy = Proxy::start(bao.url());
    let leasehold = Leasehold::start(&node, Launch::new(&proxy.url())).await;
    voice.say(&format!("Process {} waits for the Secrets Store CSI driver to call it.", leasehold.pid()));
    voice.say("It has no credentials of its own: each pod gets what the pod's own identity may read.");

    voice.step("A pod starts, and asks for two files");
    let class = SecretProviderClass::new("vault", "app", OBJECTS);
    voice.detail(OBJECTS);
    let kubelet = Kubelet::new(Arc::clone(&node), Arc::clone(&cluster), Options::default());
    let volume = Volume::new(&Pod::new("prod", "shop-0", "app"));
    let target = kubelet.target(&volume);
    let asked = Instant::now();
    publish(&kubelet, &volume, &class, &leasehold).await;
    voice.good(&format!(
        "Mounted in {} ms, with {} requests to OpenBao: one login, one read.",
        asked.elapsed().as_millis(),
        proxy.count()
    ));
    voice.say("What the pod sees, in memory, never on the node's disk:");
    voice.files(&node, &target);

    voice.step("The kubelet asks again, as it does every minute or so");
    proxy.forget();
    publish(&kubelet, &volume, &class, &leasehold).await;
    voice
        .good(&format!("Requests to OpenBao: {}. What is true already is not fetched again.", proxy.count()));

    voice.step("Somebody changes the password in OpenBao");
    bao.put_secret("app/db", json!({"username": "shop", "password": "battery-staple"})).await;
    voice.say("Nobody restarts the pod. The file follows:");
    let changed = Instant::now();
    until("the file follows", Duration::from_secs(40), async || {
        (node.read_text(&target.join("password")) == "battery-staple").then_some(())
    })
    .await;
    voice.files(&node, &target);
    voice.good(&format!("After {:.1} s, both files swapped in one step.", changed.elapsed().as_secs_f32()));

    voice.step("An application with a database, and a password that lives for seconds");
    let objects = DATABASE.replace("PORT", &postgres.port().to_string());
    voice.detail(&objects);
    let application = Volume::new(&Pod::new("prod", "shop-1", "app"));
    publish(&kubelet, &application, &SecretProviderClass::new("vault", "app", &objects), &leasehold).await;
    voice.say(
        "The application reads its file whenever it logs in, twenty times a second. The file it starts with:",
    );
    voice.files(&node, &kubelet.target(&application));
    let (users, logins) = log_in_until_replaced(&voice, &kubelet, &application, &postgres).await;
    voice.good(&format!(
        "{logins} logins as {} users, none refused: the new user is in the file before the old one goes.",
        users.len()
    ));
    kubelet.unpublish(&application).unwrap();
    until("the users are gone", support::SOON, async || postgres.minted_roles().is_empty().then_some(()))
        .await;
    voice.good("The application ends, and its last user is dropped from the database at once.");

    voice.step("A pod with another identity asks for the same");
    let stranger = Volume::new(&Pod::new("prod", "stranger-0", "other"));
    match kubelet.publish(&stranger, Some(&class)).await {
        Ok(()) => panic!("a stranger was served"),
        Err(status) => {
            voice.good("It gets nothing, and its author reads why:");
            voice.detail(status.message());
        }
    }

    voice.step("The pod ends");
    kubelet.unpublish(&volume).unwrap();
    assert!(Node::on_disk_beneath(&target).is_empty(), "something was left on the disk");
    voice.good("The volume is gone, and nothing of it is on the disk.");
    leasehold.terminate();
    let mut leasehold = leasehold;
    leasehold.ended(support::SOON).await;
    println!("\n{}", voice.paint("1", &format!("That was leasehold, in {} s.", started.elapsed().as_secs())));
}

/// Logs in to the database with what the file says, until it has named several users.
async fn log_in_until_replaced(
    voice: &Voice,
    kubelet: &Kubelet,
    application: &Volume,
    postgres: &Postgres,
) -> (Vec<String>, usize) {
    let (mut users, mut logins) = (Vec::new(), 0);
    let begun = Instant::now();
    while users.len() < USERS {
        assert!(begun.elapsed() < Duration::from_secs(40), "the credential was not replaced");
        let file = kubelet.file(application, "app.env");
        let (user, password) = credential(&file);
        if let Err(error) = postgres.login(&user, &password).await {
            panic!("the login as {user} was refused: {error}");
        }
        logins += 1;
        if users.last() != Some(&user) {
            voice.say(&format!("after {:4.1} s  logged in as {user}", begun.elapsed().as_secs_f32()));
            users.push(user);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (users, logins)
}

/// User and password of a connection string.
fn credential(file: &str) -> (String, String) {
    let rest = file.trim().strip_prefix("DATABASE_URL=postgres://").unwrap();
    let (user, rest) = rest.split_once(':').unwrap();
    let (password, _) = rest.split_once('@').unwrap();
    (user.to_owned(), password.to_owned())
}

async fn publish(kubelet: &Kubelet, volume: &Volume, class: &SecretProviderClass, leasehold: &Leasehold) {
    if let Err(status) = kubelet.publish(volume, Some(class)).await {
        panic!("the mount failed: {}\n{}", status.message(), leasehold.log());
    }
}
