//! The Debian package, on a machine whose process 1 is systemd: installed, started by its unit, used by a member of its group, upgraded
//! and removed.

mod installed;

use anyhow::Result;
use kwitness_tests::context::TestContext;
use kwitness_tests::{once, suite};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let no_systemd = (!ctx.environment.systemd).then_some("units need systemd");
    let mut cases = Vec::new();
    once![ctx, cases, no_systemd; installed::a_package_serves_its_group_and_leaves_nothing_running];
    suite::run(ctx, cases)
}
