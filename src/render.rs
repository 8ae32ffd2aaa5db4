//! Pure: from a volume's spec and the answers of the store to the files and their versions.
//!
//! `value` finds an object's bytes in an answer, `json` writes JSON as the incumbents do, `extract` makes a
//! folder of a secret, `inputs` is what templates see.

use std::{collections::BTreeMap, time::SystemTime};

use aws_lc_rs::hmac;

use crate::{
    backend::{DataLifetime, Secret, SecretBody},
    format::{Certificate, FormatError, PrivateKey},
    projection::{FileProjection, MAX_PAYLOAD_LEN, Payload},
    secret::SecretBytes,
    spec::{
        DependencyId, FileMode, Object, ObjectPath, VolumeSpec,
        object::{Absence, Part, Source},
    },
};

pub use error::{KeyNames, RenderError};
use inputs::Inputs;
use value::Content;

mod error;
mod extract;
mod inputs;
mod json;
#[cfg(test)]
mod tests;
mod value;

/// Bytes of one file. Etcd, KV and PKI values are far smaller; a tmpfs file counts as the pod's memory.
pub const MAX_OBJECT_LEN: usize = 16 << 20;

/// Bytes of a version: no two contents collide by accident, and it cannot be guessed without the key.
const VERSION_LEN: usize = 16;

/// Key of the version digests: random per node, kept in the journal, so that versions are stable over
/// restarts and say nothing about a value to those who read them.
#[derive(Clone)]
pub struct DigestKey(hmac::Key);

impl DigestKey {
    /// A key from 32 random bytes.
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// A digest of an answer's data: equal digests are equal data. Its envelope (request id, lease) is not in it.
    pub fn digest(&self, secret: &Secret) -> [u8; VERSION_LEN] {
        let mut context = hmac::Context::with_key(&self.0);
        match &secret.body {
            SecretBody::Json(envelope) => {
                context.update(b"json");
                let mut data = envelope.data.clone();
                if matches!(secret.lifetime, Some(DataLifetime::Rotates { .. })) {
                    // The time left until the rotation is not part of what is rotated.
                    data.remove("ttl");
                }
                let text = serde_json::to_vec(data.expose()).map(SecretBytes::new);
                context.update(text.as_ref().map(SecretBytes::expose).unwrap_or_default());
                context.update(&secret.kv_version.unwrap_or_default().to_be_bytes());
            }
            SecretBody::Raw(bytes) => {
                context.update(b"raw");
                context.update(bytes.expose());
            }
            SecretBody::Absent => context.update(b"absent"),
        }
        let mut digest = [0; VERSION_LEN];
        digest.copy_from_slice(&context.sign().as_ref()[..VERSION_LEN]);
        digest
    }

    // Lengths in front keep (`ab`, `c`) and (`a`, `bc`) apart.
    fn version(&self, object: &str, content: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&(object.len() as u64).to_be_bytes());
        context.update(object.as_bytes());
        context.update(content);
        data_encoding::HEXLOWER.encode(&context.sign().as_ref()[..VERSION_LEN])
    }
}

/// What a render gives.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The files.
    pub payload: Payload,
    /// Object name and opaque version, one per object, in the order of the spec. A version says something
    /// about the data only: a new lease or request of the same data has the same version.
    pub versions: Vec<(String, String)>,
}

/// Renders every file of a volume from one read set; `now` is for templates that ask for the time.
///
/// # Errors
/// The first object that cannot be rendered.
pub fn render(
    spec: &VolumeSpec,
    secrets: &BTreeMap<DependencyId, Secret>,
    key: &DigestKey,
    now: SystemTime,
) -> Result<Rendered, RenderError> {
    check_certificates(spec, secrets)?;
    let inputs = Inputs::read(spec, secrets)?;
    let mut files = Files::new(key, spec.default_mode);
    for object in &spec.objects {
        if object.is_input() {
            continue;
        }
        match contents(object, spec, &inputs, secrets, now) {
            Ok(contents) => files.add(object, contents)?,
            Err(error) if error.is_absence() => match &object.absence {
                Absence::Fails => return Err(error),
                Absence::Skips => files.skip(object),
                Absence::Defaults(text) => {
                    files.add(object, Contents::File(Content::whole(text.clone().into_bytes())))?;
                }
            },
            Err(error) => return Err(error),
        }
    }
    files.finish()
}

enum Contents {
    File(Content),
    Folder(Vec<(ObjectPath, Vec<u8>)>),
}

fn contents(
    object: &Object,
    spec: &VolumeSpec,
    inputs: &Inputs<'_>,
    secrets: &BTreeMap<DependencyId, Secret>,
    now: SystemTime,
) -> Result<Contents, RenderError> {
    let (request, part) = match &object.source {
        Source::Template(source) => {
            let file = inputs::template(object, source, spec, inputs, secrets, now)?;
            return Ok(Contents::File(Content::whole(file.expose().to_vec())));
        }
        Source::Secret { request, part } => (request, part),
    };
    let body = value::answer(object, request, secrets)?;
    if let Part::Extract(extract) = part {
        let data = value::data(object, request, body, "extract")?.as_object();
        let files = data.map(|data| extract::files(object, object.file(), extract, data)).transpose()?;
        return Ok(Contents::Folder(files.unwrap_or_default()));
    }
    Ok(Contents::File(value::content(object, request, part, body, inputs)?))
}

