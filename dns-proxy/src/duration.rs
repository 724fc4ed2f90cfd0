//! Durations as people and the original Go proxy write them: `2s`, `1m30s`, `1.5s`, `2000ms`.

use std::time::Duration;

use thiserror::Error;

/// Why a text is not a duration. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a duration; write a number and a unit (ms, s, m, h, d), such as 2s or 1m30s")]
pub struct DurationError(String);

/// Parses a sequence of decimal numbers, each with its unit, as Go's `time.ParseDuration` does;
/// `d` is a day of 24 hours.
///
/// # Errors
/// Not such a sequence, negative, or above 10 years.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    const MAX_SECONDS: f64 = 10.0 * 365.0 * 86_400.0;
    let error = || DurationError(text.to_owned());
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(error)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit_seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(error()),
        };
        seconds += number.parse::<f64>().map_err(|_| error())? * unit_seconds;
        rest = tail;
    }
    if text.is_empty() || seconds > MAX_SECONDS {
        return Err(error());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_understood() {
        let cases = [("2s", 2_000), ("2000ms", 2_000), ("1m30s", 90_000), ("1.5s", 1_500)];
        for (text, millis) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("1d"), Ok(Duration::from_secs(86_400)));
    }

    #[test]
    fn anything_else_is_named() {
        for text in ["", "2", "s", "-2s", "2 s", "2x", "1..5s", "99999999d", "."] {
            assert_eq!(parse(text), Err(DurationError(text.to_owned())));
        }
    }
}
