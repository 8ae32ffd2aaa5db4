//! File formats, read back by the tools that applications read them with.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use data_encoding::BASE64;
use leasehold::{
    format::{
        Certificate, DataFormat, FormatError, PrivateKey, check_key_matches_certificate, jks, pem, pkcs12,
    },
    template::{Context, Limits, Template},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
};
use serde_json::{Value as Json, json};

fn run(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed by this test: {error}"));
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    output.stdout
}

struct Issued {
    key: String,
    leaf: String,
    intermediate: String,
    root: String,
}

impl Issued {
    fn chain(&self) -> String {
        format!("{}{}{}", self.leaf, self.intermediate, self.root)
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params
}

/// A leaf of `key`, issued by an intermediate, issued by a root.
fn issue(key: &KeyPair, key_pem: String) -> Issued {
    let root = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate().unwrap()).unwrap();
    let intermediate =
        CertifiedIssuer::signed_by(authority("intermediate"), KeyPair::generate().unwrap(), &root).unwrap();
    let mut params = CertificateParams::new(vec!["web.payments.svc".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::IpAddress("10.0.0.1".parse().unwrap()));
    params.subject_alt_names.push(SanType::URI("spiffe://x/y".try_into().unwrap()));
    params.distinguished_name.push(rcgen::DnType::CommonName, "leaf");
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(key, &intermediate).unwrap();
    let with_crlf = |text: String| text.replace("\r\n", "\n");
    Issued {
        key: with_crlf(key_pem),
        leaf: with_crlf(leaf.pem()),
        intermediate: with_crlf(intermediate.pem()),
        root: with_crlf(root.pem()),
    }
}

fn ec() -> Issued {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let pem = key.serialize_pem();
    issue(&key, pem)
}

/// An RSA key is slow to make: openssl does it once for all tests here.
fn rsa() -> (Issued, String) {
    let pkcs8 = run("openssl", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], b"");
    let pkcs1 = run("openssl", &["rsa", "-traditional"], &pkcs8);
    let pkcs8 = String::from_utf8(pkcs8).unwrap();
    let key = KeyPair::from_pem(&pkcs8).unwrap();
    (issue(&key, pkcs8), String::from_utf8(pkcs1).unwrap())
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn rendered(template: &str, data: &Json) -> Vec<u8> {
    let mut context = Context::default();
    context.insert_keys(data.as_object().unwrap());
    let template = Template::parse(template, None).unwrap();
    template.render(&context, &|_| None, &Limits::default()).unwrap().expose().to_vec()
}

#[test]
fn keys_match_their_certificates_and_no_others() {
    let (rsa, pkcs1) = rsa();
    let ec256 = ec();
    let sec1 = run("openssl", &["ec"], ec256.key.as_bytes());
    let mut pairs = vec![(rsa.key.clone(), &rsa), (pkcs1, &rsa), (ec256.key.clone(), &ec256)];
    pairs.push((String::from_utf8(sec1).unwrap(), &ec256));
    assert!(pairs[3].0.contains("BEGIN EC PRIVATE KEY"));
    let others: Vec<Issued> = [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519]
        .into_iter()
        .map(|algorithm| {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let pem = key.serialize_pem();
            issue(&key, pem)
        })
        .collect();
    pairs.extend(others.iter().map(|issued| (issued.key.clone(), issued)));
    for (index, (key, _)) in pairs.iter().enumerate() {
        for (other, (_, issued)) in pairs.iter().enumerate() {
            let same = pairs[index].1.leaf == pairs[other].1.leaf;
            let checked = check_key_matches_certificate(key, &issued.chain());
            assert_eq!(checked, if same { Ok(()) } else { Err(FormatError::Mismatch) }, "{index} {other}");
        }
    }
    assert!(check_key_matches_certificate("junk", &ec256.leaf).is_err());
    assert!(check_key_matches_certificate(&ec256.key, "junk").is_err());
}

#[test]
fn keystores_are_read_by_openssl_and_keytool() {
    let dir = tempfile::tempdir().unwrap();
    let (rsa, _) = rsa();
    let ed = {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let pem = key.serialize_pem();
        issue(&key, pem)
    };
    for (name, issued) in [("rsa", &rsa), ("ec", &ec()), ("ed25519", &ed)] {
        let key = PrivateKey::from_pem(&issued.key).unwrap();
        let chain = Certificate::all_from_pem(&issued.chain()).unwrap();
        let p12 = pkcs12::write(&key, &chain, "web", "päss word").unwrap();
        assert!(
            p12 == pkcs12::write(&key, &chain, "web", "päss word").unwrap(),
            "an equal keystore is an equal file"
        );
        assert!(p12 != pkcs12::write(&key, &chain, "web", "other").unwrap());
        let p12 = file(dir.path(), &format!("{name}.p12"), p12.expose());
        let p12 = p12.to_str().unwrap();
        let back = run("openssl", &["pkcs12", "-in", p12, "-passin", "pass:päss word", "-nodes"], b"");
        let back = pem::blocks(&String::from_utf8(back).unwrap()).unwrap();
        assert!(back.iter().any(|block| block.label == "PRIVATE KEY"
            && PrivateKey::from_block(block).unwrap().matches(&chain[0]).is_ok()));
        let certificates: Vec<_> = back.iter().filter(|block| block.label == "CERTIFICATE").collect();
        assert_eq!(certificates.len(), 3);
        assert_eq!(certificates[0].der.expose(), chain[0].der());

        let jks = jks::write(&key, &chain, "web", "changeit").unwrap();
        assert!(jks == jks::write(&key, &chain, "web", "changeit").unwrap());
        let jks = file(dir.path(), &format!("{name}.jks"), jks.expose());
        let p12 = pkcs12::write(&key, &chain, "web", "changeit").unwrap();
        let p12 = file(dir.path(), &format!("{name}-java.p12"), p12.expose());
        for (store, kind) in [(&jks, "JKS"), (&p12, "PKCS12")] {
            let store = store.to_str().unwrap();
            let list = ["-list", "-v", "-keystore", store, "-storetype", kind, "-storepass", "changeit"];
            let listed = String::from_utf8(run("keytool", &list, b"")).unwrap();
            for wanted in ["PrivateKeyEntry", "Certificate chain length: 3", "Alias name: web", "CN=leaf"] {
                assert!(listed.contains(wanted), "{kind} of {name} lacks {wanted}:\n{listed}");
            }
            // That the key itself opens, and is the one: Java writes it out again for openssl.
            let out = dir.path().join(format!("{name}-{kind}-again.p12"));
            let again = out.to_str().unwrap();
            let import = [
                "-importkeystore",
                "-srckeystore",
                store,
                "-srcstoretype",
                kind,
                "-srcstorepass",
                "changeit",
                "-destkeystore",
                again,
                "-deststoretype",
                "PKCS12",
                "-deststorepass",
                "changeit",
            ];
            run("keytool", &import, b"");
            // Java's own archive, read here.
            let javas = pkcs12::read(&std::fs::read(&out).unwrap(), "changeit").unwrap();
            assert_eq!(javas.certificates.len(), 3);
            javas.keys[0].matches(&chain[0]).unwrap();
            let opened = run(
                "openssl",
                &["pkcs12", "-in", again, "-passin", "pass:changeit", "-nodes", "-nocerts"],
                b"",
            );
            PrivateKey::from_pem(&String::from_utf8(opened).unwrap()).unwrap().matches(&chain[0]).unwrap();
        }
    }
    let chain = Certificate::all_from_pem(&rsa.chain()).unwrap();
    let stores = [
        ("JKS", jks::write_truststore(&chain, "ca", "changeit").unwrap()),
        ("PKCS12", pkcs12::write_truststore(&chain, "ca", "changeit").unwrap()),
    ];
    for (kind, store) in stores {
        let store = file(dir.path(), &format!("trust.{kind}"), store.expose());
        let list =
            ["-list", "-keystore", store.to_str().unwrap(), "-storetype", kind, "-storepass", "changeit"];
        let listed = String::from_utf8(run("keytool", &list, b"")).unwrap();
        assert_eq!(listed.matches("trustedCertEntry").count(), 3, "{kind}: {listed}");
    }
}

#[test]
fn keystores_are_refused_for_what_is_wrong() {
    let (one, other) = (ec(), ec());
    let key = PrivateKey::from_pem(&one.key).unwrap();
    let chain = Certificate::all_from_pem(&one.leaf).unwrap();
    let wrong = Certificate::all_from_pem(&other.leaf).unwrap();
    assert_eq!(pkcs12::write(&key, &wrong, "a", "p").err(), Some(FormatError::Mismatch));
    assert_eq!(jks::write(&key, &wrong, "a", "changeit").err(), Some(FormatError::Mismatch));
    assert!(jks::write(&key, &chain, "a", "short").is_err(), "keytool opens no store with such a password");
    assert!(pkcs12::write(&key, &[], "a", "p").is_err());
    let store = pkcs12::write(&key, &chain, "a", "right").unwrap();
    let error = pkcs12::read(store.expose(), "canary-password").err().unwrap().to_string();
    assert!(error.contains("password") && !error.contains("canary"), "{error}");
    assert_eq!(pkcs12::read(store.expose(), "right").unwrap().certificates.len(), 1);
}

/// Whoever can write a secret can put anything where a keystore, a key or a certificate should be.
#[test]
fn broken_keystores_and_certificates_are_errors() {
    let issued = ec();
    let key = PrivateKey::from_pem(&issued.key).unwrap();
    let chain = Certificate::all_from_pem(&issued.chain()).unwrap();
    let store = pkcs12::write(&key, &chain, "a", "p").unwrap();
    assert!(pkcs12::read(store.expose(), "p").is_ok());
    let step = store.expose().len() / 150;
    for at in (0..store.expose().len()).step_by(step) {
        let mut bytes = store.expose().to_vec();
        bytes[at] ^= 0x55;
        let _ = pkcs12::read(&bytes, "p");
        assert!(pkcs12::read(&store.expose()[..at], "p").is_err());
    }
    for at in 0..chain[0].der().len() {
        let mut bytes = chain[0].der().to_vec();
        bytes[at] ^= 0x55;
        let _ = Certificate::from_der(&bytes);
        assert!(Certificate::from_der(&bytes[..at]).is_err());
    }
    for at in 0..key.pkcs8().len() {
        let mut bytes = key.pkcs8().to_vec();
        bytes[at] ^= 0x55;
        let _ = PrivateKey::from_pkcs8(bytes).map(|key| key.matches(&chain[0]));
        assert!(PrivateKey::from_pkcs8(key.pkcs8()[..at].to_vec()).is_err());
    }
}

/// External Secrets Operator's functions, over archives that openssl made with old and new algorithms.
#[test]
fn template_functions_open_and_make_archives() {
    let dir = tempfile::tempdir().unwrap();
    let issued = ec();
    let key = file(dir.path(), "key.pem", issued.key.as_bytes());
    let leaf = file(dir.path(), "leaf.pem", issued.leaf.as_bytes());
    let more = file(dir.path(), "more.pem", (issued.root.clone() + &issued.intermediate).as_bytes());
    for (legacy, password) in [(false, ""), (false, "pw"), (true, "pw")] {
        let pass = format!("pass:{password}");
        let mut args =
            vec!["pkcs12", "-export", "-inkey", key.to_str().unwrap(), "-in", leaf.to_str().unwrap()];
        args.extend(["-certfile", more.to_str().unwrap(), "-passout", &pass]);
        args.extend(legacy.then_some("-legacy"));
        let archive = run("openssl", &args, b"");
        let data = json!({"x": BASE64.encode(&archive), "p": password});
        let (certificates, key) = if password.is_empty() {
            ("{{ .x | b64dec | pkcs12cert }}", "{{ .x | b64dec | pkcs12key }}")
        } else {
            ("{{ .x | b64dec | pkcs12certPass .p }}", "{{ .x | b64dec | pkcs12keyPass .p }}")
        };
        assert_eq!(
            String::from_utf8(rendered(certificates, &data)).unwrap(),
            issued.chain(),
            "ordered leaf to root"
        );
        let key = String::from_utf8(rendered(key, &data)).unwrap();
        check_key_matches_certificate(&key, &issued.leaf).unwrap();
    }
    // A password that does not open it.
    for legacy in [false, true] {
        let mut args =
            vec!["pkcs12", "-export", "-inkey", key.to_str().unwrap(), "-in", leaf.to_str().unwrap()];
        args.extend(["-passout", "pass:pw"]);
        args.extend(legacy.then_some("-legacy"));
        let archive = run("openssl", &args, b"");
        let data = json!({"x": BASE64.encode(&archive), "p": "c4n4ry"});
        let mut context = Context::default();
        context.insert_keys(data.as_object().unwrap());
        for function in ["pkcs12keyPass", "pkcs12certPass"] {
            let template = format!("{{{{ .x | b64dec | {function} .p }}}}");
            let template = Template::parse(&template, None).unwrap();
            let error = template.render(&context, &|_| None, &Limits::default()).unwrap_err().to_string();
            assert!(error.contains(function) && error.contains("password"), "{error}");
            assert!(!error.contains("c4n4ry"), "{error}");
        }
    }
    // Rounds of key derivation that would keep a node busy: refused before they are made.
    let mut args = vec!["pkcs12", "-export", "-inkey", key.to_str().unwrap(), "-in", leaf.to_str().unwrap()];
    args.extend(["-passout", "pass:pw", "-iter", "600000"]);
    let slow = run("openssl", &args, b"");
    let error = pkcs12::read(&slow, "pw").err().unwrap().to_string();
    assert!(error.contains("too long"), "{error}");
    let data = json!({"c": issued.leaf, "f": issued.chain(), "k": issued.key});
    let made = [
        ("{{ pemToPkcs12 .c .k | b64dec }}", "", 1),
        ("{{ pemToPkcs12Pass .f .k \"pw\" | b64dec }}", "pw", 1),
        ("{{ fullPemToPkcs12 .f .k | b64dec }}", "", 3),
        ("{{ fullPemToPkcs12Pass .f .k \"pw\" | b64dec }}", "pw", 3),
        ("{{ pemTruststoreToPKCS12 .f | b64dec }}", "", 3),
        ("{{ pemTruststoreToPKCS12Pass .f \"pw\" | b64dec }}", "pw", 3),
    ];
    for (template, password, count) in made {
        let store = file(dir.path(), "made.p12", &rendered(template, &data));
        let pass = format!("pass:{password}");
        let back =
            run("openssl", &["pkcs12", "-in", store.to_str().unwrap(), "-passin", &pass, "-nodes"], b"");
        let back = String::from_utf8(back).unwrap();
        assert_eq!(back.matches("BEGIN CERTIFICATE").count(), count, "{template}");
    }
    assert_eq!(rendered("{{ filterCertChain \"leaf\" .f }}", &data), issued.leaf.as_bytes());
    assert_eq!(rendered("{{ filterCertChain \"intermediate\" .f }}", &data), issued.intermediate.as_bytes());
    assert_eq!(rendered("{{ filterCertChain \"root\" .f }}", &data), issued.root.as_bytes());
    assert_eq!(rendered("{{ certSANs .c | join \" \" }}", &data), b"web.payments.svc 10.0.0.1 spiffe://x/y");
}

#[test]
fn rsa_oaep_is_decrypted() {
    let dir = tempfile::tempdir().unwrap();
    let (issued, pkcs1) = rsa();
    let key = file(dir.path(), "key.pem", issued.key.as_bytes());
    for (hash, digest) in [("SHA1", "sha1"), ("SHA256", "sha256")] {
        let oaep = format!("rsa_oaep_md:{digest}");
        let options = ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", &oaep];
        let args = [&["pkeyutl", "-encrypt", "-inkey", key.to_str().unwrap()], &options[..]].concat();
        let sealed = run("openssl", &args, b"plain text");
        for key in [&issued.key, &pkcs1] {
            let data = json!({"c": BASE64.encode(&sealed), "k": key, "h": hash});
            assert_eq!(rendered("{{ rsaDecrypt \"RSA-OAEP\" .h (b64dec .c) .k }}", &data), b"plain text");
        }
    }
}

#[test]
fn env_files_are_read_back_by_a_shell() {
    let values = [
        "plain",
        "",
        "two words",
        "it's",
        "a\"b",
        "$HOME `id` \\n",
        "line1\nline2",
        "tab\there",
        "#no comment",
        "a=b&c",
        "ünïcode ✓",
        "'",
        "\\",
        " lead and trail ",
        "!bang",
        "'\"$`\\",
        "*",
        "~",
    ];
    let names: Vec<String> = (0..values.len()).map(|index| format!("V{index}")).collect();
    let data: BTreeMap<_, _> = names.iter().zip(values).collect();
    let file = DataFormat::Env.write(&json!(data)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = self::file(dir.path(), "app.env", file.expose());
    for shell in ["sh", "bash"] {
        let script = format!(
            "set -a; . {}; for v in {}; do eval \"printf '%s\\0' \\\"\\${{$v}}\\\"\"; done",
            path.display(),
            names.join(" ")
        );
        let out = run(shell, &["-c", &script], b"");
        let read: Vec<&[u8]> = out.strip_suffix(b"\0").unwrap().split(|byte| *byte == 0).collect();
        assert_eq!(read, values.map(str::as_bytes), "{shell}");
    }
}

/// Java reads the file with `java.util.Properties` and prints what it read as JSON strings of code units.
#[test]
fn properties_are_read_back_by_java() {
    let dir = tempfile::tempdir().unwrap();
    let data = json!({
        "plain": "v", "with space": " lead", "a:b=c#d!": "x=y:z#!", "uni\u{e9}": "\u{1f600} \u{2028} é",
        "multi": "a\nb\r\tc\u{c}", "back": "C:\\temp\\n", "number": 12, "nothing": null, "list": [1, "x"]
    });
    let file = DataFormat::Properties.write(&data).unwrap();
    assert!(file.expose().is_ascii());
    self::file(dir.path(), "app.properties", file.expose());
    let program = r#"
        import java.util.*; import java.io.*;
        public class Show { public static void main(String[] a) throws Exception {
            Properties p = new Properties();
            try (InputStream in = new FileInputStream(a[0])) { p.load(in); }
            for (String k : new TreeSet<String>(p.stringPropertyNames())) show(k, p.getProperty(k));
        }
        static void show(String... parts) { for (String s : parts) {
            for (char c : s.toCharArray()) System.out.printf("%04x", (int) c);
            System.out.print(' '); } System.out.println(); } }"#;
    let source = self::file(dir.path(), "Show.java", program.as_bytes());
    let config = dir.path().join("app.properties");
    let out = run("java", &[source.to_str().unwrap(), config.to_str().unwrap()], b"");
    let units = |text: &str| text.encode_utf16().map(|unit| format!("{unit:04x}")).collect::<String>();
    let mut expected: Vec<String> = data
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| {
            let value = match value {
                Json::String(text) => text.clone(),
                Json::Null => String::new(),
                other => other.to_string(),
            };
            format!("{} {} ", units(key), units(&value))
        })
        .collect();
    let mut read: Vec<String> = String::from_utf8(out).unwrap().lines().map(str::to_owned).collect();
    expected.sort();
    read.sort();
    assert_eq!(read, expected);
}

#[test]
fn bundles_are_key_certificate_chain() {
    let issued = ec();
    let expected = format!("{}{}{}", issued.key, issued.leaf, issued.intermediate);
    let crlf = |text: &str| text.trim_end().replace('\n', "\r\n");
    let answers = [
        json!({"private_key": crlf(&issued.key), "certificate": crlf(&issued.leaf), "issuing_ca": crlf(&issued.intermediate),
            "ca_chain": [crlf(&issued.intermediate), crlf(&issued.root)]}),
        json!({"private_key": issued.key, "certificate": issued.leaf, "issuing_ca": issued.intermediate}),
        // format=pem_bundle: all of it in one field, and the key a second time.
        json!({"certificate": format!("{}\n{}\n{}", issued.key, issued.leaf, issued.intermediate), "private_key": issued.key}),
        json!({"private_key": issued.key, "certificate": format!("{}{}", issued.leaf, issued.intermediate),
            "ca_chain": [issued.intermediate]}),
    ];
    for answer in answers {
        assert_eq!(DataFormat::PemBundle.write(&answer).unwrap().expose(), expected.as_bytes());
    }
    let other = ec();
    let wrong = json!({"private_key": other.key, "certificate": issued.leaf});
    assert_eq!(DataFormat::PemBundle.write(&wrong).err(), Some(FormatError::Mismatch));
    assert!(DataFormat::PemBundle.write(&json!({"private_key": other.key})).is_err());
}
