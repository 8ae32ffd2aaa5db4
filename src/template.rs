//! Go templates, as users of Vault Agent and External Secrets Operator write them.
//!
//! Pure and synchronous: a template sees the data it is given, the secrets it names, and nothing else. What
//! a secret holds is data and is never parsed as a template. The engine is our own port of Go's
//! text/template, strict where Go is lax (an absent key is an error everywhere), and every render has a
//! budget. Errors are made of our own words and of names written in the template: no value can be in one.
//!
//! ```
//! use leasehold::template::{Context, Limits, Template};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let template = Template::parse("postgres://{{ .db.username | urlquery }}@db", None)?;
//! let db = serde_json::json!({"username": "v-role/1"});
//! let mut context = Context::default();
//! context.insert_json("db", &db);
//! let file = template.render(&context, &|_| None, &Limits::default())?;
//! assert_eq!(file.expose(), b"postgres://v-role%2F1@db");
//! # Ok(())
//! # }
//! ```

pub(crate) use time::rfc3339;

mod budget;
mod calls;
mod exec;
mod fault;
mod functions;
mod lex;
mod number;
mod parse;
mod printf;
mod time;
mod value;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt,
    rc::Rc,
    time::SystemTime,
};

use serde_json::Value as Json;

use crate::secret::SecretBytes;

/// A place in a template, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// What a template can run out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Rounds of all ranges together.
    RangeIterations,
    /// Length of the file, or of one value on the way.
    OutputBytes,
    /// Bytes read and made on the way.
    Work,
    /// Nesting of blocks and named templates.
    Depth,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RangeIterations => "too many rounds of range; does it end?",
            Self::OutputBytes => "the file or a value would be too large",
            Self::Work => "the template does too much work; does it end?",
            Self::Depth => "blocks or templates are nested too deep; does one call itself?",
        })
    }
}

/// What a render may spend.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rounds of all ranges together.
    pub range_iterations: u64,
    /// Bytes of the file, and of any value on the way.
    pub output_bytes: usize,
    /// Bytes read and made on the way, values of a list or map counted by what they take in memory: the
    /// measure of both time and memory.
    pub work_bytes: usize,
}

impl Default for Limits {
    /// 100,000 rounds; 4 MiB, which is more than a Kubernetes Secret or a KV value can hold; 64 MiB of work,
    /// below a second and below the memory that an agent is usually given.
    fn default() -> Self {
        Self { range_iterations: 100_000, output_bytes: 4 << 20, work_bytes: 64 << 20 }
    }
}

/// Why a template cannot be parsed or rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is no Go template.
    #[error("template {position}: {why}")]
    Syntax {
        /// Where.
        position: Position,
        /// What is wrong.
        why: &'static str,
    },
    /// A function that does not exist.
    #[error("template {position}: there is no function {name}{}", nearest_text(*nearest))]
    UnknownFunction {
        /// As written.
        name: String,
        /// The known name nearest to it.
        nearest: Option<&'static str>,
        /// Where.
        position: Position,
    },
    /// A function that sprig or consul-template has and that is left out.
    #[error("template {position}: function {name} is not available: {why}")]
    RefusedFunction {
        /// As written.
        name: String,
        /// Why, and what to do instead.
        why: &'static str,
        /// Where.
        position: Position,
    },
    /// A key, field or index that is not there.
    #[error("template {position}: there is no {}; for a key that may be absent use hasKey or dig", key_text(key.as_deref()))]
    MissingKey {
        /// The key, if it is written in the template; a computed one may be a secret.
        key: Option<String>,
        /// Where.
        position: Position,
    },
    /// A field of something that has none.
    #[error("template {position}: cannot take field {field:?} of {of}")]
    NoField {
        /// The field.
        field: String,
        /// What it was.
        of: &'static str,
        /// Where.
        position: Position,
    },
    /// Null would be printed.
    #[error("template {position}: the value is null; use default, or if")]
    NoValue {
        /// Where.
        position: Position,
    },
    /// The arguments of `secret` are not known before secrets are read.
    #[error(
        "template {position}: the path and arguments of secret must be constants, or printf, print or join of \
         constants and .pod"
    )]
    DependsOnSecret {
        /// Where.
        position: Position,
    },
    /// `secret` for something that was not read: not among [`Template::secret_calls`].
    #[error("template {position}: secret {path:?} was not read for this render")]
    NotRead {
        /// The path, a constant of the template.
        path: String,
        /// Where.
        position: Position,
    },
    /// A limit is used up.
    #[error("template {position}: {limit}")]
    Budget {
        /// Which.
        limit: Limit,
        /// Where.
        position: Position,
    },
    /// A function refused its arguments.
    #[error("template {position}: {name}: {why}")]
    Function {
        /// Which.
        name: String,
        /// Why; types and counts, no values.
        why: String,
        /// Where.
        position: Position,
    },
    /// An expression that means nothing.
    #[error("template {position}: {why}")]
    Expression {
        /// What is wrong.
        why: &'static str,
        /// Where.
        position: Position,
    },
    /// The template called `fail`.
    #[error("template {position}: the template failed{}", fail_text(message.as_deref()))]
    Failed {
        /// Its message, if it is written in the template.
        message: Option<String>,
        /// Where.
        position: Position,
    },
}

