//! A real PostgreSQL server for the database secrets engine, as PostgreSQL's own user, on tmpfs.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use aws_lc_rs::{digest, hmac, pbkdf2};
use data_encoding::BASE64;
use nix::unistd::User;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    SOON,
    bao::Admin,
    free_port,
    process::{self, Process},
    require_root, until,
};

/// The running server; killed when dropped.
pub struct Postgres {
    process: Process,
    port: u16,
    dir: TempDir,
}

impl Postgres {
    /// Makes a cluster in memory and starts it.
    pub async fn start() -> Self {
        require_root();
        let user = User::from_name("postgres")
            .expect("the user database")
            .expect("the user `postgres`: run scripts/setup, which installs PostgreSQL");
        let dir = tempfile::Builder::new().prefix("lhpg").tempdir_in("/dev/shm").expect("a folder in memory");
        chown(dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("give the folder away");
        let data = dir.path().join("data");
        let made = process::output(
            Command::new("setpriv")
                .args(as_postgres())
                .arg(binary("initdb"))
                .args(["--no-sync", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"])
                // A container's /dev/shm may have 64 MiB only.
                .args(["--wal-segsize=1", "-D"])
                .arg(&data)
                .current_dir("/"),
        )
        .expect("run initdb");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        // The operator comes in without a password; every role that the server mints needs its own.
        let rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), rules).expect("pg_hba.conf");
        let port = free_port();
        let process = Process::spawn("postgres", "setpriv", |command| {
            command.args(as_postgres()).args(["--pdeathsig", "KILL"]).arg(binary("postgres"));
            command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k"]);
            command.arg(dir.path()).current_dir("/");
            for setting in [
                "fsync=off",
                "synchronous_commit=off",
                "full_page_writes=off",
                "max_wal_size=8MB",
                "min_wal_size=2MB",
            ] {
                command.args(["-c", setting]);
            }
        });
        let mut postgres = Self { process, port, dir };
        until("PostgreSQL answers", SOON, async || {
            postgres.process.assert_running();
            postgres.psql("postgres", "", "select 1").ok()
        })
        .await;
        postgres
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL as the operator and gives back the bare rows.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.psql("postgres", "", sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs SQL as `user`, through the password that a pod would read from its file.
    pub fn psql(&self, user: &str, password: &str, sql: &str) -> Result<String, String> {
        let output = process::output(
            Command::new(binary("psql"))
                .args(["-X", "-A", "-t", "-q", "-h", "127.0.0.1", "-U", user, "-d", "postgres", "-c", sql])
                .args(["-p", &self.port.to_string()])
                .env("PGPASSWORD", password)
                .env("PGCONNECT_TIMEOUT", "5"),
        )
        .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    /// Logs in as an application's driver does and leaves again: no process is started, so that it can be
    /// done every 50 ms.
    pub async fn login(&self, user: &str, password: &str) -> Result<(), String> {
        let work = login(self.port, user, password);
        match tokio::time::timeout(SOON, work).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {SOON:?}")),
        }
    }

    /// Names of the roles that the database engine made and has not dropped.
    pub fn minted_roles(&self) -> Vec<String> {
        let rows = self.sql("select rolname from pg_roles where rolname like 'v-%' order by 1");
        rows.lines().map(str::to_owned).collect()
    }

    /// New connections hang from now on; those that are open go on.
    pub fn freeze(&self) {
        self.process.signal(nix::sys::signal::Signal::SIGSTOP);
    }

    /// Goes on.
    pub fn thaw(&self) {
        self.process.signal(nix::sys::signal::Signal::SIGCONT);
    }

    /// Mounts the database engine at `database/` with a role whose leases live for the given times
    /// (`"1h"`, `"10s"`).
    pub async fn configure(&self, bao: &Admin, role: &str, default_ttl: &str, max_ttl: &str) {
        if bao.read("sys/mounts").await["data"]["database/"].is_null() {
            bao.write("sys/mounts/database", json!({"type": "database"})).await;
            let config = json!({
                "plugin_name": "postgresql-database-plugin",
                "allowed_roles": "*",
                "connection_url": format!(
                    "postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{}/postgres?sslmode=disable",
                    self.port
                ),
                "username": "postgres",
                "password": "unused",
            });
            bao.write("database/config/postgres", config).await;
        }
        let body = json!({
            "db_name": "postgres",
            "creation_statements": [
                "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'",
            ],
            "revocation_statements": ["DROP ROLE IF EXISTS \"{{name}}\""],
            "default_ttl": default_ttl,
            "max_ttl": max_ttl,
        });
        bao.write(&format!("database/roles/{role}"), body).await;
    }

    /// The folder of the server, in memory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // The immediate shutdown takes the server's own children with it; a kill would orphan them.
        self.process.signal(nix::sys::signal::Signal::SIGQUIT);
        self.thaw();
        let started = Instant::now();
        while self.process.exited().is_none() && started.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The start of a session, protocol 3.0 with SCRAM-SHA-256.
async fn login(port: u16, user: &str, password: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let mut start = 196_608_u32.to_be_bytes().to_vec();
    start.extend(format!("user\0{user}\0database\0postgres\0\0").bytes());
    send(&mut stream, None, &start).await?;
    expect(&mut stream, 10).await?;
    let nonce = data_encoding::HEXLOWER.encode(&rand::random::<[u8; 12]>());
    let first = format!("n=,r={nonce}");
    let hello = format!("n,,{first}");
    let mut body = b"SCRAM-SHA-256\0".to_vec();
    body.extend(u32::try_from(hello.len()).expect("short").to_be_bytes());
    body.extend(hello.bytes());
    send(&mut stream, Some(b'p'), &body).await?;
    let challenge = String::from_utf8(expect(&mut stream, 11).await?).map_err(broken)?;
    let field = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name));
    let (Some(nonce), Some(salt), Some(rounds)) = (field("r="), field("s="), field("i=")) else {
        return Err(broken("no challenge"));
    };
    let rounds = rounds.parse().map_err(broken)?;
    let salt = BASE64.decode(salt.as_bytes()).map_err(broken)?;
    let mut salted = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
    let mac = |key: &[u8], text: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    let client = mac(&salted, b"Client Key");
    let stored = digest::digest(&digest::SHA256, client.as_ref());
    let bare = format!("c=biws,r={nonce}");
    let signature = mac(stored.as_ref(), format!("{first},{challenge},{bare}").as_bytes());
    let proof: Vec<u8> = client.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
    let last = format!("{bare},p={}", BASE64.encode(&proof));
    send(&mut stream, Some(b'p'), last.as_bytes()).await?;
    expect(&mut stream, 12).await?;
    expect(&mut stream, 0).await?;
    send(&mut stream, Some(b'X'), &[]).await
}

async fn send(stream: &mut TcpStream, kind: Option<u8>, body: &[u8]) -> std::io::Result<()> {
    let mut message: Vec<u8> = kind.into_iter().collect();
    message.extend(u32::try_from(body.len() + 4).expect("short").to_be_bytes());
    message.extend(body);
    stream.write_all(&message).await
}

/// The rest of an authentication message of this kind; the server's refusal is the error.
async fn expect(stream: &mut TcpStream, code: u32) -> std::io::Result<Vec<u8>> {
    let kind = stream.read_u8().await?;
    let length = stream.read_u32().await?.saturating_sub(4).min(1 << 16);
    let mut body = vec![0; usize::try_from(length).expect("bounded above")];
    stream.read_exact(&mut body).await?;
    if kind != b'R' || body.get(..4) != Some(&code.to_be_bytes()) {
        return Err(broken(String::from_utf8_lossy(&body).replace('\0', " ")));
    }
    Ok(body.split_off(4))
}

fn broken(why: impl std::fmt::Display) -> std::io::Error {
    std::io::Error::other(why.to_string())
}

fn as_postgres() -> [&'static str; 3] {
    ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
}

/// Debian keeps server programs out of the PATH, in a folder per major version.
fn binary(name: &str) -> PathBuf {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    versions.sort();
    versions.pop().unwrap_or_else(|| panic!("no {name} below /usr/lib/postgresql: run scripts/setup"))
}
