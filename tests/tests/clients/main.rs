//! Clients of other languages with their defaults, at the daemon and through the CRI proxy: Python (gRPC's C core, which sends the
//! socket's path as `:authority`), Go and grpcurl. What the docs show is run as it is written there. And Perfetto's own messages in
//! Python, for a timeline's trace.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use kwitness_tests::alone;
use kwitness_tests::cri::v1;
use kwitness_tests::prelude::*;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
const DEFAULT_DIRECTORY: &str = "/run/kwitness";

fn main() -> Result<()> {
    handmade::become_container_if_requested()?;
    let ctx = TestContext::new()?;
    let mut cases = alone![
        the_python_example,
        the_go_example,
        grpcurl_as_the_docs_show_it,
        perfettos_own_messages_have_every_field_of_a_trace,
    ];
    cases.push(Case::once(&ctx, "the_cri_through_the_proxy", |ctx, combination| {
        ctx.block_on(the_cri_through_the_proxy(&ctx.on(combination)))
    })?);
    suite::run(ctx, cases)
}

/// A copy of the docs and the protocol to work in, as in a checkout.
struct Checkout<'a> {
    job: &'a Path,
    directory: tempfile::TempDir,
}

impl<'a> Checkout<'a> {
    fn make(ctx: &'a TestContext) -> Result<Self> {
        let job = ctx.environment.job.as_path();
        let directory = tempfile::tempdir().context("make a directory")?;
        let mut copy = Command::new("cp");
        copy.arg("-r").args([job.join("docs"), job.join("proto")]).arg(directory.path());
        process::run(&mut copy)?;
        Ok(Self { job, directory })
    }

    /// The commands in `docs/api.md` that begin with those words.
    fn documented(&self, words: &str) -> Result<Vec<String>> {
        let path = self.directory.path().join("docs/api.md");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let mut commands = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(first) = line.strip_prefix("$ ").filter(|command| command.starts_with(words)) else {
                continue;
            };
            // A prompt and what belongs to it end where the next prompt or the block does.
            let rest = lines.clone().take_while(|line| line.starts_with("    "));
            commands.push(std::iter::once(first).chain(rest).collect::<Vec<_>>().join("\n"));
        }
        ensure!(!commands.is_empty(), "docs/api.md shows no `{words}`");
        Ok(commands)
    }

    /// What a line of shell prints, with the tools of the job.
    async fn shell(&self, line: &str) -> Result<String> {
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", line]).current_dir(self.directory.path());
        let path = format!("{}:/usr/bin:/bin", self.job.join("bin").display());
        command.env("PATH", path).env("PYTHONPATH", self.job.join("python"));
        let running = tokio::task::spawn_blocking(move || process::run(&mut command));
        tokio::time::timeout(LIMIT, running).await.with_context(|| format!("{line}: does not end"))??
    }

    /// What a line of shell prints, one JSON value a line.
    async fn json(&self, line: &str) -> Result<Vec<Value>> {
        let text = self.shell(line).await?;
        let values = text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
        values.collect()
    }
}

/// The place of the default socket, as long as this is there.
struct DefaultSocket;

impl DefaultSocket {
    fn of(agent: &Agent) -> Result<Self> {
        let directory = agent.socket().parent().context("the socket has no directory")?;
        symlink(directory, DEFAULT_DIRECTORY).with_context(|| format!("link {DEFAULT_DIRECTORY}"))?;
        Ok(Self)
    }
}

impl Drop for DefaultSocket {
    fn drop(&mut self) {
        // The next test makes it anew, and says what is wrong if it is still there.
        let _ = fs::remove_file(DEFAULT_DIRECTORY);
    }
}

/// Lets a container exit with code 7 and go; its id.
async fn a_short_life(
    agent: &Agent,
    environment: &kwitness_tests::environment::Environment,
) -> Result<String> {
    let kubepods = Kubepods::make(environment)?;
    let mut watcher = agent.watch(from_now()).await?;
    let id = kubepods.container()?.live(&["sh", "-c", "exit 7"], 7)?;
    watcher.wait_until("the container's end", |seen| seen.has(&id, "deleted")).await?;
    Ok(id)
}

