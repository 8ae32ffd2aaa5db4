//! sprig's numbers and dates, and consul-template's arithmetic.

use std::rc::Rc;

use super::{Args, Function, MANY, function, text};
use crate::template::{
    fault::Fault,
    time,
    value::{Value, utf8},
};

pub(super) const TABLE: &[Function] = &[
    function("add", 0, MANY, |args| fold(args, i64::wrapping_add)),
    function("mul", 1, MANY, |args| fold(args, i64::wrapping_mul)),
    function("add1", 1, 1, |args| Ok(Value::Int(to_int(args.value(0)?).wrapping_add(1)))),
    function("sub", 2, 2, |args| Ok(Value::Int(to_int(args.value(0)?).wrapping_sub(to_int(args.value(1)?))))),
    function("div", 2, 2, |args| divide(args, 0, 1, i64::checked_div)),
    function("mod", 2, 2, |args| divide(args, 0, 1, i64::checked_rem)),
    function("max", 1, MANY, |args| fold(args, i64::max)),
    function("biggest", 1, MANY, |args| fold(args, i64::max)),
    function("min", 1, MANY, |args| fold(args, i64::min)),
    function("subtract", 2, 2, |args| arithmetic(args, i64::checked_sub, |a, b| a - b)),
    function("multiply", 2, 2, |args| arithmetic(args, i64::checked_mul, |a, b| a * b)),
    function("divide", 2, 2, |args| arithmetic(args, i64::checked_div, |a, b| a / b)),
    function("modulo", 2, 2, |args| divide(args, 1, 0, i64::checked_rem)),
    function("minimum", 2, 2, |args| arithmetic(args, |a, b| Some(a.min(b)), f64::min)),
    function("maximum", 2, 2, |args| arithmetic(args, |a, b| Some(a.max(b)), f64::max)),
    function("add1f", 1, 1, |args| Ok(Value::Float(to_float(args.value(0)?) + 1.0))),
    function("addf", 0, MANY, |args| {
        Ok(Value::Float(args.values.iter().map(to_float).fold(0.0, decimal_add)))
    }),
    function("subf", 1, MANY, |args| floats(args, |a, b| decimal_add(a, -b))),
    function("mulf", 1, MANY, |args| floats(args, decimal_multiply)),
    function("divf", 1, MANY, |args| floats(args, |a, b| a / b)),
    function("maxf", 1, MANY, |args| floats(args, f64::max)),
    function("minf", 1, MANY, |args| floats(args, f64::min)),
    function("ceil", 1, 1, |args| Ok(Value::Float(to_float(args.value(0)?).ceil()))),
    function("floor", 1, 1, |args| Ok(Value::Float(to_float(args.value(0)?).floor()))),
    function("round", 2, 3, round),
    function("int", 1, 1, |args| Ok(Value::Int(to_int(args.value(0)?)))),
    function("int64", 1, 1, |args| Ok(Value::Int(to_int(args.value(0)?)))),
    function("float64", 1, 1, |args| Ok(Value::Float(to_float(args.value(0)?)))),
    function("atoi", 1, 1, |args| Ok(Value::Int(atoi(args.text(0)?)))),
    function("toDecimal", 1, 1, |args| {
        Ok(Value::Int(i64::from_str_radix(utf8(&args.printed(0)?)?, 8).unwrap_or(0)))
    }),
    function("parseInt", 1, 1, |args| parsed(args, |text| text.parse().ok().map(Value::Int))),
    function("parseUint", 1, 1, |args| {
        parsed(args, |text| {
            let value = text.parse::<u64>().ok()?;
            Some(i64::try_from(value).map_or_else(|_| Value::Number(Rc::from(text)), Value::Int))
        })
    }),
    function("parseFloat", 1, 1, |args| parsed(args, |text| text.parse().ok().map(Value::Float))),
    function("parseBool", 1, 1, |args| {
        parsed(args, |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(Value::Bool(false)),
            _ => None,
        })
    }),
    function("until", 1, 1, |args| {
        let stop = args.int(0)?;
        sequence(args, 0, stop, if stop < 0 { -1 } else { 1 })
    }),
    function("untilStep", 3, 3, |args| sequence(args, args.int(0)?, args.int(1)?, args.int(2)?)),
    function("loop", 1, 2, |args| match args.len() {
        1 => sequence(args, 0, args.int(0)?, 1),
        _ => sequence(args, args.int(0)?, args.int(1)?, 1),
    }),
    function("seq", 0, MANY, seq),
    function("now", 0, 0, |args| Ok(Value::Time(args.env.now))),
    function("timestamp", 0, 1, timestamp),
    function("date", 2, 2, |args| text(time::format(moment(args, 1)?, args.text(0)?))),
    function("dateInZone", 3, 3, in_zone),
    function("date_in_zone", 3, 3, in_zone),
    function("htmlDate", 1, 1, |args| text(time::format(moment(args, 0)?, "2006-01-02"))),
    function("htmlDateInZone", 2, 2, |args| {
        utc(args.text(1)?)?;
        text(time::format(moment(args, 0)?, "2006-01-02"))
    }),
    function("dateModify", 2, 2, modified),
    function("date_modify", 2, 2, modified),
    function("mustDateModify", 2, 2, modified),
    function("must_date_modify", 2, 2, modified),
    function("toDate", 2, 2, |args| Ok(Value::Time(time::parse(args.text(0)?, args.text(1)?)?))),
    function("mustToDate", 2, 2, |args| Ok(Value::Time(time::parse(args.text(0)?, args.text(1)?)?))),
    function("unixEpoch", 1, 1, |args| text(moment(args, 0)?.div_euclid(time::SECOND).to_string())),
    function("duration", 1, 1, |args| {
        text(time::duration_text(i128::from(to_int(args.value(0)?)) * time::SECOND))
    }),
    function("durationRound", 1, 1, duration_round),
];

