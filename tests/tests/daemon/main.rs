//! kwitness as a user meets it: the daemon's manners, and the command line. Needs no container runtime: the
//! containers are made by hand.

mod command;
mod container_nodes;
mod hostile;
mod layouts;
mod manners;
mod metrics;
mod output;
mod pins;
mod privileges;
mod recordings;
mod standby;
mod subtree;
mod top;

use kwitness_tests::alone;
use kwitness_tests::container_node;
use kwitness_tests::prelude::*;

fn main() -> Result<()> {
    handmade::become_container_if_requested()?;
    container_node::become_node_if_requested()?;
    let ctx = TestContext::new()?;
    let mut cases = alone![
        output::events_of_the_past,
        output::filters,
        output::the_list_of_containers,
        output::the_status,
        output::the_doctor_with_and_without_a_daemon,
        output::completion_and_manual,
        output::events_end_with_control_c,
        output::events_end_quietly_with_a_closed_pipe,
        output::events_go_on_after_a_restart_of_the_daemon,
        output::verdicts_and_containers_go_on_after_a_restart,
        output::hostile_names_reach_no_terminal,
        manners::a_live_socket_is_not,
        manners::both_signals_end_it_well,
        manners::sighup_applies_the_log_level,
        manners::all_errors_in_the_configuration_are_reported_together,
        manners::without_root,
        manners::another_pid_namespace_is_refused,
        manners::without_a_daemon,
        subtree::a_neighbouring_subtree_is_not_seen,
        subtree::a_storm_in_a_neighbouring_subtree_changes_nothing,
        subtree::a_subtree_that_is_not_there_is_an_error,
        container_nodes::two_nodes_on_one_kernel_see_each_their_own_pods,
        container_nodes::the_doctor_knows_a_node_that_is_a_container,
        container_nodes::a_pod_without_the_nodes_pids_is_refused,
        hostile::a_users_cgroup_is_no_container,
        hostile::two_cgroups_with_one_containers_id_are_reported,
        hostile::a_nest_keeps_it_from_nothing,
        hostile::one_containers_groups_cost_no_other_pod_an_event,
        layouts::the_machine_of_kata_is_its_sandbox,
        layouts::a_cluster_in_a_pod_is_of_its_container,
        metrics::metrics_and_probes,
        manners::the_probes_log_when_enabled,
        manners::a_loss_is_reported_and_repaired,
        pins::nothing_is_left_behind,
        pins::programs_that_no_daemon_reads_are_named,
        privileges::each_thread_has_kept_what_is_documented,
        pins::metrics_begin_at_zero_and_know_what_there_is,
        standby::a_standby_is_ready_and_no_daemon_yet,
        standby::a_standby_whose_programs_do_not_load_is_never_ready,
        standby::without_a_standby_nothing_is_left,
        standby::an_end_in_the_middle_of_a_hand_over_leaves_nothing,
        recordings::a_recording_has_what_the_daemon_reported,
        recordings::a_recording_goes_on_after_a_crash,
        recordings::a_recording_as_of_a_time,
        recordings::a_recording_has_samples_of_usage,
        recordings::a_timeline_in_all_forms,
        recordings::the_demo_needs_no_daemon,
        recordings::an_archive_for_a_bug_report,
        top::the_screen_takes_keys_and_gives_the_terminal_back,
        top::the_screen_keeps_old_rows_until_the_daemon_is_back,
        top::what_cannot_be_read_is_not_zero,
    ];
    let time = Case::new("another_time_namespace_is_refused", |ctx| {
        ctx.block_on(manners::another_time_namespace_is_refused(ctx))
    });
    cases.push(time.refused(manners::no_time_namespaces()));
    // Eight minutes of an emulated guest, and no business of the kernel's.
    let attacks = Case::new("no_client_makes_the_daemon_too_large", |ctx| {
        ctx.block_on(manners::no_client_makes_the_daemon_too_large(ctx))
    });
    cases.push(attacks.refused(ctx.environment.same_everywhere()));
    suite::run(ctx, cases)
}
