//! The verdict matrix: a real kubelet runs pods of all kinds, and each limit gets the verdict that the table says: as the pod starts,
//! after resizes up and down, and after each of its files is overwritten.

mod check;
mod cluster;

use kwitness_tests::matrix::KUBELETS;
use kwitness_tests::prelude::*;

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let hybrid = ctx.environment.layout == CgroupLayout::Hybrid;
    let no_limits = hybrid.then_some("hybrid cgroups have no limits");
    let processors = std::thread::available_parallelism()?.get();
    let cases = KUBELETS.map(|kubelet| {
        let case = Case::new(&format!("the_verdicts_are_right_with_{}", kubelet.id()), move |ctx| {
            ctx.block_on(check::verdicts(ctx, kubelet))
        });
        let left_out = (!ctx.environment.long && kubelet.short.is_empty()).then_some("only with --long");
        let small = (processors < kubelet.processors).then_some("too few processors");
        case.refused(no_limits.or(left_out).or(small))
    });
    suite::run(ctx, cases.into())
}
