//! Completion of what is on the node: pods, namespaces, containers. Asks the daemon, briefly; without one, offers nothing.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use clap_complete::engine::CompletionCandidate;
use kwitness_api::proto;

use crate::connect::connect;

/// The longest that a person waits after pressing Tab.
const LIMIT: Duration = Duration::from_secs(1);

/// Names of pods.
pub fn pods(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, |container| container.pod.as_ref()?.name.clone())
}

/// Namespaces of pods.
pub fn namespaces(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, |container| container.pod.as_ref()?.namespace.clone())
}

/// Names of containers.
pub fn containers(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(current, |container| container.name.clone())
}

fn candidates(current: &OsStr, name: fn(&proto::Container) -> Option<String>) -> Vec<CompletionCandidate> {
    let here = containers_here(socket(std::env::args_os())).unwrap_or_default();
    let names = here.iter().filter_map(name).collect();
    matching(current, names).into_iter().map(CompletionCandidate::new).collect()
}

/// Those that begin with the last of several values that are separated by commas.
pub fn matching(current: &OsStr, names: BTreeSet<String>) -> Vec<String> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let (before, last) = current.rfind(',').map_or(("", current), |comma| current.split_at(comma + 1));
    // A name that the shell would have to interpret, or a terminal, is not a pod's.
    let is_plain = |name: &&String| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let names = names.iter().filter(is_plain).filter(|name| name.starts_with(last));
    names.map(|name| format!("{before}{name}")).collect()
}

fn containers_here(socket: Option<OsString>) -> Option<Vec<proto::Container>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let list = async { connect(socket).await?.list(proto::Filter::default()).await };
    let containers =
        runtime.block_on(async { tokio::time::timeout(LIMIT, list).await }).ok()?.ok()?.containers;
    Some(containers.into_iter().filter_map(|state| state.container).collect())
}

/// The socket that the command line to be completed names.
fn socket(mut line: impl Iterator<Item = OsString>) -> Option<OsString> {
    while let Some(word) = line.next() {
        if word == "--socket" {
            return line.next();
        }
        if let Some(socket) = word.to_str().and_then(|word| word.strip_prefix("--socket=")) {
            return Some(socket.into());
        }
    }
    std::env::var_os("KWITNESS_SOCKET").filter(|socket| !socket.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_values_is_completed() {
        let names = || ["web-0", "web-1", "db", "evil$(reboot)"].map(str::to_owned).into();
        assert_eq!(matching(OsStr::new("w"), names()), ["web-0", "web-1"]);
        assert_eq!(matching(OsStr::new("db,web-1"), names()), ["db,web-1"]);
        assert_eq!(matching(OsStr::new("e"), names()), [""; 0]);
    }

    #[test]
    fn the_socket_of_the_command_line_is_used() {
        let line = |text: &str| socket(text.split(' ').map(OsString::from));
        assert_eq!(line("kwitness -- kwitness ps --socket /x -p"), Some("/x".into()));
        assert_eq!(line("kwitness -- kwitness --socket=unix:///x ps"), Some("unix:///x".into()));
    }
}
