//! The guard on a real node: what is held, raised and continued, and that nothing stays stopped.
//!
//! It stops processes and needs limits: guests with cgroup v2 only.

mod brake;
mod hog;
mod refused;
mod returned;
mod scene;
mod several;
mod spared;
mod stopped;
mod survival;

use anyhow::Result;
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::{CgroupLayout, Combination, Handler, Tier};
use kwitness_tests::suite::{self, Case, Combined};
use kwitness_tests::survival::filler;

fn main() -> Result<()> {
    if several::run_as_hog() || brake::populate_if_requested() || filler::fill_if_requested()? {
        return Ok(());
    }
    let ctx = TestContext::new()?;
    let refused = match (ctx.environment.tier, ctx.environment.layout) {
        (Tier::Vm, CgroupLayout::Unified) => None,
        (Tier::Host, _) => Some("the guard stops processes: guests only"),
        (_, CgroupLayout::Hybrid) => Some("limits need cgroup v2"),
    };
    // A hold lasts ten seconds at most, and runc needs several for an update in an emulated machine.
    let combination =
        Combination { handler: Handler::Crun, driver: ctx.environment.first_combination()?.driver };
    let only_long = (!ctx.environment.long).then_some("only with --long");
    // Each needs most of a minute in a guest: here what must hold, below who is held.
    let always: [(&str, Combined); 10] = [
        ("a_hog_is_killed_without_a_guard_and_finishes_with_one", |ctx, of| {
            ctx.block_on(hog::finishes(ctx, of))
        }),
        ("the_first_process_of_a_container_is_held_and_continued", |ctx, of| {
            ctx.block_on(hog::first_process(ctx, of))
        }),
        ("a_process_inside_a_long_system_call_is_slowed_down_until_its_raise_comes", |ctx, of| {
            ctx.block_on(brake::system_call(ctx, of))
        }),
        ("a_raise_that_never_answers_ends_the_hold", |ctx, of| ctx.block_on(stopped::overdue(ctx, of))),
        ("a_guard_that_is_killed_leaves_nothing_stopped", |ctx, of| ctx.block_on(stopped::killed(ctx, of))),
        ("a_guard_without_its_watchdog_leaves_nothing_stopped", |ctx, of| {
            ctx.block_on(stopped::alone(ctx, of))
        }),
        ("a_guard_whose_watchdog_hangs_leaves_nothing_stopped", |ctx, of| {
            ctx.block_on(stopped::unwatched(ctx, of))
        }),
        ("what_two_killed_processes_leave_stopped_the_next_guard_continues", |ctx, of| {
            ctx.block_on(stopped::both(ctx, of))
        }),
        ("a_guard_that_is_stopped_leaves_nothing_stopped", |ctx, of| ctx.block_on(stopped::paused(ctx, of))),
        ("what_was_raised_is_given_back_after_a_quiet_time", |ctx, of| {
            ctx.block_on(returned::after_a_quiet_time(ctx, of))
        }),
    ];
    let long: [(&str, Combined); 25] = [
        ("several_processes_of_a_container_are_held_and_continued", |ctx, of| {
            ctx.block_on(several::processes(ctx, of))
        }),
        ("a_process_with_threads_is_held_and_continued", |ctx, of| ctx.block_on(several::threads(ctx, of))),
        ("a_process_with_hundreds_of_threads_is_held_and_continued", |ctx, of| {
            ctx.block_on(several::many_threads(ctx, of))
        }),
        ("a_process_that_takes_huge_pages_is_held_and_continued", |ctx, of| {
            ctx.block_on(several::huge_pages(ctx, of))
        }),
        ("a_guard_that_is_oom_killed_leaves_nothing_stopped", |ctx, of| {
            ctx.block_on(stopped::oom_killed(ctx, of))
        }),
        ("a_held_process_that_is_killed_ends_its_hold", |ctx, of| {
            ctx.block_on(stopped::killed_meanwhile(ctx, of))
        }),
        ("a_held_process_whose_container_is_frozen_is_continued", |ctx, of| {
            ctx.block_on(stopped::frozen(ctx, of))
        }),
        ("a_traced_process_is_never_held", |ctx, of| ctx.block_on(several::traced(ctx, of))),
        ("what_a_killed_guard_has_slowed_down_its_watchdog_releases", |ctx, of| {
            ctx.block_on(brake::killed(ctx, of))
        }),
        ("an_exec_session_is_never_held", |ctx, of| ctx.block_on(hog::exec_session(ctx, of))),
        ("the_child_of_a_vfork_is_held_and_continued", |ctx, of| ctx.block_on(several::vfork(ctx, of))),
        ("a_process_that_joins_a_hold_is_continued_with_it", |ctx, of| {
            ctx.block_on(stopped::joined(ctx, of))
        }),
        ("what_has_a_terminal_is_never_held", |ctx, of| ctx.block_on(spared::terminal(ctx, of))),
        ("a_container_that_no_rule_selects_is_never_held", |ctx, of| {
            ctx.block_on(spared::not_selected(ctx, of))
        }),
        ("what_shares_a_pid_namespace_with_other_containers_is_never_held", |ctx, of| {
            ctx.block_on(spared::shared_pids(ctx, of))
        }),
        ("what_is_in_the_nodes_pid_namespace_is_never_held", |ctx, of| {
            ctx.block_on(spared::host_pids(ctx, of))
        }),
        ("a_limit_above_refuses_the_raise", |ctx, of| ctx.block_on(refused::limit_above(ctx, of))),
        ("the_bench_of_survival_tells_the_guard_from_nothing", |ctx, of| {
            ctx.block_on(survival::bench(ctx, of))
        }),
        ("what_a_killed_guard_has_raised_the_next_one_gives_back", |ctx, of| {
            ctx.block_on(returned::by_the_next_guard(ctx, of))
        }),
        ("what_is_needed_again_while_it_is_given_back_stays", |ctx, of| {
            ctx.block_on(returned::not_while_it_is_needed_again(ctx, of))
        }),
        ("what_another_process_has_set_is_not_given_back", |ctx, of| {
            ctx.block_on(returned::not_what_another_process_has_set(ctx, of))
        }),
        ("the_guards_events_wait_for_the_daemon", |ctx, of| {
            ctx.block_on(returned::events_wait_for_the_daemon(ctx, of))
        }),
        ("a_raise_that_the_node_has_no_memory_for_is_refused", |ctx, of| {
            ctx.block_on(refused::no_free_memory(ctx, of))
        }),
        ("a_raise_beyond_the_budget_is_refused", |ctx, of| ctx.block_on(refused::budget(ctx, of))),
        ("a_second_guard_is_refused", |ctx, of| ctx.block_on(refused::second(ctx, of))),
    ];
    let always = always.into_iter().map(|row| (row, refused));
    let long = long.into_iter().map(|row| (row, refused.or(only_long)));
    let cases = always
        .chain(long)
        .map(|((name, body), refused)| Case::new(name, move |ctx| body(ctx, combination)).refused(refused));
    let cases = cases.collect();
    suite::run(ctx, cases)
}
