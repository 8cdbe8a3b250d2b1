//! Dates and times in Postgres's own notation, both ways, over the whole range of the Rust types.
//!
//! Postgres writes years beyond 9999 without a sign and years before 1 as `… BC`, counting 1 BC as year 0 of the
//! proleptic Gregorian calendar that chrono uses. Fractions have up to six digits.
//! It deliberately does not read `infinity`, which no chrono type holds: read such a column as `String`.

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, Utc};

pub(super) fn date(date: NaiveDate) -> String {
    let (year, era) = year_and_era(date.year());
    format!("{year:04}-{:02}-{:02}{era}", date.month(), date.day())
}

pub(super) fn time(time: NaiveTime) -> String {
    time.format("%H:%M:%S%.f").to_string()
}

/// `zone` is `+00` for timestamptz and empty for timestamp. It stands before the era, as Postgres has it.
pub(super) fn timestamp(timestamp: NaiveDateTime, zone: &str) -> String {
    let (year, era) = year_and_era(timestamp.year());
    let (date, time) = (timestamp.date(), time(timestamp.time()));
    format!("{year:04}-{:02}-{:02} {time}{zone}{era}", date.month(), date.day())
}

fn year_and_era(year: i32) -> (i32, &'static str) {
    if year > 0 { (year, "") } else { (1 - year, " BC") }
}

pub(super) fn read_date(text: &str) -> Option<NaiveDate> {
    let (text, before_christ) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let mut parts = text.splitn(3, '-');
    let year: i32 = parts.next()?.parse().ok()?;
    let (month, day) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    NaiveDate::from_ymd_opt(if before_christ { 1 - year } else { year }, month, day)
}

pub(super) fn read_time(text: &str) -> Option<NaiveTime> {
    NaiveTime::parse_from_str(text, "%H:%M:%S%.f").ok()
}

pub(super) fn read_timestamp(text: &str) -> Option<NaiveDateTime> {
    let (date, rest) = text.split_once([' ', 'T'])?;
    match rest.strip_suffix(" BC") {
        Some(time) => Some(read_date(&format!("{date} BC"))?.and_time(read_time(time)?)),
        None => Some(read_date(date)?.and_time(read_time(rest)?)),
    }
}

pub(super) fn read_timestamptz(text: &str) -> Option<DateTime<Utc>> {
    let (text, era) = match text.strip_suffix(" BC") {
        Some(text) => (text, " BC"),
        None => (text, ""),
    };
    let in_utc = text.strip_suffix("+00:00").or_else(|| text.strip_suffix("+00")).or_else(|| text.strip_suffix('Z'))?;
    Some(read_timestamp(&format!("{in_utc}{era}"))?.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_in_every_era() {
        for (year, written) in
            [(2024, "2024-02-29"), (12024, "12024-02-29"), (0, "0001-02-29 BC"), (-43, "0044-02-28 BC")]
        {
            let day = NaiveDate::from_ymd_opt(year, 2, if year == -43 { 28 } else { 29 }).expect("a day");
            assert_eq!(date(day), written);
            assert_eq!(read_date(written), Some(day));
            let moment = day.and_hms_micro_opt(23, 59, 59, 1).expect("a time of day");
            assert_eq!(read_timestamp(&timestamp(moment, "")), Some(moment));
            assert_eq!(read_timestamptz(&timestamp(moment, "+00")), Some(moment.and_utc()));
        }
    }

    #[test]
    fn what_no_chrono_type_holds_is_not_read() {
        for text in ["infinity", "-infinity", "2024-02-30", "", "24:00:00"] {
            assert_eq!((read_date(text), read_time(text), read_timestamp(text)), (None, None, None), "{text}");
        }
        assert_eq!(read_timestamptz("2024-02-29 12:00:00+02"), None, "the server sends UTC");
    }
}
