//! Parses and writes time stamps such as `2026-11-24T02:54:06Z`: the one form of ISO 8601 in
//! Alibaba's signatures and sessions, strictly.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time of an Alibaba time stamp, or `None` for any other text.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let shape = text
        .bytes()
        .map(|byte| if byte.is_ascii_digit() { b'0' } else { byte });
    if !shape.eq(*b"0000-00-00T00:00:00Z") {
        return None;
    }
    let year = text[0..4].parse::<u64>().ok()?;
    let month = text[5..7].parse::<u64>().ok()?;
    let day = text[8..10].parse::<u64>().ok()?;
    let hour = text[11..13].parse::<u64>().ok()?;
    let minute = text[14..16].parse::<u64>().ok()?;
    let second = text[17..19].parse::<u64>().ok()?;
    let lengths = month_lengths(year);
    let month = usize::try_from(month.checked_sub(1)?).ok()?;
    if year < 1970
        || day == 0
        || day > *lengths.get(month)?
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let before: u64 = (1970..year)
        .map(|year| if is_leap(year) { 366 } else { 365 })
        .sum();
    let days = before + lengths[..month].iter().sum::<u64>() + day - 1;
    Some(UNIX_EPOCH + Duration::from_secs(((days * 24 + hour) * 60 + minute) * 60 + second))
}

/// The Alibaba time stamp of a time after 1970, in whole seconds.
pub(crate) fn format(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mut days = seconds / 86_400;
    let mut year = 1970;
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let mut month = 0;
    for length in month_lengths(year) {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!(
        "{year:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        month + 1,
        days + 1
    )
}

fn month_lengths(year: u64) -> [u64; 12] {
    let february = if is_leap(year) { 29 } else { 28 };
    [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Option<u64> {
        parse(text).map(|moment| moment.duration_since(UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn parses_to_the_second() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2000-02-29T12:00:00Z"), Some(951_825_600));
        assert_eq!(seconds("2026-11-24T02:54:06Z"), Some(1_795_488_846));
    }

    #[test]
    fn writes_what_it_parses() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2000-02-29T12:00:00Z",
            "2026-11-24T02:54:06Z",
            "2026-12-31T23:59:59Z",
            "2028-03-01T00:00:00Z",
        ] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
    }

    #[test]
    fn refuses_every_other_form() {
        for text in [
            "2026-11-24 02:54:06Z",
            "2026-11-24T02:54:06",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-24T24:00:00Z",
            "",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
