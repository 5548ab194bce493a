//! Whether a limit that was accepted is in force: by the daemon's verdict; while the daemon cannot decide, by the files of the
//! cgroups.

use std::io;
use std::time::Duration;

use kwitness_api::Client;
use kwitness_api::client::Address;
use tokio::time::Instant;

use crate::cgroup::{self, Cgroup};
use crate::daemon::{self, Container};
use crate::episode::Proof;
use crate::plan::Refusal;
use crate::policy::Bytes;
use crate::raise::Raiser;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until a limit that was accepted is in force, for so long at most, unless it is refused after all.
pub(super) async fn verify(
    address: Address,
    raiser: &Raiser,
    container: &Container,
    limit: Bytes,
    wait: Duration,
) -> Result<Proof, Refusal> {
    let end = Instant::now() + wait;
    let verified = async {
        match verdict(address, container, limit, wait).await {
            // The limit was accepted: a process that continued now would continue under the old one.
            Err(unverified @ Refusal::Unverified(_)) => {
                let find = || Cgroup::find(&container.cgroup_path, container.cgroup_id);
                by_files(find, limit, end, unverified).await
            }
            answer => answer.map(|()| Proof::Verdict),
        }
    };
    tokio::select! {
        verified = verified => verified,
        refusal = raiser.refused(container) => Err(refusal),
    }
}

async fn verdict(
    address: Address,
    container: &Container,
    limit: Bytes,
    wait: Duration,
) -> Result<(), Refusal> {
    let client = Client::connect(address).await;
    let mut client = client.map_err(|error| Refusal::Unverified(error.to_string()))?;
    daemon::verify(&mut client, container, limit, wait).await
}

/// Waits until the files have the limit; `unverified`, if they do not in time.
async fn by_files(
    find: impl Fn() -> io::Result<Option<Cgroup>>,
    limit: Bytes,
    end: Instant,
    unverified: Refusal,
) -> Result<Proof, Refusal> {
    let page = procfs::page_size();
    loop {
        match find().and_then(|cgroup| cgroup.map(|cgroup| cgroup.has_limit(limit, page)).transpose()) {
            Ok(Some(true)) => return Ok(Proof::Files),
            Ok(Some(false)) => {}
            Ok(None) => return Err(Refusal::Gone),
            Err(error) if cgroup::is_gone(&error) => return Err(Refusal::Gone),
            Err(error) => return Err(Refusal::Unreadable(error.to_string())),
        }
        if Instant::now() + LOOK >= end {
            return Err(unverified);
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    use super::*;

    const WAIT: Duration = Duration::from_secs(3);

    /// Directories that stand for a container's cgroup and its pod's.
    fn cgroups(root: &Path, limits: [&str; 2]) -> u64 {
        let pod = root.join("pod");
        fs::create_dir_all(pod.join("c")).unwrap();
        for (directory, limit) in [(pod.join("c"), limits[0]), (pod.clone(), limits[1])] {
            for (name, text) in [("memory.max", limit), ("memory.current", "0")] {
                fs::write(directory.join(name), text).unwrap();
            }
        }
        fs::metadata(pod.join("c")).unwrap().ino()
    }

    fn away() -> Refusal {
        Refusal::Unverified("away".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_daemon_a_limit_is_waited_for_at_every_level() {
        let root = tempfile::tempdir().unwrap();
        let limit = Bytes(1 << 30);
        let id = cgroups(root.path(), ["1073741824", "max"]);
        let find = || Cgroup::below(root.path(), "/pod/c", id);
        let wait = || by_files(find, limit, Instant::now() + WAIT, away());
        assert_eq!(wait().await, Ok(Proof::Files));
        for limits in [["536870912", "max"], ["1073741824", "536870912"]] {
            cgroups(root.path(), limits);
            let began = Instant::now();
            assert_eq!(wait().await, Err(away()), "{limits:?}");
            assert!((WAIT - LOOK..WAIT).contains(&began.elapsed()), "{:?}", began.elapsed());
        }
        let raise = async {
            tokio::time::sleep(WAIT / 2).await;
            cgroups(root.path(), ["1073741824", "1073741824"]);
        };
        assert_eq!(tokio::join!(wait(), raise).0, Ok(Proof::Files), "it comes meanwhile");
        fs::remove_dir_all(root.path().join("pod")).unwrap();
        assert_eq!(wait().await, Err(Refusal::Gone));
    }
}
