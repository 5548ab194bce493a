//! The daemons of a cluster, asked all at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use kwitness_api::Client;

use super::failure::{Failure, Missing};
use crate::history::HISTORY_BYTES;
use crate::output::note;

/// Nodes that are asked at a time.
const ASKED: usize = 32;
/// Without an answer of any node for so long, it is said who is waited for. How long that may last, the client knows.
const PATIENCE: Duration = Duration::from_secs(10);

/// The daemons, by node.
#[derive(Clone, Debug, Default)]
pub struct Nodes(BTreeMap<String, Client>);

impl FromIterator<(String, Client)> for Nodes {
    fn from_iter<T: IntoIterator<Item = (String, Client)>>(nodes: T) -> Self {
        Self(nodes.into_iter().collect())
    }
}

impl Nodes {
    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// How many bytes of history each may have, so that all have [`HISTORY_BYTES`] together.
    pub fn history_bytes(&self) -> usize {
        HISTORY_BYTES / self.0.len().max(1)
    }

    /// The daemon of a node.
    pub fn get(&self, node: &str) -> Option<&Client> {
        self.0.get(node)
    }

    /// Asks each that `question` has something for. The answers come in the order of the nodes' names; who gives none is missing.
    pub async fn each<Q, T, E, F>(
        &self,
        question: impl Fn(&str) -> Option<Q>,
        ask: impl Fn(Client, Q) -> F,
    ) -> (Vec<(String, T)>, Missing)
    where
        E: Into<Failure>,
        F: Future<Output = Result<T, E>>,
    {
        let mut awaited = BTreeSet::new();
        let asked: Vec<_> = self
            .0
            .iter()
            .filter_map(|(node, client)| {
                let answer = ask(client.clone(), question(node)?);
                awaited.insert(node.as_str());
                Some(async move { (node.clone(), answer.await) })
            })
            .collect();
        let mut answering = pin!(futures_util::stream::iter(asked).buffer_unordered(ASKED));
        let (mut answers, mut is_said) = (Vec::new(), false);
        loop {
            match tokio::time::timeout(PATIENCE, answering.next()).await {
                Ok(Some((node, answer))) => {
                    awaited.remove(node.as_str());
                    answers.push((node, answer));
                }
                Ok(None) => break,
                Err(_) if std::mem::replace(&mut is_said, true) => {}
                Err(_) => {
                    let awaited: Vec<_> = awaited.iter().copied().collect();
                    note(&format!("waiting for {}", awaited.join(", ")));
                }
            }
        }
        answers.sort_by(|(left, _), (right, _)| left.cmp(right));
        let mut missing = Missing::default();
        let of_nodes = answers.into_iter().filter_map(|(node, answer)| match answer {
            Ok(answer) => Some((node, answer)),
            Err(error) => {
                missing.add(error.into());
                None
            }
        });
        (of_nodes.collect(), missing)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use kwitness_api::Source;
    use kwitness_api::proto::WatchRequest;

    use super::super::tunnel;
    use super::*;
    use crate::exit::Code;
    use crate::history::{Past, history};

    /// As a daemon is that was stopped by a signal: its kernel accepts connections, and nothing comes.
    #[tokio::test(start_paused = true)]
    async fn a_node_that_accepts_and_says_nothing_is_missing_and_the_others_answer() {
        let accepted = std::sync::Arc::new(Mutex::new(Vec::new()));
        let client = tunnel::client("silent", move || {
            let (here, there) = tokio::io::duplex(1 << 16);
            accepted.lock().unwrap().push(there);
            async move { Ok(tunnel::Tunnel::of(here)) }
        });
        let nodes: Nodes =
            [("silent".to_owned(), client.clone()), ("well".to_owned(), client)].into_iter().collect();
        let ask = |client, node: String| async move {
            match &*node {
                "silent" => history(&Source::Live(client), WatchRequest::default(), HISTORY_BYTES).await,
                _ => Ok(Past::default()),
            }
        };
        let (answers, missing) = nodes.each(|node| Some(node.to_owned()), ask).await;
        assert_eq!(answers.iter().map(|(node, _)| &**node).collect::<Vec<_>>(), ["well"]);
        assert_eq!(missing.code(Code::Success), Code::Unreachable);
    }
}
