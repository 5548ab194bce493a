//! A process inside one long system call: SIGSTOP takes effect when that returns, `memory.high` slows it down until then.
//!
//! Its memory is that of one `mmap` with `MAP_POPULATE`, of more than its limit. No raise comes before the test lets it.

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kwitness_tests::agent::{Agent, Watcher, from_now};
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::Combination;
use kwitness_tests::events::Seen;
use kwitness_tests::guard::{Guard, memory_event};
use kwitness_tests::hog::{self, KILLED, POD};
use kwitness_tests::late_runtime::LateRuntime;
use kwitness_tests::node::Node;
use kwitness_tests::pod::{Pod, PodSpec};
use kwitness_tests::process::wait_for;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// Set in a container whose child is this program: how many bytes it takes with one system call.
const SIZE: &str = "KWITNESS_TEST_HOG_POPULATE";
const PROGRAM_DIRECTORY: &str = "/program";
/// Half of the limit is left when the process is held: in an emulated guest the kernel fills it in half a second.
const LIMIT: u64 = 192 << 20;
const TAKEN: usize = 256 << 20;
const POLICY: &str = "[[rule]]\npod = \"greedy\"\nthreshold = \"50%\"\nstep = \"192Mi\"\nceiling = \"384Mi\"\nlongest_hold = \"10s\"\n";
/// How long anything may take in an emulated guest.
const SOON: Duration = Duration::from_secs(300);

/// If this process is to be the hog: takes the memory, and returns true.
pub(crate) fn populate_if_requested() -> bool {
    let Some(size) = std::env::var(SIZE).ok().and_then(|size| size.parse().ok()) else { return false };
    if populate(size).is_none_or(|resident| resident < size.get()) {
        std::process::exit(1);
    }
    true
}

/// Takes so much with one system call; how much this process has then.
#[expect(unsafe_code, reason = "a bare mmap(2)")]
fn populate(size: NonZeroUsize) -> Option<usize> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
    // SAFETY: at no address of the caller's choice, so that it replaces no other mapping.
    unsafe { mmap_anonymous(None, size, protection, flags) }.ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(resident.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
}

/// A container in which the hog has begun, and its guard.
struct Call {
    id: String,
    cgroup: PathBuf,
    directory: tempfile::TempDir,
    runtime: LateRuntime,
    guard: Guard,
}

impl Call {
    async fn begin(
        ctx: &TestContext,
        node: &Node,
        agent: &Agent,
        pod: &Pod,
        name: &str,
        policy: &str,
    ) -> Result<Self> {
        let directory = tempfile::tempdir_in("/run").context("make a directory for the hog")?;
        let program = std::env::current_exe().context("find this program")?;
        let parent = program.parent().context("this program has a directory")?.display().to_string();
        let program = program.file_name().context("this program has a name")?.display().to_string();
        let line = format!(
            "until [ -e /out/go ]; do sleep 0.1; done; {SIZE}={TAKEN} {PROGRAM_DIRECTORY}/{program}; \
             echo $? >/out/code.new; mv /out/code.new /out/code; exec sleep 1000"
        );
        let mut spec = hog::limited_to(LIMIT, name, &line, directory.path());
        spec.mounts.push((parent, PROGRAM_DIRECTORY.to_owned()));
        let id = node.run(pod, &spec).await?;
        let cgroup = node.cgroup_of(&id).await?;
        let runtime = LateRuntime::serve(&cgroup)?;
        let guard = Guard::start(&ctx.environment, agent, policy, &runtime.socket()).await?;
        guard.wait_armed(1).await?;
        fs::write(directory.path().join("go"), "").context("start the hog")?;
        Ok(Self { id, cgroup, directory, runtime, guard })
    }

    /// The hog's exit code, when it has ended.
    fn code(&self) -> Result<Option<i32>> {
        match fs::read_to_string(self.directory.path().join("code")) {
            Ok(code) => code.trim().parse().map(Some).with_context(|| format!("the exit code `{code}`")),
            Err(_) => Ok(None),
        }
    }

