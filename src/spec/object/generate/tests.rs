#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn read(text: &str) -> Result<Generator, String> {
    Generator::read(&Node::parse(text).unwrap()).map_err(|(line, reason)| format!("{line}: {reason}"))
}

fn password(text: &str) -> PasswordRules {
    match read(text) {
        Ok(Generator::Password(rules)) => rules,
        other => panic!("{other:?}"),
    }
}

/// External Secrets Operator's defaults: length 24, a quarter digits, a quarter symbols.
#[test]
fn passwords_have_the_defaults_of_external_secrets_operator() {
    let rules = password("{password: {}}");
    assert_eq!((rules.length, rules.digits, rules.symbols), (24, 6, 6));
    assert_eq!(rules.symbol_characters, "~!@#$%^&*()_+`-={}|[]\\:\"<>?,./");
    assert!(!rules.no_upper && !rules.allow_repeat);
    assert_eq!(password("password"), rules);
    assert_eq!(password("{password: null}"), rules);
    let rules = password("{password: {length: 10}}");
    assert_eq!((rules.length, rules.digits, rules.symbols, rules.letters()), (10, 2, 2, 6));
    let rules = password(
        "{password: {length: 42, digits: 5, symbols: 5, symbolCharacters: \"-_$@!\", noUpper: true, allowRepeat: true}}",
    );
    assert_eq!((rules.symbols, rules.symbol_characters.as_str()), (5, "-_$@!"));
    assert!(rules.no_upper && rules.allow_repeat);
}

#[test]
fn every_kind_is_read() {
    for (text, expected) in [
        ("uuid", Generator::Uuid),
        ("{uuid: {}}", Generator::Uuid),
        ("hex", Generator::Hex { bytes: 32 }),
        ("{base64: {bytes: 48}}", Generator::Base64 { bytes: 48 }),
        ("{sshKey: {comment: a b}}", Generator::SshKey { comment: "a b".into() }),
        ("tlsKey", Generator::TlsKey(KeyKind::P256)),
        ("{tlsKey: {algorithm: RSA, size: 2048}}", Generator::TlsKey(KeyKind::Rsa2048)),
        ("{tlsKey: {algorithm: Ed25519}}", Generator::TlsKey(KeyKind::Ed25519)),
        ("database-password", Generator::Named("database-password".into())),
    ] {
        assert_eq!(read(text), Ok(expected), "{text}");
    }
}

#[test]
fn what_makes_no_value_is_refused() {
    for (text, says) in [
        ("[password]", "1: is a list, expected a mapping"),
        ("{}", "has one of the kinds password, uuid"),
        ("{hex: {}, uuid: {}}", "has one of the kinds"),
        (
            "{pasword: {}}",
            "\"pasword\" is not one of the kinds password, uuid, hex, base64, sshKey, tlsKey, did you mean password?",
        ),
        ("sshkey", "\"sshkey\" is written sshKey"),
        ("{password: {lenght: 8}}", "password has no field \"lenght\", did you mean length?"),
        ("{password: 32}", "password is a number, expected a mapping"),
        ("{password:\n  {length: many}}", "2: password: length is not a whole number up to 1024"),
        (
            "{password: {length: 8, digits: 5, symbols: 5}}",
            "5 digits and 5 symbols are more than the 8 characters",
        ),
        ("{password: {length: 64}}", "16 digits are more than the 10 there are; allowRepeat: true"),
        ("{password: {length: 80, digits: 0, symbols: 0}}", "80 letters are more than the 52 there are"),
        ("{password: {length: 30, digits: 0, symbols: 0, noUpper: true}}", "30 letters are more than the 26"),
        ("{password: {symbolCharacters: \"-_\"}}", "6 symbols are more than the 2 there are"),
        ("{password: {symbolCharacters: \"abc\"}}", "symbolCharacters has letters"),
        ("{password: {noUpper: maybe}}", "noUpper \"maybe\" is not a boolean"),
        ("{hex: {bytes: 8}}", "fewer than 16 can be guessed"),
        ("{base64: {bytes: 5000}}", "whole number up to 1024"),
        ("{sshKey: {keyType: rsa}}", "is ed25519; no other is made"),
        ("{sshKey: {comment: \"a\\nb\"}}", "is one line"),
        ("{tlsKey: {algorithm: DSA}}", "is not one of ecdsa, rsa, ed25519"),
        ("{tlsKey: {algorithm: RSA, size: 1024}}", "2048, 3072 or 4096 for rsa"),
        ("{tlsKey: {size: 256}}", "needs algorithm beside it"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}
