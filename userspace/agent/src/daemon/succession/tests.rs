//! Without probes: there is nothing pinned, and the ledger is a directory.

use std::fs;
use std::future::{pending, ready};
use std::sync::Arc;

use futures_util::poll;
use kwitness_service::http::{Pages as _, Probe};

use super::*;
use crate::config::Labels;

struct Node {
    _directory: tempfile::TempDir,
    config: Config,
    metrics: Metrics,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("kwitness.sock");
        let pin_directory = directory.path().join("pins");
        let config = Config { socket, pin_directory, ..Config::default() };
        fs::create_dir(ledger(&config).directory).unwrap();
        let labels = Labels { namespace: true, pod: true, container: true };
        Self { _directory: directory, config, metrics: Metrics::new(labels, Arc::default()) }
    }

    fn start(&self, stop: impl Future<Output = ()>) -> impl Future<Output = anyhow::Result<Turn>> {
        take_turn(&self.config.socket, true, || Ok(()), stop, &self.metrics)
    }

    fn instance(&self) -> InstanceLock {
        InstanceLock::acquire(&lock_file(&self.config.socket)).unwrap()
    }

    fn is_left(&self) -> bool {
        let lock = lock_file(&self.config.socket).exists();
        let ledger = ledger(&self.config).directory.exists();
        assert_eq!(lock, ledger, "lock file and ledger go together");
        ledger
    }

    fn is_standby(&self) -> bool {
        [Probe::Startup, Probe::Ready, Probe::Live]
            .into_iter()
            .all(|probe| self.metrics.probe(probe).is_ok_and(|reason| reason.starts_with("standby: ")))
    }
}

#[tokio::test]
async fn a_standby_is_ready_and_takes_over_with_all_that_is_left() {
    let node = Node::new();
    let first = node.instance();
    let mut second = pin!(node.start(pending()));
    assert!(poll!(&mut second).is_pending() && node.is_standby());
    let third = node.start(pending()).await.err().expect("one waits already");
    assert!(third.to_string().contains("another standby waits"), "{third}");
    end(&node.config, first, Unpin::UnlessStandby).unwrap();
    let Turn::Taken(second) = second.await.unwrap() else { panic!("it was not signalled to stop") };
    assert!(node.is_left() && !node.is_standby());
    end(&node.config, second, Unpin::UnlessStandby).unwrap();
    assert!(!node.is_left(), "no daemon goes on with it");
}

#[tokio::test]
async fn one_that_could_not_take_over_is_no_standby() {
    let node = Node::new();
    let refuse = || Err(anyhow::anyhow!("the verifier refuses it"));
    let start = || take_turn(&node.config.socket, true, refuse, pending(), &node.metrics);
    let first = node.instance();
    let refused = start().await.err().expect("it is refused");
    assert!(format!("{refused:#}").contains("the verifier refuses it"), "{refused:#}");
    assert!(!node.is_standby());
    // It leaves its place to one that can.
    let mut second = pin!(node.start(pending()));
    assert!(poll!(&mut second).is_pending() && node.is_standby());
    drop(first);
    let Turn::Taken(second) = second.await.unwrap() else { panic!("it was not signalled to stop") };
    drop(second);
    assert!(matches!(start().await.unwrap(), Turn::Taken(_)), "with no other, it is loaded once, in earnest");
}

#[tokio::test]
async fn a_standby_that_is_signalled_to_stop_leaves_the_other_alone() {
    let node = Node::new();
    let first = node.instance();
    let stopped = node.start(ready(())).await.unwrap();
    assert!(matches!(stopped, Turn::Stopped(None)));
    assert!(node.is_left());
    end(&node.config, first, Unpin::UnlessStandby).unwrap();
    assert!(!node.is_left());
}

/// As at the end of a release in the middle of a rollout.
#[tokio::test]
async fn of_two_that_are_signalled_to_stop_the_last_one_cleans_up() {
    let node = Node::new();
    let first = node.instance();
    let (stop, stopped) = oneshot::channel::<()>();
    let mut second = pin!(node.start(async { stopped.await.unwrap() }));
    assert!(poll!(&mut second).is_pending());
    end(&node.config, first, Unpin::UnlessStandby).unwrap();
    assert!(node.is_left());
    stop.send(()).unwrap();
    let Turn::Stopped(Some(lock)) = second.await.unwrap() else { panic!("no other daemon has the lock") };
    end(&node.config, lock, Unpin::UnlessStandby).unwrap();
    assert!(!node.is_left());
}

#[tokio::test]
async fn always_is_always_and_never_never() {
    let node = Node::new();
    let first = node.instance();
    end(&node.config, first, Unpin::Never).unwrap();
    assert!(node.is_left());
    let first = node.instance();
    let mut second = pin!(node.start(pending()));
    assert!(poll!(&mut second).is_pending());
    end(&node.config, first, Unpin::Always).unwrap();
    // The standby finds the lock of a file that is gone, and makes another.
    let Turn::Taken(_second) = second.await.unwrap() else { panic!("it was not signalled to stop") };
    assert!(!ledger(&node.config).directory.exists());
    assert!(lock_file(&node.config.socket).exists());
}
