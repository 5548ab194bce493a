//! Limits as people wrote them in a pod's spec: `64Mi`, `200m`. A limit is never rounded: what has no exact short form stays as it
//! stands in the file. What was measured is ([`amount`]), in the same units wherever it is shown.

/// The suffixes of a Kubernetes quantity, largest first.
const SUFFIXES: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("T", 1_000_000_000_000),
    ("Gi", 1 << 30),
    ("G", 1_000_000_000),
    ("Mi", 1 << 20),
    ("M", 1_000_000),
    ("Ki", 1 << 10),
    ("k", 1_000),
];

/// The kubelet's period of a CPU quota, in microseconds: with any other, millicores alone would not say what the file says.
const PERIOD: u64 = 100_000;

/// What a limit file says.
pub fn value(file: &str, raw: &str) -> String {
    let short = match file {
        "cpu.max" => cpu(raw),
        _ if is_bytes(file) => raw.parse().ok().map(bytes),
        _ => None,
    };
    short.unwrap_or_else(|| raw.to_owned())
}

/// Whether a limit file's number is one of bytes.
fn is_bytes(file: &str) -> bool {
    let is_amount = [".max", ".high", ".low", ".min"].iter().any(|end| file.ends_with(end));
    is_amount && (file.starts_with("memory.") || file.starts_with("hugetlb."))
}

/// An amount of memory.
pub fn bytes(bytes: u64) -> String {
    let exact = SUFFIXES.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    exact.map_or_else(|| bytes.to_string(), |(suffix, unit)| format!("{}{suffix}", bytes / unit))
}

/// The longest measured amount that is shown exactly: no rounded one is longer.
const AMOUNT_LEN: usize = 6;

/// An amount of memory that was measured: exact if that is short, else rounded.
pub fn amount(bytes: u64) -> String {
    let exact = self::bytes(bytes);
    if exact.len() <= AMOUNT_LEN { exact } else { rounded(bytes) }
}

/// Three digits, in at most six characters: `61.3Mi`.
pub fn rounded(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let (mut amount, mut unit) = (bytes as f64, 0);
    // What would be rounded to 1024 is one of the next unit.
    while amount >= 1023.5 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let digits = match amount {
        _ if unit == 0 => 0,
        _ if amount < 9.995 => 2,
        _ if amount < 99.95 => 1,
        _ => 0,
    };
    format!("{amount:.digits$}{}", UNITS[unit])
}

fn cpu(raw: &str) -> Option<String> {
    let (quota, period) = raw.split_once(' ')?;
    if period.parse() != Ok(PERIOD) {
        return None;
    }
    if quota == "max" {
        return Some(quota.to_owned());
    }
    let quota: u64 = quota.parse().ok()?;
    let milli = quota.is_multiple_of(PERIOD / 1000).then_some(quota / (PERIOD / 1000))?;
    Some(if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_as_people_write_them() {
        for (file, raw, shown) in [
            ("memory.max", "67108864", "64Mi"),
            ("memory.max", "2147483648", "2Gi"),
            ("memory.max", "100000000", "100M"),
            ("memory.max", "99999744", "97656Ki"),
            ("memory.high", "max", "max"),
            ("memory.max", "0", "0"),
            ("memory.swap.max", "4096", "4Ki"),
            ("memory.oom.group", "1", "1"),
            ("pids.max", "1024", "1024"),
            ("cpu.max", "20000 100000", "200m"),
            ("cpu.max", "150000 100000", "1500m"),
            ("cpu.max", "200000 100000", "2"),
            ("cpu.max", "max 100000", "max"),
            ("cpu.max", "33333 100000", "33333 100000"),
            ("cpu.max", "10000 50000", "10000 50000"),
            ("cpu.weight", "1000", "1000"),
        ] {
            assert_eq!(value(file, raw), shown, "{file} {raw}");
        }
    }

    #[test]
    fn rounded_amounts_have_three_digits() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.00Ki"),
            (64 << 20, "64.0Mi"),
            (1023 << 20, "1023Mi"),
            ((1 << 30) - 1, "1.00Gi"),
            (10_480_000, "9.99Mi"),
            (10_485_000, "10.0Mi"),
            (u64::MAX, "16.0Ei"),
        ] {
            assert_eq!(rounded(bytes), text, "{bytes}");
            assert!(rounded(bytes).len() <= AMOUNT_LEN);
        }
    }

    #[test]
    fn what_was_measured_is_exact_where_that_is_short() {
        for (bytes, text) in [(64 << 20, "64Mi"), (61_444 << 10, "60.0Mi"), (99_999_744, "95.4Mi"), (0, "0")]
        {
            assert_eq!(amount(bytes), text, "{bytes}");
        }
    }
}
