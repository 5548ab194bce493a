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

use anyhow::Result;
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::{CgroupLayout, Tier};
use kwitness_tests::handmade;
use kwitness_tests::suite::{self, Case};

fn main() -> Result<()> {
    handmade::become_container_if_requested()?;
    let ctx = TestContext::new()?;
    let hybrid = ctx.environment.layout == CgroupLayout::Hybrid;
    let no_limits = hybrid.then_some("hybrid cgroups have no limits");
    let crash = Case::once(&ctx, "a_crashed_pod_of_the_api_is_restarted_at_once", |ctx, combination| {
        ctx.block_on(join::a_crashed_pod_is_restarted_at_once(ctx, combination))
    })?;
    let resize = Case::once(&ctx, "a_resize_is_in_force_when_the_kernel_has_it", |ctx, combination| {
        ctx.block_on(resize::a_resize_is_in_force_when_the_kernel_has_it(ctx, combination))
    })?;
    let source = Case::once(&ctx, "a_status_that_the_kernel_does_not_have_is_named", |ctx, combination| {
        ctx.block_on(kubernetes::a_status_that_the_kernel_does_not_have_is_named(ctx, combination))
    })?;
    let events = Case::once(&ctx, "an_oom_kill_is_one_event_of_its_pod", |ctx, combination| {
        ctx.block_on(events::an_oom_kill_is_one_event_of_its_pod(ctx, combination))
    })?;
    let chart = Case::once(&ctx, "the_charts_pod_is_ready_with_its_privileges_alone", |ctx, combination| {
        ctx.block_on(daemonset::the_charts_pod_is_ready_with_its_privileges_alone(ctx, combination))
    })?;
    let plugin =
        Case::once(&ctx, "the_plugin_follows_a_node_over_a_restart_of_its_daemon", |ctx, combination| {
            ctx.block_on(plugin::the_plugin_follows_a_node_over_a_restart_of_its_daemon(ctx, combination))
        })?;
    let release = "an_upgrade_loses_nothing_and_an_uninstall_leaves_nothing";
    let release = Case::once(&ctx, release, |ctx, combination| {
        ctx.block_on(release::an_upgrade_loses_nothing_and_an_uninstall_leaves_nothing(ctx, combination))
    })?;
    let private = match ctx.environment.tier {
        Tier::Host => Some("the pod's mounts need a node that shares its own"),
        // Ten minutes of an emulated guest.
        Tier::Vm => (!ctx.environment.long).then_some("only with --long"),
    };
    // It brings its own containerd.
    let raise = Case::new("a_raise_of_the_guard_through_the_api_stays", |ctx| {
        ctx.finish()?;
        ctx.block_on(guard::a_raise_through_the_api_stays(ctx))
    });
    let returned = Case::new("a_raise_of_the_guard_through_the_api_is_given_back", |ctx| {
        ctx.finish()?;
        ctx.block_on(guard::a_raise_through_the_api_is_given_back(ctx))
    });
    let of_pod = Case::new("a_pods_own_limit_rises_with_its_containers", |ctx| {
        ctx.finish()?;
        ctx.block_on(guard::a_pods_own_limit_rises_with_its_containers(ctx))
    });
    let kinds = Case::new("every_kind_of_pod_is_raised", |ctx| {
        ctx.finish()?;
        ctx.block_on(guarded::every_kind_of_pod_is_raised(ctx))
    });
    let refusals = Case::new("what_the_api_refuses_ends_the_hold", |ctx| {
        ctx.finish()?;
        ctx.block_on(guarded::what_the_api_refuses_ends_the_hold(ctx))
    });
    let no_room = Case::new("what_the_node_has_no_room_for_ends_the_hold", |ctx| {
        ctx.finish()?;
        ctx.block_on(guarded::what_the_node_has_no_room_for_ends_the_hold(ctx))
    });
    let demo = Case::new("the_demo_of_an_averted_oom_kill_holds", |ctx| {
        ctx.finish()?;
        ctx.block_on(guard::the_demo_of_an_averted_oom_kill_holds(ctx))
    });
    let guests = (ctx.environment.tier == Tier::Host).then_some("the guard stops processes: guests only");
    let only_long = (!ctx.environment.long).then_some("only with --long");
    let cases = vec![
        crash.refused(ctx.environment.same_everywhere()),
        resize.refused(no_limits),
        source.refused(no_limits),
        events.refused(no_limits),
        plugin,
        chart.refused(private),
        release.refused(private),
        raise.refused(guests),
        returned.refused(guests).refused(only_long),
        of_pod.refused(guests).refused(only_long),
        kinds.refused(guests).refused(only_long),
        refusals.refused(guests).refused(only_long),
        no_room.refused(guests).refused(only_long),
        demo.refused(guests).refused(only_long),
    ];
    suite::run(ctx, cases)
}
