//! The functions templates may call: Go's own, sprig's, External Secrets Operator's and consul-template's.
//!
//! None reaches a file, the environment, a process, the network, a random source or a clock beyond the
//! `now` that the render was given, so that the same secrets always make the same file.

mod builtin;
mod collections;
mod consul;
mod data;
mod encoding;
mod keystore;
mod numbers;
mod regexes;
mod strings;

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::LazyLock,
};

use super::{
    Position, SecretCall, TemplateError,
    budget::Budget,
    fault::Fault,
    value::{List, Map, Text, Value, utf8},
};

pub(super) use consul::{scratch, secret_call};

pub(super) const MANY: usize = usize::MAX;

/// What the evaluator or the search for secrets treats apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    No,
    And,
    Or,
    /// Reads a secret: its arguments must be known before rendering.
    Secret,
    Scratch,
}

/// One function.
pub(super) struct Function {
    pub(super) name: &'static str,
    pub(super) least: usize,
    pub(super) most: usize,
    pub(super) special: Special,
    pub(super) run: fn(&Args<'_>) -> Result<Value, Fault>,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn function(
    name: &'static str,
    least: usize,
    most: usize,
    run: fn(&Args<'_>) -> Result<Value, Fault>,
) -> Function {
    Function { name, least, most, special: Special::No, run }
}

/// What a render has beside its data.
pub(super) struct Env<'a> {
    pub(super) budget: &'a Budget,
    /// The whole response of a call that was made.
    pub(super) secrets: &'a dyn Fn(&SecretCall) -> Option<Value>,
    /// Nanoseconds since 1970.
    pub(super) now: i128,
    pub(super) regexes: RefCell<HashMap<String, Rc<regex::bytes::Regex>>>,
    pub(super) scratch: Rc<Map>,
}

/// A call's arguments.
pub(super) struct Args<'a> {
    pub(super) values: &'a [Value],
    pub(super) env: &'a Env<'a>,
}

impl<'a> Args<'a> {
    pub(super) fn new(values: &'a [Value], env: &'a Env<'a>) -> Self {
        Self { values, env }
    }

    fn len(&self) -> usize {
        self.values.len()
    }

    fn value(&self, index: usize) -> Result<&'a Value, Fault> {
        self.values.get(index).ok_or(Fault::Arguments)
    }

    fn last(&self) -> Result<&'a Value, Fault> {
        self.values.last().ok_or(Fault::Arguments)
    }

    /// A string, as Go's typed parameters want it.
    fn bytes(&self, index: usize) -> Result<&'a Text, Fault> {
        match self.value(index)? {
            Value::Text(text) => Ok(text),
            other => Err(Fault::want("a string", other)),
        }
    }

    /// A string that is UTF-8.
    fn text(&self, index: usize) -> Result<&'a str, Fault> {
        utf8(self.bytes(index)?)
    }

    /// Any value as sprig's `strval` makes it a string.
    fn printed(&self, index: usize) -> Result<Text, Fault> {
        printed(self.value(index)?, self.env.budget)
    }

    fn int(&self, index: usize) -> Result<i64, Fault> {
        match self.value(index)? {
            Value::Int(value) => Ok(*value),
            other => Err(Fault::want("an integer", other)),
        }
    }

    /// An integer that counts something; negative ones are zero.
    fn count(&self, index: usize) -> Result<usize, Fault> {
        Ok(usize::try_from(self.int(index)?.max(0)).unwrap_or(usize::MAX))
    }

    fn list(&self, index: usize) -> Result<&'a Rc<List>, Fault> {
        match self.value(index)? {
            Value::List(list) => Ok(list),
            other => Err(Fault::want("a list", other)),
        }
    }

    fn map(&self, index: usize) -> Result<&'a Rc<Map>, Fault> {
        match self.value(index)? {
            Value::Map(map) => Ok(map),
            other => Err(Fault::want("a map", other)),
        }
    }
}

fn printed(value: &Value, budget: &Budget) -> Result<Text, Fault> {
    if let Value::Text(text) = value {
        return Ok(Rc::clone(text));
    }
    let mut out = budget.buffer();
    value.print(&mut out)?;
    Ok(Rc::from(out.into_bytes()))
}

/// What a list of strings is in sprig: nulls are left out, others printed.
fn strings_of(value: &Value, budget: &Budget) -> Result<Vec<Text>, Fault> {
    match value {
        Value::List(list) => {
            let items = list.items().iter().filter(|item| !matches!(item, Value::Nil));
            items.map(|item| printed(item, budget)).collect()
        }
        Value::Nil => Ok(Vec::new()),
        other => Ok(vec![printed(other, budget)?]),
    }
}

fn integer(value: usize) -> Value {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Which names mean what: sprig and consul-template gave `split`, `trim` and `regexReplaceAll` to
/// different functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Helm's and External Secrets Operator's.
    Sprig,
    /// Vault Agent's: a template that calls `secret` or `pkiCert`. sprig's functions are `sprig_…` too.
    Consul,
}

