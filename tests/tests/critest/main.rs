//! critest, the suite that judges container runtimes, straight at a real containerd and through the proxy: the same tests pass and fail.

mod benchmark;
mod compare;
mod report;

use anyhow::Result;
use kwitness_tests::bed::Bed;
use kwitness_tests::suite::{self, Case};

fn main() -> Result<()> {
    let bed = Bed::make()?;
    let name = "the_same_tests_pass_and_fail_straight_and_through_the_proxy";
    let case = Case::once(&bed, name, |bed, combination| {
        bed.block_on(compare::the_same_tests_pass_and_fail(bed, combination))
    })?;
    suite::run(bed, vec![case])
}
