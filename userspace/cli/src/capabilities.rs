//! What the daemon takes from the kernel, and the privileges that it holds for it, as tables: shown by `status` and `doctor`.

use anstyle::AnsiColor;
use kwitness_api::proto;

use crate::table::{Cell, Fit, Table};
use crate::text::UNKNOWN;

/// Capabilities and the hooks that provide them.
pub fn capabilities_table(capabilities: &[proto::Capability], limit: Option<usize>) -> String {
    let rows: Vec<_> = capabilities
        .iter()
        .map(|capability| {
            let (state, style) =
                match (capability.hook.is_empty(), capability.vital, capability.refused.is_empty()) {
                    (true, true, _) => ("missing, required", AnsiColor::Red.on_default().bold()),
                    (true, false, _) => ("missing", AnsiColor::Yellow.on_default()),
                    (false, _, false) => ("degraded", AnsiColor::Yellow.on_default()),
                    (false, _, true) => ("ok", AnsiColor::Green.on_default()),
                };
            let hook = if capability.hook.is_empty() { UNKNOWN } else { &capability.hook };
            vec![Cell::from(&capability.name), hook.into(), Cell::styled(state, style)]
        })
        .collect();
    Table::new(limit)
        .column("CAPABILITY", 0, Fit::Whole)
        .column("HOOK", 0, Fit::Middle(20))
        .column("STATE", 0, Fit::Whole)
        .render(&rows)
}

/// The privileges that the daemon holds, and what for.
pub fn privileges_table(privileges: &[proto::Privilege], limit: Option<usize>) -> String {
    let row = |privilege: &proto::Privilege| vec![Cell::from(&privilege.name), (&privilege.purpose).into()];
    let rows: Vec<_> = privileges.iter().map(row).collect();
    Table::new(limit).column("PRIVILEGE", 0, Fit::Whole).column("FOR", 0, Fit::End(20)).render(&rows)
}
