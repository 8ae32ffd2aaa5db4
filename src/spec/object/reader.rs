//! Reads one entry of `objects`.

use std::time::Duration;

use super::{Encoding, Method, Object, Output, Part, Source};
use crate::{
    spec::{
        DEFAULT_OVERLAP, FileMode, FileOwner, MIN_REFRESH, ObjectPath, RefreshPolicy, SpecError,
        problem::Findings,
        values,
        yaml::{Kind, Node},
    },
    template::{PodContext, Position},
};

/// Fields of an object, as manifests spell them.
pub(in crate::spec) const KNOWN: [&str; 24] = [
    "objectName",
    "as",
    "secretPath",
    "secretKey",
    "jsonPointer",
    "format",
    "passwordKey",
    "passwordFrom",
    "extract",
    "template",
    "leftDelimiter",
    "rightDelimiter",
    "optional",
    "default",
    "method",
    "secretArgs",
    "generate",
    "filePermission",
    "encoding",
    "overlap",
    "refreshInterval",
    "refreshPolicy",
    "fileOwner",
    "fileGroup",
];

/// Fields of vault-csi-provider's first releases, found in old manifests, that it no longer reads.
const IGNORED: [&str; 2] = ["objectPath", "objectVersion"];

/// The owner that the volume's parameters give to objects without one of their own.
pub(in crate::spec) type VolumeOwner = Option<FileOwner>;

/// An object and the line of its entry within `objects`.
pub(in crate::spec) struct Entry {
    pub(in crate::spec) object: Object,
    pub(in crate::spec) line: u64,
}

/// Reads entry `index` (from 0). `None` means that an error went to `findings`.
pub(in crate::spec) fn read(
    node: &Node,
    index: usize,
    owner: VolumeOwner,
    pod: &PodContext,
    findings: &mut Findings,
) -> Option<Entry> {
    let text = |field| node.get(field).and_then(Node::as_text).filter(|text| !text.is_empty());
    let name = text("objectName").or_else(|| text("as")).unwrap_or_default();
    let label = if name.is_empty() { format!("#{}", index + 1) } else { values::quote(name).to_string() };
    let mut reader = Reader { node, label, pod, findings, failed: false };
    let object = reader.object(owner);
    if reader.failed { None } else { object.map(|object| Entry { object, line: node.line }) }
}

pub(super) struct Reader<'a> {
    pub(super) node: &'a Node,
    label: String,
    pub(super) pod: &'a PodContext,
    findings: &'a mut Findings,
    failed: bool,
}

impl<'a> Reader<'a> {
    fn object(&mut self, volume_owner: VolumeOwner) -> Option<Object> {
        let Kind::Map(entries) = &self.node.kind else {
            let reason = format!("entry {} is {}, expected a mapping", self.label, self.node.describe());
            self.failed = true;
            self.findings.error(SpecError::Objects { line: Some(self.node.line), reason });
            return None;
        };
        for (key, _) in entries {
            self.warn_unless_known(key);
        }
        // Every field is read before the first failure ends the object, so that all failures show.
        let output = self.output();
        let source = self.source(matches!(output, Some(Output::Input(_) | Output::Inputs)));
        let takes_encoding = match &source {
            Some(Source::Secret { part, .. }) => {
                matches!(part, Part::Key(_) | Part::Pointer(_) | Part::Extract(_))
            }
            Some(Source::Template(_)) => false,
            None => true,
        };
        let encoding = self.encoding(takes_encoding);
        let absence = self.absence(source.as_ref());
        let mode = self.mode();
        let owner = self.owner().or(volume_owner);
        let overlap = self.duration("overlap").unwrap_or(DEFAULT_OVERLAP);
        let (refresh_interval, refresh_policy) = self.refresh();
        Some(Object {
            output: output?,
            source: source?,
            encoding,
            absence,
            mode,
            owner,
            overlap,
            refresh_interval,
            refresh_policy,
        })
    }

