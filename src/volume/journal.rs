//! The record by which a restart costs nothing: one file per volume, one per session, one for the node, in a
//! folder that must be tmpfs. Session and ServiceAccount tokens are in it, secret values never.
//!
//! Every file is written whole and renamed into place. What the core marks dirty is on record before the
//! action that needs it is performed, so a crash at any point leaves a record of every session that could
//! hold a lease.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{LoginCredential, VolumeKey, holdings::HeldSession};
use crate::{
    backend::Credential,
    lifecycle::{
        session::{Session, SessionId},
        volume::Volume,
    },
    projection::target::MountIdentity,
    secret::SecretString,
};

/// Of the records; another version's are dropped, their sessions expire.
const FORMAT: u32 = 2;

const NOT_TMPFS: &str = "the state folder is not tmpfs: no token is stored, so every restart logs in again, mints \
                         every lease again and leaves the old ones to their TTL; mount a tmpfs there (/run is one)";

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder cannot be made or used.
    #[error("cannot use the state folder {path}: {doing}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What we were doing.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The state folder, locked: no second agent acts on this node.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// Whether tokens may be written: only to a tmpfs.
    durable: bool,
    boot_id: String,
    _lock: Flock<fs::File>,
}

/// What a former process of this boot left.
#[derive(Debug, Default)]
pub struct Restored {
    /// Volumes, the mount each was written to, and the token held for it.
    pub volumes: Vec<(VolumeKey, Volume, Option<MountIdentity>, Option<LoginCredential>)>,
    /// Sessions with their tokens.
    pub sessions: Vec<(SessionId, Session, HeldSessionRecord)>,
}

/// A session's token as restored.
#[derive(Debug)]
pub struct HeldSessionRecord(pub(super) HeldSession);

#[derive(Serialize, Deserialize)]
struct NodeRecord {
    format: u32,
    boot_id: String,
    digest_key: String,
}

#[derive(Serialize, Deserialize)]
struct TokenRecord {
    /// Of a ServiceAccount; empty where another kind of credential is held.
    jwt: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    other: Option<OtherCredential>,
    service_account_uid: String,
    expires_at: Option<u64>,
    issued_at: Option<u64>,
}

/// What the in-pod agent logs in with beside a ServiceAccount's token.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OtherCredential {
    AppRole { role_id: String, secret_id: Option<String> },
    Certificate,
    Token(String),
}

impl TokenRecord {
    fn of(held: &LoginCredential) -> Self {
        let (jwt, other) = match &held.credential {
            Credential::Jwt(jwt) => (jwt.expose().to_owned(), None),
            Credential::AppRole { role_id, secret_id } => {
                let secret_id = secret_id.as_ref().map(|secret_id| secret_id.expose().to_owned());
                let role_id = role_id.expose().to_owned();
                (String::new(), Some(OtherCredential::AppRole { role_id, secret_id }))
            }
            Credential::Certificate => (String::new(), Some(OtherCredential::Certificate)),
            Credential::Token(token) => {
                (String::new(), Some(OtherCredential::Token(token.expose().to_owned())))
            }
        };
        Self {
            jwt,
            other,
            service_account_uid: held.service_account_uid.clone(),
            expires_at: held.expires_at,
            issued_at: held.issued_at,
        }
    }

    fn into_held(self) -> LoginCredential {
        let credential = match self.other {
            None => Credential::Jwt(SecretString::new(self.jwt)),
            Some(OtherCredential::AppRole { role_id, secret_id }) => Credential::AppRole {
                role_id: SecretString::new(role_id),
                secret_id: secret_id.map(SecretString::new),
            },
            Some(OtherCredential::Certificate) => Credential::Certificate,
            Some(OtherCredential::Token(token)) => Credential::Token(SecretString::new(token)),
        };
        LoginCredential {
            credential,
            service_account_uid: self.service_account_uid,
            expires_at: self.expires_at,
            issued_at: self.issued_at,
        }
    }
}

/// Written from what the core has, read into what it takes.
#[derive(Serialize, Deserialize)]
struct VolumeRecord<K = VolumeKey, V = Volume> {
    format: u32,
    key: K,
    identity: Option<MountIdentity>,
    token: Option<TokenRecord>,
    volume: V,
}

#[derive(Serialize, Deserialize)]
struct SessionRecord<T = String, S = Session> {
    format: u32,
    id: SessionId,
    token: T,
    accessor: T,
    session: S,
}

