#![allow(clippy::unwrap_used)] // a test fails by panicking

use proptest::prelude::*;

use super::*;

#[test]
fn path_canonical_matrix() {
    use ApiPathError as E;
    let same = "secret/data/app";
    let accepted = [
        ("secret/data/app", same),
        ("/secret/data/app", same),
        ("v1/secret/data/app", same),
        ("/v1/secret/data/app", same),
        ("v1/v1/x", "v1/x"),
        ("V1/secret/data/app", "V1/secret/data/app"),
        ("v1", "v1"),
        ("v1x/y", "v1x/y"),
        ("secret/data/with space", "secret/data/with space"),
        ("secret/data/a+b", "secret/data/a+b"),
        ("secret/data/a*b", "secret/data/a*b"),
        ("secret/data/a:b@c;d=e&f", "secret/data/a:b@c;d=e&f"),
        ("secret/data/...", "secret/data/..."),
        ("secret/data/..a", "secret/data/..a"),
        ("secret/data/a.", "secret/data/a."),
        ("secret/data/~", "secret/data/~"),
        ("secret/data/{{x}}", "secret/data/{{x}}"),
        ("team-b/secret/data/app", "team-b/secret/data/app"),
        ("SECRET/data/app", "SECRET/data/app"),
        ("database/creds/app", "database/creds/app"),
    ];
    let long = "a".repeat(4097);
    let refused = [
        ("", E::Empty),
        ("/", E::Empty),
        ("v1/", E::Empty),
        ("/v1/", E::Empty),
        ("//secret", E::EmptySegment),
        ("/v1//secret", E::EmptySegment),
        ("v1//secret", E::EmptySegment),
        ("//v1/secret", E::EmptySegment),
        ("secret//data/app", E::EmptySegment),
        ("secret/data//app", E::EmptySegment),
        ("secret/data/app//", E::EmptySegment),
        ("secret/data/app/", E::TrailingSlash),
        ("secret/", E::TrailingSlash),
        ("..", E::Dots),
        (".", E::Dots),
        ("../secret/data/app", E::Dots),
        ("/v1/../sys/seal", E::Dots),
        ("secret/../sys/seal", E::Dots),
        ("secret/data/..", E::Dots),
        ("secret/./data/app", E::Dots),
        ("secret/data/app/.", E::Dots),
        ("./secret", E::Dots),
        ("v1/./secret", E::Dots),
        ("secret/data%2Fapp", E::Percent),
        ("secret/data%2fapp", E::Percent),
        ("secret%2Fdata%2Fapp", E::Percent),
        ("secret/data/%61pp", E::Percent),
        ("secret/%2e%2e/sys", E::Percent),
        ("secret/%252e%252e/sys", E::Percent),
        ("secret/data/app%00", E::Percent),
        ("secret/data/app%", E::Percent),
        ("secret/data/app%20", E::Percent),
        ("secret/data/app#", E::Fragment),
        ("secret/data/app#x", E::Fragment),
        ("#", E::Fragment),
        ("secret/data/app?", E::Query),
        ("secret/data/app?version=2", E::Query),
        ("?", E::Query),
        ("secret\\data\\app", E::Backslash),
        ("secret/..\\sys", E::Backslash),
        ("\\\\host\\share", E::Backslash),
        ("secret/data/app\0", E::Control),
        ("secret/data/app\n", E::Control),
        ("secret/data/app\r\nX-Vault-Token: x", E::Control),
        ("secret/\tdata/app", E::Control),
        ("secret/data/app\x7f", E::Control),
        ("secret/data/app\u{85}", E::Control),
        ("secret/data/аpp", E::NotAscii),   // Cyrillic а
        ("secret／data／app", E::NotAscii), // full-width solidus
        ("secret/data\u{2215}app", E::NotAscii),
        ("secret/․․/sys", E::NotAscii), // one-dot leaders
        ("secret/data/app\u{200b}", E::NotAscii),
        ("secret/data/app\u{a0}", E::NotAscii),
        ("secret/data/\u{202e}app", E::NotAscii),
        ("ｖ1/secret", E::NotAscii),
        ("\u{feff}secret/data/app", E::NotAscii),
        (" secret/data/app", E::Space),
        ("secret/data/app ", E::Space),
        ("secret /data/app", E::Space),
        ("secret/ /app", E::Space),
        (long.as_str(), E::TooLong),
    ];
    assert!(accepted.len() + refused.len() >= 60);
    for (text, canonical) in accepted {
        assert_eq!(ApiPath::parse(text).as_ref().map(ApiPath::as_str), Ok(canonical), "{text:?}");
    }
    for (text, error) in refused {
        assert_eq!(ApiPath::parse(text), Err(error), "{text:?}");
    }
    for (text, mount) in [("kubernetes", "kubernetes"), ("/a/b/", "a/b"), ("v1/x", "v1/x")] {
        assert_eq!(ApiPath::parse_mount(text).unwrap().as_str(), mount);
    }
    for text in ["", "/", "a//", "//a", "a/../b", "a%2Fb"] {
        assert!(ApiPath::parse_mount(text).is_err(), "{text:?}");
    }
}