fn nearest_text(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

fn key_text(key: Option<&str>) -> String {
    key.map_or_else(|| "such key (it is computed, so not shown)".to_owned(), |key| format!("key {key:?}"))
}

fn fail_text(message: Option<&str>) -> String {
    message.map(|message| format!(": {}", message.escape_debug())).unwrap_or_default()
}

impl TemplateError {
    fn syntax(position: Position, why: &'static str) -> Self {
        Self::Syntax { position, why }
    }

    /// Where in the template it is.
    pub fn position(&self) -> Position {
        match self {
            Self::Syntax { position, .. }
            | Self::UnknownFunction { position, .. }
            | Self::RefusedFunction { position, .. }
            | Self::MissingKey { position, .. }
            | Self::NoField { position, .. }
            | Self::NoValue { position }
            | Self::DependsOnSecret { position }
            | Self::NotRead { position, .. }
            | Self::Budget { position, .. }
            | Self::Function { position, .. }
            | Self::Expression { position, .. }
            | Self::Failed { position, .. } => *position,
        }
    }
}

/// A `secret` or `pkiCert` call of consul-template. Equal calls are one request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretCall {
    /// As written: `secret/data/app`, with a query (`?version=3`) if there is one.
    pub path: String,
    /// The `key=value` arguments. Any makes the request a write, as in consul-template.
    pub args: BTreeMap<String, String>,
}

impl SecretCall {
    /// Whether it is a write.
    pub fn is_write(&self) -> bool {
        !self.args.is_empty()
    }
}

/// What templates may know of their pod, as `.pod.name` and so on. Not secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PodContext {
    /// Name of the pod.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// Name of its ServiceAccount.
    pub service_account: String,
    /// Name of its node; empty when the agent was not told.
    pub node: String,
}

impl PodContext {
    fn to_value(&self) -> value::Value {
        let mut fields = vec![
            ("name", &self.name),
            ("namespace", &self.namespace),
            ("uid", &self.uid),
            ("serviceAccount", &self.service_account),
        ];
        if !self.node.is_empty() {
            fields.push(("node", &self.node));
        }
        value::Value::map(fields.into_iter().map(|(name, text)| (exec::key(name), value::Value::text(text))))
    }
}

#[derive(Clone)]
enum Input<'a> {
    Json(&'a Json),
    Bytes(&'a [u8]),
}

/// What a template sees: inputs by name, the pod, and the time.
///
/// The pod is `.pod` of the root, before any input of that name, so that no secret can pretend to be it; a
/// `range` over the root does not see it, so that templates over all keys of a secret write only those.
#[derive(Clone)]
pub struct Context<'a> {
    inputs: BTreeMap<String, Input<'a>>,
    /// The pod.
    pub pod: PodContext,
    /// What `now` and `timestamp` answer. 1970 by default.
    pub now: SystemTime,
}

impl Default for Context<'_> {
    fn default() -> Self {
        Self { inputs: BTreeMap::new(), pod: PodContext::default(), now: SystemTime::UNIX_EPOCH }
    }
}

