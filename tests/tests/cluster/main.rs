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
mod timeline;

use kwitness_tests::once;
use kwitness_tests::prelude::*;

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
    // They bring their own containerd.
    let own = |name: &str, body: fn(&TestContext) -> Result<()>| {
        let case = Case::new(name, move |ctx| ctx.finish().and_then(|()| body(ctx)));
        case.refused(guests)
    };
    cases.push(own("a_raise_of_the_guard_through_the_api_stays", |ctx| {
        ctx.block_on(guard::a_raise_through_the_api_stays(ctx))
    }));
    let long = [
        own("a_raise_of_the_guard_through_the_api_is_given_back", |ctx| {
            ctx.block_on(guard::a_raise_through_the_api_is_given_back(ctx))
        }),
        own("a_pods_own_limit_rises_with_its_containers", |ctx| {
            ctx.block_on(guard::a_pods_own_limit_rises_with_its_containers(ctx))
        }),
        own("every_kind_of_pod_is_raised", |ctx| ctx.block_on(guarded::every_kind_of_pod_is_raised(ctx))),
        own("what_the_api_refuses_ends_the_hold", |ctx| {
            ctx.block_on(guarded::what_the_api_refuses_ends_the_hold(ctx))
        }),
        own("what_the_node_has_no_room_for_ends_the_hold", |ctx| {
            ctx.block_on(guarded::what_the_node_has_no_room_for_ends_the_hold(ctx))
        }),
        own("the_demo_of_an_averted_oom_kill_holds", |ctx| {
            ctx.block_on(guard::the_demo_of_an_averted_oom_kill_holds(ctx))
        }),
    ];
    cases.extend(long.map(|case| case.refused(only_long)));
    suite::run(ctx, cases)
}
