//! The API server: one `create` after the other.
//!
//! One that the API server has not answered for, or is too busy for, is sent again. So is one that it denies, for a while: an API server
//! that was just started does not know its roles and accounts yet. Owns the form of a Kubernetes Event. Its name follows from the event's
//! place in the journal, so that one that is made again, by an exporter that was restarted, is refused as existing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff;
use kube::api::{Api, PostParams};
use kwitness_api::Timestamp;
use kwitness_api::text::{escape, without_excerpt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::is_too_old;
use super::limiter::Post;
use super::pending::Pending;
use crate::counters::{Counters, Shared};
use crate::retry;

/// The longest that one may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long denials are not believed.
const DENIED_FOR: Duration = Duration::from_secs(120);
/// Namespaces with a denial that are remembered. With one more, all are forgotten, and each may cost that time again.
const DENIED_MAX: usize = 64;
/// The longest pause that an API server may ask for, in seconds.
const ASKED_MAX: u32 = 60;
/// The longest name of an object, in bytes.
const NAME_BYTES: usize = 253;
/// The most bytes that the API server accepts as the reporting instance.
const INSTANCE_BYTES: usize = 128;
/// The most characters of an error that are logged.
const ERROR_MAX: usize = 256;

/// A client of the API server that the pod's service account or the kubeconfig names.
///
/// # Errors
/// There is neither, or it cannot be used.
pub async fn client() -> anyhow::Result<kube::Client> {
    let config = kube::Config::infer().await;
    let mut config = config.map_err(|error| {
        let error = without_excerpt(&error);
        anyhow!("find the API server: no pod's service account, and no kubeconfig: {error}")
    })?;
    // Each attempt is made here, with its pause and its count, and a busy API server is not asked more often.
    config.default_retry = false;
    kube::Client::try_from(config).context("use what is known of the API server")
}

/// Makes events until there will be no more.
pub async fn post_all(
    client: kube::Client,
    node: String,
    mut posts: mpsc::Receiver<Post>,
    pending: Pending,
    shared: Arc<Shared>,
) {
    let mut server = ServerHealth::default();
    while let Some(post) = posts.recv().await {
        let _answered = pending.answer();
        post_one(&client, post, &node, &shared.counters, &mut server).await;
    }
}

/// Makes one, again and again as long as another answer may come and it is of use to anyone.
async fn post_one(
    client: &kube::Client,
    post: Post,
    node: &str,
    counters: &Counters,
    server: &mut ServerHealth,
) {
    let api = Api::<Event>::namespaced(client.clone(), &post.notice.namespace);
    let (namespace, pod) = (post.notice.namespace.clone(), post.notice.pod.clone());
    let happened = post.notice.time;
    let event = event(post, node);
    let mut failures: u32 = 0;
    while !is_too_old(happened) {
        let (error, asked, is_final) = match create(&api, &event).await {
            Answer::Created => {
                counters.kubernetes_created.count();
                return server.works(&namespace);
            }
            Answer::Existing => {
                counters.kubernetes_existing.count();
                return server.works(&namespace);
            }
            Answer::Gone => return counters.kubernetes_skipped.count(),
            Answer::Denied(error) => (error, Duration::ZERO, server.is_denied(&namespace, Instant::now())),
            Answer::Refused(error) => (error, Duration::ZERO, true),
            Answer::Failed(error, asked) => (error, asked, false),
        };
        server.warn(&error, &namespace, &pod);
        if is_final {
            return counters.kubernetes_refused.count();
        }
        counters.kubernetes_failed.count();
        failures = failures.saturating_add(1);
        let random = getrandom::u32().unwrap_or(u32::MAX);
        tokio::time::sleep(retry::pause(failures, Duration::ZERO, random).max(asked)).await;
    }
    counters.kubernetes_skipped.count();
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Created,
    /// An earlier exporter made it.
    Existing,
    /// Its namespace is gone or on its way, and the pod with it.
    Gone,
    /// The account may not, or is not known.
    Denied(String),
    /// It is nothing that the API server will ever take.
    Refused(String),
    /// None came, or one for now: not again before that time has passed.
    Failed(String, Duration),
}

async fn create(api: &Api<Event>, event: &Event) -> Answer {
    let parameters = PostParams::default();
    match tokio::time::timeout(ANSWER_LIMIT, api.create(&parameters, event)).await {
        Ok(created) => judge(created),
        Err(_) => Answer::Failed(format!("no answer within {ANSWER_LIMIT:?}"), Duration::ZERO),
    }
}

fn judge(created: Result<Event, kube::Error>) -> Answer {
    let status = match created {
        Ok(_) => return Answer::Created,
        Err(kube::Error::Api(status)) => status,
        Err(kube::Error::Service(cause)) => {
            return Answer::Failed(format!("{:#}", anyhow::Error::from_boxed(cause)), Duration::ZERO);
        }
        Err(error) => return Answer::Failed(error.to_string(), Duration::ZERO),
    };
    let error = format!("{} {}", status.code, status.message);
    let details = status.details.as_ref();
    let mut causes = details.into_iter().flat_map(|details| &details.causes);
    match status.code {
        // Not of the Event: of its namespace's ResourceQuota, which another request has changed meanwhile.
        409 if status.reason == "Conflict" => Answer::Failed(error, Duration::ZERO),
        409 => Answer::Existing,
        404 if details.is_some_and(|details| details.kind == "namespaces") => Answer::Gone,
        403 if causes.any(|cause| cause.reason == "NamespaceTerminating") => Answer::Gone,
        401 | 403 => Answer::Denied(error),
        429 | 500.. => {
            // Where the API server limits the number of requests, it asks for a second or more in a header.
            let asked = details.map_or(0, |details| details.retry_after_seconds);
            let asked = asked.max(u32::from(status.code == 429)).min(ASKED_MAX);
            Answer::Failed(error, Duration::from_secs(asked.into()))
        }
        _ => Answer::Refused(error),
    }
}

/// How it stands with the API server.
#[derive(Default)]
struct ServerHealth {
    /// What was logged, which is once.
    error: String,
    /// Since when it denies, and has taken nothing.
    denied: Option<Instant>,
    /// The same of each namespace: roles, quotas and policies may be of one alone.
    denied_in: HashMap<String, Instant>,
}

impl ServerHealth {
    fn works(&mut self, namespace: &str) {
        if !std::mem::take(&mut self.error).is_empty() {
            tracing::info!("the API server takes Kubernetes Events again");
        }
        self.denied = None;
        self.denied_in.remove(namespace);
    }

    /// It denies; whether that is to be believed.
    fn is_denied(&mut self, namespace: &str, now: Instant) -> bool {
        if self.denied_in.len() >= DENIED_MAX && !self.denied_in.contains_key(namespace) {
            self.denied_in.clear();
        }
        let anywhere = *self.denied.get_or_insert(now);
        let here = *self.denied_in.entry(namespace.to_owned()).or_insert(now);
        now.saturating_duration_since(anywhere.min(here)) >= DENIED_FOR
    }

    fn warn(&mut self, error: &str, namespace: &str, pod: &str) {
        let error: String = escape(error).chars().take(ERROR_MAX).collect();
        if error != self.error {
            tracing::warn!(error, namespace, pod, "the API server did not take a Kubernetes Event");
            self.error = error;
        }
    }
}

fn event(Post { notice, series }: Post, node: &str) -> Event {
    let time = micro_time(notice.time);
    let container = notice.container.map(|name| format!("spec.containers{{{name}}}"));
    let suffix = if series.is_some() { "-series" } else { "" };
    let name = name(&notice.pod, &notice.position.epoch, notice.position.seq, suffix);
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(notice.namespace.clone()),
            ..Default::default()
        },
        event_time: Some(time.clone()),
        series: series.map(|count| EventSeries {
            count: i32::try_from(count).unwrap_or(i32::MAX),
            last_observed_time: time,
        }),
        type_: Some(if notice.is_warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(notice.reason.to_owned()),
        action: Some(notice.action.to_owned()),
        note: Some(notice.note),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(notice.namespace),
            name: Some(notice.pod),
            uid: Some(notice.uid),
            field_path: container,
            ..Default::default()
        }),
        reporting_controller: Some("kwitness".to_owned()),
        reporting_instance: Some(node[..node.floor_char_boundary(INSTANCE_BYTES)].to_owned()),
        ..Default::default()
    }
}

