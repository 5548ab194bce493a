//! What the proxy counted since it started: for the log (`SIGUSR1`, and at the end) and for tests. Never what it decides by.

kwitness_service::counters! {
    /// All of them but those of connections, which [`kwitness_service::ConnectionCounters`] has.
    Counters {
    /// Connections that were ended by an error, such as what is no HTTP/2, or a frame that is too large.
    connections_broken,
    /// Connections that were closed because the memory for clients was used up.
    connections_exhausted,
    /// Calls that were refused because their connection's calls held too much memory.
    calls_exhausted,
    /// Calls that were passed on, or tried to be.
    calls,
    /// Of those: answered with `UNAVAILABLE` by the proxy, because the runtime was away, fell silent or went away meanwhile.
    calls_unavailable,
    /// Connections to the runtime that were made.
    runtime_connections,
    /// Of those: closed because they were idle.
    runtime_idle,
    /// Connections to the runtime that could not be made.
    runtime_unreachable,
    /// Clients' streams of events.
    event_streams,
    /// Streams that were refused, or ended for another client's, because there were too many.
    event_streams_exhausted,
    /// Of those: ended, because the client read too slowly.
    event_streams_overflowed,
    /// Of those: ended with the runtime's status, because no source had events.
    event_streams_refused,
    /// Of those: ended, because the event of a start did not come in time.
    event_streams_late,
    /// Events received from the daemon.
    events_daemon,
    /// Events received from the runtime.
    events_runtime,
    /// Of both: dropped as duplicates.
    events_double,
    /// Of both: forwarded undecoded.
    events_opaque,
    /// Changes from the runtime's events to the daemon's.
    moves_to_daemon,
    /// Changes to the runtime's events, because the daemon was away.
    moves_to_runtime,
    /// Answers to calls that start something that were held for their event.
    answers_held,
    /// Answers to such calls that were passed on before their event: it did not come in time, or could not be waited for.
    answers_before_event,
    /// Requests for limits that were reported to the daemon.
    requests_reported,
    /// Those that were not, because later ones of the same container set all of it anew.
    requests_superseded,
    /// Those that could not be kept until the daemon took them, or that it rejected.
    requests_dropped,
    /// Those that passed while too many of their connection were under way.
    requests_missed,
    /// Those that were compressed.
    requests_compressed,
    /// Those that were too large to be kept.
    requests_oversized,
    /// Those that ended before their message did.
    requests_unfinished,
    /// Those that were no requests.
    requests_malformed,
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_them_are_printed_by_name() {
        let counters = Counters::default();
        counters.calls.count();
        counters.events_daemon.add(3);
        let text = counters.to_string();
        assert!(text.starts_with("connections_broken=0 "), "{text}");
        assert!(text.contains(" calls=1 ") && text.contains(" events_daemon=3 "), "{text}");
    }
}
