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

use super::now;
use crate::cri::Resolver;
use crate::oldest_first::OldestFirst;
use crate::reported::desired::{self, Desired};
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

struct State {
    calls: OldestFirst<ContainerId, (Instant, Shared<BoxFuture<'static, Answer>>)>,
    failed: Option<(Instant, Arc<str>)>,
}

impl Default for State {
    fn default() -> Self {
        Self { calls: OldestFirst::new(KEPT), failed: None }
    }
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
        let call = self.clone().ask(id.clone()).boxed().shared();
        state.calls.insert(id, (now, call.clone()));
        call
    }

    async fn ask(self, id: ContainerId) -> Answer {
        let Some(connection) = self.resolver.connection() else {
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
                if error.is_unanswered() {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use kwitness_cri::runtime::runtime_service_server::{RuntimeService, RuntimeServiceServer};
    use kwitness_cri::runtime::{
        ContainerStatusRequest, ContainerStatusResponse, ListContainersRequest, ListContainersResponse,
        ListPodSandboxRequest, ListPodSandboxResponse, VersionRequest, VersionResponse,
    };
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::config::RuntimeChoice;
    use crate::cri;

    /// A runtime that says what it is and hangs when it is asked about a container; counts these questions.
    #[derive(Clone, Default)]
    struct Hung(Arc<AtomicUsize>);

    #[tonic::async_trait]
    impl RuntimeService for Hung {
        async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
            Ok(Response::new(VersionResponse::default()))
        }

        async fn list_pod_sandbox(
            &self,
            _: Request<ListPodSandboxRequest>,
        ) -> Result<Response<ListPodSandboxResponse>, Status> {
            Ok(Response::new(ListPodSandboxResponse::default()))
        }

        async fn list_containers(
            &self,
            _: Request<ListContainersRequest>,
        ) -> Result<Response<ListContainersResponse>, Status> {
            Ok(Response::new(ListContainersResponse::default()))
        }

        async fn container_status(
            &self,
            _: Request<ContainerStatusRequest>,
        ) -> Result<Response<ContainerStatusResponse>, Status> {
            self.0.fetch_add(1, Ordering::Relaxed);
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_runtime_that_hangs_is_waited_for_once_by_all_calls_together() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cri.sock");
        let connections = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let hung = Hung::default();
        let service = RuntimeServiceServer::new(hung.clone());
        tokio::spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(connections),
        );
        let (answer, _answers) = mpsc::channel(1);
        let (resolver, work) = cri::start(RuntimeChoice::Socket(socket), answer);
        tokio::spawn(work);
        let connected = async {
            while resolver.connection().is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), connected).await.unwrap();
        let limits = RuntimeLimits::new(resolver);
        let containers =
            || (0..100).map(|number: u32| ContainerId(number.to_string().into())).collect::<Vec<_>>();
        tokio::time::pause();
        let began = Instant::now();
        let all = join_all((0..6).map(|_| limits.of(containers(), Duration::from_secs(1)))).await;
        assert!(all.iter().all(|(found, failure)| found.is_empty() && failure.is_some()));
        let took = began.elapsed();
        assert!(took < Duration::from_secs(9), "more than one deadline: {took:?}");
        assert!(hung.0.load(Ordering::Relaxed) <= AT_ONCE);
        assert!(limits.of(containers(), Duration::ZERO).await.1.is_some());
        assert_eq!(began.elapsed(), took, "the failure stands for whoever calls next");
    }
}