impl Dialect {
    /// The dialect of a template that names these functions.
    pub(super) fn of<'a>(mut names: impl Iterator<Item = &'a str>) -> Self {
        if names.any(|name| matches!(name, "secret" | "pkiCert")) { Self::Consul } else { Self::Sprig }
    }
}

static FUNCTIONS: LazyLock<BTreeMap<&'static str, &'static Function>> = LazyLock::new(|| {
    [
        builtin::TABLE,
        strings::TABLE,
        collections::TABLE,
        consul::TABLE,
        data::TABLE,
        encoding::TABLE,
        keystore::TABLE,
        numbers::TABLE,
        regexes::TABLE,
    ]
    .into_iter()
    .flatten()
    .map(|function| (function.name, function))
    .collect()
});

/// The function of a name, or an error that names the nearest one.
pub(super) fn find(
    name: &str,
    dialect: Dialect,
    position: Position,
) -> Result<&'static Function, TemplateError> {
    if dialect == Dialect::Consul
        && let Some(function) = consul::OVERRIDES.iter().find(|function| function.name == name)
    {
        return Ok(function);
    }
    let plain = name.strip_prefix("sprig_").unwrap_or(name);
    if let Some(function) = FUNCTIONS.get(plain) {
        return Ok(function);
    }
    if let Some((_, why)) = REFUSED.iter().find(|(names, _)| names.contains(&plain)) {
        return Err(TemplateError::RefusedFunction { name: name.to_owned(), why, position });
    }
    Err(TemplateError::UnknownFunction { name: name.to_owned(), nearest: nearest(plain), position })
}

/// Every function's name, sorted.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.keys().copied()
}

/// Every refused name with its reason.
pub(super) fn refused() -> impl Iterator<Item = (&'static str, &'static str)> {
    REFUSED.iter().flat_map(|(names, why)| names.iter().map(|name| (*name, *why)))
}

const RANDOM: &str = "its result is another at every render; use a generate object, which is made once";

const REFUSED: &[(&[&str], &str)] = &[
    (
        &["env", "expandenv", "mustEnv", "envOrDefault"],
        "templates do not read the agent's environment; set the value in the SecretProviderClass, or use .pod",
    ),
    (&["file", "writeToFile", "plugin", "executeTemplate"], "templates reach no file and no process"),
    (&["getHostByName", "sockaddr"], "templates reach no network"),
    (
        &[
            "caLeaf",
            "caRoots",
            "connect",
            "datacenters",
            "key",
            "keyExists",
            "keyExistsGet",
            "keyOrDefault",
            "ls",
            "node",
            "nodes",
            "partitions",
            "peerings",
            "safeLs",
            "safeTree",
            "service",
            "services",
            "tree",
            "exportedServices",
            "byKey",
            "byTag",
            "byMeta",
            "byPort",
            "explode",
            "mergeMap",
            "mergeMapWithOverride",
            "nomadService",
            "nomadServices",
            "nomadVar",
            "nomadVarExists",
            "nomadVarList",
            "nomadVarListSafe",
        ],
        "there is no Consul or Nomad here, only Vault and OpenBao",
    ),
    (&["secrets"], "a list of paths would make requests that policy has not seen; name each secret"),
    (
        &[
            "randAlpha",
            "randAlphaNum",
            "randAscii",
            "randBytes",
            "randInt",
            "randNumeric",
            "shuffle",
            "uuidv4",
            "genPrivateKey",
            "genCA",
            "genCAWithKey",
            "genSelfSignedCert",
            "genSelfSignedCertWithKey",
            "genSignedCert",
            "genSignedCertWithKey",
            "buildCustomCert",
            "bcrypt",
            "htpasswd",
            "encryptAES",
        ],
        RANDOM,
    ),
    (&["derivePassword", "decryptAES"], "it is left out: no secret store needs it"),
    (&["semver", "semverCompare"], "it is left out: it is for charts, not for secrets"),
    (&["ago", "dateAgo"], "its result is another at every render"),
    (&["call"], "there are no functions in data"),
    (&["typeIs", "typeIsLike", "typeOf"], "Go's type names are not kept here; use kindIs or kindOf"),
    (&["spew_dump", "spew_printf", "spew_sdump", "spew_sprintf"], "it is left out: it prints for debugging"),
];

/// The nearest known name within three edits.
fn nearest(name: &str) -> Option<&'static str> {
    let wanted = name.to_ascii_lowercase();
    let mut best = None;
    for known in names() {
        let distance = edits(&wanted, &known.to_ascii_lowercase());
        let close = distance <= 3 && distance * 2 <= wanted.len().max(2);
        if close && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, known));
        }
    }
    best.map(|(_, known)| known)
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(from != *to)).min(row[j] + 1).min(above + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

/// A string from bytes.
fn text(bytes: impl AsRef<[u8]>) -> Result<Value, Fault> {
    Ok(Value::text(bytes))
}
