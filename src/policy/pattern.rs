//! Patterns over `/`-separated text.

use crate::spec::PodIdentity;

/// A pattern: `*` is any part of one segment, `**` one or more segments, `${namespace}` and
/// `${serviceAccount}` are the pod's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    text: String,
    segments: Vec<Glob<Vec<Glob<Piece>>>>,
}

/// One element of a glob over elements of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Glob<T> {
    One(T),
    /// Any number, also none.
    Any,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Byte(u8),
    Namespace,
    ServiceAccount,
}

impl Pattern {
    /// Parses; `variables` says whether `${…}` may stand in it.
    pub(super) fn parse(text: &str, variables: bool) -> Result<Self, String> {
        let mut segments = Vec::new();
        for segment in text.split('/') {
            if segment == "**" {
                segments.push(Glob::One(vec![Glob::Any]));
                segments.push(Glob::Any);
            } else if segment.contains("**") {
                return Err(format!(
                    "pattern {text:?}: ** stands for whole segments, write it between slashes"
                ));
            } else {
                segments.push(Glob::One(
                    pieces(segment, variables).map_err(|why| format!("pattern {text:?}: {why}"))?,
                ));
            }
        }
        Ok(Self { text: text.to_owned(), segments })
    }

    /// The pattern as written.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether all of `text` is as the pattern says. Nothing but the empty pattern matches the empty text.
    pub(super) fn matches(&self, text: &str, pod: &PodIdentity) -> bool {
        if text.is_empty() || self.text.is_empty() {
            return text.is_empty() && self.text.is_empty();
        }
        let segments: Vec<&str> = text.split('/').collect();
        glob(&self.segments, &segments, |pattern, segment| {
            if segment.is_empty() {
                return pattern.is_empty();
            }
            let bytes: Vec<Glob<u8>> = pattern.iter().flat_map(|piece| expand(piece, pod)).collect();
            glob(&bytes, segment.as_bytes(), |expected, found| expected == found)
        })
    }
}

fn pieces(segment: &str, variables: bool) -> Result<Vec<Glob<Piece>>, String> {
    let mut found = Vec::new();
    let mut rest = segment;
    while let Some(first) = rest.chars().next() {
        let known = [("${namespace}", Piece::Namespace), ("${serviceAccount}", Piece::ServiceAccount)];
        let variable = known.into_iter().find(|(name, _)| rest.starts_with(name));
        let taken = match variable {
            Some((name, piece)) if variables => {
                found.push(Glob::One(piece));
                name.len()
            }
            Some((name, _)) => return Err(format!("{name} cannot stand here")),
            None if rest.starts_with("${") => {
                return Err("only ${namespace} and ${serviceAccount} are known".into());
            }
            None if first == '*' => {
                found.push(Glob::Any);
                1
            }
            None => {
                let bytes = rest.bytes().take(first.len_utf8());
                found.extend(bytes.map(|byte| Glob::One(Piece::Byte(byte))));
                first.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    Ok(found)
}

fn expand(piece: &Glob<Piece>, pod: &PodIdentity) -> Vec<Glob<u8>> {
    let literal = |text: &str| text.bytes().map(Glob::One).collect();
    match piece {
        Glob::Any => vec![Glob::Any],
        Glob::One(Piece::Byte(byte)) => vec![Glob::One(*byte)],
        // Whatever the pod is called, its name stands for itself: a star in it is a star.
        Glob::One(Piece::Namespace) => literal(&pod.namespace),
        Glob::One(Piece::ServiceAccount) => literal(&pod.service_account),
    }
}

/// Matches with one point of return, the last `Any`: time is the product of the lengths at worst.
fn glob<P, S>(pattern: &[Glob<P>], subject: &[S], matches: impl Fn(&P, &S) -> bool) -> bool {
    let (mut at, mut position) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while position < subject.len() {
        match pattern.get(at) {
            Some(Glob::Any) => {
                back = Some((at, position));
                at += 1;
            }
            Some(Glob::One(one)) if matches(one, &subject[position]) => {
                at += 1;
                position += 1;
            }
            _ => match back {
                Some((any, taken)) => {
                    back = Some((any, taken + 1));
                    at = any + 1;
                    position = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|rest| matches!(rest, Glob::Any))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test fails by panicking

    use super::*;

    fn pod() -> PodIdentity {
        PodIdentity {
            namespace: "pay".into(),
            name: "p".into(),
            uid: "u".into(),
            service_account: "api".into(),
        }
    }

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a", "a/b", false),
            ("*", "anything", true),
            ("*", "a/b", false),
            ("*", "", false),
            ("", "", true),
            ("", "a", false),
            ("**", "a", true),
            ("**", "a/b/c", true),
            ("**", "", false),
            ("a*c", "ac", true),
            ("a*c", "abbc", true),
            ("a*c", "ab/c", false),
            ("*-*-x", "a-b-c-x", true),
            ("s/*/x", "s/a/x", true),
            ("s/*/x", "s/a/b/x", false),
            ("s/*/x", "s/x", false),
            ("s/**", "s/a/b", true),
            ("s/**", "s", false),
            ("s/**", "sx/a", false),
            ("s/**/x", "s/a/b/x", true),
            ("s/**/x", "s/x", false),
            ("**/x", "s/a/x", true),
            ("**/x/**", "s/x/x/x", true),
            ("s/${namespace}/*", "s/pay/a", true),
            ("s/${namespace}/*", "s/pays/a", false),
            ("s/${namespace}-${serviceAccount}", "s/pay-api", true),
            ("${namespace}*", "pay-x", true),
            ("https://*", "https://aud", true),
            ("https://*", "https:/aud", false),
            ("$x", "$x", true),
            ("к*ч", "ключ", true),
        ] {
            assert_eq!(
                Pattern::parse(pattern, true).unwrap().matches(text, &pod()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_pod_cannot_be_called_a_pattern() {
        let pod = PodIdentity { namespace: "*".into(), service_account: "a/b".into(), ..pod() };
        assert!(!Pattern::parse("s/${namespace}", true).unwrap().matches("s/other", &pod));
        assert!(!Pattern::parse("s/${serviceAccount}", true).unwrap().matches("s/a/b", &pod));
    }

    #[test]
    fn bad_patterns_and_hard_patterns() {
        for pattern in ["a**", "s/a**/b", "${name}", "${namespace"] {
            assert!(Pattern::parse(pattern, true).is_err(), "{pattern}");
        }
        assert!(Pattern::parse("${namespace}", false).is_err());
        let hard = Pattern::parse(&"*a".repeat(50), true).unwrap();
        assert!(!hard.matches(&("a".repeat(4000) + "b"), &pod()));
    }
}