/// As client-go's, the pod's name and something unique.
fn name(pod: &str, epoch: &str, seq: u64, suffix: &str) -> String {
    let epoch: String = epoch.chars().filter(char::is_ascii_alphanumeric).collect();
    let unique = format!(".{}-{seq:x}{suffix}", epoch.to_ascii_lowercase());
    let pod = &pod[..pod.floor_char_boundary(NAME_BYTES.saturating_sub(unique.len()))];
    format!("{}{unique}", pod.trim_end_matches(['.', '-']))
}

fn micro_time(time: Timestamp) -> MicroTime {
    MicroTime(jiff::Timestamp::new(time.seconds, time.nanos).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use crate::kubernetes::notices::Notice;
    use crate::testing::position;

    fn notice() -> Notice {
        Notice {
            is_warning: true,
            reason: "OOMKilled",
            action: "OOMKill",
            namespace: "prod".to_owned(),
            pod: "web-0".to_owned(),
            uid: "u".to_owned(),
            container: Some("app".to_owned()),
            time: Timestamp { seconds: 1, nanos: 2000 },
            note: "by the pod limit".to_owned(),
            position: position(255),
            since: position(255),
        }
    }

    #[test]
    fn an_event_has_all_that_the_api_server_requires() {
        let made = event(Post { notice: notice(), series: None }, &"n".repeat(200));
        let json = serde_json::to_value(&made).unwrap();
        assert_eq!(json["metadata"]["name"], "web-0.e-ff");
        assert_eq!(json["eventTime"], "1970-01-01T00:00:01.000002Z");
        assert_eq!(json["regarding"]["fieldPath"], "spec.containers{app}");
        assert_eq!(json["reportingInstance"].as_str().unwrap().len(), INSTANCE_BYTES);
        for field in ["action", "reason", "note", "type", "reportingController"] {
            assert!(json[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {json}");
        }
        assert_eq!(json["series"], serde_json::Value::Null);
        let series = serde_json::to_value(event(Post { notice: notice(), series: Some(7) }, "n")).unwrap();
        assert_eq!(
            (&series["series"]["count"], &series["metadata"]["name"]),
            (&7.into(), &"web-0.e-ff-series".into())
        );
    }

    fn status(code: u16, details: serde_json::Value) -> kube::core::Status {
        let status = serde_json::json!({ "code": code, "message": "m", "details": details });
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn answers_are_judged_by_what_they_say_of_the_event() {
        let judged = |code, details| judge(Err(kube::Error::Api(status(code, details).boxed())));
        let none = serde_json::Value::Null;
        let failed = |code: u16, seconds| Answer::Failed(format!("{code} m"), Duration::from_secs(seconds));
        assert_eq!(judge(Ok(Event::default())), Answer::Created);
        assert_eq!(judged(409, none.clone()), Answer::Existing);
        let conflict = kube::core::Status { reason: "Conflict".to_owned(), ..status(409, none.clone()) };
        assert_eq!(judge(Err(kube::Error::Api(conflict.boxed()))), failed(409, 0));
        // As the API server's admission plugin NamespaceLifecycle says it.
        let terminating = serde_json::json!({ "kind": "events", "causes": [
            { "reason": "NamespaceTerminating", "message": "namespace prod is being terminated", "field": "metadata.namespace" },
        ] });
        assert_eq!(judged(403, terminating), Answer::Gone);
        assert_eq!(judged(404, serde_json::json!({ "name": "prod", "kind": "namespaces" })), Answer::Gone);
        assert_eq!(
            judged(404, none.clone()),
            Answer::Refused("404 m".to_owned()),
            "it serves no such events"
        );
        for code in [401, 403] {
            assert_eq!(judged(code, none.clone()), Answer::Denied(format!("{code} m")));
        }
        for code in [400, 413, 422] {
            assert_eq!(judged(code, none.clone()), Answer::Refused(format!("{code} m")));
        }
        assert_eq!(judged(503, none.clone()), failed(503, 0));
        assert_eq!(judged(429, none), failed(429, 1));
        let asked = |seconds: u32| serde_json::json!({ "retryAfterSeconds": seconds });
        assert_eq!(judged(429, asked(7)), failed(429, 7));
        assert_eq!(judged(500, asked(u32::MAX)), failed(500, u64::from(ASKED_MAX)));
        let cause = std::io::Error::other("connection reset");
        let answer = judge(Err(kube::Error::Service(cause.into())));
        assert_eq!(answer, Answer::Failed("connection reset".to_owned(), Duration::ZERO));
    }

    #[test]
    fn denials_are_believed_after_a_while() {
        let (mut server, start) = (ServerHealth::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let limit = DENIED_FOR.as_secs();
        assert!(!server.is_denied("a", at(0)));
        assert!(!server.is_denied("b", at(limit - 1)));
        assert!(server.is_denied("b", at(limit)), "it has denied everything since");
        server.works("b");
        assert!(server.is_denied("a", at(limit)), "and everything here");
        assert!(!server.is_denied("b", at(limit)));
        for namespace in 0..DENIED_MAX {
            server.works("b");
            assert!(!server.is_denied(&namespace.to_string(), at(limit)));
        }
        assert!(server.denied_in.len() <= DENIED_MAX);
    }

    #[tokio::test]
    async fn what_the_api_server_has_not_judged_is_sent_again() {
        let answers = [Some(503), None, Some(201), Some(403), Some(409), Some(422)];
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let scripted = Arc::clone(&answers);
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            let code = scripted.lock().unwrap().pop_front().unwrap();
            async move {
                let Some(code) = code else { return Err(std::io::Error::other("connection reset")) };
                let body = match code {
                    201 => serde_json::to_vec(&Event::default()),
                    code => serde_json::to_vec(&status(code, serde_json::Value::Null)),
                };
                let body = kube::client::Body::from(body.unwrap());
                Ok(http::Response::builder().status(code).body(body).unwrap())
            }
        });
        let (posts, receiver) = mpsc::channel(3);
        let (pending, shared) = (Pending::default(), Arc::<Shared>::default());
        let now = i64::try_from(crate::exporter::now()).unwrap();
        for _ in 0..3 {
            let notice = Notice { time: Timestamp::from_unix_nanos(now), ..notice() };
            pending.push(notice.since.clone());
            posts.try_send(Post { notice, series: None }).unwrap();
        }
        let old = Notice { time: Timestamp::from_unix_nanos(now - 7200 * 1_000_000_000), ..notice() };
        drop(posts);
        let client = kube::Client::new(service, "default");
        post_all(client.clone(), "n".to_owned(), receiver, pending.clone(), Arc::clone(&shared)).await;
        let old = Post { notice: old, series: None };
        post_one(&client, old, "n", &shared.counters, &mut ServerHealth::default()).await;
        let Shared { counters, .. } = &*shared;
        let counted = [
            &counters.kubernetes_failed,
            &counters.kubernetes_created,
            &counters.kubernetes_refused,
            &counters.kubernetes_existing,
            &counters.kubernetes_skipped,
        ];
        assert_eq!(counted.map(|counter| counter.get()), [3, 1, 1, 1, 1]);
        assert_eq!((answers.lock().unwrap().len(), pending.all()), (0, Vec::new()));
    }

    #[test]
    fn a_name_is_valid_whatever_it_is_made_of() {
        assert_eq!(name("web-0", "AB-12_é", 16, ""), "web-0.ab12-10");
        let long = name(&"a.".repeat(200), "epoch", u64::MAX, "-series");
        assert!(long.len() <= NAME_BYTES && !long.contains(".."), "{long}");
    }
}
