//! What holds for every program, whatever it is for, as metrics: its version, its process, its HTTP listener.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::http::HttpCounters;
use crate::metrics::Exposition;

crate::metrics! {
    /// The metrics of every program, in the order of the reference page.
    CATALOG {
        BUILD_INFO: Gauge, "kwitness_build_info", ["version", "revision"],
            "Version of the running program, and the commit that it was built from if the build named it; always 1.";

        HTTP_CONNECTIONS: Counter, "kwitness_http_connections_total", [], "Connections to the HTTP listener.";
        HTTP_CLOSED: Counter, "kwitness_http_connections_closed_total", ["reason"],
            "HTTP connections closed early: displaced (by a newer one), timed_out or broken (no HTTP/1 request).";
        HTTP_REQUESTS: Counter, "kwitness_http_requests_total", ["result"], "HTTP requests: ok, or failed with a status other than 200.";

        CPU_SECONDS: Counter, "process_cpu_seconds_total", [], "User and system CPU time of the process.";
        RESIDENT: Gauge, "process_resident_memory_bytes", [], "Resident memory of the process.";
        OPEN_FDS: Gauge, "process_open_fds", [], "Open file descriptors.";
        MAX_FDS: Gauge, "process_max_fds", [], "File descriptors that the process may open.";
        START_TIME: Gauge, "process_start_time_seconds", [], "Start of the process, since the Unix epoch.";
    }
}

/// The commit that the program was built from, if the build names it.
const REVISION: &str = match option_env!("KWITNESS_REVISION") {
    Some(revision) => revision,
    None => "",
};

/// The running program.
#[derive(Debug)]
pub struct Program {
    started: SystemTime,
    http: Arc<HttpCounters>,
}

impl Program {
    /// It starts now, and counts there what its HTTP listener does.
    pub fn new(http: Arc<HttpCounters>) -> Self {
        Self { started: SystemTime::now(), http }
    }

    /// Its samples of this moment.
    pub fn expose(&self, exposition: &mut Exposition) {
        let Self { started, http } = self;
        exposition.family(&BUILD_INFO).add([env!("CARGO_PKG_VERSION"), REVISION], 1u64);
        if let Ok(started) = started.duration_since(UNIX_EPOCH) {
            exposition.set(&START_TIME, started.as_secs_f64());
        }
        if let Ok(process) = procfs::process::Process::myself() {
            if let Ok(stat) = process.stat() {
                let ticks = stat.utime + stat.stime;
                exposition.set(&CPU_SECONDS, ticks as f64 / procfs::ticks_per_second() as f64);
                exposition.set(&RESIDENT, stat.rss * procfs::page_size());
            }
            if let Ok(count) = process.fd_count() {
                exposition.set(&OPEN_FDS, count);
            }
        }
        if let Ok((max, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
            exposition.set(&MAX_FDS, max);
        }
        exposition.set(&HTTP_CONNECTIONS, http.connections.get());
        let mut closed = exposition.family(&HTTP_CLOSED);
        closed.add(["displaced"], http.connections_displaced.get());
        closed.add(["timed_out"], http.connections_timed_out.get());
        closed.add(["broken"], http.connections_broken.get());
        let failed = http.requests_failed.get();
        let mut requests = exposition.family(&HTTP_REQUESTS);
        requests.add(["ok"], http.requests.get().saturating_sub(failed));
        requests.add(["failed"], failed);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::metrics::{Format, breaches, in_page};

    #[test]
    fn every_metric_of_a_program_has_a_sample_from_the_start() {
        assert_eq!(breaches(CATALOG), Vec::<String>::new());
        let mut exposition = Exposition::default();
        Program::new(Arc::default()).expose(&mut exposition);
        let text = exposition.text(Format::Prometheus);
        for metric in CATALOG {
            assert!(text.contains(&format!("\n{}", metric.name)), "{} is not in {text}", metric.name);
        }
    }

    /// `cargo xtask metrics` writes the table anew.
    #[test]
    fn the_reference_page_has_every_metric() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let text = fs::read_to_string(&page).unwrap();
        let expected = in_page(&text, "both", CATALOG).expect("marks around the table");
        if std::env::var_os("KWITNESS_BLESS").is_some() {
            fs::write(&page, expected).unwrap();
        } else {
            assert_eq!(text, expected, "{} is not up to date", page.display());
        }
    }
}
