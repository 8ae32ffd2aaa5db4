//! leasehold from a pod's point of view, in half a minute: `make demo`.
//!
//! Everything is real except the cluster: OpenBao and leasehold run on loopback, the volume is a tmpfs in a
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
    let bao = Bao::start(Shape::Dev).await;
    stage::configure(&bao, &cluster).await;
    bao.put_secret("app/db", json!({"username": "shop", "password": "correct-horse"})).await;
    voice.say(&format!("OpenBao listens on {} and holds the secret app/db.", bao.url()));
    voice.say("Its policy: pods of the ServiceAccount prod/app may read app/*. Nobody else may.");

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

async fn publish(kubelet: &Kubelet, volume: &Volume, class: &SecretProviderClass, leasehold: &Leasehold) {
    if let Err(status) = kubelet.publish(volume, Some(class)).await {
        panic!("the mount failed: {}\n{}", status.message(), leasehold.log());
    }
}