fn check_example(printed: &[Value], id: &str) -> Result<()> {
    let types: Vec<_> = printed.iter().map(|event| event["type"].as_str().unwrap_or_default()).collect();
    ensure!(types == ["started", "stopped"], "{printed:#?}");
    ensure!(printed.iter().all(|event| event["container"]["id"] == id), "not of {id}: {printed:#?}");
    ensure!(printed[1]["stopped"]["mainStatus"]["code"] == 7, "{printed:#?}");
    Ok(())
}

async fn the_python_example(ctx: &TestContext) -> Result<()> {
    let checkout = Checkout::make(ctx)?;
    ctx.with_agent(&[], async |agent| {
        let _default = DefaultSocket::of(agent)?;
        let id = a_short_life(agent, &ctx.environment).await?;
        let commands = checkout.documented("python3 ")?;
        let (run, generate) = commands.split_last().context("no command")?;
        for command in generate {
            checkout.shell(command).await?;
        }
        check_example(&checkout.json(&format!("{run} 2")).await?, &id)
    })
    .await
}

/// `cargo xtask setup` has built it as its comment says.
async fn the_go_example(ctx: &TestContext) -> Result<()> {
    let checkout = Checkout::make(ctx)?;
    ctx.with_agent(&[], async |agent| {
        let id = a_short_life(agent, &ctx.environment).await?;
        let line = format!("go-example unix://{} 2", agent.socket().display());
        check_example(&checkout.json(&line).await?, &id)
    })
    .await
}

async fn grpcurl_as_the_docs_show_it(ctx: &TestContext) -> Result<()> {
    let checkout = Checkout::make(ctx)?;
    ctx.with_agent(&[], async |agent| {
        let _default = DefaultSocket::of(agent)?;
        for command in checkout.documented("grpcurl ")? {
            let text = checkout.shell(&command).await?;
            if command.ends_with("/Status") {
                let status: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
                ensure!(status["epoch"] == agent.status().await?.epoch, "{status:#}");
            }
        }
        Ok(())
    })
    .await
}

/// What is in a trace by Perfetto's messages, and what these do not know.
const PYTHON_TRACE: &str = r#"
import collections, json, sys
from google.protobuf.unknown_fields import UnknownFieldSet
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto

trace = perfetto.Trace()
trace.ParseFromString(open(sys.argv[1], "rb").read())

def unknown(message):
    count = len(UnknownFieldSet(message))
    for _, value in message.ListFields():
        parts = [value] if hasattr(value, "ListFields") else value if hasattr(value, "MergeFrom") else []
        count += sum(unknown(part) for part in parts if hasattr(part, "ListFields"))
    return count

described = [packet.track_descriptor for packet in trace.packet if packet.HasField("track_descriptor")]
tracks = {track.uuid: track.name for track in described}
events = [packet for packet in trace.packet if packet.HasField("track_event")]
kind = perfetto.TrackEvent.Type.Name
print(json.dumps({
    "unknown": unknown(trace),
    "tracks": list(tracks.values()),
    "homeless": sum(packet.track_event.track_uuid not in tracks for packet in events),
    "events": collections.Counter(kind(packet.track_event.type) for packet in events),
    "clocks": sorted({perfetto.BuiltinClock.Name(packet.timestamp_clock_id) for packet in events}),
}))
"#;

