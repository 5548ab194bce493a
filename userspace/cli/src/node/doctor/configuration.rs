//! Whose configuration the doctor judges by: a running daemon's, or that of a daemon that would be started here.

use kwitness_agent::config::{Config, DEFAULT_FILE};
use kwitness_agent::probe::environment::CheckVerdict;
use kwitness_api::proto;

use super::Finding;

const NAME: &str = "configuration";

/// The configuration, and which one it is. `own` is that of this command; `status`, a running daemon's.
pub(super) fn judged(own: Config, status: Option<&proto::StatusResponse>) -> (Config, Finding) {
    let own_file = || match &own.file {
        Some(file) => file.display().to_string(),
        None => format!("defaults: there is no {DEFAULT_FILE}"),
    };
    match status {
        None => {
            let found = Finding::good(NAME, own_file());
            (own, found)
        }
        // An older daemon does not report its settings.
        Some(status) if status.settings.is_empty() => {
            let found =
                format!("{}; the daemon, of release {}, may have another", own_file(), status.version);
            let remedy = "pass the daemon's file with --config, or restart the daemon with this release";
            (own, Finding::new(NAME, CheckVerdict::Unknown, found, remedy))
        }
        Some(status) => {
            let file = status.config_file.as_deref().unwrap_or("defaults, no file");
            (
                Config::of_daemon(&status.settings),
                Finding::good(NAME, format!("the running daemon's: {file}")),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_daemon_is_judged_by_its_own_configuration() {
        let own = || Config { file: Some("/mine.toml".into()), ..Config::default() };
        let (config, found) = judged(own(), None);
        assert_eq!((config.pin, &*found.found), (true, "/mine.toml"));
        let of_daemon = proto::StatusResponse {
            version: "0.1.0".into(),
            settings: [("kernel.pin".to_owned(), "\"off\"".to_owned())].into(),
            ..Default::default()
        };
        let (config, found) = judged(own(), Some(&of_daemon));
        assert_eq!((config.pin, &*found.found), (false, "the running daemon's: defaults, no file"));
        let older = proto::StatusResponse { settings: Default::default(), ..of_daemon };
        let (config, found) = judged(own(), Some(&older));
        assert!(
            config.pin && found.verdict == "unknown" && found.found.contains("may have another"),
            "{found:?}"
        );
    }
}