/// cast.ToInt64: what is no number is zero.
fn to_int(value: &Value) -> i64 {
    match value {
        Value::Int(value) => *value,
        Value::Bool(value) => i64::from(*value),
        #[allow(clippy::cast_possible_truncation, reason = "as Go's int64(float64), saturating")]
        Value::Float(_) | Value::Number(_) => value.number().unwrap_or(0.0) as i64,
        Value::Text(bytes) => {
            let text = utf8(bytes).unwrap_or("");
            // cast drops a fraction of zeros.
            let whole = text.split_once('.').map_or(text, |(whole, rest)| {
                let zeros = !rest.is_empty() && rest.bytes().all(|byte| byte == b'0');
                if zeros { whole } else { text }
            });
            any_base(whole).unwrap_or(0)
        }
        _ => 0,
    }
}

/// strconv.ParseInt with base 0: 0x, 0b, 0o and 0 say the base, underscores may group.
fn any_base(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let lower = digits.to_ascii_lowercase();
    let (base, body) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        _ if lower.len() > 1 && lower.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let body: String = body.chars().filter(|c| *c != '_').collect();
    if body.starts_with(['+', '-']) {
        return None;
    }
    let size = i128::from_str_radix(&body, base).ok()?;
    i64::try_from(if text.starts_with('-') { -size } else { size }).ok()
}

/// strconv.Atoi, of whose failures sprig keeps only that too large a number is the largest.
fn atoi(text: &str) -> i64 {
    match text.parse::<i128>() {
        Ok(value) => i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX }),
        Err(_) => 0,
    }
}

/// cast.ToFloat64: what is no number is zero.
fn to_float(value: &Value) -> f64 {
    match value {
        Value::Bool(value) => f64::from(u8::from(*value)),
        Value::Text(bytes) => utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        other => other.number().unwrap_or(0.0),
    }
}

fn fold(args: &Args<'_>, run: fn(i64, i64) -> i64) -> Result<Value, Fault> {
    Ok(Value::Int(args.values.iter().map(to_int).reduce(run).unwrap_or(0)))
}

fn divide(
    args: &Args<'_>,
    first: usize,
    second: usize,
    run: fn(i64, i64) -> Option<i64>,
) -> Result<Value, Fault> {
    let result = run(to_int(args.value(first)?), to_int(args.value(second)?));
    result.map(Value::Int).ok_or(Fault::Why("divides by zero"))
}

/// consul-template's: the second operand comes first, so that it can be piped into.
fn arithmetic(
    args: &Args<'_>,
    integers: fn(i64, i64) -> Option<i64>,
    floats: fn(f64, f64) -> f64,
) -> Result<Value, Fault> {
    match (args.value(1)?, args.value(0)?) {
        (Value::Int(a), Value::Int(b)) => {
            integers(*a, *b).map(Value::Int).ok_or(Fault::Why("the result is no integer of 64 bits"))
        }
        (a, b) => match (a.number(), b.number()) {
            (Some(a), Some(b)) => Ok(Value::Float(floats(a, b))),
            _ => Err(Fault::Why("takes two numbers")),
        },
    }
}

fn floats(args: &Args<'_>, run: fn(f64, f64) -> f64) -> Result<Value, Fault> {
    Ok(Value::Float(args.values.iter().map(to_float).reduce(run).unwrap_or(0.0)))
}

/// A float's shortest decimal form: digits, and how many of them are behind the point.
fn decimal(value: f64) -> Option<(i128, usize)> {
    let text = format!("{value}");
    let places = text.split_once('.').map_or(0, |(_, digits)| digits.len());
    Some((text.replace('.', "").parse().ok()?, places))
}

fn from_decimal(digits: i128, places: usize) -> Option<f64> {
    format!("{digits}e-{places}").parse().ok()
}

/// sprig calculates with decimals: 0.1 and 0.2 are 0.3.
fn decimal_add(a: f64, b: f64) -> f64 {
    let sum = || {
        let ((x, xs), (y, ys)) = (decimal(a)?, decimal(b)?);
        let places = xs.max(ys);
        let scaled = |digits: i128, from: usize| {
            let power = u32::try_from(places - from).ok()?;
            digits.checked_mul(10_i128.checked_pow(power)?)
        };
        from_decimal(scaled(x, xs)?.checked_add(scaled(y, ys)?)?, places)
    };
    sum().unwrap_or(a + b)
}

