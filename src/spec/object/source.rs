//! Reads where an object's content comes from.

use super::{
    Absence, Extract, Generator, Keystore, Part, Password, Rename, SecretRequest, Source, TemplateCall,
    TemplateSource, reader::Reader,
};
use crate::{
    format::DataFormat,
    spec::{
        ApiPath,
        object::Method,
        values,
        yaml::{Kind, Node},
    },
    template::{Position, SecretCall, Template, TemplateError},
};

/// Bytes that a compiled rename may take: a pattern of a name, not a program.
const MAX_REGEX: usize = 1 << 20;

/// What a template has no use for: it names its secrets itself.
const NOT_WITH_TEMPLATE: [&str; 13] = [
    "as",
    "secretPath",
    "secretKey",
    "jsonPointer",
    "format",
    "passwordKey",
    "passwordFrom",
    "extract",
    "method",
    "secretArgs",
    "generate",
    "optional",
    "default",
];

impl Reader<'_> {
    /// Where the content comes from.
    pub(super) fn source(&mut self, is_input: bool) -> Option<Source> {
        if let Some((text, line)) = self.text("template") {
            let others = NOT_WITH_TEMPLATE.iter().filter(|field| self.node.get(field).is_some());
            for &field in others.collect::<Vec<_>>() {
                self.fail(
                    field,
                    line,
                    "has no meaning beside template: read secrets in entries of their own with \"as\", or with \
                     {{ secret \"path\" }}",
                );
            }
            return self.template(text).map(Source::Template);
        }
        for field in ["leftDelimiter", "rightDelimiter"] {
            if let Some((_, line)) = self.text(field) {
                self.warn(line, || format!("{field} is ignored without template"));
            }
        }
        let method = self.method();
        let args = self.args(method);
        let path = self.required("secretPath").and_then(|(text, line)| {
            let (path, query) = text.split_once('?').unwrap_or((text, ""));
            let path = self.check("secretPath", line, ApiPath::parse(path));
            path.zip(self.check("secretPath", line, values::query(query)))
        });
        let part = self.part(is_input);
        let (path, query) = path?;
        let mut request = SecretRequest { method, query, args, ..SecretRequest::read(path) };
        if let Some((key, generator)) = self.generated(&request, part.as_ref()) {
            request.generate.insert(key, generator);
        }
        Some(Source::Secret { request, part: part? })
    }

    /// The key that is made if it is not there, and how. The secret is checked to be one of KV version 2 before
    /// anything is written; here, that it can be one.
    fn generated(&mut self, request: &SecretRequest, part: Option<&Part>) -> Option<(String, Generator)> {
        let node = self.node.get("generate").filter(|node| !matches!(node.kind, Kind::Null))?;
        let generator = match Generator::read(node) {
            Ok(generator) => generator,
            Err((line, reason)) => {
                self.fail("generate", line, reason);
                return None;
            }
        };
        let absence = ["optional", "default"].iter().any(|field| self.node.get(field).is_some());
        let faults = [
            (request.is_write(), "reads first and writes by itself: leave out method and secretArgs"),
            (!request.query.is_empty(), "writes the newest version: leave out the query of secretPath"),
            (
                !request.path.as_str().contains("/data/"),
                "needs a secret of KV version 2: write <mount>/data/<name> in secretPath",
            ),
            (absence, "makes what is not there: leave out optional and default"),
            (
                part.is_some_and(|part| !matches!(part, Part::Key(_))),
                "needs secretKey: the key whose value it makes",
            ),
        ];
        let mut fits = true;
        for (_, reason) in faults.iter().filter(|(fault, _)| *fault) {
            self.fail("generate", node.line, reason);
            fits = false;
        }
        match part {
            Some(Part::Key(key)) if fits => Some((key.clone(), generator)),
            _ => None,
        }
    }

    fn part(&mut self, is_input: bool) -> Option<Part> {
        let mut given = Vec::new();
        if let Some((key, _)) = self.text("secretKey") {
            given.push(("secretKey", Some(Part::Key(key.to_owned()))));
        }
        if let Some((pointer, line)) = self.text("jsonPointer") {
            given.push(("jsonPointer", self.pointer(pointer, line)));
        }
        if let Some((format, line)) = self.text("format") {
            given.push(("format", self.format(format, line)));
        }
        if let Some(node) = self.node.get("extract").filter(|node| !matches!(node.kind, Kind::Null)) {
            given.push(("extract", self.extract(node).map(Part::Extract)));
        }
        if let [(first, _), (second, _), ..] = given.as_slice() {
            let reason = format!("and {first} are both given, and each says what of the secret is written");
            self.fail(second, self.node.get(second).map_or(self.node.line, |node| node.line), reason);
            return None;
        }
        let is_keystore = matches!(given.as_slice(), [(_, Some(Part::Keystore { .. }) | None)]);
        for field in ["passwordKey", "passwordFrom"] {
            if let Some((_, line)) = self.text(field).filter(|_| !is_keystore) {
                self.warn(line, || format!("{field} is ignored without format: pkcs12 or format: jks"));
            }
        }
        match given.pop() {
            None if is_input => Some(Part::Data),
            None => Some(Part::Response),
            Some((field @ ("format" | "extract"), _)) if is_input => {
                let line = self.node.get(field).map_or(self.node.line, |node| node.line);
                self.fail(field, line, "writes files, and an entry with \"as\" is an input of templates");
                None
            }
            Some((_, part)) => part,
        }
    }

    fn pointer(&mut self, text: &str, line: u64) -> Option<Part> {
        let escapes = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        if text.starts_with('/') && escapes {
            return Some(Part::Pointer(text.to_owned()));
        }
        self.fail(
            "jsonPointer",
            line,
            "is no JSON pointer: write /key/nested, with ~1 for a slash and ~0 for ~",
        );
        None
    }

    fn format(&mut self, text: &str, line: u64) -> Option<Part> {
        const FORMATS: [&str; 7] = ["json", "yaml", "env", "properties", "pem-bundle", "pkcs12", "jks"];
        Some(match text {
            "json" => Part::Format(DataFormat::Json),
            "yaml" => Part::Format(DataFormat::Yaml),
            "env" => Part::Format(DataFormat::Env),
            "properties" => Part::Format(DataFormat::Properties),
            "pem-bundle" => Part::Format(DataFormat::PemBundle),
            "pkcs12" => Part::Keystore { kind: Keystore::Pkcs12, password: self.password(line)? },
            "jks" => Part::Keystore { kind: Keystore::Jks, password: self.password(line)? },
            _ => {
                let near = values::nearest(text, FORMATS).map(|near| format!(", did you mean {near}?"));
                let reason = format!(
                    "{} is not one of {}{}",
                    values::quote(text),
                    FORMATS.join(", "),
                    near.unwrap_or_default()
                );
                self.fail("format", line, reason);
                return None;
            }
        })
    }

    fn password(&mut self, line: u64) -> Option<Password> {
        let (key, input) = (self.text("passwordKey"), self.text("passwordFrom"));
        match (key, input) {
            (Some((key, _)), None) => Some(Password::Key(key.to_owned())),
            (None, Some((input, _))) => Some(Password::Input(input.to_owned())),
            (None, None) => {
                self.fail(
                    "format",
                    line,
                    "a keystore needs a password: passwordKey names a key of the same secret, passwordFrom an entry \
                     with \"as\"",
                );
                None
            }
            (Some(_), Some((_, line))) => {
                self.fail("passwordFrom", line, "and passwordKey are both given");
                None
            }
        }
    }

    fn extract(&mut self, node: &Node) -> Option<Extract> {
        let Kind::Map(entries) = &node.kind else {
            // `extract: true` is what one tries first.
            if node.as_text() == Some("true") {
                return Some(Extract::default());
            }
            let reason = format!("is {}, expected a mapping of include, exclude, rename", node.describe());
            self.fail("extract", node.line, reason);
            return None;
        };
        let mut extract = Extract::default();
        for (key, value) in entries {
            match key.as_text() {
                Some("include") => extract.include = self.globs(value)?,
                Some("exclude") => extract.exclude = self.globs(value)?,
                Some("rename") => extract.rename = self.renames(value)?,
                _ => {
                    self.fail("extract", key.line, "has fields other than include, exclude and rename");
                    return None;
                }
            }
        }
        Some(extract)
    }

    fn globs(&mut self, node: &Node) -> Option<Vec<String>> {
        let globs = match &node.kind {
            Kind::Null => Some(Vec::new()),
            Kind::List(items) => items.iter().map(|item| item.as_text().map(str::to_owned)).collect(),
            _ => node.as_text().map(|one| vec![one.to_owned()]),
        };
        if globs.is_none() {
            self.fail("extract", node.line, "include and exclude are lists of names, in which * is any text");
        }
        globs
    }

    fn renames(&mut self, node: &Node) -> Option<Vec<Rename>> {
        let items = match &node.kind {
            Kind::Null => &[][..],
            Kind::List(items) => items,
            _ => {
                self.fail("extract", node.line, "rename is a list of {from, to}");
                return None;
            }
        };
        let mut renames = Vec::with_capacity(items.len());
        for item in items {
            let text = |field| item.get(field).and_then(Node::as_text);
            let (Some(from), Some(to)) = (text("from"), text("to")) else {
                self.fail("extract", item.line, "an entry of rename has a from and a to");
                return None;
            };
            if compile(from).is_err() {
                self.fail(
                    "extract",
                    item.line,
                    "the from of a rename is no regular expression (RE2), or too large",
                );
                return None;
            }
            renames.push(Rename { from: from.to_owned(), to: to.to_owned() });
        }
        Some(renames)
    }

    fn template(&mut self, text: &str) -> Option<TemplateSource> {
        let node = self.node.get("template").expect("its text was read from it");
        let (left, right) = (self.text("leftDelimiter"), self.text("rightDelimiter"));
        let delimiters = (left.is_some() || right.is_some()).then(|| {
            let or =
                |given: Option<(&str, u64)>, usual: &str| given.map_or(usual, |(text, _)| text).to_owned();
            (or(left, "{{"), or(right, "}}"))
        });
        let origin = node.origin().clone();
        let mut source = TemplateSource { text: text.to_owned(), origin, delimiters, calls: Vec::new() };
        let found =
            Template::parse(text, source.delimiters()).and_then(|template| template.secret_calls(self.pod));
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.fail_within(node, text, error.position(), &reason(&error));
                return None;
            }
        };
        for (call, position) in found {
            match request_of(&call) {
                Ok(request) => source.calls.push(TemplateCall { path: call.path, args: call.args, request }),
                Err(reason) => {
                    let why = format!("the path {} {reason}", values::quote(&call.path));
                    self.fail_within(node, text, position, &why);
                }
            }
        }
        Some(source)
    }

    fn fail_within(&mut self, node: &Node, text: &str, at: Position, why: &str) {
        let (place, reason) = node.origin().tell(text, at, why);
        self.fail_at("template", node.line, place, reason);
    }

    /// What an absent secret or key means.
    pub(super) fn absence(&mut self, source: Option<&Source>) -> Absence {
        if matches!(source, Some(Source::Template(_))) {
            return Absence::Fails;
        }
        let optional = match self.text("optional") {
            None => false,
            Some((text, line)) => self.check("optional", line, values::boolean(text)).unwrap_or_default(),
        };
        // An empty default is a default: an empty file.
        let default = self.node.get("default").filter(|node| !matches!(node.kind, Kind::Null));
        let Some(node) = default else {
            return if optional { Absence::Skips } else { Absence::Fails };
        };
        if let Some(Source::Secret { part: Part::Extract(_) | Part::Keystore { .. }, .. }) = source {
            self.fail("default", node.line, "has no meaning for a folder or a keystore, use optional: true");
        }
        match node.as_text() {
            Some(text) => Absence::Defaults(text.to_owned()),
            None => {
                self.fail("default", node.line, format!("is {}, expected text", node.describe()));
                Absence::Fails
            }
        }
    }
}

