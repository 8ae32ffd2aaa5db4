//! The fuzz targets on the stable toolchain: each over its corpus, over that corpus torn and mixed, and over
//! random bytes, for a few seconds. `LEASEHOLD_FUZZ_SECONDS` is how long for each.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "it tells how much was tried")]

use std::{
    collections::BTreeSet,
    fs,
    panic::AssertUnwindSafe,
    path::Path,
    time::{Duration, Instant},
};

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

#[path = "../fuzz/entries.rs"]
mod entries;

/// For each target unless the environment says otherwise.
const SECONDS: u64 = 3;
/// No input of this size may take longer, on a machine that does ten other things.
const HANG: Duration = Duration::from_secs(20);
/// Longest input, bytes.
const LONGEST: usize = 8192;

/// What the grammars at hand are made of.
const WORDS: [&str; 52] = [
    "{{",
    "}}",
    "{{-",
    "-}}",
    "range",
    "end",
    "if",
    "else",
    "with",
    "define",
    "template",
    "block",
    "$x",
    ":=",
    "|",
    "secret",
    "printf",
    "\"%s\"",
    "index",
    "dict",
    ".db.list",
    ".db",
    ".pod.name",
    "`",
    "'",
    "\"",
    "\\",
    "- ",
    ": ",
    "\n",
    "\n  ",
    "objectName",
    "secretPath",
    "secretKey",
    "extract",
    "generate",
    "{password: {}}",
    "as",
    "&a",
    "*a",
    "<<",
    "!!binary",
    "|\n",
    "[",
    "]",
    "/",
    "..",
    "%2F",
    "\u{1e}roleName=",
    "rules",
    "\0\0\x0c\x01\x04\0\0\0\x01",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

/// What the project has of each kind, as a beginning.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let mut seeds = Vec::new();
    match target {
        "template" => {
            let corpus: serde_json::Value = serde_json::from_str(&read("tests/render/corpus.json")).unwrap();
            let mut found = Vec::new();
            templates(&corpus, &mut found);
            assert!(found.len() > 150, "{} templates", found.len());
            seeds.extend(found.into_iter().map(String::into_bytes));
        }
        "objects" | "policy" | "manifests" | "parameters" => {
            for page in ["objects", "policy", "secretproviderclass", "quickstart-kind"] {
                let page = read(&format!("docs/{page}.md"));
                let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
                seeds.extend(blocks.map(|block| match target {
                    "parameters" => format!("roleName=app\u{1e}objects={block}").into_bytes(),
                    _ => block.as_bytes().to_vec(),
                }));
            }
            assert!(seeds.len() > 10);
        }
        "authority" => seeds.extend(connections()),
        _ => seeds.extend(
            ["secret/data/app", "/v1/a", "a/b.txt", "..data", "a//b"].map(|it| it.as_bytes().to_vec()),
        ),
    }
    let corpus = root.join("fuzz/corpus").join(target);
    if let Ok(files) = fs::read_dir(corpus) {
        seeds.extend(files.map(|file| fs::read(file.unwrap().path()).unwrap()));
    }
    seeds
}

fn templates(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| templates(item, found)),
        serde_json::Value::Object(map) => {
            if let Some(text) = map.get("template").and_then(serde_json::Value::as_str) {
                found.push(text.to_owned());
            }
            map.values().for_each(|value| templates(value, found));
        }
        _ => {}
    }
}

/// Header blocks as drivers before 1.6.0 send them: a literal with the index of `:authority`, plain, and one in
/// a block that goes on in a CONTINUATION.
fn connections() -> Vec<Vec<u8>> {
    let frame = |kind: u8, flags: u8, block: &[u8]| {
        let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap(), kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(block);
        frame
    };
    let path = b"/var/run/secrets-store-csi-providers/vault.sock";
    let literal = [&[0x83, 0x86, 0x41, u8::try_from(path.len()).unwrap()][..], path].concat();
    let whole = frame(1, 4, &literal);
    let torn = [frame(1, 0, &literal[..9]), frame(9, 4, &literal[9..])].concat();
    let settings = frame(4, 0, &[]);
    // The first byte says how the bytes are cut, and that the preface stands before them.
    [&whole, &torn, &settings].map(|frames| [&[1_u8][..], &settings[..], frames].concat()).to_vec()
}

