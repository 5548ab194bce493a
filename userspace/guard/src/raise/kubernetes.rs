//! A raise through the Kubernetes API: `pods/resize`, which the kubelet carries out at every level, and does not take back.
//!
//! Owns the calls: `get` of a pod and `patch` of `pods/resize`, and no other. What a pod must be like for it is for
//! [`Target`] to say.
//!
//! A patch names the version of the pod that it was planned for. One whose answer is lost, or that is late, changes nothing
//! that has changed meanwhile; and the next plan begins with the spec as it is then.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Client, Error};
use kwitness_api::text::without_excerpt;
use kwitness_service::{ConfigurationError, configuration};
use tokio::time::Instant;

use super::resize::{Target, is_about_pod, text};
use crate::daemon::Container;
use crate::plan::{Change, Refusal, ResizeRefusal};
use crate::policy::Bytes;

/// The name under which the API records the guard's fields.
const FIELD_MANAGER: &str = "kwitness-guard";
/// How often a pod that changes between reading and writing is read again.
const ATTEMPTS: usize = 4;
/// Between two looks at what the kubelet makes of a resize.
const LOOK: Duration = Duration::from_millis(250);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The longest time between two looks at what has become of a change that has no answer.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// After that the API server is not at a request any more: twice its `--request-timeout`, by default.
const LATE: Duration = Duration::from_secs(120);

