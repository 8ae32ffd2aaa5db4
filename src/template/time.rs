//! Go's time layouts, in UTC: a container has no other zone, and zone files are files.

use super::fault::Fault;

/// `time.Time`'s own form.
pub(super) const GO_DEFAULT: &str = "2006-01-02 15:04:05.999999999 -0700 MST";

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

pub(super) const SECOND: i128 = 1_000_000_000;

struct Civil {
    year: i64,
    month: usize,
    day: i64,
    year_day: i64,
    week_day: usize,
    hour: i64,
    minute: i64,
    second: i64,
    nanos: i128,
}

/// Days since 1970 of a date of the proleptic Gregorian calendar.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil(nanos: i128) -> Civil {
    // Every time of ours is within i64 seconds.
    let seconds = i64::try_from(nanos.div_euclid(SECOND)).unwrap_or(0);
    let days = seconds.div_euclid(86_400);
    let of_day = seconds.rem_euclid(86_400);
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Civil {
        year,
        month: usize::try_from(month).unwrap_or(1),
        day,
        year_day: days - days_of(year, 1, 1) + 1,
        week_day: usize::try_from((days + 4).rem_euclid(7)).unwrap_or(0),
        hour: of_day / 3600,
        minute: of_day / 60 % 60,
        second: of_day % 60,
        nanos: nanos.rem_euclid(SECOND),
    }
}

/// Longest first where one is the beginning of another.
const PARTS: [&str; 31] = [
    "January", "Monday", "Z07:00", "-07:00", "2006", "-0700", "Z0700", "002", "Jan", "Mon", "MST", "__2",
    "-07", "Z07", "01", "02", "03", "04", "05", "06", "15", "_2", "PM", "pm", "1", "2", "3", "4", "5", ".",
    ",",
];

/// The parts of a layout: each a part's name, or text that stands for itself.
fn parts(layout: &str) -> Vec<(&str, bool)> {
    let mut found = Vec::new();
    let mut rest = layout;
    let mut literal = 0;
    while literal < rest.len() {
        let at = &rest[literal..];
        let part = PARTS.iter().find(|part| at.starts_with(**part)).map(|part| match *part {
            "." | "," => fraction(at),
            other => other.len(),
        });
        // "Jan" in "Janet", "Mon" in "Month": Go wants no lower-case letter after them.
        let word = at.starts_with("Jan") && part == Some(3) || at.starts_with("Mon") && part == Some(3);
        let spoilt = word && at[3..].starts_with(|c: char| c.is_ascii_lowercase());
        match part {
            Some(length) if length > 0 && !spoilt => {
                if literal > 0 {
                    found.push((&rest[..literal], false));
                }
                found.push((&at[..length], true));
                rest = &at[length..];
                literal = 0;
            }
            _ => literal += at.chars().next().map_or(1, char::len_utf8),
        }
    }
    if !rest.is_empty() {
        found.push((rest, false));
    }
    found
}

/// Length of ".000" or ".999", if no digit follows; 0 otherwise.
fn fraction(text: &str) -> usize {
    let digits = &text[1..];
    let Some(first @ (b'0' | b'9')) = digits.bytes().next() else { return 0 };
    let count = digits.bytes().take_while(|byte| *byte == first).count();
    if digits[count..].starts_with(|c: char| c.is_ascii_digit()) { 0 } else { count + 1 }
}

