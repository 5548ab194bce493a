//! A container of one way, and one run in it: the filler starts, and is done, OOM-killed, or neither.
//!
//! The container stays from run to run, for an emulated machine needs seconds for one. Its first process is a shell that reads
//! from a pipe what to fill, and starts the filler.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::filler::{Fill, Mark, VARIABLE};
use super::tally::{Outcome, Ran};
use super::watch::Watch;
use super::{Amounts, Rate, SOON, Way, raise};
use crate::cgroup;
use crate::guard::memory_event;
use crate::hog::{KILLED, limited_to};
use crate::node::Node;
use crate::out::Out;
use crate::pod::{Pod, this_program};
use crate::process::{cgroup_path, kill_pid, wait_for};

/// A filler that is not done so long after it should have been is throttled for good. A guard's hold is shorter.
const STALLED: Duration = Duration::from_secs(15);
/// No machine fills slower at full speed.
const SLOWEST: u64 = 50_000_000;
const FILL_LIMIT: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Subject {
    way: Way,
    amounts: Amounts,
    id: String,
    pid: u32,
    /// The cgroup that has its limit.
    cgroup: PathBuf,
    /// The one that its processes are in: the same, or one below.
    members: PathBuf,
    out: Out,
}

impl Subject {
    /// Starts it, and waits until its shell reads what to fill.
    pub(super) async fn start(node: &Node, pod: &Pod, way: Way, amounts: Amounts) -> Result<Self> {
        let out = Out::make()?;
        let (mount, program) = this_program()?;
        let line = format!(
            "mkfifo /out/go && exec 3<>/out/go && : >/out/ready && while read -r words <&3; do \
             {VARIABLE}=\"$words\" {program} >/out/report; \
             echo $? >/out/code.new; mv /out/code.new /out/code; done"
        );
        let mut spec = limited_to(amounts.limit, way.container(), &line, &out);
        spec.mounts.push(mount);
        let id = node.run(pod, &spec).await?;
        out.wait("ready", SOON).await?;
        let pid = node.pid(&id).await?;
        let members = node.cgroup_directory(&cgroup_path(pid)?);
        let cgroup = limited(&members, amounts.limit)?;
        Ok(Self { way, amounts, id, pid, cgroup, members, out })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// One run, from an empty container with its first limit.
    pub(super) async fn run(&self, rate: Rate) -> Result<Ran> {
        let Amounts { limit, .. } = self.amounts;
        let rest = wait_for("an empty container", SOON, async || {
            let usage = cgroup::number(&self.cgroup, "memory.current")?;
            Ok((usage < limit / 4).then_some(usage))
        });
        let rest = rest.await?;
        raise::set(&self.cgroup, limit, self.way.has_high().then_some(self.amounts.threshold()))?;
        for name in ["code", "report"] {
            let file = self.out.at(name);
            if file.exists() {
                fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
            }
        }
        let kills = memory_event(&self.cgroup, "oom_kill")?;
        let (cgroup, raised) = (self.cgroup.clone(), self.amounts.raised());
        let raise = move || raise::raise(&cgroup, raised);
        let watch = match self.way.source() {
            Some(source) => Some(Watch::start(source, &self.cgroup, self.amounts.threshold(), raise)?),
            None => None,
        };
        self.fill(Fill {
            start: self.amounts.start() - rest,
            mark: self.amounts.mark() - rest,
            target: self.amounts.target() - rest,
            rate,
        })?;
        let achieved = self.wait_mark().await?;
        let code = self.wait_end(rate).await?;
        if let Some(watch) = watch {
            watch.end()?;
        }
        let kills = memory_event(&self.cgroup, "oom_kill")? - kills;
        let outcome = match code {
            None => Outcome::Stalled,
            Some(0) if kills == 0 => Outcome::Survived,
            Some(KILLED) if kills > 0 => Outcome::Killed,
            Some(code) => bail!("the filler ended with {code} and {kills} OOM kills"),
        };
        Ok(Ran { outcome, achieved })
    }

    fn fill(&self, fill: Fill) -> Result<()> {
        let go = self.out.at("go");
        let pipe = File::options().write(true).open(&go);
        let written = pipe.and_then(|mut pipe| writeln!(pipe, "{fill}"));
        written.with_context(|| format!("write to {}", go.display()))
    }

    /// Waits for the filler's mark; the rate that it achieved. One that is killed before has none.
    async fn wait_mark(&self) -> Result<Option<f64>> {
        wait_for("the filler's mark", FILL_LIMIT, async || {
            let report = self.out.left("report").unwrap_or_default();
            if let Some(line) = report.lines().next().filter(|_| report.ends_with('\n')) {
                return Ok(Some(Some(line.parse::<Mark>()?.rate())));
            }
            Ok(self.out.has("code").then_some(None))
        })
        .await
    }

    /// Waits for the filler's end; its exit code. One that does not end is killed, and has none.
    async fn wait_end(&self, rate: Rate) -> Result<Option<i32>> {
        let left = self.amounts.target() - self.amounts.mark();
        let slowest = rate.0.map_or(SLOWEST, |rate| rate.min(SLOWEST));
        let patience = STALLED + Duration::from_secs_f64(left as f64 / slowest as f64);
        let began = Instant::now();
        let in_time = wait_for("the filler's end", patience * 2, async || {
            Ok(if self.out.has("code") { Some(true) } else { (began.elapsed() > patience).then_some(false) })
        });
        let in_time = in_time.await?;
        if !in_time {
            self.kill_filler()?;
            self.out.wait("code", SOON).await.context("the end of a killed filler")?;
            return Ok(None);
        }
        self.out.code(SOON).await.map(Some)
    }

    fn kill_filler(&self) -> Result<()> {
        let members = cgroup::pids(&self.members)?.into_iter();
        members.filter(|pid| *pid != self.pid).try_for_each(kill_pid)
    }
}

/// The cgroup at or above a container's processes that has its limit: a runtime may put them into one of its own below.
fn limited(members: &Path, limit: u64) -> Result<PathBuf> {
    let wanted = limit.to_string();
    let has = |directory: &&Path| cgroup::text(directory, "memory.max").is_ok_and(|text| text == wanted);
    let found = members.ancestors().find(has);
    let found = found.with_context(|| format!("no cgroup from {} up has the limit", members.display()))?;
    ensure!(found.join("memory.high").exists(), "{} has no memory.high", found.display());
    Ok(found.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_that_of_the_nearest_cgroup_that_has_it() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("scope/container");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        limited(&inner, 65_536).unwrap_err();
        for (name, text) in [("memory.max", "65536\n"), ("memory.high", "max\n")] {
            fs::write(root.path().join("scope").join(name), text).unwrap();
        }
        assert_eq!(limited(&inner, 65_536).unwrap(), root.path().join("scope"));
    }
}
