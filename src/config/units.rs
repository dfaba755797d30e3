//! Durations, sizes and rates as they are written in the configuration: `200ms`, `64KiB`, `5/1s`.
//! Parsing is strict, and formatting gives the same form. Bounds are checked by the caller.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

/// A duration such as `200ms`, `1s`, `2m` or `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Duration);

/// A number of bytes such as `64KiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) usize);

/// A number of calls per time such as `5/1s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) count: NonZeroU32,
    pub(crate) window: Duration,
}

/// The text does not have the type's form. Holds no details, because the text may be a misplaced
/// secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Milliseconds per unit, the longest unit first.
const TIMES: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Bytes per unit, the largest unit first.
const SIZES: [(&str, usize); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Splits `200ms` into 200 and the factor of `ms`.
fn split<N: FromStr, F: Copy>(text: &str, units: &[(&str, F)]) -> Result<(N, F), Malformed> {
    let end = text.find(|c: char| !c.is_ascii_digit()).ok_or(Malformed)?;
    let (number, unit) = text.split_at(end);
    let (_, factor) = units
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or(Malformed)?;
    Ok((number.parse().map_err(|_| Malformed)?, *factor))
}

// === impl Time ===

impl FromStr for Time {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (number, factor): (u64, u64) = split(text, &TIMES)?;
        number
            .checked_mul(factor)
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or(Malformed)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        let nanos = self.0.as_nanos();
        for (unit, millis) in TIMES {
            let factor = u128::from(millis) * 1_000_000;
            if nanos.is_multiple_of(factor) {
                return write!(f, "{}{unit}", nanos / factor);
            }
        }
        // The configuration has no unit below a millisecond, but a lowered burst can shorten the
        // window to a fraction of one.
        write!(f, "{:?}", self.0)
    }
}

// === impl Size ===

impl FromStr for Size {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (number, factor): (usize, usize) = split(text, &SIZES)?;
        number.checked_mul(factor).map(Self).ok_or(Malformed)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0B");
        }
        let (unit, factor) = SIZES
            .iter()
            .find(|(_, factor)| self.0.is_multiple_of(*factor))
            .expect("every size is a multiple of 1");
        write!(f, "{}{unit}", self.0 / factor)
    }
}

// === impl Rate ===

impl FromStr for Rate {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (count, window) = text.split_once('/').ok_or(Malformed)?;
        if !count.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Malformed);
        }
        Ok(Self {
            count: count.parse().map_err(|_| Malformed)?,
            window: window.parse::<Time>()?.0,
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, Time(self.window))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> Result<Duration, Malformed> {
        text.parse().map(|Time(time)| time)
    }

    #[test]
    fn times_are_a_whole_number_and_a_unit() {
        assert_eq!(time("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(time("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(time("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(time("0s"), Ok(Duration::ZERO));
        for wrong in [
            "",
            "5",
            "s",
            "-1s",
            "+1s",
            "1.5s",
            "1 s",
            " 1s",
            "1S",
            "1us",
            "1d",
            "18446744073709551615h",
        ] {
            assert_eq!(time(wrong), Err(Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_are_a_whole_number_and_a_binary_unit() {
        assert_eq!("64KiB".parse(), Ok(Size(65_536)));
        assert_eq!("0B".parse(), Ok(Size(0)));
        for wrong in [
            "64",
            "64kB",
            "64KB",
            "64kib",
            "1.5KiB",
            "-1B",
            "99999999999GiB",
        ] {
            assert_eq!(wrong.parse::<Size>(), Err(Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn rates_are_a_count_and_a_time() {
        let five = NonZeroU32::new(5).unwrap();
        assert_eq!(
            "5/1s".parse(),
            Ok(Rate {
                count: five,
                window: Duration::from_secs(1)
            })
        );
        for wrong in [
            "5", "5/s", "5/1", "0/1s", "-5/1s", "+5/1s", "5/1s/1s", "5 / 1s",
        ] {
            assert_eq!(wrong.parse::<Rate>(), Err(Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn the_largest_unit_that_fits_is_written() {
        let shown = [0, 1, 999, 1000, 1500, 90_000, 120_000, 7_200_000]
            .map(|ms| Time(Duration::from_millis(ms)));
        assert_eq!(
            shown.map(|t| t.to_string()),
            ["0s", "1ms", "999ms", "1s", "1500ms", "90s", "2m", "2h"]
        );
        let sizes = [0, 1, 1024, 1536, 1 << 20, 3 << 30].map(|bytes| Size(bytes).to_string());
        assert_eq!(sizes, ["0B", "1B", "1KiB", "1536B", "1MiB", "3GiB"]);
        assert_eq!(Time(Duration::from_nanos(1_500_000)).to_string(), "1.5ms");
    }

    proptest! {
        #[test]
        fn formatted_values_parse_back(ms in 0_u64..1 << 53, bytes: usize, count in 1_u32.., window in 0_u64..1 << 53) {
            let time = Time(Duration::from_millis(ms));
            prop_assert_eq!(time.to_string().parse(), Ok(time));
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            let count = NonZeroU32::new(count).unwrap();
            let rate = Rate { count, window: Duration::from_millis(window) };
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }
    }
}
