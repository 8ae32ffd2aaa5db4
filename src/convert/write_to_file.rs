//! consul-template's `writeToFile`: a template that writes other files beside its own.
//!
//! A template of ours is a file and writes no other, so one that does is taken apart: for each file one template
//! with the control flow and what is written there. All of them are rendered from the same answers, in one swap.

/// A file that a template writes beside its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Where.
    pub(super) path: String,
    /// Octal, as it stands there.
    pub(super) perms: String,
    /// What renders it.
    pub(super) template: String,
}

/// A template, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// The template without what it writes elsewhere.
    pub(super) own: String,
    /// In the order of their first writes.
    pub(super) others: Vec<Written>,
}

/// A write, as an action spells it.
struct Write<'a> {
    value: &'a str,
    path: String,
    perms: String,
    appends: bool,
    newline: bool,
}

/// What a template is made of.
enum Segment<'a> {
    Text(&'a str),
    /// With its delimiters, and between them.
    Action(&'a str, &'a str),
}

/// Takes a template apart; `None` where it writes no file but its own.
///
/// # Errors
/// What of it cannot be said by templates of a file each.
pub(super) fn split(text: &str, left: &str, right: &str) -> Result<Option<Parts>, String> {
    if !text.contains("writeToFile") {
        return Ok(None);
    }
    let segments = segments(text, left, right);
    let mut parts = Parts { own: String::new(), others: Vec::new() };
    let mut writes = Vec::new();
    for segment in &segments {
        let Segment::Action(whole, inner) = segment else { continue };
        let Some(write) = write(inner)? else { continue };
        match parts.others.iter().find(|other| other.path == write.path) {
            None => parts.others.push(Written {
                path: write.path.clone(),
                perms: write.perms.clone(),
                template: String::new(),
            }),
            Some(_) if write.appends => {}
            Some(_) => {
                return Err(format!("writeToFile writes {} twice: the second must append", write.path));
            }
        }
        writes.push((*whole, write));
    }
    if writes.is_empty() {
        return Ok(None);
    }
    let mut writes = writes.into_iter().peekable();
    for segment in segments {
        match segment {
            Segment::Text(text) => parts.own.push_str(text),
            Segment::Action(whole, inner) => {
                if let Some((_, write)) = writes.next_if(|(of, _)| std::ptr::eq(*of, whole)) {
                    // It yields nothing, and trims what is around it all the same.
                    let before = if inner.starts_with('-') { "- " } else { " " };
                    let after = if inner.ends_with('-') { " -" } else { " " };
                    parts.own.push_str(&format!("{left}{before}\"\"{after}{right}"));
                    if let Some(other) = parts.others.iter_mut().find(|other| other.path == write.path) {
                        other.template.push_str(&format!("{left} {} {right}", write.value));
                        other.template.push_str(if write.newline { "\n" } else { "" });
                    }
                    continue;
                }
                parts.own.push_str(whole);
                let code = code(inner);
                let word =
                    code.split(|letter: char| !letter.is_ascii_alphabetic()).next().unwrap_or_default();
                match word {
                    "define" | "block" | "template" => {
                        return Err(format!("writeToFile beside {{{{ {word} }}}} is not taken apart"));
                    }
                    "if" | "else" | "end" | "range" | "with" | "break" | "continue" => {}
                    _ if code.starts_with('$') && is_assignment(code) => {}
                    _ => continue,
                }
                for other in &mut parts.others {
                    other.template.push_str(whole);
                }
            }
        }
    }
    Ok(Some(parts))
}

/// Without the marks that trim.
fn code(inner: &str) -> &str {
    let inner = inner.strip_prefix("- ").unwrap_or(inner);
    inner.strip_suffix(" -").unwrap_or(inner).trim()
}

fn is_assignment(code: &str) -> bool {
    let rest =
        code.trim_start_matches(|letter: char| letter == '$' || letter == '_' || letter.is_alphanumeric());
    rest.trim_start().starts_with([':', '=', ','])
}

fn segments<'a>(text: &'a str, left: &str, right: &str) -> Vec<Segment<'a>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(left) {
        found.push(Segment::Text(&rest[..start]));
        let inner = &rest[start + left.len()..];
        let end = closing(inner, right);
        let whole_end = (start + left.len() + end + right.len()).min(rest.len());
        found.push(Segment::Action(&rest[start..whole_end], &inner[..end]));
        rest = &rest[whole_end..];
    }
    found.push(Segment::Text(rest));
    found
}

