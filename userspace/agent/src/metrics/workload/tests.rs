//! Through the real journal: what the engine writes is what is counted.

use std::collections::BTreeMap;

use kwitness_service::metrics::Format;

use super::*;
use crate::hub::testing::{clock, container, created, facts, hub, stopped, subject, updated};
use crate::hub::{Hub, JournalReader, Writer};
use kwitness_core::model::{
    Basis, Caller, Event, Judged, Judgement, Kind, LevelRole, OomExhausted, OomKilled, ProcKey, Process,
    Reading, Role, RuntimeFacts, Verdict,
};
use kwitness_service::metrics::Exposition;

const ALL: Labels = Labels { namespace: true, pod: true, container: true };

struct Fixture {
    _hub: Arc<Hub>,
    writer: Writer,
    reader: JournalReader,
    workload: Workload,
    now: Instant,
}

impl Fixture {
    fn new(labels: Labels) -> Self {
        let (hub, writer) = hub(1 << 16);
        let reader = hub.reader();
        Self { _hub: hub, writer, reader, workload: Workload::new(labels), now: Instant::now() }
    }

    fn happen(&mut self, events: impl IntoIterator<Item = Event>) {
        self.writer.append(events, clock());
        let Self { reader, workload, now, .. } = self;
        assert_eq!(reader.read(|event| workload.take(event, *now)), 0);
    }

    fn later(&mut self, after: Duration) {
        self.now += after;
        self.workload.forget(self.now);
    }

    /// The samples as a scrape shows them.
    fn scrape(&self) -> BTreeMap<String, f64> {
        let mut exposition = Exposition::default();
        super::super::expose::workload(&mut exposition, &self.workload);
        let text = exposition.text(Format::OpenMetrics);
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }

    fn oom_kills(&self) -> BTreeMap<String, f64> {
        self.scrape().into_iter().filter(|(name, _)| name.starts_with("kwitness_container_oom")).collect()
    }
}

fn named(id: u64, pod: &str) -> Arc<Subject> {
    subject(id, Some(facts("prod", pod, "app")))
}

fn event(of: &Arc<Subject>, kind: Kind) -> Event {
    Event { at: KernelTime(9), basis: Basis::Daemon, subject: Some(Arc::clone(of)), kind }
}

fn deleted(of: &Arc<Subject>) -> Event {
    event(of, Kind::Deleted { actor: None })
}

fn oom_kill(of: &Arc<Subject>, scope: Option<OomExhausted>) -> Event {
    let key = ProcKey { pid: 7, start: KernelTime(1) };
    let process = Process { key, ppid: 1, comm: "stress".into(), role: Role::Main };
    let trigger = Caller::default();
    event(
        of,
        Kind::OomKill(Box::new(OomKilled {
            process,
            choice: None,
            scope,
            usage: None,
            trigger,
            trigger_cgroup: None,
        })),
    )
}

fn verdict(of: &Arc<Subject>, resource: Resource, verdict: Verdict) -> Event {
    let judgement = Judgement {
        resource,
        verdict,
        desired: None,
        disagreeing: Vec::new(),
        tolerance: None,
        in_force: Reading::Absent,
        effective: None,
    };
    event(
        of,
        Kind::Verdict(Box::new(Judged {
            cgroup: of.cgroup_id,
            path: of.cgroup_path.clone(),
            role: LevelRole::Container,
            pod: None,
            desired: Vec::new(),
            attempt: None,
            judgement,
            kubernetes: None,
        })),
    )
}

const WEB: &str = r#"kwitness_container_oom_kills_total{namespace="prod",pod="web",container="app"}"#;

