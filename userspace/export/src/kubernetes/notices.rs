//! Which events of the daemon are worth a Kubernetes Event, and what it says.
//!
//! | Daemon's event | Reason | When |
//! |---|---|---|
//! | `oomKill` | `OOMKilled` | at once |
//! | `verdict`: reverted | `LimitReverted` | at once |
//! | `verdict`: any other that is not in force | `LimitNotInForce` | after 30 s without one that is |
//! | `guardRaised` | `GuardRaised` | at once |
//! | `guardRefused`: a raise | `GuardRefused` | at once, unless another process has raised the limit meanwhile |
//!
//! Pure: time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kwitness_api::Timestamp;
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{self, GuardAttempt, VerdictKind};
use kwitness_api::text::escape;

/// How long a limit may be out of force before it is reported.
const PATIENCE: Duration = Duration::from_secs(30);
/// Limits that are watched at a time; a node has at most five for each of its containers. One more is lost, and counted.
const WATCHED_MAX: usize = 4096;
/// After so long a limit is watched no more: its pod never got a name, or it has been reported, and nothing said that it is gone.
const WATCHED_FOR: Duration = Duration::from_secs(3600);
/// The guard's word for a limit that another process has raised.
const RAISED_MEANWHILE: &str = "raisedMeanwhile";
/// What the API server accepts as a note.
const NOTE_BYTES: usize = 1024;
/// The longest name of a namespace or a container (RFC 1123's label), and of a pod (its subdomain), in bytes.
const LABEL_BYTES: usize = 63;
const SUBDOMAIN_BYTES: usize = 253;

/// What a Kubernetes Event is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether it needs attention.
    pub is_warning: bool,
    /// Why, in one word.
    pub reason: &'static str,
    /// What was done.
    pub action: &'static str,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// The container's name; none: the pod as a whole.
    pub container: Option<String>,
    /// When it happened.
    pub time: Timestamp,
    /// What happened.
    pub note: String,
    /// The place in the journal.
    pub position: proto::Position,
    /// Where it began: from there on the same is found again.
    pub since: proto::Position,
}

/// What an event is worth.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// No Kubernetes Event follows.
    Nothing,
    /// A Kubernetes Event.
    Notice(Box<Notice>),
    /// One, if the pod's name were known, and one that a pod of Kubernetes can have.
    Unnamed,
    /// Nothing, because too many limits are watched.
    Overflow,
}

/// A limit of a cgroup that is out of force.
#[derive(Debug)]
struct OutOfForce {
    since: Instant,
    first: proto::Position,
    due: Instant,
    /// The UID of the pod, if there is one.
    pod: Option<String>,
    /// None if the pod has had no name so far, and once it has been reported.
    notice: Option<Notice>,
    is_reported: bool,
}

/// Chooses and words what becomes a Kubernetes Event.
#[derive(Debug, Default)]
pub struct Notices {
    /// By cgroup and file.
    out_of_force: HashMap<(u64, String), OutOfForce>,
}

impl Notices {
    /// Looks at an event, of which `sentence` says what happened.
    pub fn observe(
        &mut self,
        event: &proto::Event,
        sentence: fn(&proto::Event) -> String,
        now: Instant,
    ) -> Found {
        match &event.kind {
            Some(Kind::OomKill(_)) => found(notice(event, "OOMKilled", "OOMKill", sentence)),
            Some(Kind::Verdict(verdict)) => self.verdict(event, verdict, sentence, now),
            Some(Kind::GuardRaised(_)) => found(notice(event, "GuardRaised", "Resize", sentence)),
            // Then there was no need of it.
            Some(Kind::GuardRefused(refused)) if refused.reason == RAISED_MEANWHILE => Found::Nothing,
            // The container keeps its memory, and the guard tries again after each quiet time.
            Some(Kind::GuardRefused(refused)) if refused.attempt() == GuardAttempt::Return => Found::Nothing,
            Some(Kind::GuardRefused(_)) => found(notice(event, "GuardRefused", "Resize", sentence)),
            Some(Kind::Deleted(_)) => {
                if let Some(container) = &event.container {
                    self.gone(container);
                }
                Found::Nothing
            }
            _ => Found::Nothing,
        }
    }

    /// Events were missed, and any of them may have said that a limit is in force, or its container gone: nothing is known of those that
    /// are out of force. Returns how many of these had not been reported.
    pub fn forget(&mut self) -> u64 {
        let unreported = self.unreported().count() as u64;
        self.out_of_force.clear();
        unreported
    }

    /// Events do not come at present: no limit is due before they have come again for long enough.
    pub fn postpone(&mut self, now: Instant) {
        for limit in self.out_of_force.values_mut() {
            limit.due = limit.due.max(now + PATIENCE);
        }
    }

