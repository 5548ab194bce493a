//! kwitness against a real container runtime: what its watchers are told is compared with what was done.

mod cri_events;
mod life;
mod start;
mod stream;

use anyhow::Result;
use kwitness_tests::bed::Bed;
use kwitness_tests::suite::{self, Case};

fn main() -> Result<()> {
    let bed = Bed::make()?;
    let mut cases = Vec::new();
    macro_rules! each {
        ($($module:ident::$name:ident),* $(,)?) => {
            $(cases.extend(Case::each(&bed, stringify!($name), |bed, combination| {
                bed.block_on($module::$name(bed, combination))
            }));)*
        };
    }
    macro_rules! once {
        ($($module:ident::$name:ident),* $(,)?) => {
            $(cases.push(Case::once(&bed, stringify!($name), |bed, combination| {
                bed.block_on($module::$name(bed, combination))
            })?);)*
        };
    }
    each![
        life::a_pod_with_two_containers,
        life::a_container_that_lives_two_milliseconds,
        life::an_entry_point_that_does_not_exist,
        life::a_pod_in_the_nodes_pid_namespace,
        life::cgroups_made_inside_a_container,
        cri_events::cri_events_of_a_pod,
    ];
    once![
        life::a_recording_replays_to_the_same_events,
        life::classes_and_static_pods,
        cri_events::cri_events_of_a_crash_loop,
        cri_events::cri_events_while_the_runtime_is_away,
        cri_events::cri_events_over_a_restart_of_the_daemon,
        cri_events::cri_methods_that_the_daemon_does_not_serve,
        start::containers_older_than_the_daemon,
        start::containers_started_while_the_daemon_starts,
        start::a_restart_of_the_daemon,
        start::the_runtime_is_away,
        stream::a_slow_watcher_hurts_only_itself,
        stream::a_watcher_resumes_where_it_was,
        stream::a_filter_passes_what_was_asked_for,
    ];
    let crictl = bed.environment.job.join("bin/crictl").exists();
    let refused = (!crictl).then_some("crictl is on the host only");
    cases.push(
        Case::once(&bed, "crictl_events", |bed, combination| {
            bed.block_on(cri_events::crictl_events(bed, combination))
        })?
        .refused(refused),
    );
    suite::run(bed, cases)
}
