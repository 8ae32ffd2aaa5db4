//! One entry of `objects`: what it writes, and the secret or the template that its content comes from.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

pub use generate::{Generator, KeyKind, PasswordRules};

use super::{ApiPath, DependencyId, FileMode, FileOwner, ObjectPath, RefreshPolicy, origin::Origin};
use crate::{format::DataFormat, template::SecretCall};

pub(crate) mod generate;
pub(in crate::spec) mod reader;
pub(crate) mod source;

/// HTTP methods a secret may be read with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Method {
    /// A read.
    Get,
    /// A write that answers, such as PKI issue.
    Put,
    /// The same, in the spelling of the HTTP API documentation.
    Post,
}

impl Method {
    /// As HTTP spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
        }
    }
}

/// One request to the secret store. Equal requests of a volume are made once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct SecretRequest {
    /// HTTP method.
    pub method: Method,
    /// Path below `/v1/`, canonical.
    pub path: ApiPath,
    /// Query parameters.
    pub query: BTreeMap<String, Vec<String>>,
    /// Arguments as canonical JSON text (sorted keys); the body of a PUT or POST.
    pub args: Option<String>,
    /// Whether a 404 is an answer: every object that reads it is optional or has a default.
    #[serde(default)]
    pub optional: bool,
    /// The path to ask for, once, when the server says that this one lacks the `data/` of a KV version 2
    /// mount: consul-template's templates are written without it.
    #[serde(default)]
    pub versioned: Option<ApiPath>,
    /// Keys of a KV version 2 secret whose values are made and written when they are not there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub generate: BTreeMap<String, Generator>,
}

impl SecretRequest {
    /// A plain read of `path`.
    pub const fn read(path: ApiPath) -> Self {
        Self {
            method: Method::Get,
            path,
            query: BTreeMap::new(),
            args: None,
            optional: false,
            versioned: None,
            generate: BTreeMap::new(),
        }
    }

    /// The request's digest: SHA-256 over what is asked, first 16 bytes. What we do about what is not there is
    /// not asked.
    pub fn id(&self) -> DependencyId {
        let asked = (self.method, &self.path, &self.query, &self.args);
        let text = serde_json::to_vec(&asked).expect("a request of strings is JSON");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
        let mut id = [0; 16];
        id.copy_from_slice(&digest.as_ref()[..16]);
        DependencyId(id)
    }

    /// Whether asking twice may do something twice: anything but a plain read.
    pub fn is_write(&self) -> bool {
        self.method != Method::Get || self.args.is_some()
    }

    /// The same without generators, for keeping a value true: what is gone then is not made anew.
    #[must_use]
    pub fn settled(self: Arc<Self>) -> Arc<Self> {
        if self.generate.is_empty() {
            return self;
        }
        Arc::new(Self { generate: BTreeMap::new(), ..Self::clone(&self) })
    }

    /// Whether it can change the store, now or once: what a policy must allow.
    pub fn may_write(&self) -> bool {
        self.is_write() || !self.generate.is_empty()
    }
}

/// How a value of `secretKey` is encoded in the store, and must be decoded for the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Encoding {
    /// Bytes as they are.
    #[default]
    Utf8,
    /// Standard base64.
    Base64,
    /// Base64 in the alphabet of URLs, with or without its padding.
    Base64Url,
    /// Hexadecimal.
    Hex,
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Utf8 => "utf-8",
            Self::Base64 => "base64",
            Self::Base64Url => "base64url",
            Self::Hex => "hex",
        })
    }
}

/// Where a content goes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Output {
    /// Into the volume: a file, or the folder of [`Part::Extract`].
    File(ObjectPath),
    /// Into the volume, every key of [`Part::Extract`] beside the other files (`objectName: .`).
    Volume,
    /// Into the templates of the same list, under this name; no file (`as`).
    Input(String),
    /// Into the templates, every key of the data under its own name (`as: .`).
    Inputs,
}

/// Where a content comes from.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Source {
    /// From an answer of the store.
    Secret {
        /// The request that is answered.
        request: SecretRequest,
        /// What of the answer.
        part: Part,
    },
    /// From a template over the inputs of the list and secrets of its own.
    Template(TemplateSource),
}

/// What of an answer. Its data is what is below `data`, and below `data.data` where that is a map (KV v2).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Part {
    /// The whole response as JSON, or the raw body.
    Response,
    /// The whole data, for templates.
    Data,
    /// One key of the data.
    Key(String),
    /// A nested value of the data, by RFC 6901.
    Pointer(String),
    /// The whole data in a form.
    Format(DataFormat),
    /// Key and certificate in a keystore.
    Keystore {
        /// The form of the keystore.
        kind: Keystore,
        /// Its password.
        password: Password,
    },
    /// Each key of the data a file.
    Extract(Extract),
}

/// Forms of keystores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Keystore {
    /// PKCS#12.
    Pkcs12,
    /// Sun's JKS.
    Jks,
}

/// Where a keystore's password is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Password {
    /// In this key of the same data (`passwordKey`).
    Key(String),
    /// In this input of the list (`passwordFrom`).
    Input(String),
}

