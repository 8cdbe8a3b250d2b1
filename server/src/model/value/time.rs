//! The notations of dates, times and intervals.
//!
//! A text passes only if Postgres keeps all of it: no seventh digit of a second, which it would round, no zone on a
//! `timestamp`, which it would drop. `T` between date and time and `Z` for UTC pass, as most languages write them.
//!
//! Not here: the exact first and last instant of each type (Postgres refuses those), and words such as `now`.

/// Years that `date` and the timestamps can hold, 1 BC being year 0.
const DATE_YEARS: std::ops::RangeInclusive<i64> = -4712..=5_874_897;
const TIMESTAMP_YEARS: std::ops::RangeInclusive<i64> = -4712..=294_276;

/// What [`is_date`] accepts.
pub(super) const DATE: &str = "YYYY-MM-DD";
/// What [`is_time`] accepts.
pub(super) const TIME: &str = "HH:MM:SS with at most 6 decimals";
/// What [`is_timetz`] accepts.
pub(super) const TIMETZ: &str = "HH:MM:SS with at most 6 decimals, then the zone as Z or ±HH[:MM]";
/// What [`is_timestamp`] accepts.
pub(super) const TIMESTAMP: &str = "YYYY-MM-DD HH:MM:SS with at most 6 decimals and no zone";
/// What [`is_timestamptz`] accepts.
pub(super) const TIMESTAMPTZ: &str = "YYYY-MM-DD HH:MM:SS with at most 6 decimals, then the zone as Z or ±HH[:MM]";
/// What [`is_interval`] accepts.
pub(super) const INTERVAL: &str = "ISO 8601 such as P1Y2M3DT4H5M6.7S, whole numbers but for the seconds";

pub(super) fn is_date(text: &str) -> bool {
    is_infinity(text) || {
        let (text, bc) = without_bc(text);
        let mut cursor = Cursor(text);
        cursor.date(bc, &DATE_YEARS) && cursor.at_end()
    }
}

pub(super) fn is_time(text: &str) -> bool {
    let mut cursor = Cursor(text);
    cursor.time(24) && cursor.at_end()
}

pub(super) fn is_timetz(text: &str) -> bool {
    let mut cursor = Cursor(text);
    cursor.time(24) && cursor.zone() && cursor.at_end()
}

pub(super) fn is_timestamp(text: &str) -> bool {
    is_infinity(text) || {
        let (text, bc) = without_bc(text);
        let mut cursor = Cursor(text);
        cursor.date_and_time(bc) && cursor.at_end()
    }
}

pub(super) fn is_timestamptz(text: &str) -> bool {
    is_infinity(text) || {
        let (text, bc) = without_bc(text);
        let mut cursor = Cursor(text);
        cursor.date_and_time(bc) && cursor.zone() && cursor.at_end()
    }
}

pub(super) fn is_interval(text: &str) -> bool {
    if is_infinity(text) {
        return true; // from Postgres 17 on; an older one refuses it
    }
    let Some(text) = text.strip_prefix('P') else { return false };
    let (days, times) = match text.split_once('T') {
        Some((days, times)) if !times.is_empty() => (days, times),
        Some(_) => return false,
        None => (text, ""),
    };
    !text.is_empty() && has_components(days, "YMWD") && has_components(times, "HMS")
}

/// Numbers each followed by one of these letters, in this order, each at most once.
fn has_components(text: &str, letters: &str) -> bool {
    let mut cursor = Cursor(text);
    let mut letters = letters.chars();
    while !cursor.at_end() {
        let _sign = cursor.one_of(&['+', '-']);
        if !(1..=18).contains(&cursor.digits().len()) {
            return false;
        }
        let fraction = cursor.fraction();
        let Some(letter) = cursor.take() else { return false };
        // A part of a day or a month would be spread over smaller units, with rounding.
        let fraction_fits = fraction == Some(0) || (letter == 'S' && fraction.is_some());
        if !fraction_fits || !letters.any(|next| next == letter) {
            return false;
        }
    }
    true
}

fn is_infinity(text: &str) -> bool {
    matches!(text, "infinity" | "-infinity")
}

fn without_bc(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |text| (text, true))
}

/// What is left of the text.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn at_end(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self) -> Option<char> {
        let mut rest = self.0.chars();
        let first = rest.next()?;
        self.0 = rest.as_str();
        Some(first)
    }

    fn one_of(&mut self, wanted: &[char]) -> Option<char> {
        let first = self.0.chars().next().filter(|first| wanted.contains(first))?;
        self.take();
        Some(first)
    }

    fn digits(&mut self) -> &'a str {
        let end = self.0.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(self.0.len());
        let (digits, rest) = self.0.split_at(end);
        self.0 = rest;
        digits
    }

    /// Two digits, at most `max`.
    fn pair(&mut self, max: u8) -> Option<u8> {
        let digits = self.digits();
        let value = digits.parse().ok()?;
        (digits.len() == 2 && value <= max).then_some(value)
    }

    /// The number of decimals after a point, 0 without one; none if there are too many or the point stands alone.
    fn fraction(&mut self) -> Option<usize> {
        match self.one_of(&['.']) {
            None => Some(0),
            Some(_) => Some(self.digits().len()).filter(|decimals| (1..=6).contains(decimals)),
        }
    }

    fn date(&mut self, bc: bool, years: &std::ops::RangeInclusive<i64>) -> bool {
        let digits = self.digits();
        let Ok(year) = digits.parse::<i64>() else { return false };
        // Year 0 is written `0001 BC`.
        let written_well = (4..=7).contains(&digits.len()) && year > 0;
        let year = if bc { 1 - year } else { year };
        let month_and_day = self.one_of(&['-']).is_some()
            && self.pair(12).is_some_and(|month| {
                let dash = self.one_of(&['-']).is_some();
                month > 0 && dash && self.pair(days(year, month)).is_some_and(|day| day > 0)
            });
        written_well && years.contains(&year) && month_and_day
    }

    fn time(&mut self, hour_max: u8) -> bool {
        let Some(hour) = self.pair(hour_max) else { return false };
        // The day's end, 24:00:00, has nothing after it.
        let rest_max = if hour == 24 { 0 } else { 59 };
        self.one_of(&[':']).is_some()
            && self.pair(rest_max).is_some()
            && self.one_of(&[':']).is_some()
            && self.pair(rest_max).is_some()
            && self.fraction().is_some_and(|decimals| hour < 24 || decimals == 0)
    }

    fn date_and_time(&mut self, bc: bool) -> bool {
        self.date(bc, &TIMESTAMP_YEARS) && self.one_of(&[' ', 'T']).is_some() && self.time(23)
    }

    fn zone(&mut self) -> bool {
        if self.one_of(&['Z']).is_some() {
            return true;
        }
        self.one_of(&['+', '-']).is_some()
            && self.pair(15).is_some()
            && (self.one_of(&[':']).is_none() || self.pair(59).is_some())
            && (self.one_of(&[':']).is_none() || self.pair(59).is_some())
    }
}

fn days(year: i64, month: u8) -> u8 {
    let leap = year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0);
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 31,
    }
}