/// Where an action ends: not within a string.
fn closing(inner: &str, right: &str) -> usize {
    let mut quote: Option<char> = None;
    let mut escaped = false;
    for (at, letter) in inner.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if letter == '\\' => escaped = true,
            Some(open) if letter == open => quote = None,
            Some(_) => {}
            None if inner[at..].starts_with(right) => return at,
            None if matches!(letter, '"' | '`') => quote = Some(letter),
            None => {}
        }
    }
    inner.len()
}

/// The write of an action, if it is one: `value | writeToFile "path" "user" "group" "mode" ["flags"]`.
fn write(inner: &str) -> Result<Option<Write<'_>>, String> {
    let code = code(inner);
    let Some((value, arguments)) = code.rsplit_once("writeToFile") else { return Ok(None) };
    let refused =
        || "writeToFile is understood as {{ value | writeToFile \"path\" \"user\" \"group\" \"mode\" }}";
    let value = value.trim_end().strip_suffix('|').ok_or_else(refused)?.trim();
    let mut words = Vec::new();
    let mut rest = arguments.trim_start();
    while let Some(opened) = rest.strip_prefix('"') {
        let (word, after) = opened.split_once('"').ok_or_else(refused)?;
        if word.contains('\\') {
            return Err(refused().to_owned());
        }
        words.push(word);
        rest = after.trim_start();
    }
    let (path, perms, flags) = match words.as_slice() {
        [path, _user, _group, perms] if rest.is_empty() => (path, perms, ""),
        [path, _user, _group, perms, flags] if rest.is_empty() => (path, perms, *flags),
        _ => return Err(refused().to_owned()),
    };
    let flags: Vec<&str> = flags.split(',').map(str::trim).filter(|flag| !flag.is_empty()).collect();
    if let Some(other) = flags.iter().find(|flag| !matches!(**flag, "append" | "newline")) {
        return Err(format!("writeToFile: {other} is neither append nor newline"));
    }
    Ok(Some(Write {
        value,
        path: (*path).to_owned(),
        perms: (*perms).to_owned(),
        appends: flags.contains(&"append"),
        newline: flags.contains(&"newline"),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn each_file_gets_the_control_flow_and_what_is_written_there() {
        let text = "{{- with pkiCert \"pki/issue/web\" \"ttl=2h\" -}}\n{{ .Cert }}{{ .Key }}\n{{ $a := \"}}\" }}\
                    {{ .Key | writeToFile \"/s/key\" \"vault\" \"vault\" \"0600\" }}\n\
                    {{- .CA | writeToFile \"/s/pem\" \"\" \"\" \"0644\" \"newline\" -}}\n\
                    {{ .Cert | trimSpace | writeToFile \"/s/pem\" \"\" \"\" \"0644\" \"append,newline\" }}\n{{- end -}}\n";
        let parts = split(text, "{{", "}}").unwrap().unwrap();
        assert_eq!(
            parts.own,
            "{{- with pkiCert \"pki/issue/web\" \"ttl=2h\" -}}\n{{ .Cert }}{{ .Key }}\n{{ $a := \"}}\" }}\
             {{ \"\" }}\n{{- \"\" -}}\n{{ \"\" }}\n{{- end -}}\n"
        );
        let head = "{{- with pkiCert \"pki/issue/web\" \"ttl=2h\" -}}{{ $a := \"}}\" }}";
        let written = |path: &str, perms: &str, body: &str| Written {
            path: path.into(),
            perms: perms.into(),
            template: format!("{head}{body}{{{{- end -}}}}"),
        };
        assert_eq!(
            parts.others,
            [
                written("/s/key", "0600", "{{ .Key }}"),
                written("/s/pem", "0644", "{{ .CA }}\n{{ .Cert | trimSpace }}\n"),
            ]
        );
    }

    #[test]
    fn what_cannot_be_said_so_is_refused() {
        assert_eq!(split("{{ .a }}", "{{", "}}"), Ok(None));
        assert_eq!(split("the word writeToFile", "{{", "}}"), Ok(None));
        let write = "{{ .a | writeToFile \"/p\" \"\" \"\" \"0644\" }}";
        for text in [
            "{{ .a | writeToFile $path \"\" \"\" \"0644\" }}".to_owned(),
            "{{ writeToFile \"/p\" \"\" \"\" \"0644\" .a }}".to_owned(),
            "{{ .a | writeToFile \"/p\" }}".to_owned(),
            "{{ .a | writeToFile \"/p\" \"\" \"\" \"0644\" \"other\" }}".to_owned(),
            format!("{write}{write}"),
            format!("{{{{ template \"x\" }}}}{write}"),
        ] {
            assert!(split(&text, "{{", "}}").is_err(), "{text}");
        }
    }
}