/// Which keys become files, and under which names.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Extract {
    /// Globs of keys to take; none takes all.
    pub include: Vec<String>,
    /// Globs of keys to leave.
    pub exclude: Vec<String>,
    /// Applied in this order to each key's name.
    pub rename: Vec<Rename>,
}

/// A replacement in a name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rename {
    /// A regular expression in RE2's syntax; validated.
    pub from: String,
    /// What every match becomes; `$1` is the first group.
    pub to: String,
}

/// A template, and what it reads by itself.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TemplateSource {
    /// Its text, which parses.
    pub text: String,
    /// Where it stands within `objects`.
    #[serde(default)]
    pub origin: Origin,
    /// What begins and ends its actions, where that is not `{{` and `}}`.
    #[serde(default)]
    pub delimiters: Option<(String, String)>,
    /// Its `secret` calls, each once.
    pub calls: Vec<TemplateCall>,
}

/// A `secret` call of a template, and the request it makes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TemplateCall {
    /// The path as the template spells it.
    pub path: String,
    /// Its arguments.
    pub args: BTreeMap<String, String>,
    /// The request.
    pub request: SecretRequest,
}

impl TemplateSource {
    /// Its delimiters as the engine takes them.
    pub(crate) fn delimiters(&self) -> Option<(&str, &str)> {
        self.delimiters.as_ref().map(|(left, right)| (left.as_str(), right.as_str()))
    }
}

impl TemplateCall {
    /// Whether this is the request of `call`.
    pub fn is(&self, call: &SecretCall) -> bool {
        self.path == call.path && self.args == call.args
    }
}

/// What happens when the store has no such secret or key.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Absence {
    /// The mount fails.
    #[default]
    Fails,
    /// There is no file and no input (`optional: true`).
    Skips,
    /// This is the content (`default`).
    Defaults(String),
}

/// One entry of `objects`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Object {
    /// Where its content goes.
    pub output: Output,
    /// Where its content comes from.
    pub source: Source,
    /// Applied to the value of a key or pointer, and to each extracted value.
    pub encoding: Encoding,
    /// When the secret or the key is not there.
    pub absence: Absence,
    /// Mode; the owner's default otherwise, else the volume's.
    pub mode: Option<FileMode>,
    /// Owner; root otherwise.
    pub owner: Option<FileOwner>,
    /// How long a replaced credential lives on beside its successor.
    pub overlap: Duration,
    /// How often a value without a lease is checked; `None` is the default of its kind.
    pub refresh_interval: Option<Duration>,
    /// Whether it is checked at all.
    pub refresh_policy: RefreshPolicy,
}

impl Object {
    /// A file whose content comes from `source`, with the defaults of all other fields.
    pub fn new(output: Output, source: Source) -> Self {
        Self {
            output,
            source,
            encoding: Encoding::default(),
            absence: Absence::default(),
            mode: None,
            owner: None,
            overlap: super::DEFAULT_OVERLAP,
            refresh_interval: None,
            refresh_policy: RefreshPolicy::default(),
        }
    }

    /// `objectName`, or the name in `as`.
    pub fn name(&self) -> &str {
        match &self.output {
            Output::File(path) => path.as_str(),
            Output::Input(name) => name,
            Output::Inputs | Output::Volume => ".",
        }
    }

    /// The file it writes, or the folder it writes files into, unless that is the volume itself.
    pub const fn file(&self) -> Option<&ObjectPath> {
        match &self.output {
            Output::File(path) => Some(path),
            Output::Volume | Output::Input(_) | Output::Inputs => None,
        }
    }

    /// Mode of its files: its own, else what its owner makes of it, else the volume's.
    pub fn mode_or(&self, default: FileMode) -> FileMode {
        self.mode.or_else(|| self.owner.map(FileOwner::default_mode)).unwrap_or(default)
    }

    /// Whether it is there for templates alone, and writes nothing.
    pub const fn is_input(&self) -> bool {
        matches!(self.output, Output::Input(_) | Output::Inputs)
    }

    /// Every request its content needs.
    pub fn requests(&self) -> impl Iterator<Item = &SecretRequest> {
        let (own, calls) = match &self.source {
            Source::Secret { request, .. } => (Some(request), &[][..]),
            Source::Template(template) => (None, template.calls.as_slice()),
        };
        own.into_iter().chain(calls.iter().map(|call| &call.request))
    }

    /// The same, to be changed.
    pub(crate) fn requests_mut(&mut self) -> impl Iterator<Item = &mut SecretRequest> {
        let (own, calls) = match &mut self.source {
            Source::Secret { request, .. } => (Some(request), &mut [][..]),
            Source::Template(template) => (None, template.calls.as_mut_slice()),
        };
        own.into_iter().chain(calls.iter_mut().map(|call| &mut call.request))
    }

    /// Whether it writes any number of files below its name.
    pub const fn is_folder(&self) -> bool {
        matches!(self.source, Source::Secret { part: Part::Extract(_), .. })
    }
}