    /// A file, or an input of templates.
    fn output(&mut self) -> Option<Output> {
        let Some((name, line)) = self.text("as") else {
            let (text, line) = self.required("objectName")?;
            let extracts = self.node.get("extract").is_some_and(|node| !matches!(node.kind, Kind::Null));
            if text == "." && extracts {
                return Some(Output::Volume);
            }
            return self.check("objectName", line, ObjectPath::parse(text)).map(Output::File);
        };
        if self.text("objectName").is_some() {
            self.fail("as", line, "an entry is either a file (objectName) or an input of templates (as)");
        }
        for field in ["filePermission", "fileOwner", "fileGroup"] {
            if let Some(value) = self.node.get(field) {
                self.warn(value.line, || format!("{field} is ignored: an entry with \"as\" writes no file"));
            }
        }
        // With a dot, a dash or a digit in front it is read with `index . "name"`.
        let mut letters = name.bytes();
        let known = |letter: u8| letter.is_ascii_alphanumeric() || matches!(letter, b'_' | b'-' | b'.');
        match name {
            "." => Some(Output::Inputs),
            "pod" => {
                self.fail("as", line, "the name pod is the pod's own");
                None
            }
            _ if letters.all(known) => Some(Output::Input(name.to_owned())),
            _ => {
                self.fail(
                    "as",
                    line,
                    "is not a name for templates: letters, digits, _, - and ., or \".\" alone for every key",
                );
                None
            }
        }
    }

    fn warn_unless_known(&mut self, key: &Node) {
        let name = key.as_text().unwrap_or_default();
        if KNOWN.contains(&name) {
            return;
        }
        self.warn(key.line, || {
            if IGNORED.contains(&name) {
                return format!("{name} is ignored, vault-csi-provider does not read it either");
            }
            let hint = values::nearest(name, KNOWN).map(|near| format!(", did you mean {near}?"));
            format!("unknown field {} is ignored{}", values::quote(name), hint.unwrap_or_default())
        });
    }

    pub(super) fn warn(&mut self, line: u64, what: impl FnOnce() -> String) {
        let label = &self.label;
        self.findings.warn("objects", Some(line), || format!("object {label} (line {line}): {}", what()));
    }

    pub(super) fn fail(&mut self, field: &'static str, line: u64, reason: impl ToString) {
        self.fail_at(field, line, None, reason);
    }

    /// At `place`, where it is known; else on `line`.
    pub(super) fn fail_at(
        &mut self,
        field: &'static str,
        line: u64,
        place: Option<Position>,
        reason: impl ToString,
    ) {
        self.failed = true;
        let (object, reason) = (self.label.clone(), reason.to_string());
        let (line, column) =
            place.map_or((line, None), |place| (place.line as u64, Some(place.column as u64)));
        self.findings.error(SpecError::Object { object, field, line, column, reason });
    }