/// `time.Format`.
pub(super) fn format(nanos: i128, layout: &str) -> String {
    let at = civil(nanos);
    let mut out = String::new();
    for (part, active) in parts(layout) {
        if !active {
            out.push_str(part);
            continue;
        }
        let hour12 = if at.hour % 12 == 0 { 12 } else { at.hour % 12 };
        let month = MONTHS[at.month - 1];
        let day = DAYS[at.week_day];
        out.push_str(&match part {
            "2006" => format!("{:04}", at.year),
            "06" => format!("{:02}", at.year.rem_euclid(100)),
            "January" => month.to_owned(),
            "Jan" => month[..3].to_owned(),
            "01" => format!("{:02}", at.month),
            "1" => at.month.to_string(),
            "Monday" => day.to_owned(),
            "Mon" => day[..3].to_owned(),
            "02" => format!("{:02}", at.day),
            "_2" => format!("{:2}", at.day),
            "2" => at.day.to_string(),
            "002" => format!("{:03}", at.year_day),
            "__2" => format!("{:3}", at.year_day),
            "15" => format!("{:02}", at.hour),
            "03" => format!("{hour12:02}"),
            "3" => hour12.to_string(),
            "04" => format!("{:02}", at.minute),
            "4" => at.minute.to_string(),
            "05" => format!("{:02}", at.second),
            "5" => at.second.to_string(),
            "PM" => if at.hour >= 12 { "PM" } else { "AM" }.to_owned(),
            "pm" => if at.hour >= 12 { "pm" } else { "am" }.to_owned(),
            "MST" => "UTC".to_owned(),
            "Z07:00" | "Z0700" | "Z07" => "Z".to_owned(),
            "-0700" => "+0000".to_owned(),
            "-07:00" => "+00:00".to_owned(),
            "-07" => "+00".to_owned(),
            // A fraction: ".000" keeps zeros, ".999" drops them, and the point with the last.
            fraction => {
                let digits = format!("{:09}", at.nanos);
                let kept = &digits[..(fraction.len() - 1).min(9)];
                if fraction[1..].starts_with('0') {
                    format!("{}{kept}", &fraction[..1])
                } else {
                    let kept = kept.trim_end_matches('0');
                    if kept.is_empty() { String::new() } else { format!("{}{kept}", &fraction[..1]) }
                }
            }
        });
    }
    out
}

/// As encoding/json writes a time.
pub(crate) fn rfc3339(nanos: i128) -> String {
    format(nanos, "2006-01-02T15:04:05.999999999Z07:00")
}

