//! The notations of numbers: what Postgres would read without rounding or refusing.
//!
//! Not here: arithmetic. A numeric stays the text it came as.

/// A text that is no number, or one that its type cannot hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Syntax,
    Range,
}

/// Digits before the decimal point that `numeric` holds at most, and digits after it.
/// <https://www.postgresql.org/docs/current/datatype-numeric.html>
const NUMERIC_INTEGER_DIGITS_MAX: i64 = 131_072;
const NUMERIC_FRACTION_DIGITS_MAX: i64 = 16_383;

/// Checks the decimal notation of a `numeric`.
pub(super) fn check_numeric(text: &str) -> Result<(), Fault> {
    if is_special(text) {
        return Ok(());
    }
    let Decimal { integer, fraction, exponent } = decimal(text).ok_or(Fault::Syntax)?;
    // An exponent beyond i64 is beyond every limit too.
    let exponent: i64 = if exponent.is_empty() { 0 } else { exponent.parse().map_err(|_| Fault::Range)? };
    let integer_digits = integer.trim_start_matches('0').len() as i64;
    let fraction_digits = fraction.len() as i64;
    let too_large = integer_digits.saturating_add(exponent) > NUMERIC_INTEGER_DIGITS_MAX;
    let too_fine = fraction_digits.saturating_sub(exponent) > NUMERIC_FRACTION_DIGITS_MAX;
    if too_large || too_fine { Err(Fault::Range) } else { Ok(()) }
}

/// Checks the notation of a `float8`: a decimal that rounds neither to infinity nor to zero.
pub(super) fn check_float8(text: &str) -> Result<(), Fault> {
    check_float(text, |text| text.parse::<f64>().ok().map(|value| (value.is_infinite(), value == 0.0)))
}

/// Checks the notation of a `float4` in the same way.
pub(super) fn check_float4(text: &str) -> Result<(), Fault> {
    check_float(text, |text| text.parse::<f32>().ok().map(|value| (value.is_infinite(), value == 0.0)))
}

/// The text of a double that Postgres reads back as the same double.
pub(super) fn float_text(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        // The exponent keeps 1e300 from becoming 301 digits.
        format!("{value:e}")
    }
}

fn check_float(text: &str, parse: impl Fn(&str) -> Option<(bool, bool)>) -> Result<(), Fault> {
    if is_special(text) {
        return Ok(());
    }
    let Decimal { integer, fraction, .. } = decimal(text).ok_or(Fault::Syntax)?;
    let (infinite, zero) = parse(text).ok_or(Fault::Syntax)?;
    let written_zero = integer.bytes().chain(fraction.bytes()).all(|digit| digit == b'0');
    if infinite || (zero && !written_zero) { Err(Fault::Range) } else { Ok(()) }
}

fn is_special(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    text.eq_ignore_ascii_case("nan")
        || unsigned.eq_ignore_ascii_case("infinity")
        || unsigned.eq_ignore_ascii_case("inf")
}

/// The parts of `[±]digits[.digits][e[±]digits]`.
struct Decimal<'a> {
    integer: &'a str,
    fraction: &'a str,
    exponent: &'a str,
}

fn decimal(text: &str) -> Option<Decimal<'_>> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !all_digits(digits) {
                return None;
            }
            (mantissa, exponent)
        }
        None => (unsigned, ""),
    };
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let valid = all_digits(integer) && all_digits(fraction) && !(integer.is_empty() && fraction.is_empty());
    valid.then_some(Decimal { integer, fraction, exponent })
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}
