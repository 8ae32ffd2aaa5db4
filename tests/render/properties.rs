//! What must hold for every template and every secret.

use std::time::Instant;

use leasehold::{
    format::DataFormat,
    template::{
        Context, Limit, Limits, SecretCall, Template, TemplateError, function_names, refused_functions,
    },
};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

const CANARY: &str = "c4n4ry-v4lu3";

fn render_with(template: &str, data: &Json, limits: &Limits) -> Result<Vec<u8>, TemplateError> {
    let mut context = Context::default();
    context.insert_keys(data.as_object().unwrap());
    let secrets = |_: &SecretCall| Some(data);
    Template::parse(template, None)?.render(&context, &secrets, limits).map(|file| file.expose().to_vec())
}

fn render(template: &str, data: &Json) -> Result<Vec<u8>, TemplateError> {
    render_with(template, data, &Limits::default())
}

/// Every function, called with canaries in every place it may take: whatever error comes of it, by any
/// number of arguments and through wrong types, shows none of them.
#[test]
fn no_error_shows_a_value() {
    let data = json!({
        "s": CANARY, "n": 918_273_645, "l": [CANARY], "m": {"k": CANARY, "c4n4ry-k3y": CANARY},
        "pem": format!("-----BEGIN CERTIFICATE-----\n{CANARY}\n-----END CERTIFICATE-----\n"),
        "data": {"k": CANARY}
    });
    let values = [".s", ".n", ".l", ".m", ".pem", "(index .m .s)", "(fail .s)", "(.m)"];
    let mut errors = 0;
    let mut templates = vec![
        "{{ .s.x }}".to_owned(),
        "{{ index .m .s }}".to_owned(),
        "{{ get .m (print .s 1) }}".to_owned(),
        "{{ fail (print \"x\" .s) }}".to_owned(),
        "{{ range .s }}{{ end }}".to_owned(),
        "{{ template .s }}".to_owned(),
        "{{ printf .s 1 2 }}".to_owned(),
        "{{ scratch.Get .s }}".to_owned(),
        "{{ with secret \"a\" }}{{ secret .Data.k }}{{ end }}".to_owned(),
    ];
    for name in function_names() {
        templates.push(format!("{{{{ {name} }}}}"));
        for a in values {
            templates.push(format!("{{{{ {name} {a} }}}}"));
            for b in values {
                templates.push(format!("{{{{ {name} {a} {b} }}}}"));
                templates.push(format!("{{{{ {name} {a} {b} {a} }}}}"));
                templates.push(format!("{{{{ {name} {b} {a} {b} {a} }}}}"));
            }
        }
    }
    for template in &templates {
        if let Err(error) = render(template, &data) {
            errors += 1;
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("c4n4ry") && !shown.contains("918273645"), "{template}: {shown}");
        }
    }
    assert!(errors > 1_000, "only {errors} of {} templates failed: the test sees nothing", templates.len());
    let secret = json!({"bad key": CANARY, "k": format!("{CANARY}\0")});
    for format in [DataFormat::Env, DataFormat::Properties, DataFormat::PemBundle] {
        let shown = format!("{:?}", format.write(&secret).err());
        assert!(shown.starts_with("Some") && !shown.contains("c4n4ry"), "{shown}");
    }
}

#[test]
fn template_no_second_eval() {
    let data = json!({"s": "{{ .other }}{{ fail \"x\" }}", "other": CANARY});
    assert_eq!(render("{{ .s }}", &data).unwrap(), b"{{ .other }}{{ fail \"x\" }}");
    assert_eq!(
        render("{{ printf \"%s\" .s }}{{ .s | quote }}", &json!({"s": "%d{{"})).unwrap(),
        b"%d{{\"%d{{\""
    );
}

