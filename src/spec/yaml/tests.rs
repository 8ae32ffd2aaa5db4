#![allow(clippy::unwrap_used)] // a test fails by panicking

use super::*;

fn json(source: &str) -> String {
    Node::parse(source).unwrap().to_json().to_string()
}

#[test]
fn scalars_resolve_as_in_yaml_v3() {
    for (source, expected) in [
        ("0644", "420"),
        ("0o644", "420"),
        ("420", "420"),
        ("0x1A4", "420"),
        ("-0b11", "-3"),
        ("1_000", "1000"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("1.50", "1.50"),
        (".5", "0.5"),
        ("+1.5", "1.5"),
        ("0899", "899.0"),
        ("1e3", "1e+3"),
        ("yes", "\"yes\""),
        ("on", "\"on\""),
        ("True", "true"),
        ("~", "null"),
        ("", "null"),
        ("'~'", "\"~\""),
        ("\"0644\"", "\"0644\""),
        ("!!str 0644", "\"0644\""),
        ("! 0644", "\"0644\""),
        ("2001-01-01", "\"2001-01-01\""),
        ("1.2.3.4", "\"1.2.3.4\""),
        (".inf", "\".inf\""),
        ("0x", "\"0x\""),
        ("--1", "\"--1\""),
        ("-", "[null]"),
        ("24h", "\"24h\""),
        ("{b: 1, a: [x, 2]}", r#"{"a":["x",2],"b":1}"#),
        ("{1: a, true: b}", r#"{"1":"a","true":"b"}"#),
        ("- &a {k: v}\n- *a", r#"[{"k":"v"},{"k":"v"}]"#),
    ] {
        assert_eq!(json(source), expected, "{source}");
    }
}

#[test]
fn lines_and_spellings_are_kept() {
    let node = Node::parse("# comment\na: 0644\nb: |\n  first\n  second\nc:\n  - x\n").unwrap();
    let a = node.get("a").unwrap();
    assert_eq!((a.line, a.as_text()), (2, Some("0644")));
    let b = node.get("b").unwrap();
    assert!(matches!(&b.kind, Kind::Block(text) if text == "first\nsecond\n"));
    assert_eq!(b.line, 4);
    let Kind::List(items) = &node.get("c").unwrap().kind else { panic!("not a list") };
    assert_eq!(items[0].line, 7);
}

#[test]
fn what_go_refuses_or_we_do_not_read_names_the_line() {
    for (source, line, says) in [
        ("a: 1\na: 2", 2, "twice"),
        ("a: &x {b: 1}\nc:\n  <<: *x", 3, "merge keys"),
        ("a: [1, 2", 1, "not valid YAML: "),
        ("a: !!binary aGk=", 1, "tag"),
        ("a: !include /etc/passwd", 1, "tag"),
        ("a: &x [*x]", 1, "part of"),
        ("? [a]\n: b", 1, "key is a list"),
        ("~: b", 1, "key is nothing"),
        ("a: 1\n---\nb: 2", 3, "second document"),
        ("a: *missing", 1, "not valid YAML: "),
    ] {
        let error = Node::parse(source).unwrap_err();
        assert_eq!(error.line, Some(line), "{source}: {error}");
        assert!(error.message.contains(says), "{source}: {error}");
        assert!(error.message.len() > "not valid YAML: ".len(), "the parser's texts are compiled in");
    }
}

#[test]
fn one_bad_document_hides_no_other() {
    let found = documents("a: 1\n---\nb: [\n---\nc: 3\n---\n");
    let summary: Vec<_> =
        found.iter().map(|found| found.as_ref().map(Node::describe).map_err(|e| e.line)).collect();
    assert_eq!(summary.len(), 4, "{summary:?}");
    assert!(summary[0].is_ok() && summary[1].is_err() && summary[2].is_ok());
}

#[test]
fn bombs_are_refused() {
    let mut laughs = String::from("a0: &a0 [lol]\n");
    for level in 1..40 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    let wide = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), "*a, ".repeat(1000));
    for (what, source) in [
        ("laughs", laughs),
        ("wide alias", wide),
        ("deep block", (0..10_000).map(|depth| format!("{}-\n", " ".repeat(depth % 200))).collect()),
        ("deep flow", "[".repeat(100_000)),
        ("deep maps", "{a: ".repeat(100_000)),
        ("many", "[".to_owned() + &"1,".repeat(MAX_NODES + 1) + "]"),
    ] {
        let before = std::time::Instant::now();
        assert!(Node::parse(&source).is_err(), "{what}");
        assert!(before.elapsed().as_secs() < 20, "{what} took {:?}", before.elapsed());
    }
}
