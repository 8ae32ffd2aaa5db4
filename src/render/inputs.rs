//! What the templates of a volume see: the entries with `as`, and the answers of their own `secret` calls.

use std::{collections::BTreeMap, time::SystemTime};

use serde_json::{Map, Value, json};

use super::{
    RenderError,
    error::KeyNames,
    value::{self, Found},
};
use crate::{
    backend::{Envelope, Secret, SecretBody},
    secret::{SecretBytes, SecretJson},
    spec::{
        DependencyId, VolumeSpec,
        object::{Absence, Object, Output, TemplateSource, source::reason},
    },
    template::{Context, Limits, SecretCall, Template, TemplateError},
};

/// The inputs of a volume by name.
pub(super) struct Inputs<'a> {
    named: BTreeMap<&'a str, Found<'a>>,
    /// Of every `as: .`, in the order given.
    keys: Vec<&'a Map<String, Value>>,
}

impl<'a> Inputs<'a> {
    pub(super) fn read(
        spec: &'a VolumeSpec,
        secrets: &'a BTreeMap<DependencyId, Secret>,
    ) -> Result<Self, RenderError> {
        let mut inputs = Self { named: BTreeMap::new(), keys: Vec::new() };
        for object in &spec.objects {
            if !object.is_input() {
                continue;
            }
            let found = match (value::found(object, secrets), &object.absence) {
                (Err(error), Absence::Skips) if error.is_absence() => continue,
                (Err(error), Absence::Defaults(text)) if error.is_absence() => {
                    Found::Bytes(SecretBytes::new(text.clone().into_bytes()).into())
                }
                (found, _) => found?,
            };
            match (&object.output, found) {
                (Output::Input(name), found) => {
                    inputs.named.insert(name, found);
                }
                (_, Found::Json(Value::Object(map))) => inputs.keys.push(map),
                (_, _) => {}
            }
        }
        Ok(inputs)
    }

    /// An input as the text of a password.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.named.get(name)? {
            Found::Json(Value::String(text)) => Some(text),
            Found::Json(_) => None,
            Found::Bytes(bytes) => std::str::from_utf8(bytes.expose()).ok(),
        }
    }

    fn context(&'a self, spec: &VolumeSpec, now: SystemTime) -> Context<'a> {
        let mut context = Context::default();
        context.pod = spec.pod.clone();
        context.now = now;
        for keys in &self.keys {
            context.insert_keys(keys);
        }
        for (name, found) in &self.named {
            match found {
                Found::Json(value) => context.insert_json(name, value),
                Found::Bytes(bytes) => context.insert_bytes(name, bytes.expose()),
            }
        }
        context
    }

    /// What there is, for an error about something that is not.
    fn describe(&self) -> String {
        let named = self.named.iter().map(|(name, found)| match found {
            Found::Json(value @ Value::Object(_)) => format!(".{name} has {}", KeyNames::of(value)),
            Found::Json(_) | Found::Bytes(_) => format!(".{name} is text"),
        });
        let names: Vec<String> = named.take(MAX_DESCRIBED).collect();
        if names.is_empty() { String::new() } else { format!(" ({})", names.join("; ")) }
    }
}

/// Inputs that an error describes.
const MAX_DESCRIBED: usize = 8;

/// Renders the template of `object`.
pub(super) fn template(
    object: &Object,
    source: &TemplateSource,
    spec: &VolumeSpec,
    inputs: &Inputs<'_>,
    secrets: &BTreeMap<DependencyId, Secret>,
    now: SystemTime,
) -> Result<SecretBytes, RenderError> {
    let mut answers = Vec::with_capacity(source.calls.len());
    for call in &source.calls {
        let Some(secret) = secrets.get(&call.request.id()) else {
            let (object, path) = (object.name().to_owned(), call.request.path.clone());
            return Err(RenderError::Unread { object, path });
        };
        answers.push((call, response(&secret.body)));
    }
    let answer = |call: &SecretCall| {
        answers.iter().find(|(known, _)| known.is(call)).map(|(_, answer)| answer.expose())
    };
    let context = inputs.context(spec, now);
    let template = Template::parse(&source.text, source.delimiters());
    template.and_then(|template| template.render(&context, &answer, &Limits::default())).map_err(|error| {
        let hint = match &error {
            TemplateError::MissingKey { .. } => inputs.describe(),
            _ => String::new(),
        };
        let (place, reason) = source.origin.tell(&source.text, error.position(), &(reason(&error) + &hint));
        RenderError::Template {
            object: object.name().to_owned(),
            line: place.map(|place| place.line as u64),
            column: place.map(|place| place.column as u64),
            reason,
        }
    })
}

/// An answer as consul-template's `secret` gives it.
fn response(body: &SecretBody) -> SecretJson {
    let SecretBody::Json(envelope) = body else { return SecretJson::new(json!({ "data": null })) };
    let Envelope { request_id, lease_id, lease_duration, renewable, data, warnings, rest } = &**envelope;
    let mut all: Map<String, Value> =
        rest.iter().map(|(name, value)| (name.clone(), value.expose().clone())).collect();
    all.insert("request_id".into(), json!(request_id));
    all.insert("lease_id".into(), json!(lease_id));
    all.insert("lease_duration".into(), json!(lease_duration));
    all.insert("renewable".into(), json!(renewable));
    all.insert("warnings".into(), json!(warnings));
    all.insert("data".into(), data.expose().clone());
    SecretJson::new(Value::Object(all))
}