/// Templates that never end, or ask for more memory than there is: each stops at a limit, soon.
#[test]
fn tenant_quota() {
    let big = "x".repeat(100_000);
    let data = json!({"big": big, "pat": "(a|aa)+$"});
    let doubling = "{{ $x := \"xxxxxxxx\" }}{{ range 100 }}{{ $x = print $x $x }}{{ end }}";
    let cases = [
        ("{{ range 1000000000 }}{{ end }}", Limit::RangeIterations),
        (
            "{{ range 1000 }}{{ range 1000 }}{{ range 1000 }}{{ end }}{{ end }}{{ end }}",
            Limit::RangeIterations,
        ),
        ("{{ range 100 }}{{ $.big }}{{ end }}", Limit::OutputBytes),
        (doubling, Limit::OutputBytes),
        ("{{ repeat 1000000000 \"x\" }}", Limit::OutputBytes),
        ("{{ repeat 4611686018427387904 \"xxxx\" }}", Limit::OutputBytes),
        ("{{ indent 1000000 (replace \"x\" \"\\n\" .big) }}", Limit::OutputBytes),
        ("{{ replace \"x\" .big .big }}", Limit::OutputBytes),
        ("{{ regexReplaceAll \"x\" .big .big }}", Limit::OutputBytes),
        (
            "{{ regexReplaceAll \"(x*)\" .big \"$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1$1\" }}",
            Limit::OutputBytes,
        ),
        ("{{ until 1000000000 }}", Limit::Work),
        ("{{ seq 1 1000000000 }}", Limit::Work),
        ("{{ $l := list 1 }}{{ range 100 }}{{ $l = concat $l $l }}{{ end }}", Limit::OutputBytes),
        (
            "{{ $l := list }}{{ range 99999 }}{{ $l = append $l $.big }}{{ end }}{{ join $.big $l }}",
            Limit::Work,
        ),
        ("{{ range 99999 }}{{ $x := sha512sum $.big }}{{ end }}", Limit::Work),
        ("{{ $l := list 1 }}{{ range 60 }}{{ $l = list $l $l }}{{ end }}{{ $l }}", Limit::OutputBytes),
        ("{{ $l := list 1 }}{{ range 60 }}{{ $l = list $l $l }}{{ end }}{{ deepCopy $l }}", Limit::Work),
        ("{{ $l := list 1 }}{{ range 60 }}{{ $l = list $l $l }}{{ end }}{{ toJson $l }}", Limit::Work),
        (
            "{{ $l := list 1 }}{{ $k := list 1 }}{{ range 60 }}{{ $l = list $l $l }}{{ $k = list $k $k }}{{ end }}{{ deepEqual $k $l }}",
            Limit::Work,
        ),
        ("{{ define \"t\" }}{{ template \"t\" . }}{{ end }}{{ template \"t\" . }}", Limit::Depth),
        (
            "{{ define \"t\" }}{{ if true }}{{ template \"u\" . }}{{ end }}{{ end }}{{ define \"u\" }}{{ range 1 }}{{ template \"t\" . }}{{ end }}{{ end }}{{ template \"t\" . }}",
            Limit::Depth,
        ),
    ];
    for (template, wanted) in cases {
        let started = Instant::now();
        match render(template, &data) {
            Err(TemplateError::Budget { limit, .. }) => assert_eq!(limit, wanted, "{template}"),
            other => panic!("{template}: {:?}", other.map(|file| file.len())),
        }
        assert!(started.elapsed().as_secs() < 30, "{template} took {:?} in a debug build", started.elapsed());
    }
    let long = [
        "{{ printf \"%999999999d\" 1 }}",
        "{{ $d := dict }}{{ $_ := set $d \"me\" $d }}",
        "{{ $d := dict }}{{ $_ := set $d \"me\" (list (dict \"x\" $d)) }}",
        "{{ regexMatch \"(x{1000}){1000}\" .big }}",
    ];
    for template in long {
        assert!(matches!(render(template, &data), Err(TemplateError::Function { .. })), "{template}");
    }
    // Nested 99,999 deep: building and freeing it needs no stack.
    let deep = "{{ $l := list 1 }}{{ $d := dict }}{{ range 49999 }}{{ $l = list $l }}{{ $d = dict \"k\" $d }}{{ end }}";
    assert_eq!(render(deep, &data).unwrap(), b"");
    for use_of in [
        "{{ $l }}",
        "{{ toJson $d }}",
        "{{ deepCopy $l }}",
        "{{ deepEqual $d $d }}",
        "{{ $_ := set (dict) \"k\" $d }}",
    ] {
        assert!(
            matches!(render(&format!("{deep}{use_of}"), &data), Err(TemplateError::Function { .. })),
            "{use_of}"
        );
    }
    let nested = format!("{}{}", "{{ if true }}".repeat(5_000), "{{ end }}".repeat(5_000));
    assert!(matches!(render(&nested, &data), Err(TemplateError::Syntax { .. })));
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000));
    assert!(matches!(render(&parens, &data), Err(TemplateError::Syntax { .. })));
    let others = format!("{{{{ if false }}}}a{}{{{{ end }}}}", "{{ else if false }}b".repeat(5_000));
    assert!(matches!(render(&others, &data), Err(TemplateError::Syntax { .. })));
}

