//! How long ten objects take, three of them templates: below a millisecond is what we promise.
//!
//! `cargo bench --bench render`
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints a table for a person")]

use std::{hint::black_box, time::Instant};

use leasehold::{
    format::DataFormat,
    template::{Context, Limits, SecretCall, Template},
};
use serde_json::json;

/// Milliseconds of a mount's rendering, at the most.
const PROMISE: f64 = 1.0;
const ROUNDS: u32 = 2_000;

fn main() {
    let db = json!({"username": "v-kubernetes-payments-x7", "password": "A1a-0/+w<&>'\"x", "host": "db", "port": 5432});
    let app = json!({"api_key": "k".repeat(64), "flags": {"a": true, "b": [1, 2, 3]}, "motd": "two\nlines"});
    let answer = json!({"data": {"data": app}, "lease_id": "", "lease_duration": 0});
    let templates = [
        "postgres://{{ .db.username | urlquery }}:{{ .db.password | urlquery }}@{{ .db.host }}:{{ .db.port }}/payments",
        "{{ with secret \"secret/data/app\" }}{{ range $k, $v := .Data.data }}{{ $k }}={{ $v | toJson | quote }}\n{{ end }}{{ end }}",
        "{\"auths\":{\"r\":{\"auth\":{{ printf \"%s:%s\" .db.username .db.password | b64enc | quote }}}}}\n{{ .app | toYaml | nindent 2 }}",
    ];
    let mut context = Context::default();
    context.insert_json("db", &db);
    context.insert_json("app", &app);
    let secrets = |_: &SecretCall| Some(&answer);
    let limits = Limits::default();
    let formats = [DataFormat::Json, DataFormat::Yaml, DataFormat::Properties];
    let raw = ["username", "password", "host", "port"];

    let parsed: Vec<Template> = templates.iter().map(|text| Template::parse(text, None).unwrap()).collect();
    let mount = |parsed: &[Template]| {
        for template in parsed {
            black_box(template.render(&context, &secrets, &limits).unwrap());
        }
        for format in formats {
            black_box(format.write(&app).unwrap());
        }
        for key in raw {
            black_box(leasehold::format::json::to_text(&db[key]));
        }
    };
    let time = |name: &str, run: &dyn Fn()| {
        run();
        let started = Instant::now();
        (0..ROUNDS).for_each(|_| run());
        let millis = started.elapsed().as_secs_f64() * 1000.0 / f64::from(ROUNDS);
        println!("{name:<44} {millis:>9.4} ms");
        millis
    };
    println!("{:<44} {:>12}", "what", "mean");
    time("parse 3 templates", &|| {
        templates.iter().for_each(|text| drop(black_box(Template::parse(text, None).unwrap())));
    });
    for (index, template) in parsed.iter().enumerate() {
        time(&format!("render template {index}"), &|| {
            black_box(template.render(&context, &secrets, &limits).unwrap());
        });
    }
    let whole = time("10 objects, 3 of them templates", &|| mount(&parsed));
    if !cfg!(debug_assertions) {
        assert!(whole < PROMISE, "{whole} ms: the promise is {PROMISE} ms");
    }
}
