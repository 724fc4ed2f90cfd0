//! Points in time as people and programs both read them: RFC 3339, in UTC.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A point in time, to the millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(SystemTime);

impl Moment {
    /// This one.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// Time since 1970.
    pub fn unix(self) -> Duration {
        self.0.duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// How long it is after another; nothing if it is before.
    pub fn since(self, other: Self) -> Duration {
        self.0.duration_since(other.0).unwrap_or_default()
    }

    /// The day alone.
    pub fn day(self) -> String {
        self.to_string()[..10].to_owned()
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(UNIX_EPOCH + Duration::from_millis(since_1970.as_millis() as u64))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since_1970 = self.unix();
        let (days, second) = (since_1970.as_secs() / 86_400, since_1970.as_secs() % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let millis = since_1970.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

impl FromStr for Moment {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "not a time such as 2026-11-25T04:00:00.000Z";
        let number = |range: std::ops::Range<usize>| -> Result<u64, Self::Err> {
            text.get(range).and_then(|digits| digits.parse().ok()).ok_or(wrong)
        };
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let seconds = number(11..13)? * 3_600 + number(14..16)? * 60 + number(17..19)?;
        let millis = number(20..23)?;
        if text.len() != 24 || !text.ends_with('Z') || !(1..=12).contains(&month) {
            return Err(wrong);
        }
        // A few days off at most, until the date is right.
        let mut days = (year.max(1970) - 1970) * 365 + (month - 1) * 28 + day.max(1) - 1;
        while date(days) < (year, month, day) {
            days += 1;
        }
        let since_1970 = Duration::from_secs(days * 86_400 + seconds);
        Ok(Self(UNIX_EPOCH + since_1970 + Duration::from_millis(millis)))
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Year, month and day, so many days after 1 January 1970 in the Gregorian calendar: counted from
/// March, so that the day in February that comes and goes is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let since_march_of_0 = days + 719_468;
    let (era, day) = (since_march_of_0 / DAYS_IN_400_YEARS, since_march_of_0 % DAYS_IN_400_YEARS);
    let year = (day - day / 1_460 + day / 36_524 - day / (DAYS_IN_400_YEARS - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339_says_and_read_back() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999Z"),
            (1_772_323_200_000, "2026-03-01T00:00:00.000Z"),
            (4_102_444_800_001, "2100-01-01T00:00:00.001Z"),
        ] {
            let moment = Moment::from(UNIX_EPOCH + Duration::from_millis(unix));
            assert_eq!(moment.to_string(), text);
            assert_eq!(text.parse(), Ok(moment));
        }
        for text in ["", "2026-03-01", "2026-13-01T00:00:00.000Z", "2026-03-01T00:00:00.000+"] {
            assert!(text.parse::<Moment>().is_err(), "{text}");
        }
    }
}