    /// Where those begin that may become due.
    pub fn waiting(&self) -> impl Iterator<Item = &proto::Position> {
        self.unreported().map(|limit| &limit.first)
    }

    /// Ends the watch on limits that have been out of force for very long; returns those of them whose pod never got a name.
    pub fn age_out(&mut self, now: Instant) -> u64 {
        let is_old = |limit: &OutOfForce| now.saturating_duration_since(limit.since) >= WATCHED_FOR;
        let unnamed = self.unreported().filter(|limit| is_old(limit)).count() as u64;
        self.out_of_force.retain(|_, limit| !is_old(limit));
        unnamed
    }

    fn unreported(&self) -> impl Iterator<Item = &OutOfForce> {
        self.out_of_force.values().filter(|limit| !limit.is_reported)
    }

    /// Limits that have been out of force for long enough; each once.
    pub fn due(&mut self, now: Instant) -> Vec<Notice> {
        let due = self.out_of_force.values_mut().filter(|limit| limit.due <= now && !limit.is_reported);
        let reported = due.filter_map(|limit| {
            let notice = limit.notice.take()?;
            limit.is_reported = true;
            Some(Notice { since: limit.first.clone(), ..notice })
        });
        let mut notices: Vec<_> = reported.collect();
        notices.sort_by_key(|notice| notice.position.seq);
        notices
    }

    /// The pod's own limits end with its sandbox.
    fn gone(&mut self, container: &proto::Container) {
        let is_sandbox = container.r#type() == proto::ContainerType::Sandbox;
        let pod = container.pod.as_ref().filter(|_| is_sandbox).map(|pod| &pod.uid);
        self.out_of_force.retain(|(cgroup, _), limit| {
            *cgroup != container.cgroup_id && (pod.is_none() || limit.pod.as_ref() != pod)
        });
    }

    fn verdict(
        &mut self,
        event: &proto::Event,
        verdict: &proto::Verdict,
        sentence: fn(&proto::Event) -> String,
        now: Instant,
    ) -> Found {
        let key = (verdict.cgroup.as_ref().map_or(0, |cgroup| cgroup.id), verdict.file.clone());
        match verdict.verdict() {
            // Its OOM kill is an event of its own, and what is unknown is no accusation.
            VerdictKind::InForce | VerdictKind::Killed | VerdictKind::Unknown | VerdictKind::Unspecified => {
                self.out_of_force.remove(&key);
                Found::Nothing
            }
            VerdictKind::Reverted => {
                self.out_of_force.remove(&key);
                found(notice(event, "LimitReverted", "Resize", sentence))
            }
            VerdictKind::Pending
            | VerdictKind::Diverged
            | VerdictKind::Rejected
            | VerdictKind::Shadowed
            | VerdictKind::OverLimit => {
                let pod = crate::record::pod(event).map(|pod| pod.uid.clone());
                let notice = notice(event, "LimitNotInForce", "Resize", sentence);
                if let Some(known) = self.out_of_force.get_mut(&key) {
                    // Another reason, but out of force since then.
                    if !known.is_reported && notice.is_some() {
                        known.notice = notice;
                    }
                } else if self.out_of_force.len() < WATCHED_MAX {
                    let (since, due) = (now, now + PATIENCE);
                    let first = event.position.clone().unwrap_or_default();
                    let limit = OutOfForce { since, first, due, pod, notice, is_reported: false };
                    self.out_of_force.insert(key, limit);
                } else {
                    return Found::Overflow;
                }
                Found::Nothing
            }
        }
    }
}

fn found(notice: Option<Notice>) -> Found {
    notice.map_or(Found::Unnamed, |notice| Found::Notice(Box::new(notice)))
}

/// None if nothing names the pod. Whoever uses the container runtime may name one as he likes, also by what is no name to the API
/// server, or another path of it.
fn notice(
    event: &proto::Event,
    reason: &'static str,
    action: &'static str,
    sentence: fn(&proto::Event) -> String,
) -> Option<Notice> {
    let container = event.container.as_ref();
    let pod = crate::record::pod(event)?;
    let container = container.and_then(|container| container.name.clone()).filter(|name| is_label(name));
    let file = match &event.kind {
        Some(Kind::Verdict(verdict)) => format!("{} ", verdict.file),
        _ => String::new(),
    };
    let note = format!("{file}{}", sentence(event));
    let note = escape(&note);
    let position = event.position.clone()?;
    Some(Notice {
        is_warning: !matches!(event.kind, Some(Kind::GuardRaised(_))),
        reason,
        action,
        namespace: pod.namespace.clone().filter(|name| is_label(name))?,
        pod: pod.name.clone().filter(|name| is_subdomain(name))?,
        uid: pod.uid.clone(),
        container,
        time: event.time.unwrap_or_default(),
        note: note[..note.floor_char_boundary(NOTE_BYTES)].to_owned(),
        since: position.clone(),
        position,
    })
}

