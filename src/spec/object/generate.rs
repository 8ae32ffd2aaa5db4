//! What `generate` asks for: how the value of a key is made that nobody has written yet.
//!
//! `password` takes the fields, defaults and meanings of External Secrets Operator's Password generator.

use std::collections::BTreeSet;

use crate::spec::{
    values,
    yaml::{Kind, Node},
};

/// Characters of a password unless its rules say otherwise.
const PASSWORD_LENGTH: u32 = 24;
/// A digit and a symbol for every so many characters of a password, unless its rules say otherwise.
const PASSWORD_SHARE: u32 = 4;
/// Symbols of a password unless its rules say otherwise.
const SYMBOLS: &str = "~!@#$%^&*()_+`-={}|[]\\:\"<>?,./";
/// Longest password: a KV value is no file of random text.
const MAX_PASSWORD: u32 = 1024;
/// Random bytes of `hex` and `base64` unless they say otherwise: 256 bits.
const RANDOM_BYTES: u32 = 32;
/// Most random bytes.
const MAX_BYTES: u32 = 1024;

/// How a value is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Generator {
    /// Random text by rules.
    Password(PasswordRules),
    /// A random UUID (version 4).
    Uuid,
    /// Random bytes in lower-case hexadecimal.
    Hex {
        /// How many; two characters each.
        bytes: u32,
    },
    /// Random bytes in standard base64.
    Base64 {
        /// How many.
        bytes: u32,
    },
    /// An Ed25519 key as OpenSSH reads it; its public half comes beside it, under the key's name with `.pub`.
    SshKey {
        /// Comment in both halves.
        comment: String,
    },
    /// A private key for TLS, as PKCS#8 in PEM.
    TlsKey(KeyKind),
    /// A generator of the node's policy file, until the policy puts its definition here.
    Named(String),
}

/// Rules of a password.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PasswordRules {
    /// Characters in all.
    pub length: u32,
    /// Digits among them.
    pub digits: u32,
    /// Symbols among them.
    pub symbols: u32,
    /// What a symbol is.
    pub symbol_characters: String,
    /// Whether upper-case letters are left out.
    pub no_upper: bool,
    /// Whether a character may come twice.
    pub allow_repeat: bool,
}

/// Kinds of private keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum KeyKind {
    /// Ed25519.
    Ed25519,
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA of 2048 bits.
    Rsa2048,
    /// RSA of 3072 bits.
    Rsa3072,
    /// RSA of 4096 bits.
    Rsa4096,
}

impl Generator {
    /// Names of the kinds, as manifests spell them. No generator of a policy file has one of them.
    pub(crate) const KINDS: [&str; 6] = ["password", "uuid", "hex", "base64", "sshKey", "tlsKey"];

    /// Reads `{kind: {rules}}`, or a name: of a kind with its defaults, or of a generator in the policy file.
    pub(crate) fn read(node: &Node) -> Result<Self, (u64, String)> {
        let nothing = Node { line: node.line, kind: Kind::Null };
        let (kind, rules) = match (&node.kind, node.as_text()) {
            (Kind::Map(entries), _) => match entries.as_slice() {
                [(kind, rules)] => (kind.as_text().unwrap_or_default(), rules),
                _ => {
                    return Err((node.line, format!("has one of the kinds {}", Self::KINDS.join(", "))));
                }
            },
            (Kind::Text(..), Some(name)) if !Self::KINDS.contains(&name) => {
                return Self::named(name, node.line);
            }
            (_, Some(kind)) => (kind, &nothing),
            (_, None) => {
                let reason = format!(
                    "is {}, expected a mapping such as {{password: {{length: 32}}}}",
                    node.describe()
                );
                return Err((node.line, reason));
            }
        };
        let fields = Fields { kind, rules };
        match kind {
            "password" => fields.password().map(Self::Password),
            "uuid" => fields.known(&[]).map(|()| Self::Uuid),
            "hex" => fields.bytes().map(|bytes| Self::Hex { bytes }),
            "base64" => fields.bytes().map(|bytes| Self::Base64 { bytes }),
            "sshKey" => fields.ssh_key(),
            "tlsKey" => fields.tls_key().map(Self::TlsKey),
            _ => {
                let near = values::nearest(kind, Self::KINDS).map(|near| format!(", did you mean {near}?"));
                let reason = format!(
                    "{} is not one of the kinds {}{}",
                    values::quote(kind),
                    Self::KINDS.join(", "),
                    near.unwrap_or_default()
                );
                Err((node.line, reason))
            }
        }
    }

    fn named(name: &str, line: u64) -> Result<Self, (u64, String)> {
        // A misspelt kind is more likely than a generator of nearly its name.
        match values::nearest(name, Self::KINDS) {
            Some(near) if name.eq_ignore_ascii_case(near) => {
                Err((line, format!("{} is written {near}", values::quote(name))))
            }
            _ => Ok(Self::Named(name.to_owned())),
        }
    }
}

/// The rules of one kind.
struct Fields<'a> {
    kind: &'a str,
    rules: &'a Node,
}

