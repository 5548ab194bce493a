//! Limits as people wrote them in a pod's spec: `64Mi`, `200m`. Never rounds: what has no exact short form stays as it stands
//! in the file.

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
}
