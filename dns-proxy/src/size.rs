//! Amounts of memory as people write them: `64MiB`, `1GiB`, `1000000`.

use thiserror::Error;

/// Why a text is not an amount of memory. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a size; write a number of bytes, or one with KiB, MiB or GiB, such as 64MiB")]
pub struct SizeError(String);

/// Parses a whole number with its unit; without one it counts bytes.
///
/// # Errors
/// Not such a number, or too large a one.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: Option<u64> = match unit {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let size = number.parse::<u64>().ok().zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    size.ok_or_else(|| SizeError(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_two() {
        for (text, size) in
            [("0", 0), ("1000", 1_000), ("7B", 7), ("2KiB", 2_048), ("64MiB", 64 << 20)]
        {
            assert_eq!(parse(text), Ok(size), "{text}");
        }
    }

    #[test]
    fn anything_else_is_named() {
        for text in ["", "MiB", "64MB", "64 MiB", "-1", "1.5GiB", "99999999999GiB"] {
            assert_eq!(parse(text), Err(SizeError(text.to_owned())));
        }
    }
}
