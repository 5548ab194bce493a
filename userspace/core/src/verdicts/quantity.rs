//! Quantities as Kubernetes writes them ("512Mi", "1.5", "250m"): the format of apimachinery's `resource.Quantity`.
//!
//! A part of the smallest unit is rounded up, as `Quantity.Value` and `Quantity.MilliValue` do.

use thiserror::Error;

/// What is wrong with a quantity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// It is not a quantity.
    #[error(
        "\"{0}\" is not a quantity: digits, perhaps with a decimal point, then nothing, n u m k M G T P E, \
         Ki Mi Gi Ti Pi Ei, or an exponent"
    )]
    Malformed(String),
    /// It does not fit into 63 bits.
    #[error("\"{0}\" is larger than a limit can be (2^63)")]
    TooLarge(String),
}

/// Parts per unit.
const MILLI: u128 = 1000;

/// In thousandths: CPUs.
///
/// # Errors
/// See [`QuantityError`]. A negative quantity is malformed: no limit is.
pub fn milli(text: &str) -> Result<u64, QuantityError> {
    parse(text, MILLI)
}

/// In whole units: bytes.
///
/// # Errors
/// See [`QuantityError`]. A negative quantity is malformed: no limit is.
pub fn whole(text: &str) -> Result<u64, QuantityError> {
    parse(text, 1)
}

fn parse(text: &str, parts: u128) -> Result<u64, QuantityError> {
    let malformed = || QuantityError::Malformed(text.to_owned());
    let too_large = || QuantityError::TooLarge(text.to_owned());
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (digits, suffix) = unsigned.split_at(end);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(malformed());
    }
    // The value is `mantissa * 10^exponent * 2^binary`.
    let (binary, mut exponent) = scale(suffix).ok_or_else(malformed)?;
    let fraction = fraction.trim_end_matches('0');
    exponent -= i32::try_from(fraction.len()).map_err(|_| too_large())?;
    let mut mantissa: u128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        let digit = u128::from(digit - b'0');
        mantissa = mantissa.checked_mul(10).and_then(|all| all.checked_add(digit)).ok_or_else(too_large)?;
    }
    if mantissa == 0 {
        return Ok(0);
    }
    let scaled =
        mantissa.checked_mul(parts).and_then(|all| all.checked_mul(1 << binary)).ok_or_else(too_large)?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    let value = match (exponent >= 0, power) {
        (true, Some(power)) => scaled.checked_mul(power).ok_or_else(too_large)?,
        (false, Some(power)) => scaled.div_ceil(power),
        (true, None) => return Err(too_large()),
        // Less than one part of anything.
        (false, None) => 1,
    };
    u64::try_from(value).ok().filter(|value| *value <= i64::MAX.unsigned_abs()).ok_or_else(too_large)
}

/// The powers of two and of ten that a suffix stands for.
fn scale(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            // Further away from 1 than any limit: what it makes too large or too small is the same.
            let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
            (
                0,
                all_digits.then(|| {
                    exponent.parse().unwrap_or(if exponent.starts_with('-') { -999 } else { 999 })
                })?,
            )
        }
    })
    .map(|(binary, exponent): (u32, i32)| (binary, exponent.clamp(-999, 999)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_kubernetes_own() {
        for (text, value) in [
            ("0", 0),
            ("512Mi", 512 << 20),
            ("1.5Gi", 3 << 29),
            ("128974848", 128_974_848),
            ("129e6", 129_000_000),
            ("129M", 129_000_000),
            ("128974848000m", 128_974_848),
            ("123Mi", 123 << 20),
            ("1E", 1_000_000_000_000_000_000),
            ("1E3", 1000),
            ("1e-3", 1),
            ("+1", 1),
            ("1.", 1),
            (".5", 1),
            ("100m", 1),
            ("0.0000000000000000000000000", 0),
            ("1e-99999999999", 1),
            ("7Ei", 7 << 60),
        ] {
            assert_eq!(whole(text), Ok(value), "{text}");
        }
        for (text, value) in
            [("500m", 500), ("0.5", 500), ("1", 1000), ("2.0005", 2001), ("100u", 1), ("1k", 1_000_000)]
        {
            assert_eq!(milli(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in
            ["", ".", "-1", "1.2.3", "Mi", "1mi", "1KI", "1 Mi", "1e", "1e+", "0x10", "1_000", "max", "½"]
        {
            assert_eq!(whole(text), Err(QuantityError::Malformed(text.to_owned())));
        }
        for text in ["8Ei", "1e30", "1e99999999999", "99999999999999999999999999999999999999999999"] {
            assert_eq!(whole(text), Err(QuantityError::TooLarge(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn it_is_total(text in "[0-9.eEikKmMnuGTP+-]{0,24}|\\PC{0,12}") {
            let _ = (milli(&text), whole(&text));
        }

        #[test]
        fn a_plain_number_is_itself(number in 0..=i64::MAX.unsigned_abs()) {
            prop_assert_eq!(whole(&number.to_string()), Ok(number));
        }
    }
}
