//! A kubelet joined to a real API server, on kwitness's events: what the API says, and what is. The API as the daemon's source, Kubernetes
//! Events, the chart's pod on such a node and its release, the guard and the kubectl plugin.

mod daemonset;
mod deployment;
mod events;
mod guard;
mod guarded;
mod join;
mod kubernetes;
mod plugin;
mod release;
mod resize;

use kwitness_tests::prelude::*;
use kwitness_tests::{alone, once};

fn main() -> Result<()> {
    handmade::become_container_if_requested()?;
    let ctx = TestContext::new()?;
    let hybrid = ctx.environment.layout == CgroupLayout::Hybrid;
    let no_limits = hybrid.then_some("hybrid cgroups have no limits");
    let private = match ctx.environment.tier {
        Tier::Host => Some("the pod's mounts need a node that shares its own"),
        // Ten minutes of an emulated guest.
        Tier::Vm => (!ctx.environment.long).then_some("only with --long"),
    };
    let guests = (ctx.environment.tier == Tier::Host).then_some("the guard stops processes: guests only");
    let only_long = (!ctx.environment.long).then_some("only with --long");
    let mut cases = Vec::new();
    once![ctx, cases, ctx.environment.same_everywhere(); join::a_crashed_pod_of_the_api_is_restarted_at_once];
    once![
        ctx, cases, no_limits;
        resize::a_resize_is_in_force_when_the_kernel_has_it,
        kubernetes::a_status_that_the_kernel_does_not_have_is_named,
        events::an_oom_kill_is_one_event_of_its_pod,
    ];
    once![ctx, cases, None; plugin::the_plugin_follows_a_node_over_a_restart_of_its_daemon];
    once![
        ctx, cases, private;
        daemonset::the_charts_pod_is_ready_with_its_privileges_alone,
        release::an_upgrade_loses_nothing_and_an_uninstall_leaves_nothing,
    ];
    let always = alone![guard::a_raise_of_the_guard_through_the_api_stays];
    let long = alone![
        guard::a_raise_of_the_guard_through_the_api_is_given_back,
        guard::a_pods_own_limit_rises_with_its_containers,
        guarded::every_kind_of_pod_is_raised,
        guarded::what_the_api_refuses_ends_the_hold,
        guarded::what_the_node_has_no_room_for_ends_the_hold,
        guard::the_demo_of_an_averted_oom_kill_holds,
    ];
    let always = always.into_iter().map(|case| case.refused(guests));
    let long = long.into_iter().map(|case| case.refused(guests).refused(only_long));
    // They bring their own containerd.
    cases.extend(always.chain(long).map(Case::on_own_node));
    suite::run(ctx, cases)
}
