//! The API server: one `create` after the other.
//!
//! One that the API server has not answered for, or is too busy for, is sent again. Owns the form of a Kubernetes Event. Its name follows
//! from the event's place in the journal, so that one that is made again, by an exporter that was restarted, is refused as existing.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff;
use kube::api::{Api, PostParams};
use kwitness_api::Timestamp;
use kwitness_api::text::escape;
use tokio::sync::mpsc;

use super::is_too_old;
use super::limiter::Post;
use super::pending::Pending;
use crate::counters::{Counters, Shared};
use crate::retry;

/// The longest that one may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The longest name of an object, in bytes.
const NAME_BYTES: usize = 253;
/// The most bytes that the API server accepts as the reporting instance.
const INSTANCE_BYTES: usize = 128;
/// The most characters of an error that are logged.
const ERROR_MAX: usize = 256;

/// Makes events until there will be no more.
pub async fn post_all(
    client: kube::Client,
    node: String,
    mut posts: mpsc::Receiver<Post>,
    pending: Pending,
    shared: Arc<Shared>,
) {
    let mut log = Log::default();
    while let Some(post) = posts.recv().await {
        let _answered = pending.answer();
        post_one(&client, post, &node, &shared.counters, &mut log).await;
    }
}

/// Makes one, again and again as long as the API server does not answer for it and it is of use to anyone.
async fn post_one(client: &kube::Client, post: Post, node: &str, counters: &Counters, log: &mut Log) {
    let api = Api::<Event>::namespaced(client.clone(), &post.notice.namespace);
    let (namespace, pod) = (post.notice.namespace.clone(), post.notice.pod.clone());
    let happened = post.notice.time;
    let event = event(post, node);
    let mut failures: u32 = 0;
    while !is_too_old(happened) {
        let (error, is_final) = match create(&api, &event).await {
            Ok(()) => {
                counters.kubernetes_created.count();
                return log.works();
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                return counters.kubernetes_existing.count();
            }
            Err(kube::Error::Api(status)) => {
                let is_busy = status.code == 429 || status.code >= 500;
                (format!("{} {}", status.code, status.message), !is_busy)
            }
            Err(error) => (error.to_string(), false),
        };
        log.warn(&error, &namespace, &pod);
        if is_final {
            return counters.kubernetes_refused.count();
        }
        counters.kubernetes_failed.count();
        failures = failures.saturating_add(1);
        let random = getrandom::u32().unwrap_or(u32::MAX);
        tokio::time::sleep(retry::pause(failures, Duration::ZERO, random)).await;
    }
    counters.kubernetes_skipped.count();
}

async fn create(api: &Api<Event>, event: &Event) -> Result<(), kube::Error> {
    let parameters = PostParams::default();
    let created = tokio::time::timeout(ANSWER_LIMIT, api.create(&parameters, event)).await;
    created.unwrap_or_else(|late| Err(kube::Error::Service(late.into()))).map(drop)
}

/// Logs the same error once.
#[derive(Default)]
struct Log(String);

impl Log {
    fn works(&mut self) {
        self.0.clear();
    }

    fn warn(&mut self, error: &str, namespace: &str, pod: &str) {
        let error: String = escape(error).chars().take(ERROR_MAX).collect();
        if error != self.0 {
            tracing::warn!(error, namespace, pod, "the API server did not take a Kubernetes Event");
            self.0 = error;
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

    #[tokio::test]
    async fn what_the_api_server_has_not_judged_is_sent_again() {
        let answers =
            Arc::new(Mutex::new(VecDeque::from([Some(503), None, Some(201), Some(403), Some(409)])));
        let scripted = Arc::clone(&answers);
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            let status = scripted.lock().unwrap().pop_front().unwrap();
            async move {
                let Some(status) = status else { return Err(std::io::Error::other("connection reset")) };
                let body = match status {
                    201 => serde_json::to_vec(&Event::default()),
                    code => serde_json::to_vec(&kube::core::Status { code, ..Default::default() }),
                };
                let body = kube::client::Body::from(body.unwrap());
                Ok(http::Response::builder().status(status).body(body).unwrap())
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
        post_one(&client, old, "n", &shared.counters, &mut Log::default()).await;
        let Shared { counters, .. } = &*shared;
        let counted = [
            &counters.kubernetes_failed,
            &counters.kubernetes_created,
            &counters.kubernetes_refused,
            &counters.kubernetes_existing,
            &counters.kubernetes_skipped,
        ];
        assert_eq!(counted.map(|counter| counter.get()), [2, 1, 1, 1, 1]);
        assert_eq!((answers.lock().unwrap().len(), pending.all()), (0, Vec::new()));
    }

    #[test]
    fn a_name_is_valid_whatever_it_is_made_of() {
        assert_eq!(name("web-0", "AB-12_é", 16, ""), "web-0.ab12-10");
        let long = name(&"a.".repeat(200), "epoch", u64::MAX, "-series");
        assert!(long.len() <= NAME_BYTES && !long.contains(".."), "{long}");
    }
}
