//! One ExternalSecret: the objects of a SecretProviderClass.

use std::collections::BTreeMap;

use super::{
    Resources, Source,
    reference::{Property, path, pointer, property},
    section,
    store::Store,
};
use crate::{
    convert::{
        agent_file::check_template,
        emit::{Doc, Map},
        notes::{Notes, plain},
        workload::{at, items, text},
    },
    spec::yaml::{Kind, Node},
};

/// What a Secret's key may not hold; the operator puts `_` in its place.
const NOT_IN_A_KEY: &str = "[^-._a-zA-Z0-9]";

/// How often the operator reads where nothing is said.
const INTERVAL: &str = "1h";

/// What an ExternalSecret becomes.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Of the class, without objects.
    pub(super) parameters: Option<Map>,
    pub(super) objects: Vec<Doc>,
    /// The paths it reads of a store that names no mount, by the store's name.
    pub(super) paths: Vec<(String, String)>,
}

pub(super) struct Reader<'a, 'n> {
    resources: &'a Resources<'a>,
    source: &'a Source<'a>,
    spec: &'a Node,
    notes: &'n mut Notes,
    made: Made,
    refresh: Map,
    /// Whether what is read is written, and whether templates see it.
    writes: bool,
    templated: bool,
    /// Whether a folder's keys are beside the other files already.
    at_root: bool,
}

impl<'a, 'n> Reader<'a, 'n> {
    pub(super) fn read(
        resources: &'a Resources<'a>,
        source: &'a Source<'a>,
        spec: &'a Node,
        notes: &'n mut Notes,
    ) -> Made {
        let templates = at(spec, &["target", "template"]);
        let filled = |node: &Node, name| {
            node.get(name).is_some_and(|it| match &it.kind {
                Kind::Map(entries) => !entries.is_empty(),
                Kind::List(items) => !items.is_empty(),
                _ => false,
            })
        };
        let templated = templates.is_some_and(|it| filled(it, "data") || filled(it, "templateFrom"));
        let merges = templates.and_then(|it| text(it, &["mergePolicy"])) == Some("Merge");
        let mut reader = Self {
            resources,
            source,
            spec,
            notes,
            made: Made::default(),
            refresh: Map::default(),
            writes: !templated || merges,
            templated,
            at_root: false,
        };
        section(spec, "spec", reader.notes);
        reader.refresh();
        let made = reader.templates(templates);
        let files: Vec<String> = made.iter().map(|(name, _)| name.clone()).collect();
        for entry in items(spec, &["data"]) {
            reader.entry(entry, &files);
        }
        for entry in items(spec, &["dataFrom"]) {
            reader.all_keys(entry, &files);
        }
        reader.made.objects.extend(made.into_iter().map(|(_, object)| Doc::Map(object)));
        if let Some(target) = spec.get("target") {
            section(target, "target", reader.notes);
        }
        reader.made
    }

    fn refresh(&mut self) {
        let interval = text(self.spec, &["refreshInterval"]).unwrap_or(INTERVAL);
        let interval = if interval.trim_end_matches(['s', 'm', 'h']) == "0" { "0" } else { interval };
        match text(self.spec, &["refreshPolicy"]) {
            None | Some("Periodic") => {
                self.refresh.put("refreshInterval", interval);
            }
            Some(policy) => {
                self.refresh.put("refreshPolicy", policy);
            }
        }
    }