fn is_label(name: &str) -> bool {
    name.len() <= LABEL_BYTES && is_part(name)
}

fn is_subdomain(name: &str) -> bool {
    name.len() <= SUBDOMAIN_BYTES && name.split('.').all(is_part)
}

/// Lower-case letters and digits, and hyphens between them.
fn is_part(name: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [name.as_bytes().first(), name.as_bytes().last()];
    ends.into_iter().all(|end| end.is_some_and(is_alphanumeric))
        && name.bytes().all(|byte| byte == b'-' || is_alphanumeric(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{named, oom_kill, position, unnamed, verdict};

    fn sentence(_: &proto::Event) -> String {
        format!("a\x1b[31m sentence {}", "é".repeat(NOTE_BYTES))
    }

    /// None if the pod has no name.
    fn observe_any(event: &proto::Event) -> Option<Notice> {
        match Notices::default().observe(event, sentence, Instant::now()) {
            Found::Unnamed => None,
            Found::Notice(notice) => Some(*notice),
            other => panic!("{event:?}: {other:?}"),
        }
    }

    fn observe(notices: &mut Notices, event: &proto::Event, now: Instant) -> Option<Notice> {
        match notices.observe(event, sentence, now) {
            Found::Nothing => None,
            Found::Notice(notice) => Some(*notice),
            other => panic!("{event:?}: {other:?}"),
        }
    }

    #[test]
    fn an_oom_kill_is_one_at_once() {
        let event = named(7, oom_kill());
        let notice = observe(&mut Notices::default(), &event, Instant::now()).unwrap();
        assert_eq!((notice.reason, notice.action), ("OOMKilled", "OOMKill"));
        let names = (notice.namespace.as_str(), notice.pod.as_str(), notice.container.as_deref());
        assert_eq!(names, ("prod", "web-0", Some("app")));
        assert_eq!(notice.position, position(7));
        assert!(notice.note.starts_with("a\\x1b[31m sentence é"), "{}", notice.note);
        assert!((NOTE_BYTES - 1..=NOTE_BYTES).contains(&notice.note.len()), "{}", notice.note.len());
        let found = Notices::default().observe(&unnamed(7, oom_kill()), sentence, Instant::now());
        assert_eq!(found, Found::Unnamed);
    }

    #[test]
    fn a_pod_whose_name_the_api_server_cannot_have_has_none() {
        let found = |namespace: &str, name: &str, container: &str| {
            let mut event = named(7, oom_kill());
            let of = event.container.as_mut().unwrap();
            of.name = Some(container.to_owned());
            let pod = of.pod.as_mut().unwrap();
            (pod.namespace, pod.name) = (Some(namespace.to_owned()), Some(name.to_owned()));
            let notice = observe_any(&event);
            notice.map(|notice| (notice.namespace, notice.pod, notice.container))
        };
        let named = |container: Option<&str>| {
            Some(("prod".to_owned(), "web-0.a".to_owned(), container.map(str::to_owned)))
        };
        assert_eq!(found("prod", "web-0.a", "app"), named(Some("app")));
        assert_eq!(found("prod", "web-0.a", "App\x1b[31m"), named(None));
        for namespace in ["../kube-system", "a/b", "a?b", "", "a.b", "-a", &"a".repeat(64)] {
            assert_eq!(found(namespace, "web-0.a", "app"), None, "{namespace}");
        }
        for name in ["Web", "a..b", ".a", "a-", "a_b", "", &"a".repeat(254)] {
            assert_eq!(found("prod", name, "app"), None, "{name}");
        }
    }

    #[test]
    fn a_limit_is_one_once_it_was_out_of_force_for_30_seconds() {
        let (mut notices, start) = (Notices::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(observe(&mut notices, &named(1, verdict(VerdictKind::Pending)), at(0)), None);
        assert_eq!(observe(&mut notices, &named(2, verdict(VerdictKind::Diverged)), at(20)), None);
        assert_eq!(notices.due(at(29)), []);
        let due = notices.due(at(30));
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].reason, due[0].position.seq), ("LimitNotInForce", 2), "with the last reason");
        assert_eq!(due[0].since, position(1), "and since the first");
        assert!(due[0].note.starts_with("memory.max "), "{}", due[0].note);
        assert_eq!(observe(&mut notices, &named(3, verdict(VerdictKind::Shadowed)), at(40)), None);
        assert_eq!(notices.due(at(100)), [], "once");

        observe(&mut notices, &named(4, verdict(VerdictKind::InForce)), at(101));
        observe(&mut notices, &named(5, verdict(VerdictKind::Pending)), at(102));
        observe(&mut notices, &named(6, verdict(VerdictKind::InForce)), at(110));
        assert_eq!(notices.due(at(200)), [], "it came into force in time");

        observe(&mut notices, &named(7, verdict(VerdictKind::Rejected)), at(200));
        observe(&mut notices, &named(8, Kind::Deleted(proto::Deleted { actor: None })), at(201));
        assert_eq!(notices.due(at(300)), [], "its container is gone");

        let mut of_pod = named(9, verdict(VerdictKind::Rejected));
        of_pod.container = None;
        observe(&mut notices, &of_pod, at(300));
        let mut gone = named(10, Kind::Deleted(proto::Deleted { actor: None }));
        gone.container.as_mut().unwrap().cgroup_id = 1;
        gone.container.as_mut().unwrap().r#type = proto::ContainerType::Sandbox.into();
        observe(&mut notices, &gone, at(301));
        assert_eq!(notices.due(at(400)), [], "its pod is gone");
    }

    #[test]
    fn a_reverted_limit_is_one_at_once() {
        let mut notices = Notices::default();
        let now = Instant::now();
        observe(&mut notices, &named(1, verdict(VerdictKind::Pending)), now);
        let notice = observe(&mut notices, &named(2, verdict(VerdictKind::Reverted)), now).unwrap();
        assert_eq!(notice.reason, "LimitReverted");
        assert_eq!(notices.due(now + 2 * PATIENCE), [], "not both");
    }

    #[test]
    fn a_raise_and_a_refusal_of_the_guard_are_one_at_once() {
        let reason = |kind| {
            let notice = observe(&mut Notices::default(), &named(7, kind), Instant::now());
            notice.map(|notice| (notice.reason, notice.is_warning))
        };
        let raised = Kind::GuardRaised(proto::GuardRaised::default());
        assert_eq!(reason(raised), Some(("GuardRaised", false)));
        let refused = |attempt: GuardAttempt, reason: &str| {
            Kind::GuardRefused(Box::new(proto::GuardRefused {
                attempt: attempt.into(),
                reason: reason.to_owned(),
                ..Default::default()
            }))
        };
        let raise = GuardAttempt::Raise;
        assert_eq!(reason(refused(raise, "atCeiling")), Some(("GuardRefused", true)));
        assert_eq!(reason(refused(raise, RAISED_MEANWHILE)), None);
        assert_eq!(reason(refused(GuardAttempt::Return, "inUse")), None, "it comes after each quiet time");
    }

    #[test]
    fn other_kinds_are_none_and_too_many_limits_are_not_kept() {
        let mut notices = Notices::default();
        let now = Instant::now();
        for event in crate::testing::every_kind() {
            let is_one = matches!(
                event.kind,
                Some(Kind::OomKill(_) | Kind::Verdict(_) | Kind::GuardRaised(_) | Kind::GuardRefused(_))
            );
            if !is_one {
                assert_eq!(observe(&mut notices, &event, now), None);
            }
        }
        for id in 0..WATCHED_MAX as u64 + 10 {
            let mut event = named(id, verdict(VerdictKind::Diverged));
            if let Some(Kind::Verdict(verdict)) = &mut event.kind {
                verdict.cgroup.as_mut().unwrap().id = id;
            }
            let found = notices.observe(&event, sentence, now);
            let expected = if id < WATCHED_MAX as u64 { Found::Nothing } else { Found::Overflow };
            assert_eq!(found, expected, "limit {id}");
        }
        assert_eq!(notices.due(now + PATIENCE).len(), WATCHED_MAX);
        assert_eq!(notices.age_out(now + WATCHED_FOR - PATIENCE), 0);
        assert_eq!(notices.out_of_force.len(), WATCHED_MAX);
        assert_eq!(notices.age_out(now + WATCHED_FOR), 0, "all were reported");
        assert!(notices.out_of_force.is_empty(), "those whose end was never seen do not stay");
    }

    #[test]
    fn what_is_not_known_is_not_reported() {
        let (mut notices, start) = (Notices::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        observe(&mut notices, &named(3, verdict(VerdictKind::Diverged)), at(0));
        assert_eq!(notices.waiting().collect::<Vec<_>>(), [&position(3)]);
        notices.postpone(at(25));
        assert_eq!(notices.due(at(54)), [], "no event could say that it is in force by now");
        assert_eq!(notices.due(at(55)).len(), 1);
        assert_eq!((notices.waiting().count(), notices.forget()), (0, 0), "it is reported");

        observe(&mut notices, &named(4, verdict(VerdictKind::Diverged)), at(60));
        assert_eq!(notices.forget(), 1, "events were missed");
        assert_eq!(notices.due(at(1000)), []);

        observe(&mut notices, &unnamed(5, verdict(VerdictKind::Diverged)), at(1000));
        assert_eq!(notices.waiting().count(), 1, "a name may still come");
    }
}
