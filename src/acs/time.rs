//! Timestamps of signatures: `2026-11-24T02:54:06Z` (UTC), as Alibaba documents it, and the same
//! with a fraction of a second, which `toISOString` of JavaScript and `Instant.toString` of Java
//! write. Flowgate writes whole seconds only: reports of users say that some of Alibaba's products
//! answer a fraction with `InvalidTimeStamp.Format`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;
/// Days from 0000-03-01, where the calendar arithmetic begins, to 1970-01-01.
const EPOCH: u64 = 719_468;
/// Days in 400 years, after which the calendar repeats.
const ERA: u64 = 146_097;

/// Digits of a fraction: nanoseconds.
const MAX_FRACTION: usize = 9;

/// Parses a timestamp. `None` if it has another form, is not a valid date or time, or is before
/// 1970.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    if text.len() == 20 {
        return parse_whole(text);
    }
    let (whole, fraction) = text.strip_suffix('Z')?.split_once('.')?;
    if !(1..=MAX_FRACTION).contains(&fraction.len()) {
        return None;
    }
    let digits = number(fraction.as_bytes())?;
    let places = u32::try_from(MAX_FRACTION - fraction.len()).ok()?;
    let nanos = digits * 10_u64.pow(places);
    Some(parse_whole(&format!("{whole}Z"))? + Duration::from_nanos(nanos))
}