    /// The store of an entry, whose parameters become the class's; there is one server and identity for all.
    fn store(&mut self, entry: &'a Node) -> Option<&'a Store> {
        let own = at(entry, &["sourceRef", "storeRef"]);
        let reference = own.or_else(|| self.spec.get("secretStoreRef"));
        let line = reference.map_or(entry.line, |node| node.line);
        let Some(name) = reference.and_then(|node| text(node, &["name"])) else {
            self.notes.refused(line, "spec.secretStoreRef: names no store");
            return None;
        };
        let kind = reference.and_then(|node| text(node, &["kind"])).unwrap_or("SecretStore");
        let found = self.resources.store(kind, name, self.source.namespace);
        let Some(store) = found else {
            let message = format!(
                "spec.secretStoreRef: {} {} is not in the input: give its manifest too",
                plain(kind),
                plain(name)
            );
            self.notes.refused(line, message);
            return None;
        };
        self.same(store, line).then_some(store)
    }

    fn same(&mut self, store: &Store, line: u64) -> bool {
        let known = self.made.parameters.get_or_insert_with(|| store.parameters.clone());
        if *known == store.parameters {
            return true;
        }
        self.notes.refused(
            line,
            "sourceRef: is at another server or of another identity, and a volume has one: make an ExternalSecret of its own \
             for it",
        );
        false
    }

    fn request(&mut self, store: &Store, reference: &Node, object: &mut Map) -> Option<()> {
        section(reference, "remoteRef", self.notes);
        let Some(key) = text(reference, &["key"]) else {
            self.notes.refused(reference.line, "remoteRef.key: is missing");
            return None;
        };
        let fetch = text(reference, &["metadataPolicy"]) == Some("Fetch");
        if fetch && !store.versioned {
            self.notes
                .refused(reference.line, "remoteRef.metadataPolicy: a KV version 1 secret has no metadata");
            return None;
        }
        let mut secret = path(store, key, if fetch { "metadata" } else { "data" });
        if store.path.is_none() || fetch {
            self.made.paths.push((store.rule.name.clone(), secret.clone()));
        }
        if fetch {
            self.notes.changed(
                reference.line,
                format!("remoteRef.metadataPolicy: the role must be allowed to read {}", plain(&secret)),
            );
        }
        if let Some(version) = text(reference, &["version"]) {
            secret = format!("{secret}?version={version}");
        }
        object.put("secretPath", secret);
        Some(())
    }

    fn encoding(&mut self, reference: &Node, object: &mut Map) {
        match text(reference, &["decodingStrategy"]) {
            None | Some("None") => {}
            Some("Base64") => {
                object.put("encoding", "base64");
            }
            Some("Base64URL") => {
                object.put("encoding", "base64url");
            }
            Some(_) => self.notes.refused(
                reference.line,
                "remoteRef.decodingStrategy: Auto guesses; the value is written as it is: say Base64 or Base64URL where it is \
                 one",
            ),
        }
    }

    /// An entry of `data`.
    fn entry(&mut self, entry: &'a Node, files: &[String]) {
        section(entry, "data", self.notes);
        let (Some(name), Some(reference)) = (text(entry, &["secretKey"]), entry.get("remoteRef")) else {
            self.notes.refused(entry.line, "data: an entry has no secretKey or no remoteRef");
            return;
        };
        if at(entry, &["sourceRef", "generatorRef"]).is_some() {
            self.notes
                .refused(entry.line, "data.sourceRef: a generator makes several keys: use it in dataFrom");
            return;
        }
        let Some(store) = self.store(entry) else { return };
        let mut what = Map::default();
        if self.request(store, reference, &mut what).is_none() {
            return;
        }
        let fetch = text(reference, &["metadataPolicy"]) == Some("Fetch");
        let mut whole = false;
        match text(reference, &["property"]) {
            None if fetch => {
                what.put("jsonPointer", "/custom_metadata");
            }
            None => whole = true,
            Some(written) => match property(written) {
                Some(Property::Key(key)) if fetch => {
                    what.put("jsonPointer", pointer(&["custom_metadata".into(), key]));
                }
                Some(Property::Key(key)) => {
                    what.put("secretKey", key);
                }
                Some(Property::Pointer(below)) => {
                    let below = if fetch { format!("/custom_metadata{below}") } else { below };
                    self.notes.changed(
                        reference.line,
                        format!(
                            "remoteRef.property: {} is a path here; where the secret has a key of that very name, write secretKey: \
                             {0} instead",
                            plain(written)
                        ),
                    );
                    what.put("jsonPointer", below);
                }
                None => {
                    let message = format!(
                        "remoteRef.property: {} is a query, and there are keys and paths only",
                        plain(written)
                    );
                    self.notes.refused(reference.line, message);
                    return;
                }
            },
        }
        self.encoding(reference, &mut what);
        what.append(self.refresh.clone());
        let is_file = self.writes && !files.iter().any(|file| file == name);
        if self.templated || whole {
            let mut input = Map::default().with("as", name);
            self.made.objects.push(Doc::Map(std::mem::take(input.append(what.clone()))));
        }
        if whole {
            if self.templated {
                self.notes.changed(
                    reference.line,
                    format!(
                        "data.remoteRef: without a property .{} is the secret itself in templates, and not its JSON text: leave \
                         out fromJson",
                        plain(name)
                    ),
                );
            }
            if is_file {
                // The operator's own form: one line, keys sorted.
                let template =
                    format!("{{{{ index . {} | toRawJson }}}}", serde_json::Value::String(name.to_owned()));
                self.made
                    .objects
                    .push(Map::default().with("objectName", name).with("template", template).into());
            }
        } else if is_file {
            let mut file = Map::default().with("objectName", name);
            self.made.objects.push(Doc::Map(std::mem::take(file.append(what))));
        }
    }

    /// An entry of `dataFrom`: every key.
    fn all_keys(&mut self, entry: &'a Node, files: &[String]) {
        section(entry, "dataFrom", self.notes);
        let mut what = Map::default();
        let mut convert = true;
        if let Some(generator) = at(entry, &["sourceRef", "generatorRef"]) {
            if self.generator(generator, &mut what).is_none() {
                return;
            }
        } else if let Some(reference) = entry.get("extract") {
            let Some(store) = self.store(entry) else { return };
            for (field, why) in [
                (
                    "property",
                    "the keys of a nested value are not files of their own: read it with data, or with a template",
                ),
                ("metadataPolicy", "metadata is read with data and a property"),
            ] {
                if text(reference, &[field]).is_some_and(|value| value != "None") {
                    self.notes.refused(reference.line, format!("remoteRef.{field}: in an extract {why}"));
                    return;
                }
            }
            if self.request(store, reference, &mut what).is_none() {
                return;
            }
            match text(reference, &["conversionStrategy"]) {
                Some("Unicode") => {
                    self.notes.refused(
                        reference.line,
                        "remoteRef.conversionStrategy: Unicode is not carried: write a rewrite for the keys that need it",
                    );
                    convert = false;
                }
                Some("None") => convert = false,
                _ => {}
            }
            if self.writes {
                self.encoding(reference, &mut what);
            } else if text(reference, &["decodingStrategy"]).is_some_and(|strategy| strategy != "None") {
                self.notes.refused(reference.line, "remoteRef.decodingStrategy: use b64dec in the template");
            }
        } else {
            // `find` has been refused by its own name.
            return;
        }
        let renames = self.renames(entry, convert);
        what.append(self.refresh.clone());
        if self.templated {
            let mut input = Map::default().with("as", ".");
            let read = if self.writes { what.without("encoding") } else { what.clone() };
            self.made.objects.push(Doc::Map(std::mem::take(input.append(read))));
            if entry.get("rewrite").is_some() {
                self.notes.refused(
                    entry.line,
                    "dataFrom.rewrite: in templates keys have the names that they have in the store",
                );
            }
        }
        if self.writes {
            self.extract(what, renames, files);
        }
    }

    fn renames(&mut self, entry: &Node, convert: bool) -> Vec<Map> {
        let mut renames = Vec::new();
        for rewrite in items(entry, &["rewrite"]) {
            section(rewrite, "rewrite", self.notes);
            if let (Some(from), Some(to)) =
                (text(rewrite, &["regexp", "source"]), at(rewrite, &["regexp", "target"]))
            {
                renames.push(Map::default().with("from", from).with("to", to.as_text().unwrap_or_default()));
            }
        }
        if convert {
            renames.push(Map::default().with("from", NOT_IN_A_KEY).with("to", "_"));
        }
        renames
    }

    fn extract(&mut self, what: Map, renames: Vec<Map>, files: &[String]) {
        let mut extract = Map::default();
        // A key that is named wins over one that is found.
        let named = items(self.spec, &["data"]).iter().filter_map(|entry| text(entry, &["secretKey"]));
        let mut exclude: Vec<&str> = named.chain(files.iter().map(String::as_str)).collect();
        exclude.dedup();
        if !exclude.is_empty() {
            extract.put("exclude", exclude);
        }
        if !renames.is_empty() {
            extract.put("rename", renames);
        }
        let folder = if self.at_root {
            let folder = format!("keys-{}", self.made.objects.len());
            self.notes.changed(
                self.spec.line,
                format!("dataFrom: the keys of a second secret are in a folder of their own, {folder}/"),
            );
            folder
        } else {
            ".".to_owned()
        };
        self.at_root = true;
        let mut object = Map::default().with("objectName", folder);
        object.append(what).put("extract", extract);
        self.made.objects.push(object.into());
    }

    fn generator(&mut self, reference: &'a Node, what: &mut Map) -> Option<()> {
        let (kind, name) =
            (text(reference, &["kind"]).unwrap_or_default(), text(reference, &["name"]).unwrap_or_default());
        if kind != "VaultDynamicSecret" {
            let advice = if kind == "Password" {
                ": a password can be made once with generate, see docs/objects.md"
            } else {
                ""
            };
            self.notes.refused(
                reference.line,
                format!("dataFrom.sourceRef: no generator {} is here{advice}", plain(kind)),
            );
            return None;
        }
        let Some((store, spec)) = self.resources.generator(name, self.source.namespace) else {
            let message = format!(
                "dataFrom.sourceRef: VaultDynamicSecret {} is not in the input: give its manifest too",
                plain(name)
            );
            self.notes.refused(reference.line, message);
            return None;
        };
        if !self.same(store, reference.line) {
            return None;
        }
        let mut secret = text(spec, &["path"]).unwrap_or_default().trim_start_matches('/').to_owned();
        if let Some(Node { kind: Kind::Map(parameters), .. }) = spec.get("getParameters") {
            let mut query = Vec::new();
            for (key, values) in parameters {
                let all = match &values.kind {
                    Kind::List(values) => values.iter().filter_map(Node::as_text).collect(),
                    _ => values.as_text().into_iter().collect::<Vec<_>>(),
                };
                let key = escape(key.as_text().unwrap_or_default());
                query.extend(all.into_iter().map(|value| format!("{key}={}", escape(value))));
            }
            if !query.is_empty() {
                secret = format!("{secret}?{}", query.join("&"));
            }
        }
        what.put("secretPath", secret);
        let method = text(spec, &["method"]).unwrap_or("GET");
        if !method.eq_ignore_ascii_case("GET") {
            what.put("method", method);
            if let Some(arguments) = spec.get("parameters") {
                what.put("secretArgs", Doc::from(&arguments.to_json()));
            }
        }
        if text(spec, &["resultType"]).is_some_and(|kind| kind != "Data") {
            let line = spec.get("resultType").map_or(spec.line, |node| node.line);
            self.notes.refused(
                line,
                "generator.resultType: only Data has keys that become files; for Auth or Raw write an object without extract: \
                 the whole response",
            );
            return None;
        }
        if text(spec, &["allowEmptyResponse"]) == Some("true") {
            what.put("optional", true);
        }
        self.notes.changed(
            reference.line,
            "dataFrom.sourceRef: each pod gets a credential of its own, renewed while the pod lives, replaced before it ends and \
             revoked with the pod; refreshInterval has no part in that",
        );
        Some(())
    }

    /// The files that templates make.
    fn templates(&mut self, template: Option<&Node>) -> Vec<(String, Map)> {
        let Some(template) = template else { return Vec::new() };
        section(template, "template", self.notes);
        if text(template, &["engineVersion"]).is_some_and(|version| version != "v2") {
            self.notes.refused(template.line, "template.engineVersion: only v2 is known");
        }
        let mut made: BTreeMap<String, Map> = BTreeMap::new();
        let mut add = |name: &str, node: &Node, notes: &mut Notes| {
            let body = node.as_text().unwrap_or_default();
            check_template(body, None, None, node.line, &format!("template {}", plain(name)), notes);
            made.insert(name.to_owned(), Map::default().with("objectName", name).with("template", body));
        };
        for from in items(template, &["templateFrom"]) {
            if text(from, &["target"]).is_some_and(|target| target != "Data") {
                continue;
            }
            let Some(reference) = from.get("configMap") else {
                self.notes.refused(
                    from.line,
                    "template.templateFrom: a Secret or a literal is not carried: write each key into template.data",
                );
                continue;
            };
            let name = text(reference, &["name"]).unwrap_or_default();
            let Some(data) = self.resources.config_map(name, self.source.namespace) else {
                let message = format!(
                    "template.templateFrom: ConfigMap {} is not in the input: give its manifest too",
                    plain(name)
                );
                self.notes.refused(from.line, message);
                continue;
            };
            for item in items(reference, &["items"]) {
                let key = text(item, &["key"]).unwrap_or_default();
                match data.get(key) {
                    _ if text(item, &["templateAs"]) == Some("KeysAndValues") => self.notes.refused(
                        item.line,
                        "template.templateFrom: KeysAndValues names its keys in the template: write each key into template.data",
                    ),
                    Some(body) => add(key, body, self.notes),
                    None => self.notes.refused(
                        item.line,
                        format!("template.templateFrom: ConfigMap {} has no key {}", plain(name), plain(key)),
                    ),
                }
            }
        }
        if let Some(Node { kind: Kind::Map(entries), .. }) = template.get("data") {
            for (key, body) in entries {
                add(key.as_text().unwrap_or_default(), body, self.notes);
            }
        }
        made.into_iter().collect()
    }
}

/// A part of a query.
fn escape(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:,/".contains(&byte);
    text.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
