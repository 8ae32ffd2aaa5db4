//! The leasehold binary as a container of the node runs it.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    SOON, free_port,
    node::{Node, Propagation},
    process::{self, Process},
    until,
};

/// How `leasehold provider` is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// `--vault-addr` and `--openbao-addr`.
    pub vault_addr: String,
    /// File names of the sockets, without `.sock`.
    pub names: Vec<String>,
    /// Contents of `--policy`.
    pub policy: Option<String>,
    /// Further flags.
    pub flags: Vec<String>,
    /// Further environment variables.
    pub env: Vec<(String, String)>,
    /// `--log-level`.
    pub log_level: String,
    /// How its mounts hang on the node's.
    pub propagation: Propagation,
    /// Whether its container lacks the capability CHOWN, as by default on a cluster.
    pub without_chown: bool,
}

impl Launch {
    /// The three sockets of a release, no policy file, everything logged.
    pub fn new(vault_addr: &str) -> Self {
        Self {
            vault_addr: vault_addr.into(),
            names: ["leasehold", "vault", "openbao"].map(str::to_owned).into(),
            policy: None,
            flags: Vec::new(),
            env: Vec::new(),
            log_level: "debug".into(),
            propagation: Propagation::HostToContainer,
            without_chown: false,
        }
    }
}

/// A running provider; killed when dropped.
pub struct Leasehold {
    process: Process,
    node: Arc<Node>,
    launch: Launch,
    health_port: u16,
    past_log: String,
}

impl Leasehold {
    /// Starts it and waits until each of its sockets accepts: it binds them last.
    pub async fn start(node: &Arc<Node>, launch: Launch) -> Self {
        super::install_tls_provider();
        let health_port = free_port();
        let process = spawn(node, &launch, health_port);
        let mut leasehold =
            Self { process, node: Arc::clone(node), launch, health_port, past_log: String::new() };
        leasehold.accepts().await;
        leasehold
    }

    /// Starts it without waiting for its sockets: another one may hold the node.
    pub fn start_waiting(node: &Arc<Node>, launch: Launch) -> Self {
        let health_port = free_port();
        let process = spawn(node, &launch, health_port);
        Self { process, node: Arc::clone(node), launch, health_port, past_log: String::new() }
    }

    /// Waits until it says that it is ready: shortly after its sockets accept.
    pub async fn is_ready(&self) {
        until("leasehold is ready", SOON, async || (self.ready().await == Some(200)).then_some(())).await;
    }

    /// Status of /readyz; `None` while nothing listens.
    pub async fn ready(&self) -> Option<u16> {
        let url = format!("http://127.0.0.1:{}/readyz", self.health_port);
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(SOON).build();
        let response = client.expect("an HTTP client").get(&url).send().await.ok()?;
        Some(response.status().as_u16())
    }

    /// Starts it and gives the end of a process that is not expected to serve.
    pub async fn start_refused(node: &Arc<Node>, launch: &Launch) -> (ExitStatus, String) {
        let mut process = spawn(node, launch, free_port());
        let status = process.wait(SOON).await;
        // Its last words are read by another thread.
        process.logged("leasehold: ", SOON).await;
        (status, process.log())
    }

    /// All output, of the runs before a restart too.
    pub fn log(&self) -> String {
        format!("{}{}", self.past_log, self.process.log())
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The socket of a provider name.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.node.providers_dir().join(format!("{name}.sock"))
    }

    /// GET on the health address: status and body.
    pub async fn http_get(&self, path: &str) -> (u16, String) {
        let url = format!("http://127.0.0.1:{}{path}", self.health_port);
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(SOON).build();
        let response = client.expect("an HTTP client").get(&url).send().await;
        let response = response.unwrap_or_else(|error| panic!("GET {path}: {error:#}\n{}", self.log()));
        let status = response.status().as_u16();
        (status, response.text().await.expect("a text body"))
    }