impl Fields<'_> {
    fn at(&self, field: &str, reason: impl std::fmt::Display) -> (u64, String) {
        let line = self.rules.get(field).map_or(self.rules.line, |value| value.line);
        (line, format!("{}: {field} {reason}", self.kind))
    }

    fn known(&self, known: &[&'static str]) -> Result<(), (u64, String)> {
        let entries = match &self.rules.kind {
            Kind::Null => return Ok(()),
            Kind::Map(entries) => entries,
            _ => {
                let reason = format!("{} is {}, expected a mapping", self.kind, self.rules.describe());
                return Err((self.rules.line, reason));
            }
        };
        let names = entries.iter().map(|(key, _)| (key.as_text().unwrap_or_default(), key.line));
        match names.into_iter().find(|(name, _)| !known.contains(name)) {
            None => Ok(()),
            Some((name, line)) => {
                let near = values::nearest(name, known.iter().copied());
                let hint = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
                Err((line, format!("{} has no field {}{hint}", self.kind, values::quote(name))))
            }
        }
    }

    fn text(&self, field: &str) -> Result<Option<&str>, (u64, String)> {
        let Some(value) = self.rules.get(field) else { return Ok(None) };
        let text = value.as_text();
        let text = text.ok_or_else(|| self.at(field, format!("is {}, expected text", value.describe())))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn number(&self, field: &str, most: u32) -> Result<Option<u32>, (u64, String)> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        match text.parse::<u32>() {
            Ok(number) if number <= most => Ok(Some(number)),
            _ => Err(self.at(field, format!("is not a whole number up to {most}"))),
        }
    }

    fn flag(&self, field: &str) -> Result<bool, (u64, String)> {
        match self.text(field)? {
            None => Ok(false),
            Some(text) => values::boolean(text).map_err(|reason| self.at(field, reason)),
        }
    }

    fn password(&self) -> Result<PasswordRules, (u64, String)> {
        self.known(&["length", "digits", "symbols", "symbolCharacters", "noUpper", "allowRepeat"])?;
        let length =
            self.number("length", MAX_PASSWORD)?.filter(|length| *length > 0).unwrap_or(PASSWORD_LENGTH);
        let rules = PasswordRules {
            length,
            digits: self.number("digits", MAX_PASSWORD)?.unwrap_or(length / PASSWORD_SHARE),
            symbols: self.number("symbols", MAX_PASSWORD)?.unwrap_or(length / PASSWORD_SHARE),
            symbol_characters: self.text("symbolCharacters")?.unwrap_or(SYMBOLS).to_owned(),
            no_upper: self.flag("noUpper")?,
            allow_repeat: self.flag("allowRepeat")?,
        };
        rules.check().map_err(|reason| (self.rules.line, format!("password: {reason}")))?;
        Ok(rules)
    }

    fn bytes(&self) -> Result<u32, (u64, String)> {
        self.known(&["bytes"])?;
        match self.number("bytes", MAX_BYTES)?.unwrap_or(RANDOM_BYTES) {
            // Below, the value is guessed rather than known.
            few @ 0..16 => Err(self.at("bytes", format!("is {few}, and fewer than 16 can be guessed"))),
            bytes => Ok(bytes),
        }
    }

    fn ssh_key(&self) -> Result<Generator, (u64, String)> {
        self.known(&["keyType", "comment"])?;
        if self.text("keyType")?.is_some_and(|kind| kind != "ed25519") {
            return Err(self.at("keyType", "is ed25519; no other is made"));
        }
        let comment = self.text("comment")?.unwrap_or_default().to_owned();
        if comment.chars().any(char::is_control) || comment.len() > 256 {
            return Err(self.at("comment", "is one line of at most 256 bytes"));
        }
        Ok(Generator::SshKey { comment })
    }

    fn tls_key(&self) -> Result<KeyKind, (u64, String)> {
        self.known(&["algorithm", "size"])?;
        let bits = self.number("size", 4096)?;
        let name = self.text("algorithm")?.map(str::to_ascii_lowercase);
        Ok(match (name.as_deref(), bits) {
            (None, None) => KeyKind::P256,
            (Some("ed25519"), None) => KeyKind::Ed25519,
            (Some("ecdsa"), None | Some(256)) => KeyKind::P256,
            (Some("ecdsa"), Some(384)) => KeyKind::P384,
            (Some("rsa"), None | Some(3072)) => KeyKind::Rsa3072,
            (Some("rsa"), Some(2048)) => KeyKind::Rsa2048,
            (Some("rsa"), Some(4096)) => KeyKind::Rsa4096,
            (None, Some(_)) => return Err(self.at("size", "needs algorithm beside it")),
            (Some("ed25519"), Some(_)) => return Err(self.at("size", "has no meaning for ed25519")),
            (Some("ecdsa" | "rsa"), Some(_)) => {
                return Err(self.at("size", "is 256 or 384 for ecdsa, 2048, 3072 or 4096 for rsa"));
            }
            (Some(_), _) => return Err(self.at("algorithm", "is not one of ecdsa, rsa, ed25519")),
        })
    }
}

impl PasswordRules {
    /// Letters, as what digits and symbols leave.
    pub(crate) const fn letters(&self) -> u32 {
        self.length.saturating_sub(self.digits + self.symbols)
    }

    fn check(&self) -> Result<(), String> {
        if self.digits + self.symbols > self.length {
            return Err(format!(
                "{} digits and {} symbols are more than the {} characters there are",
                self.digits, self.symbols, self.length
            ));
        }
        let distinct: BTreeSet<char> = self.symbol_characters.chars().collect();
        let plain = |symbol: &char| symbol.is_ascii_graphic() && !symbol.is_ascii_alphanumeric();
        if !distinct.iter().all(plain) {
            return Err("symbolCharacters has letters, digits, or what is no printable ASCII".into());
        }
        if self.allow_repeat {
            return Ok(());
        }
        let letters: u32 = if self.no_upper { 26 } else { 52 };
        let symbols = u32::try_from(distinct.len()).unwrap_or(u32::MAX);
        for (what, wanted, there) in [
            ("letters", self.letters(), letters),
            ("digits", self.digits, 10),
            ("symbols", self.symbols, symbols),
        ] {
            if wanted > there {
                return Err(format!(
                    "{wanted} {what} are more than the {there} there are; allowRepeat: true takes some twice"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
