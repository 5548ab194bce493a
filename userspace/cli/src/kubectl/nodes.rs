//! The daemons of a cluster, asked all at a time.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use kwitness_api::Client;

use super::failure::{Failure, Missing};

/// Nodes that are asked at a time.
const ASKED: usize = 32;

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
        let asked = self.0.iter().filter_map(|(node, client)| {
            let answer = ask(client.clone(), question(node)?);
            Some(async move { (node.clone(), answer.await) })
        });
        let mut answers: Vec<_> = futures_util::stream::iter(asked).buffer_unordered(ASKED).collect().await;
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