    /// `kubectl exec` of a command of the binary: in the container's mounts and environment. Exit code, standard
    /// output, standard error.
    pub async fn exec(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = tokio::process::Command::new("nsenter");
        command.args(["--mount", "--target", &self.pid().to_string(), "--"]);
        command.args(self.launch.program()).args(arguments);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LEASEHOLD_STATE_DIR", self.node.state_dir());
        command.envs(self.launch.env.iter().map(|(name, value)| (name, value)));
        let child = process::spawn_with(|| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn());
        let output = child.expect("nsenter of util-linux").wait_with_output().await.expect("its output");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// SIGTERM, without waiting.
    pub fn terminate(&self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// SIGABRT, as an abort in a library does it, without waiting.
    pub fn abort(&self) {
        self.process.signal(Signal::SIGABRT);
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self, bound: Duration) -> ExitStatus {
        self.process.wait(bound).await
    }

    /// Ends it as a crash does.
    pub fn crash(&mut self) {
        self.process.kill();
    }

    /// Starts it again with other settings.
    pub async fn restart_with(&mut self, change: impl FnOnce(&mut Launch)) {
        change(&mut self.launch);
        self.restart().await;
    }

    /// Starts it again with the same flags after it ended.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.past_log.push_str(&self.process.log());
        self.process = spawn(&self.node, &self.launch, self.health_port);
        self.accepts().await;
    }

    /// Waits until the process wrote `text`.
    pub async fn logged(&self, text: &str) {
        self.process.logged(text, SOON).await;
    }

    /// Panics with the log if the process is gone.
    #[track_caller]
    pub fn assert_running(&mut self) {
        self.process.assert_running();
    }

    async fn accepts(&mut self) {
        for name in self.launch.names.clone() {
            let socket = self.socket(&name);
            until(&format!("leasehold accepts on {}", socket.display()), SOON, async || {
                self.process.assert_running();
                UnixStream::connect(&socket).ok()
            })
            .await;
        }
    }
}

impl Launch {
    /// The binary, with the capabilities of its container.
    fn program(&self) -> Vec<PathBuf> {
        let mut program: Vec<PathBuf> = Vec::new();
        if self.without_chown {
            program
                .extend(["setpriv", "--inh-caps=-chown", "--bounding-set=-chown", "--"].map(PathBuf::from));
        }
        program.push(binary());
        program
    }
}

fn spawn(node: &Node, launch: &Launch, health_port: u16) -> Process {
    let program = launch.program();
    node.spawn("leasehold", launch.propagation, &program[0], |command| {
        // Where a core file would be.
        command
            .args(&program[1..])
            .arg("provider")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir(node.root());
        for name in &launch.names {
            command.arg("--endpoint").arg(node.providers_dir().join(format!("{name}.sock")));
        }
        command.args(["--vault-addr", &launch.vault_addr, "--openbao-addr", &launch.vault_addr]);
        command.arg("--state-dir").arg(node.state_dir());
        command.arg("--kubelet-root").arg(node.kubelet_root());
        command.args(["--health-addr", &format!("127.0.0.1:{health_port}")]);
        command.args(["--log-format", "text", "--log-level", &launch.log_level]);
        if let Some(policy) = &launch.policy {
            let path = node.root().join("policy.yaml");
            fs::write(&path, policy).expect("the policy file");
            command.arg("--policy").arg(path);
        }
        command.args(&launch.flags);
        command.envs(launch.env.iter().map(|(name, value)| (name, value)));
    })
}

/// The binary of this build. Cargo names it to tests; an example finds it one folder up. LEASEHOLD_BINARY names
/// another: for a benchmark the image's, which is built for size.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LEASEHOLD_BINARY") {
        return path.into();
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_leasehold") {
        return path.into();
    }
    let here = std::env::current_exe().expect("the path of this program");
    let path = here.ancestors().nth(2).unwrap_or(Path::new("/")).join("leasehold");
    assert!(path.exists(), "{} is not there: run `cargo build --bin leasehold`", path.display());
    path
}