    pub(super) fn check<T, E: ToString>(
        &mut self,
        field: &'static str,
        line: u64,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|reason| self.fail(field, line, reason)).ok()
    }

    /// A scalar field that is there and not empty; empty is absent, as in Go's structs.
    pub(super) fn text(&mut self, field: &'static str) -> Option<(&'a str, u64)> {
        let value = self.node.get(field)?;
        match value.as_text() {
            Some("") => None,
            Some(text) => Some((text, value.line)),
            None => {
                self.fail(field, value.line, format!("is {}, expected text", value.describe()));
                None
            }
        }
    }

    pub(super) fn required(&mut self, field: &'static str) -> Option<(&'a str, u64)> {
        let found = self.text(field);
        // What is there and no text has been reported.
        if found.is_none() && self.node.get(field).is_none_or(|value| value.as_text().is_some()) {
            self.fail(field, self.node.line, "is missing");
        }
        found
    }

    pub(super) fn method(&mut self) -> Method {
        let Some((text, line)) = self.text("method") else { return Method::Get };
        match text.to_ascii_uppercase().as_str() {
            "GET" => Method::Get,
            "PUT" => Method::Put,
            "POST" => Method::Post,
            _ => {
                self.fail(
                    "method",
                    line,
                    format!("{} does not read a secret, use GET, PUT or POST", values::quote(text)),
                );
                Method::Get
            }
        }
    }

    pub(super) fn args(&mut self, method: Method) -> Option<String> {
        let value = self.node.get("secretArgs")?;
        match &value.kind {
            Kind::Null => None,
            Kind::Map(entries) if entries.is_empty() => None,
            Kind::Map(_) if method == Method::Get => {
                self.warn(value.line, || {
                    "secretArgs are ignored: they are the body of a PUT or POST, a GET takes ?name=value in \
                     secretPath"
                        .into()
                });
                None
            }
            Kind::Map(_) => Some(value.to_json().to_string()),
            _ => {
                self.fail("secretArgs", value.line, format!("is {}, expected a mapping", value.describe()));
                None
            }
        }
    }

    fn encoding(&mut self, takes: bool) -> Encoding {
        let Some((text, line)) = self.text("encoding") else { return Encoding::default() };
        let encoding = match text.to_ascii_lowercase().as_str() {
            "utf-8" => Encoding::Utf8,
            "base64" => Encoding::Base64,
            "base64url" => Encoding::Base64Url,
            "hex" => Encoding::Hex,
            _ => {
                self.fail(
                    "encoding",
                    line,
                    "invalid encoding type. Should be utf-8, base64, or hex; or base64url",
                );
                Encoding::Utf8
            }
        };
        if encoding != Encoding::Utf8 && !takes {
            self.warn(line, || {
                "encoding is ignored without a secretKey, jsonPointer or extract: there is no one value to decode"
                    .into()
            });
        }
        encoding
    }

    fn mode(&mut self) -> Option<FileMode> {
        let (text, line) = self.text("filePermission")?;
        let (mode, warning) = self.check("filePermission", line, values::mode(text))?;
        if let Some(warning) = warning {
            self.warn(line, || format!("filePermission: {warning}"));
        }
        mode
    }

    fn owner(&mut self) -> Option<FileOwner> {
        let (mut owner, mut of_pod) = (FileOwner::default(), false);
        if let Some(value) = self.node.get("fileOwner") {
            if let Kind::Map(entries) = &value.kind {
                for (key, value) in entries {
                    let id = values::id(value.as_text().unwrap_or_default());
                    let id = self.check("fileOwner", value.line, id);
                    match key.as_text() {
                        Some("uid") => owner.uid = id,
                        Some("gid") => owner.gid = id,
                        _ => self.fail("fileOwner", key.line, "has fields other than uid and gid"),
                    }
                }
            } else if let Some((values::POD_OWNER, line)) = self.text("fileOwner") {
                of_pod = true;
                owner = self.pod_owner(line);
            } else if let Some((text, line)) = self.text("fileOwner") {
                owner = self.check("fileOwner", line, values::owner(text))?;
            }
        }
        if let Some((text, line)) = self.text("fileGroup") {
            if owner.gid.is_some() && !of_pod {
                self.fail("fileGroup", line, "the group is given twice, in fileOwner and in fileGroup");
            }
            owner.gid = self.check("fileGroup", line, values::id(text));
        }
        (owner != FileOwner::default()).then_some(owner)
    }

    fn pod_owner(&mut self, line: u64) -> FileOwner {
        self.findings.pod_owner.unwrap_or_else(|| {
            self.failed = true;
            let place = format!("object {} (line {line}): ", self.label);
            self.findings.error(SpecError::PodOwner { place, line: Some(line) });
            FileOwner::default()
        })
    }

    fn duration(&mut self, field: &'static str) -> Option<Duration> {
        let (text, line) = self.text(field)?;
        self.check(field, line, values::duration(text))
    }

    fn refresh(&mut self) -> (Option<Duration>, RefreshPolicy) {
        let policy = match self.text("refreshPolicy") {
            None | Some(("Periodic", _)) => RefreshPolicy::Periodic,
            Some(("CreatedOnce", _)) => RefreshPolicy::CreatedOnce,
            Some(("OnChange", _)) => RefreshPolicy::OnChange,
            Some((text, line)) => {
                let reason = format!("{} is not one of Periodic, CreatedOnce, OnChange", values::quote(text));
                self.fail("refreshPolicy", line, reason);
                RefreshPolicy::Periodic
            }
        };
        match self.duration("refreshInterval") {
            // External Secrets Operator's meaning of 0.
            Some(Duration::ZERO) if policy == RefreshPolicy::Periodic => (None, RefreshPolicy::CreatedOnce),
            Some(interval) if interval < MIN_REFRESH && policy == RefreshPolicy::Periodic => {
                let line = self.node.get("refreshInterval").map_or(self.node.line, |value| value.line);
                self.warn(line, || {
                    format!("refreshInterval is raised to {MIN_REFRESH:?}, the shortest there is")
                });
                (Some(MIN_REFRESH), policy)
            }
            interval => (interval.filter(|_| policy == RefreshPolicy::Periodic), policy),
        }
    }
}
