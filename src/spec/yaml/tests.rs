#![allow(clippy::unwrap_used)] // a test fails by panicking

use proptest::prelude::*;

use super::*;
use crate::template::Position;

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
    assert_eq!(b.as_text(), Some("first\nsecond\n"));
    assert_eq!(b.line, 4);
    let Kind::List(items) = &node.get("c").unwrap().kind else { panic!("not a list") };
    assert_eq!(items[0].line, 7);
}

#[test]
fn what_go_refuses_or_we_do_not_read_names_the_line() {
    for (source, line, says) in [
        ("a: 1\na: 2", 2, "twice"),
        ("a: &x [b]\nc:\n  <<: *x", 3, "the merge key (<<) is text, expected a mapping"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x", 4, "the key \"<<\" is given twice"),
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

/// As yaml.v3 merges: what is written stays, of several the first wins, and a quoted `<<` is a key as any other.
#[test]
fn merge_keys_add_what_is_not_there() {
    let base = "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz:\n";
    for (given, expected) in [
        ("  <<: *x\n  b: 9", r#"{"a":1,"b":9}"#),
        ("  b: 9\n  <<: *x", r#"{"a":1,"b":9}"#),
        ("  <<: [*x, *y]", r#"{"a":1,"b":2,"c":4}"#),
        ("  <<: {d: 5}\n  a: 0", r#"{"a":0,"d":5}"#),
        ("  \"<<\": *x", r#"{"<<":{"a":1,"b":2}}"#),
        ("  q: &q {<<: *y, c: 0}\n  <<: *q", r#"{"b":3,"c":0,"q":{"b":3,"c":0}}"#),
    ] {
        let node = Node::parse(&format!("{base}{given}\n")).unwrap();
        assert_eq!(node.get("z").unwrap().to_json().to_string(), expected, "{given}");
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

/// Each letter of the scalar is the letter at its place in the document, or the one that its escape there writes.
fn letters_stand_where_they_are_said_to(source: &str) -> usize {
    let node = Node::parse(source).unwrap();
    let node = node.get("k").unwrap();
    let text = node.as_text().unwrap();
    let lines: Vec<Vec<char>> = source.lines().map(|line| line.chars().collect()).collect();
    let (mut at, mut letters) = (Position { line: 1, column: 1 }, 0);
    for letter in text.chars() {
        if letter.is_alphanumeric() {
            let place = node.origin().locate(text, at).unwrap();
            let there = &lines[place.line - 1][place.column - 1..];
            let escaped = ["\\x41", "\\u0042", "\\U00000043", "\\ud835\\udc00"]
                .iter()
                .zip("ABC𝐀".chars())
                .any(|(escape, it)| {
                    it == letter && there.iter().copied().take(escape.len()).eq(escape.chars())
                });
            assert!(there[0] == letter || escaped, "{letter} of {text:?} at {place} of {source}");
            letters += 1;
        }
        at = match letter {
            '\n' => Position { line: at.line + 1, column: 1 },
            _ => Position { column: at.column + 1, ..at },
        };
    }
    letters
}

#[test]
fn characters_are_found_in_every_kind_of_scalar() {
    for (source, letters) in [
        ("a: b\nk: word", 4),
        ("k: one\n   two\n\n\n   three", 11),
        ("k: |\n  ab\n   cd\n\n  ef\n", 6),
        ("k: |2-\n\n    \n   ab\n  cd\nz: 1", 4),
        ("k: >\n\n  ab\n  cd\n   more\n  ef\n\n  gh\n", 12),
        ("k: >-\r\n  ab\r\n  cd\r\n", 4),
        ("k: 'it''s  two\n  \n\n  lines '", 11),
        ("k: \"a\\nb\\x41\\u0042\\U00000043 c\\\n   d\\\n\n  e\"", 8),
        ("{\"k\": \"- a\\n- \\ud835\\udc00b\"}", 3),
    ] {
        assert_eq!(letters_stand_where_they_are_said_to(source), letters, "{source}");
    }
    let node = Node::parse("a: &x |\n  b\nk: *x\n").unwrap();
    let place = node.get("k").unwrap().origin().locate("b\n", Position { line: 1, column: 1 });
    assert_eq!(place, Some(Position { line: 2, column: 3 }), "where the text stands, not what refers to it");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn prop_characters_are_found(
        head in prop::sample::select(vec!["", "'", "\"", "|\n", "|-\n", "|+\n", ">\n", ">-\n", "|2\n", ">2\n"]),
        pieces in prop::collection::vec(
            prop::sample::select(vec!["ab", "xyz", "é", "q", " ", "  ", "\n", "\n", "\n\n", "{{ . }}", "-", "''", "\\x41", "\\n", "\\\n", "\\u0042"]),
            1..24,
        ),
        indent in 2_usize..5,
        crlf in any::<bool>(),
    ) {
        let margin = " ".repeat(if head.contains('2') { 2 } else { indent });
        let end = match head { "'" | "\"" => head, _ => "" };
        let inner: String = pieces.concat().replace('\n', &format!("\n{margin}"));
        let open = if head.contains('\n') { format!("{head}{margin}") } else { head.to_owned() };
        let source = format!("a: 1\nk: {open}w{inner}{end}\nz: 2\n");
        let source = if crlf { source.replace('\n', "\r\n") } else { source };
        let readable = Node::parse(&source).is_ok_and(|node| {
            node.get("k").is_some_and(|k| matches!(k.kind, Kind::Text(..)))
        });
        prop_assume!(readable);
        letters_stand_where_they_are_said_to(&source);
    }
}
