//! The small languages inside parameters: Go booleans and durations, modes, owners, queries.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    time::Duration,
};

use super::{FileMode, FileOwner, yaml};

#[cfg(test)]
mod tests;

/// Characters of a user's text that a message repeats: it has to fit into a gRPC status and a pod's Event.
const MAX_QUOTED: usize = 200;

/// A user's text for a message: in quotes, on one line, not longer than a name could be.
pub(crate) struct Quoted<'a>(&'a str);

/// `text` for a message.
pub(crate) const fn quote(text: &str) -> Quoted<'_> {
    Quoted(text)
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(MAX_QUOTED) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => {
                write!(f, "{:?}", &self.0[..end])?;
                f.write_char('…')
            }
        }
    }
}

/// Go's `strconv.ParseBool`, which the incumbents read flags with.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("{} is not a boolean, write \"true\" or \"false\"", quote(text))),
    }
}

/// Go's `time.ParseDuration` without signs: `30s`, `5m`, `1h30m`, `1.5h`, and a bare `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let refusal =
        || format!("{} is not a duration, write one like \"30s\", \"5m\" or \"1h30m\"", quote(text));
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(refusal());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refusal)?;
        let (count, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(refusal()),
        };
        let count: f64 = count.parse().map_err(|_| refusal())?;
        let part = Duration::try_from_secs_f64(count * seconds).map_err(|_| refusal())?;
        total = total.checked_add(part).ok_or_else(refusal)?;
        rest = tail;
    }
    // Go counts nanoseconds in 63 bits; what it cannot say, no manifest means.
    if total.as_nanos() > i64::MAX as u128 {
        return Err(refusal());
    }
    Ok(total)
}

/// A file's mode in Go's integer notation; quoted or not. `None` for 0, which upstream takes as absent.
/// The second part is a warning about a mode that is probably not what was meant.
pub(crate) fn mode(text: &str) -> Result<(Option<FileMode>, Option<String>), String> {
    let value = yaml::integer(text).ok_or_else(|| {
        format!("{} is not a mode, write octal with a leading zero, like 0644", quote(text))
    })?;
    if value == 0 {
        return Ok((None, None));
    }
    // Three octal digits without the leading zero are a decimal number to YAML: 400 is 0620.
    let octal = (text.len() == 3 && !text.starts_with('0'))
        .then(|| u32::from_str_radix(text, 8).ok().and_then(FileMode::new))
        .flatten();
    match u32::try_from(value).ok().and_then(FileMode::new) {
        Some(mode) => {
            let suspicious = matches!(text, "400" | "404" | "440" | "444" | "500");
            let warning = suspicious
                .then(|| format!("{text} is decimal and means 0{:o}, write 0{text} for octal", mode.bits()));
            Ok((Some(mode), warning))
        }
        None if octal.is_some() => {
            Err(format!("{text} is decimal and has bits outside 0777, write 0{text} for octal"))
        }
        None => Err(format!("{} has bits outside 0777 (setuid, setgid and sticky are refused)", quote(text))),
    }
}

/// A uid or gid in decimal.
pub(super) fn id(text: &str) -> Result<u32, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    match text.parse::<u32>() {
        // The highest is chown's "leave as it is".
        Ok(id) if plain && id != u32::MAX => Ok(id),
        _ => Err(format!("{} is not a numeric id, write one like 10001", quote(text))),
    }
}

/// The owner that is the pod's own: what its securityContext says.
pub(super) const POD_OWNER: &str = "pod";

/// `uid`, `uid:gid` or `:gid`.
pub(super) fn owner(text: &str) -> Result<FileOwner, String> {
    let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
    let uid = if uid.is_empty() && gid.is_some() { None } else { Some(id(uid)?) };
    Ok(FileOwner { uid, gid: gid.map(id).transpose()? })
}

/// A URL query, decoded; repeated keys keep all their values in order.
pub(crate) fn query(text: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (unescape(key)?, unescape(value)?);
        if key.is_empty() {
            return Err("the query has a value without a name".into());
        }
        found.entry(key).or_default().push(value);
    }
    Ok(found)
}

fn unescape(text: &str) -> Result<String, String> {
    let refusal = || "the query is not a valid URL query".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'#' => return Err("the query has a \"#\", which begins a fragment in a URL".into()),
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let (high, low) = (digit().ok_or_else(refusal)?, digit().ok_or_else(refusal)?);
                u8::try_from(high * 16 + low).map_err(|_| refusal())?
            }
            other => other,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| refusal())?;
    if text.chars().any(char::is_control) { Err(refusal()) } else { Ok(text) }
}

/// The known name nearest to a mistyped one, if one is near.
pub(crate) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let lower = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len() / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

// Levenshtein's, on bounded input: names of fields.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 64 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
