//! Completion of pods and namespaces by the API server, briefly; without an answer, offers nothing.
//!
//! kubectl asks a program `kubectl_complete-kwitness` in the protocol of Cobra: a candidate a line, then what the shell is to do.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use clap_complete::engine::CompletionCandidate;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams};

use super::connection::Connection;
use crate::complete::matching;

/// The name by which kubectl calls for completion.
pub const PROGRAM: &str = "kubectl_complete-kwitness";
/// The longest that a person waits after pressing Tab.
const LIMIT: Duration = Duration::from_secs(1);
/// The most objects that are looked at.
const LISTED: u32 = 500;
/// Cobra's ShellCompDirectiveNoFileComp: no files besides.
const NO_FILES: &str = ":4";

/// Prints candidates for the last of the words that follow the program's name.
pub fn run(command: &mut clap::Command, words: impl Iterator<Item = OsString>) -> std::io::Result<()> {
    let words: Vec<_> = std::iter::once(OsString::from("kubectl-kwitness")).chain(words).collect();
    let last = words.len() - 1;
    for candidate in clap_complete::engine::complete(command, words, last, None)? {
        println!("{}", candidate.get_value().to_string_lossy());
    }
    println!("{NO_FILES}");
    Ok(())
}

/// Names of pods, in the namespace that the command line names or the context's.
pub fn pods(current: &OsStr) -> Vec<CompletionCandidate> {
    let namespace = option(std::env::args(), &["-n", "--namespace"]);
    let names = listed(async |client: kube::Client, which| {
        let api = match &namespace {
            Some(namespace) => Api::<Pod>::namespaced(client, namespace),
            None => Api::<Pod>::default_namespaced(client),
        };
        api.list_metadata(&which)
            .await
            .map(|list| list.items.into_iter().filter_map(|pod| pod.metadata.name).collect())
    });
    candidates(current, names)
}

/// Names of namespaces.
pub fn namespaces(current: &OsStr) -> Vec<CompletionCandidate> {
    let names = listed(async |client: kube::Client, which| {
        let list = Api::<Namespace>::all(client).list_metadata(&which).await;
        list.map(|list| list.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect())
    });
    candidates(current, names)
}

fn candidates(current: &OsStr, names: BTreeSet<String>) -> Vec<CompletionCandidate> {
    matching(current, names).into_iter().map(CompletionCandidate::new).collect()
}

fn listed(
    list: impl AsyncFnOnce(kube::Client, ListParams) -> kube::Result<BTreeSet<String>>,
) -> BTreeSet<String> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return BTreeSet::new();
    };
    let names = async {
        let line: Vec<_> = std::env::args().collect();
        let client = kube::Client::try_from(connection(&line).config().await.ok()?).ok()?;
        list(client, ListParams::default().limit(LISTED)).await.ok()
    };
    let names = runtime.block_on(async { tokio::time::timeout(LIMIT, names).await });
    names.ok().flatten().unwrap_or_default()
}

/// Which cluster the command line is about that is completed, and as whom.
fn connection(line: &[String]) -> Connection {
    let value = |name| option(line.iter().cloned(), &[name]);
    Connection {
        kubeconfig: value("--kubeconfig").map(Into::into),
        context: value("--context"),
        cluster: value("--cluster"),
        user: value("--user"),
        as_user: value("--as"),
        ..Connection::default()
    }
}

/// The value of an option on the command line that is completed.
fn option(mut line: impl Iterator<Item = String>, names: &[&str]) -> Option<String> {
    while let Some(word) = line.next() {
        if names.contains(&word.as_str()) {
            return line.next();
        }
        let value = names.iter().find_map(|name| word.strip_prefix(name)?.strip_prefix('='));
        if let Some(value) = value {
            return Some(value.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_of_the_command_line_is_used() {
        let namespace = |line: &str| option(line.split(' ').map(str::to_owned), &["-n", "--namespace"]);
        assert_eq!(namespace("kubectl kwitness events -n prod -p we"), Some("prod".into()));
        assert_eq!(namespace("kubectl kwitness events --namespace=prod"), Some("prod".into()));
        assert_eq!(namespace("kubectl kwitness events"), None);
    }

    #[test]
    fn the_cluster_of_the_command_line_is_used() {
        let line = "kubectl kwitness --context=test events --as jane -p we".split(' ').map(str::to_owned);
        let connection = connection(&line.collect::<Vec<_>>());
        assert_eq!(connection.context.as_deref(), Some("test"));
        assert_eq!(connection.as_user.as_deref(), Some("jane"));
        assert_eq!(connection.cluster, None);
    }
}
