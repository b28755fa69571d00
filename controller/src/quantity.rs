//! Kubernetes quantities as exact numbers, so that `0.5` and `500m` are the same wish.

/// The value in billionths, or `None` when the text is no quantity or is beyond 2^64.
///
/// Billionths (`n`) are the finest unit that Kubernetes knows.
#[must_use]
pub fn billionths(text: &str) -> Option<i128> {
    let text = text.trim();
    let number_end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(number_end)?;
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scaled = digits.checked_mul(billionths_per_unit(suffix)?)?;
    let value = scaled.checked_div(10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    Some(if negative { -value } else { value })
}

/// The value rounded down to whole units (bytes, for memory and storage).
#[must_use]
pub fn units(text: &str) -> Option<u64> {
    u64::try_from(billionths(text)?.checked_div(1_000_000_000)?).ok()
}

fn billionths_per_unit(suffix: &str) -> Option<i128> {
    const UNIT: i128 = 1_000_000_000;
    Some(match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => UNIT,
        "k" => UNIT * 1_000,
        "M" => UNIT * 1_000_000,
        "G" => UNIT * 1_000_000_000,
        "T" => UNIT * 1_000_000_000_000,
        "P" => UNIT * 1_000_000_000_000_000,
        "E" => UNIT * 1_000_000_000_000_000_000,
        "Ki" => UNIT << 10,
        "Mi" => UNIT << 20,
        "Gi" => UNIT << 30,
        "Ti" => UNIT << 40,
        "Pi" => UNIT << 50,
        "Ei" => UNIT << 60,
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = u32::try_from(power.checked_add(9)?).ok()?;
            10_i128.checked_pow(power)?
        }
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0.5", "500m")]
    #[case("1Gi", "1024Mi")]
    #[case("1", "1000m")]
    #[case("1e3", "1k")]
    #[case("1.5Gi", "1536Mi")]
    #[case("100m", "0.1")]
    fn the_same_amount_is_the_same_number(#[case] left: &str, #[case] right: &str) {
        assert_eq!(billionths(left), billionths(right));
        assert!(billionths(left).is_some());
    }

    #[rstest]
    #[case("")]
    #[case("Gi")]
    #[case("1Zi")]
    #[case("1..2")]
    #[case("one")]
    #[case("99999999999999999999999999999999999999999Ei")]
    fn nonsense_is_refused(#[case] text: &str) {
        assert_eq!(billionths(text), None);
    }

    #[test]
    fn units_round_down() {
        assert_eq!(units("1536m"), Some(1));
        assert_eq!(units("256Mi"), Some(268_435_456));
        assert_eq!(units("-1"), None);
    }
}
