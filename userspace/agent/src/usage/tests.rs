//! The sampler, with the engine's part played by a task and cgroups made of plain files.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kwitness_api::proto::{self, amount};
use kwitness_core::model::{
    Basis, Caller, Event, KernelTime, Kind, OomKilled, ProcKey, Process, Role, State, Subject,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::cgroupfs::Directory;
use crate::engine::{Request, Snapshot};
use crate::hub::testing::{self, clock, facts, hub, subject, updated};
use crate::hub::{Filter, Writer};

const SOON: Duration = Duration::from_secs(20);

struct Fixture {
    root: tempfile::TempDir,
    usage: Usage,
    writer: Writer,
    /// How often the sampler requested the engine's state.
    asked: Arc<AtomicUsize>,
    container: Arc<Subject>,
}

/// The node's only container.
async fn answer(
    mut requests: mpsc::Receiver<Request>,
    container: Arc<Subject>,
    asked: Arc<AtomicUsize>,
    hub: Arc<Hub>,
) {
    while let Some(request) = requests.recv().await {
        let Request::State(answer) = request else { panic!("the sampler requests the state") };
        asked.fetch_add(1, Relaxed);
        let containers = vec![testing::container(&container, State::Running)];
        // The sampler may have ended meanwhile.
        let _ = answer.send((Snapshot { position: hub.position(), containers }, Vec::new()));
    }
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let named = subject(1, Some(facts("prod", "web", "nginx")));
        let directory = root.path().join(&named.cgroup_path[1..]);
        std::fs::create_dir_all(&directory).unwrap();
        let cgroup_id = Directory::open(&directory).unwrap().id().unwrap();
        let container = Arc::new(Subject { cgroup_id, ..(*named).clone() });
        let (hub, writer) = hub(64);
        let (engine, requests) = Handle::new();
        let asked = Arc::<AtomicUsize>::default();
        tokio::spawn(answer(requests, container.clone(), asked.clone(), hub.clone()));
        let usage = Usage::within(Hierarchies::v2(root.path()), engine, hub);
        let fixture = Self { root, usage, writer, asked, container };
        fixture.charge(1 << 20);
        std::fs::write(fixture.file("memory.max"), "67108864\n").unwrap();
        fixture
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(&self.container.cgroup_path[1..]).join(name)
    }

    fn charge(&self, bytes: u64) {
        // Replaced as a whole: a reader sees one of both numbers.
        let new = self.root.path().join("new");
        std::fs::write(&new, format!("{bytes}\n")).unwrap();
        std::fs::rename(new, self.file("memory.current")).unwrap();
    }

    fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

async fn next(subscription: &mut Subscription) -> (Arc<Sample>, u64) {
    timeout(SOON, subscription.next()).await.expect("a sample")
}

fn only(sample: &Sample) -> proto::ContainerUsage {
    let all = Filter::default();
    let mut containers = sample.containers(&all);
    let first = containers.next().expect("a container");
    assert_eq!(containers.next(), None);
    first
}

#[test]
fn intervals_have_bounds() {
    assert_eq!(interval(0), Ok(INTERVAL_DEFAULT));
    assert_eq!(interval(500), Ok(INTERVAL.0));
    assert_eq!(interval(60_000), Ok(INTERVAL.1));
    for millis in [1, 499, 60_001, u32::MAX] {
        assert!(interval(millis).unwrap_err().contains("interval_ms"));
    }
}

#[tokio::test]
async fn a_rate_and_the_time_to_the_limit_follow_from_two_samples() {
    let fixture = Fixture::new();
    let mut subscription = fixture.usage.subscribe(INTERVAL.0);
    let first = loop {
        let usage = only(&next(&mut subscription).await.0);
        // A reader that gets no CPU in time is late, and the sample says so.
        if !matches!(usage.memory_usage.as_ref().unwrap().amount, Some(amount::Amount::Unknown(_))) {
            break usage;
        }
    };
    assert_eq!((first.fill_rate, first.time_to_limit_ms), (None, None), "one sample has no rate");
    assert_eq!(first.memory_limit.unwrap().amount, Some(amount::Amount::Value(64 << 20)));
    assert_eq!(first.memory_high.unwrap().amount, Some(amount::Amount::Absent(true)));
    fixture.charge(32 << 20);
    let second = loop {
        let usage = only(&next(&mut subscription).await.0);
        if usage.memory_usage.as_ref().unwrap().amount == Some(amount::Amount::Value(32 << 20)) {
            break usage;
        }
    };
    assert!(second.fill_rate.unwrap() > 0 && second.time_to_limit_ms.unwrap() > 0, "{second:?}");
    let filter = proto::Filter { namespaces: vec!["dev".into()], ..Default::default() };
    let (sample, _) = next(&mut subscription).await;
    assert_eq!(sample.containers(&filter.try_into().unwrap()).count(), 0);
    std::fs::remove_dir_all(fixture.root.path().join("kubepods")).unwrap();
    while sample_has_any(&next(&mut subscription).await.0) {}
}

fn sample_has_any(sample: &Sample) -> bool {
    sample.containers(&Filter::default()).next().is_some()
}

#[tokio::test]
async fn one_sampler_serves_all_and_none_runs_without_clients() {
    let fixture = Fixture::new();
    tokio::task::yield_now().await;
    assert_eq!(fixture.asked(), 0, "no client watches");
    let mut fast = fixture.usage.subscribe(INTERVAL.0);
    let mut slow = fixture.usage.subscribe(INTERVAL.1);
    let (of_slow, _) = next(&mut slow).await;
    let (of_fast, _) = next(&mut fast).await;
    assert!(Arc::ptr_eq(&of_slow, &of_fast), "one sample for both");
    // It does not read for a while: what it gets then is the newest.
    let mut idle = fixture.usage.subscribe(INTERVAL.0);
    let (_, skipped) = next(&mut idle).await;
    assert_eq!(skipped, 0);
    let before = fixture.asked();
    let mut newest = next(&mut fast).await.0;
    while fixture.asked() < before + 4 {
        newest = next(&mut fast).await.0;
    }
    let (sample, skipped) = next(&mut idle).await;
    assert!(skipped >= 1 && sample.head(0).kernel_time >= newest.head(0).kernel_time, "{skipped} skipped");
    drop((fast, slow, idle));
    timeout(SOON, async {
        while fixture.usage.0.demand().sampler.is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the sampler ends");
    assert!(fixture.usage.0.newest.borrow().is_none(), "nothing is kept");
    let mut again = fixture.usage.subscribe(INTERVAL.0);
    assert_eq!(only(&next(&mut again).await.0).fill_rate, None);
}

#[tokio::test]
async fn a_sampler_that_broke_is_replaced_by_the_next_subscriber() {
    let fixture = Fixture::new();
    let mut first = fixture.usage.subscribe(INTERVAL.0);
    next(&mut first).await;
    let broken = fixture.usage.0.demand().sampler.as_ref().expect("a sampler").abort_handle();
    broken.abort();
    timeout(SOON, async {
        while !broken.is_finished() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it has ended");
    let mut second = fixture.usage.subscribe(INTERVAL.0);
    next(&mut second).await;
    next(&mut first).await;
}

fn oom_kill(of: &Arc<Subject>, at: u64) -> Event {
    let process = Process {
        key: ProcKey { pid: 7, start: KernelTime(1) },
        ppid: 1,
        comm: "hog".into(),
        role: Role::Main,
    };
    let killed = OomKilled {
        process,
        choice: None,
        scope: None,
        usage: None,
        trigger: Caller::default(),
        trigger_cgroup: None,
    };
    let kind = Kind::OomKill(Box::new(killed));
    Event { at: KernelTime(at), basis: Basis::OomKill, subject: Some(of.clone()), kind }
}

#[tokio::test]
async fn a_container_has_the_last_kill_of_those_before_it() {
    let mut fixture = Fixture::new();
    let (unnamed, named) = (subject(1, None), subject(1, Some(facts("prod", "web", "nginx"))));
    let other = subject(2, Some(facts("prod", "web", "sidecar")));
    fixture.writer.append([oom_kill(&unnamed, 3_000_000_000), oom_kill(&other, 9_000_000_000)], clock());
    let mut subscription = fixture.usage.subscribe(INTERVAL.0);
    assert_eq!(
        only(&next(&mut subscription).await.0).last_oom_kill,
        None,
        "whose kill it was is not known yet"
    );
    fixture.writer.append([updated(&named)], clock());
    let usage = loop {
        let usage = only(&next(&mut subscription).await.0);
        if usage.last_oom_kill.is_some() {
            break usage;
        }
    };
    assert_eq!(usage.last_oom_kill, Some(clock().wall(KernelTime(3_000_000_000))));
}

#[test]
fn hierarchies_of_this_machine_are_found() {
    let hierarchies = Hierarchies::find(CgroupFs::at(Path::new("/sys/fs/cgroup")));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let has_memory = mounts.lines().any(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        fields[2] == "cgroup" && fields[3].split(',').any(|option| option == "memory")
    });
    assert_eq!(format!("{hierarchies:?}").contains("memory_v1: Some"), has_memory);
}
