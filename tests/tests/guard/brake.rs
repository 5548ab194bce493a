//! A process inside one long system call: SIGSTOP takes effect when that returns, `memory.high` slows it down until then.
//!
//! Its memory is that of one `mmap` with `MAP_POPULATE`, of more than its limit. No raise comes before the test lets it.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use kwitness_tests::hog::{self, KILLED, POD};
use kwitness_tests::late_runtime::LateRuntime;
use kwitness_tests::pod::this_program;
use kwitness_tests::prelude::*;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// Set in a container whose child is this program: how many bytes it takes with one system call.
const SIZE: &str = "KWITNESS_TEST_HOG_POPULATE";
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
    let kilobytes = process::status(std::process::id()).ok()?.vmrss?;
    Some(usize::try_from(kilobytes).ok()? * 1024)
}

/// A container in which the hog has begun, and its guard.
struct Call {
    id: String,
    cgroup: PathBuf,
    out: Out,
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
        let out = Out::make()?;
        let (mount, program) = this_program()?;
        let line = format!("{}; {SIZE}={TAKEN} {program}; {LEAVE_CODE}", until("go"));
        let mut spec = hog::limited_to(LIMIT, name, &line, &out);
        spec.mounts.push(mount);
        let id = node.run(pod, &spec).await?;
        let cgroup = node.cgroup_of(&id).await?;
        let runtime = LateRuntime::serve(&cgroup)?;
        let guard = Guard::start(&ctx.environment, agent, policy, &runtime.socket()).await?;
        guard.wait_armed(1).await?;
        out.signal("go")?;
        Ok(Self { id, cgroup, out, runtime, guard })
    }

    fn has_ended(&self) -> bool {
        self.out.has("code")
    }

    async fn ended(&self) -> Result<i32> {
        self.out.code(SOON).await.with_context(|| self.guard.log_tail())
    }

    fn high(&self) -> Result<String> {
        cgroup::text(&self.cgroup, "memory.high")
    }

    /// Waits until the kernel has slowed the hog down.
    async fn braked(&self) -> Result<()> {
        let braked = wait_for("the second brake", SOON, async || {
            ensure!(!self.has_ended(), "the hog ended without a brake");
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
pub(crate) async fn system_call(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
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
        ensure!(oom_kills == 0 && !call.has_ended(), "{oom_kills} OOM kills\n{}", call.guard.log_tail());
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
pub(crate) async fn killed(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
        let mut call = Call::begin(ctx, node, agent, &pod, "left", POLICY).await?;
        call.braked().await?;
        call.guard.kill()?;
        call.restored().await?;
        node.remove_pod(&pod).await
    })
    .await
}
