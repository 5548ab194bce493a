//! In the place of the Kubernetes API, in a build without the feature `kubernetes`: there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kwitness_api::proto;
use kwitness_core::model::{ApiView, Resource};

use crate::clock::Clock;

/// No such source exists.
#[derive(Clone, Debug)]
pub enum Kubernetes {}

#[expect(missing_docs, reason = "never called")]
impl Kubernetes {
    pub fn view(&self, _: &str, _: Option<(&str, Option<&str>)>, _: Resource) -> ApiView {
        match *self {}
    }

    pub fn unavailable(&self, _: bool) -> Option<String> {
        match *self {}
    }

    pub async fn confirm(&self, _: BTreeSet<Arc<str>>) {
        match *self {}
    }

    pub fn status(&self, _: Clock) -> proto::KubernetesStatus {
        match *self {}
    }

    pub fn counters(&self) -> BTreeMap<String, u64> {
        match *self {}
    }
}
