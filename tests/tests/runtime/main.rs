//! kwitness against a real container runtime: what its watchers receive is compared with what was done.

mod life;
mod start;
mod stream;

use kwitness_tests::prelude::*;
use kwitness_tests::{each, once};

fn main() -> Result<()> {
    let ctx = TestContext::new()?;
    let mut cases = each![
        ctx;
        life::a_pod_with_two_containers,
        life::a_container_that_lives_two_milliseconds,
        life::an_entry_point_that_does_not_exist,
        life::a_pod_in_the_nodes_pid_namespace,
        life::cgroups_made_inside_a_container,
    ];
    // What is found in the hierarchy, and by which names.
    once![
        ctx, cases, None;
        life::classes_and_static_pods,
        start::containers_older_than_the_daemon,
    ];
    // One guest is enough for what systemd has no part in.
    let repeated = ctx.environment.same_everywhere().filter(|_| ctx.environment.systemd);
    once![
        ctx, cases, repeated;
        life::a_recording_replays_to_the_same_events,
        start::containers_started_while_the_daemon_starts,
        start::the_runtime_is_away,
        start::containers_outside_of_all_roots,
    ];
    let emulated =
        (ctx.environment.tier == Tier::Vm).then_some("a guest needs minutes to overflow a watcher");
    once![ctx, cases, emulated; stream::a_slow_watcher_hurts_only_itself];
    suite::run(ctx, cases)
}
