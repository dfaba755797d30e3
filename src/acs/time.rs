//! When was a call signed? `2026-11-24T02:54:06Z` and nothing else: UTC, seconds, every digit in its place. How far off
//! a stamp may be is identify's question.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;
/// Days from 0000-03-01, where the calendar's arithmetic begins, to 1970-01-01.
const EPOCH: u64 = 719_468;
/// Days in 400 years, after which the calendar repeats.
const ERA: u64 = 146_097;

/// Reads a stamp; `None` if it is not of the one form, names no real moment, or lies before 1970.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let text: &[u8; 20] = text.as_bytes().try_into().ok()?;
    let number = |from: usize, to: usize| {
        text[from..to].iter().try_fold(0, |sum: u64, byte| {
            char::from(*byte)
                .to_digit(10)
                .map(|d| sum * 10 + u64::from(d))
        })
    };
    let marks = [
        (4, b'-'),
        (7, b'-'),
        (10, b'T'),
        (13, b':'),
        (16, b':'),
        (19, b'Z'),
    ];
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let is_sound = marks.iter().all(|(at, mark)| text[*at] == *mark)
        && year >= 1970
        && (1..=12).contains(&month)
        && day >= 1
        && hour < 24
        && minute < 60
        && second < 60;
    let days = is_sound.then(|| days(year, month, day))?;
    // Reading the number back refuses the 31st of April and the 29th of February in a common year.
    let seconds = days * DAY + hour * 3600 + minute * 60 + second;
    (civil(days) == (year, month, day)).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Writes a stamp.
pub(crate) fn format(time: SystemTime) -> String {
    let seconds = seconds(time);
    let (year, month, day) = civil(seconds / DAY);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Whole seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Days since 1970-01-01. The year begins in March, so that the leap day comes last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year / 400 * ERA + year % 400 * 365 + year % 400 / 4 - year % 400 / 100 + day_of_year - EPOCH
}

/// The inverse of [`days`].
fn civil(days: u64) -> (u64, u64, u64) {
    let (era, day) = ((days + EPOCH) / ERA, (days + EPOCH) % ERA);
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
    fn any_other_spelling_is_refused() {
        for text in [
            "",
            "2026-11-24T02:54:06",
            "2026-11-24 02:54:06Z",
            "2026-11-24T02:54:06z",
            "2026-11-24T02:54:06.0Z",
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

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seconds in 0_u64..253_402_300_800) {
            prop_assert_eq!(parse(&format(at(seconds))), Some(at(seconds)));
        }
    }
}
