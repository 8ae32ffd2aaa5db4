//! Text between double quotes: what JSON, TOML and YAML have in common.

/// Writes `text` in double quotes. The escapes that all three have are written here; `escape` says how any other
/// character is written, if not as it is.
pub(super) fn quote(out: &mut String, text: &str, escape: impl Fn(char) -> Option<String>) {
    out.push('"');
    for character in text.chars() {
        let short = match character {
            '"' | '\\' => character,
            '\n' => 'n',
            '\r' => 'r',
            '\t' => 't',
            '\u{8}' => 'b',
            '\u{c}' => 'f',
            other => {
                match escape(other) {
                    Some(escaped) => out.push_str(&escaped),
                    None => out.push(other),
                }
                continue;
            }
        };
        out.extend(['\\', short]);
    }
    out.push('"');
}