/// trace_processor itself is a program that no package registry has.
async fn perfettos_own_messages_have_every_field_of_a_trace(ctx: &TestContext) -> Result<()> {
    const POD: &str = "greedy";
    let checkout = Checkout::make(ctx)?;
    let directory = checkout.directory.path();
    let (recording, trace) = (directory.join("incident.kwr"), directory.join("trace.pftrace"));
    let kwitness = || Command::new(ctx.environment.kwitness());
    process::run(kwitness().args(["demo", "--save"]).arg(&recording))?;
    let mut timeline = kwitness();
    timeline.args(["timeline", POD, "-o", "perfetto", "--file"]).arg(&recording);
    timeline.stdout(fs::File::create(&trace).context("make the trace's file")?);
    ensure!(timeline.status().context("run the timeline")?.success(), "no trace");
    fs::write(directory.join("trace.py"), PYTHON_TRACE).context("write the script")?;
    let read = checkout.json("python3 trace.py trace.pftrace").await?;
    let [read] = &read[..] else { bail!("not one value: {read:#?}") };
    ensure!(read["unknown"] == 0 && read["homeless"] == 0, "{read:#}");
    ensure!(read["clocks"] == serde_json::json!(["BUILTIN_CLOCK_BOOTTIME"]), "{read:#}");
    let tracks: Vec<_> = read["tracks"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let wanted = ["main", "running", "processes", "memory.max", "usage"];
    ensure!(wanted.iter().all(|wanted| tracks.contains(wanted)) && tracks[0].contains(POD), "{read:#}");
    let events = |kind: &str| read["events"][kind].as_u64().unwrap_or_default();
    ensure!(events("TYPE_SLICE_BEGIN") > 0 && events("TYPE_INSTANT") > 0, "{read:#}");
    ensure!(events("TYPE_SLICE_BEGIN") == events("TYPE_SLICE_END"), "{read:#}");
    ensure!(events("TYPE_COUNTER") > 0, "{read:#}");
    Ok(())
}

/// Calls on one connection, for the header table to fill, and on a second one.
const PYTHON_CRI: &str = r#"
import sys, grpc
from runtime.v1 import api_pb2 as api, api_pb2_grpc as rpc
for _ in range(2):
    with grpc.insecure_channel(sys.argv[1]) as channel:
        runtime = rpc.RuntimeServiceStub(channel)
        for _ in range(50):
            version = runtime.Version(api.VersionRequest())
            runtime.ListContainers(api.ListContainersRequest())
print(version.runtime_name, version.runtime_version)
"#;

async fn the_cri_through_the_proxy(ctx: &Testbed<'_>) -> Result<()> {
    let checkout = Checkout::make(ctx)?;
    ctx.with_node(async |node| {
        let proxy = Proxy::start(&ctx.environment, Path::new("/run/there-is-no-daemon.sock")).await?;
        let said = clients_of_the_cri(&checkout, proxy.socket()).await.with_context(|| proxy.log_tail())?;
        let direct = node.cri().version(v1::VersionRequest::default()).await?;
        let expected = format!("{} {}", direct.runtime_name, direct.runtime_version);
        for (client, said) in said {
            ensure!(said == expected, "{client}: {said}, not {expected}");
        }
        proxy.stop()
    })
    .await
}

/// The runtime's name and version, as each client was answered.
async fn clients_of_the_cri(checkout: &Checkout<'_>, socket: &Path) -> Result<[(&'static str, String); 2]> {
    let socket = socket.display();
    let script: PathBuf = checkout.directory.path().join("version.py");
    fs::write(&script, PYTHON_CRI).context("write the script")?;
    let proto = "runtime/v1/api.proto";
    // As Kubernetes' own file has them.
    checkout.shell(&format!("sed -i 's/^  bytes runtime_/  string runtime_/' proto/cri/{proto}")).await?;
    let generate =
        format!("python3 -m grpc_tools.protoc -I proto/cri --python_out=. --grpc_python_out=. {proto}");
    checkout.shell(&generate).await?;
    let python = checkout.shell(&format!("python3 version.py unix://{socket}")).await?;

    let imports = format!("-import-path proto/cri -proto {proto}");
    let method = "runtime.v1.RuntimeService/Version";
    let go = checkout.shell(&format!("grpcurl -plaintext -unix {imports} {socket} {method}")).await?;
    let go: Value = serde_json::from_str(&go).with_context(|| go.clone())?;
    let field = |name: &str| go[name].as_str().unwrap_or_default().to_owned();
    Ok([
        ("Python", python.trim_end().to_owned()),
        ("Go", format!("{} {}", field("runtimeName"), field("runtimeVersion"))),
    ])
}
