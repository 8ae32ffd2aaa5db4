//! `--data`: answers from a file in place of a server's.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use crate::{
    backend::{Envelope, Secret, SecretBody, generator},
    clock,
    secret::{SecretBytes, SecretJson},
    spec::{DependencyId, SecretRequest, VolumeSpec, yaml::Node},
};

/// Largest file of sample data.
const MAX_DATA: u64 = 16 << 20;

/// What stands in for the store.
pub(super) struct Sample {
    shown: String,
    paths: Map<String, Value>,
}

impl Sample {
    /// Reads a mapping of paths to what the store would answer there: a mapping is the `data` of the response,
    /// text a raw body, and null nothing at all.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display().to_string();
        let text = super::read_bounded(path, MAX_DATA)
            .with_context(|| format!("cannot read the data file {shown}"))?;
        let node = Node::parse(&text).map_err(|error| {
            let line = error.line.map(|line| format!(" line {line}")).unwrap_or_default();
            anyhow::anyhow!("the data file {shown}{line}: {error}")
        })?;
        let Value::Object(paths) = node.to_json() else {
            bail!("the data file {shown} is {}, expected a mapping of paths to data", node.describe());
        };
        if let Some((path, _)) =
            paths.iter().find(|(_, it)| !(it.is_object() || it.is_string() || it.is_null()))
        {
            bail!("the data file {shown}: {path} is neither a mapping, text nor null");
        }
        Ok(Self { shown, paths })
    }

    /// The answers to all requests of `spec`, and a line about each. What cannot be answered is in the second map.
    pub(super) fn answer(
        &self,
        spec: &VolumeSpec,
    ) -> (BTreeMap<DependencyId, Secret>, BTreeMap<DependencyId, &'static str>, String) {
        let (mut secrets, mut left_out, mut text) = (BTreeMap::new(), BTreeMap::new(), String::new());
        let mut used = Vec::new();
        for (id, request) in spec.requests() {
            let route = format!("{} {}", request.method.as_str(), request.path);
            let (name, found) = self.find(request);
            used.extend(name);
            match answer(request, found) {
                Ok((secret, what)) => {
                    text.push_str(&format!("sample   {route}: {what}\n"));
                    secrets.insert(id, secret);
                }
                Err(why) => {
                    text.push_str(&format!("failed   {route}: {why} in {}\n", self.shown));
                    left_out.insert(id, "there is no sample data for its request");
                }
            }
        }
        for name in self.paths.keys().filter(|name| !used.contains(&name.as_str())) {
            text.push_str(&format!("unused   {name} of {}: no object reads it\n", self.shown));
        }
        (secrets, left_out, text.replace(|c: char| c.is_control() && c != '\n', "?"))
    }

    /// With its query, else without; with the `data/` that a mount would ask for, else as written.
    fn find(&self, request: &SecretRequest) -> (Option<&str>, Option<&Value>) {
        let path = request.path.as_str();
        let query = request
            .query
            .iter()
            .flat_map(|(key, values)| values.iter().map(move |value| format!("{key}={value}")));
        let query: Vec<String> = query.collect();
        let with_query = format!("{path}?{}", query.join("&"));
        let versioned = request.versioned.as_ref().map(|path| path.as_str());
        let mut names = [Some(with_query.as_str()), Some(path), versioned].into_iter().flatten();
        let found = names.find_map(|name| self.paths.get_key_value(name));
        found.map_or((None, None), |(name, value)| (Some(name.as_str()), Some(value)))
    }
}

fn answer(request: &SecretRequest, found: Option<&Value>) -> Result<(Secret, String), String> {
    let absent = Secret::absent(clock::boot_now());
    let json = |data: Value| {
        SecretBody::Json(Arc::new(Envelope { data: SecretJson::new(data), ..Envelope::default() }))
    };
    let mut data = match found.unwrap_or(&Value::Null) {
        Value::String(raw) if request.generate.is_empty() => {
            let body = SecretBody::Raw(Arc::new(SecretBytes::new(raw.clone().into_bytes())));
            return Ok((Secret { body, ..absent }, "a raw body".into()));
        }
        Value::Object(data) => data.clone(),
        Value::String(_) => return Err("generate needs a mapping, and this path has text".into()),
        _ if !request.generate.is_empty() => Map::new(),
        _ if request.optional => return Ok((absent, "absent".into())),
        _ => return Err("there is no data for this path".into()),
    };
    let made = generate(request, &mut data)?;
    let keys = data.get("data").and_then(Value::as_object).unwrap_or(&data).len();
    Ok((Secret { body: json(Value::Object(data)), ..absent }, format!("{keys} keys{made}")))
}

/// Makes the values that a mount would make; with each run anew, because nothing is written.
fn generate(request: &SecretRequest, data: &mut Map<String, Value>) -> Result<String, String> {
    if request.generate.is_empty() {
        return Ok(String::new());
    }
    if data.is_empty() {
        data.insert("data".to_owned(), json!({}));
    }
    let inner = match data.get("data") {
        Some(Value::Object(_)) => data["data"].as_object_mut().expect("it is an object"),
        _ => data,
    };
    let mut made = Vec::new();
    for (key, generator) in &request.generate {
        if !inner.contains_key(key) {
            for (key, value) in generator::make(key, generator).map_err(|error| error.to_string())? {
                inner.insert(key.clone(), Value::String(value.expose().to_owned()));
                made.push(key);
            }
        }
    }
    Ok(if made.is_empty() {
        String::new()
    } else {
        format!(", {} as they would be generated", made.join(", "))
    })
}