#[test]
fn errors_name_place_and_name() {
    let data = json!({"db": {"user": "u"}, "l": ["a"]});
    let cases = [
        (
            "a\n{{ .db.pasword }}",
            "template line 2, column 4: there is no key \"pasword\"; for a key that may be absent use hasKey or dig",
        ),
        (
            "é {{ index .db \"x\" }}",
            "template line 1, column 6: there is no key \"x\"; for a key that may be absent use hasKey or dig",
        ),
        (
            "{{ index .l 4 }}",
            "template line 1, column 4: there is no key \"4\"; for a key that may be absent use hasKey or dig",
        ),
        (
            "{{ get .db \"x\" }}",
            "template line 1, column 4: there is no key \"x\"; for a key that may be absent use hasKey or dig",
        ),
        ("{{ (index .db \"user\").x }}", "template line 1, column 4: cannot take field \"x\" of a string"),
        (
            "{{ toUpperr .x }}",
            "template line 1, column 4: there is no function toUpperr; did you mean toUpper?",
        ),
        (
            "{{ b64encode .x }}",
            "template line 1, column 4: there is no function b64encode; did you mean b64enc?",
        ),
        ("{{ zzzzzzzz }}", "template line 1, column 4: there is no function zzzzzzzz"),
        (
            "{{ env \"A\" }}",
            "template line 1, column 4: function env is not available: templates do not read the agent's environment; set the value in the SecretProviderClass, or use .pod",
        ),
        ("x{{ if .l }}", "template line 1, column 2: this block has no {{end}}"),
        (
            "{{ .a-b }}",
            "template line 1, column 6: this - is no operator; a key with a dash needs index: {{ index . \"a-key\" }}",
        ),
        ("{{ upper 3 }}", "template line 1, column 4: upper: takes a string, not an integer"),
        ("{{ fail \"set it\" }}", "template line 1, column 4: the template failed: set it"),
        (
            "{{ with secret \"a\" }}{{ with secret .Data.x }}{{ end }}{{ end }}",
            "template line 1, column 37: the path and arguments of secret must be constants, or printf, print or join of constants and .pod",
        ),
    ];
    for (template, expected) in cases {
        let parsed = Template::parse(template, None);
        let error = match &parsed {
            Err(error) => error.clone(),
            Ok(parsed) => match parsed.secret_calls(&Default::default()) {
                Err(error) => error,
                Ok(_) => render(template, &data).unwrap_err(),
            },
        };
        assert_eq!(error.to_string(), expected, "{template}");
    }
    assert!(refused_functions().all(|(name, _)| function_names().all(|known| known != name)));
}

#[test]
fn secret_calls_are_found_once_and_in_order() {
    let template = Template::parse(
        "{{ with secret \"kv/a\" }}{{ end }}\n{{ define \"t\" }}{{ (secret \"kv/b\").Data }}{{ end }}\
         {{ range list 1 }}{{ if false }}{{ $p := printf \"kv/%s\" $.pod.namespace }}{{ with secret $p \"a=b=c\" \"k=v\" }}{{ end }}{{ end }}{{ end }}\
         {{ with secret \"kv/a\" }}{{ end }}{{ len (toJson (secret \"kv/c\").Data) }}{{ join \"/\" (list \"kv\" \"d\") | secret | toJson }}",
        None,
    )
    .unwrap();
    let pod = leasehold::template::PodContext { namespace: "pay".into(), ..Default::default() };
    let calls = template.secret_calls(&pod).unwrap();
    let shown: Vec<_> =
        calls.iter().map(|(call, at)| (call.path.as_str(), call.args.len(), at.line)).collect();
    assert_eq!(shown, [("kv/a", 0, 1), ("kv/b", 0, 2), ("kv/pay", 2, 2), ("kv/c", 0, 2), ("kv/d", 0, 2)]);
    assert_eq!(calls[2].0.args["a"], "b=c");
    assert!(calls[2].0.is_write());
    for refused in [
        "{{ secret .x }}",
        "{{ $p := \"a\" }}{{ $p = .x }}{{ secret $p }}",
        "{{ $p := .x }}{{ secret $p }}",
        "{{ range $p := .l }}{{ secret $p }}{{ end }}",
        "{{ secret (upper \"a\") }}",
        "{{ .x | secret }}",
        "{{ secret \"a\" (print \"k=\" .x) }}",
        "{{ $p := \"a\" }}{{ len ($p := .x) }}{{ secret $p }}",
    ] {
        let found = Template::parse(refused, None).unwrap().secret_calls(&pod);
        assert!(matches!(found, Err(TemplateError::DependsOnSecret { .. })), "{refused}: {found:?}");
    }
}