/// Parses the time of an answer: a timestamp as for [`parse`], or one with an offset from UTC instead
/// of the `Z`, such as `+08:00`. Callers' stamps have no offset.
pub(crate) fn parse_with_offset(text: &str) -> Option<SystemTime> {
    if text.ends_with('Z') {
        return parse(text);
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (sign, hours_and_minutes) = offset.split_at_checked(1)?;
    let (hours, minutes) = hours_and_minutes.split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let hours = number(hours.as_bytes()).filter(|hours| *hours < 24)?;
    let minutes = number(minutes.as_bytes()).filter(|minutes| *minutes < 60)?;
    let offset = Duration::from_secs(hours * 3600 + minutes * 60);
    let local = parse(&format!("{local}Z"))?;
    let time = match sign {
        "+" => local.checked_sub(offset)?,
        "-" => local.checked_add(offset)?,
        _ => return None,
    };
    (time >= UNIX_EPOCH).then_some(time)
}

/// Parses a timestamp of whole seconds.
fn parse_whole(text: &str) -> Option<SystemTime> {
    let text: &[u8; 20] = text.as_bytes().try_into().ok()?;
    let [
        year @ ..,
        b'-',
        month_tens,
        month_ones,
        b'-',
        day_tens,
        day_ones,
        b'T',
        hour_tens,
        hour_ones,
        b':',
        minute_tens,
        minute_ones,
        b':',
        second_tens,
        second_ones,
        b'Z',
    ] = text
    else {
        return None;
    };
    let year = number(year)?;
    let month = number(&[*month_tens, *month_ones])?;
    let day = number(&[*day_tens, *day_ones])?;
    let hour = number(&[*hour_tens, *hour_ones])?;
    let minute = number(&[*minute_tens, *minute_ones])?;
    let second = number(&[*second_tens, *second_ones])?;
    if year < 1970 || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    if hour >= 24 || minute >= 60 || second >= 60 {
        return None;
    }
    let days = days(year, month, day);
    // Converting back refuses dates such as 31 April and 29 February of a common year.
    if civil(days) != (year, month, day) {
        return None;
    }
    let seconds = days * DAY + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Parses decimal digits.
fn number(digits: &[u8]) -> Option<u64> {
    let mut number = 0;
    for byte in digits {
        let digit = char::from(*byte).to_digit(10)?;
        number = number * 10 + u64::from(digit);
    }
    Some(number)
}

/// Formats a timestamp. The last year is 9999.
pub(crate) fn format(time: SystemTime) -> String {
    let seconds = seconds(time);
    let (year, month, day) = civil(seconds / DAY);
    let year = year.min(9999);
    let mut text = *b"0000-00-00T00:00:00Z";
    for (at, number) in [
        (0, year / 100),
        (2, year % 100),
        (5, month),
        (8, day),
        (11, seconds / 3600 % 24),
        (14, seconds / 60 % 60),
        (17, seconds % 60),
    ] {
        text[at] += (number / 10) as u8;
        text[at + 1] += (number % 10) as u8;
    }
    String::from_utf8(text.to_vec()).expect("a timestamp is ASCII")
}

/// Returns whole seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Returns the days since 1970-01-01. Years are counted from March, so that the leap day is last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year / 400 * ERA + year % 400 * 365 + year % 400 / 4 - year % 400 / 100 + day_of_year - EPOCH
}

/// Returns year, month and day: the inverse of [`days`].
fn civil(days: u64) -> (u64, u64, u64) {
    let era = (days + EPOCH) / ERA;
    let day = (days + EPOCH) % ERA;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn known_moments() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-11-24T02:54:06Z", 1_795_488_846),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(parse(text), Some(at(seconds)), "{text}");
            assert_eq!(format(at(seconds)), text);
        }
    }

    #[test]
    fn a_fraction_of_a_second_is_read_to_the_nanosecond() {
        for (text, nanos) in [
            ("2026-11-24T02:54:06.973Z", 973_000_000),
            ("2026-11-24T02:54:06.0Z", 0),
            ("2026-11-24T02:54:06.000001Z", 1_000),
            ("2026-11-24T02:54:06.123456789Z", 123_456_789),
        ] {
            let expected = at(1_795_488_846) + Duration::from_nanos(nanos);
            assert_eq!(parse(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn any_other_spelling_is_refused() {
        for text in [
            "",
            "2026-11-24T02:54:06",
            "2026-11-24 02:54:06Z",
            "2026-11-24T02:54:06z",
            "2026-11-24T02:54:06.Z",
            "2026-11-24T02:54:06.1234567890Z",
            "2026-11-24T02:54:06.+1Z",
            "2026-11-24T02:54:06,5Z",
            "2026-11-24T02:54:06.5",
            "2026-11-24T02:54:06.5+00:00",
            "2026-11-24T02:54.5Z",
            "2026-11-24T02:54:06.5.5Z",
            "2026-11-24T02:54Z",
            "20261124T025406Z",
            "1795488846",
            "2026-11-24T02:54:60Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T02:60:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-04-00T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "+026-11-24T02:54:06Z",
            "2026-11-24T02:54:0６Z",
            " 2026-11-24T02:54:06Z",
            "2026-11-24T02:54:06+00:00",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_offset_is_subtracted_where_one_is_allowed() {
        for text in [
            "2030-01-01T00:00:00Z",
            "2030-01-01T08:00:00+08:00",
            "2029-12-31T20:30:00-03:30",
            "2030-01-01T00:00:00+00:00",
            "2030-01-01T00:00:00-00:00",
        ] {
            assert_eq!(parse_with_offset(text), Some(at(1_893_456_000)), "{text}");
        }
        let with_fraction = at(1_893_456_000) + Duration::from_millis(123);
        for text in ["2030-01-01T00:00:00.123Z", "2030-01-01T08:00:00.123+08:00"] {
            assert_eq!(parse_with_offset(text), Some(with_fraction), "{text}");
        }
        for text in [
            "",
            "Z",
            "2030-01-01",
            "1893456000",
            "2030-01-01T00:00:00",
            "2030-01-01T00:00:00+8:00",
            "2030-01-01T00:00:00+0800",
            "2030-01-01T00:00:00+08",
            "2030-01-01T00:00:00+24:00",
            "2030-01-01T00:00:00+08:60",
            "2030-01-01T00:00:00 08:00",
            "2030-01-01T00:00:00++8:00",
            "2030-01-01T00:00:00+08:0\u{e9}",
            "2030-01-01T00:00:00Z+08:00",
            "1970-01-01T00:00:00+08:00",
        ] {
            assert_eq!(parse_with_offset(text), None, "{text}");
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("2030-01-01T08:00:00+08:00"), None);
    }

    #[test]
    fn a_year_of_five_digits_is_written_as_the_last_of_four() {
        assert_eq!(format(at(253_402_300_800)), "9999-01-01T00:00:00Z");
    }

    proptest! {
        #[test]
        fn a_formatted_timestamp_parses_back(seconds in 0_u64..253_402_300_800) {
            prop_assert_eq!(parse(&format(at(seconds))), Some(at(seconds)));
        }
    }
}
