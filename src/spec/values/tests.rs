#![allow(clippy::unwrap_used)] // a test fails by panicking

use super::*;

#[test]
fn booleans_are_go_booleans() {
    for text in ["1", "t", "T", "TRUE", "true", "True"] {
        assert_eq!(boolean(text), Ok(true));
    }
    for text in ["0", "f", "F", "FALSE", "false", "False"] {
        assert_eq!(boolean(text), Ok(false));
    }
    for text in ["", "yes", "on", "tRUE", " true", "2"] {
        assert!(boolean(text).is_err(), "{text:?}");
    }
}

#[test]
fn durations_are_go_durations() {
    for (text, millis) in [
        ("0", 0),
        ("0s", 0),
        ("30s", 30_000),
        ("5m", 300_000),
        ("1h30m", 5_400_000),
        ("1.5h", 5_400_000),
        (".5s", 500),
        ("100ms", 100),
        ("1h0m1s", 3_601_000),
    ] {
        assert_eq!(duration(text).map(|found| found.as_millis()), Ok(millis), "{text}");
    }
    for text in
        ["", "30", "s", "1d", "-5s", "5 m", "1h30", "1..5s", ".", "9e9h", "99999999999999h", "5M", "∞"]
    {
        assert!(duration(text).is_err(), "{text:?}");
    }
}

#[test]
fn mode_bits() {
    for text in ["0644", "0o644", "0O644", "420", "0x1a4", "0b110100100", "0_644"] {
        let (found, warning) = mode(text).unwrap();
        assert_eq!((found.map(FileMode::bits), warning), (Some(0o644), None), "{text}");
    }
    assert_eq!(mode("0"), Ok((None, None)));
    assert_eq!(mode("0000"), Ok((None, None)));
    let (found, warning) = mode("400").unwrap();
    assert_eq!(found.map(FileMode::bits), Some(0o620));
    assert_eq!(warning.as_deref(), Some("400 is decimal and means 0620, write 0400 for octal"));
    assert!(mode("644").unwrap_err().contains("write 0644"));
    // 8389101 is Go's ModeSetuid|0755, which reaches chmod with the incumbents.
    for text in ["8389101", "04755", "02755", "01777", "07777", "0x800001ed", "512", "-1", "-0644"] {
        assert!(mode(text).unwrap_err().contains("outside 0777"), "{text}");
    }
    for text in ["", "rw-r--r--", "0888", "0o", "6 4 4", "u+s", "++1", "1e2"] {
        assert!(mode(text).unwrap_err().contains("not a mode"), "{text}");
    }
}

#[test]
fn owners_are_numbers() {
    assert_eq!(owner("10001"), Ok(FileOwner { uid: Some(10001), gid: None }));
    assert_eq!(owner("10001:20002"), Ok(FileOwner { uid: Some(10001), gid: Some(20002) }));
    assert_eq!(owner(":5"), Ok(FileOwner { uid: None, gid: Some(5) }));
    assert_eq!(owner("0:0"), Ok(FileOwner { uid: Some(0), gid: Some(0) }));
    for text in ["", ":", "1:", "root", "1:2:3", "-1", "+1", "010", "4294967295", "4294967296", "1.0", " 1"] {
        assert!(owner(text).is_err(), "{text:?}");
    }
}

#[test]
fn queries_keep_repeated_keys() {
    let found = query("version=2&a=b&a=c%26d&flag&&e=x+y").unwrap();
    let shown: Vec<_> = found.iter().map(|(key, values)| (key.as_str(), values.join("|"))).collect();
    let expected = [("a", "b|c&d"), ("e", "x y"), ("flag", ""), ("version", "2")];
    assert_eq!(shown, expected.map(|(key, values)| (key, values.to_owned())));
    assert!(query("").unwrap().is_empty());
    for text in ["=x", "a=%", "a=%4", "a=%zz", "a=%ff", "a=%00", "a=b#c", "a=%+f", "a=\n"] {
        assert!(query(text).is_err(), "{text:?}");
    }
}

#[test]
fn the_nearest_name_is_near() {
    let known = ["secretKey", "secretPath", "method"];
    assert_eq!(nearest("secretkey", known), Some("secretKey"));
    assert_eq!(nearest("secretPaht", known), Some("secretPath"));
    assert_eq!(nearest("methdo", known), Some("method"));
    assert_eq!(nearest("completelyOther", known), None);
    assert_eq!(nearest(&"x".repeat(100_000), known), None);
}