/// A pattern of a rename.
pub(crate) fn compile(pattern: &str) -> Result<regex::Regex, regex::Error> {
    regex::RegexBuilder::new(pattern).size_limit(MAX_REGEX).dfa_size_limit(MAX_REGEX).build()
}

/// A template's error without its place.
pub(crate) fn reason(error: &TemplateError) -> String {
    let text = error.to_string();
    let why = text.strip_prefix(&format!("template {}: ", error.position()));
    why.unwrap_or(&text).to_owned()
}

/// The request that consul-template makes for a call.
fn request_of(call: &SecretCall) -> Result<SecretRequest, String> {
    let (path, query) = call.path.split_once('?').unwrap_or((&call.path, ""));
    let path = ApiPath::parse(path).map_err(|error| error.to_string())?;
    let query = values::query(query)?;
    if call.is_write() {
        let args = serde_json::to_string(&call.args).map_err(|error| error.to_string())?;
        return Ok(SecretRequest {
            method: Method::Put,
            query,
            args: Some(args),
            ..SecretRequest::read(path)
        });
    }
    let versioned = match path.as_str().split_once('/') {
        Some((mount, rest)) if !rest.starts_with("data/") => {
            ApiPath::parse(&format!("{mount}/data/{rest}")).ok()
        }
        _ => None,
    };
    Ok(SecretRequest { query, versioned, ..SecretRequest::read(path) })
}
