//! Floats as Go writes them.

/// Decimal digits and exponent of `value` (finite, positive or zero): 0.d1d2d3… × 10^exponent.
fn digits(value: f64) -> (String, i32) {
    if value == 0.0 {
        return ("0".into(), 1);
    }
    // Rust's shortest scientific form has the same digits as Go's: both are the shortest that reads back.
    let text = format!("{value:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    (mantissa.replace('.', ""), exponent.parse::<i32>().unwrap_or(0) + 1)
}

/// `%v`: strconv 'g', shortest.
pub(super) fn shortest(value: f64) -> String {
    format_general(value, 'e', None, false)
}

/// encoding/json: plain between 1e-6 and 1e21.
pub(super) fn json_float(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = exponent_form(value, 'e', None);
        // e-09 is e-9 in JSON of Go's.
        match text.strip_suffix(|c: char| c.is_ascii_digit()) {
            Some(head) if head.ends_with("e-0") => {
                format!("{}{}", &head[..head.len() - 1], &text[head.len()..])
            }
            _ => text,
        }
    } else {
        format!("{value}")
    }
}

/// `%e`, with a two-digit exponent at least.
pub(super) fn exponent_form(value: f64, letter: char, precision: Option<usize>) -> String {
    if let Some(special) = special(value) {
        return special;
    }
    let text = match precision {
        Some(precision) => format!("{value:.precision$e}"),
        None => format!("{value:e}"),
    };
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}{letter}{sign}{:02}", exponent.abs())
}

/// `%g`.
pub(super) fn format_general(value: f64, letter: char, precision: Option<usize>, keep_zeros: bool) -> String {
    if let Some(special) = special(value) {
        return special;
    }
    let negative = value.is_sign_negative();
    let size = value.abs();
    let (digits, point) = match precision {
        None => digits(size),
        Some(precision) => {
            let precision = precision.max(1);
            let text = format!("{size:.*e}", precision - 1);
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let mut digits = mantissa.replace('.', "");
            if !keep_zeros {
                digits.truncate(digits.trim_end_matches('0').len().max(1));
            }
            (digits, if size == 0.0 { 1 } else { exponent.parse::<i32>().unwrap_or(0) + 1 })
        }
    };
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let limit = match precision {
        // Go: when the precision is the shortest, 6 decides.
        None => 6,
        Some(precision) => {
            let limit = i32::try_from(precision.max(1)).unwrap_or(i32::MAX);
            if limit > count && count >= point { count } else { limit }
        }
    };
    let exponent = point - 1;
    let body = if exponent < -4 || exponent >= limit {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{first}{dot}{rest}{letter}{sign}{:02}", exponent.abs())
    } else {
        plain(&digits, point)
    };
    if negative { format!("-{body}") } else { body }
}

fn plain(digits: &str, point: i32) -> String {
    let count = digits.len();
    match usize::try_from(point) {
        Ok(0) => format!("0.{digits}"),
        Ok(point) if point >= count => format!("{digits}{}", "0".repeat(point - count)),
        Ok(point) => format!("{}.{}", &digits[..point], &digits[point..]),
        Err(_) => format!("0.{}{digits}", "0".repeat(point.unsigned_abs() as usize)),
    }
}

fn special(value: f64) -> Option<String> {
    if value.is_nan() {
        Some("NaN".into())
    } else if value.is_infinite() {
        Some(if value > 0.0 { "+Inf" } else { "-Inf" }.into())
    } else {
        None
    }
}
