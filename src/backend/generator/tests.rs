#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, io::Write as _, os::unix::fs::OpenOptionsExt as _, process::Command};

use proptest::prelude::*;

use super::*;

fn one(generator: &Generator) -> String {
    make("k", generator).unwrap()["k"].expose().to_owned()
}

fn rules(length: u32, digits: u32, symbols: u32, no_upper: bool, allow_repeat: bool) -> PasswordRules {
    let symbol_characters = "~!@#$%^&*()_+`-={}|[]\\:\"<>?,./".to_owned();
    PasswordRules { length, digits, symbols, symbol_characters, no_upper, allow_repeat }
}

proptest! {
    #[test]
    fn a_password_has_what_its_rules_say(
        letters in 0_u32..=26, digits in 0_u32..=10, symbols in 0_u32..=28, no_upper: bool, allow_repeat: bool,
    ) {
        let rules = rules(letters + digits + symbols, digits, symbols, no_upper, allow_repeat);
        let text = password(&rules);
        let count = |is: fn(&char) -> bool| u32::try_from(text.chars().filter(is).count()).unwrap();
        prop_assert_eq!(count(char::is_ascii_alphabetic), letters);
        prop_assert_eq!(count(char::is_ascii_digit), digits);
        prop_assert_eq!(count(char::is_ascii_punctuation), symbols);
        prop_assert!(!no_upper || count(char::is_ascii_uppercase) == 0);
        let distinct: BTreeSet<char> = text.chars().collect();
        prop_assert!(allow_repeat || distinct.len() == text.len());
    }
}

/// Each class may stand at each place, and no value comes twice.
#[test]
fn passwords_are_random() {
    let rules = rules(24, 6, 6, false, false);
    let many: Vec<String> = (0..2000).map(|_| password(&rules)).collect();
    assert_eq!(many.iter().collect::<BTreeSet<_>>().len(), many.len());
    for place in 0..24 {
        let at = |is: fn(&u8) -> bool| many.iter().filter(|it| is(&it.as_bytes()[place])).count();
        for (class, expected) in [
            (at(u8::is_ascii_digit), 500),
            (at(u8::is_ascii_punctuation), 500),
            (at(u8::is_ascii_alphabetic), 1000),
        ] {
            assert!(
                class.abs_diff(expected) < 150,
                "place {place}: {class} of 2000, expected about {expected}"
            );
        }
    }
    let letters: BTreeSet<char> = many.iter().flat_map(|it| it.chars()).collect();
    assert_eq!(letters.len(), 52 + 10 + 30, "every character is used");
}

#[test]
fn random_values_have_their_form() {
    assert_eq!(one(&Generator::Hex { bytes: 16 }).len(), 32);
    let base64 = one(&Generator::Base64 { bytes: 32 });
    assert_eq!(data_encoding::BASE64.decode(base64.as_bytes()).unwrap().len(), 32);
    let uuid = one(&Generator::Uuid);
    assert_eq!((uuid.len(), uuid.as_bytes()[14]), (36, b'4'), "{uuid}");
    assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
    assert_ne!(uuid, one(&Generator::Uuid));
    let name = Generator::Named("mine".into());
    assert!(make("k", &name).unwrap_err().to_string().contains("\"mine\" is not defined"));
}

/// OpenSSH reads the private half and derives the public one from it that was written beside it.
#[test]
fn ssh_keygen_reads_the_key() {
    let dir = tempfile::tempdir().unwrap();
    for comment in ["", "deploy@prod", "x", "1234567"] {
        let made = make("id", &Generator::SshKey { comment: comment.into() }).unwrap();
        assert_eq!(made.keys().collect::<Vec<_>>(), ["id", "id.pub"]);
        let path = dir.path().join("id");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
        file.write_all(made["id"].expose().as_bytes()).unwrap();
        let read = Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path).output().unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        assert_eq!(String::from_utf8(read.stdout).unwrap(), made["id.pub"].expose());
        assert_eq!(
            keys("id", &Generator::SshKey { comment: comment.into() }).collect::<Vec<_>>(),
            ["id", "id.pub"]
        );
    }
}

#[test]
fn openssl_reads_the_keys() {
    for (kind, says) in [
        (KeyKind::Ed25519, "ED25519"),
        (KeyKind::P256, "prime256v1"),
        (KeyKind::P384, "secp384r1"),
        (KeyKind::Rsa2048, "2048 bit"),
    ] {
        let mut openssl = Command::new("openssl")
            .args(["pkey", "-noout", "-text"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let key = one(&Generator::TlsKey(kind));
        openssl.stdin.take().unwrap().write_all(key.as_bytes()).unwrap();
        let output = openssl.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(says), "{kind:?}: {text}");
    }
}