fn decimal_multiply(a: f64, b: f64) -> f64 {
    let product = || {
        let ((x, xs), (y, ys)) = (decimal(a)?, decimal(b)?);
        from_decimal(x.checked_mul(y)?, xs + ys)
    };
    product().unwrap_or(a * b)
}

fn round(args: &Args<'_>) -> Result<Value, Fault> {
    let places = i32::try_from(args.int(1)?.clamp(-300, 300)).unwrap_or(0);
    let on = args.values.get(2).map_or(0.5, to_float);
    let scale = 10_f64.powi(places);
    let digit = scale * to_float(args.value(0)?);
    let rounded = if digit.fract() >= on { digit.ceil() } else { digit.floor() };
    Ok(Value::Float(rounded / scale))
}

fn parsed(args: &Args<'_>, parse: fn(&str) -> Option<Value>) -> Result<Value, Fault> {
    let given = args.text(0)?;
    // consul-template's: an empty string is the zero value.
    let given = if given.is_empty() { "0" } else { given };
    parse(given).ok_or(Fault::Why("the string does not have that form"))
}

fn sequence(args: &Args<'_>, start: i64, stop: i64, step: i64) -> Result<Value, Fault> {
    let mut items = Vec::new();
    let mut at = start;
    while step > 0 && at < stop && start <= stop || step < 0 && at > stop && stop < start {
        args.env.budget.work(64)?;
        items.push(Value::Int(at));
        let Some(next) = at.checked_add(step) else { break };
        at = next;
    }
    Ok(Value::list(items))
}

fn seq(args: &Args<'_>) -> Result<Value, Fault> {
    let (start, step, end) = match args.len() {
        1 => (1, if args.int(0)? < 1 { -1 } else { 1 }, args.int(0)?),
        2 => (args.int(0)?, if args.int(1)? < args.int(0)? { -1 } else { 1 }, args.int(1)?),
        3 if args.int(2)? < args.int(0)? && args.int(1)? > 0 => return text(""),
        3 => (args.int(0)?, args.int(1)?, args.int(2)?),
        _ => return text(""),
    };
    let beyond = if end < start { end.saturating_sub(1) } else { end.saturating_add(1) };
    let Value::List(list) = sequence(args, start, beyond, step)? else { return text("") };
    let mut out = args.env.budget.buffer();
    for (index, item) in list.items().iter().enumerate() {
        if index > 0 {
            out.push(b" ")?;
        }
        item.print(&mut out)?;
    }
    text(out.into_bytes())
}

/// A time, or seconds since 1970.
fn moment(args: &Args<'_>, index: usize) -> Result<i128, Fault> {
    match args.value(index)? {
        Value::Time(nanos) => Ok(*nanos),
        Value::Int(seconds) if (-60_000_000_000..=250_000_000_000).contains(seconds) => {
            Ok(i128::from(*seconds) * time::SECOND)
        }
        Value::Int(_) => Err(Fault::Why("the time is outside of the calendar")),
        other => Err(Fault::want("a time or seconds since 1970", other)),
    }
}

fn utc(zone: &str) -> Result<(), Fault> {
    match zone {
        "" | "UTC" | "Etc/UTC" | "Z" => Ok(()),
        _ => Err(Fault::Why("knows only UTC: zone tables are files, which templates do not read")),
    }
}

fn in_zone(args: &Args<'_>) -> Result<Value, Fault> {
    utc(args.text(2)?)?;
    text(time::format(moment(args, 1)?, args.text(0)?))
}

fn modified(args: &Args<'_>) -> Result<Value, Fault> {
    Ok(Value::Time(moment(args, 1)? + time::duration(args.text(0)?)?))
}

fn duration_round(args: &Args<'_>) -> Result<Value, Fault> {
    let nanos = match args.value(0)? {
        Value::Text(bytes) => time::duration(utf8(bytes)?)?,
        Value::Int(nanos) => i128::from(*nanos),
        Value::Time(then) => args.env.now - then,
        other => return Err(Fault::want("a duration", other)),
    };
    let size = nanos.unsigned_abs() / 1_000_000_000;
    let units = [(31_536_000, "y"), (2_592_000, "mo"), (86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let found = units.iter().find(|(seconds, _)| size > *seconds);
    match found {
        Some((seconds, name)) => text(format!("{}{name}", size / seconds)),
        None if size == 1 => text("1s"),
        None => text("0s"),
    }
}

fn timestamp(args: &Args<'_>) -> Result<Value, Fault> {
    let now = args.env.now;
    match args.values.first() {
        None => text(time::format(now, "2006-01-02T15:04:05Z07:00")),
        Some(Value::Text(layout)) if &**layout == b"unix" => text(now.div_euclid(time::SECOND).to_string()),
        Some(_) => text(time::format(now, args.text(0)?)),
    }
}