    async fn ended(&self) -> Result<i32> {
        let ended = wait_for("the hog's end", SOON, async || self.code()).await;
        ended.with_context(|| self.guard.log_tail())
    }

    fn high(&self) -> Result<String> {
        let high = fs::read_to_string(self.cgroup.join("memory.high")).context("read memory.high")?;
        Ok(high.trim().to_owned())
    }

    /// Waits until the kernel has slowed the hog down.
    async fn braked(&self) -> Result<()> {
        let braked = wait_for("the second brake", SOON, async || {
            ensure!(self.code()?.is_none(), "the hog ended without a brake");
            let is_lowered = self.high()? != "max" && memory_event(&self.cgroup, "high")? > 0;
            Ok(is_lowered.then_some(()))
        });
        braked.await.with_context(|| self.guard.log_tail())
    }

    async fn restored(&self) -> Result<()> {
        let restored =
            wait_for("memory.high as it was", SOON, async || Ok((self.high()? == "max").then_some(())));
        restored.await.with_context(|| self.guard.log_tail())
    }

    fn oom_kills(&self) -> Result<u64> {
        memory_event(&self.cgroup, "oom_kill")
    }
}

/// The same call twice. Without the brake the process is killed before any raise comes; with it, it lives for longer than that
/// before the raise comes, and ends well.
pub(crate) async fn system_call(ctx: &TestContext, combination: Combination) -> Result<()> {
    ctx.with_both(combination.driver, &[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new(POD, combination.handler)?).await?;
        let policy = format!("{POLICY}brake = false\n");
        let call = Call::begin(ctx, node, agent, &pod, "unbraked", &policy).await?;
        let code = call.ended().await?;
        let lived = lived(&mut watcher, &call.id).await?;
        ensure!(code == KILLED && call.oom_kills()? > 0, "not OOM-killed without a brake: {code}");
        ensure!(call.high()? == "max", "memory.high was lowered although it was not to be");
        node.stop_container(&call.id, 0).await?;
        call.guard.stop()?;

        let call = Call::begin(ctx, node, agent, &pod, "braked", POLICY).await?;
        call.braked().await?;
        tokio::time::sleep(lived).await;
        let oom_kills = call.oom_kills()?;
        ensure!(oom_kills == 0 && call.code()?.is_none(), "{oom_kills} OOM kills\n{}", call.guard.log_tail());
        call.runtime.answer();
        let (code, oom_kills) = (call.ended().await?, call.oom_kills()?);
        ensure!(code == 0 && oom_kills == 0, "ended with {code}, {oom_kills}\n{}", call.guard.log_tail());
        call.restored().await?;
        node.stop_container(&call.id, 0).await?;
        call.guard.stop()?;
        node.remove_pod(&pod).await
    })
    .await
}

/// How long a process that was OOM-killed lived from its hold on.
async fn lived(watcher: &mut Watcher, id: &str) -> Result<Duration> {
    let both = |seen: &Seen| ["guardHeld", "oomKill"].iter().all(|kind| seen.has(id, kind));
    let seen = watcher.wait_until("the hold and the kill", both).await?;
    let at = |kind: &str| {
        let event = seen.of(id).find(|event| event.r#type == kind);
        event.and_then(|event| event.time).with_context(|| format!("no time of {kind}"))
    };
    let (held, killed) = (at("guardHeld")?.to_unix_nanos(), at("oomKill")?.to_unix_nanos());
    let nanos = u64::try_from(killed - held).context("killed before it was held")?;
    Ok(Duration::from_nanos(nanos))
}

/// What a killed guard has lowered its watchdog restores.
pub(crate) async fn killed(ctx: &TestContext, combination: Combination) -> Result<()> {
    ctx.with_both(combination.driver, &[], async |node, agent| {
        let pod = node.run_pod(&PodSpec::new(POD, combination.handler)?).await?;
        let mut call = Call::begin(ctx, node, agent, &pod, "left", POLICY).await?;
        call.braked().await?;
        call.guard.kill()?;
        call.restored().await?;
        node.remove_pod(&pod).await
    })
    .await
}