fn mutated(seeds: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut input = match (rng.random_range(0..10), seeds.choose(rng)) {
        (0, _) | (_, None) => {
            let mut bytes = vec![0; rng.random_range(0..256)];
            rng.fill_bytes(&mut bytes);
            bytes
        }
        (_, Some(seed)) => seed.clone(),
    };
    for _ in 0..rng.random_range(0..8) {
        let at = rng.random_range(0..=input.len());
        let end = rng.random_range(at..=input.len().min(at + 64));
        match rng.random_range(0..7) {
            0 => drop(input.drain(at..end)),
            1 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece.repeat(rng.random_range(1..4)));
            }
            2 | 3 => drop(input.splice(at..at, WORDS.choose(rng).unwrap().bytes())),
            4 => {
                let other = seeds.choose(rng).cloned().unwrap_or_default();
                let from = rng.random_range(0..=other.len());
                let to = rng.random_range(from..=other.len().min(from + 128));
                input.splice(at..end, other[from..to].iter().copied());
            }
            5 => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.random_range(0..8)),
            _ => drop(input.splice(at..at, [rng.random::<u8>()])),
        }
    }
    input.truncate(LONGEST);
    input
}

fn drive(target: &str) {
    let (_, run) = entries::ALL.into_iter().find(|(name, _)| *name == target).unwrap();
    let seconds = std::env::var("LEASEHOLD_FUZZ_SECONDS").ok().map_or(SECONDS, |text| text.parse().unwrap());
    let seed =
        std::env::var("LEASEHOLD_FUZZ_SEED").ok().map_or_else(rand::random, |text| text.parse().unwrap());
    let mut rng = StdRng::seed_from_u64(seed);
    let seeds = seeds(target);
    let (started, mut executions) = (Instant::now(), 0_u64);
    let mut once = |input: &[u8]| {
        let begun = Instant::now();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| run(input)));
        let what = || format!("{target}, LEASEHOLD_FUZZ_SEED={seed}: {:?}", String::from_utf8_lossy(input));
        assert!(outcome.is_ok(), "{}", what());
        assert!(begun.elapsed() < HANG, "took {:?}: {}", begun.elapsed(), what());
        executions += 1;
    };
    seeds.iter().for_each(|seed| once(seed));
    // The corpus as it is ends where it ends; what is made of it, after its time.
    while started.elapsed() < Duration::from_secs(seconds) {
        once(&mutated(&seeds, &mut rng));
    }
    assert!(executions > seeds.len() as u64, "nothing beyond the corpus was tried");
    eprintln!("{target}: {executions} executions in {:.1} s", started.elapsed().as_secs_f32());
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { drive(stringify!($name)); })*

        #[test]
        fn every_target_has_its_test_and_its_fuzzer() {
            let names: Vec<&str> = entries::ALL.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
            for name in names {
                let path = format!("{}/fuzz/fuzz_targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
                assert!(fs::exists(&path).unwrap(), "{path}");
            }
        }
    };
}

/// Name and version of each package of a lock file.
fn locked(path: &str) -> BTreeSet<(String, String)> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let field = |package: &str, name: &str| {
        package.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_matches('"').to_owned())).unwrap()
    };
    text.split("[[package]]").skip(1).map(|it| (field(it, "name = "), field(it, "version = "))).collect()
}

/// `cargo fuzz` builds what is locked: what it fuzzes is what is shipped.
#[test]
fn the_fuzzers_lock_file_is_of_the_same_dependencies() {
    let (ours, theirs) = (locked("Cargo.lock"), locked("fuzz/Cargo.lock"));
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let direct = manifest.split("[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let direct: BTreeSet<&str> = direct.lines().filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
    let own = ["leasehold-fuzz", "libfuzzer-sys", "arbitrary"];
    let same = "cp Cargo.lock fuzz/ && cargo metadata --manifest-path fuzz/Cargo.toml makes them the same";
    let other: Vec<_> = theirs.difference(&ours).filter(|(name, _)| !own.contains(&name.as_str())).collect();
    assert!(other.is_empty(), "{other:?}: {same}");
    let missing: Vec<_> =
        direct.iter().filter(|name| !theirs.iter().any(|(known, _)| known == *name)).collect();
    assert!(direct.len() > 20 && missing.is_empty(), "{missing:?}: {same}");
}

targets! { parameters objects object_path api_path policy manifests template authority }