/// `time.Parse` for layouts of numbers, month names and UTC offsets.
pub(super) fn parse(layout: &str, text: &str) -> Result<i128, Fault> {
    const WRONG: Fault = Fault::Why("the date is not of the layout given");
    let (mut year, mut month, mut day, mut hour, mut minute, mut second) = (0, 1, 1, 0, 0, 0);
    let (mut nanos, mut offset, mut afternoon) = (0, 0, None);
    let mut rest = text;
    for (part, active) in parts(layout) {
        if !active {
            rest = rest.strip_prefix(part).ok_or(WRONG)?;
            continue;
        }
        match part {
            "2006" => year = take(&mut rest, 4, 4)?,
            "06" => {
                let short = take(&mut rest, 2, 2)?;
                year = if short >= 69 { 1900 + short } else { 2000 + short };
            }
            "01" => month = take(&mut rest, 2, 2)?,
            "1" => month = take(&mut rest, 1, 2)?,
            "January" | "Jan" => {
                let names = MONTHS.iter().map(|name| if part == "Jan" { &name[..3] } else { name });
                let (index, after) = names
                    .enumerate()
                    .find_map(|(i, name)| Some((i, rest.strip_prefix(name)?)))
                    .ok_or(WRONG)?;
                month = i64::try_from(index).unwrap_or(0) + 1;
                rest = after;
            }
            "02" => day = take(&mut rest, 2, 2)?,
            "2" | "_2" => {
                rest = rest.trim_start_matches(' ');
                day = take(&mut rest, 1, 2)?;
            }
            "15" | "03" => hour = take(&mut rest, 2, 2)?,
            "3" => hour = take(&mut rest, 1, 2)?,
            "04" => minute = take(&mut rest, 2, 2)?,
            "4" => minute = take(&mut rest, 1, 2)?,
            "05" | "5" => {
                second = take(&mut rest, if part == "05" { 2 } else { 1 }, 2)?;
                // Go takes a fraction after the seconds even where the layout has none.
                if let Some(digits) = rest.strip_prefix('.') {
                    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
                    if count > 0 && !layout.contains("05.") {
                        nanos = fraction_nanos(&digits[..count]);
                        rest = &digits[count..];
                    }
                }
            }
            "PM" | "pm" => {
                afternoon = Some(rest.get(..2).ok_or(WRONG)?.eq_ignore_ascii_case("PM"));
                rest = &rest[2..];
            }
            "MST" => rest = rest.strip_prefix("UTC").or_else(|| rest.strip_prefix("GMT")).ok_or(WRONG)?,
            "Z07:00" | "Z0700" | "Z07" if rest.starts_with('Z') => rest = &rest[1..],
            "Z07:00" | "-07:00" | "Z0700" | "-0700" | "Z07" | "-07" => {
                let sign = match rest.as_bytes().first() {
                    Some(b'+') => 1,
                    Some(b'-') => -1,
                    _ => return Err(WRONG),
                };
                rest = &rest[1..];
                offset = take(&mut rest, 2, 2)? * 3600;
                if part.contains(':') {
                    rest = rest.strip_prefix(':').ok_or(WRONG)?;
                }
                if part.len() > 3 {
                    offset += take(&mut rest, 2, 2)? * 60;
                }
                offset *= sign;
            }
            fraction if fraction.starts_with(['.', ',']) => {
                if let Some(digits) = rest.strip_prefix(['.', ',']) {
                    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
                    nanos = fraction_nanos(&digits[..count]);
                    rest = &digits[count..];
                }
            }
            _ => return Err(Fault::Why("this part of the layout cannot be read, only written")),
        }
    }
    if let Some(afternoon) = afternoon {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    let valid = rest.is_empty()
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !valid {
        return Err(WRONG);
    }
    let seconds = days_of(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    Ok(i128::from(seconds) * SECOND + nanos)
}

fn fraction_nanos(digits: &str) -> i128 {
    format!("{digits:0<9}").get(..9).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn take(rest: &mut &str, least: usize, most: usize) -> Result<i64, Fault> {
    let count = rest.bytes().take(most).take_while(u8::is_ascii_digit).count();
    if count < least {
        return Err(Fault::Why("the date is not of the layout given"));
    }
    let value = rest[..count].parse().unwrap_or(0);
    *rest = &rest[count..];
    Ok(value)
}

/// `time.ParseDuration`, in nanoseconds.
pub(super) fn duration(text: &str) -> Result<i128, Fault> {
    const WRONG: Fault = Fault::Why("this is not a duration such as 1h30m or -2.5s");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    let mut total = 0_i128;
    while !rest.is_empty() || total == 0 && text.len() < 2 {
        let count = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let amount: f64 = rest[..count].parse().map_err(|_| WRONG)?;
        rest = &rest[count..];
        let units: [(&str, f64); 8] = [
            ("ns", 1.0),
            ("us", 1e3),
            ("µs", 1e3),
            ("μs", 1e3),
            ("ms", 1e6),
            ("s", 1e9),
            ("m", 60e9),
            ("h", 3600e9),
        ];
        let (after, unit) =
            units.iter().find_map(|(name, unit)| Some((rest.strip_prefix(name)?, *unit))).ok_or(WRONG)?;
        rest = after;
        #[allow(clippy::cast_possible_truncation, reason = "a float cast saturates")]
        let part = (amount * unit) as i64;
        total += i128::from(part);
    }
    if total > i128::from(i64::MAX) {
        return Err(WRONG);
    }
    Ok(if negative { -total } else { total })
}

/// `Duration.String` of whole nanoseconds.
pub(super) fn duration_text(nanos: i128) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let size = nanos.unsigned_abs();
    if size == 0 {
        return "0s".into();
    }
    if size < 1_000_000_000 {
        let (unit, name) = match size {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            _ => (1_000_000, "ms"),
        };
        return format!("{sign}{}{name}", decimal(size, unit));
    }
    let (hours, minutes) = (size / 3_600_000_000_000, size / 60_000_000_000 % 60);
    let seconds = decimal(size % 60_000_000_000, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, _) => format!("{sign}{minutes}m{seconds}s"),
        _ => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

fn decimal(value: u128, unit: u128) -> String {
    let width = unit.ilog10() as usize;
    let fraction = format!("{:0width$}", value % unit);
    let fraction = if unit == 1 { "" } else { fraction.trim_end_matches('0') };
    if fraction.is_empty() { (value / unit).to_string() } else { format!("{}.{fraction}", value / unit) }
}
