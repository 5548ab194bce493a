//! What `--only` can name: of `kwitness-bench`, and of `cargo xtask bench`, which includes this file to refuse other names before it
//! builds anything.

/// Groups of rows.
pub(crate) const ROWS: [&str; 12] = [
    "latency",
    "attacker",
    "overhead",
    "probes",
    "cpu",
    "limits",
    "pressure",
    "throughput",
    "footprint",
    "pins",
    "proxy",
    "cri",
];

/// Kinds of curves (`--curves`).
pub(crate) const CURVES: [&str; 5] = ["growth", "rate", "filter", "resume", "tree"];

/// Refuses a name that selects nothing.
pub(crate) fn check(only: &[String], is_curves: bool) -> Result<(), String> {
    let (names, what) = if is_curves { (&CURVES[..], "curves") } else { (&ROWS[..], "rows") };
    match only.iter().find(|name| !names.contains(&name.as_str())) {
        Some(unknown) => Err(format!("--only: no {what} have the name \"{unknown}\": {}", names.join(", "))),
        None => Ok(()),
    }
}