#[test]
fn object_paths_follow_the_driver() {
    use ObjectPathError as E;
    let (element, over) = ("e".repeat(255), "e".repeat(256));
    let deep = "d/".repeat(2047) + "dd";
    let deeper = "d/".repeat(2048) + "d";
    for text in ["a", ".hidden", "a/..b", "a/b/c", "a b", "ключ", "a...", "-", "~", &element, &deep] {
        assert_eq!(ObjectPath::parse(text).unwrap().as_str(), text);
    }
    for (text, error) in [
        ("", E::Empty),
        ("/abs", E::Absolute),
        ("//", E::Absolute),
        ("..", E::Parent),
        ("../x", E::Parent),
        ("a/../b", E::Parent),
        ("a/..", E::Parent),
        ("..x", E::Reserved),
        ("..data", E::Reserved),
        ("..data/x", E::Reserved),
        ("...", E::Reserved),
        ("a//b", E::NotClean),
        ("./a", E::NotClean),
        ("a/.", E::NotClean),
        (".", E::NotClean),
        ("a/", E::NotClean),
        ("a/./b", E::NotClean),
        ("a\0", E::Control),
        ("a\nb", E::Control),
        ("a/\u{1b}[2J", E::Control),
        (&over, E::ElementTooLong),
        (&deeper, E::TooLong),
    ] {
        assert_eq!(ObjectPath::parse(text), Err(error), "{text:?}");
    }
}

// Spellings around what is dangerous, rather than uniformly random text.
fn spelling() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("/"),
        Just("."),
        Just(".."),
        Just("v1/"),
        Just("%2f"),
        Just("%"),
        Just("#"),
        Just("?"),
        Just("\\"),
        Just("\0"),
        Just("\n"),
        Just(" "),
        Just("é"),
        Just("a"),
        Just("secret"),
        Just("data"),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn prop_paths_never_escape(text in prop_oneof![spelling(), any::<String>()]) {
        if let Ok(path) = ObjectPath::parse(&text) {
            let mut depth = 0;
            for component in std::path::Path::new(path.as_str()).components() {
                prop_assert!(matches!(component, std::path::Component::Normal(_)));
                depth += 1;
            }
            prop_assert!(depth > 0);
            prop_assert_eq!(std::path::Path::new(path.as_str()).components().collect::<std::path::PathBuf>(),
                std::path::PathBuf::from(path.as_str()));
            prop_assert!(!path.as_str().starts_with(".."));
        }
    }

    #[test]
    fn prop_an_api_path_is_what_a_url_parser_sees(text in prop_oneof![spelling(), any::<String>()]) {
        if let Ok(path) = ApiPath::parse(&text) {
            let url = reqwest::Url::parse(&format!("http://vault:8200/v1/{path}")).unwrap();
            let seen: Vec<_> = url.path_segments().unwrap().map(|s| s.replace("%20", " ")).collect();
            prop_assert_eq!(url.query(), None);
            prop_assert_eq!(url.fragment(), None);
            // Everything else that the parser escapes, the server unescapes to the same.
            let escaped = |s: &str| s.contains(['"', '<', '>', '`', '{', '}', '^', '|']);
            if !escaped(path.as_str()) {
                prop_assert_eq!(seen, format!("v1/{path}").split('/').map(str::to_owned).collect::<Vec<_>>());
            }
            let stored = serde_json::to_string(&path).unwrap();
            prop_assert_eq!(serde_json::from_str::<ApiPath>(&stored).unwrap(), path);
        }
    }
}