/// Key and certificate of one answer belong together, or nothing is written: half of a rotation would take
/// every server down that reads it. What is no PEM is the application's own matter.
fn check_certificates(
    spec: &VolumeSpec,
    secrets: &BTreeMap<DependencyId, Secret>,
) -> Result<(), RenderError> {
    for id in spec.requests().into_keys() {
        let Some(SecretBody::Json(envelope)) = secrets.get(&id).map(|secret| &secret.body) else { continue };
        let data = value::descend(envelope.data.expose());
        let text = |key| data.get(key).and_then(serde_json::Value::as_str);
        let (Some(key), Some(certificates)) = (text("private_key"), text("certificate")) else { continue };
        let (Ok(key), Ok(certificates)) =
            (PrivateKey::from_pem(key), Certificate::all_from_pem(certificates))
        else {
            continue;
        };
        // A chain in any order: whoever keeps one in a KV secret may begin with the authority's.
        let mut outcomes = certificates.iter().map(|certificate| key.matches(certificate));
        if outcomes.all(|outcome| outcome == Err(FormatError::Mismatch))
            && let Some((object, request)) = spec.user_of(id)
        {
            let (object, path) = (object.name().to_owned(), request.path.clone());
            return Err(RenderError::Mismatch { object, path });
        }
    }
    Ok(())
}

/// The files so far.
struct Files<'a> {
    key: &'a DigestKey,
    default_mode: FileMode,
    payload: Payload,
    versions: Vec<(String, String)>,
    /// Which object wrote a file.
    writers: BTreeMap<ObjectPath, &'a str>,
    total: usize,
}

impl<'a> Files<'a> {
    fn new(key: &'a DigestKey, default_mode: FileMode) -> Self {
        Self {
            key,
            default_mode,
            payload: Payload::default(),
            versions: Vec::new(),
            writers: BTreeMap::new(),
            total: 0,
        }
    }

    fn add(&mut self, object: &'a Object, contents: Contents) -> Result<(), RenderError> {
        let name = object.name();
        let version = match contents {
            Contents::File(content) => {
                let path = object.file().expect("only what extracts writes into the volume itself").clone();
                let version = self.key.version(name, content.data());
                self.file(object, path, content.into_file())?;
                version
            }
            Contents::Folder(files) => {
                let mut all = Vec::new();
                for (path, content) in files {
                    for part in [path.as_str().as_bytes(), &content] {
                        // Lengths keep neighbours apart.
                        all.extend_from_slice(&(part.len() as u64).to_be_bytes());
                        all.extend_from_slice(part);
                    }
                    self.file(object, path, content)?;
                }
                let all = SecretBytes::new(all);
                self.key.version(name, all.expose())
            }
        };
        self.versions.push((name.to_owned(), version));
        Ok(())
    }

    /// An object without a file. Its version is not that of an empty one.
    fn skip(&mut self, object: &Object) {
        let version = self.key.version(&format!("{}\0absent", object.name()), &[]);
        self.versions.push((object.name().to_owned(), version));
    }

    fn file(&mut self, object: &'a Object, path: ObjectPath, content: Vec<u8>) -> Result<(), RenderError> {
        let name = object.name();
        if content.len() > MAX_OBJECT_LEN {
            return Err(RenderError::ObjectTooLarge { object: name.to_owned(), len: content.len() });
        }
        self.total = self.total.saturating_add(content.len());
        if self.total > MAX_PAYLOAD_LEN {
            return Err(RenderError::PayloadTooLarge);
        }
        if let Some(first) = self.writers.insert(path.clone(), name) {
            let (file, first, second) = (path.to_string(), first.to_owned(), name.to_owned());
            return Err(RenderError::Clash { file, first, second });
        }
        let file = FileProjection {
            contents: content.into(),
            mode: object.mode_or(self.default_mode),
            owner: object.owner,
        };
        self.payload.files.insert(path, file);
        Ok(())
    }

    fn finish(self) -> Result<Rendered, RenderError> {
        let names: BTreeMap<&str, &str> =
            self.writers.iter().map(|(path, writer)| (path.as_str(), *writer)).collect();
        for (path, second) in &names {
            for (end, _) in path.match_indices('/') {
                if let Some(first) = names.get(&path[..end]) {
                    return Err(RenderError::FileAndFolder {
                        file: path[..end].to_owned(),
                        first: (*first).to_owned(),
                        second: (*second).to_owned(),
                    });
                }
            }
        }
        Ok(Rendered { payload: self.payload, versions: self.versions })
    }
}
