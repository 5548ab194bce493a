//! Desired limits in the container runtime's status, shared by all calls.
//!
//! A call for a container is made once for all who ask while it is under way, or shortly after it as far as they allow. No lock
//! is held across a call. A runtime that has just failed to answer is not called again for [`FAILED_FOR`]: all share the failure.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use super::desired::{self, Desired};
use super::now;
use crate::cri::{Error, Resolver};
use kwitness_core::model::ContainerId;

/// Calls at once, for one who asks for many containers.
const AT_ONCE: usize = 8;
/// How long a failure stands for all calls.
const FAILED_FOR: Duration = Duration::from_secs(1);
/// Answers that are kept at most; the oldest go first.
const KEPT: usize = 4096;

/// What is desired of a container as the runtime says; or why it does not.
type Answer = Result<Arc<[Desired]>, Arc<str>>;

/// Asks the runtime. Clones share what is under way.
#[derive(Clone)]
pub(super) struct RuntimeLimits {
    resolver: Resolver,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    calls: HashMap<ContainerId, (Instant, Shared<BoxFuture<'static, Answer>>)>,
    failed: Option<(Instant, Arc<str>)>,
}

impl State {
    /// The failure that stands for all calls at present.
    fn failure(&self) -> Option<&Arc<str>> {
        self.failed.as_ref().filter(|(at, _)| at.elapsed() < FAILED_FOR).map(|(_, error)| error)
    }
}

impl RuntimeLimits {
    pub(super) fn new(resolver: Resolver) -> Self {
        Self { resolver, state: Arc::default() }
    }

    /// What the runtime says of each container, queried no longer ago than `max_age`; and the first failure. Of one that it does
    /// not know, nothing.
    pub(super) async fn of(
        &self,
        containers: Vec<ContainerId>,
        max_age: Duration,
    ) -> (HashMap<ContainerId, Arc<[Desired]>>, Option<Arc<str>>) {
        let calls = containers.into_iter().map(|id| async move {
            let answer = self.call(id.clone(), max_age).await;
            (id, answer)
        });
        let mut calls = futures_util::stream::iter(calls).buffer_unordered(AT_ONCE);
        let (mut all, mut failure) = (HashMap::new(), None);
        while let Some((id, answer)) = calls.next().await {
            match answer {
                Ok(desired) => drop(all.insert(id, desired)),
                Err(error) => {
                    failure.get_or_insert(error);
                    // Of a runtime that does not answer, the others would wait as long for the same.
                    if self.lock().failure().is_some() {
                        break;
                    }
                }
            }
        }
        (all, failure)
    }

    fn call(&self, id: ContainerId, max_age: Duration) -> Shared<BoxFuture<'static, Answer>> {
        let now = Instant::now();
        let mut state = self.lock();
        if let Some(error) = state.failure() {
            return std::future::ready(Err(error.clone())).boxed().shared();
        }
        if let Some((began, call)) = state.calls.get(&id)
            && now.duration_since(*began) <= max_age
        {
            return call.clone();
        }
        if state.calls.len() >= KEPT
            && let Some(oldest) = state.calls.iter().min_by_key(|(_, (at, _))| *at).map(|(id, _)| id.clone())
        {
            state.calls.remove(&oldest);
        }
        let call = self.clone().ask(id.clone()).boxed().shared();
        state.calls.insert(id, (now, call.clone()));
        call
    }

    async fn ask(self, id: ContainerId) -> Answer {
        let Some(mut connection) = self.resolver.connection() else {
            let why = self.resolver.status().error;
            return Err(if why.is_empty() { "no container runtime is connected".into() } else { why.into() });
        };
        match connection.resources(&id.0).await {
            Ok(resources) => {
                let resources = resources.map(|resources| desired::of_runtime(&resources, now()));
                Ok(resources.unwrap_or_default().into())
            }
            Err(error) => {
                let text: Arc<str> = error.to_string().into();
                let mut state = self.lock();
                state.calls.remove(&id);
                // An answer about one container is no failure of the runtime.
                if matches!(error, Error::Slow { .. } | Error::Connect { .. }) {
                    state.failed = Some((Instant::now(), text.clone()));
                }
                Err(text)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for RuntimeLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuntimeLimits").finish_non_exhaustive()
    }
}
