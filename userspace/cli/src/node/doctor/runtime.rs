//! What the doctor says of the container runtime.

use kwitness_agent::config::RuntimeChoice;
use kwitness_agent::probe::environment::CheckVerdict;
use kwitness_api::proto;
use kwitness_cri::find_socket;

use super::Finding;

const NAME: &str = "runtime";
const REMEDY: &str =
    "start the runtime, or name its socket with runtime.endpoint (the chart: runtime.socket)";

/// The daemon's status of the runtime.
pub(super) fn of_daemon(status: &proto::RuntimeStatus) -> Finding {
    let proto::RuntimeStatus { endpoint, name, version, error, .. } = status;
    match (endpoint.as_str(), error.as_str()) {
        ("", "") => Finding::good(NAME, "not used (runtime.endpoint is \"none\")"),
        ("", error) => Finding::new(NAME, CheckVerdict::Degraded, error, REMEDY),
        (endpoint, "") => Finding::good(NAME, format!("{name} {version} at {endpoint}")),
        (_, error) => Finding::new(NAME, CheckVerdict::Degraded, format!("{endpoint}: {error}"), REMEDY),
    }
}

/// What a daemon with this configuration would find.
pub(super) fn found(choice: &RuntimeChoice) -> Finding {
    let found = match choice {
        RuntimeChoice::Never => return Finding::good(NAME, "not used (runtime.endpoint is \"none\")"),
        RuntimeChoice::Auto => find_socket(),
        RuntimeChoice::Socket(socket) => Some(&**socket).filter(|path| path.exists()),
    };
    match found {
        Some(path) => Finding::good(NAME, path.display().to_string()),
        None => Finding::new(
            NAME,
            CheckVerdict::Degraded,
            "no socket of a container runtime: names of pods and containers stay unknown",
            REMEDY,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemons_runtime_is_what_the_daemon_says() {
        let status = |error: &str| proto::RuntimeStatus {
            endpoint: "/run/cri.sock".into(),
            name: "containerd".into(),
            version: "v2".into(),
            error: error.into(),
        };
        let found = |error: &str| {
            let Finding { verdict, found, .. } = of_daemon(&status(error));
            (verdict, found)
        };
        assert_eq!(found(""), ("good".to_owned(), "containerd v2 at /run/cri.sock".to_owned()));
        assert_eq!(found("gone"), ("degraded".to_owned(), "/run/cri.sock: gone".to_owned()));
    }
}