#[test]
fn an_oom_counter_exists_from_the_start_and_outlives_its_container() {
    let mut fixture = Fixture::new(ALL);
    let (unnamed, web) = (subject(1, None), named(1, "web"));
    fixture.happen([created(&unnamed), oom_kill(&unnamed, Some(OomExhausted::Machine))]);
    assert!(fixture.oom_kills().is_empty(), "no id is a label: what has no name waits");
    fixture.happen([updated(&web)]);
    assert_eq!(fixture.oom_kills()[WEB], 1.0);
    fixture.happen([oom_kill(&web, None), deleted(&web)]);
    fixture.later(KEEP - Duration::from_secs(1));
    assert_eq!(fixture.oom_kills()[WEB], 2.0);

    // Its successor goes on with it.
    let next = named(2, "web");
    fixture.happen([created(&next)]);
    fixture.later(KEEP);
    fixture.happen([oom_kill(&next, None), deleted(&next)]);
    assert_eq!(fixture.oom_kills()[WEB], 3.0);
    fixture.later(KEEP);
    assert!(fixture.oom_kills().is_empty());
    let node = fixture.scrape();
    assert_eq!(node[r#"kwitness_oom_kills_total{scope="node"}"#], 1.0);
    assert_eq!(node[r#"kwitness_oom_kills_total{scope="unknown"}"#], 3.0 - 1.0);
    assert_eq!(node[r#"kwitness_oom_kills_total{scope="pod"}"#], 0.0);
}

#[test]
fn a_container_has_at_most_six_series_whatever_its_verdicts() {
    let mut fixture = Fixture::new(ALL);
    let web = named(1, "web");
    fixture.happen([created(&web)]);
    for verdict_now in [Verdict::Diverged, Verdict::InForce] {
        fixture.happen(Resource::ALL.map(|resource| verdict(&web, resource, verdict_now.clone())));
    }
    let of_web: Vec<_> =
        fixture.scrape().into_iter().filter(|(name, _)| name.contains("pod=\"web\"")).collect();
    assert_eq!(of_web.len(), 6, "{of_web:?}");
    let verdicts = of_web.iter().filter(|(name, _)| name.starts_with("kwitness_limit_verdict"));
    assert!(verdicts.clone().all(|(name, value)| name.contains("verdict=\"in_force\"") && *value == 1.0));
    fixture.happen([deleted(&web)]);
    let of_web: Vec<_> =
        fixture.scrape().into_iter().filter(|(name, _)| name.contains("pod=\"web\"")).collect();
    assert_eq!(of_web, [(WEB.to_owned(), 0.0)], "a verdict goes with its container");
}

#[test]
fn without_labels_containers_are_summed() {
    let mut fixture = Fixture::new(Labels { namespace: true, pod: false, container: false });
    let pods = [named(1, "web"), named(2, "db")];
    for pod in &pods {
        fixture.happen([
            created(pod),
            oom_kill(pod, None),
            verdict(pod, Resource::Memory, Verdict::Diverged),
        ]);
    }
    let sums = fixture.scrape();
    assert_eq!(sums[r#"kwitness_container_oom_kills_total{namespace="prod"}"#], 2.0);
    let verdict = r#"kwitness_limit_verdict{namespace="prod",resource="memory",verdict="diverged"}"#;
    assert_eq!(sums[verdict], 2.0);
    fixture.happen([deleted(&pods[0])]);
    assert_eq!(fixture.scrape()[verdict], 1.0);
    assert_eq!(fixture.oom_kills().into_values().sum::<f64>(), 2.0, "a counter never goes back");
}

#[test]
fn those_that_are_gone_give_way_and_what_has_no_room_is_counted() {
    let mut fixture = Fixture::new(ALL);
    let first = named(1, "gone");
    fixture.happen([created(&first), deleted(&first)]);
    let pods: Vec<_> = (2..).map(|id| named(id, &format!("pod-{id}"))).take(KEYS_MAX).collect();
    fixture.happen(pods.iter().map(created));
    assert_eq!((fixture.oom_kills().len(), fixture.workload.omitted), (KEYS_MAX, 0));
    assert!(!fixture.oom_kills().keys().any(|name| name.contains("gone")));
    let extra = named(1 << 20, "extra");
    fixture.happen([created(&extra), updated(&extra), oom_kill(&extra, None)]);
    assert_eq!((fixture.oom_kills().len(), fixture.workload.omitted), (KEYS_MAX, 1));
    assert_eq!(
        fixture.scrape()[r#"kwitness_oom_kills_total{scope="unknown"}"#],
        1.0,
        "the node's sum has it"
    );
}

#[test]
fn states_stops_and_sandboxes() {
    let mut fixture = Fixture::new(ALL);
    let sandbox = RuntimeFacts { container_type: ContainerType::Sandbox, ..facts("prod", "web", "") };
    let (web, sandbox) = (named(1, "web"), subject(2, Some(sandbox)));
    fixture.happen([created(&web), created(&sandbox)]);
    let state =
        |fixture: &Fixture, state| fixture.scrape()[&format!("kwitness_containers{{state=\"{state}\"}}")];
    assert_eq!(state(&fixture, "created"), 1.0);
    fixture.happen([stopped(&web), stopped(&sandbox)]);
    assert_eq!((state(&fixture, "created"), state(&fixture, "stopped")), (0.0, 1.0));
    assert_eq!(fixture.scrape()[r#"kwitness_container_stops_total{reason="Unknown"}"#], 1.0);
    assert_eq!(fixture.scrape()[r#"kwitness_events_total{type="stopped"}"#], 2.0);
    assert_eq!(fixture.oom_kills().len(), 1, "a sandbox has no series");
}

#[test]
fn foreign_names_are_bounded_and_escaped() {
    let mut fixture = Fixture::new(ALL);
    let hostile = facts("prod\n# EOF", &"x".repeat(10_000), "a\"} 1\nevil 1");
    fixture.happen([created(&subject(1, Some(hostile)))]);
    let kills = fixture.oom_kills();
    let (name, _) = kills.first_key_value().unwrap();
    assert!(kills.len() == 1 && name.len() < 400 && name.contains(r#"a\"} 1"#), "{name}");
}

#[test]
fn a_pods_verdicts_go_with_its_last_container() {
    let mut fixture = Fixture::new(ALL);
    let of_pod = |id| {
        let pod = named(1, "web").pod.clone();
        Arc::new(Subject { pod, ..(*named(id, "web")).clone() })
    };
    let (first, second) = (of_pod(1), of_pod(2));
    fixture.happen([created(&first), created(&second)]);
    let last = LastVerdict {
        subject: None,
        pod: first.pod.as_ref().map(|pod| pod.uid.clone()),
        resource: Resource::Cpu,
        verdict: Verdict::InForce,
    };
    let states = |of: &[&Arc<Subject>]| of.iter().map(|subject| running(subject)).collect::<Vec<_>>();
    fixture.workload.resync(&states(&[&first, &second]), std::slice::from_ref(&last), fixture.now);
    assert_eq!(fixture.workload.verdicts().len(), 1);
    fixture.happen([deleted(&first)]);
    assert_eq!(fixture.workload.verdicts().len(), 1, "the pod has another container");
    fixture.happen([deleted(&second)]);
    fixture.happen([created(&first)]);
    assert_eq!(fixture.workload.verdicts().len(), 0, "the pod was gone in between");
    fixture.happen([deleted(&first)]);
    fixture.workload.resync(&[], &[last], fixture.now);
    assert_eq!(fixture.workload.verdicts().len(), 0, "it has no container");
}

/// A container that runs.
fn running(subject: &Arc<Subject>) -> ContainerState {
    container(subject, State::Running)
}

#[test]
fn a_snapshot_stands_in_for_missed_events() {
    let mut fixture = Fixture::new(ALL);
    let (gone, there) = (named(1, "gone"), named(2, "there"));
    fixture.happen([created(&gone), oom_kill(&gone, None)]);
    let state = running(&there);
    let of = |subject: Option<&Arc<Subject>>, resource, verdict| LastVerdict {
        subject: subject.cloned(),
        pod: there.pod.as_ref().map(|pod| pod.uid.clone()),
        resource,
        verdict,
    };
    let last = [
        of(Some(&there), Resource::Memory, Verdict::Diverged),
        of(None, Resource::Cpu, Verdict::InForce),
        of(Some(&gone), Resource::Memory, Verdict::Diverged),
    ];
    fixture.workload.resync(&[state], &last, fixture.now);
    assert_eq!(
        (fixture.workload.in_state(State::Running), fixture.workload.in_state(State::Created)),
        (1, 0)
    );
    assert_eq!(fixture.oom_kills().len(), 2, "the counter of the one that is gone stays for a while");
    let verdicts: Vec<_> =
        fixture.scrape().into_keys().filter(|name| name.starts_with("kwitness_limit_verdict")).collect();
    let of_there =
        |labels: &str| format!("kwitness_limit_verdict{{namespace=\"prod\",pod=\"there\",{labels}}}");
    assert_eq!(
        verdicts,
        [
            of_there(r#"container="app",resource="memory",verdict="diverged""#),
            of_there(r#"resource="cpu",verdict="in_force""#),
        ]
    );
}

#[test]
fn changes_of_limits_that_have_verdicts_exist_from_the_start() {
    let scraped = Fixture::new(ALL).scrape();
    let changes = scraped.iter().filter(|(name, _)| name.starts_with("kwitness_limit_changes_total"));
    let changes: Vec<_> = changes.collect();
    assert_eq!(changes.len(), Resource::ALL.len() * words::OUTCOMES.len(), "{changes:?}");
    assert!(changes.iter().all(|(_, count)| **count == 0.0), "{changes:?}");
    assert!(scraped.contains_key(r#"kwitness_limit_changes_total{file="memory.max",outcome="refused"}"#));
}

#[test]
fn what_an_earlier_daemon_counted_is_not_counted_again() {
    let mut fixture = Fixture::new(ALL);
    let (web, unnamed) = (named(1, "web"), subject(2, None));
    fixture.happen([created(&web), oom_kill(&web, None), created(&unnamed), oom_kill(&unnamed, None)]);
    fixture.workload.begin();
    assert_eq!(fixture.oom_kills()[WEB], 0.0, "it goes on, from 0");
    assert_eq!(fixture.scrape()[r#"kwitness_oom_kills_total{scope="unknown"}"#], 0.0);
    assert_eq!(fixture.scrape()[r#"kwitness_events_total{type="oomKill"}"#], 0.0);
    assert_eq!(fixture.workload.in_state(State::Created), 2, "what there is stays");
    let late = named(2, "late");
    fixture.happen([updated(&late), oom_kill(&late, None), oom_kill(&web, None)]);
    assert!(fixture.oom_kills().values().all(|kills| *kills == 1.0), "{:?}", fixture.oom_kills());
}
