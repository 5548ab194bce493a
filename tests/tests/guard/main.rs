//! The guard on a real node: what is held, raised and continued, and that nothing stays stopped.
//!
//! It stops processes and needs limits: guests with cgroup v2 only.

mod brake;
mod hog;
mod late;
mod refused;
mod returned;
mod scene;
mod several;
mod spared;
mod stopped;
mod survival;

use kwitness_tests::environment::Handler;
use kwitness_tests::prelude::*;
use kwitness_tests::suite::Combined;
use kwitness_tests::survival::filler;

/// What a row does, and its name.
macro_rules! rows {
    ($($module:ident::$function:ident => $name:literal),* $(,)?) => {{
        let rows: Vec<(&str, Combined)> =
            vec![$(($name, |ctx, of| ctx.block_on($module::$function(&ctx.on(of))))),*];
        rows
    }};
}

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
    let always = rows![
        hog::finishes => "a_hog_is_killed_without_a_guard_and_finishes_with_one",
        hog::first_process => "the_first_process_of_a_container_is_held_and_continued",
        brake::system_call => "a_process_inside_a_long_system_call_is_slowed_down_until_its_raise_comes",
        stopped::overdue => "a_raise_that_never_answers_ends_the_hold",
        stopped::killed => "a_guard_that_is_killed_leaves_nothing_stopped",
        stopped::alone => "a_guard_without_its_watchdog_leaves_nothing_stopped",
        stopped::unwatched => "a_guard_whose_watchdog_hangs_leaves_nothing_stopped",
        stopped::both => "what_two_killed_processes_leave_stopped_the_next_guard_continues",
        stopped::paused => "a_guard_that_is_stopped_leaves_nothing_stopped",
        returned::after_a_quiet_time => "what_was_raised_is_given_back_after_a_quiet_time",
        stopped::debugged => "a_held_process_that_a_debugger_attaches_to_runs_when_it_detaches",
        late::continued => "a_held_process_that_another_one_continues_is_slowed_down_until_its_raise_comes",
        late::lost => "a_raise_whose_answer_is_lost_is_found_and_reported_once",
    ];
    let long = rows![
        several::processes => "several_processes_of_a_container_are_held_and_continued",
        several::threads => "a_process_with_threads_is_held_and_continued",
        several::many_threads => "a_process_with_hundreds_of_threads_is_held_and_continued",
        several::huge_pages => "a_process_that_takes_huge_pages_is_held_and_continued",
        stopped::oom_killed => "a_guard_that_is_oom_killed_leaves_nothing_stopped",
        stopped::killed_meanwhile => "a_held_process_that_is_killed_ends_its_hold",
        stopped::frozen => "a_held_process_whose_container_is_frozen_is_continued",
        several::traced => "a_traced_process_is_never_held",
        brake::killed => "what_a_killed_guard_has_slowed_down_its_watchdog_releases",
        hog::exec_session => "an_exec_session_is_never_held",
        several::vfork => "the_child_of_a_vfork_is_held_and_continued",
        stopped::joined => "a_process_that_joins_a_hold_is_continued_with_it",
        spared::terminal => "what_has_a_terminal_is_never_held",
        spared::not_selected => "a_container_that_no_rule_selects_is_never_held",
        spared::shared_pids => "what_shares_a_pid_namespace_with_other_containers_is_never_held",
        spared::host_pids => "what_is_in_the_nodes_pid_namespace_is_never_held",
        refused::limit_above => "a_limit_above_refuses_the_raise",
        survival::bench => "the_bench_of_survival_tells_the_guard_from_nothing",
        returned::by_the_next_guard => "what_a_killed_guard_has_raised_the_next_one_gives_back",
        returned::not_while_it_is_needed_again => "what_is_needed_again_while_it_is_given_back_stays",
        returned::not_what_another_process_has_set => "what_another_process_has_set_is_not_given_back",
        returned::events_wait_for_the_daemon => "the_guards_events_wait_for_the_daemon",
        refused::no_free_memory => "a_raise_that_the_node_has_no_memory_for_is_refused",
        refused::budget => "a_raise_beyond_the_budget_is_refused",
        refused::second => "a_second_guard_is_refused",
    ];
    let always = always.into_iter().map(|row| (row, refused));
    let long = long.into_iter().map(|row| (row, refused.or(only_long)));
    let cases = always
        .chain(long)
        .map(|((name, body), refused)| Case::new(name, move |ctx| body(ctx, combination)).refused(refused));
    let cases = cases.collect();
    suite::run(ctx, cases)
}