impl Journal {
    /// Makes the folder, for its owner only. Apart from [`Self::open`], because a confined process makes
    /// nothing beside its folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create_folder(folder: &Path) -> Result<(), JournalError> {
        let failed = |doing| {
            let path = folder.to_owned();
            move |source: io::Error| JournalError::Folder { path, doing, source }
        };
        for path in [folder.to_owned(), folder.join("volumes"), folder.join("sessions")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(failed("create it with mode 0700"))?;
            // The kubelet makes a hostPath 0755.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .map_err(failed("give it mode 0700"))?;
        }
        Ok(())
    }

    /// Opens the folder, waiting for its lock: while another agent holds it, that one acts.
    ///
    /// # Errors
    /// When the folder cannot be made, locked or read.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        Self::create_folder(folder)?;
        let failed = |doing| {
            let path = folder.to_owned();
            move |source: io::Error| JournalError::Folder { path, doing, source }
        };
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join("lock"))
            .map_err(failed("open its lock file"))?;
        let lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((file, _)) => {
                warn!(folder = %folder.display(), "another leasehold holds the state folder: waiting for it to end");
                Flock::lock(file, FlockArg::LockExclusive)
                    .map_err(|(_, errno)| failed("lock it")(errno.into()))?
            }
        };
        let statfs =
            nix::sys::statfs::statfs(folder).map_err(|errno| failed("see its file system")(errno.into()))?;
        let durable = statfs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC;
        if !durable {
            warn!(folder = %folder.display(), "{NOT_TMPFS}");
        }
        let boot_id = crate::clock::boot_id().map_err(failed("read the boot id"))?;
        Ok(Self { folder: folder.to_owned(), durable, boot_id, _lock: lock })
    }

    /// Why nothing but names may be written here; `None` on a tmpfs.
    pub fn shortcoming(&self) -> Option<&'static str> {
        (!self.durable).then_some(NOT_TMPFS)
    }

    /// The node's digest key: the former process's of this boot, or a new one.
    ///
    /// # Errors
    /// When a new one cannot be written.
    pub fn digest_key(&self, fresh: [u8; 32]) -> Result<[u8; 32], JournalError> {
        let path = self.folder.join("node.json");
        let known: Option<NodeRecord> =
            fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(node) = known.filter(|node| node.format == FORMAT && node.boot_id == self.boot_id)
            && let Ok(bytes) = data_encoding::HEXLOWER.decode(node.digest_key.as_bytes())
            && let Ok(key) = <[u8; 32]>::try_from(bytes)
        {
            return Ok(key);
        }
        // Of another boot: boot times in the records mean nothing, and the mounts are gone.
        self.clear();
        let digest_key = data_encoding::HEXLOWER.encode(&fresh);
        let record = NodeRecord { format: FORMAT, boot_id: self.boot_id.clone(), digest_key };
        self.write(&path, &record).map_err(|source| JournalError::Folder {
            path: self.folder.clone(),
            doing: "write the node's record",
            source,
        })?;
        Ok(fresh)
    }

    fn clear(&self) {
        for folder in ["volumes", "sessions"] {
            for entry in fs::read_dir(self.folder.join(folder)).into_iter().flatten().flatten() {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Everything on record. A record that cannot be read is dropped and told of, never fatal.
    pub fn restore(&self) -> Restored {
        let mut restored = Restored::default();
        for record in self.records::<VolumeRecord>("volumes", |record| record.format) {
            let token = record.token.map(TokenRecord::into_held);
            restored.volumes.push((record.key, record.volume, record.identity, token));
        }
        for record in self.records::<SessionRecord>("sessions", |record| record.format) {
            let held =
                HeldSession { token: SecretString::new(record.token), accessor: Arc::from(record.accessor) };
            restored.sessions.push((record.id, record.session, HeldSessionRecord(held)));
        }
        restored
    }

    fn records<T: for<'de> Deserialize<'de>>(&self, folder: &str, format: impl Fn(&T) -> u32) -> Vec<T> {
        let mut records = Vec::new();
        let mut entries: Vec<PathBuf> = fs::read_dir(self.folder.join(folder))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        entries.sort();
        for path in entries {
            let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<T>(&text).ok());
            match record.filter(|record| format(record) == FORMAT) {
                Some(record) => records.push(record),
                None => {
                    // The error of the parser may quote a token; the path says enough.
                    warn!(
                        record = %path.display(),
                        "a record is damaged or of another version: dropped; what it held expires by its TTL"
                    );
                    let _ = fs::remove_file(&path);
                }
            }
        }
        records
    }

    /// Records a volume, or erases it.
    pub(super) fn volume(
        &self,
        key: &VolumeKey,
        volume: Option<(&Volume, Option<MountIdentity>, Option<&LoginCredential>)>,
    ) {
        let path = self.folder.join("volumes").join(file_name(key));
        match volume {
            Some((volume, identity, token)) if self.durable => {
                let token = token.map(TokenRecord::of);
                self.put(&path, &VolumeRecord { format: FORMAT, key, identity, token, volume });
            }
            Some(_) => {}
            None => {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Records a session, or erases it.
    pub(super) fn session(&self, id: SessionId, session: Option<(&Session, &HeldSession)>) {
        let path = self.folder.join("sessions").join(format!("{}.json", id.0));
        match session {
            Some((session, held)) if self.durable => self.put(
                &path,
                &SessionRecord {
                    format: FORMAT,
                    id,
                    token: held.token.expose(),
                    accessor: held.accessor.as_ref(),
                    session,
                },
            ),
            Some(_) => {}
            None => {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn put(&self, path: &Path, record: &impl Serialize) {
        if let Err(error) = self.write(path, record) {
            warn!(
                record = %path.display(), %error,
                "cannot write a record: a restart now would log in again"
            );
        }
    }

    fn write(&self, path: &Path, record: &impl Serialize) -> io::Result<()> {
        let text = SecretString::new(serde_json::to_string(record).map_err(io::Error::other)?);
        let temporary = self.folder.join("new");
        let mut file =
            fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(text.expose().as_bytes())?;
        drop(file);
        fs::rename(temporary, path)
    }
}

/// The path is not fit for a file name; its digest is.
fn file_name(key: &VolumeKey) -> String {
    use std::os::unix::ffi::OsStrExt;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.path().as_os_str().as_bytes());
    format!("{}.json", data_encoding::HEXLOWER.encode(&digest.as_ref()[..16]))
}
