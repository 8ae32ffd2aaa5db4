//! Template cases of `corpus.json`: each names where its expectation comes from.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use leasehold::template::{Context, Limits, SecretCall, Template, TemplateError, function_names};
use serde_json::Value as Json;

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    template: String,
    data: Json,
    expected: Option<String>,
    source: String,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("corpus.json")).unwrap()
}

fn call_name(call: &SecretCall) -> String {
    let args = call.args.iter().map(|(key, value)| format!(" {key}={value}"));
    std::iter::once(call.path.clone()).chain(args).collect()
}

/// Renders a case as the shell does: first the calls, then what was read for them.
fn render(case: &Case) -> Result<Vec<u8>, TemplateError> {
    let mut context = Context::default();
    context.pod.service_account = "app".into();
    context.now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let template = Template::parse(&case.template, None)?;
    let answers = &case.data["__secrets"];
    let mut read = BTreeMap::new();
    for (call, _) in template.secret_calls(&context.pod)? {
        if let Some(answer) = answers.get(call_name(&call)) {
            read.insert(call, answer);
        }
    }
    context.insert_keys(case.data.as_object().unwrap());
    template
        .render(&context, &|call| read.get(call).copied(), &Limits::default())
        .map(|file| file.expose().to_vec())
}

#[test]
fn every_case_renders_as_its_source_says() {
    let cases = cases();
    assert!(cases.len() >= 150, "the corpus has shrunk to {}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let rendered = render(case);
        let right = match (&case.expected, &rendered) {
            (Some(expected), Ok(file)) => expected.as_bytes() == file,
            (None, Err(_)) => true,
            _ => false,
        };
        if !right {
            let got = rendered.map(|file| String::from_utf8_lossy(&file).into_owned());
            wrong.push(format!(
                "{} ({})\n  template {:?}\n  expected {:?}\n  got      {:?}",
                case.name, case.source, case.template, case.expected, got
            ));
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn rendering_twice_makes_the_same_file() {
    for case in cases() {
        assert_eq!(render(&case), render(&case), "{}", case.name);
    }
}

/// A function that no case calls has no proof: the corpus, the formats test or the unit tests name them all.
#[test]
fn every_function_is_in_a_case() {
    let mut texts: String = cases().into_iter().map(|case| case.template).collect();
    texts.push_str(include_str!("formats.rs"));
    let words: std::collections::BTreeSet<&str> =
        texts.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    // Other names of functions that are there.
    let same = |name: &str| name.starts_with("must") || name.starts_with("os") || name.starts_with("to");
    let missing: Vec<_> = function_names().filter(|name| !words.contains(name) && !same(name)).collect();
    assert!(missing.is_empty(), "no case calls {missing:?}");
}