/// A parsed template is kept with its spec and rendered off the worker's thread.
#[test]
fn templates_move_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    let template = Template::parse("{{ .a }}", None).unwrap();
    shared(&template);
    shared(&Context::default());
}

#[test]
fn the_pod_is_a_field_that_no_range_sees() {
    let data = json!({"a": "1", "pod": {"name": "pretender"}});
    let mut context = Context::default();
    context.pod.name = "web-0".into();
    context.insert_keys(data.as_object().unwrap());
    let template = "{{ .pod.name }} {{ with .a }}{{ $.pod.name }}{{ end }} {{ range $k, $_ := . }}{{ $k }} {{ end }}{{ len . }}";
    let file = Template::parse(template, None).unwrap().render(&context, &|_| None, &Limits::default());
    assert_eq!(file.unwrap().expose(), b"web-0 web-0 a pod 2");
}

#[test]
fn other_delimiters() {
    let template = Template::parse("{{ x }}[[- .a -]] b [[/* c */]]", Some(("[[", "]]"))).unwrap();
    let a = json!("v");
    let mut context = Context::default();
    context.insert_json("a", &a);
    let file = template.render(&context, &|_| None, &Limits::default()).unwrap();
    assert_eq!(file.expose(), b"{{ x }}vb ");
    assert!(Template::parse("x", Some(("", "]]"))).is_err());
}

fn json_value() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        "\\PC{0,12}".prop_map(Json::from),
        "[ -~\\n\\t\\r\u{85}\u{2028}:#'\"-]{0,12}".prop_map(Json::from),
        prop::sample::select(vec![
            "yes",
            "1e3",
            "0x1F",
            "null",
            "~",
            "- a",
            "a: b",
            "1:30",
            "2024-01-02",
            "<<",
            ".5",
            "_1",
            "\n",
            " a\n b",
            "a \n"
        ])
        .prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map("[ -~]{1,8}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn yaml_and_json_read_back(value in json_value()) {
        let data = json!({"v": value});
        let yaml = render("{{ toYaml .v }}", &data).unwrap();
        let yaml = String::from_utf8(yaml).unwrap();
        prop_assert_eq!(&leasehold::format::yaml::from_text(&yaml).unwrap(), &data["v"], "{}", yaml);
        for function in ["toJson", "toPrettyJson", "toRawJson"] {
            let text = render(&format!("{{{{ {function} .v }}}}"), &data).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<Json>(&text).unwrap(), &data["v"]);
        }
    }

    #[test]
    fn binary_survives_b64dec(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let encoded = data_encoding::BASE64.encode(&bytes);
        let data = json!({"x": encoded});
        let template = "{{ .x | b64dec | trimPrefix \"\" | b64enc }} {{ $b := .x | b64dec }}{{ $b }}";
        let expected = [encoded.as_bytes(), b" ", &bytes].concat();
        prop_assert_eq!(render(template, &data).unwrap(), expected);
        let mut context = Context::default();
        context.insert_bytes("raw", &bytes);
        let out = Template::parse("{{ .raw }}", None).unwrap().render(&context, &|_| None, &Limits::default()).unwrap();
        prop_assert_eq!(out.expose(), &bytes[..]);
    }

    #[test]
    fn random_text_never_panics(text in "(\\{\\{|\\}\\}|[-. $|()\"`:=,a-d0-9]|if|range|with|end|else|define|secret|printf|\\PC){0,40}") {
        let _ = render(&text, &json!({"a": {"b": [1, "x"]}, "c": "d"}));
        let _ = Template::parse(&text, None).map(|template| template.secret_calls(&Default::default()));
    }

    /// Well-formed calls of every function with all kinds of arguments: an answer or an error, and the same twice.
    #[test]
    fn random_calls_never_panic(
        name in prop::sample::select(function_names().collect::<Vec<_>>()),
        args in prop::collection::vec(prop::sample::select(vec![
            ".s", ".n", ".neg", ".l", ".m", ".big", ".nil", ".b", "1.5", "\"\"", "\"[a-z]+\"", "\"2006-01-02 _2 Jan .000\"", "(list)", "(dict)",
            "\"\\xff\"", "-9223372036854775808", "9223372036854775807", "now", "\"%v %5.2f\"", "0",
        ]), 0..5),
    ) {
        let data = json!({"s": "some text", "n": 7, "neg": -3, "l": ["b", 1, null], "m": {"k": "v", "s": {"t": 1}},
            "big": 12_345_678_901_234_567_890_u64, "nil": null, "b": true});
        let template = format!("{{{{ {name} {} }}}}", args.join(" "));
        prop_assert_eq!(render(&template, &data), render(&template, &data), "{}", template);
    }
}
