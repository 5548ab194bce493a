//! The demos that need a compiler or a JVM in the node's root: every claim of theirs holds, and they can be shown.

use kwitness_tests::boost::{build, startup};
use kwitness_tests::prelude::*;

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    // Each brings its own containerd.
    let build = Case::new("a_build_gets_its_memory_before_it_needs_it", |ctx| {
        ctx.finish()?;
        ctx.block_on(build::run(&ctx.environment, |_| {}))?.check()
    });
    let startup = Case::new("a_start_gets_more_cpu_until_it_is_ready", |ctx| {
        ctx.finish()?;
        ctx.block_on(startup::run(&ctx.environment, |_| {}))?.check()
    });
    suite::run(ctx, vec![build, startup])
}