impl<'a> Context<'a> {
    /// Adds or replaces an input: `.name` in the template.
    pub fn insert_json(&mut self, name: &str, data: &'a Json) {
        self.inputs.insert(name.to_owned(), Input::Json(data));
    }

    /// Adds or replaces an input of bytes, which may be binary.
    pub fn insert_bytes(&mut self, name: &str, bytes: &'a [u8]) {
        self.inputs.insert(name.to_owned(), Input::Bytes(bytes));
    }

    /// Makes every key of `data` an input of its own, as External Secrets Operator's templates see it.
    pub fn insert_keys(&mut self, data: &'a serde_json::Map<String, Json>) {
        for (key, value) in data {
            self.insert_json(key, value);
        }
    }

    fn to_value(&self) -> value::Value {
        let inputs = self.inputs.iter().map(|(name, input)| {
            let value = match input {
                Input::Json(json) => value::Value::from_json(json),
                Input::Bytes(bytes) => value::Value::text(bytes),
            };
            (exec::key(name), value)
        });
        value::Value::map(inputs)
    }
}

/// A parsed template. Parsing finds every syntax error, unknown function, unset variable and missing
/// `{{define}}`; rendering can only fail for what the data is.
#[derive(Debug)]
pub struct Template {
    tree: parse::Tree,
}

impl Template {
    /// Parses `text`, with other delimiters than `{{` and `}}` if given.
    ///
    /// A template that calls `secret` or `pkiCert` is taken for consul-template's: in it `split` makes a
    /// list, `trim` takes a cutset first, `regexReplaceAll` takes the text last, and sprig's own are
    /// `sprig_split` and so on. In all others these names are sprig's.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn parse(text: &str, delimiters: Option<(&str, &str)>) -> Result<Self, TemplateError> {
        let (left, right) = delimiters.unwrap_or(("{{", "}}"));
        let start = Position { line: 1, column: 1 };
        if left.trim().is_empty() || right.trim().is_empty() {
            return Err(TemplateError::syntax(start, "the delimiters must not be empty"));
        }
        Ok(Self { tree: parse::parse(text, left, right)? })
    }

    /// The secrets that the template reads by itself, each once, with the place of its first call.
    ///
    /// # Errors
    /// A path or argument that is not known before secrets are read.
    pub fn secret_calls(&self, pod: &PodContext) -> Result<Vec<(SecretCall, Position)>, TemplateError> {
        calls::find(&self.tree, pod)
    }

    /// Renders. `secrets` answers a call with the whole response of the store: `data`, and what it has of
    /// `lease_id`, `lease_duration`, `renewable`, `request_id`, `warnings`, `auth`, `wrap_info`.
    ///
    /// # Errors
    /// The first thing that the data does not allow, with its place.
    pub fn render<'s>(
        &self,
        context: &Context<'_>,
        secrets: &dyn Fn(&SecretCall) -> Option<&'s Json>,
        limits: &Limits,
    ) -> Result<SecretBytes, TemplateError> {
        let budget = budget::Budget::new(limits);
        let secrets = |call: &SecretCall| secrets(call).map(value::Value::from_json);
        let env = environment(&budget, &secrets, context.now);
        let (root, pod) = (context.to_value(), context.pod.to_value());
        exec::Executor::run(&self.tree, &env, &root, &pod).map(SecretBytes::new)
    }
}

fn environment<'a>(
    budget: &'a budget::Budget,
    secrets: &'a dyn Fn(&SecretCall) -> Option<value::Value>,
    now: SystemTime,
) -> functions::Env<'a> {
    let nanos = match now.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).unwrap_or(0),
        Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(0),
    };
    functions::Env {
        budget,
        secrets,
        now: nanos,
        regexes: RefCell::new(HashMap::new()),
        scratch: Rc::new(value::Map::default()),
    }
}

/// Names of all functions, sorted: for the reference in docs/ and `leasehold check`.
pub fn function_names() -> impl Iterator<Item = &'static str> {
    functions::names()
}

/// Names of the functions left out, each with its reason.
pub fn refused_functions() -> impl Iterator<Item = (&'static str, &'static str)> {
    functions::refused()
}
