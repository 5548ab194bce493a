//! Every metric of the daemon's own, once: name, type, labels, help. `docs/metrics.md` is generated from this list; what a
//! scrape shows and the rules and dashboards in `deploy/` are checked against it. Never says where a value comes from.

kwitness_service::metrics! {
    /// The daemon's metrics, in the order of the reference page.
    CATALOG {
        STANDBY: Gauge, "kwitness_standby", [],
            "Whether this daemon waits for another one on the node to end, to take over (`--standby`): 1 or 0. If 1, it has no \
             metrics but its process'.";
        HOOK_INFO: Gauge, "kwitness_hook_info", ["capability", "hook", "state"],
            "Hook that provides a capability; always 1. state is preferred, fallback or missing.";
        PROBLEM: Gauge, "kwitness_problem", ["problem"], "A problem that `kwitness status` reports at present; always 1.";
        ENGINE_ANSWER_AGE: Gauge, "kwitness_engine_answer_age_seconds", [],
            "Time since the engine answered; it is asked every 5 seconds. Values marked * are as old as that.";

        EVENTS: Counter, "kwitness_events_total", ["type"], "Events in the journal, by type.";
        KERNEL_RECORDS: Counter, "kwitness_kernel_records_total", ["ring"], "Records read from the kernel's rings. *";
        RING_SIZE: Gauge, "kwitness_ring_size_bytes", ["ring"], "Size of a ring: kernel.lifecycle_ring and so on. *";
        RING_USED: Gauge, "kwitness_ring_used_bytes", ["ring"], "Bytes of a ring that hold records which have not been read yet. *";
        LOST_RECORDS: Counter, "kwitness_lost_records_total", ["cause", "record"],
            "Kernel records that were not delivered. Every loss is a gap in the event stream, too. *";
        GAPS: Counter, "kwitness_gaps_total", ["cause"], "Gaps in the event stream, by cause.";
        SCANS: Counter, "kwitness_scans_total", [], "Scans of the cgroup tree: at the start and after a loss. *";
        SCAN_DURATION: Histogram, "kwitness_scan_duration_seconds", ["reason"],
            "Duration of scans that succeeded: initial (at the start) or repair (after a loss). *";
        BOUND_REACHED: Counter, "kwitness_bound_reached_total", ["bound"],
            "What found no room because a bound of the daemon was reached. *";
        LIMIT_WRITES: Counter, "kwitness_limit_writes_total", [], "Writes to limit files that hooks observed. *";
        TRACKED: Gauge, "kwitness_tracked_cgroups", [], "Cgroups that are tracked: containers, pods, and what is in them. *";
        TRACKED_LIMIT: Gauge, "kwitness_tracked_cgroups_limit", [], "Cgroups that can be tracked: kernel.tracked_capacity.";
        UNRESOLVED: Gauge, "kwitness_unresolved_containers", [], "Containers that wait for the runtime's names.";

        PROGRAM_RUNS: Counter, "kwitness_bpf_program_runs_total", ["program"],
            "Runs of a BPF program. Absent unless kernel.bpf_stats_enabled is set. *";
        PROGRAM_SECONDS: Counter, "kwitness_bpf_program_run_seconds_total", ["program"],
            "Time spent in a BPF program. Absent unless kernel.bpf_stats_enabled is set. *";
        PROGRAM_MISSES: Counter, "kwitness_bpf_program_misses_total", ["program"],
            "Runs of a BPF program that the kernel skipped (kernels since 5.12). *";

        JOURNAL_EVENTS: Gauge, "kwitness_journal_events", [], "Events in the journal that can be replayed.";
        JOURNAL_CAPACITY: Gauge, "kwitness_journal_capacity_events", [], "Events that it can hold: journal.replay_window.";
        JOURNAL_OLDEST: Gauge, "kwitness_journal_oldest_event_timestamp_seconds", [],
            "When the oldest of these events happened, since the Unix epoch: how far back `--since` reaches at most.";
        JOURNAL_BYTES: Gauge, "kwitness_journal_size_bytes", [], "Memory that these events take.";
        JOURNAL_CAPACITY_BYTES: Gauge, "kwitness_journal_capacity_bytes", [], "Memory that they may take: journal.replay_bytes.";

        API_CALLS: Gauge, "kwitness_api_calls", ["call"], "Active calls of the API; watchers are call=\"watch\".";
        API_CALLS_LIMIT: Gauge, "kwitness_api_calls_limit", ["call"], "Calls that may be active at a time.";
        API_CALLS_REFUSED: Counter, "kwitness_api_calls_refused_total", ["call"],
            "Calls refused with RESOURCE_EXHAUSTED because as many were active.";
        API_CONNECTIONS: Counter, "kwitness_api_connections_total", [], "Connections to the API's socket.";
        API_CONNECTIONS_CLOSED: Counter, "kwitness_api_connections_closed_total", ["reason"],
            "Connections closed by the daemon: refused (too many) or silent (no HTTP/2 in time).";
        WATCHER_LAGGED: Counter, "kwitness_watcher_lagged_events_total", [],
            "Events that slow watchers missed, summed over all of them; each watcher got a gap.";

        RUNTIME_UP: Gauge, "kwitness_runtime_up", ["runtime"], "Whether the container runtime answered the last call: 1 or 0.";
        RUNTIME_LISTS: Counter, "kwitness_runtime_lists_total", [], "Lists of containers requested from the runtime.";
        RUNTIME_FAILURES: Counter, "kwitness_runtime_failures_total", [], "Calls to the runtime that failed.";
        RUNTIME_REQUESTS: Counter, "kwitness_runtime_requests_total", ["method", "code"], "Calls to the runtime by CRI method and gRPC code.";
        RUNTIME_DURATION: Histogram, "kwitness_runtime_request_duration_seconds", ["method"],
            "Duration of calls to the runtime, those that failed included.";
        CRI_EVENTS: Counter, "kwitness_cri_events_total", [], "Events sent to subscribers of GetContainerEvents.";
        CRI_EVENTS_WITHHELD: Counter, "kwitness_cri_events_withheld_total", [],
            "CRI events held back because the runtime did not confirm them.";
        CRI_SUBSCRIBERS: Gauge, "kwitness_cri_subscribers", [], "Subscribers of GetContainerEvents.";
        CRI_SLOW_SUBSCRIBERS: Counter, "kwitness_cri_slow_subscribers_total", [],
            "Subscribers whose stream was ended because they read too slowly.";
        CRI_REQUESTS: Counter, "kwitness_cri_requests_total", ["result"],
            "CRI requests with limits that the CRI proxy reported: accepted or malformed; or missed (it could not observe or keep them).";

        CONTAINERS: Gauge, "kwitness_containers", ["state"], "Containers on the node without sandboxes, by state.";
        CONTAINER_STOPS: Counter, "kwitness_container_stops_total", ["reason"],
            "Stopped containers: Completed, Error, OOMKilled, Signal, or Unknown (the main process' end was not seen).";
        CONTAINER_START: Histogram, "kwitness_container_start_duration_seconds", [],
            "Time from the creation of a container's cgroup to its own first program.";
        OOM_KILLS: Counter, "kwitness_oom_kills_total", ["scope"],
            "OOM-killed processes, by whose memory was exhausted: container, pod, qos, kubepods, other (cgroup), node, unknown.";
        LIMIT_CHANGES: Counter, "kwitness_limit_changes_total", ["file", "outcome"],
            "Changes of limit files and refused writes to them: accepted, refused, unknown (found by reading).";
        ENFORCEMENT: Histogram, "kwitness_limit_enforcement_duration_seconds", ["resource"],
            "Time from a CRI request for a limit, as the CRI proxy saw it, to the return of the write that brought it into force.";

        CONTAINER_OOM_KILLS: Counter, "kwitness_container_oom_kills_total", ["namespace", "pod", "container"],
            "OOM-killed processes of a container. The series stays for 15 minutes after the last container of that name is gone.";
        LIMIT_VERDICT: Gauge, "kwitness_limit_verdict", ["namespace", "pod", "container", "resource", "verdict"],
            "The verdict on a limit at present: one series per limit, 1; a pod's own limit has no container. With fewer labels \
             (metrics.labels) the number of limits with that verdict.";

        METRICS_CONTAINERS: Gauge, "kwitness_metrics_containers", [],
            "Combinations of namespace, pod and container that have series, those that are gone included; at most 4096.";
        METRICS_OMITTED: Counter, "kwitness_metrics_containers_omitted_total", [],
            "Containers without series of their own, because there were as many combinations as have room.";
        METRICS_MISSED: Counter, "kwitness_metrics_missed_events_total", [],
            "Events that were not counted here, because the journal no longer had them.";
    }
}
