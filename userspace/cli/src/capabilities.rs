//! What the kernel offers the daemon, as a table: shown by `status` and by `doctor`.

use anstyle::AnsiColor;
use kwitness_api::proto;

use crate::table::{Cell, Table};
use crate::text::UNKNOWN;

/// Needs and the hooks that serve them.
pub fn needs_table(needs: &[proto::Need]) -> String {
    let rows: Vec<_> = needs
        .iter()
        .map(|need| {
            let (state, style) = match (need.hook.is_empty(), need.vital, need.refused.is_empty()) {
                (true, true, _) => ("missing, vital", AnsiColor::Red.on_default().bold()),
                (true, false, _) => ("missing", AnsiColor::Yellow.on_default()),
                (false, _, false) => ("met, second best", AnsiColor::Yellow.on_default()),
                (false, _, true) => ("met", AnsiColor::Green.on_default()),
            };
            let hook = if need.hook.is_empty() { UNKNOWN } else { &need.hook };
            [need.name.clone().into(), hook.into(), Cell::styled(state, style)] as [Cell; 3]
        })
        .collect();
    Table::new([("NEED", 0), ("HOOK", 0), ("STATE", 0)]).render(&rows)
}