/// Access to an API server.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    node: Option<Arc<str>>,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// Access by that kubeconfig; without one, by `$KUBECONFIG`, `~/.kube/config` or a pod's service account. With a node's
    /// name, only its pods are raised. An API server that is away now may be back when it is needed.
    ///
    /// # Errors
    /// There is no such access.
    pub async fn connect(kubeconfig: Option<&Path>, node: Option<String>) -> anyhow::Result<Self> {
        let invalid = ConfigurationError::Invalid;
        let mut config = match kubeconfig {
            Some(file) => {
                let unusable = |error: &dyn std::fmt::Display| {
                    let (file, error) = (file.display(), without_excerpt(error));
                    invalid(format!("cannot use the kubeconfig {file}: {error}"))
                };
                // It waits for the writer of a FIFO, and reads what has no end.
                configuration::read("the kubeconfig", file, "--kubeconfig")?;
                let read = Kubeconfig::read_from(file).map_err(|error| unusable(&error))?;
                let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
                config.map_err(|error| unusable(&error))?
            }
            None => Config::infer().await.map_err(|error| {
                anyhow!("no access to a Kubernetes API; name a --kubeconfig: {}", without_excerpt(&error))
            })?,
        };
        // It would run on the one thread that renews the lease, in the middle of a hold.
        if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
            let why = "the kubeconfig runs a program for its credentials; use a token, a token file or a certificate";
            return Err(invalid(why.to_owned()).into());
        }
        config.connect_timeout = Some(CONNECT_LIMIT);
        // The time of a hold is better spent on an answer.
        config.default_retry = false;
        let client = Client::try_from(config).context("cannot use the access to the Kubernetes API")?;
        let this = Self { client, node: node.map(Arc::from) };
        match tokio::time::timeout(CONNECT_LIMIT, this.client.apiserver_version()).await {
            Ok(Ok(version)) => tracing::info!(version = version.git_version, "Kubernetes API reached"),
            Ok(Err(error)) => {
                let error = refusal(error);
                tracing::warn!(%error, "Kubernetes API away: raises are refused until it is back");
            }
            Err(_) => tracing::warn!("Kubernetes API does not answer: raises are refused until it does"),
        }
        Ok(this)
    }

    /// Sets a container's limit by a resize of its pod; the answer is that the API server has accepted it, now or before. `asked` is
    /// the limit that the guard has requested before. A raise waits for the end of another client's resize.
    ///
    /// # Errors
    /// The pod may not have it, the API server does not accept it, or `hold` has passed.
    pub async fn set(
        &self,
        container: &Container,
        change: Change,
        asked: Option<Bytes>,
        hold: Duration,
    ) -> Result<(), Refusal> {
        let end = Instant::now() + hold;
        let answer = tokio::time::timeout_at(end, self.resize(container, change, asked, end)).await;
        answer.unwrap_or(Err(ResizeRefusal::NoAnswer.into()))
    }

    async fn resize(
        &self,
        container: &Container,
        change: Change,
        asked: Option<Bytes>,
        end: Instant,
    ) -> Result<(), Refusal> {
        let target = Target::of(container)?;
        let pods = self.pods(target);
        let mut conflicts = 0;
        while conflicts < ATTEMPTS {
            let pod = pods.get(target.pod).await.map_err(refusal)?;
            if asked == Some(change.to) && target.is_accepted(&pod, change) == Some(true) {
                return Ok(());
            }
            let patch = match target.patch(&pod, self.node.as_deref(), change, asked, procfs::page_size()) {
                // What is lowered is not needed soon, and a raise would wait for it.
                Err(Refusal::Resize(ResizeRefusal::Pending(_)))
                    if change.to > change.from && Instant::now() + 2 * LOOK < end =>
                {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                patch => patch?,
            };
            let is_about_pod = is_about_pod(&patch);
            let patched = pods.patch_resize(target.pod, &params(), &Patch::Strategic(patch)).await;
            match patched.map_err(refusal) {
                Err(Refusal::Resize(ResizeRefusal::Conflict)) => conflicts += 1,
                // Before Kubernetes 1.36 no pod with resources of its own is resized, unless a feature gate is set.
                Err(Refusal::Resize(ResizeRefusal::Invalid(why))) if is_about_pod => {
                    return Err(ResizeRefusal::PodLimit(why).into());
                }
                answer => return answer.map(drop),
            }
        }
        Err(ResizeRefusal::Conflict.into())
    }

    /// Sets the limit of the spec to what it was before a raise that the kubelet has put off; whether it still had.
    ///
    /// # Errors
    /// The API server does not accept that, or `limit` has passed.
    pub async fn take_back(
        &self,
        container: &Container,
        raise: Change,
        limit: Duration,
    ) -> Result<bool, Refusal> {
        let Change { from, to } = raise;
        let taken_back = async {
            let target = Target::of(container)?;
            let pods = self.pods(target);
            for _ in 0..ATTEMPTS {
                let pod = pods.get(target.pod).await.map_err(refusal)?;
                if !target.is_put_off(&pod, raise) {
                    return Ok(false);
                }
                let back = Change { from: to, to: from };
                let patch = target.patch(&pod, self.node.as_deref(), back, Some(to), procfs::page_size())?;
                let patched = pods.patch_resize(target.pod, &params(), &Patch::Strategic(patch)).await;
                match patched.map_err(refusal) {
                    Err(Refusal::Resize(ResizeRefusal::Conflict)) => {}
                    answer => return answer.map(|_| true),
                }
            }
            Err(ResizeRefusal::Conflict.into())
        };
        let answer = tokio::time::timeout(limit, taken_back).await;
        answer.unwrap_or(Err(ResizeRefusal::NoAnswer.into()))
    }

    /// Waits until the kubelet refuses a resize that the API server has accepted, or the pod is going; for ever, if neither
    /// happens.
    pub async fn refused(&self, container: &Container) -> Refusal {
        let target = match Target::of(container) {
            Ok(target) => target,
            Err(refusal) => return refusal.into(),
        };
        let pods = self.pods(target);
        loop {
            tokio::time::sleep(LOOK).await;
            match pods.get(target.pod).await {
                Ok(pod) => {
                    if let Some(refusal) = target.refused(&pod) {
                        return refusal;
                    }
                }
                Err(error) => {
                    let refusal = refusal(error);
                    if refusal == Refusal::Gone {
                        return refusal;
                    }
                    // The kubelet may carry it out meanwhile: the daemon's verdict decides.
                    tracing::debug!(%refusal, "cannot look at a resize");
                }
            }
        }
    }

    /// Waits until it is known whether a change that has no answer was accepted. While the API server is away, that is for ever.
    ///
    /// The pod is read until it has the requested limit, is gone, or the request cannot arrive any more: the pod has another
    /// version, or two minutes have passed.
    pub async fn is_accepted(&self, container: &Container, change: Change) -> bool {
        // Without these names nothing was requested.
        let Ok(target) = Target::of(container) else { return false };
        let pods = self.pods(target);
        let began = Instant::now();
        let mut pause = LOOK;
        let mut version = None;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            let read = tokio::time::timeout(CONNECT_LIMIT, pods.get(target.pod)).await;
            let pod = match read.map(|read| read.map_err(refusal)) {
                Ok(Ok(pod)) => pod,
                Ok(Err(Refusal::Gone)) => return false,
                Ok(Err(_)) | Err(_) => continue,
            };
            match target.is_accepted(&pod, change) {
                Some(false) => {}
                accepted => return accepted.unwrap_or(false),
            }
            let of_now = pod.metadata.resource_version;
            let is_later = *version.get_or_insert_with(|| of_now.clone()) != of_now;
            if is_later || began.elapsed() >= LATE {
                return false;
            }
        }
    }

    fn pods(&self, target: Target<'_>) -> Api<Pod> {
        Api::namespaced(self.client.clone(), target.namespace)
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// What an error of the API means for a raise.
fn refusal(error: Error) -> Refusal {
    let refusal = match error {
        Error::Api(status) => match status.code {
            404 => return Refusal::Gone,
            409 => ResizeRefusal::Conflict,
            400 | 422 => ResizeRefusal::Invalid(text(&status.message)),
            401 | 403 => ResizeRefusal::Forbidden(text(&status.message)),
            _ => ResizeRefusal::Unavailable(text(&status.message)),
        },
        other => ResizeRefusal::Unavailable(text(&format!("{:#}", anyhow::Error::from(other)))),
    };
    refusal.into()
}

#[cfg(test)]
mod tests;
